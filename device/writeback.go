package device

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"mars/logfile"
)

// maxRun is the length of the largest write to the disk, in bytes.
const maxRun = 1 << 20

var runBuffers = sync.Pool{New: func() any { return new([maxRun]byte) }}

// writeback carries the layers of the index to the disk, oldest first.
type writeback struct {
	kick   chan struct{}
	forced atomic.Int32 // somebody waits for a clean disk
	full   atomic.Bool  // a writer waits for room
	cycle  longMutex    // held while a layer is chosen and written

	announced int64 // end of the zone that the journal knows for the log of applied; guarded by cycle
}

func (w *writeback) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// hurry starts a cycle at once because the index is full.
func (w *writeback) hurry() {
	if !w.full.Swap(true) {
		w.wake()
	}
}

// push makes the writeback go on without waiting for age or size until the
// returned function is called.
func (w *writeback) push() (done func()) {
	w.forced.Add(1)
	w.wake()
	return func() { w.forced.Add(-1) }
}

func (e *Engine) writebackLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	backoff := e.cfg.RetryMin
	for e.ctx.Err() == nil {
		did, ok, due := e.runCycle()
		if !did {
			if due > 0 {
				timer.Reset(due)
			} else {
				timer.Stop()
			}
			select {
			case <-e.wb.kick:
			case <-timer.C:
			case <-e.ctx.Done():
			}
			continue
		}
		if ok {
			backoff = e.cfg.RetryMin
			continue
		}
		e.wait(e.ctx, backoff)
		backoff = min(backoff*2, e.cfg.RetryMax)
	}
}

// nextLayer returns the oldest layer, frozen, if it is time to write it. Otherwise
// due says when it will be, 0 if nothing is dirty.
func (e *Engine) nextLayer() (l *layer, due time.Duration) {
	x := e.idx
	x.mu.Lock()
	defer x.mu.Unlock()
	l = x.list[0]
	if len(x.list) > 1 {
		return l, 0
	}
	if l.empty() {
		e.wb.full.Store(false)
		return nil, 0
	}
	full := e.wb.full.Swap(false)
	due = min(e.cfg.WritebackAge-time.Since(l.since), e.idleAge()-x.idle())
	if !full && e.wb.forced.Load() == 0 && due > 0 && l.end-l.start < e.cfg.WritebackBytes {
		return nil, due
	}
	x.freeze(l.log, l.end)
	return l, 0
}

// runCycle carries the oldest layer to the disk if it is time, and reports success;
// if it is not, due says when it will be.
func (e *Engine) runCycle() (did, ok bool, due time.Duration) {
	e.wb.cycle.Lock()
	defer e.wb.cycle.Unlock()
	l, due := e.nextLayer()
	if l == nil {
		return false, false, due
	}
	journal, err := e.writeLayer(l)
	if e.ctx.Err() != nil {
		return true, false, 0
	}
	e.mu.Lock()
	was := e.diskErr != nil || e.jourErr != nil
	e.diskErr, e.jourErr = nil, nil
	switch {
	case err == nil:
	case journal:
		e.jourErr = err
	default:
		e.diskErr = err
	}
	e.mu.Unlock()
	pos := l.endPos()
	switch {
	case err != nil:
		e.n.failedCycles.Add(1)
		if !was {
			e.log.Error("writeback failed, it is repeated until it works; nothing is lost while the log is there",
				"disk", e.disk.Path(), "position", pos.String(), "error", err)
		}
		e.event(EventDiskError, pos, err)
	case was:
		e.log.Warn("writeback works again", "disk", e.disk.Path(), "position", pos.String())
		e.event(EventDiskOK, pos, nil)
	}
	if err == nil {
		e.n.cycles.Add(1)
		e.event(EventCheckpoint, pos, nil)
	}
	e.notify()
	return true, err == nil, 0
}

