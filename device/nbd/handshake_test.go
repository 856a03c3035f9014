package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

func ready(t testing.TB, r *nbdclient.Raw) *nbdclient.Raw {
	t.Helper()
	check(t, r.ClientFlags(uint32(nbdproto.FlagFixedNewstyle|nbdproto.FlagNoZeroes)))
	return r
}

// final sends an option and checks the type of its last reply.
func final(t testing.TB, r *nbdclient.Raw, id uint32, data []byte, want uint32) []nbdclient.OptionReply {
	t.Helper()
	list, err := r.OptionReplies(id, data)
	if err != nil {
		t.Fatalf("option %d: %v", id, err)
	}
	if got := list[len(list)-1]; got.Type != want {
		t.Fatalf("option %d: final reply %#x %q, want %#x", id, got.Type, got.Data, want)
	}
	return list
}

func TestGreeting(t *testing.T) {
	ts, _ := memServer(t, 1<<20)
	if r := ts.raw(); r.Flags != nbdproto.FlagFixedNewstyle|nbdproto.FlagNoZeroes {
		t.Errorf("handshake flags %#x", r.Flags)
	}
}

func TestListHasOneReplyPerExport(t *testing.T) {
	ts := startServer(t, Config{},
		Export{Name: "b", Description: "the second", Backend: NewMemory(1)},
		Export{Name: "", Description: "unnamed", Backend: NewMemory(1)},
		Export{Name: "a", Backend: NewMemory(1)})
	list, err := nbdclient.List(testContext(t), "unix", ts.sock)
	check(t, err)
	var got []string
	for _, e := range list {
		got = append(got, e.Name+":"+e.Description)
	}
	if s := strings.Join(got, " "); s != ":unnamed a: b:the second" {
		t.Errorf("list %q", s)
	}
	final(t, ready(t, ts.raw()), nbdproto.OptList, []byte{1}, nbdproto.RepErrInvalid)
}

func TestInfoAndGo(t *testing.T) {
	ts := startServer(t, Config{},
		Export{Name: "rw", Description: "writable", Backend: NewMemory(12345)},
		Export{Name: "ro", Backend: NewMemory(1 << 44), ReadOnly: true})
	both := nbdproto.TransHasFlags | nbdproto.TransFlush | nbdproto.TransFUA | nbdproto.TransCanMultiConn | nbdproto.TransCache
	for _, tc := range []struct {
		name, desc string
		structured bool
		size       int64
		flags      uint16
	}{
		{"rw", "writable", false, 12345, both | nbdproto.TransTrim | nbdproto.TransWriteZeroes | nbdproto.TransFastZero},
		{"rw", "writable", true, 12345, both | nbdproto.TransTrim | nbdproto.TransWriteZeroes | nbdproto.TransFastZero | nbdproto.TransDF},
		{"ro", "", false, 1 << 44, both | nbdproto.TransReadOnly},
	} {
		t.Run(fmt.Sprint(tc.name, tc.structured), func(t *testing.T) {
			c := ts.dial(nbdclient.Options{Export: tc.name, Simple: !tc.structured})
			i := c.Info()
			if i.Name != tc.name || i.Description != tc.desc || i.Size != tc.size || i.Flags != tc.flags || i.Structured != tc.structured {
				t.Errorf("info %+v, want %+v", i, tc)
			}
			if i.MinBlock != 1 || i.PreferredBlock != 4096 || i.MaxBlock != 32<<20 {
				t.Errorf("block sizes %d %d %d", i.MinBlock, i.PreferredBlock, i.MaxBlock)
			}
		})
	}
}

// TestInfoIsNotAChoice is the mistake of a server that remembers the export of the INFO.
func TestInfoIsNotAChoice(t *testing.T) {
	ts := startServer(t, Config{}, Export{Name: "a", Backend: NewMemory(1)}, Export{Name: "b", Backend: NewMemory(2)})
	r := ready(t, ts.raw())
	final(t, r, nbdproto.OptInfo, nbdclient.InfoData("a"), nbdproto.RepAck)
	if n := ts.OpenCount("a"); n != 0 {
		t.Errorf("open count after INFO: %d", n)
	}
	list := final(t, r, nbdproto.OptGo, nbdclient.InfoData("nix"), nbdproto.RepErrUnknown)
	if text := string(list[0].Data); !strings.Contains(text, "nix") {
		t.Errorf("the error %q does not name the export", text)
	}
	final(t, r, nbdproto.OptGo, nbdclient.InfoData(""), nbdproto.RepErrUnknown) // two exports: no default
	info, err := nbdclient.ParseInfo(final(t, r, nbdproto.OptGo, nbdclient.InfoData("b"), nbdproto.RepAck))
	if err != nil || info.Size != 2 {
		t.Errorf("after GO b: %+v, %v", info, err)
	}
	inStep(t, r)
	if ts.OpenCount("a") != 0 || ts.OpenCount("b") != 1 {
		t.Errorf("open counts %d %d", ts.OpenCount("a"), ts.OpenCount("b"))
	}
}

