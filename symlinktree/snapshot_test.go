package symlinktree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"mars/internal/testutil"
)

func TestSnapshotDoesNotChange(t *testing.T) {
	tr := open(t, t.TempDir(), Options{})
	set(t, tr, "resource-r/a", "1", "resource-r/todo-h/x", "1", "resource-q/a", "1")
	s := tr.Snapshot()
	before := memory(tr)
	set(t, tr, "resource-r/a", "2", "resource-r/b", "2", "resource-s/a", "2")
	tr.Delete("resource-r/todo-h/x")
	old := open(t, t.TempDir(), Options{})
	old.top.Store(s.top)
	if d := diff(before, memory(old)); d != "" {
		t.Errorf("the snapshot has changed:\n%s", d)
	}
	if v, _ := s.Get("resource-r/a"); v != "1" {
		t.Errorf("a = %q", v)
	}
	// What did not change is shared, not copied.
	a, b := s.top.find("resource-q"), tr.top.Load().find("resource-q")
	if a != b {
		t.Error("an untouched directory was copied")
	}
}

func TestDigests(t *testing.T) {
	at := Stamp(testNow)
	base := []Entry{{"resource-r/a", "1", at}, {"resource-r/b", "2", at}, {"ips/ip-h", "10.0.0.1", at}, {"uuid", "u", at}}
	tree := func(list ...Entry) *Tree {
		tr := open(t, t.TempDir(), Options{Clock: NewClock((&fakeReal{at: testNow}).now)})
		if _, err := tr.Merge("x", list); err != nil {
			t.Fatal(err)
		}
		return tr
	}
	a := tree(base...)
	rev := slices.Clone(base)
	slices.Reverse(rev)
	b := tree(rev...)
	if a.RootDigest() != b.RootDigest() || a.Epoch() == b.Epoch() {
		t.Error("equal trees differ")
	}
	if d := a.DirDigests(); len(d) != 3 || d["resource-r"] == [16]byte{} || d[""] == d["ips"] {
		t.Errorf("digests %v", d)
	}
	for name, e := range map[string]Entry{
		"value": {"resource-r/a", "2", at}, "stamp": {"resource-r/a", "1", at + 1}, "more": {"resource-r/c", "1", at},
		"new directory": {"resource-q/a", "1", at}, "deleted": {"resource-r/a", Deleted, at + 1}, "root": {"uuid", "v", at + 1},
	} {
		c := tree(append(slices.Clone(base), e)...)
		if c.RootDigest() == a.RootDigest() {
			t.Errorf("%s: the root digest does not see it", name)
		}
		da, dc := a.DirDigests(), c.DirDigests()
		dir, _ := splitPath(e.Path)
		for d := range dc {
			if (da[d] != dc[d]) != (d == dir) {
				t.Errorf("%s: directory %q: equal %v", name, d, da[d] == dc[d])
			}
		}
	}
	// Neither tombstones nor unreplicated links count.
	sum := a.RootDigest()
	set(t, a, "local-me/x", "1", "resource-r/local-me/x", "1", "actual-h/read-stamp", "1.000000000")
	a.Delete("resource-r/never")
	a.Delete("resource-z/never")
	if a.RootDigest() != sum {
		t.Error("a tombstone or a local link is in the digest")
	}
	if l := a.Dir("resource-r"); len(l) != 3 || !l[2].IsDeleted() {
		t.Errorf("Dir: %v", l)
	}
	if l := a.Dir("local-me"); len(l) != 0 {
		t.Errorf("Dir of a local directory: %v", l)
	}
	empty := open(t, t.TempDir(), Options{})
	if (empty.RootDigest() != [16]byte{}) || len(empty.DirDigests()) != 0 {
		t.Error("the empty tree has a digest")
	}
}

// The cached digests must equal those of a tree that is read afresh.
func TestDigestCache(t *testing.T) {
	rng := rand.New(rand.NewPCG(testutil.Seed(t), 2))
	root := t.TempDir()
	tr := open(t, root, Options{})
	for i := range 120 {
		p := fmt.Sprintf("resource-r%d/todo-h%d/k%d", rng.IntN(2), rng.IntN(2), rng.IntN(3))
		if rng.IntN(5) == 0 {
			tr.Delete(p)
		} else {
			set(t, tr, p, fmt.Sprint(i))
		}
		tr.RootDigest()
		if i%10 == 0 {
			fresh := open(t, root, Options{ReadOnly: true})
			if fresh.RootDigest() != tr.RootDigest() {
				t.Fatalf("step %d: cached and fresh digests differ", i)
			}
		}
	}
}

