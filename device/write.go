package device

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/device/nbd"
	"mars/logfile"
)

// Backend is the engine as the NBD server sees it.
func (e *Engine) Backend() nbd.Backend { return backend{e} }

// backend exists because Engine.Sync is the full sync.
type backend struct{ *Engine }

func (b backend) Sync(done func(error)) { b.Engine.Flush(done) }

func (b backend) SyncNow() (done bool, err error) { return b.Engine.FlushNow() }

// blockSize is what records of a larger write are cut to, so that a crash between
// two of them never tears a block.
const blockSize = 4096

// sectorSize is what the original writes at least.
const sectorSize = 512

// maxUnsynced is how many bytes of log may wait for a sync. Beyond it writers wait for the disk, or one sync
// would have so much to write that everything else on the same disk stands still.
const maxUnsynced = 32 << 20

// maxEntries is how many zero payloads are appended at a time.
const maxEntries = 256

type batch struct{ entries []logfile.Entry }

var batches = sync.Pool{New: func() any { return new(batch) }}

// Submit logs ops in this order. When it returns nil all are in the log by write(2),
// with DurabilityAlways also by fdatasync, and reads see them. After an error none
// is acknowledged, and each may or may not have happened.
//
// In emergency mode they go to the disk instead (StartDirect).
func (e *Engine) Submit(ops []nbd.Op) error {
	err := errCeased
	if !e.direct.on.Load() {
		if err = e.submitLogged(ops); err == nil || !e.passing(err) {
			return err
		}
	}
	return e.detour(err, func() (bool, error) { return e.submitDirect(ops) }, func() error { return e.submitLogged(ops) })
}

func (e *Engine) submitLogged(ops []nbd.Op) error {
	b := batches.Get().(*batch)
	defer func() {
		clear(b.entries)
		b.entries = b.entries[:0]
		batches.Put(b)
	}()
	var bytes int64
	for i := range ops {
		op := &ops[i]
		if err := e.checkRange(op.Off, op.Len); err != nil {
			return err
		}
		bytes += op.Len
		if e.cfg.ZeroesAsWrites && (op.Off|op.Len)%sectorSize != 0 {
			return fmt.Errorf("%w: resource %s: the log is written for the original, which replays whole sectors only; got %d+%d",
				syscall.EINVAL, e.cfg.Resource, op.Off, op.Len)
		}
		switch {
		case op.Kind == nbd.OpWrite:
			if int64(len(op.Data)) != op.Len {
				return fmt.Errorf("%w: write of %d bytes carries %d", syscall.EINVAL, op.Len, len(op.Data))
			}
			b.write(op.Off, op.Data, e.cfg.MaxRecord)
		case e.cfg.ZeroesAsWrites:
			for z := range logfile.ZeroEntries(op.Off, op.Len) {
				b.entries = append(b.entries, z)
				if len(b.entries) >= maxEntries {
					if err := e.append(b); err != nil {
						return err
					}
				}
			}
		default:
			code := logfile.CodeDiscard
			if op.Kind == nbd.OpZeroes && op.NoHole {
				code = logfile.CodeZeroes
			}
			b.entries = append(b.entries, logfile.Entry{Pos: op.Off, Code: code, Data: logfile.RangePayload(op.Len)})
		}
	}
	if err := e.append(b); err != nil {
		return err
	}
	e.n.writeOps.Add(int64(len(ops)))
	e.n.writeBytes.Add(bytes)
	return nil
}

func (b *batch) write(off int64, p []byte, maxRecord int) {
	for len(p) > maxRecord {
		n := maxRecord
		if maxRecord >= blockSize {
			n -= int((off + int64(n)) % blockSize)
		}
		b.entries = append(b.entries, logfile.Entry{Pos: off, Code: logfile.CodeWrite, Data: p[:n]})
		off, p = off+int64(n), p[n:]
	}
	if len(p) > 0 {
		b.entries = append(b.entries, logfile.Entry{Pos: off, Code: logfile.CodeWrite, Data: p})
	}
}

// minBlock is the smallest request that is taken.
func (e *Engine) minBlock() uint32 {
	if e.cfg.ZeroesAsWrites {
		return sectorSize
	}
	return 1
}

