package nbdclient_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mars/device/nbd"
	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gateBackend holds up syncs until they are let through.
type gateBackend struct {
	*nbd.Memory
	gate atomic.Pointer[chan struct{}]
}

func (g *gateBackend) Sync(done func(error)) {
	gate := g.gate.Load()
	if gate == nil {
		done(nil)
		return
	}
	go func() {
		<-*gate
		done(nil)
	}()
}

func (g *gateBackend) SyncNow() (done bool, err error) {
	if gate := g.gate.Load(); gate != nil {
		<-*gate
	}
	return true, nil
}

func serve(t testing.TB, network string, exports ...nbd.Export) (srv *nbd.Server, address string) {
	t.Helper()
	address = "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	check(t, err)
	srv = nbd.NewServer(nbd.Config{Log: slog.New(slog.DiscardHandler)})
	for _, e := range exports {
		check(t, srv.Add(e))
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		check(t, <-done)
	})
	return srv, l.Addr().String()
}

func dial(t testing.TB, o nbdclient.Options) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(context.Background(), o)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClient(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, simple := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			srv, addr := serve(t, network, nbd.Export{Name: "a", Description: "first", Backend: nbd.NewMemory(1 << 20)}, nbd.Export{Name: "b", Backend: nbd.NewMemory(512)})
			list, err := nbdclient.List(ctx, network, addr)
			check(t, err)
			if len(list) != 2 || list[0].Name != "a" || list[0].Description != "first" || list[1].Name != "b" {
				t.Errorf("list %+v", list)
			}
			c := dial(t, nbdclient.Options{Network: network, Address: addr, Export: "a", Connections: 3, Simple: simple})
			if c.Size() != 1<<20 || c.Connections() != 3 || srv.OpenCount("a") != 3 || c.Info().Structured == simple || !c.Info().Has(nbdproto.TransFUA|nbdproto.TransTrim) {
				t.Errorf("info %+v, %d connections, server has %d", c.Info(), c.Connections(), srv.OpenCount("a"))
			}
			data := bytes.Repeat([]byte("data"), 1000)
			check(t, c.Write(ctx, data, 100, nbdclient.FUA))
			got := make([]byte, len(data))
			check(t, c.Read(ctx, got, 100, nbdclient.DF&boolFlag(!simple)))
			if !bytes.Equal(got, data) {
				t.Error("wrong data")
			}
			check(t, c.WriteZeroes(ctx, 100, 10, nbdclient.NoHole))
			check(t, c.Trim(ctx, 110, 10))
			check(t, c.Flush(ctx))
			if _, err := c.ReadAt(got[:24], 100); err != nil || !bytes.Equal(got[:24], append(make([]byte, 20), "data"...)) {
				t.Errorf("read %q, %v", got[:24], err)
			}
			if n, err := c.WriteAt([]byte("x"), 0); n != 1 || err != nil {
				t.Errorf("WriteAt: %d, %v", n, err)
			}
			var ne *nbdclient.Error
			err = c.Write(ctx, data, 1<<20-1)
			if !errors.As(err, &ne) || !errors.Is(err, syscall.ENOSPC) || ne.Off != 1<<20-1 || ne.Len != 4000 || (ne.Text == "") != simple {
				t.Errorf("write beyond the end: %v", err)
			}
			if n, err := c.ReadAt(got, 1<<20); n != 0 || !errors.Is(err, syscall.EINVAL) {
				t.Errorf("read beyond the end: %d, %v", n, err)
			}
			check(t, c.Close())
			check(t, c.Close())
			if err := c.Flush(ctx); !errors.Is(err, nbdclient.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	}
}

func boolFlag(on bool) nbdclient.Flag {
	if on {
		return 0xffff
	}
	return 0
}

func TestDialErrors(t *testing.T) {
	_, addr := serve(t, "unix", nbd.Export{Name: "a", Backend: nbd.NewMemory(1)})
	ctx := context.Background()
	var oe *nbdclient.OptionError
	if _, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: addr, Export: "nix"}); !errors.As(err, &oe) || oe.Code != nbdproto.RepErrUnknown || oe.Text == "" {
		t.Errorf("unknown export: %v", err)
	}
	if _, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: addr + "x"}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
	// A server that says nothing.
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "mute"))
	check(t, err)
	defer l.Close()
	if _, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: l.Addr().String(), HandshakeTimeout: 20 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("mute server: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Millisecond, io.ErrNoProgress)
	defer cancel()
	if _, err := nbdclient.List(ctx, "unix", l.Addr().String()); err == nil {
		t.Error("List of a mute server succeeded")
	}
}

