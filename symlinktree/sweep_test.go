package symlinktree

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
)

// told is what a sweep knows of one link: all its values in order, and how many of them
// are known to be durable.
type told struct {
	entries []Entry
	safe    int
}

// TestCrashSweep cuts the power at every operation of own writes, tombstones and merges.
// After each cut a link has its old value or its new one, never one from before what was
// confirmed; its stamp does not go back, where the file system keeps the order of its
// metadata (POSIX alone lets a rename survive without the mtime that was set before); no temporary name is taken for a link; and a new write is newer than all there was.
func TestCrashSweep(t *testing.T) {
	seed := testutil.Seed(t)
	states := map[string]bool{}
	for _, meta := range []crashfs.Metadata{crashfs.Unordered, crashfs.Journaled} {
		for round := range uint64(2) {
			sweepTree(t, seed+round, meta, states)
		}
	}
	t.Logf("%d distinct states", len(states))
	if len(states) < 400 {
		t.Errorf("%d distinct states are too few", len(states))
	}
}

func sweepTree(t *testing.T, seed uint64, meta crashfs.Metadata, states map[string]bool) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 23))
	disk := crashfs.New(seed)
	disk.SetMetadata(meta)
	real := &fakeReal{at: testNow}
	disk.SetClock(real.now)
	if err := disk.MkdirAll("/base"); err != nil {
		t.Fatal(err)
	}
	tr, err := Open("/base/mars", Options{FS: disk, Node: "h", Create: true, Clock: NewClock(real.now)})
	if err != nil {
		t.Fatal(err)
	}
	const dir = "resource-r"
	if err := tr.SetAllDurable(Entry{Path: dir + "/size", Value: "1"}); err != nil {
		t.Fatal(err)
	}
	disk.SyncAll()
	links := map[string]*told{}
	paths := []string{dir + "/replay-h", dir + "/version-000000001-h", dir + "/log-000000001-h", dir + "/actsize-h"}
	for _, p := range paths {
		links[p] = &told{}
	}
	cut := 0
	disk.OnOp(func(c *crashfs.Cut) {
		cut++
		for _, p := range crashfs.Policies {
			r := rand.New(rand.NewPCG(seed, uint64(cut)<<8|uint64(p)))
			what := fmt.Sprintf("seed %d, metadata %d, cut %d before %s %s, %v", seed, meta, cut, c.Op.Kind, c.Op.Path, p)
			checkTree(t, what, c.Crash(p, r), meta == crashfs.Journaled, links, states)
		}
	})
	for i := range 40 {
		path := paths[rng.IntN(len(paths))]
		value := fmt.Sprint(i)
		if strings.Contains(path, "/log-") || rng.IntN(5) == 0 {
			value = Deleted
		}
		k := links[path]
		switch rng.IntN(3) {
		case 0: // a peer's value, with the peer's stamp
			e := Entry{Path: path, Value: value, Stamp: tr.Clock().Now() + Stamp(rng.IntN(1000))}
			k.entries = append(k.entries, e)
			_, err = tr.Merge("b", []Entry{e})
		default:
			// The stamp is known only afterwards.
			k.entries = append(k.entries, Entry{Path: path, Value: value})
			err = tr.Set(path, value)
		}
		if err != nil {
			t.Fatal(err)
		}
		k.entries[len(k.entries)-1], _ = tr.Entry(path)
		if rng.IntN(3) == 0 {
			if err := tr.SyncDir(dir); err != nil {
				t.Fatal(err)
			}
			for _, k := range links {
				k.safe = len(k.entries)
			}
		}
		real.at += Stamp(1 + rng.IntN(1000))
	}
	disk.OnOp(nil)
}

// checkTree opens the tree on what a cut left.
func checkTree(t *testing.T, what string, after *crashfs.FS, ordered bool, links map[string]*told, states map[string]bool) {
	t.Helper()
	temps := 0
	list, err := after.ReadDir("/base/mars/resource-r")
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	state := what[:strings.Index(what, ", cut")]
	for _, e := range list {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			temps++
		}
		if info, err := e.Info(); err == nil && e.Type()&fs.ModeSymlink != 0 {
			text, _ := after.Readlink("/base/mars/resource-r/" + e.Name())
			state += fmt.Sprintf(" %s=%s@%d", e.Name()[max(0, len(e.Name())-12):], text, info.ModTime().UnixNano())
		}
	}
	for _, path := range slices.Sorted(maps.Keys(links)) {
		state += fmt.Sprint(" ", links[path].safe)
	}
	if states[state] {
		return
	}
	states[state] = true
	clock := NewClock((&fakeReal{at: testNow}).now)
	tr, err := Open("/base/mars", Options{FS: after, Node: "h", Clock: clock, Passive: true})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	var newest Stamp
	for path, k := range links {
		got, ok := tr.Entry(path)
		if !ok {
			if k.safe > 0 {
				t.Fatalf("%s: %s is gone, %v was confirmed", what, path, k.entries[k.safe-1])
			}
			continue
		}
		newest = max(newest, got.Stamp)
		at := -1
		for i := max(0, k.safe-1); i < len(k.entries); i++ {
			if k.entries[i].Value == got.Value {
				at = i
			}
		}
		if at < 0 {
			t.Fatalf("%s: %s is %q, which it was not since %d values were confirmed: %v", what, path, got.Value, k.safe, k.entries)
		}
		if ordered && k.safe > 0 && got.Stamp < k.entries[k.safe-1].Stamp {
			t.Fatalf("%s: the stamp of %s went back to %v from %v", what, path, got.Stamp, k.entries[k.safe-1].Stamp)
		}
	}
	for _, e := range tr.List("resource-r") {
		if strings.Contains(e.Path, tempPrefix) {
			t.Fatalf("%s: a temporary name is part of the tree: %v", what, e)
		}
	}
	if n, err := tr.RemoveTemp(-1 << 62); err != nil || n != temps {
		t.Fatalf("%s: %d of %d temporary links removed: %v", what, n, temps, err)
	}
	path := "resource-r/replay-h"
	if err := tr.SetAllDurable(Entry{Path: path, Value: "after"}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if e, _ := tr.Entry(path); e.Stamp <= newest || e.Value != "after" {
		t.Fatalf("%s: the new value is %v, there was a stamp %v", what, e, newest)
	}
	if changed, err := tr.Rescan(); err != nil || len(changed) > 0 {
		t.Fatalf("%s: the disk differs from the memory: %v %v", what, changed, err)
	}
}
