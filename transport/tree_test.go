package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"
)

func numbered(from, n int) (list []TreeEntry) {
	for i := range n {
		list = append(list, TreeEntry{Path: fmt.Sprintf("resource-r/link-%d", from+i), Value: "v", Stamp: int64(from + i)})
	}
	return list
}

// treeCopy receives a tree stream.
type treeCopy struct {
	mu         sync.Mutex
	entries    []TreeEntry
	epoch, seq uint64
	resyncs    int
	calls      int
}

func (c *treeCopy) merge(entries []TreeEntry, epoch, seq uint64, resync bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.entries = append(c.entries, entries...)
	c.epoch, c.seq = epoch, seq
	if resync {
		c.resyncs++
	}
	return nil
}

func (c *treeCopy) state() (n int, seq uint64, resyncs int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.seq, c.resyncs
}

func TestTreeStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval = time.Second
		w := newWorld(t, cfg)
		w.h.add(numbered(0, 10)...)
		got := &treeCopy{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		follow := func(ctx context.Context) {
			go func() { done <- w.peer.TreeStream(ctx, w.h.epoch, got.seq, got.merge) }()
			time.Sleep(time.Millisecond)
		}
		follow(ctx)
		if n, seq, _ := got.state(); n != 10 || seq != 10 {
			t.Fatalf("at the start: %d entries, seq %d", n, seq)
		}
		time.Sleep(30 * time.Minute) // heartbeats only
		w.h.add(numbered(10, 5000)...)
		time.Sleep(time.Second)
		if n, seq, _ := got.state(); n != 5010 || seq != 5010 {
			t.Fatalf("after changes: %d entries, seq %d", n, seq)
		}
		if !reflect.DeepEqual(got.entries, w.h.changes) {
			t.Error("entries differ")
		}
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("end by the caller: %v", err)
		}
		// Away for too long: the ring has been overrun. The stream says so and goes on.
		w.h.add(numbered(5010, 100)...)
		w.h.change(func() { w.h.oldest = 5050 })
		ctx, cancel = context.WithCancel(t.Context())
		follow(ctx)
		if n, seq, resyncs := got.state(); n != 5010 || seq != 5110 || resyncs != 1 {
			t.Fatalf("after an overrun: %d entries, seq %d, %d resyncs", n, seq, resyncs)
		}
		w.h.add(numbered(5110, 1)...)
		time.Sleep(time.Second)
		if n, seq, _ := got.state(); n != 5011 || seq != 5111 {
			t.Fatalf("after the resync: %d entries, seq %d", n, seq)
		}
		// The peer restarts: another epoch.
		w.h.change(func() { w.h.epoch, w.h.changes, w.h.oldest = 77, numbered(0, 3), 0 })
		time.Sleep(time.Second)
		if _, seq, resyncs := got.state(); got.epoch != 77 || seq != 3 || resyncs != 2 {
			t.Fatalf("after a restart: epoch %d seq %d, %d resyncs", got.epoch, seq, resyncs)
		}
		cancel()
		<-done
		w.closeNow()
	})
}

func TestTreeStreamHalfOpenAndSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval = time.Second
		w := newWorld(t, cfg)
		nop := func([]TreeEntry, uint64, uint64, bool) error { return nil }
		done := make(chan error, 2)
		go func() { done <- w.peer.TreeStream(t.Context(), 1, 0, nop) }()
		time.Sleep(time.Minute)
		w.net.SetLink("10.0.0.1", "10.0.0.2", faultnet.Link{Silent: true})
		begin := time.Now()
		if err := <-done; !errors.Is(err, ErrTimeout) || time.Since(begin) > 4*time.Second {
			t.Errorf("half open: %v after %v", err, time.Since(begin))
		}
		w.net.Heal()
		go func() { done <- w.peer.TreeStream(t.Context(), 1, 0, nop) }()
		time.Sleep(time.Second)
		go func() { done <- w.peer.TreeStream(t.Context(), 1, 0, nop) }()
		if err := <-done; !errors.Is(err, ErrSuperseded) {
			t.Errorf("the older of two streams: %v", err)
		}
		w.server.Close()
		if err := <-done; err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrCorrupt) {
			t.Errorf("server closed: %v", err)
		}
		w.closeNow()
	})
}

// A handler that wakes the stream without news costs a few calls a second, not
// a core.
func TestTreeStreamSpuriousWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HeartbeatInterval = time.Second
		h := &spurious{fakeHandler: newFakeHandler()}
		n := faultnet.New(1)
		cfg.Dial = n.Host("10.0.0.2").Dial
		l, err := n.Host("10.0.0.1").Listen("tcp", serverAddr)
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(testIdentity(t, testSecret(1), "hosta"), h, cfg)
		go s.Serve(l)
		p := NewPeer(testIdentity(t, testSecret(1), "hostb"), "hosta", serverAddr, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		p.TreeStream(ctx, h.epoch, 0, func([]TreeEntry, uint64, uint64, bool) error { return nil })
		p.Close()
		s.Close()
		if h.calls > 600 || h.calls == 0 {
			t.Errorf("%d calls of TreeSince in a minute", h.calls)
		}
	})
}

