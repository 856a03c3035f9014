package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"mars/logfile"
)

// replayer takes records of the followed log into the index as soon as they are
// durable here.
type replayer struct {
	// busy is held by whoever ingests: the loop for one portion, Recover for all
	// of its run, full sync while it copies a chunk that replay keeps touching.
	busy   longMutex
	reader *logfile.Reader // of the log at the end of the index; guarded by busy
	name   logfile.Name
	young  *young       // the record that reader has read last, if it is not old enough; guarded by busy
	delay  atomic.Int64 // nanoseconds; how old records must be
	torn   atomic.Int64 // the durable length that cuts a record, else 0

	mu     sync.Mutex
	on     bool
	err    error // why it stands still
	cancel context.CancelFunc
	poked  bool
}

// young is a record that has been read too early.
type young struct {
	rec logfile.Record // without its data
	x   extent
}

// errYoung: the next record is not old enough.
var errYoung = errors.New("the next record is not old enough")

// maxPortion is how many records are read between looks at the switch.
const maxPortion = 512

// portion is maxPortion, or less if the index is small.
func (e *Engine) portion() int { return min(maxPortion, e.cfg.IndexLimit/16) }

// wake makes the loop look at its switches.
func (r *replayer) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.poked = true
	if r.cancel != nil {
		r.cancel()
	}
}

func (r *replayer) switchTo(on bool) {
	r.mu.Lock()
	r.on = on
	r.mu.Unlock()
	r.retry()
}

// retry forgets an error: the bytes may have changed.
func (r *replayer) retry() {
	r.mu.Lock()
	r.err = nil
	r.mu.Unlock()
	r.wake()
}

// restart is retry with a new reader.
func (r *replayer) restart() {
	r.busy.Lock()
	r.drop()
	r.busy.Unlock()
	r.retry()
}

func (r *replayer) state() (on bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.on, r.err
}

// nap is a context for one wait; wake ends it. The loop looks at its switches after
// nap and before it waits.
func (r *replayer) nap(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel = cancel
	if r.poked {
		r.poked = false
		cancel()
	}
	return ctx, cancel
}

func (r *replayer) close() {
	r.busy.Lock()
	defer r.busy.Unlock()
	r.drop()
}

// drop closes the reader. busy is held.
func (r *replayer) drop() {
	if r.reader != nil {
		r.reader.Close()
		r.reader, r.young = nil, nil
	}
}

// next is where the first record begins that has not been taken. busy is held, and there is a reader.
func (r *replayer) next() int64 {
	if r.young != nil {
		return r.young.rec.Offset
	}
	return r.reader.Offset()
}

// SetReplayDelay makes replay leave alone what is younger than d. The repair of a dirty zone
// does not wait. 0: replay takes what there is.
func (e *Engine) SetReplayDelay(d time.Duration) {
	if e.replay.delay.Swap(int64(d)) != int64(d) {
		e.replay.wake()
	}
}

// tooYoung is how long a record has still to wait.
func (e *Engine) tooYoung(rec *logfile.Record) time.Duration {
	d := time.Duration(e.replay.delay.Load())
	if d == 0 || !e.repaired() || e.getMode() == Recovering {
		return 0
	}
	return rec.Stamp.Add(d).Sub(e.cfg.Now())
}

// Follow lets the engine look at log again: it clears a replay error. log must be
// the current one; NextLog goes on to another.
func (e *Engine) Follow(log logfile.Name) error {
	if cur := e.idx.end().Log; cur != log {
		return e.stateErr("follow "+log.String(), "the current log is "+cur.String()+"; NextLog goes on to the next one when that is complete")
	}
	e.replay.restart() // the file may be another one of that name
	e.notify()
	return nil
}

