package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"
	"mars/internal/testutil"
)

func TestRangeAndDigests(t *testing.T) {
	w := newRealWorld(t, testConfig())
	ctx := t.Context()
	w.h.device = randomBytes(20, 5<<20)
	w.h.end = Position{"log-000000003-hosta", 1<<62 + 7}
	for _, r := range [][2]int{{0, 1}, {0, 4096}, {4095, 2}, {1000, 3 << 20}, {0, 5 << 20}, {0, 0}} {
		got := make([]byte, r[1])
		pos, err := w.peer.ReadRange(ctx, "r", int64(r[0]), got)
		if err != nil || !bytes.Equal(got, w.h.device[r[0]:r[0]+r[1]]) || r[1] > 0 && pos != w.h.end {
			t.Errorf("range %v: %v %v", r, pos, err)
		}
	}
	sums, pos, err := w.peer.Digests(ctx, "r", 100, 4<<20+1, 1<<20)
	if err != nil || len(sums) != 5 || pos != w.h.end {
		t.Fatalf("digests: %d %v %v", len(sums), pos, err)
	}
	if sums[4] != sha256.Sum256(w.h.device[100+4<<20:][:1]) || sums[0] != sha256.Sum256(w.h.device[100:][:1<<20]) {
		t.Error("digests differ")
	}
	var e *Error
	_, err = w.peer.ReadRange(ctx, "r", 5<<20-10, make([]byte, 20))
	if !errors.As(err, &e) || e.Resource != "r" || e.Offset != 5<<20-10 || !strings.Contains(err.Error(), "ends before") {
		t.Errorf("beyond the end: %v", err)
	}
	if _, err := w.peer.ReadRange(ctx, "other", 0, make([]byte, 20)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown resource: %v", err)
	}
	for _, c := range [][3]int64{{0, 1 << 40, 1}, {0, 100, 0}, {0, 0, 1}, {-1, 1, 1}} {
		if _, _, err := w.peer.Digests(ctx, "r", c[0], c[1], c[2]); !errors.Is(err, ErrRefused) {
			t.Errorf("digests %v: %v", c, err)
		}
	}
	if _, err := w.peer.ReadRange(ctx, "a/b", 0, make([]byte, 1)); !errors.Is(err, ErrRefused) {
		t.Errorf("bad resource: %v", err)
	}
}

// A reply that takes long is kept alive by heartbeats, also when it fails in
// the end; a dead peer is noticed in three of them.
func TestSlowRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval = time.Second
		w := newWorld(t, cfg)
		w.h.device, w.h.slow = make([]byte, 4096), 10*time.Minute
		if _, err := w.peer.ReadRange(t.Context(), "r", 0, make([]byte, 4096)); err != nil {
			t.Errorf("slow read: %v", err)
		}
		if _, err := w.peer.ReadRange(t.Context(), "r", 4000, make([]byte, 4096)); err == nil || !strings.Contains(err.Error(), "ends before") {
			t.Errorf("slow failure: %v", err)
		}
		done := make(chan error)
		go func() {
			_, err := w.peer.ReadRange(t.Context(), "r", 0, make([]byte, 4096))
			done <- err
		}()
		time.Sleep(time.Minute)
		w.net.SetAll(faultnet.Link{Silent: true})
		begin := time.Now()
		if err := <-done; !errors.Is(err, ErrTimeout) || time.Since(begin) > 4*time.Second {
			t.Errorf("dead peer: %v after %v", err, time.Since(begin))
		}
		w.net.Heal()
		w.closeNow()
	})
}

// A sync that saturates its class does not delay the log: they share neither
// connection nor token bucket.
func TestSyncDoesNotDelayTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval = time.Second
		cfg.Limits.Sync = 100_000
		w := newWorld(t, cfg)
		w.h.device = make([]byte, 8<<20)
		l := w.h.log(nil)
		got := &copyOf{t: t, real: l}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					w.peer.ReadRange(ctx, "r", 0, make([]byte, 1<<20))
				}
			})
		}
		wg.Go(func() { w.peer.Log(ctx, "r", testLog, 0, got.deliver) })
		time.Sleep(10 * time.Second)
		for i := range 100 {
			l.change(func() { l.data = append(l.data, make([]byte, 1000)...); l.durable += 1000 })
			time.Sleep(time.Millisecond)
			if got.len() != 1000*(i+1) {
				t.Fatalf("after 1 ms %d of %d bytes", got.len(), 1000*(i+1))
			}
		}
		cancel()
		wg.Wait()
		w.closeNow()
	})
}

