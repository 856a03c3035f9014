package device

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/logfile"
)

const (
	syncChunk   = 1 << 20        // compared first
	syncFine    = 64 << 10       // compared inside a chunk that differs, and copied
	syncWindow  = 16 << 20       // digests asked for at a time
	syncStep    = 4 * syncWindow // flushed and reported at a time, at most
	syncMinStep = 4 << 20        // ... and at least
	syncPatient = 3              // times that replay may spoil a copy before it has to wait
	syncFlushes = 5              // times that a step is repeated after a failed flush

	syncStepTime = time.Second // what a step should take
)

// Sync makes [from, size) of the disk equal to the source by comparing digests and
// copying what differs, while replay and writeback go on. A chunk that these touched
// while it was in flight is thrown away and compared again. The disk is flushed before
// each call of progress, whose done is where to start again after a failure.
//
// The disk becomes a prefix of the log when replay has passed end, the log end of
// the source after the last chunk was read.
func (e *Engine) Sync(ctx context.Context, src SyncSource, from, size int64, progress func(done, same, different int64)) (end logfile.Position, err error) {
	if from < 0 || from > size || size > e.Size() {
		return end, fmt.Errorf("sync resource %s: %w: range %d..%d, the device ends at %d", e.cfg.Resource, syscall.EINVAL, from, size, e.Size())
	}
	s := &syncRun{e: e, src: src}
	step := int64(syncMinStep) // the first report comes soon, also on a slow line
	for off := from; off < size; {
		n, begin := min(step, size-off), time.Now()
		if err := s.step(ctx, off, n); err != nil {
			return s.end, fmt.Errorf("sync resource %s at %d: %w", e.cfg.Resource, off, err)
		}
		off += n
		progress(off, s.same.Load(), s.different.Load())
		// Large steps flush rarely; on a slow link they would hide the progress, and
		// an interruption would cost minutes.
		switch took := time.Since(begin); {
		case took < syncStepTime/2:
			step = min(2*step, syncStep)
		case took > 2*syncStepTime:
			step = max(step/2, syncMinStep)
		}
	}
	if from == size { // nothing to copy, but the position is wanted
		var p [512]byte
		n := min(int64(len(p)), size)
		if err := s.read(ctx, 0, p[:n]); err != nil {
			return s.end, err
		}
	}
	return s.end, nil
}

type syncRun struct {
	e               *Engine
	src             SyncSource
	same, different atomic.Int64
	dense           atomic.Bool // most of the last chunk differed: comparing first is a waste

	mu  sync.Mutex
	end logfile.Position
}

// saw notes the log end that came with source data.
func (s *syncRun) saw(end logfile.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end.Log.Seq > s.end.Log.Seq || (end.Log == s.end.Log && end.Offset > s.end.Offset) {
		s.end = end
	}
}

func (s *syncRun) read(ctx context.Context, off int64, p []byte) error {
	end, err := s.src.Read(ctx, off, p)
	if err == nil {
		s.saw(end)
	}
	return err
}

// digests asks the source and checks that it answered the question.
func (s *syncRun) digests(ctx context.Context, off, length, chunk int64) ([][32]byte, error) {
	sums, end, err := s.src.Digests(ctx, off, length, chunk)
	if err != nil {
		return nil, err
	}
	if want := (length + chunk - 1) / chunk; int64(len(sums)) != want {
		return nil, fmt.Errorf("source sent %d digests for %d chunks", len(sums), want)
	}
	s.saw(end)
	return sums, nil
}

// step copies a range and flushes the disk.
func (s *syncRun) step(ctx context.Context, off, length int64) error {
	epoch := s.e.disk.Epoch()
	err := s.windows(ctx, off, length)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		if err = s.e.disk.FlushSince(epoch); err == nil || try == syncFlushes {
			return err
		}
		// What was written may be lost although the page cache still shows it, so a
		// comparison would find nothing to do.
		s.e.wait(ctx, s.e.cfg.RetryMin<<try)
		epoch = s.e.disk.Epoch()
		if err := s.rewrite(ctx, off, length); err != nil {
			return err
		}
	}
}