func TestParseURI(t *testing.T) {
	for _, tc := range []struct {
		uri  string
		want nbdclient.Options
		ok   bool
	}{
		{"nbd+unix:///disk?socket=/run/mars/disk.sock", nbdclient.Options{Network: "unix", Address: "/run/mars/disk.sock", Export: "disk"}, true},
		{"nbd+unix:///?socket=/s", nbdclient.Options{Network: "unix", Address: "/s"}, true},
		{"nbd://host/disk", nbdclient.Options{Network: "tcp", Address: "host:10809", Export: "disk"}, true},
		{"nbd://[::1]:5/a/b", nbdclient.Options{Network: "tcp", Address: "[::1]:5", Export: "a/b"}, true},
		{"nbd+unix:///disk", nbdclient.Options{}, false},
		{"nbd:///disk", nbdclient.Options{}, false},
		{"http://host/disk", nbdclient.Options{}, false},
		{"://", nbdclient.Options{}, false},
	} {
		got, err := nbdclient.ParseURI(tc.uri)
		if (err == nil) != tc.ok || tc.ok && got != tc.want {
			t.Errorf("%s: %+v, %v", tc.uri, got, err)
		}
	}
}

// TestContext: a call whose context ends returns at once, and the connection lives on.
func TestContext(t *testing.T) {
	g := &gateBackend{Memory: nbd.NewMemory(1 << 20)}
	gate := make(chan struct{})
	g.gate.Store(&gate)
	_, addr := serve(t, "unix", nbd.Export{Name: "a", Backend: g})
	c := dial(t, nbdclient.Options{Network: "unix", Address: addr})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan error, 1)
	go func() { result <- c.Flush(ctx) }()
	check(t, c.Write(context.Background(), []byte("x"), 0))
	cancel(why)
	if err := <-result; !errors.Is(err, why) {
		t.Errorf("flush: %v", err)
	}
	if err := c.Write(ctx, []byte("x"), 0); !errors.Is(err, why) {
		t.Errorf("write with an ended context: %v", err)
	}
	close(gate) // the late answer is dropped
	g.gate.Store(nil)
	check(t, c.Flush(context.Background()))
}

// TestCancelledReadsLeaveMemoryAlone cancels reads at random moments; the buffer is not
// touched after the call has returned (the race detector watches), and the stream stays in step.
func TestCancelledReadsLeaveMemoryAlone(t *testing.T) {
	m := nbd.NewMemory(4 << 20)
	check(t, m.Submit([]nbd.Op{{Len: 4 << 20, Data: bytes.Repeat([]byte{7}, 4<<20)}}))
	_, addr := serve(t, "unix", nbd.Export{Name: "a", Backend: m})
	for _, simple := range []bool{false, true} {
		c := dial(t, nbdclient.Options{Network: "unix", Address: addr, Simple: simple})
		var wg sync.WaitGroup
		for k := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				p := make([]byte, 1<<18)
				for i := range 30 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i*k)*10*time.Microsecond)
					err := c.Read(ctx, p, 0)
					cancel()
					if err == nil && p[len(p)-1] != 7 {
						t.Error("wrong data")
					}
					clear(p)
					for _, b := range p {
						if b != 0 {
							t.Error("memory was touched after Read had returned")
							break
						}
					}
				}
			}()
		}
		wg.Wait()
		check(t, c.Read(context.Background(), make([]byte, 1<<20), 0))
	}
}

// TestServerGoesAway: everything in flight ends with an error, and so does what comes later.
func TestServerGoesAway(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	check(t, err)
	defer l.Close()
	for name, script := range map[string][]byte{
		"closes":              nil,
		"bad magic":           []byte("this is not an NBD reply, is it?"),
		"unknown handle":      simpleReply(0, 999),
		"chunk of wrong type": chunk(1, 1, nbdproto.ChunkOffsetData, make([]byte, 16)),
		"oversize error":      chunkHeader(1, 1, nbdproto.ChunkError, 1<<20),
		"short error":         chunk(1, 1, nbdproto.ChunkError, []byte{0}),
		"lying error":         chunk(1, 1, nbdproto.ChunkError, []byte{0, 0, 0, 5, 0, 9, 'x'}),
		"half a reply":        simpleReply(0, 1)[:9],
	} {
		t.Run(name, func(t *testing.T) {
			served := make(chan struct{})
			go func() {
				defer close(served)
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				pretend(nc)
				io.ReadFull(nc, make([]byte, nbdproto.RequestSize))
				nc.Write(script)
			}()
			c := dial(t, nbdclient.Options{Network: "unix", Address: l.Addr().String()})
			if err := c.Flush(context.Background()); err == nil {
				t.Error("flush succeeded")
			}
			if err := c.Read(context.Background(), make([]byte, 1), 0); err == nil {
				t.Error("read succeeded")
			}
			<-served
		})
	}
}

