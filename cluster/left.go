package cluster

import (
	"path/filepath"

	"mars/symlinktree"
)

// cleanUp takes back what this node has said about a resource that it was taken out
// of. The tombstones of its links come in any order: whoever hears that its status is deleted
// before it hears that it is no member any more, or is just publishing, says it again.
func (w *worker) cleanUp(s *symlinktree.Snapshot) {
	node, t := w.n.cfg.Node, w.n.tree
	for _, path := range leftovers(s, w.r, node) {
		_, member := t.Get(w.r.DataPath(node))
		_, device := t.Get(w.r.DevicePath(node))
		if member || device {
			return // it joins again
		}
		if err := t.Delete(path); err != nil {
			w.log.Error("cannot delete link", keyPath, path, keyErr, err)
		}
	}
}

// leftovers are the links that node has written as a member and that say nothing
// any more. It is pure. Only an explicit word counts: a membership that is deleted, not one that
// cannot be seen. Version links tell the others what the node's logs are, as long as anybody is left.
func leftovers(s *symlinktree.Snapshot, r symlinktree.Resource, node string) (list []string) {
	e, known := s.Entry(r.DataPath(node))
	if _, device := s.Get(r.DevicePath(node)); !known || e.Value != symlinktree.Deleted || device {
		return nil
	}
	for _, e := range s.List(r.ActualDir(node)) {
		list = append(list, e.Path)
	}
	if _, ok := s.Get(r.ReplayPath(node)); ok {
		list = append(list, r.ReplayPath(node))
	}
	if len(symlinktree.Members(s, r)) > 0 {
		return list
	}
	for _, e := range s.List(r.Dir()) {
		if _, host, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version"); ok && host == node {
			list = append(list, e.Path)
		}
	}
	return list
}
