package transport

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"
	"mars/internal/testutil"
)

func randomBytes(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// copyOf is the receiving side: what was delivered so far, and checks that hold
// for every delivery.
type copyOf struct {
	t    testing.TB
	real *fakeLog

	mu      sync.Mutex
	data    []byte
	durable int64
	sealed  bool
	calls   int
	beyond  bool // bytes arrived that were not durable at the source
}

func (c *copyOf) deliver(off int64, data []byte, durable int64, sealed bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if off != int64(len(c.data)) {
		c.t.Errorf("delivered at %d, have %d", off, len(c.data))
	}
	c.data = append(c.data, data...)
	c.durable, c.sealed = durable, sealed
	c.real.mu.Lock()
	if int64(len(c.data)) > c.real.durable {
		c.beyond = true
	}
	c.real.mu.Unlock()
	return nil
}

func (c *copyOf) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.data)
}

func TestLogFollowsGrowthToTheSealedEnd(t *testing.T) {
	w := newRealWorld(t, testConfig())
	content := randomBytes(1, 3<<20)
	l := w.h.log(content)
	l.durable = 1000
	got := &copyOf{t: t, real: l}
	done := make(chan error, 1)
	go func() { done <- w.peer.Log(t.Context(), "r", testLog, 0, got.deliver) }()
	testutil.WaitFor(t, 5*time.Second, "the first durable bytes", func() bool { return got.len() == 1000 })
	l.change(func() { l.durable = 2 << 20 })
	testutil.WaitFor(t, 5*time.Second, "the next durable bytes", func() bool { return got.len() == 2<<20 })
	if got.sealed {
		t.Error("sealed before the end")
	}
	l.change(func() { l.durable = 3 << 20; l.sealed = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.data, content) || !got.sealed || got.durable != 3<<20 {
		t.Errorf("got %d bytes, sealed %v, durable %d", len(got.data), got.sealed, got.durable)
	}
	if got.beyond {
		t.Error("bytes arrived that were not durable")
	}
}

// Sealing without another byte ends the subscription as well; so does
// subscribing at the end of a sealed log.
func TestLogSealedAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, testConfig())
		l := w.h.log([]byte("abc"))
		got := &copyOf{t: t, real: l}
		done := make(chan error, 1)
		go func() { done <- w.peer.Log(t.Context(), "r", testLog, 0, got.deliver) }()
		time.Sleep(time.Minute) // virtual: heartbeats keep it alive
		l.change(func() { l.sealed = true })
		if err := <-done; err != nil || string(got.data) != "abc" || !got.sealed {
			t.Fatalf("%q sealed %v, %v", got.data, got.sealed, err)
		}
		if err := w.peer.Log(t.Context(), "r", testLog, 3, got.deliver); err != nil {
			t.Fatalf("at the end of a sealed log: %v", err)
		}
		w.closeNow()
	})
}

// closeNow ends the world inside a bubble, whose goroutines must be gone before
// cleanups run.
func (w *world) closeNow() {
	w.peer.Close()
	w.server.Close()
}

// Whatever byte the connection breaks at, the next subscription goes on exactly
// there and nothing is lost, doubled or damaged.
func TestLogResumesAtTheByte(t *testing.T) {
	content := randomBytes(2, 300_000)
	for _, cut := range []int64{1, 500, 3000, 5000, 17_000, 66_000, 70_001, 140_000, 250_000} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, testConfig())
			l := w.h.log(content)
			l.sealed = true
			got := &copyOf{t: t, real: l}
			w.net.SetLink("10.0.0.1", "10.0.0.2", faultnet.Link{ResetAfter: cut})
			var err error
			tries := 0
			for ; tries < 200; tries++ {
				before := got.len()
				err = w.peer.Log(t.Context(), "r", testLog, int64(before), got.deliver)
				if err == nil {
					break
				}
				var e *Error
				if !errors.As(err, &e) || e.Peer != "hosta" || e.Resource != "r" || e.Log != testLog || e.Offset != int64(got.len()) {
					t.Fatalf("cut at %d: error does not say where: %v", cut, err)
				}
				if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrSecret) {
					t.Fatalf("cut at %d: a cut is neither corruption nor a wrong secret: %v", cut, err)
				}
				if got.len() == before {
					// This cut never gets a frame through: let it pass from here on.
					w.net.SetLink("10.0.0.1", "10.0.0.2", faultnet.Link{ResetAfter: 4 * cut})
					cut *= 4
				}
			}
			if err != nil || !bytes.Equal(got.data, content) {
				t.Fatalf("cut at %d: %d of %d bytes after %d tries, %v", cut, len(got.data), len(content), tries, err)
			}
			if tries == 0 {
				t.Errorf("cut at %d: nothing was cut", cut)
			}
			w.closeNow()
		})
	}
}

