package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

// engineSource is a primary as a sync target sees it.
type engineSource struct {
	e        *Engine
	read     atomic.Int64 // bytes
	digested atomic.Int64
	hook     func(off int64) // runs after each read, before the answer
}

func (s *engineSource) Digests(ctx context.Context, off, length, chunk int64) ([][32]byte, logfile.Position, error) {
	var sums [][32]byte
	var end logfile.Position
	for at := off; at < off+length; at += chunk {
		p := make([]byte, min(chunk, off+length-at))
		var err error
		if end, err = s.e.ReadStable(ctx, p, at); err != nil {
			return nil, end, err
		}
		sum := [32]byte{}
		if !allZero(p) {
			sum = sha256.Sum256(p)
		}
		sums = append(sums, sum)
		s.digested.Add(int64(len(p)))
	}
	if s.hook != nil {
		s.hook(off)
	}
	return sums, end, nil
}

func (s *engineSource) Read(ctx context.Context, off int64, p []byte) (logfile.Position, error) {
	end, err := s.e.ReadStable(ctx, p, off)
	s.read.Add(int64(len(p)))
	if s.hook != nil {
		s.hook(off)
	}
	return end, err
}

// TestSyncCopiesWhatDiffers: an idle source; the traffic follows the difference.
func TestSyncCopiesWhatDiffers(t *testing.T) {
	const size = 5<<20 + 12<<10 // with a short last chunk
	r := rand.New(rand.NewPCG(1, 1))
	base := make([]byte, size)
	fill(r, base)
	clear(base[2<<20 : 3<<20])
	src := newWorld(t, 1, size, base, nil)
	src.primary()
	for _, c := range []struct {
		name  string
		local func() []byte
		read  [2]int64
	}{
		{"identical", func() []byte { return bytes.Clone(base) }, [2]int64{0, 0}},
		{"one byte", func() []byte {
			p := bytes.Clone(base)
			p[4<<20+100] ^= 1
			return p
		}, [2]int64{1, 64 << 10}},
		{"last byte", func() []byte {
			p := bytes.Clone(base)
			p[size-1] ^= 1
			return p
		}, [2]int64{1, 64 << 10}},
		{"garbage where zeros belong", func() []byte {
			p := bytes.Clone(base)
			fill(r, p[2<<20:3<<20])
			return p
		}, [2]int64{0, 0}},
		{"empty", func() []byte { return make([]byte, size) }, [2]int64{4 << 20, size}},
		{"all different", func() []byte { return bytes.Repeat([]byte{3}, size) }, [2]int64{4 << 20, size}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1, size, c.local(), func(c *EngineConfig) { c.Host = "b" })
			s := &engineSource{e: src.e}
			var done, same, different int64
			end, err := w.e.Sync(context.Background(), s, 0, size, func(d, sm, df int64) { done, same, different = d, sm, df })
			must(t, err)
			if done != size || same+different != size {
				t.Errorf("done %d, same %d, different %d of %d", done, same, different, size)
			}
			if n := s.read.Load(); n < c.read[0] || n > c.read[1] {
				t.Errorf("%d bytes were read, want %d to %d", n, c.read[0], c.read[1])
			}
			if end != src.e.Status().IngestEnd {
				t.Errorf("end %v, source is at %v", end, src.e.Status().IngestEnd)
			}
			// Progress promises that what is behind it survives a power cut.
			disk, err := w.fs.Crash(crashfs.LoseAll, r).ReadFile(diskPath)
			must(t, err)
			must(t, diff(disk, base))
		})
	}
}

// syncRace syncs a target with wrong content while the source is written, its log is
// shipped and replayed and written back. Afterwards the target must be equal.
func syncRace(t testing.TB, seed uint64, tune func(*EngineConfig)) error {
	const size = 1 << 20
	r := rand.New(rand.NewPCG(seed, 23))
	base := make([]byte, size)
	fill(r, base)
	src := newWorld(t, seed, size, base, nil)
	src.primary()
	w := newWorld(t, seed, size, bytes.Repeat([]byte{5}, size), func(c *EngineConfig) {
		c.Host = "b"
		if tune != nil {
			tune(c)
		}
	})
	must(t, w.e.SetReplay(context.Background(), true))

	log := src.e.Status().Current
	var fetched int64
	var mu sync.Mutex
	fetch := func() { // the subscription, up to the durable end
		mu.Lock()
		defer mu.Unlock()
		durable, err := src.chain.Durable(log)
		must(t, err)
		if p := make([]byte, durable-fetched); len(p) > 0 {
			_, err := src.chain.ReadAt(log, p, fetched)
			must(t, err)
			w.feed(log, fetched, p)
			fetched = durable
		}
	}
	put := func(op nbd.Op) {
		must(t, src.e.Submit([]nbd.Op{op}))
		must(t, src.flush())
		fetch()
	}
	for range 10 {
		put(randomOp(r, size, 32<<10, 512))
	}
	s := &engineSource{e: src.e}
	// The source answers; before the answer arrives newer data overtakes it by way of
	// the log, and may be on the target's disk already.
	var hooks atomic.Int32
	var hmu sync.Mutex
	s.hook = func(off int64) {
		hmu.Lock()
		defer hmu.Unlock()
		if hooks.Add(1) > 60 {
			return
		}
		for range 3 {
			op := write(max(0, min(off+512*r.Int64N(256), size-512)), byte(r.IntN(256)), 512)
			put(op)
		}
		end := src.e.Status().IngestEnd
		if r.IntN(2) == 0 {
			held := 0
			testutil.WaitFor(t, 20*time.Second, "overtaking write on the disk", func() bool {
				// The copy may have lost its patience: then replay stands still for it.
				if !w.e.replay.busy.TryLock() {
					held++
					return held > 10
				}
				w.e.replay.busy.Unlock()
				applied, _ := w.e.position()
				return applied == end || w.e.idx.end() == end && r.IntN(3) == 0
			})
		}
	}
	end, err := w.e.Sync(context.Background(), s, 0, size, func(_, _, _ int64) {})
	if err != nil {
		return err
	}
	must(t, src.flush())
	fetch()
	w.until("replay beyond the end of the sync", func(s Status) bool {
		return s.IngestEnd.Offset >= end.Offset && s.IngestEnd == src.e.Status().IngestEnd
	})
	w.pause()
	return diff(w.diskContent(), src.content())
}

