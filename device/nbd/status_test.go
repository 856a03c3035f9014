package nbd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

// metaData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaData(export string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// rawStatus connects with base:allocation.
func (ts *testServer) rawStatus(export string) *nbdclient.Raw {
	ts.t.Helper()
	r := ready(ts.t, ts.raw())
	final(ts.t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
	list := final(ts.t, r, nbdproto.OptSetMetaContext, metaData(export, nbdproto.ContextAllocation), nbdproto.RepAck)
	if len(list) != 2 || list[0].Type != nbdproto.RepMeta || string(list[0].Data[4:]) != nbdproto.ContextAllocation {
		ts.t.Fatalf("SET_META_CONTEXT: %+v", list)
	}
	final(ts.t, r, nbdproto.OptGo, nbdclient.InfoData(export), nbdproto.RepAck)
	return r
}

// blockStatus is one request and its extents.
func blockStatus(t testing.TB, r *nbdclient.Raw, flags uint16, off uint64, length uint32) []Extent {
	t.Helper()
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, flags, 7, off, length)))
	rep := reply(t, r, 7, 0)
	if rep.Type != nbdproto.ChunkBlockStatus || !rep.Done() || len(rep.Payload) < 12 || len(rep.Payload)%8 != 4 {
		t.Fatalf("block status answered with %+v", rep)
	}
	if id := binary.BigEndian.Uint32(rep.Payload); id != allocationID {
		t.Fatalf("context %d", id)
	}
	var list []Extent
	var sum int64
	for p := rep.Payload[4:]; len(p) > 0; p = p[8:] {
		x := Extent{int64(binary.BigEndian.Uint32(p)), State(binary.BigEndian.Uint32(p[4:]))}
		if x.Len == 0 {
			t.Fatal("an empty extent")
		}
		sum += x.Len
		list = append(list, x)
	}
	if sum > int64(length) {
		t.Fatalf("extents of %d bytes for a request of %d", sum, length)
	}
	return list
}

func TestMetaContexts(t *testing.T) {
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: NewMemory(1 << 20)}, Export{Name: "plain", Backend: plain{NewMemory(1 << 20)}})
	const alloc = nbdproto.ContextAllocation
	for _, tc := range []struct {
		name    string
		opt     uint32
		data    []byte
		want    uint32
		offered bool
	}{
		{"list all", nbdproto.OptListMetaContext, metaData("disk"), nbdproto.RepAck, true},
		{"list namespace", nbdproto.OptListMetaContext, metaData("disk", "base:"), nbdproto.RepAck, true},
		{"list it", nbdproto.OptListMetaContext, metaData("disk", "qemu:", alloc), nbdproto.RepAck, true},
		{"list others", nbdproto.OptListMetaContext, metaData("disk", "qemu:", "base"), nbdproto.RepAck, false},
		{"list of an export without", nbdproto.OptListMetaContext, metaData("plain"), nbdproto.RepAck, false},
		{"set it twice", nbdproto.OptSetMetaContext, metaData("disk", alloc, alloc), nbdproto.RepAck, true},
		{"set nothing", nbdproto.OptSetMetaContext, metaData("disk"), nbdproto.RepAck, false},
		{"set namespace", nbdproto.OptSetMetaContext, metaData("disk", "base:"), nbdproto.RepAck, false},
		{"set on an export without", nbdproto.OptSetMetaContext, metaData("plain", alloc), nbdproto.RepAck, false},
		{"unknown export", nbdproto.OptSetMetaContext, metaData("nix", alloc), nbdproto.RepErrUnknown, false},
		{"no data", nbdproto.OptSetMetaContext, nil, nbdproto.RepErrInvalid, false},
		{"count cut off", nbdproto.OptSetMetaContext, metaData("disk")[:10], nbdproto.RepErrInvalid, false},
		{"4 billion queries", nbdproto.OptSetMetaContext, append(metaData("disk")[:8], 255, 255, 255, 255), nbdproto.RepErrInvalid, false},
		{"query cut off", nbdproto.OptSetMetaContext, metaData("disk", alloc)[:20], nbdproto.RepErrInvalid, false},
		{"trailing bytes", nbdproto.OptListMetaContext, append(metaData("disk"), 0), nbdproto.RepErrInvalid, false},
		{"query too long", nbdproto.OptSetMetaContext, metaData("disk", strings.Repeat("x", 5000)), nbdproto.RepErrInvalid, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := ready(t, ts.raw())
			final(t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
			list := final(t, r, tc.opt, tc.data, tc.want)
			if offered := list[0].Type == nbdproto.RepMeta; offered != tc.offered || offered && (len(list) != 2 || string(list[0].Data[4:]) != alloc) {
				t.Errorf("answered with %+v", list)
			}
			// It is negotiated after a successful SET only.
			final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
			check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 1, 0, 512)))
			if tc.offered && tc.opt == nbdproto.OptSetMetaContext {
				reply(t, r, 1, 0)
			} else {
				reply(t, r, 1, nbdproto.EINVAL)
			}
			inStep(t, r)
		})
	}
	t.Run("of another export", func(t *testing.T) {
		r := ready(t, ts.raw())
		final(t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
		final(t, r, nbdproto.OptSetMetaContext, metaData("disk", alloc), nbdproto.RepAck)
		final(t, r, nbdproto.OptGo, nbdclient.InfoData("plain"), nbdproto.RepAck)
		check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 1, 0, 512)))
		reply(t, r, 1, nbdproto.EINVAL)
	})
	t.Run("taken back", func(t *testing.T) {
		r := ready(t, ts.raw())
		final(t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
		final(t, r, nbdproto.OptSetMetaContext, metaData("disk", alloc), nbdproto.RepAck)
		final(t, r, nbdproto.OptSetMetaContext, metaData("disk", "x:y"), nbdproto.RepAck)
		final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
		check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 1, 0, 512)))
		reply(t, r, 1, nbdproto.EINVAL)
	})
}