func (s *syncRun) windows(ctx context.Context, off, length int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for at := off; at < off+length; at += syncWindow {
		wg.Go(func() {
			if err := s.window(ctx, at, min(syncWindow, off+length-at)); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// window compares the chunks of a window and copies those that differ.
func (s *syncRun) window(ctx context.Context, off, length int64) error {
	buf := runBuffers.Get().(*[maxRun]byte)
	defer runBuffers.Put(buf)
	flights, sums, err := s.compare(ctx, off, length, syncChunk)
	defer endAll(flights)
	if err != nil {
		return err
	}
	for i, f := range flights {
		equal, err := s.equal(f, sums[i], buf[:])
		if err != nil {
			return err
		}
		if stale := f.end(); equal && !stale {
			s.count(f.len, true)
		} else if err := s.chunk(ctx, f.span, buf[:]); err != nil {
			return err
		}
	}
	return nil
}

// compare registers the chunks of a range and then asks for their digests.
func (s *syncRun) compare(ctx context.Context, off, length, chunk int64) ([]*flight, [][32]byte, error) {
	var flights []*flight
	for at := off; at < off+length; at += chunk {
		flights = append(flights, s.e.guard.begin(at, min(chunk, off+length-at)))
	}
	sums, err := s.digests(ctx, off, length, chunk)
	return flights, sums, err
}

func endAll(flights []*flight) {
	for _, f := range flights {
		f.end()
	}
}

// equal compares the device here with a digest; p is scratch memory and holds the
// local content afterwards.
func (s *syncRun) equal(f *flight, sum [32]byte, p []byte) (bool, error) {
	p = p[:f.len]
	if err := s.e.read(p, f.off); err != nil {
		return false, err
	}
	return ChunkSum(p) == sum, nil
}

// ChunkSum is the digest of a chunk as SyncSource.Digests gives it: SHA-256, and
// the all-zero sum for a chunk of zeros. Both ends of a full sync use it.
func ChunkSum(p []byte) (sum [32]byte) {
	if allZero(p) {
		return sum
	}
	return sha256.Sum256(p)
}

func (s *syncRun) count(n int64, same bool) {
	if same {
		s.same.Add(n)
		s.e.n.syncSame.Add(n)
	} else {
		s.different.Add(n)
		s.e.n.syncDifferent.Add(n)
	}
}

// chunk handles a chunk that differs.
func (s *syncRun) chunk(ctx context.Context, c span, buf []byte) error {
	if s.dense.Load() {
		different, err := s.copy(ctx, c, buf)
		s.dense.Store(different > c.len/2)
		return err
	}
	flights, sums, err := s.compare(ctx, c.off, c.len, syncFine)
	defer endAll(flights)
	if err != nil {
		return err
	}
	var todo []span // neighbours joined
	var different int64
	for i, f := range flights {
		equal, err := s.equal(f, sums[i], buf)
		if err != nil {
			return err
		}
		if equal && !f.end() {
			s.count(f.len, true)
			continue
		}
		if !equal && sums[i] == [32]byte{} && f.write() {
			err := s.e.disk.Discard(f.off, f.len)
			f.end()
			if err != nil {
				return err
			}
			s.count(f.len, false)
			continue
		}
		f.end()
		different += f.len
		if n := len(todo); n > 0 && todo[n-1].off+todo[n-1].len == f.off {
			todo[n-1].len += f.len
		} else {
			todo = append(todo, f.span)
		}
	}
	s.dense.Store(different > c.len/2)
	for _, t := range todo {
		if _, err := s.copy(ctx, t, buf); err != nil {
			return err
		}
	}
	return nil
}

// copy reads a range of at most maxRun bytes from the source and writes the parts
// that differ. Parts that were touched meanwhile are done again one by one.
func (s *syncRun) copy(ctx context.Context, c span, buf []byte) (different int64, err error) {
	var flights []*flight
	for at := c.off; at < c.off+c.len; at += syncFine {
		flights = append(flights, s.e.guard.begin(at, min(syncFine, c.off+c.len-at)))
	}
	defer endAll(flights)
	if err := s.read(ctx, c.off, buf[:c.len]); err != nil {
		return 0, err
	}
	local := make([]byte, syncFine)
	for _, f := range flights {
		ok, wrote, err := s.store(f, buf[f.off-c.off:][:f.len], local[:f.len], false)
		if err == nil && !ok {
			wrote, err = s.patiently(ctx, f.span, false)
		}
		if err != nil {
			return different, err
		}
		s.count(f.len, !wrote)
		if wrote {
			different += f.len
		}
	}
	return different, nil
}

// store writes p to the disk if it differs from the device here, or always. It ends
// the flight; ok is false if that was touched.
func (s *syncRun) store(f *flight, p, local []byte, always bool) (ok, wrote bool, err error) {
	defer f.end()
	if !always {
		if err := s.e.read(local, f.off); err != nil {
			return false, false, err
		}
		if string(local) == string(p) {
			return !f.end(), false, nil
		}
	}
	if !f.write() {
		return false, false, nil
	}
	if allZero(p) {
		err = s.e.disk.Discard(f.off, f.len)
	} else {
		_, err = s.e.disk.WriteAt(p, f.off)
	}
	return true, true, err
}

// patiently copies a part that replay keeps touching. After some attempts replay
// waits for it: a sync must end.
func (s *syncRun) patiently(ctx context.Context, c span, always bool) (wrote bool, err error) {
	p, local := make([]byte, c.len), make([]byte, c.len)
	for try := 0; ctx.Err() == nil; try++ {
		s.e.n.syncRepeated.Add(1)
		ok := false
		func() {
			if try >= syncPatient {
				s.e.replay.busy.Lock()
				defer s.e.replay.busy.Unlock()
			}
			f := s.e.guard.begin(c.off, c.len)
			defer f.end()
			if err = s.read(ctx, c.off, p); err == nil {
				ok, wrote, err = s.store(f, p, local, always)
			}
		}()
		if ok || err != nil {
			return wrote, err
		}
	}
	return false, context.Cause(ctx)
}

// rewrite writes a range without comparing.
func (s *syncRun) rewrite(ctx context.Context, off, length int64) error {
	for at := off; at < off+length; at += syncFine {
		if _, err := s.patiently(ctx, span{at, min(syncFine, off+length-at)}, true); err != nil {
			return err
		}
	}
	return nil
}