func TestRing(t *testing.T) {
	tr := open(t, t.TempDir(), Options{})
	if list, next, ok := tr.Since(0); ok || next != tr.Seq() || list != nil {
		t.Error("a peer that knows nothing is not sent to compare digests")
	}
	if _, _, ok := tr.Since(tr.Seq() + 1); ok {
		t.Error("a seq of the future is answered")
	}
	at := tr.Seq()
	set(t, tr, "resource-r/a", "1", "resource-r/b", "1", "resource-r/a", "2", "local-me/x", "1", "resource-r/c", "1")
	tr.Delete("resource-r/b")
	list, next, ok := tr.Since(at)
	var got []string
	for _, e := range list {
		got = append(got, e.Path+"="+e.Value)
	}
	if want := []string{"resource-r/a=2", "resource-r/c=1", "resource-r/b=" + Deleted}; !ok || !slices.Equal(got, want) || next != at+5 {
		t.Errorf("%v, %d, %v", got, next, ok)
	}
	if list, _, ok := tr.Since(next); !ok || len(list) != 0 {
		t.Errorf("%v %v", list, ok)
	}
}

// The ring against a plain list of changes.
func TestRingModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(testutil.Seed(t), 3))
	r := newRing(50)
	var log []string // log[i] changed at seq i+2
	for range 20000 {
		p := fmt.Sprint(rng.IntN(60))
		r.add(p)
		log = append(log, p)
		if rng.IntN(100) > 0 {
			continue
		}
		from := max(1, int(r.seq)-rng.IntN(100))
		got, ok := r.since(uint64(from))
		if len(r.latest) > 50 || len(r.order) > 2*50+1024 {
			t.Fatalf("the ring grows: %d, %d", len(r.latest), len(r.order))
		}
		want := lastOnly(log[from-1:])
		switch {
		case !ok && len(want) <= 50 && len(lastOnly(log)) <= 50:
			t.Fatalf("since %d of %d: overrun", from, r.seq)
		case ok && !slices.Equal(got, want):
			t.Fatalf("since %d of %d: %v, want %v", from, r.seq, got, want)
		}
	}
	if _, ok := r.since(r.seq - 500); ok {
		t.Error("more is remembered than there is room for")
	}
	if _, ok := r.since(r.seq - 40); !ok {
		t.Error("recent changes are forgotten")
	}
}

// lastOnly keeps the last of equal strings.
func lastOnly(list []string) []string {
	var out []string
	for i, s := range list {
		if !slices.Contains(list[i+1:], s) {
			out = append(out, s)
		}
	}
	return out
}

func TestSubscribe(t *testing.T) {
	tr := open(t, t.TempDir(), Options{})
	ch, stop := tr.Subscribe()
	set(t, tr, "a", "1", "b", "1")
	<-ch
	select {
	case <-ch:
		t.Error("cues are not coalesced")
	default:
	}
	set(t, tr, "a", "1")
	select {
	case <-ch:
		t.Error("a cue without a change")
	default:
	}
	stop()
	set(t, tr, "a", "2")
	select {
	case <-ch:
		t.Error("a cue after the end")
	default:
	}
}

// With makes another view and changes neither the snapshot nor the tree; Same sees
// which directories differ.
func TestSnapshotWith(t *testing.T) {
	tr := open(t, t.TempDir(), Options{Node: "a"})
	for path, v := range map[string]string{"resource-r/size": "x", "resource-r/primary": "a", "resource-r/todo-a/attach": "1"} {
		if err := tr.Set(path, v); err != nil {
			t.Fatal(err)
		}
	}
	before := tr.Snapshot()
	after := before.With([]Entry{{Path: "resource-r/size", Value: "4096", Stamp: 1}}, []string{"resource-r/primary", "resource-r/absent"})
	if v, _ := after.Get("resource-r/size"); v != "4096" {
		t.Errorf("size is %q", v)
	}
	if _, ok := after.Entry("resource-r/primary"); ok {
		t.Error("primary is not hidden")
	}
	for _, s := range []*Snapshot{before, tr.Snapshot()} {
		if v, _ := s.Get("resource-r/size"); v != "x" {
			t.Errorf("With has changed the size to %q", v)
		}
	}
	if !after.Same(before, "resource-r/todo-a") || after.Same(before, "resource-r") || !before.Same(before, "resource-r") || !before.Same(after, "nowhere") {
		t.Error("Same is wrong")
	}
	if err := tr.Set("resource-r/todo-a/attach", "0"); err != nil {
		t.Fatal(err)
	}
	if now := tr.Snapshot(); now.Same(before, "resource-r/todo-a") || !now.Same(before, "resource-r") {
		t.Error("Same does not see what has changed")
	}
}
