package device

import (
	"errors"
	"fmt"
	"io"

	"mars/logfile"
)

// restartLog follows a failed log by a new one. What has been acknowledged is in the
// page cache of the old log, but if its sync failed no later one can be trusted. So
// the records behind the durable end are logged again in the new log, the old one is
// cut there, and the index is made anew from both.
func (e *Engine) restartLog(op string, name logfile.Name) error {
	e.closeLog(e.failed.Load().err)
	e.wb.cycle.Lock() // nobody reads frozen layers
	defer e.wb.cycle.Unlock()
	old := logfile.Position{Log: e.ref.name}
	good := e.idx.end().Offset
	var err error
	if old.Offset, err = e.chain.Durable(old.Log); err != nil && old.Offset == 0 && good > 0 {
		e.log.Warn("nothing of the failed log is durable", "log", old.Log.String(), "error", err)
	}
	ref, err := e.createLog(name)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if old.Offset >= good { // only a write failed; take its remains away
		err = e.chain.Truncate(old.Log, good)
	} else {
		err = e.relog(ref, old, good)
	}
	if err != nil {
		ref.writer.Load().Close()
		ref.writer.Store(nil)
		return errors.Join(fmt.Errorf("%s: %w", op, err), e.chain.Truncate(name, 0))
	}
	e.chain.Seal(old.Log)
	e.install(ref)
	if err := e.syncLog(false); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// relog appends the records of the old log from old to good to the new one, cuts the
// old one there and replaces the index.
func (e *Engine) relog(ref *logRef, old logfile.Position, good int64) error {
	e.log.Warn("records that were acknowledged but never became durable are logged again",
		"from", old.String(), "to", good, "log", ref.name.String())
	applied, _ := e.position()
	fresh := newLayers(applied, &e.cfg)
	if err := e.rebuild(fresh, old); err != nil {
		return err
	}
	fresh.freeze(ref, 0)
	ref.into = fresh
	w := ref.writer.Load()
	err := e.scan(old.Log, old.Offset, good, func(rec *logfile.Record) error {
		_, err := w.Append([]logfile.Entry{{Pos: rec.Pos, Code: rec.Code, Data: rec.Data}})
		return err
	})
	if err != nil {
		return err
	}
	ref.into = e.idx
	return e.idx.swap(fresh.list, func() error { return e.chain.Truncate(old.Log, old.Offset) })
}

// rebuild fills x with the records from its start to end.
func (e *Engine) rebuild(x *layers, end logfile.Position) error {
	for {
		cur := x.end()
		to := end.Offset
		if cur.Log != end.Log {
			n, err := e.chain.Size(cur.Log)
			if err != nil {
				return err
			}
			to = n
		}
		err := e.scan(cur.Log, cur.Offset, to, func(rec *logfile.Record) error {
			ext, err := e.recordExtent(rec, cur.Log)
			if err == nil {
				x.add(ext, rec.End())
			}
			return err
		})
		if err != nil || cur.Log == end.Log {
			return err
		}
		next, err := e.successor(cur.Log)
		if err != nil || next.IsZero() {
			return errors.Join(err, fmt.Errorf("nothing follows %v", cur.Log))
		}
		x.freeze(&logRef{name: next}, 0)
	}
}

// scan calls f for the records [from, to) of a log.
func (e *Engine) scan(log logfile.Name, from, to int64, f func(*logfile.Record) error) error {
	if from >= to {
		return nil
	}
	r, err := e.chain.NewReader(log, logfile.ReaderOptions{Mode: e.cfg.ReaderMode, Start: from, End: to, MaxPos: e.Size()})
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		rec, err := r.Next(e.ctx)
		if err == nil {
			err = f(rec)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
