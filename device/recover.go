package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"mars/logfile"
)

// DamageError: the own logs cannot be taken to their end, and something behind the
// defect may have been acknowledged. Nothing has been changed. Recovery with force
// ends the log at At.
type DamageError struct {
	Resource string
	At       logfile.Position // the last sound record ends here
	Lost     int64            // bytes of own logs behind At that force gives up, as far as they are known
	Later    int              // own logs behind At.Log that have data
	Err      error            // what is wrong: a *logfile.CorruptError, a *logfile.TornError, or something missing
}

func (e *DamageError) Error() string {
	later := ""
	if e.Later > 0 {
		later = fmt.Sprintf(", %d later logs included", e.Later)
	}
	return fmt.Sprintf("own log of %s is damaged at %v: %v; %d bytes behind it may have been acknowledged (%d bytes of log%s): "+
		"if another member has them, make it primary; to give them up, force this one", e.Resource, e.At, e.Err, e.Lost, e.Lost, later)
}

func (e *DamageError) Unwrap() error { return e.Err }

// errLogMissing: a log that was durable once is not there, or not all of it.
var errLogMissing = fmt.Errorf("log bytes are missing: %w", fs.ErrNotExist)

// Recover makes an engine of a designated primary ready for reads and
// StartLogging: the records from the replay position to the end of this node's own
// logs enter the index. Nothing has to be written to the disk first. All logs are
// made durable before anything depends on them. A torn tail is cut off and its
// length returned; torn bytes that were ever known to be durable, and damage before
// the end, are a *DamageError unless force, which ends the log in front of them.
//
// Recover goes on where an earlier one stopped, and doing it again changes nothing.
func (e *Engine) Recover(ctx context.Context, force bool) (end logfile.Position, torn int64, err error) {
	return e.RecoverKnown(ctx, nil, force)
}

// RecoverKnown is Recover for a caller who knows the own logs in their order, each with the length
// that it was confirmed to (published, or held by a peer). A defect or an end before
// such a length is damage; in the last one, what comes behind it is a torn tail of
// unsynced blocks, however it looks. Logs that the list does not have follow each
// other by number.
func (e *Engine) RecoverKnown(ctx context.Context, known []logfile.Position, force bool) (end logfile.Position, torn int64, err error) {
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
	torn, err = (&recovery{e: e, known: known, force: force}).run(ctx)
	e.damaged = err
	if err != nil {
		err = fmt.Errorf("recover resource %s: %w", e.cfg.Resource, err)
	}
	return e.idx.end(), torn, err
}

// recovery is one run of RecoverKnown.
type recovery struct {
	e     *Engine
	known []logfile.Position
	force bool
}

// length is what the log was confirmed to, -1 if nobody said.
func (r *recovery) length(log logfile.Name) int64 {
	for _, k := range r.known {
		if k.Log == log {
			return k.Offset
		}
	}
	return -1
}

// last is the newest log that somebody knows of.
func (r *recovery) last() (last logfile.Name) {
	for _, k := range r.known {
		if k.Log.Seq >= last.Seq {
			last = k.Log
		}
	}
	return last
}

func (r *recovery) run(ctx context.Context) (torn int64, err error) {
	e := r.e
	for {
		cut, ended, err := r.log(ctx)
		torn += cut
		if err != nil {
			return torn, err
		}
		end := e.idx.end()
		e.chain.Seal(end.Log)
		if ended {
			return torn, r.setAside(end.Log)
		}
		next, err := r.next(end.Log)
		if err != nil {
			return torn, err
		}
		if next.IsZero() {
			return torn, nil
		}
		e.replay.drop()
		e.openLayer(&logRef{name: next})
	}
}

// next is the log that follows name, zero if there is none. One that was confirmed
// and is not there is damage.
func (r *recovery) next(name logfile.Name) (logfile.Name, error) {
	for i, k := range r.known {
		if k.Log != name || i+1 == len(r.known) {
			continue
		}
		return r.known[i+1].Log, nil // whether it is there shows when it is opened
	}
	next, err := r.e.successor(name)
	if err == nil && next.IsZero() {
		for _, k := range r.known {
			if k.Log.Seq > name.Seq && k.Offset > 0 {
				return k.Log, nil
			}
		}
	}
	return next, err
}

// damage is the verdict without force; with it, the log ends at pos.
func (r *recovery) damage(pos logfile.Position, cause error) error {
	d := &DamageError{Resource: r.e.cfg.Resource, At: pos, Err: cause}
	behind := map[logfile.Name]int64{pos.Log: 0}
	for _, k := range r.known {
		if k.Log.Seq >= pos.Log.Seq {
			behind[k.Log] = k.Offset
		}
	}
	if list, err := r.e.chain.List(); err == nil {
		for _, f := range list {
			if f.Name == pos.Log || f.Name.Host == r.e.cfg.Host && f.Name.Seq > pos.Log.Seq {
				behind[f.Name] = max(behind[f.Name], f.Size)
			}
		}
	}
	for log, n := range behind {
		if log == pos.Log {
			n -= pos.Offset
		} else if n > 0 {
			d.Later++
		}
		d.Lost += max(n, 0)
	}
	return d
}

