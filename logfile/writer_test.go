package logfile

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
	"mars/internal/vfs"
)

func newWriter(t testing.TB, opt WriterOptions) (*Writer, string) {
	t.Helper()
	dir := t.TempDir()
	w, err := Create(dir, testName, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, filepath.Join(dir, testName.String())
}

func write(pos int64, data []byte) Entry { return Entry{Pos: pos, Code: CodeWrite, Data: data} }

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// TestAppendLayout checks how entries become records.
func TestAppendLayout(t *testing.T) {
	rng := newRand(30)
	e := func(pos int64, n int) Entry { return write(pos, noise(rng, n)) }
	zeroEntry := func(pos int64, n int) Entry {
		for e := range ZeroEntries(pos, int64(n)) {
			return e
		}
		panic("unreachable")
	}
	type ext struct {
		pos, n int64
		code   Code
	}
	for name, c := range map[string]struct {
		max     int
		entries []Entry
		want    []ext
	}{
		"neighbours share a record":  {0, []Entry{e(0, 4096), e(4096, 100), e(4196, 5)}, []ext{{0, 4201, 1}}},
		"a gap does not":             {0, []Entry{e(0, 4096), e(4097, 100)}, []ext{{0, 4096, 1}, {4097, 100, 1}}},
		"backwards does not":         {0, []Entry{e(4096, 4096), e(0, 4096)}, []ext{{4096, 4096, 1}, {0, 4096, 1}}},
		"up to the largest record":   {0, []Entry{e(0, 32000), e(32000, 256), e(32256, 1)}, []ext{{0, 32256, 1}, {32256, 1, 1}}},
		"entries stay whole":         {0, []Entry{e(0, 20000), e(20000, 20000)}, []ext{{0, 20000, 1}, {20000, 20000, 1}}},
		"page records":               {4096, []Entry{e(0, 8192), e(8192, 4096)}, []ext{{0, 4096, 1}, {4096, 4096, 1}, {8192, 4096, 1}}},
		"page records, region":       {4096, []Entry{e(65536-512, 4096)}, []ext{{65536 - 512, 512, 1}, {65536, 3584, 1}}},
		"neighbours, region":         {4096, []Entry{e(65536-512, 512), e(65536, 512)}, []ext{{65536 - 512, 512, 1}, {65536, 512, 1}}},
		"large records, no region":   {0, []Entry{e(65536-512, 4096)}, []ext{{65536 - 512, 4096, 1}}},
		"discard parts neighbours":   {0, []Entry{e(0, 512), {512, CodeDiscard, RangePayload(512), nil}, e(512, 512)}, []ext{{0, 512, 1}, {512, 512, CodeDiscard}, {512, 512, 1}}},
		"discards are not joined":    {0, []Entry{{0, CodeDiscard, RangePayload(512), nil}, {512, CodeDiscard, RangePayload(512), nil}}, []ext{{0, 512, CodeDiscard}, {512, 512, CodeDiscard}}},
		"zeroes of a terabyte":       {512, []Entry{{0, CodeZeroes, RangePayload(1 << 40), nil}}, []ext{{0, 1 << 40, CodeZeroes}}},
		"compressed zeros are apart": {0, []Entry{e(0, 512), zeroEntry(512, 1024), e(1536, 512)}, []ext{{0, 512, 1}, {512, 1024, 1}, {1536, 512, 1}}},
		"other codes":                {0, []Entry{{7, 99, []byte("mark"), nil}}, []ext{{7, 4, 99}}},
		"nothing":                    {0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var placed []Placed
			w, path := newWriter(t, WriterOptions{MaxRecord: c.max, OnAppend: func(p []Placed) { placed = append(placed, p...) }})
			end, err := w.Append(c.entries)
			if err != nil || end != w.End() {
				t.Fatal(end, err)
			}
			log := readFile(t, path)
			recs := mustRead(t, log, ReaderOptions{Mode: Strict, End: -1})
			if len(recs) != len(c.want) || len(placed) != len(c.want) {
				t.Fatalf("%d records, %d placed, want %d", len(recs), len(placed), len(c.want))
			}
			for i, want := range c.want {
				p, r := placed[i], recs[i]
				if (ext{p.Pos, p.Len, p.Code}) != want {
					t.Errorf("placed %d is %+v, want %+v", i, p, want)
				}
				if r.Pos != p.Pos || r.Code != p.Code || r.End() != p.End || r.DataOffset != p.DataOffset {
					t.Errorf("record %d is %+v, placed %+v", i, r, p)
				}
				if n, err := r.length(); err != nil || n != 0 && n != p.Len {
					t.Errorf("record %d covers %d bytes (%v), placed %d", i, n, err, p.Len)
				}
			}
			// The device must end up the same.
			got, dev := map[int64]byte{}, map[int64]byte{}
			for _, e := range c.entries {
				if e.Code == CodeWrite {
					for i, b := range e.Data {
						dev[e.Pos+int64(i)] = b
					}
				}
			}
			for _, r := range recs {
				if r.Code == CodeWrite {
					for i, b := range r.Data {
						got[r.Pos+int64(i)] = b
					}
				}
			}
			if !maps.Equal(got, dev) {
				t.Error("replayed, the records give another device")
			}
		})
	}
}