// writeLayer is one cycle; the order of its steps is what P3, P4 and P6 rest on.
// journal says that the error is the journal's. wb.cycle is held.
func (e *Engine) writeLayer(l *layer) (journal bool, err error) {
	applied, dirtyEnd := e.position()
	if !l.empty() {
		// What the disk has, the log must not lose.
		if !e.cfg.knobs.skipLogSync {
			if err := e.makeDurable(l); err != nil {
				return false, err
			}
		}
		if l.end > e.wb.announced && !e.cfg.knobs.skipDirty {
			if err := e.cfg.Journal.Dirty(l.log.name, applied.Offset, l.end); err != nil {
				return true, fmt.Errorf("announce dirty zone %v..%d: %w", applied, l.end, err)
			}
			e.wb.announced = l.end
			e.setPosition(applied, max(dirtyEnd, l.end))
		}
		if e.cfg.knobs.checkpointFirst {
			e.checkpoint(l)
		}
		// Everything below is written again if the flush fails: the layer stays.
		epoch := e.disk.Epoch()
		if err := e.writeExtents(l); err != nil {
			return false, err
		}
		if !e.cfg.knobs.skipFlush {
			if err := e.disk.FlushSince(epoch); err != nil {
				return false, err
			}
		}
		e.idx.written(l)
	}
	if err := e.checkpoint(l); err != nil { // all that is repeated then
		return true, err
	}
	e.idx.drop()
	return false, nil
}

// makeDurable syncs the log of a layer up to its end.
func (e *Engine) makeDurable(l *layer) error {
	for {
		var durable int64
		var err error
		w := l.log.writer.Load()
		if w != nil {
			// A write that failed later does not hurt the records before it.
			if durable = w.Durable(); durable < l.end {
				durable, err = w.Sync()
			}
		} else if durable, err = e.chain.Durable(l.log.name); err == nil && durable < l.end {
			durable, err = e.chain.SyncRaw(l.log.name)
		}
		switch {
		case durable >= l.end:
			return nil
		case err != nil && w != nil:
			return e.failLog(w, err)
		case err != nil:
			return err
		case w == nil && l.log.writer.Load() == nil:
			return fmt.Errorf("log %s has %d durable bytes, %d were applied: it was cut while in use", l.log.name, durable, l.end)
		}
		runtime.Gosched() // between OnAppend and the end of Append
	}
}

// checkpoint publishes that the layer is on the disk. When it was the last one of
// its log, the position is the start of the next.
func (e *Engine) checkpoint(l *layer) error {
	e.idx.mu.RLock()
	next := e.idx.list[1]
	pos := l.endPos()
	if next.log != l.log {
		pos = logfile.Position{Log: next.log.name, Offset: next.start}
	}
	e.idx.mu.RUnlock()
	applied, dirtyEnd := e.position()
	if pos == applied && dirtyEnd == applied.Offset {
		return nil
	}
	end := pos.Offset
	if pos.Log == applied.Log {
		end = max(end, dirtyEnd) // the rest of the zone that a crash left
	}
	if err := e.cfg.Journal.Checkpoint(pos.Log, pos.Offset, end); err != nil {
		return fmt.Errorf("publish checkpoint %v: %w", pos, err)
	}
	e.wb.announced = end
	e.setPosition(pos, end)
	return nil
}

func (e *Engine) setPosition(applied logfile.Position, dirtyEnd int64) {
	e.mu.Lock()
	e.applied, e.dirtyEnd = applied, dirtyEnd
	e.mu.Unlock()
	e.notify()
}

// run is a piece of work: neighbouring extents that have data, or a zeroed range.
type run struct {
	at       cursor
	n        int
	off, len int64
	kind     kind
}

// unit is what one job writes and waits for at a time: neighbouring runs.
type unit struct {
	at       cursor
	runs     int
	extents  int
	off, end int64
}

// Bounds of a unit; with two units of each job under way they bound what a FLUSH of a
// client finds queued in front of it.
const (
	unitRuns  = 8
	unitBytes = maxRun
)

func nextUnit(m *extentMap, c cursor) (unit, cursor) {
	u := unit{at: c, off: m.at(c).off}
	for bytes := int64(0); u.runs < unitRuns && bytes < unitBytes && c.li < len(m.leaf); u.runs++ {
		var r run
		r, c = nextRun(m, c)
		u.extents += r.n
		u.end = r.off + r.len
		bytes += r.len
	}
	return u, c
}