func TestBlockStatus(t *testing.T) {
	const size, hole = 1 << 44, StateHole | StateZero
	ts, m := memServer(t, size)
	const mid = 5 << 32
	check(t, m.Submit([]Op{{Off: mid + memoryPage, Len: 3, Data: []byte("abc")}, {Off: mid + 5*memoryPage, Len: 3, Data: []byte("abc")}}))
	r := ts.rawStatus("disk")
	for _, tc := range []struct {
		name   string
		flags  uint16
		off    uint64
		length uint32
		want   []Extent
	}{
		{"all of it", 0, mid, 7 * memoryPage, []Extent{{memoryPage, hole}, {memoryPage, 0}, {3 * memoryPage, hole}, {memoryPage, 0}, {memoryPage, hole}}},
		{"only one", nbdproto.CmdFlagReqOne, mid, 7 * memoryPage, []Extent{{memoryPage, hole}}},
		{"one that is longer", nbdproto.CmdFlagReqOne, mid + 3, 100, []Extent{{100, hole}}},
		{"a byte", 0, mid + memoryPage + 7, 1, []Extent{{1, 0}}},
		{"across a border", 0, mid + 2*memoryPage - 1, 2, []Extent{{1, 0}, {1, hole}}},
		{"4 GiB", nbdproto.CmdFlagReqOne, 0, 0xffffffff, []Extent{{0xffffffff, hole}}},
		{"the last byte", 0, size - 1, 1, []Extent{{1, hole}}},
	} {
		if got := blockStatus(t, r, tc.flags, tc.off, tc.length); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	for name, h := range map[string][]byte{
		"nothing":        nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 9, 0, 0),
		"beyond the end": nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 9, size-1, 2),
		"overflow":       nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 9, 1<<64-1, 2),
		"no hole flag":   nbdclient.RequestHeader(nbdproto.CmdBlockStatus, nbdproto.CmdFlagNoHole, 9, 0, 2),
	} {
		t.Run(name, func(t *testing.T) {
			check(t, r.Send(h))
			reply(t, r, 9, nbdproto.EINVAL)
			inStep(t, r)
		})
	}
	t.Run("many", func(t *testing.T) { // does not fit into one reply: the client asks again
		for i := range 2000 {
			check(t, m.Submit([]Op{{Off: int64(2*i) * memoryPage, Len: 1, Data: []byte{1}}}))
		}
		var off uint64
		for n, data := 0, 0; off < 4000*memoryPage; n++ {
			for _, x := range blockStatus(t, r, 0, off, uint32(4000*memoryPage-off)) {
				if x.State == 0 {
					data++
				}
				off += uint64(x.Len)
			}
			if off == 4000*memoryPage && data != 2000 || n > 20 {
				t.Fatalf("%d extents of data after %d requests", data, n)
			}
		}
	})
}

// sparseHook is a hookBackend with the methods of a SparseBackend replaced.
type sparseHook struct {
	*hookBackend
	extents  func(dst []Extent, off, end int64, limit int) ([]Extent, error)
	slow     bool
	prefetch func(off, length int64) error
}

func (h *sparseHook) Extents(dst []Extent, off, end int64, limit int) ([]Extent, error) {
	return h.extents(dst, off, end, limit)
}
func (h *sparseHook) FastZeroes() bool                 { return !h.slow }
func (h *sparseHook) Prefetch(off, length int64) error { return h.prefetch(off, length) }

