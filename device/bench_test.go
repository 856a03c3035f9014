package device

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/vfs"
	"mars/logfile"
)

// fileWorld is an engine on real files.
type fileWorld struct {
	dir   string
	disk  *Disk
	chain *logfile.Chain
	jour  *memJournal
	e     *Engine
}

func newFileWorld(tb testing.TB, size int64, from logfile.Position, tune func(*EngineConfig)) *fileWorld {
	return openFileWorld(tb, tb.TempDir(), size, from, tune)
}

func openFileWorld(tb testing.TB, dir string, size int64, from logfile.Position, tune func(*EngineConfig)) *fileWorld {
	path := filepath.Join(dir, "disk")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(tb, err)
	must(tb, f.Truncate(size))
	f.Close()
	w := &fileWorld{dir: dir, jour: &memJournal{pos: from}}
	w.disk, err = OpenDisk(vfs.OS, path)
	must(tb, err)
	w.chain, err = logfile.OpenChain(vfs.OS, dir)
	must(tb, err)
	cfg := EngineConfig{Resource: "r", Host: "a", Disk: w.disk, Chain: w.chain, Size: size, Journal: w.jour, Log: slog.New(slog.DiscardHandler)}
	if tune != nil {
		tune(&cfg)
	}
	w.e, err = OpenEngine(context.Background(), cfg, from, from.Offset)
	must(tb, err)
	tb.Cleanup(w.close)
	return w
}

func (w *fileWorld) close() { w.e.abandon(); w.chain.Close(); w.disk.Close() }

func benchSubmit(b *testing.B, batch int, tune func(*EngineConfig)) {
	const size = 4 << 30
	w := newFileWorld(b, size, logfile.Position{Log: name(1, "a")}, tune)
	_, _, err := w.e.Recover(context.Background(), false)
	must(b, err)
	must(b, w.e.StartLogging(name(1, "a")))
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096*batch)
	fill(r, p)
	ops := make([]nbd.Op, batch)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		for i := range ops {
			ops[i] = nbd.Op{Off: 4096 * r.Int64N(size/4096), Len: 4096, Data: p[4096*i : 4096*i+4096]}
		}
		if err := w.e.Submit(ops); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(batch*b.N)/b.Elapsed().Seconds(), "iops")
}

func BenchmarkSubmit4K(b *testing.B)        { benchSubmit(b, 1, nil) }
func BenchmarkSubmit4KBatch32(b *testing.B) { benchSubmit(b, 32, nil) }

// Without writeback: the cost of log and index alone.
func BenchmarkSubmit4KIdleDisk(b *testing.B) {
	benchSubmit(b, 1, func(c *EngineConfig) {
		c.WritebackAge, c.WritebackBytes, c.IndexLimit, c.SyncInterval = time.Hour, 1<<40, 1<<26, time.Hour
	})
}

// makeLog fills log-1-a of dir with random 4 KiB writes.
func makeLog(tb testing.TB, dir string, size, bytes int64) int64 {
	c, err := logfile.OpenChain(vfs.OS, dir)
	must(tb, err)
	defer c.Close()
	lw, err := c.Create(name(1, "a"), logfile.WriterOptions{})
	must(tb, err)
	r := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 4096*64)
	fill(r, p)
	for lw.End() < bytes {
		var entries []logfile.Entry
		for i := range 64 {
			entries = append(entries, logfile.Entry{Pos: 4096 * r.Int64N(size/4096), Code: logfile.CodeWrite, Data: p[4096*i : 4096*i+4096]})
		}
		_, err := lw.Append(entries)
		must(tb, err)
	}
	must(tb, lw.Close())
	st, err := os.Stat(filepath.Join(dir, name(1, "a").String()))
	must(tb, err)
	return st.Size()
}

func BenchmarkRecoverScan(b *testing.B) {
	dir := b.TempDir()
	n := makeLog(b, dir, 8<<30, 512<<20)
	b.SetBytes(n)
	for b.Loop() {
		w := openFileWorld(b, dir, 8<<30, logfile.Position{Log: name(1, "a")}, func(c *EngineConfig) { c.WritebackAge, c.WritebackBytes = time.Hour, 1<<40 })
		_, _, err := w.e.Recover(context.Background(), false)
		must(b, err)
		w.close()
	}
}

func benchReplay(b *testing.B, size int64) {
	dir := b.TempDir()
	n := makeLog(b, dir, size, 256<<20)
	b.SetBytes(n)
	for b.Loop() {
		w := openFileWorld(b, dir, size, logfile.Position{Log: name(1, "a")}, func(c *EngineConfig) { c.Host = "b" })
		must(b, w.e.SetReplay(context.Background(), true))
		w.chain.Seal(name(1, "a"))
		for w.e.Status().IngestEnd.Offset < n {
			time.Sleep(time.Millisecond)
		}
		must(b, w.e.SetReplay(context.Background(), false))
		w.close()
	}
}

func BenchmarkReplayRandom(b *testing.B)     { benchReplay(b, 1<<30) }
func BenchmarkReplayOverwrites(b *testing.B) { benchReplay(b, 32<<20) }

// BenchmarkCopy is what replay is measured against: cp and fdatasync of the log.
func BenchmarkCopy(b *testing.B) {
	dir := b.TempDir()
	n := makeLog(b, dir, 1<<30, 256<<20)
	b.SetBytes(n)
	for b.Loop() {
		in, err := os.Open(filepath.Join(dir, name(1, "a").String()))
		must(b, err)
		out, err := os.Create(filepath.Join(dir, "copy"))
		must(b, err)
		_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 1<<20))
		must(b, err)
		must(b, out.Sync())
		in.Close()
		out.Close()
	}
}

func BenchmarkRead4KClean(b *testing.B) {
	const size = 1 << 30
	w := newFileWorld(b, size, logfile.Position{Log: name(1, "a")}, nil)
	p := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(p)) {
		_, err := w.disk.WriteAt(p, off)
		must(b, err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := w.e.TryReadAt(p[:4096], 4096*r.Int64N(size/4096)); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
}
