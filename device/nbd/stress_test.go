package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

// TestDeathOfClient: whatever a client was doing when it vanished, the open count drops
// within a second, half a request changes nothing, and nothing leaks (TestMain).
func TestDeathOfClient(t *testing.T) {
	write := func(off uint64, n uint32) []byte { return nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 1, off, n) }
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"idle", nil},
		{"half header", write(0, 4096)[:13]},
		{"header without payload", write(0, 4096)},
		{"half payload", append(write(0, 4096), make([]byte, 2000)...)},
		{"half large payload", append(write(0, 2<<20), make([]byte, 1<<20)...)},
		{"half payload of a refused write", append(write(1<<40, 2<<20), make([]byte, 1<<20)...)},
		{"garbage", []byte("garbage garbage garbage garbage")},
		{"reads whose answers nobody takes", bytesOf(200, nbdclient.RequestHeader(nbdproto.CmdRead, 0, 1, 0, 1<<20))},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(tc.name+"/"+network, func(t *testing.T) {
				ts, m := memServer(t, 8<<20)
				addr := ts.sock
				if network == "tcp" {
					l, err := net.Listen("tcp", "127.0.0.1:0")
					check(t, err)
					addr = l.Addr().String()
					ts.listen(func() error { return ts.Serve(l) })
				}
				r, err := nbdclient.DialRaw(testContext(t), network, addr)
				check(t, err)
				_, err = r.Go("disk", false)
				check(t, err)
				check(t, r.Send(tc.send))
				if n := ts.OpenCount("disk"); n != 1 && tc.name != "garbage" {
					t.Errorf("open count %d", n)
				}
				start := time.Now()
				r.Close()
				ts.waitOpen("disk", 0)
				if d := time.Since(start); d > openLimit {
					t.Errorf("open for another %v", d)
				}
				if ts.InFlight("disk") != 0 || m.Pages() != 0 {
					t.Errorf("%d in flight, %d pages written", ts.InFlight("disk"), m.Pages())
				}
			})
		}
	}
}

// openLimit is how long a dead client may count as open. The promise is a second; the rest is
// for a machine that is busy with other tests.
const openLimit = 5 * time.Second

func bytesOf(n int, p []byte) []byte {
	var b []byte
	for range n {
		b = append(b, p...)
	}
	return b
}

// TestDeathInFlight: the client dies while the backend works on its requests. It counts as open
// until they are done.
func TestDeathInFlight(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	gate := make(chan struct{})
	var started atomic.Int32
	syncs := make(chan func(error), 1)
	h.try = func([]byte, int64) (bool, error) { return false, nil }
	h.read = func(p []byte, off int64) error { started.Add(1); <-gate; return nil }
	h.sync = func(done func(error)) { syncs <- done }
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", false)
	check(t, r.Send(append(nbdclient.RequestHeader(nbdproto.CmdWrite, nbdproto.CmdFlagFUA, 1, 0, 4), "aaaa"...), nbdclient.RequestHeader(nbdproto.CmdRead, 0, 2, 0, 4096)))
	done := <-syncs
	testutil.WaitFor(t, patience, "the read to start", func() bool { return started.Load() == 1 })
	r.Close()
	testutil.WaitFor(t, patience, "the server to notice", func() bool { return ts.InFlight("disk") == 2 })
	if n := ts.OpenCount("disk"); n != 1 {
		t.Errorf("open count %d while the backend works", n)
	}
	close(gate)
	if n := ts.OpenCount("disk"); n != 1 {
		t.Errorf("open count %d while the backend syncs", n)
	}
	done(nil)
	ts.waitOpen("disk", 0)
}

// TestThousandConnects: connections come and go in all ways without a leak.
func TestThousandConnects(t *testing.T) {
	ts, _ := memServer(t, 1<<20)
	const workers, each = 4, 250
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				if err := connectOnce(ts.sock, (w+i)%5); err != nil {
					t.Errorf("connect %d: %v", i, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	ts.waitOpen("disk", 0)
	testutil.WaitFor(t, patience, "all connections to end", func() bool { ts.mu.Lock(); defer ts.mu.Unlock(); return len(ts.conns) == 0 })
	if n := runtime.NumGoroutine(); n > 30 {
		t.Errorf("%d goroutines", n)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	if len(fds) > 60 {
		t.Errorf("%d open files", len(fds))
	}
}

func connectOnce(sock string, how int) error {
	ctx := context.Background()
	if how == 0 {
		c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: sock})
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Write(ctx, make([]byte, 512), 0)
	}
	r, err := nbdclient.DialRaw(ctx, "unix", sock)
	if err != nil || how == 1 {
		if err == nil {
			r.Close()
		}
		return err
	}
	defer r.Close()
	if how == 2 {
		return r.Send([]byte{0, 0, 0, 3, 'I', 'H'})
	}
	if _, err := r.Go("disk", true); err != nil {
		return err
	}
	if how == 3 {
		return r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, 0, 1, 0, 4096))
	}
	return r.Send(nbdclient.RequestHeader(nbdproto.CmdDisc, 0, 1, 0, 0))
}