type spurious struct {
	*fakeHandler
	calls int
}

func (h *spurious) TreeWait(context.Context, string, uint64, uint64) error { return nil }

func (h *spurious) TreeSince(ctx context.Context, peer string, epoch, seq uint64) ([]TreeEntry, uint64, uint64, bool, error) {
	h.calls++
	return h.fakeHandler.TreeSince(ctx, peer, epoch, seq)
}

func TestTreeRequests(t *testing.T) {
	w := newRealWorld(t, testConfig())
	ctx := t.Context()
	odd := []TreeEntry{
		{"primary", "hosta", 1},
		{"a/b/c", "\xff\xfe not utf-8 \x01", 1<<62 + 1},
		{"dir/\xc3(", "<&>\"\\\u2028", 3},
		{"x", strings.Repeat("\x01", MaxValue), 4},
	}
	w.h.add(odd...)
	entries, epoch, seq, ok, err := w.peer.TreeSince(ctx, w.h.epoch, 0)
	if err != nil || !ok || epoch != w.h.epoch || seq != 4 || !reflect.DeepEqual(entries, odd) {
		t.Errorf("since: %v %d %d %v %v", entries, epoch, seq, ok, err)
	}
	if entries, epoch, seq, ok, err := w.peer.TreeSince(ctx, 5, 0); err != nil || ok || len(entries) != 0 || epoch != w.h.epoch || seq != 4 {
		t.Errorf("since another epoch: %v %d %d %v %v", entries, epoch, seq, ok, err)
	}
	root, dirs, epoch, seq, err := w.peer.TreeDigests(ctx)
	wroot, wdirs, wepoch, wseq, _ := w.h.TreeDigests(ctx, "")
	if err != nil || root != wroot || !reflect.DeepEqual(dirs, wdirs) || epoch != wepoch || seq != wseq {
		t.Errorf("digests: %v %v %d %d %v", root, dirs, epoch, seq, err)
	}
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("resource-%d", i))
	}
	if list, err := w.peer.TreeDirs(ctx, many); err != nil || len(list) != 5000 || list[4999].Path != "resource-4999/x" {
		t.Errorf("dirs: %d entries, %v", len(list), err)
	}
	if _, err := w.peer.TreeDirs(ctx, []string{"missing"}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "directory missing") {
		t.Errorf("missing directory: %v", err)
	}
	if _, err := w.peer.TreeDirs(ctx, []string{"../etc"}); !errors.Is(err, ErrRefused) {
		t.Errorf("bad directory: %v", err)
	}
	if err := w.peer.Nudge(ctx); err != nil || len(w.h.nudges) != 1 || w.h.nudges[0] != "hostb" {
		t.Errorf("nudge: %v %v", w.h.nudges, err)
	}
}

func TestHello(t *testing.T) {
	w := newRealWorld(t, testConfig())
	in := Hello{Node: "hostb", UUID: "(any)", Addr: "10.0.0.2:7777", Epoch: 1<<64 - 1, Seq: 5, Version: "1.2"}
	w.h.hello = func(peer string, h Hello) (Hello, error) {
		want := in
		want.Protocol = Protocol
		if peer != "hostb" || h != want {
			t.Errorf("hello of %s: %+v", peer, h)
		}
		return Hello{Node: "hosta", UUID: testUUID, Epoch: 9}, nil
	}
	out, err := w.peer.Hello(t.Context(), in)
	if err != nil || out != (Hello{Node: "hosta", UUID: testUUID, Epoch: 9, Protocol: Protocol}) {
		t.Errorf("%+v %v", out, err)
	}
	w.h.hello = func(string, Hello) (Hello, error) { return Hello{}, errors.New("uuid mismatch: mine is X") }
	if _, err := w.peer.Hello(t.Context(), in); err == nil || !strings.Contains(err.Error(), "hello from hosta") || !strings.Contains(err.Error(), "uuid mismatch: mine is X") {
		t.Errorf("refusal: %v", err)
	}
	in.Node = "hostc"
	if _, err := w.peer.Hello(t.Context(), in); !errors.Is(err, ErrRefused) {
		t.Errorf("hello under another name: %v", err)
	}
}

