package transport

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/faultnet"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testSecret is fixed, so that keys in golden values stay the same.
func testSecret(b byte) Secret {
	s := make(Secret, SecretSize)
	for i := range s {
		s[i] = b + byte(i)
	}
	return s
}

func testIdentity(t testing.TB, secret Secret, node string) *Identity {
	t.Helper()
	id, err := NewIdentity(secret, node, filepath.Join(t.TempDir(), "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// logText collects log lines.
type logText struct {
	mu    sync.Mutex
	lines []string
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *logText) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *logText) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testConfig has intervals of milliseconds.
func testConfig() Config {
	return Config{
		Log: discard(), HeartbeatInterval: 20 * time.Millisecond, DialTimeout: 2 * time.Second,
		HandshakeTimeout: 2 * time.Second, RequestTimeout: 2 * time.Second, WriteTimeout: time.Second,
	}
}

// world is a server of node hosta and a peer object on hostb that connects to it.
type world struct {
	h      *fakeHandler
	server *Server
	peer   *Peer
	net    *faultnet.Network // nil with real sockets
}

const serverAddr = "10.0.0.1:7778"

// newWorld runs over faultnet.
func newWorld(t testing.TB, cfg Config) *world {
	n := faultnet.New(42)
	cfg.Dial = n.Host("10.0.0.2").Dial
	l, err := n.Host("10.0.0.1").Listen("tcp", serverAddr)
	if err != nil {
		t.Fatal(err)
	}
	w := serveWorld(t, cfg, l)
	w.net = n
	return w
}

// newRealWorld runs over TCP, where a loaded machine may be silent for a while.
func newRealWorld(t testing.TB, cfg Config) *world {
	if cfg.HeartbeatInterval < 500*time.Millisecond {
		cfg.HeartbeatInterval = 500 * time.Millisecond
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveWorld(t, cfg, l)
}

func serveWorld(t testing.TB, cfg Config, l net.Listener) *world {
	t.Helper()
	w := &world{h: newFakeHandler()}
	w.server = NewServer(testIdentity(t, testSecret(1), "hosta"), w.h, cfg)
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(l) }()
	w.peer = NewPeer(testIdentity(t, testSecret(1), "hostb"), "hosta", l.Addr().String(), cfg)
	t.Cleanup(func() {
		w.peer.Close()
		w.server.Close()
		if err := <-done; err != ErrClosed {
			t.Errorf("Serve returned %v, want ErrClosed", err)
		}
		if n := w.h.open.Load(); n != 0 {
			t.Errorf("%d log sources were not closed", n)
		}
	})
	return w
}

// fakeHandler keeps a tree, logs and a device in memory.
type fakeHandler struct {
	mu       sync.Mutex
	wake     chan struct{}
	epoch    uint64
	changes  []TreeEntry // change i has seq i+1
	oldest   uint64      // changes up to here are forgotten
	logs     map[string]*fakeLog
	device   []byte
	end      Position
	hello    func(peer string, h Hello) (Hello, error)
	nudges   []string
	received []string
	slow     time.Duration // for range reads
	open     atomic.Int64
}

func newFakeHandler() *fakeHandler {
	return &fakeHandler{wake: make(chan struct{}), epoch: 1 << 63, logs: map[string]*fakeLog{}}
}

func (h *fakeHandler) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *fakeHandler) add(entries ...TreeEntry) {
	h.change(func() { h.changes = append(h.changes, entries...) })
}

func (h *fakeHandler) Hello(_ context.Context, peer string, in Hello) (Hello, error) {
	if h.hello != nil {
		return h.hello(peer, in)
	}
	return Hello{Node: "hosta", UUID: in.UUID, Epoch: h.epoch, Seq: uint64(len(h.changes)), Version: "test"}, nil
}

func (h *fakeHandler) TreeSince(_ context.Context, _ string, epoch, seq uint64) ([]TreeEntry, uint64, uint64, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := uint64(len(h.changes))
	if epoch != h.epoch || seq < h.oldest || seq > now {
		return nil, h.epoch, now, false, nil
	}
	return slices.Clone(h.changes[seq:]), h.epoch, now, true, nil
}

func (h *fakeHandler) TreeWait(ctx context.Context, _ string, epoch, seq uint64) error {
	for {
		h.mu.Lock()
		news, wake := epoch != h.epoch || seq != uint64(len(h.changes)), h.wake
		h.mu.Unlock()
		if news {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *fakeHandler) TreeDigests(context.Context, string) (root [16]byte, dirs map[string][16]byte, epoch, seq uint64, err error) {
	return [16]byte{1, 2}, map[string][16]byte{"": {3}, "resource-r": {4}, "resource-r/todo-hosta": {5}}, h.epoch, 7, nil
}

func (h *fakeHandler) TreeDirs(_ context.Context, _ string, dirs []string) (out []TreeEntry, err error) {
	for _, d := range dirs {
		if d == "missing" {
			return nil, fmt.Errorf("directory %s: %w", d, fs.ErrNotExist)
		}
		out = append(out, TreeEntry{Path: d + "/x", Value: "v", Stamp: 1})
	}
	return out, nil
}

func (h *fakeHandler) Received(_ context.Context, peer, resource, log string, length int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.received = append(h.received, fmt.Sprintf("%s %s %s %d", peer, resource, log, length))
	return nil
}

func (h *fakeHandler) Nudge(_ context.Context, peer string) error {
	h.change(func() { h.nudges = append(h.nudges, peer) })
	return nil
}

func (h *fakeHandler) ReadRange(ctx context.Context, _, resource string, off int64, p []byte) (Position, error) {
	if resource != "r" {
		return Position{}, fmt.Errorf("resource %s: %w", resource, fs.ErrNotExist)
	}
	if h.slow > 0 {
		if err := sleep(ctx, h.slow); err != nil {
			return Position{}, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := copy(p, h.device[min(off, int64(len(h.device))):]); n < len(p) {
		return Position{}, fmt.Errorf("device of %d bytes ends before %d", len(h.device), off+int64(len(p)))
	}
	return h.end, nil
}

func (h *fakeHandler) Digests(ctx context.Context, peer, resource string, off, length, chunk int64) (out [][32]byte, pos Position, err error) {
	for ; length > 0; length, off = length-chunk, off+chunk {
		p := make([]byte, min(chunk, length))
		if pos, err = h.ReadRange(ctx, peer, resource, off, p); err != nil {
			return nil, pos, err
		}
		out = append(out, sha256.Sum256(p))
	}
	return out, pos, nil
}

func (h *fakeHandler) OpenLog(_ context.Context, _, resource, log string) (LogSource, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.logs[resource+"/"+log]
	if l == nil {
		return nil, fmt.Errorf("log %s of %s: %w", log, resource, fs.ErrNotExist)
	}
	h.open.Add(1)
	return &fakeSource{fakeLog: l, h: h}, nil
}

const testLog = "log-000000001-hosta"

// log creates a log of resource r with some durable content.
func (h *fakeHandler) log(content []byte) *fakeLog {
	l := &fakeLog{data: content, durable: int64(len(content)), wake: make(chan struct{})}
	h.change(func() { h.logs["r/"+testLog] = l })
	return l
}

// fakeLog is a logfile. Bytes beyond durable can be read, as in a real file.
type fakeLog struct {
	mu      sync.Mutex
	wake    chan struct{}
	data    []byte
	durable int64
	lie     int64 // added to the durable length that Wait reports
	sealed  bool
	fail    error
}

func (l *fakeLog) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.wake)
	l.wake = make(chan struct{})
}

type fakeSource struct {
	*fakeLog
	h    *fakeHandler
	once sync.Once
}

func (s *fakeSource) Close() error {
	s.once.Do(func() { s.h.open.Add(-1) })
	return nil
}

func (l *fakeLog) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if off > int64(len(l.data)) {
		return 0, io.EOF
	}
	n := copy(p, l.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *fakeLog) Wait(ctx context.Context, beyond int64) (int64, bool, error) {
	for {
		l.mu.Lock()
		durable, sealed, err, wake := l.durable+l.lie, l.sealed, l.fail, l.wake
		l.mu.Unlock()
		if err != nil {
			return 0, false, err
		}
		if durable > beyond || sealed || durable < beyond {
			return durable, sealed, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, false, ctx.Err()
		}
	}
}
