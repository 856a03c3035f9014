package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

// TestRefusals: what does not reach the backend is answered with the right
// errno, changes nothing, and leaves the stream in step.
func TestRefusals(t *testing.T) {
	const size = 1 << 20
	type req struct {
		cmd, flags uint16
		off        uint64
		length     uint32
	}
	const (
		read, write, flush  = nbdproto.CmdRead, nbdproto.CmdWrite, nbdproto.CmdFlush
		trim, zeroes, cache = nbdproto.CmdTrim, nbdproto.CmdWriteZeroes, nbdproto.CmdCache
	)
	for _, tc := range []struct {
		name     string
		readOnly bool
		r        req
		want     uint32
	}{
		{"read one beyond the end", false, req{read, 0, size - 511, 512}, nbdproto.EINVAL},
		{"read at the end", false, req{read, 0, size, 1}, nbdproto.EINVAL},
		{"read with overflow", false, req{read, 0, 1<<64 - 512, 1024}, nbdproto.EINVAL},
		{"read at 2^63", false, req{read, 0, 1 << 63, 512}, nbdproto.EINVAL},
		{"read of 32 MiB and one", false, req{read, 0, 0, 32<<20 + 1}, nbdproto.EINVAL},
		{"read of 4 GiB", false, req{read, 0, 0, 0xffffffff}, nbdproto.EINVAL},
		{"write one beyond the end", false, req{write, 0, size - 511, 512}, nbdproto.ENOSPC},
		{"write at the end", false, req{write, nbdproto.CmdFlagFUA, size, 4096}, nbdproto.ENOSPC},
		{"write with overflow", false, req{write, 0, 1<<64 - 4096, 8192}, nbdproto.ENOSPC},
		{"large write beyond the end", false, req{write, 0, size - 1, 700_000}, nbdproto.ENOSPC},
		{"write larger than the device", false, req{write, 0, 0, 3 << 20}, nbdproto.ENOSPC},
		{"zeroes beyond the end", false, req{zeroes, 0, size - 4096, 8192}, nbdproto.ENOSPC},
		{"zeroes of 4 GiB", false, req{zeroes, 0, 0, 0xffffffff}, nbdproto.ENOSPC},
		{"trim beyond the end", false, req{trim, 0, size - 4096, 8192}, nbdproto.EINVAL},
		{"trim of 4 GiB", false, req{trim, 0, 4096, 0xffffffff}, nbdproto.EINVAL},
		{"empty read behind the end", false, req{read, 0, size + 1, 0}, nbdproto.EINVAL},
		{"flush with length", false, req{flush, 0, 0, 4096}, nbdproto.EINVAL},
		{"flush with offset", false, req{flush, 0, 1, 0}, nbdproto.EINVAL},
		{"block status", false, req{nbdproto.CmdBlockStatus, 0, 0, 4096}, nbdproto.EINVAL},
		{"resize", false, req{nbdproto.CmdResize, 0, 4096, 0}, nbdproto.EINVAL},
		{"cache, not offered", false, req{cache, 0, 0, 4096}, nbdproto.EINVAL},
		{"command 4711 with a length", false, req{4711, 0, 0, 4096}, nbdproto.EINVAL},
		{"fast zero, not offered", false, req{zeroes, nbdproto.CmdFlagFastZero, 0, 4096}, nbdproto.EINVAL},
		{"unknown flag on write", false, req{write, 1 << 9, 0, 4096}, nbdproto.EINVAL},
		{"no hole on write", false, req{write, nbdproto.CmdFlagNoHole, 0, 4096}, nbdproto.EINVAL},
		{"no hole on trim", false, req{trim, nbdproto.CmdFlagNoHole, 0, 4096}, nbdproto.EINVAL},
		{"df on write", false, req{write, nbdproto.CmdFlagDF, 0, 4096}, nbdproto.EINVAL},
		{"write, read-only", true, req{write, 0, 0, 4096}, nbdproto.EPERM},
		{"large write, read-only", true, req{write, 0, 0, 900_000}, nbdproto.EPERM},
		{"trim, read-only", true, req{trim, 0, 0, 4096}, nbdproto.EPERM},
		{"zeroes, read-only", true, req{zeroes, 0, 0, 4096}, nbdproto.EPERM},
	} {
		for _, structured := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/structured=%v", tc.name, structured), func(t *testing.T) {
				m := NewMemory(size)
				content := bytes.Repeat([]byte{0x5a}, size)
				check(t, m.Submit([]Op{{Len: size, Data: content}}))
				ts := startServer(t, Config{}, Export{Name: "disk", ReadOnly: tc.readOnly,
					Backend: plain{&hookBackend{Memory: m, submit: func([]Op) error { t.Error("Submit was called"); return nil }}}})
				r := ts.rawGo("disk", structured)
				msg := nbdclient.RequestHeader(tc.r.cmd, tc.r.flags, 42, tc.r.off, tc.r.length)
				if tc.r.cmd == write {
					msg = append(msg, make([]byte, tc.r.length)...)
				}
				check(t, r.Send(msg))
				rep := reply(t, r, 42, tc.want)
				if structured && len(rep.Text) < 10 {
					t.Errorf("error text %q", rep.Text)
				}
				inStep(t, r)
				got := make([]byte, size)
				check(t, m.ReadAt(got, 0))
				if !bytes.Equal(got, content) {
					t.Error("the device has changed")
				}
			})
		}
	}
}