// append logs the entries and empties the batch.
func (e *Engine) append(b *batch) error {
	n := len(b.entries)
	if n == 0 {
		return nil
	}
	if e.cfg.MaxRecord <= blockSize {
		n *= 2 // a record of a page or less ends at 64 KiB borders of the device, too
	}
	if f := e.failed.Load(); f != nil {
		return f.err // without waiting for room that may never come
	}
	if err := e.awaitRoom(n); err != nil {
		return err
	}
	defer e.idx.release(n)
	e.logMu.RLock()
	defer e.logMu.RUnlock()
	w := e.writer
	if w == nil {
		return e.refuse
	}
	if f := e.failed.Load(); f != nil {
		return f.err
	}
	if _, err := w.Append(b.entries); err != nil {
		return e.failLog(w, err)
	}
	if e.cfg.Durability == DurabilityAlways || w.End()-w.Durable() > maxUnsynced {
		e.sync.awaited.Add(1)
		defer e.sync.served()
		if err := e.syncWriter(w); err != nil {
			return err
		}
	} else {
		e.sync.arm()
	}
	b.entries = b.entries[:0]
	return nil
}

// awaitRoom reserves room for n extents in the index.
func (e *Engine) awaitRoom(n int) error {
	crowded := e.idx.charge(n) > 0 && !e.cfg.knobs.skipAdmit
	if !crowded && e.idx.tryReserve(n) {
		return nil
	}
	start := time.Now()
	e.n.writerWaits.Add(1)
	defer func() { e.n.writerWaited.Add(int64(time.Since(start))) }()
	if crowded {
		if err := e.idx.admit(e.ctx, n, e.wb.hurry); err != nil {
			return err
		}
	}
	return e.idx.reserve(e.ctx, n, e.wb.hurry)
}

// onAppend is what the own log calls, in log order, when records are in the file
// and before anybody is told.
func (e *Engine) onAppend(ref *logRef) func([]logfile.Placed) {
	return func(placed []logfile.Placed) {
		wake := false
		x := ref.into
		x.mu.Lock()
		from := x.top().end
		for i := range placed {
			wake = x.add(placedExtent(&placed[i]), placed[i].End) || wake
		}
		to := x.top().end
		x.mu.Unlock()
		x.touch()
		e.n.logBytes.Add(to - from)
		if wake {
			e.wb.wake()
		}
	}
}

func placedExtent(p *logfile.Placed) extent {
	x := extent{off: p.Pos, len: p.Len, pos: p.DataOffset}
	switch {
	case p.Code == logfile.CodeZeroes:
		x.kind = kindZero
	case p.Code == logfile.CodeDiscard, p.DataOffset < 0: // packed zeros
		x.kind = kindDiscard
	}
	return x
}

// failLog records that the log of w is broken. From now on nothing is acknowledged.
func (e *Engine) failLog(w *logfile.Writer, cause error) error {
	f := &logFailure{err: fmt.Errorf("%w: resource %s: log %s failed after %d, durable up to %d: %v; writes are refused until a new log is started",
		syscall.EIO, e.cfg.Resource, w.Name(), w.End(), w.Durable(), cause)}
	if noSpace(cause) {
		f.err = fullError{f.err}
	}
	if !e.failed.CompareAndSwap(nil, f) {
		return e.failed.Load().err
	}
	e.log.Error("the log failed, writes get an error until a new log is started; check space and health of the log file system",
		"log", w.Name().String(), "end", w.End(), "durable", w.Durable(), "error", cause)
	e.mu.Lock()
	if e.mode == Logging {
		e.mode = Error
	}
	e.mu.Unlock()
	e.notify()
	e.event(EventLogError, logfile.Position{Log: w.Name(), Offset: w.End()}, f.err)
	return f.err
}

// syncer makes the log durable: at once for FLUSH and FUA, and SyncInterval after a
// write, because peers get durable bytes only.
type syncer struct {
	mu      sync.Mutex
	waiting []func(error)
	spare   []func(error)
	armed   bool
	closed  error
	kick    chan struct{}

	awaited atomic.Int32 // syncs under way that clients wait for
	free    signal       // one has ended
}

func (s *syncer) served() {
	s.awaited.Add(-1)
	s.free.fire()
}

