package cluster

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRefetches(t *testing.T) {
	begin := time.Unix(1000, 0)
	l := log(3, "a")
	state := sourceState{pos: 100, final: -1}
	giveUp := func() (*refetches, time.Time) {
		r := &refetches{min: 5 * time.Second, slow: time.Minute}
		for n := range maxRefetches {
			if got := r.count(l, 40, state, begin); got != n {
				t.Fatalf("after %d tries: %d", n, got)
			}
			r.add(l, 40, state, begin)
		}
		return r, begin
	}
	for _, c := range []struct {
		name  string
		log   int
		at    int64
		now   sourceState
		after time.Duration
		want  int
	}{
		{"given up", 3, 40, state, 59 * time.Second, maxRefetches},
		{"slowly again", 3, 40, state, time.Minute, maxRefetches - 1},
		{"the source has grown, soon after", 3, 40, sourceState{110, -1}, time.Second, maxRefetches},
		{"the source has grown", 3, 40, sourceState{110, -1}, 20 * time.Second, maxRefetches - 1},
		{"the source has shrunk", 3, 40, sourceState{90, -1}, 0, 0},
		{"the source was left for another log", 3, 40, sourceState{100, 100}, 0, 0},
		{"another place", 3, 60, state, 0, 0},
		{"another log", 4, 40, state, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, last := giveUp()
			if got := r.count(log(c.log, "a"), c.at, c.now, last.Add(c.after)); got != c.want {
				t.Errorf("%d tries count, want %d", got, c.want)
			}
		})
	}
	// However long it goes on, tries get rarer, and a changed source begins anew.
	r, now := giveUp()
	for i := range 10 {
		now = now.Add(time.Minute)
		if got := r.count(l, 40, state, now); got != maxRefetches-1 {
			t.Fatalf("%d", got)
		}
		r.add(l, 40, state, now)
		if got := r.count(l, 40, sourceState{pos: state.pos + 1, final: -1}, now.Add(59*time.Second)); got < maxRefetches && i > 0 {
			t.Fatal("a source that grows is asked too often")
		}
	}
	state = sourceState{pos: 50, final: 50}
	r.add(l, 40, state, now)
	if got := r.count(l, 40, state, now); got != 1 {
		t.Errorf("a new source: %d tries count", got)
	}
}

// A secondary that has given up a log that is damaged at its writer takes it in as soon as
// the writer's is sound again, without a restart, and says the same as marsadm why meanwhile.
func TestRefetchAfterRepair(t *testing.T) {
	t.Parallel()
	a, b := newPair(t, nil)
	a.create("r0")
	c := a.device("r0")
	defer c.Close()
	write(t, c, 0, bytes.Repeat([]byte("1"), 4096))
	flush(t, c)
	b.join("r0", "a")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	b.put("resource-r0/todo-b/connect", "0")
	b.awaitLink("resource-r0/actual-b/is-copying", "0")
	at := a.node.worker("r0").engine().Status().IngestEnd
	write(t, c, 8192, bytes.Repeat([]byte("2"), 4096))
	flush(t, c)
	want := contentSum(t, c)
	path := filepath.Join(a.cfg.Root, "resource-r0", at.Log.String())
	repair := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var one [1]byte
		if _, err := f.ReadAt(one[:], at.Offset+200); err != nil {
			t.Fatal(err)
		}
		one[0] ^= 0x20
		if _, err := f.WriteAt(one[:], at.Offset+200); err != nil {
			t.Fatal(err)
		}
	}
	repair() // the contrary of it
	b.put("resource-r0/todo-b/connect", "1")
	b.await("gives up", func() bool {
		stop, refetch := b.get("resource-r0/actual-b/msg-"+msgReplayStop), b.get("resource-r0/actual-b/msg-"+msgRefetch)
		return strings.Contains(refetch, "where it comes from") && strings.Contains(stop, "marsadm invalidate r0") && !strings.Contains(stop+refetch, "--force")
	})
	repair()
	b.await("takes the repaired log in", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	for _, m := range []string{msgReplayStop, msgRefetch} {
		b.awaitLink("resource-r0/actual-b/msg-"+m, "OK")
	}
}
