package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// patience bounds everything that ought to happen at once.
const patience = 30 * time.Second

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testServer is a server on a unix socket.
type testServer struct {
	*Server
	t    testing.TB
	sock string
	log  *logBuffer
}

func startServer(t testing.TB, cfg Config, exports ...Export) *testServer {
	t.Helper()
	ts := &testServer{t: t, log: &logBuffer{}, sock: filepath.Join(t.TempDir(), "s")}
	cfg.Log = ts.log.logger()
	ts.Server = NewServer(cfg)
	for _, e := range exports {
		if err := ts.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", ts.sock)
	if err != nil {
		t.Fatal(err)
	}
	ts.listen(func() error { return ts.Serve(l) })
	return ts
}

// listen runs an accept loop until the end of the test.
func (ts *testServer) listen(serve func() error) {
	done := make(chan error, 1)
	go func() { done <- serve() }()
	ts.t.Cleanup(func() {
		ts.Close()
		if err := <-done; err != nil {
			ts.t.Errorf("Serve: %v", err)
		}
	})
}

// memServer serves one export "disk" of size bytes in memory.
func memServer(t testing.TB, size int64) (*testServer, *Memory) {
	m := NewMemory(size)
	return startServer(t, Config{}, Export{Name: "disk", Description: "a test disk", Backend: m}), m
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func (ts *testServer) dial(o nbdclient.Options) *nbdclient.Client {
	ts.t.Helper()
	o.Network, o.Address = "unix", ts.sock
	c, err := nbdclient.Dial(testContext(ts.t), o)
	if err != nil {
		ts.t.Fatal(err)
	}
	ts.t.Cleanup(func() { c.Close() })
	return c
}

// raw connects without a handshake.
func (ts *testServer) raw() *nbdclient.Raw {
	ts.t.Helper()
	r, err := nbdclient.DialRaw(testContext(ts.t), "unix", ts.sock)
	if err != nil {
		ts.t.Fatal(err)
	}
	r.Conn.SetDeadline(time.Now().Add(patience))
	ts.t.Cleanup(func() { r.Close() })
	return r
}

// rawGo connects to an export.
func (ts *testServer) rawGo(export string, structured bool) *nbdclient.Raw {
	ts.t.Helper()
	r := ts.raw()
	if _, err := r.Go(export, structured); err != nil {
		ts.t.Fatal(err)
	}
	return r
}

func (ts *testServer) waitOpen(export string, want int) {
	ts.t.Helper()
	testutil.WaitFor(ts.t, patience, "open count", func() bool { return ts.OpenCount(export) == want })
}

// check fails the test on an error.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reply reads a reply and checks handle and errno.
func reply(t testing.TB, r *nbdclient.Raw, handle uint64, errno uint32) nbdclient.Reply {
	t.Helper()
	rep, err := r.ReadReply()
	if err != nil {
		t.Fatalf("reply to %d: %v", handle, err)
	}
	if rep.Handle != handle || rep.Errno != errno {
		t.Fatalf("reply to %d with errno %d %q, want %d with %d", rep.Handle, rep.Errno, rep.Text, handle, errno)
	}
	return rep
}

// inStep proves that the server still understands the stream.
func inStep(t testing.TB, r *nbdclient.Raw) {
	t.Helper()
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 0xfeed, 0, 0)))
	reply(t, r, 0xfeed, 0)
}

// closed proves that the server closed the connection.
func closed(t testing.TB, r *nbdclient.Raw) {
	t.Helper()
	var p [1]byte
	n, err := r.Conn.Read(p[:])
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("read %d bytes, %v; want a closed connection", n, err)
	}
}

// pattern is n pseudo-random bytes.
func pattern(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
	}
	return p[:n]
}

// plain hides that a backend is a SparseBackend.
type plain struct{ Backend }

// hookBackend is a Memory with some methods replaced.
type hookBackend struct {
	*Memory
	size   func() int64
	read   func(p []byte, off int64) error
	try    func(p []byte, off int64) (bool, error)
	submit func(ops []Op) error
	sync   func(done func(error))
}

func (h *hookBackend) Size() int64 {
	if h.size != nil {
		return h.size()
	}
	return h.Memory.Size()
}

func (h *hookBackend) ReadAt(p []byte, off int64) error {
	if h.read != nil {
		return h.read(p, off)
	}
	return h.Memory.ReadAt(p, off)
}

func (h *hookBackend) TryReadAt(p []byte, off int64) (bool, error) {
	if h.try != nil {
		return h.try(p, off)
	}
	return h.Memory.TryReadAt(p, off)
}

func (h *hookBackend) Submit(ops []Op) error {
	if h.submit != nil {
		return h.submit(ops)
	}
	return h.Memory.Submit(ops)
}

func (h *hookBackend) Sync(done func(error)) {
	if h.sync != nil {
		h.sync(done)
		return
	}
	h.Memory.Sync(done)
}

func (h *hookBackend) SyncNow() (done bool, err error) { return true, syncNow(h.Sync) }

// syncNow is SyncNow made of Sync.
func syncNow(start func(func(error))) error {
	done := make(chan error, 1)
	start(func(err error) { done <- err })
	return <-done
}
