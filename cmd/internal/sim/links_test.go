package sim

import (
	"strings"

	"mars/symlinktree"
)

// links judges the trees: on no node a link may go back to an older value or vanish, and in
// the end everybody has the newest one that anybody has ever shown.
type links struct {
	w    *world
	seen map[*node]map[string]symlinktree.Entry
	last map[*node]*symlinktree.Snapshot
}

func newLinks(w *world) *links {
	return &links{w: w, seen: map[*node]map[string]symlinktree.Entry{}, last: map[*node]*symlinktree.Snapshot{}}
}

// newer is the order of the merge, said once more: stamp, then value.
func newer(a, b symlinktree.Entry) bool {
	return a.Stamp > b.Stamp || a.Stamp == b.Stamp && a.Value > b.Value
}

// look compares the tree of a running node with what it showed before.
func (l *links) look(n *node, s *symlinktree.Snapshot, when string) {
	if l.seen[n] == nil {
		l.seen[n] = map[string]symlinktree.Entry{}
	}
	seen, last := l.seen[n], l.last[n]
	for _, dir := range s.AllDirs() {
		if last != nil && s.Same(last, dir) {
			continue
		}
		here := map[string]bool{}
		for _, e := range s.Dir(dir) {
			if !symlinktree.Replicated(e.Path) {
				continue
			}
			here[e.Path] = true
			if old, ok := seen[e.Path]; ok && newer(old, e) {
				l.w.violation("link-lost", "%s, %s: %s went back from %q @%v to %q @%v", n.name, when, e.Path, old.Value, old.Stamp, e.Value, e.Stamp)
			}
			seen[e.Path] = e
		}
		if last == nil {
			continue
		}
		for _, e := range last.Dir(dir) {
			if symlinktree.Replicated(e.Path) && !here[e.Path] {
				l.w.violation("link-lost", "%s, %s: %s -> %q @%v has vanished", n.name, when, e.Path, e.Value, e.Stamp)
			}
		}
	}
	l.last[n] = s
}

// reset takes what a power cut has left of the node's tree as what it has shown.
func (l *links) reset(n *node, s *symlinktree.Snapshot) {
	l.seen[n], l.last[n] = map[string]symlinktree.Entry{}, nil
	for _, dir := range s.AllDirs() {
		for _, e := range s.Dir(dir) {
			if symlinktree.Replicated(e.Path) {
				l.seen[n][e.Path] = e
			}
		}
	}
}

// volatile links change all the time.
func volatile(path string) bool { return strings.HasSuffix(path, "/time") }

// missable are tombstones of logfiles: digests of trees cover live links only, and a logfile is none, so a
// node that was down when one was written and has the file never hears of it. A known
// weakness; what it costs is space.
func missable(e symlinktree.Entry) bool {
	return e.IsDeleted() && strings.Contains(e.Path, "/log-")
}

// difference is what two of the trees disagree about, or what all of them have lost; "" if nothing.
func (l *links) difference() string {
	best := map[string]symlinktree.Entry{}
	for _, seen := range l.seen {
		for p, e := range seen {
			if b, ok := best[p]; !volatile(p) && !missable(e) && (!ok || newer(e, b)) {
				best[p] = e
			}
		}
	}
	for _, n := range l.w.nodes {
		s := n.snapshot()
		if s == nil {
			return n.name + " does not run"
		}
		for p, e := range best {
			if have, ok := s.Entry(p); !ok || newer(e, have) {
				return n.name + " has " + p + " -> " + have.Value + " @" + have.Stamp.String() + ", somebody had " + e.Value + " @" + e.Stamp.String()
			}
		}
	}
	return ""
}