func TestExportName(t *testing.T) {
	ts, m := memServer(t, 4096)
	check(t, m.Submit([]Op{{Off: 0, Len: 1, Data: []byte{7}}}))
	for _, tc := range []struct {
		name  string
		flags uint16
		bytes int
	}{
		{"disk", nbdproto.FlagFixedNewstyle, 8 + 2 + 124},
		{"disk", nbdproto.FlagFixedNewstyle | nbdproto.FlagNoZeroes, 8 + 2},
		{"", 0, 8 + 2 + 124},
	} {
		r := ts.raw()
		check(t, r.ClientFlags(uint32(tc.flags)))
		check(t, r.Option(nbdproto.OptExportName, []byte(tc.name)))
		check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, 0, 5, 0, 1))) // does not wait for the answer
		p := make([]byte, tc.bytes)
		if _, err := readFull(r, p); err != nil {
			t.Fatal(err)
		}
		if size := binary.BigEndian.Uint64(p); size != 4096 {
			t.Errorf("size %d", size)
		}
		for i, b := range p[10:] {
			if b != 0 {
				t.Fatalf("padding byte %d is %d", i, b)
			}
		}
		reply(t, r, 5, 0)
		var b [1]byte
		if readFull(r, b[:]); b[0] != 7 {
			t.Errorf("read %d", b[0])
		}
	}
	r := ready(t, ts.raw())
	check(t, r.Option(nbdproto.OptExportName, []byte("nix")))
	closed(t, r) // all that EXPORT_NAME can do
}

func readFull(r *nbdclient.Raw, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k, err := r.Conn.Read(p[n:])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func TestAbort(t *testing.T) {
	ts, _ := memServer(t, 1)
	r := ready(t, ts.raw())
	final(t, r, nbdproto.OptAbort, nil, nbdproto.RepAck)
	closed(t, r)
	if s := ts.log.String(); strings.Contains(s, "level=WARN") {
		t.Errorf("an orderly end is a warning: %s", s)
	}
}

func TestBadOptions(t *testing.T) {
	ts, _ := memServer(t, 1)
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	for _, tc := range []struct {
		name string
		id   uint32
		data []byte
		want uint32
	}{
		{"starttls", nbdproto.OptStartTLS, nil, nbdproto.RepErrUnsup},
		{"peek", nbdproto.OptPeekExport, []byte("disk"), nbdproto.RepErrUnsup},
		{"meta context without structured replies", nbdproto.OptSetMetaContext, make([]byte, 40), nbdproto.RepErrInvalid},
		{"extended headers", nbdproto.OptExtendedHeaders, nil, nbdproto.RepErrUnsup},
		{"unknown", 0xdeadbeef, make([]byte, 100), nbdproto.RepErrUnsup},
		{"unknown, long", 0xdeadbeef, make([]byte, 100_000), nbdproto.RepErrTooBig},
		{"go, long", nbdproto.OptGo, nbdclient.InfoData(strings.Repeat("x", maxOption)), nbdproto.RepErrTooBig},
		{"go, name too long", nbdproto.OptGo, nbdclient.InfoData(strings.Repeat("x", 5000)), nbdproto.RepErrInvalid},
		{"go, empty", nbdproto.OptGo, nil, nbdproto.RepErrInvalid},
		{"go, short", nbdproto.OptGo, u32(0), nbdproto.RepErrInvalid},
		{"go, name beyond the option", nbdproto.OptGo, append(u32(5), "disk\x00"...), nbdproto.RepErrInvalid},
		{"go, name of 4 GiB", nbdproto.OptGo, append(u32(0xffffffff), "disk\x00\x00"...), nbdproto.RepErrInvalid},
		{"go, missing requests", nbdproto.OptGo, append(append(u32(4), "disk"...), 0, 2, 0, 1), nbdproto.RepErrInvalid},
		{"go, trailing bytes", nbdproto.OptGo, append(nbdclient.InfoData("disk"), 0), nbdproto.RepErrInvalid},
		{"info, odd", nbdproto.OptInfo, append(append(u32(4), "disk"...), 0, 1, 0), nbdproto.RepErrInvalid},
		{"structured reply with data", nbdproto.OptStructuredReply, []byte{0}, nbdproto.RepErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := ready(t, ts.raw())
			list := final(t, r, tc.id, tc.data, tc.want)
			if len(list[0].Data) == 0 {
				t.Error("the error has no text")
			}
			// The handshake goes on, and an unknown want is ignored.
			final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk", 77, nbdproto.InfoName, nbdproto.InfoName), nbdproto.RepAck)
			inStep(t, r)
		})
	}
}