// SetReplay switches replay. On: records of the current log are applied as they
// become durable. Off: no further record is taken, and SetReplay returns when all
// that were are on the disk and checkpointed: the disk is an exact prefix of the log.
// A dirty zone left by a crash is repaired first; if the log is too short for that
// SetReplay waits for the missing bytes until ctx ends.
func (e *Engine) SetReplay(ctx context.Context, on bool) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	switch mode := e.getMode(); mode {
	case Idle, Replaying:
	default:
		return e.stateErr("set replay", "engine is "+mode.String())
	}
	e.replay.switchTo(on)
	if on {
		e.setMode(Replaying)
		return nil
	}
	e.setMode(Idle)
	// Whoever was ingesting has seen the switch when busy is free again.
	e.replay.busy.Lock()
	//lint:ignore SA2001 the lock is the wait
	e.replay.busy.Unlock()
	return e.settle(ctx, false)
}

// settle waits until the disk is exactly the end of the index. With giveUp the first
// failure of the writeback ends it.
func (e *Engine) settle(ctx context.Context, giveUp bool) error {
	defer e.wb.push()()
	if err := e.await(ctx, func() (bool, error) {
		if e.repaired() {
			return true, nil
		}
		_, err := e.replay.state()
		return err != nil, nil
	}); err != nil {
		return fmt.Errorf("resource %s: repair of the dirty zone, which needs the log up to %d: %w", e.cfg.Resource, e.zone(), err)
	}
	var cause error
	err := e.await(ctx, func() (bool, error) {
		end := e.idx.end()
		e.mu.Lock()
		defer e.mu.Unlock()
		cause = errors.Join(e.diskErr, e.jourErr)
		if giveUp && cause != nil {
			return false, errors.New("given up")
		}
		return e.applied == end, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("resource %s: writeback: %w", e.cfg.Resource, err), cause)
	}
	if !e.repaired() {
		_, err := e.replay.state()
		return fmt.Errorf("resource %s: the disk is inconsistent, it has parts of the log up to %d: %w", e.cfg.Resource, e.zone(), err)
	}
	return nil
}

// zone is the end of the dirty zone.
func (e *Engine) zone() int64 {
	_, end := e.position()
	return end
}

// repaired reports whether the index covers the dirty zone.
func (e *Engine) repaired() bool {
	applied, dirtyEnd := e.position()
	end := e.idx.end()
	return end.Log != applied.Log || end.Offset >= dirtyEnd
}

// NextLog goes on with another log after the current one has been taken to its
// durable end. The position (name, 0) is published when the current one is on the disk.
func (e *Engine) NextLog(name logfile.Name) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	switch mode := e.getMode(); mode {
	case Idle, Replaying:
	default:
		return e.stateErr("next log "+name.String(), "engine is "+mode.String())
	}
	e.replay.busy.Lock()
	defer e.replay.busy.Unlock()
	cur := e.idx.end()
	switch {
	case name == cur.Log:
		return nil
	case name.Seq <= cur.Log.Seq: // numbers may be left out: the caller knows what follows
		return e.stateErr("next log "+name.String(), "it does not follow "+cur.Log.String())
	case !e.repaired():
		return e.stateErr("next log "+name.String(), fmt.Sprintf("the dirty zone up to %v,%d is not repaired", cur.Log, e.zone()))
	}
	size, err := e.chain.Size(cur.Log)
	if err != nil && !errors.Is(err, errNotExist) {
		return err
	}
	if cur.Offset < size {
		return e.stateErr("next log "+name.String(), fmt.Sprintf("%v has not been applied to its end at %d", cur, size))
	}
	e.replay.drop()
	e.openLayer(&logRef{name: name})
	return nil
}

// openLayer continues the index in another log.
func (e *Engine) openLayer(ref *logRef) {
	e.idx.mu.Lock()
	e.idx.freeze(ref, 0)
	e.idx.mu.Unlock()
	e.replay.retry()
	e.wb.wake()
	e.notify()
}

