package logfile

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
)

// TestAppendFailures: nothing is acknowledged from a failed write on, End stays
// before it, and what was written before is intact.
func TestAppendFailures(t *testing.T) {
	for name, c := range map[string]struct {
		allow int // bytes that get through
		err   error
		want  error
		trunc error
	}{
		"full at once":      {0, errFull, syscall.ENOSPC, nil},
		"full in between":   {1000, errFull, syscall.ENOSPC, nil},
		"short, no error":   {1000, nil, io.ErrShortWrite, nil},
		"all, but an error": {2084, syscall.EIO, syscall.EIO, nil},
		"cannot truncate":   {1000, syscall.EIO, syscall.EIO, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := newFaultFS()
			calls := 0
			w, path := newWriter(t, WriterOptions{FS: fsys, OnAppend: func([]Placed) { calls++ }})
			before, err := w.Append([]Entry{write(0, make([]byte, 512))})
			if err != nil {
				t.Fatal(err)
			}
			fsys.set(func() {
				fsys.write = func(int64, int) (int, error) { return c.allow, c.err }
				fsys.trunc = func(int64) error { return c.trunc }
			})
			end, err := w.Append([]Entry{write(0, make([]byte, 2000))})
			if !errors.Is(err, c.want) || end != before {
				t.Fatalf("end %d, %v", end, err)
			}
			if s := err.Error(); !bytes.Contains([]byte(s), []byte(Position{testName, before}.String())) {
				t.Errorf("the error does not say where: %s", s)
			}
			fsys.set(func() { fsys.write, fsys.trunc = nil, nil }) // the disk recovers
			for range 3 {
				if end, err := w.Append([]Entry{write(0, []byte("x"))}); !errors.Is(err, c.want) || end != before {
					t.Errorf("acknowledged behind a failure: %d, %v", end, err)
				}
			}
			if durable, err := w.Sync(); !errors.Is(err, c.want) || durable != before {
				t.Errorf("Sync: %d, %v", durable, err)
			}
			if !errors.Is(w.Err(), c.want) || w.End() != before || calls != 1 {
				t.Errorf("Err %v, End %d, %d calls of OnAppend", w.Err(), w.End(), calls)
			}
			if err := w.Close(); !errors.Is(err, c.want) {
				t.Errorf("Close: %v", err)
			}
			log := readFile(t, path)
			if c.trunc == nil && int64(len(log)) != before {
				t.Errorf("the file has %d bytes, want %d", len(log), before)
			}
			recs, err := readAll(t, log, ReaderOptions{Mode: Strict, End: -1})
			var torn *TornError
			if len(recs) != 1 || err != io.EOF && !errors.As(err, &torn) {
				t.Errorf("%d records, %v", len(recs), err)
			}
		})
	}
}

// TestAppendFailureReachesAll: callers that wait while a write fails get the
// failure too.
func TestAppendFailureReachesAll(t *testing.T) {
	fsys := newFaultFS()
	w, _ := newWriter(t, WriterOptions{FS: fsys})
	g := newGate()
	fsys.set(func() { fsys.write = func(int64, int) (int, error) { g.pass(); return 0, errFull } })
	var wg sync.WaitGroup
	var failed atomic.Int32
	call := func() {
		if end, err := w.Append([]Entry{write(0, []byte("x"))}); errors.Is(err, syscall.ENOSPC) && end == 0 {
			failed.Add(1)
		}
	}
	wg.Go(call)
	<-g.reached
	for range 20 {
		wg.Go(call)
	}
	testutil.WaitFor(t, 10*time.Second, "all callers to wait", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.waiting) == 20
	})
	close(g.open)
	wg.Wait()
	if failed.Load() != 21 || fsys.count(&fsys.writes) != 1 {
		t.Errorf("%d callers failed in %d writes", failed.Load(), fsys.count(&fsys.writes))
	}
}

// TestSyncFailure: a failed sync never counts as done later, and nobody may append
// behind it.
func TestSyncFailure(t *testing.T) {
	fsys := newFaultFS()
	w, _ := newWriter(t, WriterOptions{FS: fsys})
	first, _ := w.Append([]Entry{write(0, []byte("x"))})
	if d, err := w.Sync(); d != first || err != nil {
		t.Fatal(d, err)
	}
	second, _ := w.Append([]Entry{write(0, []byte("y"))})
	fsys.set(func() { fsys.sync = func() error { return syscall.EIO } })
	if d, err := w.Sync(); !errors.Is(err, syscall.EIO) || d != first {
		t.Fatal(d, err)
	}
	fsys.set(func() { fsys.sync = nil })
	for range 2 {
		if d, err := w.Sync(); !errors.Is(err, syscall.EIO) || d != first {
			t.Errorf("the failed sync was forgotten: %d, %v", d, err)
		}
	}
	if end, err := w.Append([]Entry{write(0, []byte("z"))}); !errors.Is(err, syscall.EIO) || end != second {
		t.Errorf("appended behind a failed sync: %d, %v", end, err)
	}
	if err := w.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Close: %v", err)
	}
	if w.Durable() != first {
		t.Errorf("durable %d", w.Durable())
	}
}
