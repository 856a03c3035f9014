package device

import (
	"context"
	"errors"
	"fmt"
	"io"

	"mars/logfile"
)

// Recover makes an engine of a designated primary ready for reads and
// StartLogging: the records from the replay position to the end of this node's own
// logs enter the index. Nothing has to be written to the disk first. All logs are
// made durable before anything depends on them. A torn tail is cut off and its
// length returned; torn bytes that were ever known to be durable, and damage before
// the end, are an error unless force, which ends the log in front of them.
//
// Recover goes on where an earlier one stopped, and doing it again changes nothing.
func (e *Engine) Recover(ctx context.Context, force bool) (end logfile.Position, torn int64, err error) {
	return e.RecoverDurable(ctx, logfile.Position{}, force)
}

// RecoverDurable is Recover for a caller who knows a position that the log was
// confirmed to (its published length, or what a peer has): a defect before it is
// damage, one behind it is a torn tail of unsynced blocks, however it looks. With
// the zero Position only the form of the tail decides.
func (e *Engine) RecoverDurable(ctx context.Context, durable logfile.Position, force bool) (end logfile.Position, torn int64, err error) {
	e.ctl.Lock()
	defer e.ctl.Unlock()
	switch mode := e.getMode(); mode {
	case Idle, Replaying:
	default:
		return end, 0, e.stateErr("recover", "engine is "+mode.String())
	}
	e.replay.switchTo(false)
	e.setMode(Recovering)
	defer e.setMode(Idle)
	e.replay.busy.Lock()
	defer e.replay.busy.Unlock()
	e.replay.drop()
	defer e.replay.drop()
	for {
		cut, ended, err := e.recoverLog(ctx, durable, force)
		torn += cut
		if err != nil {
			return e.idx.end(), torn, fmt.Errorf("recover resource %s: %w", e.cfg.Resource, err)
		}
		next, err := e.successor(e.idx.end().Log)
		if err != nil {
			return e.idx.end(), torn, fmt.Errorf("recover resource %s: %w", e.cfg.Resource, err)
		}
		e.chain.Seal(e.idx.end().Log)
		if next.IsZero() || ended {
			break
		}
		e.replay.drop()
		e.openLayer(&logRef{name: next})
	}
	return e.idx.end(), torn, nil
}

// successor is the log that follows name: this node's own one, or the only one
// there is if own ones come later. Zero: name is the last.
func (e *Engine) successor(name logfile.Name) (logfile.Name, error) {
	list, err := e.chain.List()
	if err != nil {
		return logfile.Name{}, err
	}
	var next []logfile.Name
	later := false
	for _, f := range list {
		own := f.Name.Host == e.cfg.Host
		switch {
		case f.Name.Seq == name.Seq+1 && own:
			return f.Name, nil
		case f.Name.Seq == name.Seq+1:
			next = append(next, f.Name)
		case f.Name.Seq > name.Seq+1 && own:
			later = true
		}
	}
	switch {
	case !later:
		return logfile.Name{}, nil
	case len(next) == 1:
		return next[0], nil
	case len(next) == 0:
		return logfile.Name{}, fmt.Errorf("a log is missing between %v and later own ones: fetch it, or remove the later ones if they are not needed", name)
	}
	return logfile.Name{}, fmt.Errorf("several logs follow %v (%v): split brain", name, next)
}

// recoverLog takes the current log to its end. ended says that nothing may follow.
func (e *Engine) recoverLog(ctx context.Context, known logfile.Position, force bool) (cut int64, ended bool, err error) {
	start := e.idx.end()
	size, err := e.chain.SyncRaw(start.Log)
	if errors.Is(err, errNotExist) && start.Offset == 0 {
		return 0, false, nil // never created
	}
	if err != nil {
		return 0, false, err
	}
	if size < start.Offset {
		return 0, false, fmt.Errorf("%v has %d bytes only, but the disk has its data up to %d: fetch the rest from a peer", start.Log, size, start.Offset)
	}
	opt := logfile.ReaderOptions{Mode: e.cfg.ReaderMode}
	switch {
	case known.Log.IsZero():
	case start.Log.Seq < known.Log.Seq:
		opt.Durable, opt.DurableKnown = size, true
	case start.Log == known.Log:
		opt.Durable, opt.DurableKnown = max(known.Offset, start.Offset), true
	default:
		opt.Durable, opt.DurableKnown = 0, true
	}
	for err == nil {
		n := e.portion()
		if err = e.idx.reserve(ctx, n, e.wb.hurry); err != nil {
			return 0, false, err
		}
		err = e.ingest(ctx, size, opt)
		e.idx.release(n)
	}
	pos := e.idx.end()
	var tail *logfile.TornError
	var bad *logfile.CorruptError
	switch {
	case errors.Is(err, io.EOF):
		if !e.repaired() {
			return 0, false, e.missing(pos, force)
		}
		return 0, false, nil
	case errors.As(err, &tail):
		// The next log gets its first byte after this one has been synced.
		used, uerr := e.laterBytes(pos.Log)
		if uerr != nil {
			return 0, false, uerr
		}
		if ended = used; ended && !force {
			return 0, false, fmt.Errorf("%w; later logs have data, so this one was complete once", err)
		}
	case errors.As(err, &bad):
		if !force {
			return 0, false, err
		}
		ended = true
	default:
		return 0, false, err
	}
	if !e.repaired() {
		if merr := e.missing(pos, force); merr != nil {
			return 0, false, fmt.Errorf("%w: %w", merr, err)
		}
	}
	if err := e.chain.Truncate(pos.Log, pos.Offset); err != nil {
		return 0, false, err
	}
	e.log.Warn("the log was cut behind its last sound record", "position", pos.String(), "bytes", size-pos.Offset, "reason", err, "forced", ended)
	e.event(EventTornTail, pos, err)
	return size - pos.Offset, ended, nil
}

// missing handles a log that ends inside the dirty zone: data that the disk may have
// in part is not in the log.
func (e *Engine) missing(pos logfile.Position, force bool) error {
	applied, dirtyEnd := e.position()
	if !force {
		return fmt.Errorf("log ends at %v, but the disk may have parts of it up to %d: fetch it from a peer, or force and check the data", pos, dirtyEnd)
	}
	e.log.Error("forced: the disk may keep parts of writes that are in no log any more; check the data", "position", pos.String(), "dirty_end", dirtyEnd)
	// From now on the zone ends with the log.
	e.wb.cycle.Lock()
	defer e.wb.cycle.Unlock()
	e.wb.announced = pos.Offset
	e.setPosition(applied, pos.Offset)
	return nil
}

// laterBytes reports whether an own log behind name has any.
func (e *Engine) laterBytes(name logfile.Name) (bool, error) {
	list, err := e.chain.List()
	if err != nil {
		return false, err
	}
	for _, f := range list {
		if f.Name.Seq > name.Seq && f.Name.Host == e.cfg.Host && f.Size > 0 {
			return true, nil
		}
	}
	return false, nil
}