func descriptors(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A thousand strangers of all kinds: no leak, hardly a log line, and the nodes
// of the cluster do not notice.
func TestGarbage(t *testing.T) {
	var lines logText
	cfg := testConfig()
	cfg.Log = lines.logger(slog.LevelWarn)
	cfg.MaxHandshakes = 50
	cfg.HandshakeTimeout = 5 * time.Second
	w := newRealWorld(t, cfg)
	if err := w.peer.Nudge(t.Context()); err != nil {
		t.Fatal(err)
	}
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	foreign := testIdentity(t, testSecret(9), "hostb").ClientTLS("hosta")
	var wg sync.WaitGroup
	slots := make(chan struct{}, 100)
	for i := range 1000 {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := net.Dial("tcp", w.peer.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			switch i % 5 {
			case 0: // nothing at all
				io.Copy(io.Discard, c)
			case 1:
				c.Write(randomBytes(uint64(i), 1+i))
				io.Copy(io.Discard, c)
			case 2:
				io.WriteString(c, "GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n")
				io.Copy(io.Discard, c)
			case 3:
				tls.Client(c, foreign).Handshake()
			case 4: // gone at once
			}
		})
	}
	for range 20 {
		if err := w.peer.Nudge(t.Context()); err != nil {
			t.Errorf("a member is disturbed: %v", err)
		}
	}
	wg.Wait()
	testutil.WaitFor(t, 10*time.Second, "descriptors and goroutines as before", func() bool {
		return descriptors(t) <= fds && runtime.NumGoroutine() <= goroutines
	})
	w.server.mu.Lock()
	if n := len(w.server.conns); n > 2 || len(w.server.pending) != 0 {
		t.Errorf("%d connections and %d handshakes are still counted", n, len(w.server.pending))
	}
	w.server.mu.Unlock()
	if n := len(lines.all()); n == 0 || n > 10 {
		t.Errorf("%d log lines:\n%s", n, strings.Join(lines.all(), ""))
	}
}

// A member that sends nonsense gets an error, whatever it is, and nothing else
// happens.
func TestBadRequests(t *testing.T) {
	w := newRealWorld(t, testConfig())
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: testIdentity(t, testSecret(1), "hostc").ClientTLS("hosta")}
	client := &http.Client{Transport: tr}
	base := "https://" + w.peer.Addr()
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/", "", 200},
		{"GET", "/", "", 404},
		{"GET", "/v2/hello", "", 404},
		{"PUT", "/v1/hello", "", 405},
		{"POST", "/v1/hello", "", 400},
		{"POST", "/v1/hello", "{", 400},
		{"POST", "/v1/hello", `{"node":"hostb","protocol":1}`, 400},
		{"POST", "/v1/hello", `{"node":"hostc","protocol":2}`, 400},
		{"POST", "/v1/hello", `{"node":"hostc","protocol":1}`, 200},
		{"POST", "/v1/hello", strings.Repeat("x", maxSmallBody+1), 400},
		{"GET", "/v1/tree/since", "", 400},
		{"GET", "/v1/tree/since?epoch=-1&seq=0", "", 400},
		{"GET", "/v1/tree/since?epoch=1&seq=99999999999999999999", "", 400},
		{"GET", "/v1/tree/stream?epoch=x&seq=0", "", 400},
		{"POST", "/v1/tree/dirs", `["a","../b"]`, 400},
		{"POST", "/v1/tree/dirs", `{"a":1}`, 400},
		{"GET", "/v1/log/r/" + testLog, "", 400},
		{"GET", "/v1/log/r/" + testLog + "?offset=-1", "", 400},
		{"GET", "/v1/log/r/" + testLog + "?offset=9223372036854775807", "", 400},
		{"GET", "/v1/log/r/nolog?offset=0", "", 404},
		{"GET", "/v1/log/r%2Fx/nolog?offset=0", "", 400},
		{"GET", "/v1/log/r/..%2Fx?offset=0", "", 400},
		{"GET", "/v1/range/r?offset=0&length=0", "", 400},
		{"GET", "/v1/range/r?offset=0&length=4194305", "", 400},
		{"GET", "/v1/range/r?offset=4611686018427387905&length=1", "", 400},
		{"GET", "/v1/range/other?offset=0&length=1", "", 404},
		{"GET", "/v1/digests/r?offset=0&length=100000&chunk=1", "", 400},
		{"GET", "/v1/digests/r?offset=0&length=1&chunk=0", "", 400},
		{"GET", "/" + strings.Repeat("x", 64<<10), "", 431},
	} {
		r, err := http.NewRequest(c.method, base+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Errorf("%s %.60s: %v", c.method, c.path, err)
			continue
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %.60s: status %d, want %d: %s", c.method, c.path, resp.StatusCode, c.status, body)
		}
	}
	if err := w.peer.Nudge(t.Context()); err != nil {
		t.Error(err)
	}
}