// writeExtents writes a frozen layer in device order, several units at a time, and
// returns when the device has all of it (not yet flushed).
func (e *Engine) writeExtents(l *layer) error {
	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(nil)
	e.idx.drained.Store(0)
	units := make(chan unit)
	var wg sync.WaitGroup
	for range e.cfg.WritebackJobs {
		wg.Go(func() {
			buf := runBuffers.Get().(*[maxRun]byte)
			defer runBuffers.Put(buf)
			var last unit
			for u := range units {
				if ctx.Err() != nil {
					continue
				}
				err := e.writeUnit(l, u, buf[:])
				if err == nil {
					err = e.waitUnit(last)
				}
				if err != nil {
					cancel(err)
				}
				last = u
			}
			if ctx.Err() == nil {
				if err := e.waitUnit(last); err != nil {
					cancel(err)
				}
			}
		})
	}
	m, pace, done := &l.ext, e.newPacer(l), 0
	for c := m.norm(cursor{}); c.li < len(m.leaf) && ctx.Err() == nil; {
		var u unit
		u, c = nextUnit(m, c)
		pace.pause(ctx, done)
		select {
		case units <- u:
			done += u.extents
		case <-ctx.Done():
		}
	}
	close(units)
	wg.Wait()
	return context.Cause(ctx)
}

func (e *Engine) writeUnit(l *layer, u unit, buf []byte) error {
	c := u.at
	for range u.runs {
		var r run
		r, c = nextRun(&l.ext, c)
		if err := e.writeRun(l, r, buf); err != nil {
			return err
		}
	}
	return e.disk.StartWriteOut(u.off, u.end-u.off)
}

// waitUnit ends a unit; the zero unit has nothing.
func (e *Engine) waitUnit(u unit) error {
	if u.runs == 0 {
		return nil
	}
	if err := e.disk.WaitWriteOut(u.off, u.end-u.off); err != nil {
		return err
	}
	e.idx.drain(u.extents)
	return nil
}

// nextRun returns the run that starts at c and the place behind it.
func nextRun(m *extentMap, c cursor) (run, cursor) {
	x := m.at(c)
	r := run{at: c, n: 1, off: x.off, len: x.len, kind: x.kind}
	c = m.next(c)
	for y := m.at(c); y != nil && y.off == r.off+r.len; y = m.at(c) {
		if x.data() != y.data() || (!x.data() && y.kind != x.kind) || (x.data() && r.len+y.len > maxRun) {
			break
		}
		r.n++
		r.len += y.len
		c = m.next(c)
	}
	return r, c
}

func (e *Engine) writeRun(l *layer, r run, buf []byte) error {
	data := r.kind == kindLog || r.kind == kindPacked
	if data {
		buf = buf[:r.len]
		c := r.at
		for range r.n {
			x := l.ext.at(c)
			if err := e.readLogged(buf[x.off-r.off:x.end()-r.off], l.log.name, x); err != nil {
				return fmt.Errorf("writeback: %w", err)
			}
			c = l.ext.next(c)
		}
	}
	e.guard.write(r.off, r.len)
	defer e.guard.done(r.off, r.len)
	var err error
	switch {
	case data:
		_, err = e.disk.WriteAt(buf, r.off)
		e.n.wbBytes.Add(r.len)
	case r.kind == kindDiscard:
		err = e.disk.Discard(r.off, r.len)
	default:
		err = e.disk.WriteZeroes(r.off, r.len)
	}
	e.n.wbOps.Add(1)
	return err
}

// knobs are negative controls: each breaks a rule that a test must notice.
type knobs struct {
	skipLogSync     bool // data reaches the disk before the log is durable
	skipDirty       bool // the dirty zone is not announced
	checkpointFirst bool // the position moves before the data is on the disk
	skipFlush       bool // the position moves before the disk is flushed
	skipAdmit       bool // writers run into the limit of the index
	lateClose       bool // the log is taken away before it is durable
	skipGuard       bool // full sync does not care whether replay overtook it
	directUndrained bool // requests go around the log before the log is on the disk
	directUnsaid    bool // ... before the hole is announced
	skipDirectFlush bool // logging resumes before what went around it is durable
}
