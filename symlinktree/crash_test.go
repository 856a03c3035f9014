package symlinktree

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
)

// What SetAllDurable has confirmed survives a power cut, and so does the order:
// a link comes back with a confirmed value or a later one, never with an older
// one, and the tree opens and works.
func TestPowerCut(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(40) {
		for _, policy := range crashfs.Policies {
			rng := rand.New(rand.NewPCG(seed+round, uint64(policy)))
			fs := crashfs.New(seed + round)
			if err := fs.MkdirAll("/base"); err != nil {
				t.Fatal(err)
			}
			tr, err := Open("/base/mars", Options{FS: fs, Node: "h", Create: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := fs.SyncDir("/base"); err != nil {
				t.Fatal(err)
			}
			fs.CutAt(fs.Ops() + 1 + rng.Uint64N(200))
			confirmed := make(map[string]int)
			last := writeUntilCut(tr, rng, confirmed)

			after, err := Open("/base/mars", Options{FS: fs.Crash(policy, rng), Node: "h"})
			if err != nil {
				t.Fatalf("round %d, %v: %v", round, policy, err)
			}
			for path, n := range confirmed {
				v, ok := after.Get(path)
				got, _ := strconv.Atoi(v)
				if !ok || got < n || got > last {
					t.Errorf("round %d, %v: %s reads %q, %v; %d was confirmed", round, policy, path, v, ok, n)
				}
			}
			if err := after.SetAllDurable(Entry{Path: "resource-r0/replay-a", Value: "new"}); err != nil {
				t.Errorf("round %d, %v: write after the cut: %v", round, policy, err)
			}
			if _, err := after.Rescan(); err != nil {
				t.Errorf("round %d, %v: %v", round, policy, err)
			}
		}
	}
}

// writeUntilCut writes ascending numbers until the power fails, enters the
// confirmed ones, and returns the last number tried.
func writeUntilCut(tr *Tree, rng *rand.Rand, confirmed map[string]int) (last int) {
	for last = 1; ; last++ {
		var list []Entry
		for range 1 + rng.IntN(2) {
			path := fmt.Sprintf("resource-r%d/%s", rng.IntN(2), []string{"replay-a", "version-000000001-a", "actual-a/if-on", "todo-a/x"}[rng.IntN(4)])
			list = append(list, Entry{Path: path, Value: strconv.Itoa(last)})
		}
		durable := rng.IntN(3) > 0
		var err error
		if durable {
			err = tr.SetAllDurable(list...)
		} else {
			err = tr.SetAll(list...)
		}
		if err != nil {
			return last
		}
		if durable {
			for _, e := range list {
				confirmed[e.Path] = last
			}
		}
	}
}