// A server that lies about everything is an error each time, never a wrong
// result or a hang.
func TestLyingServer(t *testing.T) {
	id := testIdentity(t, testSecret(1), "hosta")
	var answer atomic.Value
	l, err := tls.Listen("tcp", "127.0.0.1:0", id.ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(answer.Load().([]byte)) })}
	go srv.Serve(l)
	defer srv.Close()
	p := NewPeer(testIdentity(t, testSecret(1), "hostb"), "hosta", l.Addr().String(), testConfig())
	defer p.Close()
	ctx := t.Context()
	never := func(int64, []byte, int64, bool) error { t.Error("delivered"); return nil }
	end := encodeFrame(frame{flags: flagSealed, offset: 10, payload: []byte(`{"log":"x","offset":"1"}`)})
	data := encodeFrame(frame{offset: 0, durable: 10, payload: make([]byte, 10)})
	for _, c := range []struct {
		name   string
		answer string
		is     error
	}{
		{"nothing", "", ErrTruncated},
		{"garbage", strings.Repeat("garbage ", 100), ErrCorrupt},
		{"wrong offset", string(encodeFrame(frame{offset: 1, durable: 10, payload: []byte("x")})), ErrCorrupt},
		{"too much", string(encodeFrame(frame{offset: 0, durable: 9, payload: make([]byte, 100)})), ErrCorrupt},
		{"early end", string(encodeFrame(frame{flags: flagSealed, offset: 0, durable: 5})), ErrCorrupt},
		{"compressed", string(encodeFrame(frame{flags: flagCompressed, durable: 5, payload: []byte("x")})), ErrCorrupt},
		{"bad error", string(encodeFrame(frame{flags: flagError, payload: []byte("x")})), ErrCorrupt},
	} {
		answer.Store([]byte(c.answer))
		if err := p.Log(ctx, "r", testLog, 0, never); !errors.Is(err, c.is) {
			t.Errorf("%s: log: %v", c.name, err)
		}
		if _, err := p.ReadRange(ctx, "r", 0, make([]byte, 10)); !errors.Is(err, c.is) {
			t.Errorf("%s: range: %v", c.name, err)
		}
		if _, _, err := p.Digests(ctx, "r", 0, 10, 5); !errors.Is(err, c.is) {
			t.Errorf("%s: digests: %v", c.name, err)
		}
		if _, _, _, ok, err := p.TreeSince(ctx, 0, 0); ok || err == nil {
			t.Errorf("%s: tree: %v %v", c.name, ok, err)
		}
		if _, _, _, _, err := p.TreeDigests(ctx); err == nil {
			t.Errorf("%s: tree digests: %v", c.name, err)
		}
		if _, err := p.Hello(ctx, Hello{}); err == nil {
			t.Errorf("%s: hello: %v", c.name, err)
		}
	}
	answer.Store(append(append([]byte{}, data...), end...))
	if pos, err := p.ReadRange(ctx, "r", 0, make([]byte, 10)); err != nil || pos != (Position{"x", 1}) {
		t.Errorf("negative control: an honest answer is refused: %v %v", pos, err)
	}
	answer.Store([]byte(`{"protocol":2}`))
	if _, err := p.Hello(ctx, Hello{}); !errors.Is(err, ErrRefused) {
		t.Errorf("another protocol: %v", err)
	}
}

func TestLimitsOfConnectionsAndRequests(t *testing.T) {
	cfg := testConfig()
	cfg.MaxPeerConns = 3
	cfg.MaxRequests = 1
	cfg.HeartbeatInterval, cfg.RequestTimeout = 500*time.Millisecond, 3*time.Second
	w := newRealWorld(t, cfg)
	w.h.device, w.h.slow = make([]byte, 10), time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.peer.ReadRange(ctx, "r", 0, make([]byte, 10)) })
	testutil.WaitFor(t, 5*time.Second, "a running request", func() bool { return len(w.server.requests) == 1 })
	if err := w.peer.Nudge(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("second request: %v, want ErrBusy", err)
	}
	w.h.log(nil)
	for i := range 3 {
		w.h.change(func() { w.h.logs[fmt.Sprintf("r/x%d", i)] = w.h.logs["r/"+testLog] })
	}
	errs := make(chan error, 3)
	for i := range 3 {
		wg.Go(func() {
			errs <- w.peer.Log(ctx, "r", fmt.Sprintf("x%d", i), 0, func(int64, []byte, int64, bool) error { return nil })
		})
	}
	select {
	case err := <-errs:
		if err == nil || errors.Is(err, ErrTimeout) {
			t.Errorf("a connection too many: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a connection too many was not refused")
	}
	cancel()
	wg.Wait()
}

