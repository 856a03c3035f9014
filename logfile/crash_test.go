package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
)

// journal is what a workload was told.
type journal struct {
	payloads [][]byte // of all records, in log order
	ends     []int64
	created  bool
	durable  int64 // what Sync has returned
	appended int64 // what Append has returned
}

// workload writes until the power goes, or to its end.
func workload(fsys *crashfs.FS, seed uint64) (j journal) {
	rng := newRand(seed)
	w, err := Create("/mars", testName, WriterOptions{FS: fsys, OnAppend: func(p []Placed) {}})
	if err != nil {
		return j
	}
	j.created = true
	pos := int64(0)
	for range 12 {
		var entries []Entry
		for range 1 + rng.IntN(3) {
			data := noise(rng, 1+rng.IntN(6000))
			entries = append(entries, write(pos, data))
			j.payloads = append(j.payloads, data)
			pos += 1 << 20 // nothing is joined: one entry, one record
		}
		for _, e := range entries {
			j.ends = append(j.ends, int64(len(e.Data)+Overhead))
			if n := len(j.ends); n > 1 {
				j.ends[n-1] += j.ends[n-2]
			}
		}
		end, err := w.Append(entries)
		if err != nil {
			break
		}
		j.appended = end
		if rng.IntN(3) == 0 {
			if j.durable, err = w.Sync(); err != nil {
				break
			}
		}
	}
	w.Close()
	return j
}

// TestCrash cuts the power at every operation of a workload, and derives what
// each policy may leave on the disk. A reader that knows the durable length finds
// a prefix of the log order that has everything Sync promised, and no damage.
func TestCrash(t *testing.T) {
	seed := testutil.Seed(t)
	whole := crashfs.New(seed)
	must(t, whole.MkdirAll("/mars"))
	first := whole.Ops()
	workload(whole, seed)
	last := whole.Ops()
	states := 0
	for cut := first + 1; cut <= last+1; cut++ {
		fsys := crashfs.New(seed)
		must(t, fsys.MkdirAll("/mars"))
		fsys.CutAt(cut)
		j := workload(fsys, seed)
		for _, policy := range crashfs.Policies {
			for _, meta := range []crashfs.Metadata{crashfs.Unordered, crashfs.Journaled} {
				rng := rand.New(rand.NewPCG(seed, cut))
				fsys.SetMetadata(meta)
				checkCrash(t, fmt.Sprintf("cut %d, %v, metadata %d", cut, policy, meta), fsys.Crash(policy, rng), &j)
				states++
			}
		}
		// The death of the process alone loses nothing that was appended.
		if log, err := fsys.KillState().ReadFile(filepath.Join("/mars", testName.String())); err == nil {
			if int64(len(log)) < j.appended {
				t.Fatalf("cut %d: %d bytes after a kill, %d were appended", cut, len(log), j.appended)
			}
		} else if j.created {
			t.Fatal(err)
		}
	}
	t.Logf("%d states", states)
}

func checkCrash(t *testing.T, state string, after *crashfs.FS, j *journal) {
	t.Helper()
	log, err := after.ReadFile(filepath.Join("/mars", testName.String()))
	if err != nil {
		if j.created {
			t.Fatalf("%s: the file is gone: %v", state, err)
		}
		return
	}
	for _, known := range []bool{true, false} {
		r := NewReader(bytes.NewReader(log), int64(len(log)), testName, ReaderOptions{Mode: Strict, End: -1, DurableKnown: known, Durable: j.durable})
		n := 0
		for {
			var rec *Record
			if rec, err = r.Next(t.Context()); err != nil {
				break
			}
			if n >= len(j.payloads) || !bytes.Equal(rec.Data, j.payloads[n]) || rec.End() != j.ends[n] {
				t.Fatalf("%s: record %d is not what was appended", state, n)
			}
			n++
		}
		end := r.Offset()
		r.Close()
		var torn *TornError
		if end < j.durable || known && err != io.EOF && !errors.As(err, &torn) {
			t.Fatalf("%s (durable known %v): stopped at %d, durable %d: %v", state, known, end, j.durable, err)
		}
	}
}
