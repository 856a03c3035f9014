package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"mars/logfile"
)

// ErrState: the operation does not fit what the engine is doing.
var ErrState = errors.New("not possible in this state")

var errClosed = fmt.Errorf("engine is closed: %w", syscall.ESHUTDOWN)

// Engine is the log, the extent index and the writeback of one resource; see the
// package comment. All methods are safe for concurrent use; those that change what
// the engine does wait for each other.
type Engine struct {
	cfg   EngineConfig
	log   *slog.Logger
	disk  *Disk
	chain *logfile.Chain
	idx   *layers
	size  atomic.Int64

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	ctl     longMutex // one control operation at a time
	damaged error     // the own logs could not be recovered; guarded by ctl

	// logMu is held for reading while something is appended or synced, for writing
	// to change the writer.
	logMu  sync.RWMutex
	writer *logfile.Writer
	ref    *logRef // of writer; outlives it
	refuse error   // why writes are refused while writer is nil
	failed atomic.Pointer[logFailure]

	readErr atomic.Pointer[readFailure]

	direct direct

	sync    syncer
	confirm confirmer
	replay  replayer
	wb      writeback
	guard   rangeGuard

	mu       sync.Mutex
	mode     Mode
	applied  logfile.Position
	dirtyEnd int64
	diskErr  error
	jourErr  error
	state    signal // mode, positions or errors have changed
	changed  chan struct{}

	n counters
}

type logFailure struct{ err error }

// OpenEngine makes an idle engine whose disk has everything before from and may
// have any mixture of the records up to dirtyEnd of the same log. On a primary
// Recover follows; on a secondary Follow and SetReplay. Reads see the device at
// the end of what has been ingested.
func OpenEngine(ctx context.Context, cfg EngineConfig, from logfile.Position, dirtyEnd int64) (*Engine, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	if from.Log.IsZero() || from.Offset < 0 {
		return nil, fmt.Errorf("open engine: resource %s: no valid replay position (%v)", cfg.Resource, from)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	e := &Engine{
		cfg:      cfg,
		log:      cfg.Log.With("resource", cfg.Resource),
		disk:     cfg.Disk,
		chain:    cfg.Chain,
		idx:      newLayers(from, &cfg),
		refuse:   fmt.Errorf("resource %s: not primary: %w", cfg.Resource, syscall.ESHUTDOWN),
		applied:  from,
		dirtyEnd: max(from.Offset, dirtyEnd),
		changed:  make(chan struct{}, 1),
	}
	e.size.Store(cfg.Size)
	// The engine outlives the call, but not its values.
	e.ctx, e.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	e.sync.kick = make(chan struct{}, 1)
	e.wb.kick = make(chan struct{}, 1)
	e.wb.announced = e.dirtyEnd
	e.guard.broken = cfg.knobs.skipGuard
	for _, loop := range []func(){e.syncLoop, e.replayLoop, e.writebackLoop} {
		e.wg.Go(loop)
	}
	return e, nil
}

// Size is the logical size of the device in bytes.
func (e *Engine) Size() int64 { return e.size.Load() }

// Changed delivers a wake-up after the Status has changed materially. Wake-ups are
// coalesced; there is one consumer.
func (e *Engine) Changed() <-chan struct{} { return e.changed }

func (e *Engine) notify() {
	e.state.fire()
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *Engine) event(kind EventKind, pos logfile.Position, err error) {
	if e.cfg.Events != nil {
		e.cfg.Events(Event{Kind: kind, Resource: e.cfg.Resource, Position: pos, Err: err})
	}
}

func (e *Engine) setMode(m Mode) {
	e.mu.Lock()
	e.mode = m
	e.mu.Unlock()
	e.notify()
}

func (e *Engine) getMode() Mode {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mode
}

// position returns what is on the disk and the end of the dirty zone.
func (e *Engine) position() (applied logfile.Position, dirtyEnd int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.applied, e.dirtyEnd
}

// await waits until cond holds; cond is looked at again after each notify.
func (e *Engine) await(ctx context.Context, cond func() (bool, error)) error {
	for {
		again := e.state.wait()
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.ctx.Done():
			return errClosed
		}
	}
}

// stateErr says that op does not go now.
func (e *Engine) stateErr(op, why string) error {
	return fmt.Errorf("%s: resource %s: %w: %s", op, e.cfg.Resource, ErrState, why)
}

// Resize changes the logical size, after the disk or the primary's device has grown.
// A device never shrinks below what it was: the log may hold data there.
func (e *Engine) Resize(size int64) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	if err := e.disk.refresh(); err != nil {
		return err
	}
	switch old := e.Size(); {
	case size < old:
		return fmt.Errorf("resize resource %s to %d: smaller than now (%d): %w", e.cfg.Resource, size, old, syscall.EINVAL)
	case size > e.disk.Size():
		return fmt.Errorf("resize resource %s to %d: disk %s has %d bytes: %w; grow it first", e.cfg.Resource, size, e.disk.Path(), e.disk.Size(), ErrTooSmall)
	}
	e.size.Store(size)
	e.replay.restart() // a record beyond the old end may have stopped it
	e.notify()
	return nil
}

// Close stops the engine. If log and disk are healthy everything is written back
// and checkpointed first, within CloseTimeout; if not, the error says so and the
// next OpenEngine finds the rest in the log. Neither Disk nor Chain is closed.
func (e *Engine) Close() error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	if e.getMode() == Closed {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.cfg.CloseTimeout,
		fmt.Errorf("close resource %s: writeback not finished within %v; the rest is in the log", e.cfg.Resource, e.cfg.CloseTimeout))
	defer cancel()
	var err error
	e.mu.Lock()
	mode, diskErr := e.mode, errors.Join(e.diskErr, e.jourErr)
	e.mu.Unlock()
	switch mode {
	case Logging, Error, Ceasing, Direct:
		err = e.stopWriting()
	}
	e.replay.switchTo(false)
	switch {
	case err != nil:
	case diskErr != nil:
		err = fmt.Errorf("close resource %s: not written back, the rest is in the log: %w", e.cfg.Resource, diskErr)
	case !e.repaired():
		err = fmt.Errorf("close resource %s: the disk is inconsistent, it has parts of the log up to %d that is not here", e.cfg.Resource, e.zone())
	default:
		err = e.settle(ctx, true)
	}
	e.stop()
	return err
}

// Abandon ends the engine as the death of the process does: nothing is written back, the
// rest is in the log. Operations under way return with an error.
func (e *Engine) Abandon() {
	e.cancel(errClosed)
	e.ctl.Lock()
	defer e.ctl.Unlock()
	if e.getMode() != Closed {
		e.stop()
	}
}

// stop ends the goroutines without writing anything back.
func (e *Engine) stop() {
	e.cancel(errClosed)
	e.replay.wake()
	e.wg.Wait()
	e.direct.mu.Lock() // nobody is at the disk when it is closed
	e.direct.shut()
	e.direct.mu.Unlock()
	e.logMu.Lock()
	if e.writer != nil {
		e.writer.Close()
		e.writer, e.refuse = nil, errClosed
	}
	e.refuse = errClosed
	e.logMu.Unlock()
	e.replay.close()
	e.sync.finish(errClosed)
	e.confirm.close(errClosed)
	e.setMode(Closed)
}