// TestBrokenStream: where the next request cannot be found, the connection ends, with a reason in the log.
func TestBrokenStream(t *testing.T) {
	badMagic := nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 9, 0, 0)
	badMagic[0] ^= 1
	for _, tc := range []struct {
		name string
		send []byte
		log  string
	}{
		{"magic", badMagic, "bad request magic"},
		{"text", []byte("HELO example.org, this is not NBD\r\n"), "bad request magic"},
		{"write of 32 MiB and one", nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 9, 0, 32<<20+1), "impossible request"},
		{"write of 4 GiB", nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 9, 0, 0xffffffff), "impossible request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ts, _ := memServer(t, 1<<20)
			r := ts.rawGo("disk", false)
			// A good request in front of it is answered.
			check(t, r.Send(append(nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 8, 0, 0), tc.send...)))
			reply(t, r, 8, 0)
			closed(t, r)
			ts.waitOpen("disk", 0)
			if s := ts.log.String(); !strings.Contains(s, tc.log) || !strings.Contains(s, "level=WARN") || !strings.Contains(s, "export=disk") {
				t.Errorf("log: %s", s)
			}
		})
	}
}

// TestBackendErrors: each error of a backend reaches the client as an errno that NBD allows, for each command,
// and the connection lives on.
func TestBackendErrors(t *testing.T) {
	ctx := testContext(t)
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{errors.New("something"), syscall.EIO},
		{fmt.Errorf("disk: %w", syscall.EIO), syscall.EIO},
		{syscall.EBADF, syscall.EIO},
		{fmt.Errorf("log is full: %w", syscall.ENOSPC), syscall.ENOSPC},
		{syscall.EDQUOT, syscall.ENOSPC},
		{syscall.EFBIG, syscall.ENOSPC},
		{syscall.ENOMEM, syscall.ENOMEM},
		{syscall.EOPNOTSUPP, syscall.EINVAL},
		{syscall.EROFS, syscall.EPERM},
		{fmt.Errorf("not primary: %w", syscall.EPERM), syscall.EPERM},
		{fmt.Errorf("closing: %w", syscall.ESHUTDOWN), syscall.ESHUTDOWN},
		{net.ErrClosed, syscall.ESHUTDOWN},
		{errors.New(strings.Repeat("long text ü", 1000)), syscall.EIO},
	} {
		for _, simple := range []bool{false, true} {
			h := &hookBackend{Memory: NewMemory(1 << 20)}
			const (
				fail = iota
				failInline
				failWorker
				work
			)
			var mode atomic.Int32
			orNil := func() error {
				if mode.Load() == work {
					return nil
				}
				return tc.err
			}
			h.submit = func([]Op) error { return orNil() }
			h.sync = func(done func(error)) { done(orNil()) }
			h.read = func([]byte, int64) error { return orNil() }
			h.try = func(p []byte, _ int64) (bool, error) {
				p[0] = 99
				return mode.Load() == failInline, orNil()
			}
			ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
			c := ts.dial(nbdclient.Options{Export: "disk", Simple: simple})
			big := make([]byte, 300_000)
			for name, err := range map[string]error{
				"write":      c.Write(ctx, big[:4096], 0),
				"write fua":  c.Write(ctx, big[:4096], 0, nbdclient.FUA),
				"trim":       c.Trim(ctx, 0, 4096),
				"zeroes":     c.WriteZeroes(ctx, 0, 4096),
				"flush":      c.Flush(ctx),
				"large read": c.Read(ctx, big, 0), // through a worker
			} {
				var ne *nbdclient.Error
				if !errors.As(err, &ne) || ne.Errno != tc.want {
					t.Errorf("%v: %s: %v, want %v", tc.err, name, err, tc.want)
				} else if !simple && !strings.HasPrefix(tc.err.Error(), ne.Text) || !simple && ne.Text == "" {
					t.Errorf("%s: text %q", name, ne.Text)
				}
			}
			mode.Store(failInline)
			if err := c.Read(ctx, big[:4096], 0); !errors.Is(err, tc.want) {
				t.Errorf("%v: inline read: %v", tc.err, err)
			}
			mode.Store(failWorker)
			if err := c.Read(ctx, big[:4096], 0); !errors.Is(err, tc.want) {
				t.Errorf("%v: read by a worker: %v", tc.err, err)
			}
			mode.Store(work)
			if err := c.Read(ctx, big, 0); err != nil {
				t.Errorf("%v: after the errors: %v", tc.err, err)
			}
			c.Close()
			ts.Close()
		}
	}
}

