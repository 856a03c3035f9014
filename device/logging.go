package device

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"mars/logfile"
)

// maxLayers is how many layers may wait for writeback before Rotate waits: each
// costs every read one more search.
const maxLayers = 64

// StartLogging opens this node's next log; from now on Submit works. The engine is
// clean or recovered, and has applied the current log to its end. After a failure of
// the log it is the way on: records that were acknowledged but are not durable are
// logged again in the new one. After StartDirect it ends emergency mode.
func (e *Engine) StartLogging(name logfile.Name) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	op := "start logging to " + name.String()
	mode := e.getMode()
	switch mode {
	case Idle, Error, Ceasing, Direct:
	default:
		return e.stateErr(op, "engine is "+mode.String())
	}
	if err := e.mayWrite(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	switch mode {
	case Error:
		return e.restartLog(op, name)
	case Direct:
		return e.resumeLog(op, name)
	}
	if on, _ := e.replay.state(); on || !e.repaired() {
		return e.stateErr(op, "replay is on, or the dirty zone is not repaired")
	}
	if e.damaged != nil {
		return e.stateErr(op, "recovery has failed: "+e.damaged.Error())
	}
	cur := e.idx.end()
	size, err := e.chain.Size(cur.Log)
	if err != nil && !errors.Is(err, errNotExist) {
		return err
	}
	later, err := e.laterBytes(cur.Log)
	if err != nil {
		return err
	}
	if later {
		return e.stateErr(op, fmt.Sprintf("there are own logs with data after %v; recover first", cur))
	}
	if size > cur.Offset {
		return e.stateErr(op, fmt.Sprintf("%v has %d bytes, applied are %d; recover first", cur.Log, size, cur.Offset))
	}
	ref, err := e.createLog(name)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	e.install(ref)
	if cur.Log != name {
		e.chain.Seal(cur.Log)
	}
	return nil
}

// mayWrite checks that name is an own log behind everything in the index.
func (e *Engine) mayWrite(name logfile.Name) error {
	cur := e.idx.end()
	switch {
	case name.Host != e.cfg.Host:
		return fmt.Errorf("it is not a log of this node (%s); a node only ever writes its own", e.cfg.Host)
	case name == cur.Log && cur.Offset == 0:
		return nil // found empty by Recover, or named by the replay position before it existed
	case name.Seq <= cur.Log.Seq:
		return fmt.Errorf("it does not come after %v; a used log is never continued", cur)
	}
	return nil
}

// createLog makes a log.
func (e *Engine) createLog(name logfile.Name) (*logRef, error) {
	ref := &logRef{name: name, into: e.idx}
	w, err := e.chain.Create(name, logfile.WriterOptions{Now: e.cfg.Now, MaxRecord: e.cfg.MaxRecord, OnAppend: e.onAppend(ref)})
	if err != nil {
		return nil, err
	}
	ref.writer.Store(w)
	return ref, nil
}

// install lets Submit write to ref.
func (e *Engine) install(ref *logRef) {
	e.logMu.Lock()
	e.continueIn(ref)
	e.writer, e.ref, e.refuse = ref.writer.Load(), ref, nil
	e.failed.Store(nil)
	e.logMu.Unlock()
	e.wb.wake()
	e.setMode(Logging)
}

// continueIn makes ref the log of the newest layer. logMu is held.
func (e *Engine) continueIn(ref *logRef) {
	e.idx.mu.Lock()
	defer e.idx.mu.Unlock()
	if top := e.idx.top(); top.log.name == ref.name {
		top.log = ref // empty: nobody has taken the old one from it
	} else {
		e.idx.freeze(ref, 0)
	}
}

// Rotate goes on in another log. The old one is durable before the first write in
// the new one is acknowledged, and sealed. If writing back is so far behind that
// there are too many layers, it waits for RotateTimeout and then fails; writes go on
// in the old log all the time.
func (e *Engine) Rotate(name logfile.Name) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	op := "rotate to " + name.String()
	if mode := e.getMode(); mode != Logging {
		return e.stateErr(op, "engine is "+mode.String())
	}
	if cur := e.idx.end(); cur.Log == name {
		return nil
	}
	if err := e.mayWrite(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := e.awaitLayers(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	old, oldRef := e.writer, e.ref
	if _, err := old.Sync(); err != nil { // most of it, while writes go on
		return fmt.Errorf("%s: %w", op, e.failLog(old, err))
	}
	ref, err := e.createLog(name)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	e.logMu.Lock()
	if _, err := old.Sync(); err != nil {
		e.logMu.Unlock()
		ref.writer.Load().Close()
		return fmt.Errorf("%s: %w", op, e.failLog(old, err))
	}
	e.continueIn(ref)
	e.writer, e.ref = ref.writer.Load(), ref
	e.logMu.Unlock()
	err = old.Close() // everything in it is durable
	oldRef.writer.Store(nil)
	e.chain.Seal(old.Name())
	e.wb.wake()
	e.notify()
	if err != nil {
		e.log.Warn("close of a rotated log failed; all of it is durable", "log", old.Name().String(), "error", err)
	}
	return nil
}

func (e *Engine) awaitLayers() error {
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.cfg.RotateTimeout,
		fmt.Errorf("%d parts of the log wait for writeback to %s", maxLayers, e.disk.Path()))
	defer cancel()
	defer e.wb.push()()
	return e.await(ctx, func() (bool, error) {
		e.idx.mu.RLock()
		defer e.idx.mu.RUnlock()
		return len(e.idx.list) < maxLayers, nil
	})
}

// StopLogging ends being primary: no more writes, everything is written back and
// checkpointed with an exact position. If ctx ends first the rest is still written
// back in the background; calling it again waits on.
func (e *Engine) StopLogging(ctx context.Context) error {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	switch mode := e.getMode(); mode {
	case Logging, Error, Ceasing, Direct:
		if err := e.stopWriting(); err != nil {
			return err
		}
	case Idle:
	default:
		return e.stateErr("stop logging", "engine is "+mode.String())
	}
	return e.settle(ctx, false)
}

// stopWriting refuses further writes and closes the log, or flushes what went around it.
func (e *Engine) stopWriting() error {
	refuse := fmt.Errorf("resource %s: not primary any more: %w", e.cfg.Resource, syscall.ESHUTDOWN)
	if e.getMode() == Direct {
		e.logMu.Lock()
		e.refuse = refuse
		e.logMu.Unlock()
		if err := e.stopDirect(); err != nil {
			return err
		}
	} else {
		e.closeLog(refuse)
		if err := e.retire(); err != nil {
			return err
		}
	}
	e.setMode(Idle)
	return nil
}

// closeLog takes the writer away and closes it. Its log is durable, or has failed, before anybody
// finds no writer: FLUSH takes that for done.
func (e *Engine) closeLog(refuse error) {
	e.logMu.Lock()
	w := e.writer
	if w != nil && e.failed.Load() == nil && !e.cfg.knobs.lateClose {
		if _, err := w.Sync(); err != nil {
			e.failLog(w, err)
		}
	}
	e.writer, e.refuse = nil, refuse
	e.logMu.Unlock()
	if w == nil {
		return
	}
	if err := w.Close(); err != nil {
		e.failLog(w, err)
	}
	e.ref.writer.Store(nil)
}
