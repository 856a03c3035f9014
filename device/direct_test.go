package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

const holeSeq = 11 // the log behind the hole, in these tests

// emergency is a world with base content and a running primary.
func emergency(t testing.TB, seed uint64, tune func(*EngineConfig)) (*world, []byte) {
	t.Helper()
	base := make([]byte, crashSize)
	fill(rand.New(rand.NewPCG(seed, 3)), base)
	w := newWorld(t, seed, crashSize, base, tune)
	w.primary()
	return w, bytes.Clone(base)
}

func (w *world) direct() {
	w.t.Helper()
	must(w.t, w.e.StartDirect(context.Background(), name(holeSeq, w.host), func() error { return nil }))
}

func (w *world) put(model []byte, off int64, b byte, n int) {
	w.t.Helper()
	op := nbd.Op{Off: off, Len: int64(n), Data: bytes.Repeat([]byte{b}, n)}
	must(w.t, w.e.Submit([]nbd.Op{op}))
	apply(model, &op)
}

// The way around the log and back: order of the steps, what is where, who may read.
func TestDirect(t *testing.T) {
	w, model := emergency(t, 1, nil)
	w.put(model, 0, 1, 8192)
	announced := false
	must(t, w.e.StartDirect(context.Background(), name(holeSeq, "a"), func() error {
		announced = true
		if pos, end := w.jour.get(); pos != (logfile.Position{Log: name(1, "a"), Offset: w.e.idx.end().Offset}) || end != pos.Offset {
			t.Errorf("announced at %v..%d: the log is not on the disk", pos, end)
		}
		must(t, diff(w.diskContent(), model))
		return nil
	}))
	if !announced {
		t.Fatal("nothing was announced")
	}
	if pos, end := w.jour.get(); pos != (logfile.Position{Log: name(holeSeq, "a")}) || end != 0 {
		t.Fatalf("position %v..%d, want the start of the log behind the hole", pos, end)
	}
	size, err := w.chain.Size(name(1, "a"))
	must(t, err)
	w.put(model, 4096, 2, 8192)
	zeroes := nbd.Op{Kind: nbd.OpTrim, Off: 512, Len: 1024}
	must(t, w.e.Submit([]nbd.Op{zeroes}))
	apply(model, &zeroes)
	must(t, w.flush())
	must(t, diff(w.content(), model))
	must(t, diff(w.diskContent(), model))
	if now, _ := w.chain.Size(name(1, "a")); now != size {
		t.Errorf("the log has grown from %d to %d", size, now)
	}
	st := w.e.Status()
	if st.Mode != Direct || st.Current != name(holeSeq, "a") || st.LogBacklog != 0 || st.Counters.DirectBytes != 8192+1024 {
		t.Errorf("status %+v", st)
	}
	p := make([]byte, 512)
	if _, err := w.e.ReadStable(context.Background(), p, 0); !errors.Is(err, ErrDirect) {
		t.Errorf("a peer may read: %v", err)
	}
	if err := w.e.Submit([]nbd.Op{{Off: crashSize, Len: 512, Data: p}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write beyond the end: %v", err)
	}
	if err := w.e.Submit([]nbd.Op{{Off: 0, Len: 512, Data: p[:5]}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write with too little data: %v", err)
	}
	must(t, w.e.StartDirect(context.Background(), name(holeSeq, "a"), nil)) // again changes nothing
	wantErr(t, w.e.StartLogging(name(holeSeq+1, "a")), ErrState, "hole")
	must(t, w.e.StartLogging(name(holeSeq, "a")))
	w.put(model, 8192, 3, 4096)
	end, err := w.e.ReadStable(context.Background(), p, 0)
	must(t, err)
	if end.Log != name(holeSeq, "a") || end.Offset == 0 {
		t.Errorf("a peer reads as of %v", end)
	}
	must(t, diff(w.content(), model))
	w.close()
	must(t, diff(w.diskContent(), model))
}

// The role can be given up, and the engine closed, in emergency mode.
func TestDirectEnds(t *testing.T) {
	for _, how := range []string{"stop", "close", "abandon"} {
		t.Run(how, func(t *testing.T) {
			w, model := emergency(t, 2, nil)
			w.put(model, 0, 1, 4096)
			w.direct()
			w.put(model, 0, 2, 4096)
			switch how {
			case "stop":
				must(t, w.e.StopLogging(context.Background()))
			case "close":
				must(t, w.e.Close())
			case "abandon":
				w.e.abandon()
			}
			if err := w.e.Submit([]nbd.Op{{Off: 0, Len: 512, Data: make([]byte, 512)}}); !errors.Is(err, syscall.ESHUTDOWN) {
				t.Errorf("write afterwards: %v", err)
			}
			if how != "abandon" {
				must(t, diff(w.diskContent(), model))
			}
			if how == "stop" {
				must(t, w.e.StartLogging(name(holeSeq, "a")))
				w.put(model, 0, 3, 512)
				must(t, diff(w.content(), model))
			}
		})
	}
}

// A log without space: writers and a FLUSH wait for the way around it, nobody gets an error.
func TestFullLogGoesDirect(t *testing.T) {
	var full atomic.Bool
	events := make(chan struct{}, 8)
	w, model := emergency(t, 3, func(c *EngineConfig) {
		c.DirectPatience = 20 * time.Second
		c.Events = func(e Event) {
			if e.Kind == EventLogError {
				full.Store(true)
				events <- struct{}{}
			}
		}
	})
	w.fs.SetCapacity(crashSize + 96<<10) // the disk is on it, too
	var wg sync.WaitGroup
	var mu sync.Mutex
	stop := make(chan struct{})
	errs := make(chan error, 8)
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				op := nbd.Op{Off: int64(i) * 16 << 10, Len: 4096, Data: bytes.Repeat([]byte{byte(i<<6 | n&63)}, 4096)}
				mu.Lock()
				copy(model[op.Off:], op.Data)
				mu.Unlock()
				if err := w.e.Submit([]nbd.Op{op}); err != nil {
					errs <- err
					return
				}
				if n%8 == 0 {
					if err := w.flush(); err != nil {
						errs <- err
						return
					}
				}
			}
		})
	}
	<-events
	if st := w.e.Status(); !st.LogFull || st.Mode != Error {
		t.Errorf("status %v full=%v", st.Mode, st.LogFull)
	}
	w.direct()
	before := w.e.Status().Counters.DirectBytes
	testutil.WaitFor(t, 10*time.Second, "writes go on", func() bool { return w.e.Status().Counters.DirectBytes > before+1<<20 })
	close(stop)
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	must(t, diff(w.content(), model))
	w.fs.SetCapacity(0)
	must(t, w.e.StartLogging(name(holeSeq, "a")))
	w.put(model, 0, 77, 4096)
	w.close()
	must(t, diff(w.diskContent(), model))
}