// P13: a bad entry is refused by name, the others are applied.
func TestBadEntriesAreRefusedOneByOne(t *testing.T) {
	bad := []TreeEntry{
		{"", "v", 1}, {"/abs", "v", 1}, {"a/../b", "v", 1}, {"a//b", "v", 1}, {"a/", "v", 1}, {".", "v", 1},
		{"a\nb", "v", 1}, {"a\x00b", "v", 1}, {"v", "", 1}, {"v", "a\x00b", 1}, {"v", strings.Repeat("x", MaxValue+1), 1},
		{strings.Repeat("x", MaxPath+1), "v", 1}, {"v", "v", -1}, {strings.Repeat("d/", maxDepth) + "x", "v", 1}, {strings.Repeat("n", 256), "v", 1},
	}
	good := TreeEntry{"resource-r/primary", "hosta", 1}
	list := append([]TreeEntry{good}, append(bad, good)...)
	var buf bytes.Buffer
	for _, line := range treeLines(list, 0, 0, 1, 2) {
		if err := encodeLine(&buf, line); err != nil {
			t.Fatal(err)
		}
	}
	refused := 0
	lr := newLineReader(&buf, func(err error) {
		refused++
		if !errors.Is(err, ErrRefused) {
			t.Errorf("refused with %v", err)
		}
	})
	_, entries, err := lr.next()
	if err != nil || len(entries) != 2 || entries[0] != good || entries[1] != good || refused != len(bad) {
		t.Errorf("%d accepted, %d of %d refused, %v", len(entries), refused, len(bad), err)
	}
}

// Lines stay below the receiver's limit whatever the entries are, and only the
// last one moves the position.
func TestTreeLinesAreBounded(t *testing.T) {
	var list []TreeEntry
	for i := range 100 {
		list = append(list, TreeEntry{fmt.Sprintf("d/%d", i), strings.Repeat("\x02", MaxValue), 5})
	}
	lines := treeLines(list, 1, 10, 2, 20)
	total := 0
	for i, line := range lines {
		var buf bytes.Buffer
		if err := encodeLine(&buf, line); err != nil {
			t.Fatal(err)
		}
		if buf.Len() > maxLine {
			t.Fatalf("line of %d bytes", buf.Len())
		}
		total += len(line.Entries)
		last := i == len(lines)-1
		if last != (line.Epoch == 2 && line.Seq == 20) || !last && (line.Epoch != 1 || line.Seq != 10) {
			t.Errorf("line %d of %d has position %d,%d", i, len(lines), line.Epoch, line.Seq)
		}
	}
	if total != len(list) || len(lines) < 2 {
		t.Errorf("%d entries in %d lines", total, len(lines))
	}
	if lines := treeLines(nil, 1, 10, 2, 20); len(lines) != 1 || lines[0].Seq != 20 {
		t.Errorf("no entries: %+v", lines)
	}
}

func TestTreeLineDamage(t *testing.T) {
	var buf bytes.Buffer
	encodeLine(&buf, treeLines(numbered(0, 50), 0, 0, 1, 2)[0])
	good := buf.Bytes()
	for _, c := range []struct {
		name string
		in   []byte
		is   error
	}{
		{"empty", nil, io.EOF},
		{"cut", good[:len(good)-1], ErrTruncated},
		{"cut early", good[:1], ErrTruncated},
		{"garbage", []byte("GET / HTTP/1.1\n"), ErrCorrupt},
		{"unknown type", []byte(`{"type":"surprise"}` + "\n"), ErrCorrupt},
		{"no type", []byte("{}\n"), ErrCorrupt},
		{"too long", bytes.Repeat([]byte("x"), maxLine+100<<10), ErrCorrupt},
		{"number too large", []byte(`{"type":"entries","seq":"99999999999999999999999"}` + "\n"), ErrCorrupt},
	} {
		_, _, err := newLineReader(bytes.NewReader(c.in), func(error) {}).next()
		if !errors.Is(err, c.is) {
			t.Errorf("%s: %v, want %v", c.name, err, c.is)
		}
	}
}

func FuzzTreeLine(f *testing.F) {
	var buf bytes.Buffer
	encodeLine(&buf, treeLines(append(numbered(0, 3), TreeEntry{"a/\xff", "\xfe", 3}), 0, 0, 1, 2)[0])
	f.Add(buf.Bytes())
	f.Add([]byte(`{"type":"error","code":"busy","error":"x"}` + "\n"))
	f.Add([]byte(`{"type":"entries","entries":[{"path":"../x","value":"","stamp":"-1"}]}` + "\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		lr := newLineReader(bytes.NewReader(in), func(err error) {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("refused with %v", err)
			}
		})
		for {
			line, entries, err := lr.next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTruncated) {
					t.Fatalf("unclassified error %v", err)
				}
				return
			}
			if line.Type == lineError {
				_ = line.err().Error()
			}
			for _, e := range entries {
				if e.Path == "" || strings.HasPrefix(e.Path, "/") || strings.Contains("/"+e.Path+"/", "/../") || len(e.Value) > MaxValue || e.Value == "" || strings.ContainsRune(e.Value, 0) {
					t.Fatalf("accepted %q -> %q", e.Path, e.Value)
				}
				// What was accepted survives a round trip.
				b, err := json.Marshal(toWire(e))
				if err != nil {
					t.Fatal(err)
				}
				var w wireEntry
				if err := json.Unmarshal(b, &w); err != nil {
					t.Fatal(err)
				}
				if again, err := w.entry(); err != nil || again != e {
					t.Fatalf("%+v became %+v, %v", e, again, err)
				}
			}
		}
	})
}
