package oracle

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mars/internal/testutil"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watcher is a client that records what is in flight, and fails on overlaps.
type watcher struct {
	mu      sync.Mutex
	t       *testing.T
	flying  []span
	most    int
	kinds   map[Kind]int
	lengths []int64
	offs    []int64
	hold    chan struct{} // requests wait for it
	fail    func(kind Kind) error
}

func (w *watcher) do(kind Kind, off, length int64) error {
	w.mu.Lock()
	w.kinds[kind]++
	if kind != KindFlush {
		for _, s := range w.flying {
			if off < s.off+s.len && s.off < off+length {
				w.t.Errorf("[%d+%d] is sent while [%d+%d] is in flight", off, length, s.off, s.len)
			}
		}
		w.flying = append(w.flying, span{off, length})
		w.lengths, w.offs = append(w.lengths, length), append(w.offs, off)
	}
	w.most = max(w.most, len(w.flying))
	hold, fail := w.hold, w.fail
	w.mu.Unlock()
	if hold != nil {
		<-hold
	}
	for range 20 { // let others in
		runtime.Gosched()
	}
	var err error
	if fail != nil {
		err = fail(kind)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.flying, span{off, length}); i >= 0 && err == nil {
		w.flying = slices.Delete(w.flying, i, i+1) // after an error it may still arrive
	}
	return err
}

func (w *watcher) Write(_ context.Context, p []byte, off int64, flags ...uint16) error {
	if len(flags) > 0 && flags[0] == 1 {
		return w.do(KindFUA, off, int64(len(p)))
	}
	return w.do(KindWrite, off, int64(len(p)))
}
func (w *watcher) Flush(context.Context) error { return w.do(KindFlush, 0, 0) }
func (w *watcher) Trim(_ context.Context, off, n int64, _ ...uint16) error {
	return w.do(KindTrim, off, n)
}
func (w *watcher) WriteZeroes(_ context.Context, off, n int64, _ ...uint16) error {
	return w.do(KindZero, off, n)
}

func newWatcher(t *testing.T) *watcher { return &watcher{t: t, kinds: map[Kind]int{}} }

