package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/device/nbd"
	"mars/logfile"
)

// Emergency mode (reference symlink-tree 4.20): where the log cannot go on for want of space, the
// device goes on without it. The log is taken to the disk, a hole in the log sequence is
// published, and from then on requests go straight to the disk. What must hold at every instant:
//
//  1. No byte goes around the log while a record that is not on the disk could be replayed over it.
//  2. No byte goes around the log before the hole is published durably (P6): else a restart would
//     go on in the next number, and peers would follow without ever getting that byte.
//  3. No record follows the hole before everything that went around the log is flushed (P3).

// errCeased is why a request cannot be logged: logging has ceased, the way around is
// not open yet, or is open.
var errCeased = errors.New("logging has ceased")

// ErrDirect: the device is being written around the log, so nothing of it has a log position.
var ErrDirect = errors.New("emergency mode: the device is written without a log")

// fullError is the failure of a log that had no space for a write. Everything before it is sound.
type fullError struct{ error }

func (f fullError) Unwrap() error { return f.error }

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// direct is the way around the log.
type direct struct {
	on    atomic.Bool
	mu    sync.RWMutex  // held for reading by a request on the disk, for writing to open or close the way
	epoch atomic.Uint64 // odd while on: counts openings and closings
	clean atomic.Uint64 // disk epoch of the last flush whose failure, if any, a client was told or is owed
	owed  atomic.Pointer[error]
}

func (d *direct) open(diskEpoch uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on.Load() {
		d.clean.Store(diskEpoch)
		d.epoch.Add(1)
		d.on.Store(true)
	}
}

// shut closes the way; mu is held.
func (d *direct) shut() {
	if d.on.Swap(false) {
		d.epoch.Add(1)
	}
}

