package cluster

import (
	"testing"

	"mars/logfile"
	"mars/symlinktree"
)

// A log of a branch that was given up is not on the way of a node that stands on the other one: its
// deletion need not be refused there (found by the simulation: the trees never became equal).
func TestFollows(t *testing.T) {
	name := func(seq int, host string) logfile.Name { return logfile.Name{Seq: seq, Host: host} }
	v := versions{bySeq: map[int]map[string]symlinktree.Version{}}
	add := func(seq int, origin string, prev symlinktree.Version) symlinktree.Version {
		l := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: seq, Origin: origin, Prev: prev.Head()}
		if v.bySeq[seq] == nil {
			v.bySeq[seq] = map[string]symlinktree.Version{}
		}
		v.bySeq[seq][origin] = l
		return l
	}
	one := add(1, "a", symlinktree.Version{Digest: symlinktree.ZeroDigest, Origin: "a"})
	two := add(2, "a", one)
	add(12, "a", two) // after emergency mode: numbers are left out
	b := add(3, "b", two)
	add(4, "b", b)
	for _, c := range []struct {
		from, log logfile.Name
		want      bool
	}{
		{name(1, "a"), name(2, "a"), true},
		{name(1, "a"), name(4, "b"), true},
		{name(2, "a"), name(12, "a"), true},
		{name(3, "b"), name(12, "a"), false},
		{name(4, "b"), name(12, "a"), false},
		{name(2, "a"), name(5, "b"), false},
	} {
		if got := v.follows(c.from, c.log); got != c.want {
			t.Errorf("%v follows %v: %v", c.log, c.from, got)
		}
	}
}
