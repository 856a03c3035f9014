package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// syncs is what runs at one instant on a node: how many full syncs, how many resources still need one.
type syncs struct {
	running, needing int
	first            string // the only one that runs
}

func syncsOn(n *Node, names []string) (s syncs) {
	for _, r := range names {
		if n.Link("resource-"+r+"/actual-"+n.Name+"/is-syncing") == "1" {
			s.running++
			s.first = r
		}
		if n.Link("resource-"+r+"/syncstatus-"+n.Name) != n.Link("resource-"+r+"/size") {
			s.needing++
		}
	}
	return s
}

// TestV29SyncLimit: four resources with other content on the secondary are copied anew, with limits of 1, 2, 3 and none.
// Their number is what the limit says, their order that of the list; a paused one takes no place.
func TestV29SyncLimit(t *testing.T) {
	t.Parallel()
	const size = 12 * mib
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	names := []string{"r1", "r2", "r3", "r4"}
	rnd := rand.NewChaCha8([32]byte{29})
	junk := func(path string) []byte {
		p := make([]byte, size)
		if _, err := rnd.Read(p); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := map[string][]byte{}
	for _, r := range names {
		want[r] = junk(a.Disk(r, size))
		a.Adm("create-resource", r, a.Path(r))
		junk(b.Disk(r, size))
		b.Adm("join-resource", r, b.Path(r))
	}
	done := func() bool { return syncsOn(b, names).needing == 0 }
	b.WaitFor("all are synced", done)
	limits := []int{1, 2, 3, 0}
	if soak(t) == 0 {
		limits = []int{2, 1}
	}
	for _, limit := range limits {
		b.Adm("set-global-sync-limit-value", strconv.Itoa(limit))
		b.hand("ln -sfn r3,r1 defaults-%s/sync-pref-list", b.Name)
		for _, r := range names {
			b.Adm("pause-sync", r)
			b.Adm("detach", r)
			junk(b.Path(r))
			// As invalidate does it, but without starting the sync.
			b.hand("ln -sfn 0 resource-%s/syncstatus-%s", r, b.Name)
			b.Adm("attach", r)
		}
		c.Rate(b, "24mbit") // a sync takes seconds
		if s := syncsOn(b, names); s.running != 0 || s.needing != len(names) {
			t.Fatalf("%d syncs run, %d are needed, want 0 of %d", s.running, s.needing, len(names))
		}
		// All switches at one instant, as far as that goes: the first one starts, the others take their turns.
		on := ""
		for _, r := range []string{"r3", "r4", "r2", "r1"} {
			on += fmt.Sprintf("ln -sfn 1 resource-%s/todo-%s/sync; ", r, b.Name)
		}
		b.hand("%s", on)
		watchSyncs(b, names, limit)
		c.Rate(b, "")
	}
	for _, r := range names {
		b.WaitFor(r+" is consistent", func() bool { return b.View("is-consistent", r) == "1" })
		b.Adm("down", r)
		if got := readFile(t, b.Path(r)); !bytes.Equal(got, want[r]) {
			t.Errorf("disk of %s on %s is not that of %s", r, b.Name, a.Name)
		}
	}
}

// watchSyncs samples until no sync is needed any more. In between one that runs is paused: the next one takes its
// place.
func watchSyncs(b *Node, names []string, limit int) {
	b.t.Helper()
	expect := func(needing int) int {
		if limit == 0 {
			return needing
		}
		return min(limit, needing)
	}
	var order []string
	seen := map[string]bool{}
	var wrong time.Time // since when the number is not what it must be
	paused, samples := "", 0
	for end := time.Now().Add(waitLimit); ; time.Sleep(10 * time.Millisecond) {
		s := syncsOn(b, names)
		for _, r := range names {
			if !seen[r] && b.Link("resource-"+r+"/actual-"+b.Name+"/is-syncing") == "1" {
				seen[r] = true
				order = append(order, r)
			}
		}
		if s.needing == 0 {
			break
		}
		able := s.needing
		if paused != "" {
			able--
		}
		switch {
		case limit > 0 && s.running > limit && syncsOn(b, names).running > limit: // twice: the links are not read at one instant
			b.t.Fatalf("%d syncs run, the limit is %d", s.running, limit)
		case s.running == expect(able):
			wrong = time.Time{}
			samples++
		case wrong.IsZero():
			wrong = time.Now()
		case time.Since(wrong) > 2*time.Second*slowness:
			b.t.Fatalf("for more than two seconds %d syncs have run, with %d that could and a limit of %d", s.running, able, limit)
		}
		switch {
		case paused == "" && samples == 20 && limit > 0 && s.running > 0 && s.needing > limit+1:
			paused = s.first
			b.hand("ln -sfn 0 resource-%s/todo-%s/sync", paused, b.Name)
			wrong = time.Now()
		case paused != "" && able == 0:
			b.hand("ln -sfn 1 resource-%s/todo-%s/sync", paused, b.Name)
			paused = ""
		}
		if time.Now().After(end) {
			b.t.Fatalf("%d syncs are still needed", s.needing)
		}
	}
	if got := strings.Join(order, " "); limit == 1 && got != "r3 r1 r2 r4" {
		b.t.Errorf("order of the syncs: %s, want r3 and r1 as in the list, then r2 r4", got)
	}
	if samples < 5 {
		b.t.Errorf("only %d samples with a sync: nothing was watched", samples)
	}
}

// slowness stretches deadlines of what is promised within seconds: binaries with the race detector on a busy machine.
const slowness = 3