// A plaintext relay cuts the byte stream of frames at every border and one byte
// around it; see frame_test.go for cuts at all bytes of one frame.
func TestLogCutAtEveryFrameBorder(t *testing.T) {
	content := randomBytes(3, 1000)
	var stream []byte
	var borders []int
	for off := 0; off < len(content); off += 100 {
		f := frame{offset: int64(off), durable: 1000, payload: content[off : off+100]}
		if off == 900 {
			f.flags = flagSealed
		}
		stream = append(stream, encodeFrame(f)...)
		borders = append(borders, len(stream))
	}
	for i, border := range borders {
		for _, cut := range []int{border - 1, border, border + 1} {
			if cut >= len(stream) {
				continue
			}
			fr := &frameReader{r: bytes.NewReader(stream[:cut])}
			n := int64(0)
			var err error
			for {
				var f frame
				if f, err = fr.next(); err != nil {
					break
				}
				if err := checkLogFrame(f, n, 0); err != nil {
					t.Fatal(err)
				}
				n += int64(len(f.payload))
			}
			want := int64(100 * (i + 1))
			if cut < border {
				want -= 100
			}
			if n != want {
				t.Errorf("cut at %d: %d bytes were accepted, want %d", cut, n, want)
			}
			if truncated(err, "x"); !errors.Is(truncated(err, "x"), ErrTruncated) {
				t.Errorf("cut at %d: %v", cut, err)
			}
		}
	}
}

// P5. The source's file has more bytes than are durable; none of them may leave.
// The second half is the negative control: with a source that lies about its
// durable length the check in copyOf does find them.
func TestLogOnlyDurableBytes(t *testing.T) {
	for _, lie := range []int64{0, 500} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, testConfig())
			l := w.h.log(randomBytes(4, 10_000))
			l.durable, l.lie = 4000, lie
			got := &copyOf{t: t, real: l}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.peer.Log(ctx, "r", testLog, 0, got.deliver) }()
			time.Sleep(time.Minute)
			if want := int(4000 + lie); got.len() != want {
				t.Errorf("lie %d: %d bytes, want %d", lie, got.len(), want)
			}
			if got.beyond != (lie > 0) {
				t.Errorf("lie %d: check for non-durable bytes says %v", lie, got.beyond)
			}
			cancel()
			if err := <-done; err != context.Canceled {
				t.Errorf("end by the caller: %v", err)
			}
			w.closeNow()
		})
	}
}

// A source that claims more than its file has is an error with a reason at the
// peer, not silence.
func TestLogSourceTrouble(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *fakeLog)
		off  int64
		is   error
		text string
	}{
		{"claims bytes it has not", func(l *fakeLog) { l.lie = 100 }, 0, nil, "its durable length is 1100"},
		{"shrinks", func(l *fakeLog) { l.durable = 500 }, 0, nil, "has shrunk from 1000 to 500"},
		{"fails", func(l *fakeLog) { l.fail = errors.New("disk on fire") }, 0, nil, "disk on fire"},
		{"vanishes", func(l *fakeLog) { l.fail = fs.ErrNotExist }, 0, fs.ErrNotExist, ""},
		{"is too short", func(l *fakeLog) {}, 1001, ErrBeyond, "1000 durable bytes on node hosta"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, testConfig())
			l := w.h.log(randomBytes(5, 1000))
			got := &copyOf{t: t, real: l}
			done := make(chan error, 1)
			deliver := got.deliver
			if c.off > 0 {
				deliver = func(int64, []byte, int64, bool) error { t.Error("delivered"); return nil }
			}
			go func() { done <- w.peer.Log(t.Context(), "r", testLog, c.off, deliver) }()
			synctest.Wait()
			l.change(func() { c.do(l) })
			err := <-done
			var remote *RemoteError
			if !errors.As(err, &remote) || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", c.name, err)
			}
			w.closeNow()
		})
	}
	w := newWorld(t, testConfig())
	for _, name := range []string{"nosuchlog", "../../etc/passwd", "a b", ""} {
		err := w.peer.Log(t.Context(), "r", name, 0, nil)
		if err == nil || name == "nosuchlog" && !errors.Is(err, fs.ErrNotExist) || name != "nosuchlog" && !errors.Is(err, ErrRefused) {
			t.Errorf("log %q: %v", name, err)
		}
	}
}

