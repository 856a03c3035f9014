package device

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"mars/logfile"
)

// warmBytes is how far behind its end a log that is being written is taken to be
// in the page cache.
const warmBytes = 256 << 20

// ReadAt fills p with the newest content of the device.
func (e *Engine) ReadAt(p []byte, off int64) error {
	if err := e.checkRange(off, int64(len(p))); err != nil {
		return err
	}
	if err := e.read(p, off); err != nil {
		e.readFailed(err)
		return fmt.Errorf("%w: resource %s: %v", syscall.EIO, e.cfg.Resource, err)
	}
	if e.readErr.Load() != nil && e.readErr.Swap(nil) != nil {
		e.log.Warn("reads work again", "disk", e.disk.Path())
		e.notify()
	}
	e.n.readOps.Add(1)
	e.n.readBytes.Add(int64(len(p)))
	return nil
}

// readFailure is an error that a client got, until a read works again or it is old.
type readFailure struct {
	err error
	at  time.Time
}

// readErrorAge is how long a failed read counts as the state of the disk when nobody
// tries another one.
const readErrorAge = time.Minute

// readFailed makes an error visible that otherwise only a client has seen.
func (e *Engine) readFailed(err error) {
	if e.readErr.Swap(&readFailure{err, time.Now()}) != nil {
		return
	}
	e.log.Error("a client's read failed", "disk", e.disk.Path(), "error", err)
	e.event(EventDiskError, e.idx.end(), err)
	e.notify()
}

// lastReadError is nil if reads work, as far as anybody tried lately.
func (e *Engine) lastReadError() error {
	if f := e.readErr.Load(); f != nil && time.Since(f.at) < readErrorAge {
		return f.err
	}
	return nil
}

// TryReadAt is ReadAt if that is possible without waiting for a disk.
func (e *Engine) TryReadAt(p []byte, off int64) (done bool, err error) {
	if err := e.checkRange(off, int64(len(p))); err != nil {
		return false, err
	}
	var arr [8]piece
	for _, pc := range e.idx.lookup(arr[:0], off, off+int64(len(p))) {
		b := p[pc.off-off : pc.end()-off]
		switch {
		case pc.log == nil:
			if !e.disk.TryReadAt(b, pc.off) {
				return false, nil
			}
		case !pc.data():
			clear(b)
		default:
			w := pc.log.writer.Load()
			if w == nil || pc.kind != kindLog || w.End()-pc.pos > warmBytes {
				return false, nil
			}
			if err := e.readPiece(b, &pc); err != nil {
				return false, nil // ReadAt finds out
			}
		}
	}
	e.n.readOps.Add(1)
	e.n.readBytes.Add(int64(len(p)))
	return true, nil
}

func (e *Engine) checkRange(off, length int64) error {
	if off < 0 || length < 0 || off+length > e.Size() || off+length < off {
		return fmt.Errorf("%w: resource %s: range %d+%d is beyond the device end at %d", syscall.EINVAL, e.cfg.Resource, off, length, e.Size())
	}
	return nil
}

// read fills p from the index and, where that has nothing, from the disk. A gap
// stays right whatever happens next: the disk only gets newer. A piece may move from
// the log to the disk and its logfile may be removed meanwhile; then the read starts over.
func (e *Engine) read(p []byte, off int64) error {
	var arr [8]piece
	for {
		moved := false
		for _, pc := range e.idx.lookup(arr[:0], off, off+int64(len(p))) {
			err := e.readPiece(p[pc.off-off:pc.end()-off], &pc)
			if err == nil {
				continue
			}
			if pc.log == nil || e.holds(&pc) {
				return err
			}
			moved = true
			break
		}
		if !moved {
			return nil
		}
	}
}

// holds reports whether the index still has the piece where it was.
func (e *Engine) holds(pc *piece) bool {
	var arr [8]piece
	now := e.idx.lookup(arr[:0], pc.off, pc.end())
	return len(now) == 1 && now[0] == *pc
}

func (e *Engine) readPiece(p []byte, pc *piece) error {
	if pc.log == nil {
		_, err := e.disk.ReadAt(p, pc.off)
		return err
	}
	return e.readLogged(p, pc.log.name, &pc.extent)
}

// readLogged fills p with the content of an extent of log.
func (e *Engine) readLogged(p []byte, log logfile.Name, x *extent) error {
	switch x.kind {
	case kindLog:
		if n, err := e.chain.ReadAt(log, p, x.pos); n < len(p) {
			return fmt.Errorf("read %s at %d, length %d: got %d bytes: %w", log, x.pos, len(p), n, err)
		}
	case kindPacked:
		r, err := e.chain.NewReader(log, logfile.ReaderOptions{Mode: e.cfg.ReaderMode, Start: x.pos, End: -1})
		if err != nil {
			return fmt.Errorf("read %s at %d: %w", log, x.pos, err)
		}
		defer r.Close()
		rec, err := r.Next(e.ctx)
		if err != nil {
			return err
		}
		if copy(p, rec.Data[min(int(x.skip), len(rec.Data)):]) < len(p) {
			return fmt.Errorf("read %s at %d: the compressed record has changed", log, x.pos)
		}
	default:
		clear(p)
	}
	return nil
}

// ReadStable fills p with the device as it is now and makes the log durable up to
// the end it returns, which was observed after the read: what a peer is given must
// not be lost by its author (promise P5). In emergency mode there is no such position: ErrDirect.
func (e *Engine) ReadStable(ctx context.Context, p []byte, off int64) (end logfile.Position, err error) {
	epoch := e.direct.epoch.Load()
	if err := e.ReadAt(p, off); err != nil {
		return end, err
	}
	if err := ctx.Err(); err != nil {
		return end, context.Cause(ctx)
	}
	e.logMu.RLock()
	defer e.logMu.RUnlock()
	if f := e.failed.Load(); f != nil {
		return end, f.err
	}
	if epoch%2 == 1 || e.direct.epoch.Load() != epoch {
		return end, fmt.Errorf("read resource %s: %w", e.cfg.Resource, ErrDirect)
	}
	end = e.idx.end()
	if w := e.writer; w != nil && w.Durable() < end.Offset {
		if _, err := w.Sync(); err != nil {
			return end, e.failLog(w, err)
		}
	}
	return end, nil
}