func (e *Engine) replayLoop() {
	r := &e.replay
	var torn int64 // a record is cut there by the durable end
	for e.ctx.Err() == nil {
		nap, cancel := r.nap(e.ctx)
		if limit, want := e.replayLimit(); !want {
			<-nap.Done()
		} else {
			torn = e.replayOnce(nap, limit, torn)
			if r.torn.Swap(torn) != torn {
				e.notify()
			}
		}
		if nap.Err() != nil {
			torn = 0 // told to look again
		}
		cancel()
	}
}

// replayOnce waits for records and takes them. After an error it tries again every
// RepairInterval: the bytes may have been repaired, and growth alone does not tell.
func (e *Engine) replayOnce(nap context.Context, limit, torn int64) (tornNow int64) {
	pos := e.idx.end()
	beyond := max(pos.Offset, torn)
	if _, err := e.replay.state(); err != nil {
		e.wait(nap, e.cfg.RepairInterval)
		beyond = -1
	}
	durable, sealed, err := e.chain.Wait(nap, pos.Log, beyond)
	switch {
	case nap.Err() != nil:
	case errors.Is(err, errNotExist):
		e.wait(nap, e.cfg.RepairInterval) // not fetched yet; Follow comes when it is there
	case err != nil:
		e.replayFailed(pos, err)
	case durable <= pos.Offset && sealed:
		e.replayGoesOn()
		<-nap.Done() // complete: NextLog comes
	default:
		return e.replayUpTo(nap, min(durable, limit), durable, sealed)
	}
	return 0
}

// replayLimit is the log offset up to which records may be taken.
func (e *Engine) replayLimit() (limit int64, want bool) {
	e.mu.Lock()
	mode := e.mode
	e.mu.Unlock()
	if mode != Idle && mode != Replaying {
		return 0, false
	}
	if on, _ := e.replay.state(); on {
		return math.MaxInt64, true
	}
	return e.zone(), !e.repaired()
}

// replayUpTo ingests records up to limit, or until nap ends. It returns the durable
// length if that cuts a record.
func (e *Engine) replayUpTo(nap context.Context, limit, durable int64, sealed bool) (torn int64) {
	for nap.Err() == nil {
		n := e.portion()
		if err := e.idx.reserve(nap, n, e.wb.hurry); err != nil {
			return 0
		}
		e.replay.busy.Lock()
		err := io.EOF                           // a portion may end where the zone does
		if now, want := e.replayLimit(); want { // the switch may have moved before busy was ours
			err = e.ingest(nap, min(limit, now), logfile.ReaderOptions{Mode: e.cfg.ReaderMode})
		}
		e.replay.busy.Unlock()
		e.idx.release(n)
		var cut *logfile.TornError
		switch {
		case err == nil:
			e.replayGoesOn()
			continue
		case errors.Is(err, io.EOF):
			e.replayGoesOn()
			return 0
		case nap.Err() != nil:
			return 0
		case errors.Is(err, errYoung):
			e.replayGoesOn()
			e.wait(nap, min(e.replayWait(), maxYoungWait))
			continue
		case errors.As(err, &cut) && !sealed && limit == durable:
			e.replayGoesOn()
			return durable
		}
		e.replayFailed(e.idx.end(), err)
		return 0
	}
	return 0
}

// ingest takes a portion of the records below limit into the index, for which room is
// reserved. It returns what the Reader says when it cannot go on: io.EOF at limit.
// busy is held.
func (e *Engine) ingest(ctx context.Context, limit int64, opt logfile.ReaderOptions) error {
	r := &e.replay
	pos := e.idx.end()
	if limit <= pos.Offset {
		return io.EOF
	}
	if r.reader == nil || r.name != pos.Log || r.next() != pos.Offset {
		r.drop()
		opt.Start, opt.End, opt.MaxPos = pos.Offset, limit, e.Size()
		rd, err := e.chain.NewReader(pos.Log, opt)
		if err != nil {
			return err
		}
		r.reader, r.name = rd, pos.Log
	}
	r.reader.Extend(limit)
	e.idx.touch()
	wake := false
	if y := r.young; y != nil {
		if e.tooYoung(&y.rec) > 0 {
			return errYoung
		}
		r.young = nil
		wake = e.take(&y.rec, y.x)
	}
	for range e.portion() {
		rec, err := r.reader.Next(ctx)
		if err == nil {
			var x extent
			if x, err = e.recordExtent(rec, pos.Log); err == nil {
				if e.tooYoung(rec) <= 0 {
					wake = e.take(rec, x) || wake
					continue
				}
				r.young = &young{*rec, x}
				r.young.rec.Data = nil
				err = errYoung
			}
		}
		if wake {
			e.wb.wake()
		}
		// The reader stays: it knows the sequence number that must come next, and reads
		// fresh bytes when it is asked again.
		return err
	}
	if wake {
		e.wb.wake()
	}
	return nil
}