func TestEmptyRequests(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(4096)}
	h.submit = func([]Op) error { t.Error("Submit was called"); return nil }
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	for _, structured := range []bool{false, true} {
		r := ts.rawGo("disk", structured)
		for _, cmd := range []uint16{nbdproto.CmdRead, nbdproto.CmdWrite, nbdproto.CmdTrim, nbdproto.CmdWriteZeroes, nbdproto.CmdCache} {
			for _, off := range []uint64{0, 4096} {
				check(t, r.Send(nbdclient.RequestHeader(cmd, 0, uint64(cmd), off, 0)))
				reply(t, r, uint64(cmd), 0)
			}
		}
		check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdCache, 0, 1, 0, 4096)))
		reply(t, r, 1, 0)
		inStep(t, r)
	}
}

// TestProgramOrder: in what arrives together, a write in front of a read is submitted first.
func TestProgramOrder(t *testing.T) {
	ts, _ := memServer(t, 1<<20)
	r := ts.rawGo("disk", false)
	var msg []byte
	for i := range 100 {
		off := uint64(i%7) * 512
		msg = append(msg, nbdclient.RequestHeader(nbdproto.CmdWrite, 0, uint64(2*i), off, 512)...)
		msg = append(msg, bytes.Repeat([]byte{byte(i)}, 512)...)
		if i >= 93 { // the last write of each place
			msg = append(msg, nbdclient.RequestHeader(nbdproto.CmdRead, 0, uint64(2*i+1), off, 512)...)
		}
	}
	go r.Send(msg)
	for range 107 {
		rep, err := r.ReadReply()
		check(t, err)
		if rep.Errno != 0 {
			t.Fatalf("reply %+v", rep)
		}
		if rep.Handle%2 == 1 {
			p := make([]byte, 512)
			if _, err := readFull(r, p); err != nil {
				t.Fatal(err)
			}
			if want := byte(rep.Handle / 2); p[0] != want || p[511] != want {
				t.Errorf("read behind write %d sees %d", want, p[0])
			}
		}
	}
}

