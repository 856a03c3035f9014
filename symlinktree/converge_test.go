package symlinktree

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"mars/internal/testutil"
)

// world is a cluster without a network: trees that exchange entries in random
// order, with losses and repetitions, under clocks that disagree.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	nodes  []*simNode
	mail   []letter
	writes map[string]Entry // per path the newest write by the rule, of all that were ever made
	ties   int
}

type simNode struct {
	tree *Tree
	real *fakeReal
	seen map[string]Stamp // per path the newest stamp that this node has shown
	sent []uint64         // per peer: Since position
}

type letter struct {
	to   int
	list []Entry
}

func newWorld(t *testing.T, seed uint64, nodes int, rule func(a, b Entry) bool) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), writes: make(map[string]Entry)}
	for i := range nodes {
		real := &fakeReal{at: testNow + Stamp(w.rng.Int64N(int64(48*time.Hour)))}
		n := &simNode{real: real, seen: make(map[string]Stamp), sent: make([]uint64, nodes)}
		n.tree = open(t, t.TempDir(), Options{Node: fmt.Sprintf("n%d", i), Clock: NewClock(real.now)})
		if rule != nil {
			n.tree.wins = rule
		}
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (w *world) path() string {
	r := Resource(fmt.Sprintf("r%d", w.rng.IntN(2)))
	return []string{r.PrimaryPath(), r.TodoPath("n0", "attach"), r.SizePath(), UUIDPath, IPPath("n1"), ActualPath("n0", "time"), r.LogPath(1, "n0")}[w.rng.IntN(7)]
}

// wrote enters an own write into the books and checks causality: it must be
// newer than what its author knew.
func (w *world) wrote(i int, path string, before Entry) error {
	e, _ := w.nodes[i].tree.Entry(path)
	if e == before {
		return nil
	}
	if e.Stamp <= before.Stamp {
		return fmt.Errorf("node %d wrote %+v knowing %+v", i, e, before)
	}
	w.book(e)
	return nil
}

func (w *world) book(e Entry) {
	if old, ok := w.writes[e.Path]; !ok || newer(e, old) {
		w.writes[e.Path] = e
	}
}

func (w *world) step() error {
	i := w.rng.IntN(len(w.nodes))
	n := w.nodes[i]
	n.real.at += Stamp(w.rng.Int64N(int64(time.Second)))
	if w.rng.IntN(50) == 0 {
		n.real.at -= Stamp(time.Hour) // somebody sets the clock back
	}
	path := w.path()
	before, _ := n.tree.Entry(path)
	value := fmt.Sprintf("v%d", w.rng.IntN(5))
	switch op := w.rng.IntN(20); {
	case isLogName(path) || op < 3:
		if err := n.tree.Delete(path); err != nil {
			return err
		}
		return w.wrote(i, path, before)
	case op < 7:
		if err := n.tree.Set(path, value); err != nil {
			return err
		}
		return w.wrote(i, path, before)
	case op < 8:
		// By hand, with a stamp of the real clock that may lie behind.
		if _, ok := n.tree.Get(path); ok {
			byHand(w.t, n.tree.Root()+"/"+path, value, n.real.at)
			if _, err := n.tree.Rescan(); err != nil {
				return err
			}
			return w.wrote(i, path, before)
		}
	case op < 9:
		w.tie(i)
	case op < 14:
		w.post(i)
	default:
		return w.deliver()
	}
	return nil
}

// tie makes two nodes write different values with one stamp.
func (w *world) tie(i int) {
	w.ties++
	path := UserspacePath(fmt.Sprintf("tie-%d", w.ties))
	for k, value := range []string{"x", "y"} {
		e := Entry{path, value, testNow}
		if err := w.nodes[(i+k)%len(w.nodes)].tree.SetAt(path, value, e.Stamp); err == nil {
			w.book(e)
		}
	}
}

// post sends what has changed, or everything, to a random peer; it may get lost.
func (w *world) post(i int) {
	n, to := w.nodes[i], w.rng.IntN(len(w.nodes))
	list, next, ok := n.tree.Since(n.sent[to])
	if !ok || w.rng.IntN(8) == 0 {
		list = all(n.tree)
	}
	n.sent[to] = next
	if w.rng.IntN(4) == 0 {
		return // lost
	}
	w.rng.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
	w.mail = append(w.mail, letter{to, list})
}

// deliver takes any letter, and sometimes leaves it for a second delivery.
func (w *world) deliver() error {
	if len(w.mail) == 0 {
		return nil
	}
	k := w.rng.IntN(len(w.mail))
	l := w.mail[k]
	if w.rng.IntN(5) > 0 {
		w.mail = append(w.mail[:k], w.mail[k+1:]...)
	}
	_, err := w.nodes[l.to].tree.Merge("peer", l.list)
	return err
}

// monotone checks that no node has gone back to an older stamp.
func (w *world) monotone() error {
	for i, n := range w.nodes {
		for _, e := range all(n.tree) {
			if e.Stamp < n.seen[e.Path] {
				return fmt.Errorf("node %d: %s went back from %v to %v", i, e.Path, n.seen[e.Path], e.Stamp)
			}
			n.seen[e.Path] = e.Stamp
		}
	}
	return nil
}

// settle lets everybody exchange everything until nothing moves.
func (w *world) settle() error {
	for round := 0; ; round++ {
		if round > 2*len(w.nodes) {
			return fmt.Errorf("still moving after %d rounds", round)
		}
		moved := 0
		for _, a := range w.rng.Perm(len(w.nodes)) {
			for _, b := range w.rng.Perm(len(w.nodes)) {
				changed, err := w.nodes[b].tree.Merge("peer", all(w.nodes[a].tree))
				if err != nil {
					return err
				}
				moved += len(changed)
			}
		}
		if moved == 0 {
			return nil
		}
	}
}

// converged checks the end: all nodes hold, on disk and in memory, exactly the
// newest of all writes ever made. So what was deleted last is deleted everywhere.
func (w *world) converged() error {
	want := make(map[string]string)
	for p, e := range w.writes {
		want[p] = e.Value + "@" + e.Stamp.String()
	}
	for i, n := range w.nodes {
		got := make(map[string]string)
		for _, e := range all(n.tree) {
			got[e.Path] = e.Value + "@" + e.Stamp.String()
		}
		if d := diff(want, got); d != "" {
			return fmt.Errorf("node %d differs from the newest writes:\n%s", i, d)
		}
		if d := diff(disk(w.t, n.tree.Root()), memory(n.tree)); d != "" {
			return fmt.Errorf("node %d: disk and memory differ:\n%s", i, d)
		}
		if n.tree.RootDigest() != w.nodes[0].tree.RootDigest() {
			return fmt.Errorf("node %d: the trees are equal but their digests differ", i)
		}
	}
	return nil
}

func (w *world) run(steps int) error {
	for s := range steps {
		if err := w.step(); err != nil {
			return fmt.Errorf("step %d: %w", s, err)
		}
		if s%20 == 0 {
			if err := w.monotone(); err != nil {
				return fmt.Errorf("step %d: %w", s, err)
			}
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.monotone(); err != nil {
		return err
	}
	return w.converged()
}

func TestConvergence(t *testing.T) {
	seed := testutil.Seed(t)
	for _, nodes := range []int{2, 3, 5} {
		if err := newWorld(t, seed+uint64(nodes), nodes, nil).run(400); err != nil {
			t.Errorf("%d nodes: %v", nodes, err)
		}
	}
}

// The oracle above must notice wrong merge rules.
func TestConvergenceOracleBites(t *testing.T) {
	for name, rule := range map[string]func(a, b Entry) bool{
		"ties go to whoever was first":    func(a, b Entry) bool { return a.Stamp > b.Stamp },
		"the larger value wins":           func(a, b Entry) bool { return a.Value > b.Value },
		"the last arrival wins":           func(a, b Entry) bool { return a != b },
		"tombstones lose":                 func(a, b Entry) bool { return newer(a, b) && !a.IsDeleted() },
		"stamps count in seconds only":    func(a, b Entry) bool { return a.Stamp/1e9 > b.Stamp/1e9 },
		"ties are decided the wrong way ": func(a, b Entry) bool { return a.Stamp > b.Stamp || a.Stamp == b.Stamp && a.Value < b.Value },
	} {
		caught := false
		for seed := uint64(1); seed <= 3 && !caught; seed++ {
			err := newWorld(t, seed, 3, rule).run(250)
			if caught = err != nil; caught {
				t.Logf("%s: %.100s", name, err.Error())
			}
		}
		if !caught {
			t.Errorf("not noticed: %s", name)
		}
	}
}