func TestAppendRefusesBadEntries(t *testing.T) {
	w, path := newWriter(t, WriterOptions{})
	good := write(0, []byte("x"))
	for name, e := range map[string]Entry{
		"empty":          write(0, nil),
		"too long":       write(0, make([]byte, MaxPayload+1)),
		"negative":       write(-1, []byte("x")),
		"wraps":          write(1<<63-1, []byte("x")),
		"discard empty":  {Pos: 0, Code: CodeDiscard},
		"discard of 0":   {Pos: 0, Code: CodeDiscard, Data: RangePayload(0)},
		"zeroes of text": {Pos: 0, Code: CodeZeroes, Data: []byte("hello")},
		"discard wraps":  {Pos: 1 << 62, Code: CodeDiscard, Data: RangePayload(1 << 62)},
	} {
		if _, err := w.Append([]Entry{good, e}); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.End() != 0 || w.Err() != nil || len(readFile(t, path)) != 0 {
		t.Error("a refused entry left traces")
	}
	if end, err := w.Append([]Entry{good}); err != nil || end != 85 {
		t.Error(end, err)
	}
}

func TestZeroEntries(t *testing.T) {
	for _, c := range []struct{ pos, n int64 }{{0, 0}, {0, 1}, {3, 511}, {4096, 512}, {0, 513}, {1 << 40, MaxPayload}, {512, 10*MaxPayload + 700}} {
		w, path := newWriter(t, WriterOptions{})
		next := c.pos
		for e := range ZeroEntries(c.pos, c.n) {
			if e.Pos != next {
				t.Fatalf("%v: entry at %d, want %d", c, e.Pos, next)
			}
			next += int64(len(e.Data))
			if _, err := w.Append([]Entry{e}); err != nil {
				t.Fatal(err)
			}
		}
		if next != c.pos+c.n {
			t.Errorf("%v: ends at %d", c, next)
		}
		for _, r := range mustRead(t, readFile(t, path), ReaderOptions{Mode: Strict, End: -1}) {
			if len(bytes.Trim(r.Data, "\x00")) != 0 || r.Code != CodeWrite || r.Total > Overhead+sectorSize {
				t.Errorf("%v: %d bytes of %v in %d", c, len(r.Data), r.Code, r.Total)
			}
		}
	}
	for range ZeroEntries(0, 1<<30) { // stops when told to
		break
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	fsys := newFaultFS()
	path := func(n Name) string { return filepath.Join(dir, n.String()) }
	create := func(n Name) (*Writer, error) { return Create(dir, n, WriterOptions{FS: fsys}) }
	name := func(seq int) Name { return Name{seq, "h"} }

	w, err := create(name(1))
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path(name(1))); st.Mode() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if fsys.count(&fsys.dirSyncs) != 1 || fsys.count(&fsys.syncs) != 1 {
		t.Error("the name was not made durable")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w, err = create(name(1)); err != nil { // existing and empty
		t.Fatal(err)
	}
	if _, err := w.Append([]Entry{write(0, []byte("x"))}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err = create(name(1)); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a used file: %v", err)
	}
	if len(readFile(t, path(name(1)))) != 85 {
		t.Error("the refused file was changed")
	}

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink(tombstone, path(name(2))))
	must(os.WriteFile(filepath.Join(dir, ".tmp-"+name(2).String()), []byte("left over"), 0o600))
	if w, err = create(name(2)); err != nil {
		t.Fatal(err)
	}
	must(w.Close())
	if st, err := os.Lstat(path(name(2))); err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
		t.Errorf("the tombstone was not replaced: %v, %v", st, err)
	}
	must(os.Symlink("elsewhere", path(name(3))))
	must(os.Mkdir(path(name(4)), 0o700))
	for _, n := range []Name{name(3), name(4), {0, "h"}, {1, "a/b"}, {1, ""}, {1_000_000_000, "h"}} {
		if _, err := create(n); err == nil {
			t.Errorf("%v was created", n)
		}
	}
	if _, err := Create(dir, name(5), WriterOptions{FS: fsys, MaxRecord: MaxPayload + 1}); err == nil {
		t.Error("MaxRecord is not checked")
	}
	fsys.set(func() { fsys.syncDir = func(string) error { return syscall.EIO } })
	if _, err := create(name(6)); !errors.Is(err, syscall.EIO) {
		t.Errorf("directory not synced: %v", err)
	}
	if n := fsys.count(&fsys.open); n != 0 {
		t.Errorf("%d descriptors leaked", n)
	}
}