// pretend does the server's side of a handshake with a client that asks for structured replies.
func pretend(nc net.Conn) {
	nc.Write(nbdproto.AppendGreeting(nil, nbdproto.FlagFixedNewstyle|nbdproto.FlagNoZeroes))
	io.ReadFull(nc, make([]byte, 4+nbdproto.OptionHeaderSize))
	nc.Write(nbdproto.AppendOptReply(nil, nbdproto.OptStructuredReply, nbdproto.RepAck, nil))
	var h [nbdproto.OptionHeaderSize]byte
	io.ReadFull(nc, h[:])
	io.ReadFull(nc, make([]byte, nbdproto.OptionHeader(h[:]).Length))
	b := nbdproto.AppendOptReply(nil, nbdproto.OptGo, nbdproto.RepInfo, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5})
	nc.Write(nbdproto.AppendOptReply(b, nbdproto.OptGo, nbdproto.RepAck, nil))
}

func simpleReply(errno uint32, handle uint64) []byte {
	p := make([]byte, nbdproto.SimpleReplySize)
	nbdproto.PutSimpleReply(p, errno, handle)
	return p
}

func chunkHeader(handle uint64, flags, typ uint16, length int) []byte {
	p := make([]byte, nbdproto.ChunkHeaderSize)
	nbdproto.PutChunkHeader(p, nbdproto.ChunkHeader{Magic: nbdproto.MagicStructuredReply, Flags: flags, Type: typ, Handle: handle, Length: uint32(length)})
	return p
}

func chunk(handle uint64, flags, typ uint16, payload []byte) []byte {
	return append(chunkHeader(handle, flags, typ, len(payload)), payload...)
}

// TestFragmentedRead: a server may answer a read in pieces, with holes, in any order.
func TestFragmentedRead(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	check(t, err)
	defer l.Close()
	off := func(v byte, rest ...byte) []byte { return append([]byte{0, 0, 0, 0, 0, 0, 0, v}, rest...) }
	for name, tc := range map[string]struct {
		chunks [][]byte
		want   string
		errno  syscall.Errno
		fails  bool
	}{
		"pieces":      {[][]byte{chunk(1, 0, 1, off(103, 'd', 'e')), chunk(1, 0, 2, off(105, 0, 0, 0, 3)), chunk(1, 0, 1, off(100, 'a', 'b', 'c')), chunk(1, 1, 0, nil)}, "abcde\x00\x00\x00", 0, false},
		"error":       {[][]byte{chunk(1, 0, 1, off(100, 'a', 'b', 'c')), chunk(1, 1, nbdproto.ChunkErrorOffset, append([]byte{0, 0, 0, 5, 0, 2, 'n', 'o'}, off(103)...))}, "", syscall.EIO, true},
		"short":       {[][]byte{chunk(1, 1, 1, off(100, 'a', 'b', 'c'))}, "", 0, true},
		"before":      {[][]byte{chunk(1, 1, 1, off(99, 'a', 'b', 'c'))}, "", 0, true},
		"beyond":      {[][]byte{chunk(1, 1, 1, off(106, 'a', 'b', 'c'))}, "", 0, true},
		"hole beyond": {[][]byte{chunk(1, 1, 2, off(100, 0, 0, 0, 9))}, "", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			served := make(chan struct{})
			go func() {
				defer close(served)
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				pretend(nc)
				io.ReadFull(nc, make([]byte, nbdproto.RequestSize))
				for _, c := range tc.chunks {
					nc.Write(c)
				}
				io.Copy(io.Discard, nc)
			}()
			c := dial(t, nbdclient.Options{Network: "unix", Address: l.Addr().String()})
			p := make([]byte, 8)
			err := c.Read(context.Background(), p, 100)
			if (err != nil) != tc.fails || tc.errno != 0 && !errors.Is(err, tc.errno) || err == nil && string(p) != tc.want {
				t.Errorf("%q, %v", p, err)
			}
			c.Close()
			<-served
		})
	}
}

func TestKill(t *testing.T) {
	srv, addr := serve(t, "unix", nbd.Export{Name: "a", Backend: nbd.NewMemory(1)})
	c := dial(t, nbdclient.Options{Network: "unix", Address: addr, Connections: 4})
	c.Kill()
	if err := c.Flush(context.Background()); err == nil {
		t.Error("flush after Kill")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	check(t, srv.Remove(ctx, "a"))
}