// Close ends everything that runs, on either side, at once.
func TestClose(t *testing.T) {
	for _, side := range []string{"peer", "server"} {
		w := newRealWorld(t, testConfig())
		w.h.device, w.h.slow = make([]byte, 10), time.Hour
		w.h.log(nil)
		errs := make(chan error, 3)
		go func() {
			errs <- w.peer.Log(t.Context(), "r", testLog, 0, func(int64, []byte, int64, bool) error { return nil })
		}()
		go func() {
			errs <- w.peer.TreeStream(t.Context(), 0, 0, func([]TreeEntry, uint64, uint64, bool) error { return nil })
		}()
		go func() {
			_, err := w.peer.ReadRange(t.Context(), "r", 0, make([]byte, 10))
			errs <- err
		}()
		testutil.WaitFor(t, 5*time.Second, "three running calls", func() bool {
			w.server.mu.Lock()
			defer w.server.mu.Unlock()
			return len(w.server.streams) == 2 && len(w.server.requests) == 1
		})
		begin := time.Now()
		if side == "peer" {
			w.peer.Close()
		} else {
			w.server.Close()
		}
		for range 3 {
			if err := <-errs; err == nil || (side == "peer") != errors.Is(err, ErrClosed) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrSecret) {
				t.Errorf("%s closed: %v", side, err)
			}
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: close took %v", side, took)
		}
		if side == "peer" {
			if err := w.peer.Nudge(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("call after Close: %v", err)
			}
		}
	}
}

// After the server restarts, kept connections are stale; calls do not fail for
// that.
func TestServerRestart(t *testing.T) {
	cfg := testConfig()
	w := newRealWorld(t, cfg)
	for range 3 {
		if err := w.peer.Nudge(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.server.Close()
	l, err := net.Listen("tcp", w.peer.Addr())
	if err != nil {
		t.Fatal(err)
	}
	again := NewServer(testIdentity(t, testSecret(1), "hosta"), w.h, cfg)
	go again.Serve(l)
	defer again.Close()
	for range 3 {
		if err := w.peer.Nudge(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A panic in a handler costs its request only, and is reported.
func TestHandlerPanic(t *testing.T) {
	var lines logText
	cfg := testConfig()
	cfg.Log = lines.logger(slog.LevelError)
	w := newRealWorld(t, cfg)
	w.h.hello = func(string, Hello) (Hello, error) { panic("oh no") }
	if _, err := w.peer.Hello(t.Context(), Hello{Node: "hostb"}); err == nil {
		t.Error("no error")
	}
	w.h.hello = nil
	if _, err := w.peer.Hello(t.Context(), Hello{Node: "hostb"}); err != nil {
		t.Error(err)
	}
	if text := strings.Join(lines.all(), ""); !strings.Contains(text, "oh no") || !strings.Contains(text, "peer=hostb") {
		t.Errorf("log: %s", text)
	}
}

func TestStreamAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval, cfg.StreamAge = time.Second, time.Minute
		w := newWorld(t, cfg)
		w.h.log([]byte("abc"))
		begin := time.Now()
		err := w.peer.Log(t.Context(), "r", testLog, 0, func(int64, []byte, int64, bool) error { return nil })
		var e *Error
		if took := time.Since(begin); !errors.As(err, &e) || e.Offset != 3 || !strings.Contains(err.Error(), "maximal age") || took > 61*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		w.closeNow()
	})
}

func TestConfigValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for _, c := range []Config{
		{HeartbeatInterval: -1}, {HeartbeatInterval: time.Second, RequestTimeout: time.Second}, {WriteTimeout: 25 * time.Hour}, {MaxConns: -1}, {Limits: Limits{Log: 100}}, {Limits: Limits{Sync: -1}},
		{DSCP: DSCP{Log: 64}}, {Congestion: strings.Repeat("x", 16)},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v was accepted", c)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(testIdentity(t, testSecret(1), "a"), newFakeHandler(), c)
		if err := s.Serve(l); err == nil {
			t.Error("served with a bad config")
		}
		p := NewPeer(testIdentity(t, testSecret(1), "a"), "b", l.Addr().String(), c)
		if err := p.Nudge(t.Context()); err == nil || !strings.Contains(err.Error(), "config") {
			t.Errorf("peer with a bad config: %v", err)
		}
	}
}

// Socket settings reach the kernel.
func TestSocketOptions(t *testing.T) {
	cfg := testConfig()
	cfg.DSCP, cfg.Congestion, cfg.UserTimeout = DSCP{Tree: 10, Log: 46}, "reno", 7*time.Second
	var conn net.Conn
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		conn = c
		return c, err
	}
	w := newRealWorld(t, cfg)
	if err := w.peer.Nudge(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkSockopts(t, conn, 10<<2, "reno", 7000)
	w.server.mu.Lock()
	var g *guardConn
	for c := range w.server.conns {
		g = c
	}
	w.server.mu.Unlock()
	checkSockopts(t, g.Conn, 10<<2, "reno", 7000)
}
