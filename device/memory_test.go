package device

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/spindle"
	"mars/internal/testutil"
	"mars/internal/vfs"
	"mars/logfile"
)

// gate is a disk on which nothing can be written while it is shut.
type gate struct {
	vfs.FS
	open chan struct{}
}

type gateFile struct {
	vfs.File
	g *gate
}

func (g *gate) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := g.FS.OpenFile(name, flag, perm)
	return gateFile{f, g}, err
}

func (f gateFile) WriteAt(p []byte, off int64) (int, error) {
	<-f.g.open
	return f.File.WriteAt(p, off)
}

func (f gateFile) Datasync() error {
	<-f.g.open
	return f.File.Datasync()
}

// resident is VmRSS of this process, in bytes.
func resident(tb testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/status")
	must(tb, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	must(tb, err)
	return kb << 10
}

// TestMemoryBound fills the index with 4 KiB extents while the disk takes nothing: by default a quarter of a
// million (1 GiB of dirty data), with MARS_SOAK 26 million (100 GiB). The file system below keeps no content,
// so only the engine's own memory counts. Then writers wait, none fails, and all goes on when the disk does: they are
// slowed down from easyFill on, and a disk that stands still stops them there.
func TestMemoryBound(t *testing.T) {
	limit := 1 << 20
	if os.Getenv("MARS_SOAK") != "" {
		limit = 100 / easyFill * 100 << 30 / 4096
	} else if testing.Short() {
		t.Skip("fills 50 MiB")
	}
	const perExtent = 72 // live; ExtentBytes for each extent of the limit is what may be used in all
	const size = 16 << 40
	null := spindle.NewNull()
	null.AddFile("/disk", 0, size)
	must(t, null.Mkdir("/log", 0o700))
	g := &gate{FS: null, open: make(chan struct{})}
	disk, err := OpenDisk(g, "/disk")
	must(t, err)
	chain, err := logfile.OpenChain(null, "/log")
	must(t, err)
	from := logfile.Position{Log: name(1, "a")}
	cfg := EngineConfig{Resource: "r", Host: "a", Disk: disk, Chain: chain, Size: size, Journal: &memJournal{pos: from},
		Log: slog.New(slog.DiscardHandler), IndexLimit: limit, WritebackAge: time.Hour, WritebackBytes: 1 << 40}
	e, err := OpenEngine(context.Background(), cfg, from, 0)
	must(t, err)
	defer func() { must(t, e.Close()); must(t, chain.Close()); must(t, disk.Close()) }()
	_, _, err = e.Recover(context.Background(), false)
	must(t, err)
	must(t, e.StartLogging(from.Log))

	debug.FreeOSMemory()
	before := resident(t)
	stop := make(chan struct{})
	var acked atomic.Int64
	var wg sync.WaitGroup
	const writers = 4
	for i := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 9))
			p := make([]byte, 4096)
			ops := make([]nbd.Op, 64)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for k := range ops {
					ops[k] = nbd.Op{Off: r.Int64N(size/4096) * 4096, Len: 4096, Data: p}
				}
				if err := e.Submit(ops); err != nil {
					t.Error(err) // waiting is right, failing is not
					return
				}
				acked.Add(int64(len(ops)))
			}
		})
	}
	// The disk is shut: sooner or later every writer waits, and nothing moves any more.
	testutil.WaitFor(t, 10*time.Minute, "all writers wait", func() bool { return e.idx.waiters.Load() == writers })
	held := int64(e.Status().Extents)
	grown := resident(t) - before
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	heap := int64(ms.HeapSys - ms.HeapReleased) // what RSS is without the race detector
	runtime.GC()
	runtime.ReadMemStats(&ms)
	live := float64(ms.HeapAlloc) / float64(held)
	t.Logf("%d extents pending, %.1f GiB of data; limit %d: RSS grew by %d MiB, %.1f bytes an extent, %.1f an extent of the limit; heap %d MiB, live %.1f bytes an extent",
		held, float64(held)*4096/(1<<30), limit, grown>>20, float64(grown)/float64(held), float64(grown)/float64(limit), heap>>20, live)
	if held > int64(limit) || held < int64(limit)/5 {
		t.Errorf("writers wait at %d extents, the limit is %d", held, limit)
	}
	if live > perExtent {
		t.Errorf("%.1f bytes of live heap an extent, want at most %d", live, perExtent)
	}
	if heap > ExtentBytes*int64(limit) {
		t.Errorf("the heap has %d bytes, %d for each extent of the limit are allowed", heap, ExtentBytes)
	}
	was := acked.Load()
	close(g.open)
	testutil.WaitFor(t, 10*time.Minute, "writers go on", func() bool { return acked.Load() > was+int64(limit)/8 })
	close(stop)
	wg.Wait()
	runtime.GC()
}