// TestAppendOrder: OnAppend sees the log order, before Append returns and before
// End moves; callers' entries stay together; stamps come from Now.
func TestAppendOrder(t *testing.T) {
	var placed []Placed
	var w *Writer
	index := map[int64]bool{} // log ends that OnAppend has seen
	var mu sync.Mutex
	var stamp atomic.Int64
	w, path := newWriter(t, WriterOptions{
		Now: func() time.Time { return time.Unix(stamp.Add(1), 5) },
		OnAppend: func(list []Placed) {
			mu.Lock()
			defer mu.Unlock()
			if w.End() >= list[0].End {
				t.Error("End moved before OnAppend")
			}
			for _, p := range list {
				index[p.End] = true
			}
			placed = append(placed, list...)
		},
	})
	const callers, rounds = 8, 200
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			last := int64(0)
			for r := range rounds {
				base := int64(c)<<32 | int64(r)<<8
				end, err := w.Append([]Entry{write(base, []byte{byte(c), 1}), write(base+4, []byte{byte(c), 2})})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if !index[end] || end <= last || w.End() < end {
					t.Errorf("Append returned %d: seen %v, last %d, End %d", end, index[end], last, w.End())
				}
				mu.Unlock()
				last = end
			}
		})
	}
	wg.Wait()
	recs := mustRead(t, readFile(t, path), ReaderOptions{Mode: Strict, End: -1})
	if len(recs) != 2*callers*rounds || len(placed) != len(recs) {
		t.Fatalf("%d records, %d placed", len(recs), len(placed))
	}
	next := map[byte]int64{}
	for i, r := range recs {
		if placed[i].End != r.End() || placed[i].Pos != r.Pos {
			t.Fatalf("record %d differs from what was placed", i)
		}
		if r.Stamp.Nanosecond() != 5 || i > 0 && r.Stamp.Before(recs[i-1].Stamp) {
			t.Fatalf("record %d has stamp %v", i, r.Stamp)
		}
		c := r.Data[0]
		want := int64(c)<<32 | next[c]/2<<8 | next[c]%2*4
		if r.Pos != want {
			t.Fatalf("caller %d: position %#x, want %#x", c, r.Pos, want)
		}
		if next[c]%2 == 1 && recs[i-1].Data[0] != c {
			t.Fatal("something came between the entries of one Append")
		}
		next[c]++
	}
}

