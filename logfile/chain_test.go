package logfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
)

func newChain(t testing.TB) (*Chain, *faultFS, string) {
	t.Helper()
	dir, fsys := t.TempDir(), newFaultFS()
	c, err := OpenChain(fsys, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if n := fsys.count(&fsys.open); n != 0 && !t.Failed() {
			t.Errorf("%d descriptors leaked", n)
		}
	})
	return c, fsys, dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantInt(t testing.TB, what string, got int64, err error, want int64) {
	t.Helper()
	if err != nil || got != want {
		t.Errorf("%s is %d (%v), want %d", what, got, err, want)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"log-000000002-b", "log-000000010-a", "log-000000002-a-x", "log-1-a", "log-000000000-a", "notes", ".tmp-log-000000001-a"} {
		must(t, os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600))
	}
	must(t, os.Symlink(tombstone, filepath.Join(dir, "log-000000001-a")))
	must(t, os.Symlink("log-000000002-b", filepath.Join(dir, "log-000000003-a")))
	must(t, os.Mkdir(filepath.Join(dir, "log-000000004-a"), 0o700))
	c, err := OpenChain(nil, dir)
	must(t, err)
	list, err := c.List()
	must(t, err)
	want := []Name{{2, "a-x"}, {2, "b"}, {10, "a"}}
	if len(list) != len(want) {
		t.Fatalf("%v, want %v", list, want)
	}
	for i, info := range list {
		if info.Name != want[i] || info.Size != int64(len(want[i].String())) || time.Since(info.ModTime) > time.Hour {
			t.Errorf("got %+v, want %v", info, want[i])
		}
	}
	must(t, c.Close())
	if _, err := OpenChain(nil, filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open a chain in an absent directory: %v", err)
	}
	if _, err := OpenChain(nil, filepath.Join(dir, "notes")); err == nil {
		t.Error("a file is taken for a directory")
	}
}