// A log without space that is followed by another one: writers wait and go on there. Without
// patience they get EIO at once.
func TestFullLogIsFollowed(t *testing.T) {
	for _, patience := range []time.Duration{0, 20 * time.Second} {
		t.Run(patience.String(), func(t *testing.T) {
			failed := make(chan struct{}, 1)
			w, model := emergency(t, 4, func(c *EngineConfig) {
				c.DirectPatience = patience
				c.Events = func(e Event) {
					if e.Kind == EventLogError {
						failed <- struct{}{}
					}
				}
			})
			w.put(model, 0, 1, 4096)
			w.fs.SetCapacity(1)
			done := make(chan error, 1)
			op := nbd.Op{Off: 0, Len: 16 << 10, Data: bytes.Repeat([]byte{2}, 16<<10)}
			go func() { done <- w.e.Submit([]nbd.Op{op}) }()
			<-failed
			if patience == 0 {
				if err := <-done; !errors.Is(err, syscall.EIO) {
					t.Fatalf("write: %v", err)
				}
				return
			}
			w.fs.SetCapacity(0)
			must(t, w.e.StartLogging(name(2, "a")))
			must(t, <-done)
			apply(model, &op)
			must(t, diff(w.content(), model))
		})
	}
}

// Patience ends, with an error that says why.
func TestDirectPatienceEnds(t *testing.T) {
	w, model := emergency(t, 5, func(c *EngineConfig) { c.DirectPatience = 10 * time.Millisecond })
	w.put(model, 0, 1, 4096)
	err := w.e.StartDirect(context.Background(), name(holeSeq, "a"), func() error { return errors.New("links cannot be written") })
	wantErr(t, err, nil, "links cannot be written")
	err = w.e.Submit([]nbd.Op{{Off: 0, Len: 512, Data: make([]byte, 512)}})
	wantErr(t, err, syscall.EIO, "way around")
	if w.e.direct.on.Load() {
		t.Fatal("open although nothing was announced")
	}
	// Both ways out are still there.
	w.direct()
	w.put(model, 0, 2, 512)
	must(t, diff(w.diskContent(), model))
}

func TestCeasingGoesBackToLogging(t *testing.T) {
	w, model := emergency(t, 6, nil)
	w.put(model, 0, 1, 4096)
	if err := w.e.StartDirect(context.Background(), name(holeSeq, "a"), func() error { return errors.New("no") }); err == nil {
		t.Fatal("no error")
	}
	wantErr(t, w.e.Rotate(name(2, "a")), ErrState, "ceasing")
	must(t, w.e.StartLogging(name(2, "a")))
	w.put(model, 512, 2, 4096)
	w.close()
	must(t, diff(w.diskContent(), model))
}