// TestBatching: requests that arrive together reach the backend together, with their flags, in order.
func TestBatching(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	var mu sync.Mutex
	var calls [][]Op
	gate := make(chan struct{})
	h.submit = func(ops []Op) error {
		mu.Lock()
		calls = append(calls, append([]Op(nil), ops...))
		mu.Unlock()
		<-gate
		return h.Memory.Submit(ops)
	}
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", false)
	one := nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 1, 0, 4)
	check(t, r.Send(append(one, "aaaa"...)))
	testutil.WaitFor(t, patience, "the first Submit", func() bool { mu.Lock(); defer mu.Unlock(); return len(calls) == 1 })
	var msg []byte
	msg = append(append(msg, nbdclient.RequestHeader(nbdproto.CmdWrite, nbdproto.CmdFlagFUA, 2, 8, 4)...), "bbbb"...)
	msg = append(msg, nbdclient.RequestHeader(nbdproto.CmdTrim, 0, 3, 4096, 100)...)
	msg = append(msg, nbdclient.RequestHeader(nbdproto.CmdWriteZeroes, nbdproto.CmdFlagNoHole, 4, 8192, 200)...)
	msg = append(append(msg, nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 5, 12, 4)...), "cccc"...)
	check(t, r.Send(msg))
	close(gate)
	seen := map[uint64]bool{}
	for range 5 {
		rep, err := r.ReadReply()
		check(t, err)
		if rep.Errno != 0 || seen[rep.Handle] {
			t.Fatalf("reply %+v", rep)
		}
		seen[rep.Handle] = true
	}
	want := []Op{{Kind: OpWrite, Off: 8, Len: 4, FUA: true}, {Kind: OpTrim, Off: 4096, Len: 100},
		{Kind: OpZeroes, Off: 8192, Len: 200, NoHole: true}, {Kind: OpWrite, Off: 12, Len: 4}}
	mu.Lock()
	defer mu.Unlock()
	if len(calls) != 2 || len(calls[1]) != len(want) {
		t.Fatalf("%d calls of Submit, %+v", len(calls), calls)
	}
	for i, op := range calls[1] {
		if w := want[i]; op.Kind != w.Kind || op.Off != w.Off || op.Len != w.Len || op.FUA != w.FUA || op.NoHole != w.NoHole {
			t.Errorf("op %d is %+v, want %+v", i, op, w)
		}
	}
}

// TestFUAWaitsForSync: a plain write is acknowledged after Submit, FUA and FLUSH only
// after the callback, and FUA is valid with each command that changes something.
func TestFUAWaitsForSync(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	syncs := make(chan func(error), 10)
	h.sync = func(done func(error)) { syncs <- done }
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", false)
	fua := nbdproto.CmdFlagFUA
	for _, first := range [][]byte{
		append(nbdclient.RequestHeader(nbdproto.CmdWrite, fua, 1, 0, 4), "aaaa"...),
		nbdclient.RequestHeader(nbdproto.CmdTrim, fua, 1, 0, 4096),
		nbdclient.RequestHeader(nbdproto.CmdWriteZeroes, fua, 1, 0, 4096),
		nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 1, 0, 0),
	} {
		plain := append(nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 2, 0, 4), "bbbb"...)
		check(t, r.Send(append(first, plain...)))
		reply(t, r, 2, 0) // the later one first: the other waits
		if n := ts.InFlight("disk"); n != 1 {
			t.Errorf("%d in flight", n)
		}
		done := <-syncs
		go done(nil)
		reply(t, r, 1, 0)
	}
	// Reads and flushes with FUA are legal.
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, fua, 3, 0, 0)))
	reply(t, r, 3, 0)
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdFlush, fua, 4, 0, 0)))
	(<-syncs)(fmt.Errorf("the log: %w", syscall.ENOSPC))
	reply(t, r, 4, nbdproto.ENOSPC)
}

