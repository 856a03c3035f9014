package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"mars/internal/vfs"
)

// benchDir is MARS_BENCH_DIR, to choose the disk, or a temporary directory.
func benchDir(b *testing.B) string {
	if dir := os.Getenv("MARS_BENCH_DIR"); dir != "" {
		d, err := os.MkdirTemp(dir, "logfile")
		must(b, err)
		b.Cleanup(func() { os.RemoveAll(d) })
		return d
	}
	return b.TempDir()
}

// benchWriter rotates before the file gets big enough to meet the disk.
type benchWriter struct {
	b   *testing.B
	dir string
	seq int
	opt WriterOptions
	w   *Writer
}

const benchLimit = 256 << 20

func (bw *benchWriter) rotate() {
	bw.b.StopTimer()
	defer bw.b.StartTimer()
	if bw.w != nil {
		name := bw.w.Name().String()
		must(bw.b, bw.w.Close())
		must(bw.b, os.Remove(bw.dir+"/"+name))
	}
	bw.seq++
	w, err := Create(bw.dir, Name{bw.seq, "bench"}, bw.opt)
	must(bw.b, err)
	bw.w = w
}

// BenchmarkAppend: one caller, write(2) only, n entries of 4 KiB a call.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 8, 32} {
		for _, sink := range []string{"file", "nowhere"} {
			b.Run(fmt.Sprintf("entries=%d/%s", n, sink), func(b *testing.B) {
				bw := benchWriter{b: b, dir: benchDir(b), opt: WriterOptions{OnAppend: func([]Placed) {}}}
				bw.rotate()
				entries := make([]Entry, n)
				data := noise(newRand(60), 4096)
				for i := range entries {
					entries[i] = write(int64(i)*1<<20, data) // scattered: one record each
				}
				b.SetBytes(int64(n) * 4096)
				b.ReportAllocs()
				var file vfs.File = discardFile{bw.w.file}
				if sink == "nowhere" {
					bw.w.file = file
				}
				for b.Loop() {
					if sink == "file" && bw.w.End() > benchLimit {
						bw.rotate()
					}
					if _, err := bw.w.Append(entries); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				must(b, bw.w.Close())
			})
		}
	}
}

// BenchmarkAppendSequential: neighbouring 4 KiB entries that share records.
func BenchmarkAppendSequential(b *testing.B) {
	bw := benchWriter{b: b, dir: benchDir(b)}
	bw.rotate()
	entries := make([]Entry, 32)
	data := noise(newRand(61), 4096)
	for i := range entries {
		entries[i] = write(int64(i)*4096, data)
	}
	b.SetBytes(int64(len(entries)) * 4096)
	b.ReportAllocs()
	for b.Loop() {
		if bw.w.End() > benchLimit {
			bw.rotate()
		}
		if _, err := bw.w.Append(entries); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	must(b, bw.w.Close())
}

// BenchmarkAppendParallel: many callers, with and without a sync after each.
func BenchmarkAppendParallel(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("sync=%v/callers=%d", sync, callers), func(b *testing.B) {
				w, err := Create(benchDir(b), Name{1, "bench"}, WriterOptions{})
				must(b, err)
				data := noise(newRand(62), 4096)
				b.SetBytes(4096)
				b.ReportAllocs()
				b.SetParallelism(max(1, callers/2))
				var pos atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					e := []Entry{write(pos.Add(1)<<20, data)}
					for pb.Next() {
						if _, err := w.Append(e); err != nil {
							b.Fatal(err)
						}
						if sync {
							if _, err := w.Sync(); err != nil {
								b.Fatal(err)
							}
						}
					}
				})
				b.StopTimer()
				must(b, w.Close())
			})
		}
	}
}

// BenchmarkScan reads a log of 64 MiB from the page cache, checksums included.
func BenchmarkScan(b *testing.B) {
	for _, payload := range []int{4096, MaxPayload} {
		for _, source := range []string{"file", "memory"} {
			b.Run(fmt.Sprintf("payload=%d/%s", payload, source), func(b *testing.B) {
				dir := benchDir(b)
				w, err := Create(dir, Name{1, "bench"}, WriterOptions{})
				must(b, err)
				data := noise(newRand(63), payload)
				for w.End() < 64<<20 {
					_, err := w.Append([]Entry{write(w.End(), data)})
					must(b, err)
				}
				end := w.End()
				must(b, w.Close())
				path := dir + "/" + w.Name().String()
				f, err := vfs.OS.OpenFile(path, os.O_RDONLY, 0)
				must(b, err)
				defer f.Close()
				var src io.ReaderAt = f
				if source == "memory" {
					log, err := os.ReadFile(path)
					must(b, err)
					src = bytes.NewReader(log)
				}
				b.SetBytes(end)
				b.ReportAllocs()
				for b.Loop() {
					res, err := Verify(src, end, w.Name(), Strict)
					if err != nil || res.Err != nil {
						b.Fatal(res, err)
					}
				}
			})
		}
	}
}