func TestStartDirectRefuses(t *testing.T) {
	w, _ := emergency(t, 7, nil)
	say := func() error { t.Error("announced"); return nil }
	wantErr(t, w.e.StartDirect(context.Background(), name(holeSeq, "b"), say), nil, "not a log of this node")
	w.put(make([]byte, crashSize), 0, 1, 512)
	wantErr(t, w.e.StartDirect(context.Background(), name(1, "a"), say), nil, "does not come after")
	must(t, w.e.StopLogging(context.Background()))
	wantErr(t, w.e.StartDirect(context.Background(), name(holeSeq, "a"), say), ErrState, "idle")
}

// A broken disk: the client is told, as by any disk; logging does not resume on it.
func TestDirectDiskError(t *testing.T) {
	w, model := emergency(t, 8, nil)
	w.direct()
	w.put(model, 0, 1, 512)
	repair := w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: diskPath, Err: syscall.EIO})
	if err := w.flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	if w.e.Status().DiskErr == nil {
		t.Error("status does not show the disk error")
	}
	if err := w.e.StartLogging(name(holeSeq, "a")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("logging resumed on a disk that cannot be flushed: %v", err)
	}
	if w.e.Status().Mode != Direct {
		t.Errorf("mode %v", w.e.Status().Mode)
	}
	repair()
	must(t, w.e.StartLogging(name(holeSeq, "a")))
	// What the failed attempt to log again has lost was never flushed: its writer must hear of it.
	if err := w.flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the first flush after bytes were lost: %v", err)
	}
	must(t, w.flush())
}

// A flush that fails when the role is given up does not keep it for ever: no client is there any
// more that could take the error.
func TestDirectStopsOnBrokenDisk(t *testing.T) {
	w, model := emergency(t, 8, nil)
	w.direct()
	w.put(model, 0, 1, 512)
	repair := w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: diskPath, Err: syscall.EIO})
	if err := w.e.StopLogging(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("stopped on a disk that cannot be flushed: %v", err)
	}
	if mode := w.e.Status().Mode; mode != Direct {
		t.Errorf("mode %v", mode)
	}
	repair()
	must(t, w.e.StopLogging(context.Background()))
	must(t, w.flush())
}

// directCut is a power cut somewhere around emergency mode.
type directCut struct {
	fs     *crashfs.FS
	jour   *memJournal
	policy string
	said   bool // the hole was announced
	safe   int64
	known  logfile.Position
}

// directRun writes through log, emergency mode and log again; power cuts are sampled. States of
// the device are numbered in h; writes do not overlap what another one since the last FLUSH touched,
// because a disk may keep any of them.
func directRun(t testing.TB, seed uint64, k knobs, cuts int) ([]directCut, *directHistory) {
	tune := func(c *EngineConfig) {
		c.knobs = k
		c.WritebackAge = time.Hour // the log is behind the disk when it ceases
		c.SyncInterval = time.Hour
	}
	w, model := emergency(t, seed, tune)
	r := rand.New(rand.NewPCG(seed, 21))
	if r.IntN(2) == 0 {
		w.fs.SetMetadata(crashfs.Journaled)
	}
	h := &directHistory{}
	h.add(model, false)
	var said atomic.Bool
	var mu sync.Mutex
	var snaps []directCut
	cr := rand.New(rand.NewPCG(seed, 13))
	w.fs.OnOp(func(c *crashfs.Cut) {
		mu.Lock()
		defer mu.Unlock()
		if len(snaps) >= cuts || cr.IntN(4) > 0 {
			return
		}
		p := crashfs.Policies[cr.IntN(len(crashfs.Policies))]
		s := directCut{said: said.Load(), safe: h.safe.Load(), policy: fmt.Sprintf("%v before %v %s", p, c.Op.Kind, c.Op.Path)}
		s.jour = w.jour.clone()
		if s.known = (logfile.Position{Log: name(1, "a")}); h.known.Load() != nil {
			s.known = *h.known.Load()
		}
		s.fs = c.Crash(p, cr)
		snaps = append(snaps, s)
	})
	var open int // writes since the last FLUSH
	step := func(direct bool) {
		if r.IntN(5) == 0 || open >= 8 {
			n, end := h.n(), w.e.idx.end()
			if w.flush() == nil {
				h.safe.Store(n)
				h.known.Store(&end)
				open = 0
			}
			return
		}
		op := nbd.Op{Off: int64(open) * 12 << 10, Len: 4096}
		op.Data = make([]byte, op.Len)
		fill(r, op.Data)
		apply(model, &op)
		h.add(model, direct)
		must(t, w.e.Submit([]nbd.Op{op}))
		open++
	}
	for range 12 {
		step(false)
	}
	var writer sync.WaitGroup
	writer.Go(func() { // waits while logging ceases, and goes on as soon as the way is open
		must(t, w.e.await(context.Background(), func() (bool, error) { m := w.e.getMode(); return m == Ceasing || m == Direct, nil }))
		for range 12 {
			step(true)
		}
	})
	must(t, w.e.StartDirect(context.Background(), name(holeSeq, "a"), func() error {
		if w.e.direct.on.Load() { // a mutant: let it do its harm
			testutil.WaitFor(t, 5*time.Second, "writes around the log", func() bool { return w.e.n.directBytes.Load() > 16<<10 })
		}
		said.Store(true)
		return nil
	}))
	writer.Wait()
	must(t, w.e.StartLogging(name(holeSeq, "a")))
	open = 0 // what went around the log is flushed
	for range 6 {
		step(false)
	}
	w.fs.OnOp(nil)
	w.e.abandon()
	mu.Lock()
	defer mu.Unlock()
	return snaps, h
}