// gate blocks a hook until it is opened, and tells that it was reached.
type gate struct {
	reached chan struct{}
	open    chan struct{}
	once    sync.Once
}

func newGate() *gate { return &gate{reached: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) pass() {
	g.once.Do(func() { close(g.reached) })
	<-g.open
}

// TestAppendBatches: those who come while a write runs go out in one write.
func TestAppendBatches(t *testing.T) {
	fsys := newFaultFS()
	w, path := newWriter(t, WriterOptions{FS: fsys})
	g := newGate()
	fsys.set(func() { fsys.write = func(_ int64, n int) (int, error) { g.pass(); return n, nil } })
	const callers = 50
	var wg sync.WaitGroup
	wg.Go(func() { w.Append([]Entry{write(0, []byte("first"))}) })
	<-g.reached
	for i := range callers {
		wg.Go(func() {
			if _, err := w.Append([]Entry{write(int64(i), make([]byte, 2000))}); err != nil {
				t.Error(err)
			}
		})
	}
	testutil.WaitFor(t, 10*time.Second, "all callers to wait", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.waiting) == callers
	})
	close(g.open)
	wg.Wait()
	if n := fsys.count(&fsys.writes); n != 2 {
		t.Errorf("%d writes, want 2", n)
	}
	if n := len(mustRead(t, readFile(t, path), ReaderOptions{Mode: Strict, End: -1})); n != callers+1 {
		t.Errorf("%d records", n)
	}
}

// TestAppendHandsOver: a caller does not write for others for ever.
func TestAppendHandsOver(t *testing.T) {
	fsys := newFaultFS()
	w, path := newWriter(t, WriterOptions{FS: fsys})
	var wg sync.WaitGroup
	left := 3 * leaderRounds
	appendOne := func() {
		if _, err := w.Append([]Entry{write(0, []byte("x"))}); err != nil {
			t.Error(err)
		}
	}
	var first atomic.Bool
	// During each write another caller joins the queue, so there is always one more batch.
	fsys.set(func() {
		fsys.write = func(_ int64, n int) (int, error) {
			if left--; left == 0 && !first.Load() {
				t.Error("the first caller still writes for the others")
			}
			if left > 0 {
				wg.Go(appendOne)
				testutil.WaitFor(t, 10*time.Second, "the next caller to wait", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return len(w.waiting) > 0
				})
			}
			if left == leaderRounds {
				testutil.WaitFor(t, 10*time.Second, "the first caller to return", first.Load)
			}
			return n, nil
		}
	})
	appendOne()
	first.Store(true)
	wg.Wait()
	if n := len(mustRead(t, readFile(t, path), ReaderOptions{Mode: Strict, End: -1})); n != 3*leaderRounds {
		t.Errorf("%d records", n)
	}
}