// TestSlowClient: a client that asks and never reads blocks neither other clients, nor the callback of
// the backend's sync, nor a worker; what the server holds for it is bounded.
func TestSlowClient(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(4 << 20)}
	var reading, maxReading atomic.Int64
	h.try = func(p []byte, off int64) (bool, error) {
		if off != 0 {
			return h.Memory.TryReadAt(p, off)
		}
		return false, nil
	}
	h.read = func(p []byte, off int64) error {
		maxReading.Store(max(maxReading.Load(), reading.Add(1)))
		defer reading.Add(-1)
		return h.Memory.ReadAt(p, off)
	}
	h.sync = func(done func(error)) { go done(nil) }
	cfg := Config{MaxInFlight: 200, MaxInFlightBytes: 4 << 20, ReadWorkers: 2}
	ts := startServer(t, cfg, Export{Name: "disk", Backend: h})
	ctx := testContext(t)
	var slow []*nbdclient.Raw
	for i := range 3 {
		r := ts.rawGo("disk", false)
		slow = append(slow, r)
		r.Conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		one := append(nbdclient.RequestHeader(nbdproto.CmdRead, 0, 1, uint64(i)*512, 1<<20),
			append(nbdclient.RequestHeader(nbdproto.CmdWrite, nbdproto.CmdFlagFUA, 2, 0, 4), "fua!"...)...)
		for {
			if err := r.Send(bytesOf(100, one)); err != nil {
				break // the server takes no more: back-pressure
			}
		}
	}
	ts.mu.Lock()
	for c := range ts.exports["disk"].conns {
		c.out.mu.Lock()
		if c.out.waiting > cfg.MaxInFlight || c.out.held > cfg.MaxInFlightBytes+flushAt+2<<20 {
			t.Errorf("%d requests and %d bytes are held for a slow client", c.out.waiting, c.out.held)
		}
		c.out.mu.Unlock()
	}
	ts.mu.Unlock()
	c := ts.dial(nbdclient.Options{Export: "disk"})
	start := time.Now()
	for i := range 50 {
		check(t, c.Write(ctx, make([]byte, 4096), 4096, nbdclient.FUA))
		check(t, c.Read(ctx, make([]byte, 4096), int64(i%2)*4096)) // a worker, or inline
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("a good client needed %v", d)
	}
	if n := maxReading.Load(); n > 2 {
		t.Errorf("%d workers, the limit is 2", n)
	}
	// One of them wakes up and gets all it asked for, in good order.
	r := slow[0]
	r.Conn.SetDeadline(time.Now().Add(patience))
	for range 100 {
		rep, err := r.ReadReply()
		check(t, err)
		if rep.Errno != 0 {
			t.Fatalf("reply %+v", rep)
		}
		if rep.Handle == 1 {
			_, err := io.CopyN(io.Discard, r.Conn, 1<<20)
			check(t, err)
		}
	}
	// The others do not hold up the end.
	start = time.Now()
	ctx2, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	check(t, ts.Remove(ctx2, "disk"))
	if d := time.Since(start); d > patience/2 {
		t.Errorf("Remove needed %v", d)
	}
}

// TestRemove: new clients are refused at once, requests in flight are finished and answered, and only
// then does Remove return.
func TestRemove(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	syncs := make(chan func(error), 1)
	h.sync = func(done func(error)) { syncs <- done }
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h}, Export{Name: "other", Backend: NewMemory(1)})
	r := ts.rawGo("disk", false)
	idle := ts.rawGo("disk", false)
	other := ts.rawGo("other", false)
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 1, 0, 0)))
	done := <-syncs

	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan error, 1)
	go func() { result <- ts.Remove(ctx, "disk") }()
	closed(t, idle)
	ts.waitOpen("disk", 1)
	if _, err := ts.raw().Go("disk", false); err == nil {
		t.Error("a new client was accepted")
	}
	if err := ts.Add(Export{Name: "disk", Backend: NewMemory(1)}); err == nil || !strings.Contains(err.Error(), "still being removed") {
		t.Errorf("Add: %v", err)
	}
	why := errors.New("waited long enough")
	cancel(why)
	if err := <-result; !errors.Is(err, why) {
		t.Errorf("Remove: %v", err)
	}
	go func() { result <- ts.Remove(context.Background(), "disk") }()
	done(nil)
	reply(t, r, 1, 0)
	closed(t, r)
	check(t, <-result)
	if n := ts.OpenCount("disk"); n != 0 {
		t.Errorf("open count %d", n)
	}
	check(t, ts.Remove(context.Background(), "disk")) // not there
	check(t, ts.Add(Export{Name: "disk", Backend: NewMemory(1)}))
	inStep(t, ts.rawGo("disk", false))
	inStep(t, other) // was not disturbed
}