// directHistory has the state of the device after each write.
type directHistory struct {
	mu     sync.Mutex
	images [][]byte
	direct []bool
	safe   atomic.Int64 // writes that a FLUSH covers
	known  atomic.Pointer[logfile.Position]
}

func (h *directHistory) add(image []byte, direct bool) {
	h.mu.Lock()
	h.images, h.direct = append(h.images, bytes.Clone(image)), append(h.direct, direct)
	h.mu.Unlock()
}

func (h *directHistory) n() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(len(h.images) - 1)
}

// check restarts after a cut. Every 4 KiB of the device must be what a state since the last FLUSH
// has there; a byte that went around the log needs the announcement of the hole; and behind the hole, with
// records in the log, everything that went around must be there.
func (h *directHistory) check(t testing.TB, s directCut) error {
	w := &world{t: t, fs: s.fs, jour: s.jour, size: crashSize, host: "a"}
	w.open()
	pos, _ := s.jour.get()
	if _, _, err := w.e.RecoverKnown(context.Background(), knownTo(s.known), false); err != nil {
		return fmt.Errorf("recovery at %v: %w", pos, err)
	}
	image := w.content()
	records := w.e.idx.end().Log.Seq >= holeSeq && w.e.idx.end().Offset > 0
	firstDirect, lastDirect := -1, 0
	for i, d := range h.direct {
		if d && firstDirect < 0 {
			firstDirect = i
		}
		if d {
			lastDirect = i
		}
	}
	low := int(s.safe)
	if records {
		low = max(low, lastDirect)
	}
	for off := 0; off < crashSize; off += 512 {
		found := -1
		for k := low; k < len(h.images) && found < 0; k++ {
			if bytes.Equal(image[off:off+512], h.images[k][off:off+512]) {
				found = k
			}
		}
		if found < 0 {
			return fmt.Errorf("block at %d is older than the FLUSH after write %d, or in no state at all", off, low)
		}
		if firstDirect >= 0 && found >= firstDirect && !s.said {
			return fmt.Errorf("block at %d went around the log although no hole was announced", off)
		}
		if firstDirect >= 0 && found >= firstDirect && pos.Log.Seq < holeSeq {
			return fmt.Errorf("block at %d went around the log, the position is still %v", off, pos)
		}
	}
	return nil
}

func TestDirectPowerCut(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(12) {
		snaps, h := directRun(t, seed+round, knobs{}, 24)
		if len(snaps) == 0 {
			t.Fatal("no cut was sampled")
		}
		for i, s := range snaps {
			if err := h.check(t, s); err != nil {
				t.Fatalf("seed %d cut %d (%s): %v", seed+round, i, s.policy, err)
			}
		}
	}
}

func TestDirectPowerCutMutants(t *testing.T) {
	seed := testutil.Seed(t)
	for name, k := range map[string]knobs{
		"around the log before it is on the disk":    {directUndrained: true},
		"around the log before the hole is said":     {directUnsaid: true},
		"logging resumes before the disk is flushed": {skipDirectFlush: true},
	} {
		t.Run(name, func(t *testing.T) {
			for round := range uint64(60) {
				snaps, h := directRun(t, seed+round, k, 24)
				for _, s := range snaps {
					if err := h.check(t, s); err != nil {
						t.Logf("noticed in round %d: %v", round, err)
						return
					}
				}
			}
			t.Fatal("nobody noticed")
		})
	}
}
