package device

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/internal/vfs"
	"mars/logfile"
)

// fileEngine is a primary over a sparse file of the real file system.
func fileEngine(t testing.TB, size int64, tune func(*EngineConfig)) (*Engine, string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	must(t, os.Mkdir(filepath.Join(dir, "log"), 0o700))
	disk, err := OpenDisk(vfs.OS, path)
	must(t, err)
	chain, err := logfile.OpenChain(vfs.OS, filepath.Join(dir, "log"))
	must(t, err)
	jour := &memJournal{pos: logfile.Position{Log: name(1, "a")}}
	cfg := EngineConfig{Resource: "r", Host: "a", Disk: disk, Chain: chain, Size: size, Journal: jour,
		Log: slog.New(slog.DiscardHandler), WritebackAge: time.Hour}
	if tune != nil {
		tune(&cfg)
	}
	e, err := OpenEngine(context.Background(), cfg, jour.pos, 0)
	must(t, err)
	t.Cleanup(func() {
		e.Close()
		chain.Close()
		disk.Close()
	})
	_, _, err = e.Recover(context.Background(), false)
	must(t, err)
	must(t, e.StartLogging(name(1, "a")))
	return e, path
}

// statusOf is the whole block status of a range, neighbours joined.
func statusOf(t testing.TB, e *Engine, off, end int64, limit int) (list []nbd.Extent) {
	t.Helper()
	for off < end {
		part, err := e.Extents(nil, off, end, limit)
		must(t, err)
		if len(part) == 0 || len(part) > limit {
			t.Fatalf("%d extents at %d, limit %d", len(part), off, limit)
		}
		for _, x := range part {
			if x.Len <= 0 || x.Len > end-off {
				t.Fatalf("extent %+v at %d, end %d", x, off, end)
			}
			if k := len(list); k > 0 && list[k-1].State == x.State {
				list[k-1].Len += x.Len
			} else {
				list = append(list, x)
			}
			off += x.Len
		}
	}
	return list
}

func ops(list ...nbd.Op) []nbd.Op {
	for i := range list {
		if list[i].Kind == nbd.OpWrite {
			list[i].Len = int64(len(list[i].Data))
		}
	}
	return list
}

func TestExtentsOfIndexAndDisk(t *testing.T) {
	const size = 15 << 40 // offsets beyond 32 bits; ext4 has no larger files
	const hole, zero = nbd.StateHole | nbd.StateZero, nbd.StateZero
	const k = 64 << 10
	e, _ := fileEngine(t, size, nil)
	data := bytes.Repeat([]byte{7}, k)
	at := int64(3) << 40
	must(t, e.Submit(ops(nbd.Op{Off: at, Data: data}, nbd.Op{Off: at + 4*k, Data: data})))
	check := func(when string, off, end int64, want ...nbd.Extent) {
		t.Helper()
		for _, limit := range []int{1, 3, 100} {
			if got := statusOf(t, e, off, end, limit); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s, limit %d: %v, want %v", when, limit, got, want)
			}
		}
	}
	x := func(n int64, s nbd.State) nbd.Extent { return nbd.Extent{Len: n * k, State: s} }
	check("in the log", at-k, at+6*k, x(1, hole), x(1, 0), x(3, hole), x(1, 0), x(1, hole))
	must(t, e.WriteBack(context.Background()))
	check("on the disk", at-k, at+6*k, x(1, hole), x(1, 0), x(3, hole), x(1, 0), x(1, hole))
	// On top of what is on the disk: the log decides.
	must(t, e.Submit(ops(
		nbd.Op{Kind: nbd.OpZeroes, Off: at, Len: k, NoHole: true},
		nbd.Op{Kind: nbd.OpTrim, Off: at + 4*k, Len: k},
		nbd.Op{Off: at + 2*k, Data: data})))
	check("on top", at-k, at+6*k, x(1, hole), x(1, zero), x(1, hole), x(1, 0), x(3, hole))
	check("inside", at+k/2, at+k, nbd.Extent{Len: k / 2, State: zero})
	check("the end", size-1, size, nbd.Extent{Len: 1, State: hole})
	must(t, e.WriteBack(context.Background()))
	got := statusOf(t, e, at+k, at+6*k, 100)
	if want := []nbd.Extent{x(1, hole), x(1, 0), x(3, hole)}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after writeback: %v, want %v", got, want)
	}
	if _, err := e.Extents(nil, size-1, size+1, 1); err == nil {
		t.Error("beyond the end")
	}
}

// TestExtentsNeverHideData is the promise that a copying client relies on: what is said to be zero reads
// as zeroes, whatever mixture of log and disk it is in.
func TestExtentsNeverHideData(t *testing.T) {
	const size, block = 4 << 20, 4096
	e, _ := fileEngine(t, size, func(c *EngineConfig) { c.WritebackAge = time.Millisecond })
	rnd := rand.New(rand.NewPCG(testutil.Seed(t), 1))
	model := make([]byte, size)
	for range 60 {
		for range 20 {
			off := rnd.Int64N(size/512) * 512
			n := min(512*(1+rnd.Int64N(64)), size-off)
			op := nbd.Op{Kind: nbd.OpKind(rnd.IntN(3)), Off: off, Len: n, NoHole: rnd.IntN(2) == 0}
			if op.Kind == nbd.OpWrite {
				op.Data, op.NoHole = bytes.Repeat([]byte{byte(1 + rnd.IntN(255))}, int(n)), false
				copy(model[off:], op.Data)
			} else {
				clear(model[off : off+n])
			}
			must(t, e.Submit([]nbd.Op{op}))
		}
		off := int64(0)
		for _, x := range statusOf(t, e, 0, size, 1+rnd.IntN(50)) {
			if x.State&nbd.StateZero != 0 && len(bytes.TrimLeft(model[off:off+x.Len], "\x00")) > 0 {
				t.Fatalf("%d..%d is said to be zero and holds data", off, off+x.Len)
			}
			off += x.Len
		}
	}
}

func TestPrefetchAndFastZeroes(t *testing.T) {
	e, _ := fileEngine(t, 1<<40, nil)
	must(t, e.Submit(ops(nbd.Op{Off: 1 << 20, Data: make([]byte, 4096)})))
	must(t, e.Prefetch(0, 1<<40))
	if err := e.Prefetch(1<<40, 1); err == nil {
		t.Error("beyond the end")
	}
	if !e.FastZeroes() {
		t.Error("one record is not fast")
	}
	slow, _ := fileEngine(t, 1<<20, func(c *EngineConfig) { c.ZeroesAsWrites = true })
	if slow.FastZeroes() {
		t.Error("zeroes that are logged as writes are called fast")
	}
	// A disk that knows nothing of holes has data everywhere.
	w := newWorld(t, 1, 1<<20, nil, nil)
	w.primary()
	if got := statusOf(t, w.e, 0, 1<<20, 9); len(got) != 1 || got[0].State != 0 {
		t.Errorf("%v", got)
	}
}

var _ nbd.SparseBackend = backend{}