// TestRemoveUnderLoad: after Remove the backend is not called any more.
func TestRemoveUnderLoad(t *testing.T) {
	for range 5 {
		var removed atomic.Bool
		h := slowMemory(1 << 20)
		h.submit = func(ops []Op) error {
			if removed.Load() {
				t.Error("Submit after Remove")
			}
			return h.Memory.Submit(ops)
		}
		h.read = func(p []byte, off int64) error {
			if removed.Load() {
				t.Error("ReadAt after Remove")
			}
			return h.Memory.ReadAt(p, off)
		}
		h.sync = func(done func(error)) {
			go func() {
				if removed.Load() {
					t.Error("a sync was pending after Remove")
				}
				done(nil)
			}()
		}
		ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
		var wg sync.WaitGroup
		var count atomic.Int64
		for i := range 8 {
			c := ts.dial(nbdclient.Options{Export: "disk"})
			wg.Add(1)
			go func() {
				defer wg.Done()
				p := make([]byte, 4096)
				for {
					err := c.Write(context.Background(), p, int64(i)*4096, uint16(i%2))
					if err == nil {
						err = c.Read(context.Background(), p, int64(i)*4096)
					}
					if err != nil {
						return // disconnected
					}
					count.Add(1)
				}
			}()
		}
		testutil.WaitFor(t, patience, "some load", func() bool { return count.Load() > 100 })
		check(t, ts.Remove(testContext(t), "disk"))
		removed.Store(true)
		wg.Wait()
		ts.Close()
	}
}

func TestTooManyConnections(t *testing.T) {
	ts := startServer(t, Config{MaxConns: 3}, Export{Name: "disk", Backend: NewMemory(1)})
	for range 3 {
		inStep(t, ts.rawGo("disk", false))
	}
	if r, err := nbdclient.DialRaw(testContext(t), "unix", ts.sock); err == nil {
		r.Close()
		t.Error("a fourth connection was greeted")
	}
	if s := ts.log.String(); !strings.Contains(s, "too many connections") {
		t.Errorf("log: %s", s)
	}
}

func TestServerErrors(t *testing.T) {
	s := NewServer(Config{})
	mem := NewMemory(1)
	long := strings.Repeat("x", nbdproto.MaxName+1)
	for _, e := range []Export{{Name: "x"}, {Name: long, Backend: mem}, {Name: "x", Description: long, Backend: mem}} {
		if s.Add(e) == nil {
			t.Errorf("Add of a bad export succeeded: %.20q", e.Name)
		}
	}
	check(t, s.Add(Export{Name: "x", Backend: mem}))
	if err := s.Add(Export{Name: "x", Backend: mem}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("second Add: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	check(t, err)
	l.Close()
	if err := s.Serve(l); err == nil {
		t.Error("Serve on a closed listener returned nil")
	}
	check(t, s.Close())
	check(t, s.Close())
	if err := s.Serve(l); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
	if err := s.Add(Export{Name: "y", Backend: mem}); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	if s.OpenCount("nix") != 0 || s.InFlight("nix") != 0 {
		t.Error("counts of an unknown export")
	}
	for _, cfg := range []Config{{MaxConns: -1}, {HandshakeTimeout: -1}, {DrainTimeout: -1}, {MaxInFlight: -1}, {MaxInFlightBytes: -1}, {ReadWorkers: -1}, {ReceiveBuffer: 100}, {ReceiveBuffer: 1 << 30}} {
		if cfg.Validate() == nil || NewServer(cfg).Add(Export{Name: "x", Backend: mem}) == nil {
			t.Errorf("config %+v is accepted", cfg)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

// TestGenericConn serves a connection that is not a socket, as TLS would be.
func TestGenericConn(t *testing.T) {
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: slowMemory(4 << 20)})
	ts.listen(func() error { return ts.Serve(l) })
	client, server := net.Pipe()
	l.conns <- server
	r := &nbdclient.Raw{Conn: client}
	client.SetDeadline(time.Now().Add(patience))
	check(t, r.Greeting())
	_, err := r.Go("disk", false)
	check(t, err)
	for i := range 20 {
		go r.Send(append(nbdclient.RequestHeader(nbdproto.CmdWrite, nbdproto.CmdFlagFUA, 1, uint64(i)*512, 4), fmt.Sprintf("%04d", i)...),
			nbdclient.RequestHeader(nbdproto.CmdRead, 0, 2, uint64(i)*512, 4))
		for range 2 {
			rep, err := r.ReadReply()
			check(t, err)
			if rep.Handle == 2 {
				p := make([]byte, 4)
				if _, err := io.ReadFull(client, p); err != nil || string(p) != fmt.Sprintf("%04d", i) {
					t.Fatalf("read %q, %v", p, err)
				}
			}
		}
	}
	check(t, ts.Remove(testContext(t), "disk"))
	closed(t, r)
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
