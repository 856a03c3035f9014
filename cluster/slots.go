package cluster

import (
	"slices"
	"strings"
	"sync"

	"mars/symlinktree"
)

// syncWish is a resource of this node that needs a full sync.
type syncWish struct {
	r       symlinktree.Resource
	able    bool // nothing else keeps it from running: not paused, source alive, attached
	running bool
}

// syncTurns says which syncs may run (reference symlink-tree 4.15): as many as limit at a time, 0 for
// any number. Who runs goes on, the others follow in the order of prefer, then by name. Who cannot run takes no place.
func syncTurns(limit int, prefer []string, wishes []syncWish) map[symlinktree.Resource]bool {
	rank := func(w syncWish) int {
		if i := slices.Index(prefer, string(w.r)); i >= 0 {
			return i
		}
		return len(prefer)
	}
	list := slices.Clone(wishes)
	slices.SortFunc(list, func(a, b syncWish) int {
		switch {
		case a.running != b.running:
			return b2i(b.running) - b2i(a.running)
		case rank(a) != rank(b):
			return rank(a) - rank(b)
		}
		return strings.Compare(string(a.r), string(b.r))
	})
	turns := make(map[symlinktree.Resource]bool)
	for _, w := range list {
		if w.able && (limit <= 0 || len(turns) < limit) {
			turns[w.r] = true
		}
	}
	return turns
}

// syncSlots are the syncs that run on this node.
type syncSlots struct {
	mu      sync.Mutex
	running map[symlinktree.Resource]bool
}

// take reserves a place; false: there is none.
func (s *syncSlots) take(r symlinktree.Resource, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > 0 && len(s.running) >= limit && !s.running[r] {
		return false
	}
	if s.running == nil {
		s.running = make(map[symlinktree.Resource]bool)
	}
	s.running[r] = true
	return true
}

func (s *syncSlots) give(r symlinktree.Resource) (was bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was = s.running[r]
	delete(s.running, r)
	return was
}

func (s *syncSlots) has(r symlinktree.Resource) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[r]
}

// syncLimit reads how many syncs may run here, and in which order.
func (n *Node) syncLimit() (limit int, prefer []string) {
	s := n.links()
	v, _ := s.Get(symlinktree.HostDefaultsPath(n.cfg.Node, "sync-limit"))
	p, _ := s.Get(symlinktree.HostDefaultsPath(n.cfg.Node, "sync-pref-list"))
	if p != "" && p != symlinktree.NoHost {
		prefer = splitList(p)
	}
	return int(symlinktree.LeadingInt(v)), prefer
}

// syncTurn reports whether it is the turn of w's sync.
func (w *worker) syncTurn(s *symlinktree.Snapshot, alive map[string]bool) bool {
	limit, prefer := w.n.syncLimit()
	if limit <= 0 {
		return true
	}
	if in := readIntent(s, w.r, w.n.cfg.Node); in.synced >= in.size {
		return true
	}
	var wishes []syncWish
	for _, o := range w.n.allWorkers() {
		wish := syncWish{r: o.r, running: w.n.slots.has(o.r)}
		in := readIntent(s, o.r, w.n.cfg.Node)
		if in.synced >= in.size && !wish.running {
			continue
		}
		wish.able = in.member && in.attach && !o.syncHeld.Load() && syncObstacle(s, o.r, in, w.n.cfg.Node, alive) == "" &&
			(o.engine() != nil || wish.running)
		wishes = append(wishes, wish)
	}
	return syncTurns(limit, prefer, wishes)[w.r]
}

// syncObstacle is why a full sync cannot run at all, "" if it can.
func syncObstacle(s *symlinktree.Snapshot, r symlinktree.Resource, in intent, node string, alive map[string]bool) string {
	flag := func(name string) bool { v, _ := s.Get(r.ActualPath(in.primary, name)); return symlinktree.Switch(v) }
	switch {
	case !in.sync:
		return "paused"
	case in.primary == "" || in.primary == symlinktree.NoHost || in.primary == node:
		return "no other node is designated primary"
	case !alive[in.primary]:
		return in.primary + " is silent"
	case !flag("is-primary"):
		return in.primary + " is not primary yet"
	case flag("is-emergency"):
		return in.primary + " is in emergency mode"
	}
	return ""
}