// TestStatusOfBadBackends: what a backend should not answer does not reach the client.
func TestStatusOfBadBackends(t *testing.T) {
	for name, f := range map[string]func(dst []Extent, off, end int64, limit int) ([]Extent, error){
		"error": func(dst []Extent, _, _ int64, _ int) ([]Extent, error) {
			return dst, fmt.Errorf("seek: %w", syscall.EIO)
		},
		"nothing": func(dst []Extent, _, _ int64, _ int) ([]Extent, error) { return dst, nil },
		"empty":   func(dst []Extent, _, _ int64, _ int) ([]Extent, error) { return append(dst, Extent{}), nil },
		"too long": func(dst []Extent, off, end int64, _ int) ([]Extent, error) {
			return append(dst, Extent{end - off + 1, 0}), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			ts := startServer(t, Config{}, Export{Name: "disk", Backend: &sparseHook{hookBackend: &hookBackend{Memory: NewMemory(1 << 20)}, extents: f}})
			r := ts.rawStatus("disk")
			check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 1, 0, 4096)))
			if rep := reply(t, r, 1, nbdproto.EIO); rep.Text == "" {
				t.Error("no text")
			}
			inStep(t, r)
		})
	}
}

func TestFastZeroAndCache(t *testing.T) {
	var mu sync.Mutex
	var fetched []int64
	h := &sparseHook{hookBackend: &hookBackend{Memory: NewMemory(1 << 20)}, slow: true}
	h.prefetch = func(off, length int64) error {
		mu.Lock()
		defer mu.Unlock()
		fetched = append(fetched, off, length)
		if off == 0 {
			return errors.New("unreadable")
		}
		return nil
	}
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: h})
	r := ts.rawGo("disk", true)
	check(t, h.Memory.Submit([]Op{{Len: 4, Data: []byte("data")}}))
	send := func(cmd, flags uint16, off uint64, want uint32) {
		t.Helper()
		check(t, r.Send(nbdclient.RequestHeader(cmd, flags, 5, off, 4096)))
		reply(t, r, 5, want)
	}
	send(nbdproto.CmdWriteZeroes, nbdproto.CmdFlagFastZero, 0, nbdproto.ENOTSUP)
	got := make([]byte, 4)
	check(t, h.ReadAt(got, 0))
	if !bytes.Equal(got, []byte("data")) {
		t.Error("refused, and done all the same")
	}
	send(nbdproto.CmdWriteZeroes, nbdproto.CmdFlagFastZero, 1<<20, nbdproto.ENOSPC) // the more telling error
	send(nbdproto.CmdWriteZeroes, 0, 0, 0)
	send(nbdproto.CmdCache, 0, 8192, 0)
	send(nbdproto.CmdCache, 0, 0, nbdproto.EIO)
	send(nbdproto.CmdCache, 0, 1<<20, nbdproto.EINVAL)
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(fetched) != "[8192 4096 0 4096]" {
		t.Errorf("prefetched %v", fetched)
	}
}

// TestForeignMaps: nbdinfo and qemu-img see what was written where.
func TestForeignMaps(t *testing.T) {
	const size = 64 * memoryPage
	ts, m := memServer(t, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	want := make([]bool, size/memoryPage)
	for i := range want {
		if want[i] = rnd.IntN(2) == 0; want[i] {
			check(t, m.Submit([]Op{{Off: int64(i) * memoryPage, Len: 1, Data: []byte{1}}}))
		}
	}
	type part struct {
		Offset, Length, Start int64
		Type                  int
		Data                  bool
	}
	for name, out := range map[string]string{
		"nbdinfo":  run(t, "nbdinfo", "--map", "--json", ts.uri("disk")),
		"qemu-img": run(t, "qemu-img", "map", "--output=json", "-f", "raw", ts.uri("disk")),
	} {
		var parts []part
		if err := json.Unmarshal([]byte(out), &parts); err != nil {
			t.Fatalf("%s: %v in %s", name, err, out)
		}
		next := int64(0)
		for _, p := range parts {
			data, off := p.Data, p.Start
			if name == "nbdinfo" {
				data, off = p.Type == 0, p.Offset
			}
			if off != next {
				t.Fatalf("%s: a gap at %d in %s", name, next, out)
			}
			for ; next < off+p.Length; next += memoryPage {
				if want[next/memoryPage] != data {
					t.Errorf("%s: page at %d has data: %v, want %v", name, next, data, !data)
				}
			}
		}
		if next != size {
			t.Errorf("%s: ends at %d", name, next)
		}
	}
}