// StartDirect goes on without a log. Everything logged is written back, while writers go on as long as
// the log takes their writes and wait for the rest; then announce publishes, durably, that name
// follows a hole; then the position moves to the start of name, which must not exist or be empty, and requests go to
// the disk. If a step fails, writers wait (EngineConfig.DirectPatience) and StartDirect may be
// called again, or StartLogging for another log. StartLogging(name) ends it.
func (e *Engine) StartDirect(ctx context.Context, name logfile.Name, announce func() error) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	op := "go on without a log"
	mode := e.getMode()
	switch mode {
	case Direct:
		return nil
	case Logging, Error, Ceasing:
	default:
		return e.stateErr(op, "engine is "+mode.String())
	}
	if err := e.mayWrite(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if mode == Logging {
		if err := e.shrinkBacklog(ctx); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	if err := e.cease(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if e.cfg.knobs.directUndrained || e.cfg.knobs.directUnsaid {
		if e.cfg.knobs.directUnsaid {
			e.settle(ctx, false)
		}
		e.direct.open(e.disk.Epoch())
		e.setMode(Direct)
	}
	if err := e.settle(ctx, false); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := announce(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	ref := &logRef{name: name, into: e.idx}
	e.logMu.Lock()
	e.continueIn(ref)
	e.ref = ref
	e.logMu.Unlock()
	if err := e.settle(ctx, false); err != nil { // the position is the start of name
		return fmt.Errorf("%s: %w", op, err)
	}
	e.direct.open(e.disk.Epoch())
	e.log.Warn("emergency mode: writes go to the disk without a log", "next", name.String())
	e.setMode(Direct)
	return nil
}

// easyBacklog is how many bytes of log writers wait for when logging ceases.
const easyBacklog = 4 << 20

// shrinkBacklog writes back while writers go on, until little is left, the log has failed, or they are
// faster than the disk.
func (e *Engine) shrinkBacklog(ctx context.Context) error {
	const rounds = 8
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for range rounds {
		if e.failed.Load() != nil || e.backlog() <= easyBacklog {
			return nil
		}
		end := e.idx.end()
		done := e.wb.push()
		err := e.await(ctx, func() (bool, error) {
			at, _ := e.position()
			return e.failed.Load() != nil || at.Log.Seq > end.Log.Seq || at.Log == end.Log && at.Offset >= end.Offset, nil
		})
		done()
		if err != nil {
			return fmt.Errorf("resource %s: writeback: %w", e.cfg.Resource, err)
		}
	}
	return nil
}

// backlog is the length of the log that the disk lacks, in bytes.
func (e *Engine) backlog() (n int64) {
	e.idx.mu.RLock()
	defer e.idx.mu.RUnlock()
	for _, l := range e.idx.list {
		n += l.end - l.start
	}
	return n
}

// cease takes the writer away for good; its log is durable and sealed then. Writers wait
// until they may go on, in whichever way.
func (e *Engine) cease() error {
	if e.getMode() == Ceasing {
		return nil
	}
	e.logMu.RLock()
	w := e.writer
	e.logMu.RUnlock()
	healthy := w != nil && e.failed.Load() == nil
	if healthy {
		if _, err := w.Sync(); err != nil { // most of it, while writes go on
			return e.failLog(w, err)
		}
	}
	e.logMu.Lock()
	if healthy && e.failed.Load() == nil {
		if _, err := w.Sync(); err != nil {
			e.logMu.Unlock()
			return e.failLog(w, err)
		}
	}
	e.writer, e.refuse = nil, errCeased
	e.logMu.Unlock()
	if w != nil {
		if err := w.Close(); err != nil && e.failed.Load() == nil {
			e.log.Warn("close of a log failed; all of it is durable", "log", w.Name().String(), "error", err)
		}
		e.ref.writer.Store(nil)
	}
	if err := e.retire(); err != nil {
		e.logMu.Lock()
		e.refuse = err
		e.logMu.Unlock()
		return err
	}
	e.setMode(Ceasing)
	return nil
}

// retire ends a log whose writer is gone. If what failed was a write, everything before it is
// durable: clean enough.
func (e *Engine) retire() error {
	if f := e.failed.Load(); f != nil {
		end := e.idx.end().Offset
		if d, err := e.chain.Durable(e.ref.name); err != nil || d < end {
			return f.err
		}
		if err := e.chain.Truncate(e.ref.name, end); err != nil {
			return err
		}
		e.failed.Store(nil)
	}
	e.chain.Seal(e.ref.name)
	return nil
}

// stopDirect ends the way around the log, with all of it flushed.
func (e *Engine) stopDirect() error {
	d := &e.direct
	if err := e.flushDirect(false); err != nil { // most of it, while requests go on
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := e.flushDirect(false); err != nil {
		return err
	}
	d.shut()
	d.owed.Store(nil) // whoever comes to the device later has not written that
	return nil
}

// resumeLog ends the way around the log: name is the log that follows the hole.
func (e *Engine) resumeLog(op string, name logfile.Name) error {
	if end := e.idx.end(); end.Log != name {
		return e.stateErr(op, fmt.Sprintf("the hole was announced to end with %v", end.Log))
	}
	ref, err := e.createLog(name)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	d := &e.direct
	if err = e.flushDirect(false); err == nil { // most of it, while requests go on
		d.mu.Lock()
		defer d.mu.Unlock()
		err = e.flushDirect(false)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", op, err), ref.writer.Load().Close())
	}
	d.shut()
	e.install(ref)
	e.log.Warn("emergency mode has ended: writes are logged again", "log", name.String())
	return nil
}

// flushDirect makes durable what went around the log. A failure counts once, as on any disk: later
// flushes say nothing about what was lost here. If no client is told of it now, the next one that
// flushes is.
func (e *Engine) flushDirect(told bool) error {
	if e.cfg.knobs.skipDirectFlush {
		return nil
	}
	d := &e.direct
	err := e.disk.FlushSince(d.clean.Load())
	if err != nil {
		d.clean.Store(e.disk.Epoch())
		err = e.directFailed(err)
		if !told {
			d.owed.Store(&err)
		}
	}
	return err
}

func (e *Engine) directFailed(err error) error {
	e.readFailed(err)
	return fmt.Errorf("%w: resource %s: %v", syscall.EIO, e.cfg.Resource, err)
}

// submitDirect carries out ops on the disk if the way around the log is open.
func (e *Engine) submitDirect(ops []nbd.Op) (done bool, err error) {
	d := &e.direct
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.on.Load() {
		return false, nil
	}
	var bytes int64
	for i := range ops {
		op := &ops[i]
		if err := e.checkRange(op.Off, op.Len); err != nil {
			return true, err
		}
		if op.Kind == nbd.OpWrite && int64(len(op.Data)) != op.Len {
			return true, fmt.Errorf("%w: write of %d bytes carries %d", syscall.EINVAL, op.Len, len(op.Data))
		}
	}
	for i := range ops {
		op := &ops[i]
		switch {
		case op.Kind == nbd.OpWrite:
			_, err = e.disk.WriteAt(op.Data, op.Off)
		case op.Kind == nbd.OpZeroes && op.NoHole:
			err = e.disk.WriteZeroes(op.Off, op.Len)
		default:
			err = e.disk.Discard(op.Off, op.Len)
		}
		if err != nil {
			return true, e.directFailed(err)
		}
		bytes += op.Len
	}
	if e.cfg.Durability == DurabilityAlways {
		if err := e.flushDirect(true); err != nil {
			return true, err
		}
	}
	e.n.writeOps.Add(int64(len(ops)))
	e.n.writeBytes.Add(bytes)
	e.n.directBytes.Add(bytes)
	return true, nil
}

// syncDirect is a FLUSH if the way around the log is open; awaited says that a client waits for it.
func (e *Engine) syncDirect(awaited bool) (done bool, err error) {
	d := &e.direct
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.on.Load() {
		return false, nil
	}
	return true, e.flushDirect(awaited)
}

// passing reports whether a request that failed with err can be tried again soon: there
// is another log then, or a way around it.
func (e *Engine) passing(err error) bool {
	var full fullError
	return errors.Is(err, errCeased) || e.cfg.DirectPatience > 0 && errors.As(err, &full)
}

// ceasePatience is how long requests wait while logging ceases if DirectPatience does not say it.
const ceasePatience = 30 * time.Second

// detour carries out a request that could not be logged because of err: around the log, or in another
// log, whichever comes first. The others fail for good.
func (e *Engine) detour(err error, around func() (bool, error), logged func() error) error {
	patience := e.cfg.DirectPatience
	if patience == 0 {
		patience = ceasePatience
	}
	ctx, cancel := context.WithTimeoutCause(e.ctx, patience,
		fmt.Errorf("neither the log nor the way around it was ready within %v", patience))
	defer cancel()
	for {
		if done, err := around(); done {
			return err
		}
		werr := e.await(ctx, func() (bool, error) {
			if e.direct.on.Load() {
				return true, nil
			}
			var full fullError
			f, mode := e.failed.Load(), e.getMode()
			return mode != Ceasing && (f == nil || !errors.As(f.err, &full)), nil
		})
		if werr != nil {
			return fmt.Errorf("%w: resource %s: %v: %v", syscall.EIO, e.cfg.Resource, werr, err)
		}
		if e.direct.on.Load() {
			continue
		}
		if err = logged(); err == nil || !e.passing(err) {
			return err
		}
	}
}