// setAside gets the own logs behind name out of the way: they continue something
// that has been given up. They are kept under another name for whoever wants to look.
func (r *recovery) setAside(name logfile.Name) error {
	list, err := r.e.chain.List()
	if err != nil {
		return err
	}
	for _, f := range list {
		if f.Name.Seq <= name.Seq || f.Name.Host != r.e.cfg.Host {
			continue
		}
		path, err := r.e.chain.SetAside(f.Name)
		if err != nil {
			return err
		}
		r.e.log.Warn("a log behind the given up part was set aside; remove it when nobody wants to look at it any more",
			"log", f.Name.String(), "path", path, "bytes", f.Size)
	}
	return nil
}

// successor is the log that follows name: this node's own one, or the only one
// there is if own ones come later. Zero: name is the last.
func (e *Engine) successor(name logfile.Name) (logfile.Name, error) {
	if next := e.idx.after(name); !next.IsZero() {
		return next, nil
	}
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

// options say what the reader may take for a torn tail of log.
func (r *recovery) options(start logfile.Position, size int64) (opt logfile.ReaderOptions) {
	opt.Mode = r.e.cfg.ReaderMode
	n, last := r.length(start.Log), r.last()
	switch {
	case last.IsZero():
	case start.Log.Seq < last.Seq:
		opt.Durable, opt.DurableKnown = size, true // complete when the next one got its first byte
	case n >= 0:
		opt.Durable, opt.DurableKnown = max(n, start.Offset), true
	default:
		opt.Durable, opt.DurableKnown = 0, true
	}
	return opt
}

// log takes the current log to its end. ended says that nothing may follow.
func (r *recovery) log(ctx context.Context) (cut int64, ended bool, err error) {
	e := r.e
	start := e.idx.end()
	size, err := e.chain.SyncRaw(start.Log)
	if gone := errors.Is(err, errNotExist); gone || err == nil && size < start.Offset {
		if gone && start.Offset == 0 && r.length(start.Log) <= 0 {
			return 0, false, nil // never created
		}
		return 0, true, r.short(start, max(size, 0))
	}
	if err != nil {
		return 0, false, err
	}
	opt := r.options(start, size)
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
		if pos.Offset >= r.length(pos.Log) {
			if !e.repaired() {
				return 0, r.force, e.missing(pos, r.force)
			}
			return 0, false, nil
		}
		ended = true
		err = fmt.Errorf("%w: %v has %d bytes, %d of it were durable once", errLogMissing, pos.Log, pos.Offset, r.length(pos.Log))
	case errors.As(err, &tail):
		// The next log gets its first byte after this one has been synced.
		if ended, uerr := e.laterBytes(pos.Log); uerr != nil {
			return 0, false, uerr
		} else if ended {
			return r.end(pos, size, fmt.Errorf("%w; later logs have data, so this one was complete once", err), true)
		}
	case errors.As(err, &bad):
		ended = true
	default:
		return 0, false, err
	}
	return r.end(pos, size, err, ended)
}

// end cuts the log behind its last sound record. damaged: what is behind it may have
// been acknowledged.
func (r *recovery) end(pos logfile.Position, size int64, cause error, damaged bool) (cut int64, ended bool, err error) {
	e := r.e
	if damaged && !r.force {
		return 0, false, r.damage(pos, cause)
	}
	if !e.repaired() {
		if merr := e.missing(pos, r.force); merr != nil {
			return 0, false, fmt.Errorf("%w: %w", merr, cause)
		}
	}
	lost := r.damage(pos, cause)
	if damaged {
		// Before the cut: a crash in between must not leave a sound log with a gap behind it.
		if err := r.setAside(pos.Log); err != nil {
			return 0, false, err
		}
	}
	if size > pos.Offset {
		if err := e.chain.Truncate(pos.Log, pos.Offset); err != nil {
			return 0, false, err
		}
	}
	if damaged {
		e.log.Error("forced: the log was ended in front of its damage, what is behind it is given up", "position", pos.String(), "reason", lost)
	} else {
		e.log.Warn("the log was cut behind its last sound record", "position", pos.String(), "bytes", size-pos.Offset, "reason", cause)
	}
	e.event(EventTornTail, pos, cause)
	return size - pos.Offset, damaged, nil
}

// short handles a log of which less is here than the disk has, or nothing of what
// was durable. What the disk has stays; the file gets that length again, with a hole that
// no reader accepts, so that positions in it keep their meaning.
func (r *recovery) short(start logfile.Position, size int64) error {
	cause := fmt.Errorf("%w: %v has %d bytes, the disk has its data up to %d, %d of it were durable once",
		errLogMissing, start.Log, size, start.Offset, max(start.Offset, r.length(start.Log)))
	if !r.force {
		return r.damage(start, cause)
	}
	if !r.e.repaired() {
		if err := r.e.missing(start, true); err != nil {
			return err
		}
	}
	r.e.log.Error("forced: the rest of the log is given up", "position", start.String(), "reason", cause)
	if err := r.setAside(start.Log); err != nil { // first, as in end
		return err
	}
	if err := r.e.chain.Restore(start.Log, start.Offset); err != nil {
		return err
	}
	r.e.event(EventTornTail, start, cause)
	return nil
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

// after is the log that follows name in the index, zero if it is not there or the last.
func (x *layers) after(name logfile.Name) logfile.Name {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for i, l := range x.list[1:] {
		if x.list[i].log.name == name && l.log.name != name {
			return l.log.name
		}
	}
	return logfile.Name{}
}