func TestSyncWhileReplaying(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(4) {
		if err := syncRace(t, seed+round, nil); err != nil {
			t.Fatalf("seed %d: target differs from the source: %v", seed+round, err)
		}
	}
}

// Without the guard the overtaking writes are lost, and the test notices.
func TestSyncWhileReplayingMutant(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(20) {
		if err := syncRace(t, seed+round, func(c *EngineConfig) { c.knobs.skipGuard = true }); err != nil {
			t.Logf("noticed in round %d: %v", round, err)
			return
		}
	}
	t.Fatal("nobody noticed")
}

// TestSyncEnds: a chunk that replay touches at each attempt is copied nevertheless.
func TestSyncEnds(t *testing.T) {
	const size = 64 << 10
	src := newWorld(t, 3, size, nil, nil)
	src.primary()
	w := newWorld(t, 3, size, bytes.Repeat([]byte{5}, size), func(c *EngineConfig) { c.Host = "b" })
	must(t, w.e.SetReplay(context.Background(), true))
	log := src.e.Status().Current
	var fetched int64
	s := &engineSource{e: src.e}
	var n atomic.Int32
	s.hook = func(off int64) {
		must(t, src.e.Submit([]nbd.Op{write(0, byte(n.Add(1)), 512)}))
		must(t, src.flush())
		durable, err := src.chain.Durable(log)
		must(t, err)
		p := make([]byte, durable-fetched)
		_, err = src.chain.ReadAt(log, p, fetched)
		must(t, err)
		w.feed(log, fetched, p)
		fetched = durable
		// Wait for replay, unless it is being held.
		testutil.WaitFor(t, 20*time.Second, "replay touches the chunk or is held", func() bool {
			if w.e.replay.busy.TryLock() {
				defer w.e.replay.busy.Unlock()
				return w.e.idx.end().Offset == durable
			}
			return int(n.Load()) > syncPatient
		})
	}
	_, err := w.e.Sync(context.Background(), s, 0, size, func(_, _, _ int64) {})
	must(t, err)
	if c := w.e.Status().Counters.SyncRepeated; c == 0 {
		t.Error("the test did not spoil any copy")
	}
	w.until("replayed", func(s Status) bool { return s.IngestEnd.Offset == fetched })
	w.pause()
	must(t, diff(w.diskContent(), src.content()))
}

// A flush of the disk that fails makes the step be written again, although reading
// back would find everything in place.
func TestSyncFlushError(t *testing.T) {
	const size = 256 << 10
	r := rand.New(rand.NewPCG(4, 4))
	base := make([]byte, size)
	fill(r, base)
	src := newWorld(t, 4, size, base, nil)
	src.primary()
	w := newWorld(t, 4, size, nil, func(c *EngineConfig) { c.Host = "b" })
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: diskPath, Count: 2, Err: syscall.EIO})
	var calls int
	_, err := w.e.Sync(context.Background(), &engineSource{e: src.e}, 0, size, func(_, _, _ int64) { calls++ })
	must(t, err)
	if calls != 1 {
		t.Errorf("%d progress calls", calls)
	}
	disk, err := w.fs.Crash(crashfs.LoseAll, r).ReadFile(diskPath)
	must(t, err)
	must(t, diff(disk, base))
	// A disk that stays broken ends the sync with an error.
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: diskPath, Err: syscall.EIO})
	_, err = w.e.Sync(context.Background(), &engineSource{e: src.e}, 0, size, func(_, _, _ int64) { t.Error("progress over a broken disk") })
	wantErr(t, err, syscall.EIO, "flush disk")
}

type brokenSource struct {
	engineSource
	sums int
	err  error
}

func (s *brokenSource) Digests(ctx context.Context, off, length, chunk int64) ([][32]byte, logfile.Position, error) {
	return make([][32]byte, s.sums), logfile.Position{}, s.err
}

func TestSyncRefusals(t *testing.T) {
	const size = 128 << 10
	w := newWorld(t, 5, size, nil, nil)
	none := func(_, _, _ int64) { t.Error("progress") }
	broken := errors.New("connection lost")
	_, err := w.e.Sync(context.Background(), &brokenSource{err: broken}, 0, size, none)
	wantErr(t, err, broken, "sync resource r")
	_, err = w.e.Sync(context.Background(), &brokenSource{sums: 7}, 0, size, none)
	wantErr(t, err, nil, "7 digests for 1 chunks")
	for _, c := range [][2]int64{{-1, size}, {0, size + 1}, {size, 1}} {
		_, err = w.e.Sync(context.Background(), &brokenSource{}, c[0], c[1], none)
		wantErr(t, err, syscall.EINVAL, "range")
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(broken)
	_, err = w.e.Sync(ctx, &engineSource{e: w.e}, 0, size, none)
	wantErr(t, err, broken, "")
	// Nothing left to copy: the position is wanted all the same.
	w.primary()
	end, err := w.e.Sync(context.Background(), &engineSource{e: w.e}, size, size, none)
	must(t, err)
	if end != w.e.Status().IngestEnd {
		t.Errorf("end %v", end)
	}
}