// maxYoungWait bounds the wait for a record to grow old: clocks can be set.
const maxYoungWait = 10 * time.Second

// replayWait is how long the next record has still to wait.
func (e *Engine) replayWait() time.Duration {
	r := &e.replay
	r.busy.Lock()
	defer r.busy.Unlock()
	if r.young == nil {
		return 0
	}
	return max(0, e.tooYoung(&r.young.rec))
}

// take puts a record into the index.
func (e *Engine) take(rec *logfile.Record, x extent) (wake bool) {
	if x.len > 0 {
		e.guard.touch(x.off, x.len)
	}
	e.idx.mu.Lock()
	wake = e.idx.add(x, rec.End())
	e.idx.mu.Unlock()
	e.n.replayOps.Add(1)
	if x.data() {
		e.n.replayBytes.Add(x.len)
	}
	return wake
}

// recordExtent is what a record does to the device; records of other codes do nothing.
func (e *Engine) recordExtent(rec *logfile.Record, log logfile.Name) (extent, error) {
	x := extent{off: rec.Pos, len: int64(len(rec.Data)), pos: rec.DataOffset}
	switch rec.Code {
	case logfile.CodeWrite:
		if rec.DataOffset >= 0 {
			break
		}
		if x.kind, x.pos = kindPacked, rec.Offset; allZero(rec.Data) {
			x.kind = kindDiscard
		}
	case logfile.CodeDiscard, logfile.CodeZeroes:
		n, err := logfile.ParseRangePayload(rec.Data)
		if err != nil {
			return x, &logfile.CorruptError{Defect: logfile.Defect{Log: log, Offset: rec.Offset, Reason: err.Error(), RepeatedByte: -1}}
		}
		x.len, x.kind = n, kindDiscard
		if rec.Code == logfile.CodeZeroes {
			x.kind = kindZero
		}
	default:
		return extent{}, nil
	}
	if x.off < 0 || x.len > e.Size()-x.off {
		return x, &logfile.CorruptError{Defect: logfile.Defect{Log: log, Offset: rec.Offset, RepeatedByte: -1,
			Reason: fmt.Sprintf("%v of %d bytes at device offset %d: the device ends at %d", rec.Code, x.len, x.off, e.Size()),
			Hint:   "if the primary's device has grown, grow this disk and resize"}}
	}
	return x, nil
}

// replayFailed stops replay in front of a record. What is before it is written back
// as usual.
func (e *Engine) replayFailed(pos logfile.Position, err error) {
	e.replay.mu.Lock()
	known := e.replay.err != nil && e.replay.err.Error() == err.Error()
	e.replay.err = err
	e.replay.mu.Unlock()
	if known {
		return
	}
	e.log.Error("replay stopped; the disk stays at the position before it until a sound copy of the log has been fetched",
		"position", pos.String(), "error", err)
	e.notify()
	e.event(EventReplayError, pos, err)
}

// replayGoesOn tells that replay has got further, or to the end of what is there.
func (e *Engine) replayGoesOn() {
	e.replay.mu.Lock()
	e.replay.err = nil
	e.replay.mu.Unlock()
	e.notify()
}