// TestSyncShares: callers that come while a sync runs share the next one, because
// the running one does not cover them.
func TestSyncShares(t *testing.T) {
	fsys := newFaultFS()
	w, _ := newWriter(t, WriterOptions{FS: fsys})
	start := fsys.count(&fsys.syncs) // of Create
	if d, err := w.Sync(); d != 0 || err != nil || fsys.count(&fsys.syncs) != start {
		t.Errorf("a sync of nothing: %d, %v", d, err)
	}
	first, _ := w.Append([]Entry{write(0, []byte("x"))})
	g := newGate()
	fsys.set(func() { fsys.sync = func() error { g.pass(); return nil } })
	var wg sync.WaitGroup
	wg.Go(func() {
		if d, err := w.Sync(); d < first || err != nil {
			t.Error(d, err)
		}
	})
	<-g.reached
	second, _ := w.Append([]Entry{write(1, []byte("y"))}) // appends go on during a sync
	for range 20 {
		wg.Go(func() {
			if d, err := w.Sync(); d < second || err != nil {
				t.Errorf("durable %d, want %d (%v)", d, second, err)
			}
		})
	}
	if w.Durable() != 0 {
		t.Error("durable before the sync has returned")
	}
	close(g.open)
	wg.Wait()
	if n := fsys.count(&fsys.syncs) - start; n != 2 {
		t.Errorf("%d syncs, want 2", n)
	}
	if w.Durable() != second {
		t.Errorf("durable %d, want %d", w.Durable(), second)
	}
}

func TestWriterClose(t *testing.T) {
	fsys := newFaultFS()
	w, _ := newWriter(t, WriterOptions{FS: fsys})
	end, _ := w.Append([]Entry{write(0, []byte("x"))})
	g := newGate()
	fsys.set(func() { fsys.write = func(_ int64, n int) (int, error) { g.pass(); return n, nil } })
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		if end, err = w.Append([]Entry{write(0, []byte("x"))}); err != nil {
			t.Error(err)
		}
	})
	<-g.reached
	wg.Go(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	testutil.WaitFor(t, 10*time.Second, "Close to begin", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.closed
	})
	if _, err := w.Append([]Entry{write(0, []byte("x"))}); !errors.Is(err, ErrClosed) {
		t.Errorf("append during Close: %v", err)
	}
	close(g.open)
	wg.Wait()
	if w.Durable() != end || w.End() != end {
		t.Errorf("durable %d, end %d, want %d", w.Durable(), w.End(), end)
	}
	if d, err := w.Sync(); d != end || err != nil {
		t.Errorf("sync after Close: %d, %v", d, err)
	}
	if err := w.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if fsys.count(&fsys.open) != 0 {
		t.Error("the descriptor is still open")
	}
}

// TestAppendLarge writes more vectors than one system call takes.
func TestAppendLarge(t *testing.T) {
	w, path := newWriter(t, WriterOptions{FS: vfs.OS})
	rng := newRand(31)
	data := noise(rng, 2048)
	var entries []Entry
	for i := range 1500 {
		entries = append(entries, write(int64(i)*8192, data[:1024+i%1024]))
	}
	if _, err := w.Append(entries); err != nil {
		t.Fatal(err)
	}
	if cap(w.batch.arena) == 0 || w.End() <= 1500*1024 {
		t.Fatal("nothing was batched")
	}
	recs := mustRead(t, readFile(t, path), ReaderOptions{Mode: Strict, End: -1})
	if len(recs) != len(entries) {
		t.Fatalf("%d records", len(recs))
	}
	for i, r := range recs {
		if r.Pos != entries[i].Pos || !bytes.Equal(r.Data, entries[i].Data) {
			t.Fatalf("record %d differs", i)
		}
	}
}

// discardFile swallows writes, so that allocations of the kernel call do not count.
type discardFile struct{ vfs.File }

func (d discardFile) WritevAt(bufs [][]byte, _ int64) (n int, err error) {
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

func TestAppendAllocs(t *testing.T) {
	w, _ := newWriter(t, WriterOptions{OnAppend: func([]Placed) {}})
	w.file = discardFile{w.file}
	small, big := make([]byte, 512), make([]byte, 8192)
	entries := []Entry{write(0, small), write(4096, big), write(4096+8192, big), {1 << 30, CodeZeroes, RangePayload(1 << 20), nil}}
	if n := testing.AllocsPerRun(200, func() {
		if _, err := w.Append(entries); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per Append", n)
	}
}
