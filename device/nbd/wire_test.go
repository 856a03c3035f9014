package nbd

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

// idleConns is the number of an export's connections that wait without a thread.
func (ts *testServer) idleConns(export string) (n int) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for c := range ts.exports[export].conns {
		c.stopMu.Lock()
		if w, ok := c.wire.(*sockWire); ok && w.idle.Load() {
			n++
		}
		c.stopMu.Unlock()
	}
	return n
}

// TestIdleConnections: connections that have nothing to do give their threads back, wake up for the
// next request, and can be disconnected.
func TestIdleConnections(t *testing.T) {
	ts, _ := memServer(t, 1<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ts.listen(func() error { return ts.Serve(l) })
	const conns = 60
	var raws []*nbdclient.Raw
	for i := range conns {
		if i%2 == 0 {
			raws = append(raws, ts.rawGo("disk", false))
			continue
		}
		r, err := nbdclient.DialRaw(testContext(t), "tcp", l.Addr().String())
		check(t, err)
		t.Cleanup(func() { r.Close() })
		r.Conn.SetDeadline(time.Now().Add(patience))
		_, err = r.Go("disk", false)
		check(t, err)
		raws = append(raws, r)
	}
	allIdle := func() bool { return ts.idleConns("disk") == conns }
	for round := range 3 {
		testutil.WaitFor(t, patience, "all connections to be idle", allIdle)
		for i, r := range raws {
			inStep(t, r)
			if i%3 == round {
				inStep(t, r) // and again while it is still awake
			}
		}
	}
	testutil.WaitFor(t, patience, "all connections to be idle", allIdle)
	start := time.Now()
	check(t, ts.Remove(testContext(t), "disk"))
	if d := time.Since(start); d > openLimit {
		t.Errorf("Remove of idle clients needed %v", d)
	}
	for _, r := range raws {
		closed(t, r)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err != nil || len(fds) > conns+40 {
		t.Errorf("%d open files, %v", len(fds), err)
	}
}

// TestTryWritev: what the socket does not take at once is reported, nothing is lost or
// doubled, and a blocked Writev ends with Shutdown.
func TestTryWritev(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	check(t, err)
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	check(t, err)
	defer client.Close()
	server, err := l.Accept()
	check(t, err)
	w := newWire(server)
	defer w.Close()
	chunk := make([]byte, 100_000)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	total := 0
	for n := 1; n > 0; total += n { // until the socket is full
		n, err = w.TryWritev([][]byte{chunk[total%len(chunk):]})
		check(t, err)
	}
	if total == 0 {
		t.Fatal("nothing was sent")
	}
	got := make([]byte, total)
	client.SetReadDeadline(time.Now().Add(patience))
	for n := 0; n < total; {
		k, err := client.Read(got[n:])
		check(t, err)
		n += k
	}
	for i, b := range got {
		if b != byte(i%len(chunk)) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	blocked := make(chan error, 1)
	go func() { blocked <- w.Writev([][]byte{make([]byte, 1<<20), make([]byte, 1<<20)}) }()
	select {
	case err := <-blocked:
		t.Fatalf("2 MiB went into a socket that nobody reads: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	w.Shutdown()
	if err := <-blocked; err == nil {
		t.Error("Writev succeeded after Shutdown")
	}
	if _, err := w.Read(make([]byte, 1)); err == nil {
		t.Error("Read succeeded after Shutdown")
	}
	w.Close()
	w.Close()
	w.Shutdown()
	w.StopReading()
}

// BenchmarkRequests is the cost of one 4 KiB request over a unix socket, client included.
func BenchmarkRequests(b *testing.B) {
	for _, tc := range []struct {
		name  string
		cmd   uint16
		depth int
	}{
		{"write/qd1", nbdproto.CmdWrite, 1}, {"write/qd32", nbdproto.CmdWrite, 32},
		{"read/qd1", nbdproto.CmdRead, 1}, {"read/qd32", nbdproto.CmdRead, 32},
	} {
		b.Run(tc.name, func(b *testing.B) {
			ts, _ := memServer(b, 1<<20)
			r := ts.rawGo("disk", false)
			r.Conn.SetDeadline(time.Time{})
			payload, data := make([]byte, 4096), 0
			if tc.cmd == nbdproto.CmdRead {
				payload, data = nil, 4096
			}
			var msg []byte
			for i := range tc.depth {
				msg = append(append(msg, nbdclient.RequestHeader(tc.cmd, 0, uint64(i), uint64(i)*4096, 4096)...), payload...)
			}
			answer := make([]byte, tc.depth*(nbdproto.SimpleReplySize+data))
			b.ReportAllocs()
			for i := 0; i < b.N; i += tc.depth {
				check(b, r.Send(msg))
				if _, err := readFull(r, answer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