// TestChainWriter: the chain follows its Writer, and keeps what it knew.
func TestChainWriter(t *testing.T) {
	c, fsys, _ := newChain(t)
	w, err := c.Create(testName, WriterOptions{})
	must(t, err)
	end, err := w.Append([]Entry{write(0, []byte("hello"))})
	must(t, err)
	size, err := c.Size(testName)
	wantInt(t, "size", size, err, end)
	durable, err := c.Durable(testName)
	wantInt(t, "durable", durable, err, 0)

	buf := make([]byte, 5)
	if _, err := c.ReadAt(testName, buf, headerSize); err != nil || string(buf) != "hello" {
		t.Errorf("read %q, %v", buf, err)
	}
	for what, err := range map[string]error{
		"create":   errOf(c.Create(testName, WriterOptions{})),
		"append":   c.AppendRaw(testName, end, []byte("x")),
		"truncate": c.Truncate(testName, 0),
		"remove":   c.Remove(testName),
		"sync":     errOf(c.SyncRaw(testName)),
	} {
		if !errors.Is(err, ErrInUse) {
			t.Errorf("%s under a live Writer: %v", what, err)
		}
	}
	if _, err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	durable, err = c.Durable(testName)
	wantInt(t, "durable", durable, err, end)
	end, err = w.Append([]Entry{write(0, []byte("more"))})
	must(t, err)
	must(t, w.Close())
	durable, err = c.Durable(testName)
	wantInt(t, "durable after Close", durable, err, end)
	before := fsys.count(&fsys.syncs)
	durable, err = c.SyncRaw(testName)
	wantInt(t, "SyncRaw after Close", durable, err, end)
	if fsys.count(&fsys.syncs) != before {
		t.Error("a file that is durable was synced again")
	}
	if _, err := c.Create(testName, WriterOptions{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("create over a used log: %v", err)
	}
	must(t, c.Remove(testName))
	if _, err := c.Size(testName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("size of a removed log: %v", err)
	}
	must(t, c.Remove(testName)) // idempotent
}

func errOf[T any](_ T, err error) error { return err }

// TestChainWriterSyncFailure: bytes whose sync failed do not become durable by
// closing the Writer and syncing the file again.
func TestChainWriterSyncFailure(t *testing.T) {
	c, fsys, _ := newChain(t)
	w, err := c.Create(testName, WriterOptions{})
	must(t, err)
	first, err := w.Append([]Entry{write(0, []byte("hello"))})
	must(t, err)
	must(t, errOf(w.Sync()))
	must(t, errOf(w.Append([]Entry{write(0, []byte("lost"))})))
	fsys.set(func() { fsys.sync = func() error { return syscall.EIO } })
	if err := w.Close(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	fsys.set(func() { fsys.sync = nil })
	durable, err := c.SyncRaw(testName)
	if !errors.Is(err, syscall.EIO) || durable != first {
		t.Errorf("durable %d, %v", durable, err)
	}
	must(t, c.Truncate(testName, first))
	durable, err = c.SyncRaw(testName)
	wantInt(t, "durable after repair", durable, err, first)
}

func TestChainRaw(t *testing.T) {
	c, fsys, dir := newChain(t)
	log, recs := bigLog(t, 200_000)
	path := filepath.Join(dir, testName.String())

	var off *OffsetError
	if err := c.AppendRaw(testName, 10, log); !errors.As(err, &off) || off.Have != 0 {
		t.Fatalf("append at 10 to nothing: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a refused piece made a file")
	}
	must(t, os.Symlink(tombstone, path))
	rng := newRand(40)
	for n := 0; n < len(log); {
		p := log[n:min(len(log), n+1+rng.IntN(9000))]
		must(t, c.AppendRaw(testName, int64(n), p))
		n += len(p)
		for _, at := range []int64{0, int64(n) - 1, int64(n) + 1} {
			if at == int64(n) {
				continue
			}
			if err := c.AppendRaw(testName, at, p); !errors.As(err, &off) || off.Have != int64(n) || off.Offset != at || off.Log != testName {
				t.Fatalf("append at %d, size %d: %v", at, n, err)
			}
		}
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 || st.Size() != int64(len(log)) {
		t.Errorf("file is %v, %v", st, err)
	}
	size, err := c.Size(testName)
	wantInt(t, "size", size, err, int64(len(log)))
	durable, err := c.SyncRaw(testName)
	wantInt(t, "durable", durable, err, int64(len(log)))

	r, err := c.NewReader(testName, ReaderOptions{Mode: Strict, End: -1})
	must(t, err)
	defer r.Close()
	for i := range recs {
		rec, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(i, err)
		}
		recs[i].check(t, *rec)
	}
	must(t, c.AppendRaw(testName, size, nil))
	if fsys.count(&fsys.dirSyncs) == 0 {
		t.Error("the name is not durable")
	}
}

// TestChainRawFailures: a failed piece leaves the size as it was; a failed sync
// stays failed until the file has been cut back to what was durable.
func TestChainRawFailures(t *testing.T) {
	c, fsys, _ := newChain(t)
	piece := make([]byte, 1000)
	must(t, c.AppendRaw(testName, 0, piece))
	must(t, errOf(c.SyncRaw(testName)))
	for _, short := range []error{errFull, nil} {
		fsys.set(func() { fsys.write = func(int64, int) (int, error) { return 400, short } })
		want := error(syscall.ENOSPC)
		if short == nil {
			want = io.ErrShortWrite
		}
		if err := c.AppendRaw(testName, 1000, piece); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	fsys.set(func() { fsys.trunc = func(int64) error { return syscall.EIO } })
	must(t, func() error { c.AppendRaw(testName, 1000, piece); return nil }())
	fsys.set(func() { fsys.write, fsys.trunc = nil, nil })
	var off *OffsetError
	if err := c.AppendRaw(testName, 1000, piece); !errors.As(err, &off) || off.Have != 1400 {
		t.Errorf("the remains of a failed piece are unknown: %v", err)
	}
	must(t, c.Truncate(testName, 1000))
	must(t, c.AppendRaw(testName, 1000, piece))

	fsys.set(func() { fsys.sync = func() error { return syscall.EIO } })
	durable, err := c.SyncRaw(testName)
	if !errors.Is(err, syscall.EIO) || durable != 1000 {
		t.Errorf("durable %d, %v", durable, err)
	}
	fsys.set(func() { fsys.sync = nil })
	if durable, err := c.SyncRaw(testName); !errors.Is(err, syscall.EIO) || durable != 1000 {
		t.Errorf("the failed sync was forgotten: %d, %v", durable, err)
	}
	if err := c.AppendRaw(testName, 2000, piece); !errors.Is(err, syscall.EIO) {
		t.Errorf("appended behind a failed sync: %v", err)
	}
	if err := c.Truncate(testName, 1500); !errors.Is(err, syscall.EIO) {
		t.Errorf("kept bytes that may be lost: %v", err)
	}
	must(t, c.Truncate(testName, 1000))
	must(t, c.AppendRaw(testName, 1000, piece))
	durable, err = c.SyncRaw(testName)
	wantInt(t, "durable", durable, err, 2000)
}

func TestChainTruncate(t *testing.T) {
	c, _, dir := newChain(t)
	must(t, c.AppendRaw(testName, 0, make([]byte, 1000)))
	for _, size := range []int64{-1, 1001} {
		if err := c.Truncate(testName, size); err == nil {
			t.Errorf("truncated to %d", size)
		}
	}
	must(t, c.Truncate(testName, 300))
	durable, err := c.Durable(testName)
	wantInt(t, "durable", durable, err, 300)
	if st, _ := os.Stat(filepath.Join(dir, testName.String())); st.Size() != 300 {
		t.Errorf("file has %d bytes", st.Size())
	}
	if err := c.Truncate(Name{9, "x"}, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("truncate of nothing: %v", err)
	}
}

// TestChainFirstUse: what an earlier run left is durable only after a sync.
func TestChainFirstUse(t *testing.T) {
	c, fsys, dir := newChain(t)
	must(t, os.WriteFile(filepath.Join(dir, testName.String()), make([]byte, 700), 0o600))
	fsys.set(func() { fsys.sync = func() error { return syscall.EIO } })
	if d, err := c.Durable(testName); !errors.Is(err, syscall.EIO) || d != 0 {
		t.Errorf("durable %d, %v", d, err)
	}
	if _, _, err := c.Wait(t.Context(), testName, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("Wait: %v", err)
	}
	fsys.set(func() { fsys.sync = nil })
	other := Name{8, "b"}
	must(t, os.WriteFile(filepath.Join(dir, other.String()), make([]byte, 700), 0o600))
	before := fsys.count(&fsys.syncs)
	for range 3 {
		d, err := c.Durable(other)
		wantInt(t, "durable", d, err, 700)
	}
	if n := fsys.count(&fsys.syncs) - before; n != 1 {
		t.Errorf("%d syncs, want 1", n)
	}
}

type waited struct {
	durable int64
	sealed  bool
	err     error
}

// TestChainWait: each of its reasons to return, from a Writer and from pieces.
func TestChainWait(t *testing.T) {
	c, _, _ := newChain(t)
	wait := func(ctx context.Context, name Name, beyond int64) <-chan waited {
		ch := make(chan waited, 1)
		go func() {
			d, s, err := c.Wait(ctx, name, beyond)
			ch <- waited{d, s, err}
		}()
		return ch
	}
	parked := func(name Name) {
		t.Helper()
		testutil.WaitFor(t, 10*time.Second, "the waiter to park", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.files[name] != nil && c.files[name].change != nil
		})
	}
	expect := func(ch <-chan waited, want waited) {
		t.Helper()
		select {
		case got := <-ch:
			if got.durable != want.durable || got.sealed != want.sealed || !errors.Is(got.err, want.err) || (got.err == nil) != (want.err == nil) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("still waiting for %+v", want)
		}
	}

	w, err := c.Create(testName, WriterOptions{})
	must(t, err)
	ch := wait(t.Context(), testName, 0)
	parked(testName)
	end, err := w.Append([]Entry{write(0, []byte("x"))})
	must(t, err)
	must(t, errOf(w.Sync()))
	expect(ch, waited{end, false, nil})
	expect(wait(t.Context(), testName, 0), waited{end, false, nil})

	// Sealed before the last sync: not complete yet.
	must(t, errOf(w.Append([]Entry{write(0, []byte("y"))})))
	c.Seal(testName)
	ch = wait(t.Context(), testName, end)
	parked(testName)
	must(t, w.Close())
	expect(ch, waited{2 * end, true, nil})
	expect(wait(t.Context(), testName, 2*end), waited{2 * end, true, nil})

	// Pieces.
	raw := Name{8, "b"}
	must(t, c.AppendRaw(raw, 0, make([]byte, 100)))
	must(t, errOf(c.SyncRaw(raw)))
	ch = wait(t.Context(), raw, 100)
	parked(raw)
	must(t, c.AppendRaw(raw, 100, make([]byte, 100)))
	must(t, errOf(c.SyncRaw(raw)))
	expect(ch, waited{200, false, nil})
	ch = wait(t.Context(), raw, 200)
	parked(raw)
	c.Seal(raw)
	expect(ch, waited{200, true, nil})
	must(t, c.Truncate(raw, 150)) // no longer complete
	cause := errors.New("disconnected")
	ctx, cancel := context.WithCancelCause(t.Context())
	ch = wait(ctx, raw, 150)
	parked(raw)
	cancel(cause)
	expect(ch, waited{150, false, cause})
	c.notify(c.files[raw]) // forget what the cancelled waiter left
	ch = wait(t.Context(), raw, 150)
	parked(raw)
	must(t, c.Remove(raw))
	expect(ch, waited{150, false, fs.ErrNotExist})
	expect(wait(t.Context(), raw, 0), waited{0, false, fs.ErrNotExist})

	last := Name{9, "c"}
	must(t, c.AppendRaw(last, 0, make([]byte, 10)))
	ch = wait(t.Context(), last, 10)
	parked(last)
	must(t, c.Close())
	expect(ch, waited{10, false, ErrClosed})
	expect(wait(t.Context(), last, 0), waited{0, false, ErrClosed})
	if err := c.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// TestChainRemoveInUse: a Reader and a read in flight keep their bytes.
func TestChainRemoveInUse(t *testing.T) {
	c, fsys, dir := newChain(t)
	log, recs := bigLog(t, 3*bigChunk/2)
	must(t, c.AppendRaw(testName, 0, log))
	r, err := c.NewReader(testName, ReaderOptions{Mode: Strict, End: -1})
	must(t, err)
	must(t, errOf(r.Next(t.Context())))
	must(t, c.Remove(testName))
	if _, err := os.Lstat(filepath.Join(dir, testName.String())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	for i := 1; i < len(recs); i++ {
		must(t, errOf(r.Next(t.Context())))
	}
	if _, err := c.ReadAt(testName, make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a removed log: %v", err)
	}
	if fsys.count(&fsys.open) != 1 {
		t.Errorf("%d descriptors, want that of the Reader", fsys.count(&fsys.open))
	}
	r.Close()
	r.Close()
	if fsys.count(&fsys.open) != 0 {
		t.Error("the Reader's descriptor is still open")
	}
}

// TestChainForgottenReader: a Reader that nobody closed does not leak.
func TestChainForgottenReader(t *testing.T) {
	c, fsys, _ := newChain(t)
	must(t, c.AppendRaw(testName, 0, make([]byte, 10)))
	must(t, errOf(c.NewReader(testName, ReaderOptions{End: -1})))
	must(t, c.Remove(testName))
	testutil.WaitFor(t, 10*time.Second, "the descriptor to be closed", func() bool {
		runtime.GC()
		return fsys.count(&fsys.open) == 0
	})
}

// TestChainTombstone: a tombstone that was put in the file's place is neither
// followed nor removed.
func TestChainTombstone(t *testing.T) {
	c, fsys, dir := newChain(t)
	path := filepath.Join(dir, testName.String())
	must(t, c.AppendRaw(testName, 0, make([]byte, 10)))
	must(t, errOf(c.SyncRaw(testName)))
	tomb := filepath.Join(dir, ".tmp")
	must(t, os.Symlink(tombstone, tomb))
	must(t, os.Rename(tomb, path))
	if list, err := c.List(); err != nil || len(list) != 0 {
		t.Errorf("list is %v, %v", list, err)
	}
	if fsys.count(&fsys.open) != 0 {
		t.Error("the descriptor of the deleted file is still open")
	}
	if _, err := c.Size(testName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("size of a deleted log: %v", err)
	}
	must(t, c.Remove(testName))
	if s, err := os.Readlink(path); err != nil || s != tombstone {
		t.Errorf("the tombstone is %q, %v", s, err)
	}
}

// TestChainDescriptors: many files do not keep many descriptors.
func TestChainDescriptors(t *testing.T) {
	c, fsys, _ := newChain(t)
	var r *Reader
	for i := range 5 * maxOpen {
		n := Name{i + 1, "h"}
		must(t, c.AppendRaw(n, 0, []byte{byte(i)}))
		must(t, errOf(c.SyncRaw(n)))
		if i == 0 {
			var err error
			r, err = c.NewReader(n, ReaderOptions{End: -1})
			must(t, err)
		}
	}
	defer r.Close()
	if n := fsys.count(&fsys.open); n > maxOpen+2 {
		t.Errorf("%d descriptors are open", n)
	}
	for i := range 5 * maxOpen {
		buf := make([]byte, 1)
		if _, err := c.ReadAt(Name{i + 1, "h"}, buf, 0); err != nil || buf[0] != byte(i) {
			t.Fatalf("log %d: %v, %v", i+1, buf, err)
		}
		d, err := c.Durable(Name{i + 1, "h"})
		wantInt(t, "durable", d, err, 1)
	}
}

// TestChainConcurrent runs a fetch, its replay and reads of any place at once.
func TestChainConcurrent(t *testing.T) {
	c, _, _ := newChain(t)
	log, recs := bigLog(t, 1<<20)
	must(t, c.AppendRaw(testName, 0, log[:1]))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		rng := newRand(41)
		for n := 1; n < len(log); {
			p := log[n:min(len(log), n+1+rng.IntN(40000))]
			if err := c.AppendRaw(testName, int64(n), p); err != nil {
				t.Error(err)
				return
			}
			n += len(p)
			if rng.IntN(3) == 0 {
				if _, err := c.SyncRaw(testName); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := c.SyncRaw(testName); err != nil {
			t.Error(err)
		}
		c.Seal(testName)
	})
	wg.Go(func() {
		defer close(stop)
		r, err := c.NewReader(testName, ReaderOptions{Mode: Strict})
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		seen, durable, sealed := 0, int64(0), false
		for !sealed || durable != r.Offset() {
			durable, sealed, err = c.Wait(t.Context(), testName, durable)
			if err != nil {
				t.Error(err)
				return
			}
			r.Extend(durable)
			for {
				rec, err := r.Next(t.Context())
				var torn *TornError
				if err == io.EOF || errors.As(err, &torn) {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
				recs[seen].check(t, *rec)
				seen++
			}
		}
		if seen != len(recs) {
			t.Errorf("%d records, want %d", seen, len(recs))
		}
	})
	for range 2 {
		wg.Go(func() {
			buf := make([]byte, 3000)
			for {
				select {
				case <-stop:
					return
				default:
				}
				size, err := c.Size(testName)
				if err != nil {
					t.Error(err)
					return
				}
				off := size / 2
				n, err := c.ReadAt(testName, buf, off)
				if err != nil && err != io.EOF || !bytes.Equal(buf[:n], log[off:off+int64(n)]) {
					t.Errorf("read at %d: %d bytes, %v", off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