func TestNotNBD(t *testing.T) {
	ts, _ := memServer(t, 1)
	long := nbdproto.AppendOption(nil, nbdproto.OptExportName, nil)
	binary.BigEndian.PutUint32(long[12:], maxOption+1)
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"client flags", []byte{0, 0, 0, 8}},
		{"option magic", append([]byte{0, 0, 0, 3}, "IHAVEOPX\x00\x00\x00\x07\x00\x00\x00\x00"...)},
		{"long export name", append([]byte{0, 0, 0, 3}, long...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := ts.raw()
			check(t, r.Send(tc.send))
			closed(t, r)
			if s := ts.log.String(); !strings.Contains(s, "does not speak the NBD handshake") {
				t.Errorf("no log line says why: %s", s)
			}
		})
	}
}

// TestHandshakeDeadline: a client that stops in the middle, or that announces gigabytes, costs neither
// a connection nor memory for long.
func TestHandshakeDeadline(t *testing.T) {
	ts := startServer(t, Config{HandshakeTimeout: 50 * time.Millisecond}, Export{Name: "disk", Backend: NewMemory(1)})
	huge := nbdproto.AppendOption([]byte{0, 0, 0, 3}, nbdproto.OptGo, nil)
	binary.BigEndian.PutUint32(huge[len(huge)-4:], 0xfffffff0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, send := range [][]byte{nil, {0, 0}, {0, 0, 0, 3, 'I'}, huge, append(huge, make([]byte, 100)...)} {
		r := ts.raw()
		check(t, r.Send(send))
		closed(t, r)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
		t.Errorf("%d bytes allocated", got)
	}
	// The deadline ends with the handshake.
	r := ts.rawGo("disk", false)
	time.Sleep(100 * time.Millisecond) // the deadline itself is the subject
	inStep(t, r)
}

func TestServeExport(t *testing.T) {
	ts := startServer(t, Config{}, Export{Name: "a", Backend: NewMemory(1)}, Export{Name: "b", Backend: NewMemory(2)})
	sock := filepath.Join(t.TempDir(), "b")
	l, err := net.Listen("unix", sock)
	check(t, err)
	ts.listen(func() error { return ts.ServeExport(l, "b") })
	dial := func(name string) (int64, error) {
		c, err := nbdclient.Dial(testContext(t), nbdclient.Options{Network: "unix", Address: sock, Export: name})
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.Size(), nil
	}
	for _, name := range []string{"", "b"} {
		if size, err := dial(name); err != nil || size != 2 {
			t.Errorf("export %q: size %d, %v", name, size, err)
		}
	}
	var oe *nbdclient.OptionError
	if _, err := dial("a"); !errors.As(err, &oe) || oe.Code != nbdproto.RepErrUnknown {
		t.Errorf("export a: %v", err)
	}
	list, err := nbdclient.List(testContext(t), "unix", sock)
	if err != nil || len(list) != 1 || list[0].Name != "b" {
		t.Errorf("list %+v, %v", list, err)
	}
	// The export may go and come back under a listener that stays.
	check(t, ts.Remove(context.Background(), "b"))
	if _, err := dial(""); !errors.As(err, &oe) || oe.Code != nbdproto.RepErrUnknown {
		t.Errorf("removed export: %v", err)
	}
	check(t, ts.Add(Export{Name: "b", Backend: NewMemory(3)}))
	if size, err := dial(""); err != nil || size != 3 {
		t.Errorf("re-added export: size %d, %v", size, err)
	}
}
