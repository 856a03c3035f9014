package cluster

import (
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"mars/symlinktree"
)

// sieve keeps links whose text nobody can read away from those who act on them
// (P13): an administrator's typing error, or a link that a peer has broken. What is
// in force then is the last value that could be read, or nothing if there was none.
// It looks only at directories that have changed.
type sieve struct {
	log *slog.Logger

	mu   sync.Mutex
	last *symlinktree.Snapshot
	bad  map[string]string            // path -> what is wrong with it
	good map[string]symlinktree.Entry // the last readable value of a bad one
}

// clean returns s without the broken links in the directories, which must be the
// same each time except for new ones.
func (v *sieve) clean(s *symlinktree.Snapshot, dirs []string) *symlinktree.Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bad == nil {
		v.bad, v.good = make(map[string]string), make(map[string]symlinktree.Entry)
	}
	for _, dir := range dirs {
		var known []symlinktree.Entry
		if v.last != nil {
			if s.Same(v.last, dir) {
				continue
			}
			known = v.last.Dir(dir)
		}
		v.look(known, s.Dir(dir))
	}
	v.last = s
	if len(v.bad) == 0 {
		return s
	}
	var hide []string
	for p := range v.bad {
		if _, ok := v.good[p]; !ok {
			hide = append(hide, p)
		}
	}
	return s.With(slices.Collect(maps.Values(v.good)), hide)
}

// look compares two states of a directory; both are sorted.
func (v *sieve) look(before, now []symlinktree.Entry) {
	for len(before) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(now) == 0:
			order = -1
		case len(before) == 0:
			order = 1
		default:
			order = strings.Compare(before[0].Path, now[0].Path)
		}
		switch {
		case order < 0:
			if e := before[0]; !e.IsDeleted() {
				v.broken(e.Path, "it is no link with a text any more", e, true)
			}
			before = before[1:]
		case order > 0:
			v.changed(symlinktree.Entry{}, false, now[0])
			now = now[1:]
		default:
			if before[0] != now[0] {
				v.changed(before[0], true, now[0])
			}
			before, now = before[1:], now[1:]
		}
	}
}

func (v *sieve) changed(before symlinktree.Entry, known bool, now symlinktree.Entry) {
	if err := symlinktree.CheckValue(now.Path, now.Value); err != nil {
		v.broken(now.Path, fmt.Sprintf("%q: %v", now.Value, err), before, known)
		return
	}
	if _, ok := v.bad[now.Path]; ok {
		v.log.Info("link can be read again", keyPath, now.Path, keyValue, now.Value)
		delete(v.bad, now.Path)
		delete(v.good, now.Path)
	}
}

func (v *sieve) broken(path, why string, before symlinktree.Entry, known bool) {
	if _, was := v.bad[path]; !was && known && !before.IsDeleted() {
		v.good[path] = before
	}
	v.bad[path] = why
	inForce := "nothing"
	if g, ok := v.good[path]; ok {
		inForce = g.Value
	}
	v.log.Warn("ignoring a broken link", keyPath, path, keyErr, why, "in-force", inForce)
}

// complaint says what is broken, "" if nothing is.
func (v *sieve) complaint() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.bad) == 0 {
		return ""
	}
	var parts []string
	for _, p := range slices.Sorted(maps.Keys(v.bad)) {
		if len(parts) == maxComplaints {
			parts = append(parts, fmt.Sprintf("and %d more", len(v.bad)-maxComplaints))
			break
		}
		inForce := "it counts as missing"
		if g, ok := v.good[p]; ok {
			inForce = fmt.Sprintf("%q stays in force", g.Value)
		}
		parts = append(parts, fmt.Sprintf("%s: %.200s; %s", p, v.bad[p], inForce))
	}
	return "broken links are ignored, set them anew: " + strings.Join(parts, "; ")
}

// maxComplaints bounds the length of a message.
const maxComplaints = 4

// lost are the broken links of which a readable value is known.
func (v *sieve) lost() []symlinktree.Entry {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Values(v.good))
}

// links are those of the cluster as the node may act on them.
func (n *Node) links() *symlinktree.Snapshot {
	s := n.tree.Snapshot()
	dirs := []string{"", "ips", "todo-global", "defaults"}
	for _, d := range s.Dirs("") {
		if strings.HasPrefix(d, "defaults-") {
			dirs = append(dirs, d)
		}
	}
	return n.sieve.clean(s, dirs)
}

// sayBroken publishes which links of the cluster are broken.
func (n *Node) sayBroken() {
	n.links()
	path, text := symlinktree.ActualPath(n.cfg.Node, "msg-"+msgBroken), n.sieve.complaint()
	if text == n.saidBroken {
		return
	}
	n.saidBroken = text
	if text == "" {
		n.put(path, symlinktree.MessageOK)
	} else {
		n.put(path, n.message(text))
	}
}

// unsayBroken takes back what was said before a restart.
func (n *Node) unsayBroken() {
	path := symlinktree.ActualPath(n.cfg.Node, "msg-"+msgBroken)
	if v, ok := n.tree.Get(path); ok && v != symlinktree.MessageOK {
		n.put(path, symlinktree.MessageOK)
	}
}

// tree is the tree as the worker may act on it.
func (w *worker) tree() *symlinktree.Snapshot {
	s := w.n.tree.Snapshot()
	dirs := []string{w.r.Dir()}
	for _, d := range s.Dirs(w.r.Dir()) {
		dirs = append(dirs, w.r.Path(d))
	}
	return w.sieve.clean(s, dirs)
}

// get reads a link of the resource as it is in force.
func (w *worker) get(path string) string {
	v, _ := w.tree().Get(path)
	return v
}

// mend sets links again that only this node writes, if somebody has broken them:
// after a restart nobody would know what they said.
func (w *worker) mend(s *symlinktree.Snapshot) {
	if _, member := s.Get(w.r.DataPath(w.n.cfg.Node)); !member {
		return
	}
	for _, e := range w.sieve.lost() {
		dir, name := path.Split(e.Path)
		if dir != w.r.Dir()+"/" {
			continue
		}
		_, host, ok := symlinktree.NumberedOf(name, "version")
		for _, prefix := range []string{"replay", "syncstatus", "syncpos", "verifystatus", "actsize"} {
			if h, is := symlinktree.HostOf(name, prefix); is {
				host, ok = h, true
			}
		}
		if ok && host == w.n.cfg.Node {
			w.n.put(e.Path, e.Value)
		}
	}
}