// TestReadsDoNotWaitForReads: a read that waits for the disk holds up neither writes nor other reads.
func TestReadsDoNotWaitForReads(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	gate := make(chan struct{})
	h.try = func(p []byte, off int64) (bool, error) {
		if off == 0 {
			return false, nil
		}
		return h.Memory.TryReadAt(p, off)
	}
	h.read = func(p []byte, off int64) error {
		<-gate
		return h.Memory.ReadAt(p, off)
	}
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", true)
	check(t, h.Submit([]Op{{Off: 0, Len: 4, Data: []byte("slow")}, {Off: 512, Len: 4, Data: []byte("fast")}}))
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, nbdproto.CmdFlagDF, 1, 0, 4), nbdclient.RequestHeader(nbdproto.CmdRead, 0, 2, 512, 4)))
	if rep := reply(t, r, 2, 0); string(rep.Payload[8:]) != "fast" {
		t.Errorf("payload %q", rep.Payload)
	}
	check(t, r.Send(append(nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 3, 512, 4), "more"...)))
	reply(t, r, 3, 0)
	close(gate)
	if rep := reply(t, r, 1, 0); string(rep.Payload[8:]) != "slow" || rep.Type != nbdproto.ChunkOffsetData || !rep.Done() {
		t.Errorf("reply %+v", rep)
	}
}

// TestDisconnectAnswersEverything: DISC is carried out after the requests in front of it.
func TestDisconnectAnswersEverything(t *testing.T) {
	h := &hookBackend{Memory: NewMemory(1 << 20)}
	syncs := make(chan func(error), 1)
	h.sync = func(done func(error)) { syncs <- done }
	gate := make(chan struct{})
	h.try = func([]byte, int64) (bool, error) { return false, nil }
	h.read = func(p []byte, off int64) error { <-gate; return h.Memory.ReadAt(p, off) }
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", false)
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdFlush, 0, 1, 0, 0), nbdclient.RequestHeader(nbdproto.CmdRead, 0, 2, 0, 1),
		nbdclient.RequestHeader(nbdproto.CmdDisc, 0, 3, 0, 0), []byte("garbage after DISC is not looked at")))
	done := <-syncs
	if n := ts.OpenCount("disk"); n != 1 {
		t.Errorf("open count %d with requests in flight", n)
	}
	done(nil)
	reply(t, r, 1, 0)
	close(gate)
	reply(t, r, 2, 0)
	if rest, err := io.ReadAll(r.Conn); len(rest) != 1 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("rest % x, %v", rest, err)
	}
	ts.waitOpen("disk", 0)
	if s := ts.log.String(); strings.Contains(s, "level=WARN") {
		t.Errorf("log: %s", s)
	}
}

// TestGrowingDevice: the size is asked for each request.
func TestGrowingDevice(t *testing.T) {
	var mu sync.Mutex
	size := int64(4096)
	h := &hookBackend{Memory: NewMemory(1 << 20), size: func() int64 { mu.Lock(); defer mu.Unlock(); return size }}
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	c := ts.dial(nbdclient.Options{Export: "disk"})
	ctx := testContext(t)
	if err := c.Write(ctx, make([]byte, 512), 4096); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write beyond the end: %v", err)
	}
	mu.Lock()
	size = 8192
	mu.Unlock()
	check(t, c.Write(ctx, make([]byte, 512), 4096))
}

// TestClientLeavesAFlush: a FLUSH may wait for other nodes, for ever. Its client may go nevertheless, the server can
// end, and the answer that comes at last meets nobody.
func TestClientLeavesAFlush(t *testing.T) {
	var held []func(error)
	var mu sync.Mutex
	b := &hookBackend{Memory: NewMemory(1 << 20), sync: func(done func(error)) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, done)
	}}
	ts := startServer(t, Config{DrainTimeout: 50 * time.Millisecond}, Export{Name: "disk", Backend: b})
	for i := range 3 {
		r := ts.rawGo("disk", true)
		check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdFlush, 0, uint64(i), 0, 0)))
		testutil.WaitFor(t, 10*time.Second, "the FLUSH waits", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(held) == i+1
		})
		ts.waitOpen("disk", 1)
		r.Close()
		ts.waitOpen("disk", 0)
	}
	for _, done := range held {
		done(nil)
	}
}