func newLoad(t *testing.T, size int64, p Profile, seed uint64) (*Journal, *Load) {
	t.Helper()
	j, err := NewJournal(JournalConfig{Run: 1, Branch: 1, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return j, NewLoad(j, p, seed)
}

func TestProfiles(t *testing.T) {
	seed := testutil.Seed(t)
	const n = 1000
	for _, p := range []Profile{P1, P8, PT, PS} {
		t.Run(p.Name, func(t *testing.T) {
			j, load := newLoad(t, 64<<20, p, seed)
			w := newWatcher(t)
			if err := load.Run(context.Background(), n, w, w); err != nil {
				t.Fatal(err)
			}
			reqs := j.Requests()
			if len(reqs) != n {
				t.Fatalf("%d requests, want %d", len(reqs), n)
			}
			conns := map[int]bool{}
			for _, r := range reqs {
				conns[r.Conn] = true
				if r.Complete == 0 {
					t.Fatalf("%v", &r)
				}
			}
			if len(conns) != min(2, p.InFlight) {
				t.Errorf("connections used: %v", conns)
			}
			if w.most > p.InFlight || (p.InFlight > 1 && w.most < 2) {
				t.Errorf("%d in flight, want up to %d", w.most, p.InFlight)
			}
			lo, hi := slices.Min(w.lengths), slices.Max(w.lengths)
			if lo < p.MinLen || hi > p.MaxLen || (p.MinLen < p.MaxLen && (lo > 2*p.MinLen || hi < p.MaxLen/2)) {
				t.Errorf("lengths from %d to %d, want %d to %d", lo, hi, p.MinLen, p.MaxLen)
			}
			flushes := w.kinds[KindFlush]
			if (p.FlushEvery == 0) != (flushes == 0) || (flushes > 0 && (flushes < n/60 || flushes > n/20)) {
				t.Errorf("%d flushes in %d requests", flushes, n)
			}
			if (p.Trim > 0) != (w.kinds[KindTrim] > n/20) || (p.Zero > 0) != (w.kinds[KindZero] > n/20) {
				t.Errorf("kinds: %v", w.kinds)
			}
			if p.FUA == 1 && w.kinds[KindFUA] != n {
				t.Errorf("%d of %d are FUA", w.kinds[KindFUA], n)
			}
			s := load.TakeStats()
			if s.Writes+s.Flushes+s.Trims+s.Zeroes != n || s.Quantile(0.5) > s.Quantile(0.99) || s.Quantile(1) != s.Max || s.Max == 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestSequentialIsSequential(t *testing.T) {
	p := PS
	p.InFlight = 1
	_, load := newLoad(t, 1<<20, p, 1)
	w := newWatcher(t)
	if err := load.Run(context.Background(), 30, w); err != nil {
		t.Fatal(err)
	}
	for i, off := range w.offs {
		if want := int64(i) * (128 << 10) % (1 << 20); off != want {
			t.Fatalf("request %d at %d, want %d", i, off, want)
		}
	}
}

func TestSameSeedSameRequests(t *testing.T) {
	run := func(seed uint64) []Request {
		p := P8
		p.InFlight = 1
		j, load := newLoad(t, 1<<20, p, seed)
		if err := load.Run(context.Background(), 100, newWatcher(t)); err != nil {
			t.Fatal(err)
		}
		reqs := j.Requests()
		for i := range reqs {
			reqs[i].When = time.Time{}
		}
		return reqs
	}
	if !slices.Equal(run(5), run(5)) || slices.Equal(run(5), run(6)) {
		t.Fatal("the seed does not fix the load")
	}
}

// What was in flight on a lost connection stays blocked, over several Runs, and
// "maybe" in the journal, until Fence.
func TestUnansweredRangesStayBlocked(t *testing.T) {
	p := small(P8)
	j, load := newLoad(t, 64*SectorSize, p, testutil.Seed(t))
	w := newWatcher(t)
	var left int
	w.fail = func(Kind) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if left--; left < 0 {
			return errLost
		}
		return nil
	}
	rounds := 0
	for ; ; rounds++ {
		left = 20
		err := load.Run(context.Background(), 0, w)
		if errors.Is(err, ErrNoRoom) {
			break
		}
		if !errors.Is(err, errLost) {
			t.Fatal(err)
		}
		if rounds > 1000 {
			t.Fatal("the device never filled up with unanswered requests")
		}
	}
	maybe := 0
	for _, r := range j.Requests() {
		if r.Complete == 0 {
			maybe++
			if r.Err == "" {
				t.Fatal("the failure is not in the journal")
			}
		}
	}
	if rounds < 2 || maybe < rounds {
		t.Fatalf("%d rounds, %d unanswered", rounds, maybe)
	}
	load.Fence()
	w.flying, left = nil, 1<<30
	if err := load.Run(context.Background(), 50, w); err != nil {
		t.Fatal("after Fence: ", err)
	}
}

// Cancelling stops new requests and waits for those in flight.
func TestCancelDrains(t *testing.T) {
	j, load := newLoad(t, 1<<20, P8, 1)
	w := newWatcher(t)
	w.hold = make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- load.Run(ctx, 0, w) }()
	testutil.WaitFor(t, 10*time.Second, "eight requests in flight", func() bool { return len(j.Requests()) == 8 })
	cancel()
	select {
	case err := <-done:
		t.Fatal("returned with requests in flight: ", err)
	default:
	}
	close(w.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, r := range j.Requests() {
		if r.Complete == 0 {
			t.Fatalf("%v", &r)
		}
	}
}

type stuckClient struct{ watcher }

func (s *stuckClient) Write(ctx context.Context, _ []byte, _ int64, _ ...uint16) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestSilenceEndsTheRun(t *testing.T) {
	_, load := newLoad(t, 1<<20, P1, 1)
	load.OpTimeout = time.Millisecond
	err := load.Run(context.Background(), 0, &stuckClient{})
	if err == nil || errors.Is(err, context.DeadlineExceeded) || !bytes.Contains([]byte(err.Error()), []byte("no answer for 1ms")) {
		t.Fatal(err)
	}
}