// Half-open links: bytes vanish in one direction or both, without any error
// from the network. The receiver gives up after three heartbeats, the server
// does not keep its side for ever.
func TestLogHalfOpen(t *testing.T) {
	for _, c := range []struct {
		name string
		link faultnet.Link
	}{{"silent", faultnet.Link{Silent: true}}, {"held", faultnet.Link{Hold: true}}} {
		synctest.Test(t, func(t *testing.T) {
			cfg := testConfig()
			cfg.HeartbeatInterval = time.Second
			w := newWorld(t, cfg)
			l := w.h.log(randomBytes(6, 100))
			got := &copyOf{t: t, real: l}
			done := make(chan error, 1)
			go func() { done <- w.peer.Log(t.Context(), "r", testLog, 0, got.deliver) }()
			time.Sleep(10 * time.Second)
			if got.len() != 100 {
				t.Fatalf("%s: %d bytes", c.name, got.len())
			}
			w.net.SetBoth("10.0.0.1", "10.0.0.2", c.link)
			begin := time.Now()
			err := <-done
			if took := time.Since(begin); !errors.Is(err, ErrTimeout) || took < 2*time.Second || took > 4*time.Second {
				t.Errorf("%s: %v after %v", c.name, err, took)
			}
			// The link heals. A new subscription resumes, and ends the forgotten one at
			// the server, which nobody else would.
			w.net.Heal()
			ctx, cancel := context.WithCancel(t.Context())
			go func() { done <- w.peer.Log(ctx, "r", testLog, 100, got.deliver) }()
			l.change(func() { l.data = randomBytes(6, 300); l.durable = 300 })
			time.Sleep(time.Second)
			if got.len() != 300 {
				t.Errorf("%s: %d bytes after healing", c.name, got.len())
			}
			if n := w.h.open.Load(); n != 1 {
				t.Errorf("%s: %d log sources open at the server, want 1", c.name, n)
			}
			cancel()
			<-done
			w.closeNow()
		})
	}
}

// A bit flip on the wire never reaches deliver.
func TestLogBitFlips(t *testing.T) {
	content := randomBytes(7, 400_000)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, testConfig())
		l := w.h.log(content)
		l.sealed = true
		got := &copyOf{t: t, real: l}
		w.net.SetLink("10.0.0.1", "10.0.0.2", faultnet.Link{FlipEvery: 60_000})
		corrupt := 0
		for tries := 0; ; tries++ {
			err := w.peer.Log(t.Context(), "r", testLog, int64(got.len()), got.deliver)
			if err == nil {
				break
			}
			if errors.Is(err, ErrCorrupt) {
				corrupt++
			}
			if tries > 500 {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got.data, content) {
			t.Error("a flip got through")
		}
		if corrupt == 0 {
			t.Error("no flip was called corruption")
		}
		w.closeNow()
	})
}

// A thin line: a frame takes longer than three heartbeats, but bytes move, so
// nobody gives up; and the token bucket makes the same rate with heartbeats.
func TestLogThinLine(t *testing.T) {
	content := randomBytes(8, 200_000)
	for _, bucket := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cfg := testConfig()
			cfg.HeartbeatInterval = time.Second
			if bucket {
				cfg.Limits.Log = 10_000
			}
			w := newWorld(t, cfg)
			if !bucket {
				w.net.SetAll(faultnet.Link{Rate: 10_000, Delay: 200 * time.Millisecond})
			}
			l := w.h.log(content)
			l.sealed = true
			got := &copyOf{t: t, real: l}
			begin := time.Now()
			if err := w.peer.Log(t.Context(), "r", testLog, 0, got.deliver); err != nil {
				t.Fatalf("bucket %v: %v after %v and %d bytes", bucket, err, time.Since(begin), len(got.data))
			}
			if took := time.Since(begin); took < 18*time.Second || took > 26*time.Second {
				t.Errorf("bucket %v: 200 kB at 10 kB/s took %v", bucket, took)
			}
			if !bytes.Equal(got.data, content) {
				t.Error("bytes differ")
			}
			w.closeNow()
		})
	}
}

// The caller's own error ends the subscription and comes back as it is.
func TestLogDeliverError(t *testing.T) {
	w := newWorld(t, testConfig())
	w.h.log(randomBytes(9, 100))
	full := errors.New("disk full")
	if err := w.peer.Log(t.Context(), "r", testLog, 0, func(int64, []byte, int64, bool) error { return full }); err != full {
		t.Errorf("%v, want the error of deliver", err)
	}
	testutil.WaitFor(t, 5*time.Second, "the server's side to end", func() bool { return w.h.open.Load() == 0 })
}

func TestLogFrameChecks(t *testing.T) {
	for _, c := range []struct {
		name string
		f    frame
		ok   bool
	}{
		{"data", frame{offset: 10, durable: 15, payload: []byte("hello")}, true},
		{"gap", frame{offset: 11, durable: 20, payload: []byte("hello")}, false},
		{"overlap", frame{offset: 9, durable: 20, payload: []byte("hello")}, false},
		{"beyond durable", frame{offset: 10, durable: 14, payload: []byte("hello")}, false},
		{"durable shrinks", frame{offset: 10, durable: 11}, false},
		{"sealed early", frame{flags: flagSealed, offset: 10, durable: 20}, false},
		{"sealed", frame{flags: flagSealed, offset: 10, durable: 15, payload: []byte("hello")}, true},
		{"heartbeat", frame{flags: flagHeartbeat, offset: 10, durable: 12}, true},
		{"heartbeat with data", frame{flags: flagHeartbeat, offset: 10, durable: 15, payload: []byte("hello")}, false},
	} {
		if err := checkLogFrame(c.f, 10, 12); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