// letPass waits until a sync that clients wait for has ended, at most as long as limit.
func (s *syncer) letPass(ctx context.Context, limit time.Duration) {
	if s.awaited.Load() == 0 {
		return
	}
	free := s.free.wait()
	if s.awaited.Load() == 0 { // ended before we listened
		return
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-free:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *syncer) arm() {
	s.mu.Lock()
	first := !s.armed
	s.armed = true
	s.mu.Unlock()
	if first {
		s.poke()
	}
}

func (s *syncer) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// take returns the waiters. Disarming comes before the sync, so that what is
// appended during it arms again.
func (s *syncer) take(disarm bool) (waiting []func(error), armed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting, s.waiting, s.spare = s.waiting, s.spare[:0], nil
	armed = s.armed
	if disarm {
		s.armed = false
	}
	return waiting, armed
}

func (s *syncer) recycle(waiting []func(error)) {
	clear(waiting)
	s.mu.Lock()
	s.spare = waiting
	s.mu.Unlock()
}

// finish answers those that nobody will serve.
func (s *syncer) finish(err error) {
	s.mu.Lock()
	s.closed = err
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, done := range waiting {
		done(err)
	}
}

// FlushNow is Flush for a caller that waits: nbd.Backend.SyncNow. Callers at the same time share
// one fdatasync. It does nothing and returns false while more than the own log has to be waited for.
func (e *Engine) FlushNow() (done bool, err error) {
	if e.confirm.on.Load() {
		return false, nil
	}
	e.n.flushOps.Add(1)
	if e.cfg.Durability != DurabilityNone {
		return true, e.syncAll(true)
	}
	if f := e.failed.Load(); f != nil {
		return true, f.err
	}
	return true, nil
}

// Flush calls done once everything is durable whose Submit has returned, on
// whichever connection: nbd.Backend.Sync. It does not block.
func (e *Engine) Flush(done func(error)) {
	e.n.flushOps.Add(1)
	if e.cfg.Durability == DurabilityNone && !e.confirm.on.Load() {
		var err error
		if f := e.failed.Load(); f != nil {
			err = f.err
		}
		done(err)
		return
	}
	s := &e.sync
	s.mu.Lock()
	if err := s.closed; err != nil {
		s.mu.Unlock()
		done(err)
		return
	}
	s.waiting = append(s.waiting, done)
	s.mu.Unlock()
	s.poke()
}

// Where a sync takes long, the background ones get rarer: they take at most one part in
// syncShare of the disk, until they are maxSyncInterval apart.
const (
	syncShare       = 5
	maxSyncInterval = time.Second
)

func (e *Engine) syncLoop() {
	s := &e.sync
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	due := false
	interval := e.cfg.SyncInterval
	for {
		waiting, armed := s.take(due)
		if len(waiting) > 0 || (due && armed) {
			due = false
			start := time.Now()
			err := e.syncAll(len(waiting) > 0)
			interval = min(max(e.cfg.SyncInterval, syncShare*time.Since(start)), max(e.cfg.SyncInterval, maxSyncInterval))
			e.confirmed(waiting, err)
			s.recycle(waiting)
			continue
		}
		s.recycle(waiting)
		due = false
		if armed {
			timer.Reset(interval)
		} else {
			timer.Stop()
		}
		for waitMore := true; waitMore; {
			select {
			case <-e.ctx.Done():
				return
			case <-timer.C:
				due, waitMore = true, false
			case <-s.kick:
				// A write that armed a running timer changes nothing.
				s.mu.Lock()
				waitMore = len(s.waiting) == 0 && armed
				s.mu.Unlock()
			}
		}
	}
}

// syncAll makes durable what has been written so far, in whichever way; awaited says that a client
// waits for it.
func (e *Engine) syncAll(awaited bool) error {
	if awaited {
		if owed := e.direct.owed.Swap(nil); owed != nil {
			return *owed
		}
	}
	if !e.direct.on.Load() {
		err := e.syncLog(awaited)
		if err == nil || !awaited || !e.passing(err) {
			return err
		}
	}
	return e.detour(errCeased, func() (bool, error) { return e.syncDirect(awaited) },
		func() error { return e.syncLog(awaited) })
}

// syncLog makes durable what has been appended so far; awaited says that a client waits for it.
func (e *Engine) syncLog(awaited bool) error {
	if awaited {
		e.sync.awaited.Add(1)
		defer e.sync.served()
	}
	e.logMu.RLock()
	defer e.logMu.RUnlock()
	if f := e.failed.Load(); f != nil {
		return f.err
	}
	w := e.writer
	if w == nil || w.Durable() >= w.End() {
		return nil // what was acknowledged earlier has been synced by whoever took the writer away
	}
	return e.syncWriter(w)
}

// syncWriter syncs the log of w and tells who publishes how much of it is durable. logMu is held for reading.
func (e *Engine) syncWriter(w *logfile.Writer) error {
	e.n.logSyncs.Add(1)
	if _, err := w.Sync(); err != nil {
		return e.failLog(w, err)
	}
	e.notify()
	return nil
}
