package symlinktree

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
	"sync/atomic"
)

// Entry is one link: its path relative to the root (slash separated, no leading
// slash), its text, and its mtime. A tombstone has the value Deleted.
type Entry struct {
	Path  string
	Value string
	Stamp Stamp
}

// IsDeleted reports whether e is a tombstone.
func (e Entry) IsDeleted() bool { return e.Value == Deleted }

// newer is the merge rule: the last writer wins, and equal stamps are decided
// by the value, so that every node decides alike whatever the order of arrival.
func newer(a, b Entry) bool {
	return a.Stamp > b.Stamp || a.Stamp == b.Stamp && a.Value > b.Value
}

// mergeRule is newer, but in the mutants of the cluster simulation.
var mergeRule = newer

// node is a directory in memory. It is immutable: a change copies the nodes on
// the way from the root, and shares all others. So a snapshot is one pointer.
type node struct {
	path  string  // "" is the root
	links []Entry // by Path, tombstones included
	subs  []*node // by path

	own  atomic.Pointer[digest] // of the live replicated links in this directory
	deep atomic.Pointer[digest] // of this directory and everything below
}

type digest struct {
	sum  [16]byte
	live bool // something is covered
}

func (n *node) sub(path string) (int, bool) {
	return slices.BinarySearchFunc(n.subs, path, func(s *node, p string) int { return strings.Compare(s.path, p) })
}

// find returns the directory, nil if it is not known.
func (n *node) find(dir string) *node {
	for n.path != dir {
		i, ok := n.sub(nextDir(n.path, dir))
		if !ok {
			return nil
		}
		n = n.subs[i]
	}
	return n
}

// nextDir is the directory one level below at on the way to dir.
func nextDir(at, dir string) string {
	from := 0
	if at != "" {
		from = len(at) + 1
	}
	if i := strings.IndexByte(dir[from:], '/'); i >= 0 {
		return dir[:from+i]
	}
	return dir
}

func (n *node) entry(path string) (Entry, bool) {
	dir, _ := splitPath(path)
	d := n.find(dir)
	if d == nil {
		return Entry{}, false
	}
	i, ok := searchLinks(d.links, path)
	if !ok {
		return Entry{}, false
	}
	return d.links[i], true
}

func searchLinks(links []Entry, path string) (int, bool) {
	return slices.BinarySearchFunc(links, path, func(e Entry, p string) int { return strings.Compare(e.Path, p) })
}

// update returns a tree in which edit was applied to the links of dir, which
// comes into being if it is missing.
func (n *node) update(dir string, edit func([]Entry) []Entry) *node {
	if n.path == dir {
		return &node{path: n.path, links: edit(n.links), subs: n.subs}
	}
	next := nextDir(n.path, dir)
	i, ok := n.sub(next)
	child := &node{path: next}
	if ok {
		child = n.subs[i]
	}
	subs := slices.Clone(n.subs)
	if !ok {
		subs = slices.Insert(subs, i, child)
	}
	subs[i] = child.update(dir, edit)
	return &node{path: n.path, links: n.links, subs: subs}
}

// without returns a tree that does not know dir.
func (n *node) without(dir string) *node {
	next := nextDir(n.path, dir)
	i, ok := n.sub(next)
	if !ok {
		return n
	}
	subs := slices.Clone(n.subs)
	if next == dir {
		subs = slices.Delete(subs, i, i+1)
	} else {
		subs[i] = subs[i].without(dir)
	}
	return &node{path: n.path, links: n.links, subs: subs}
}

// hasLive reports whether there is a live link in n or below.
func (n *node) hasLive() bool {
	return slices.ContainsFunc(n.links, func(e Entry) bool { return !e.IsDeleted() }) ||
		slices.ContainsFunc(n.subs, (*node).hasLive)
}

// change is an edit of the memory: an entry to put, or a path to forget.
type change struct {
	Entry
	forget bool
}

// apply returns the tree after the changes; later ones win over earlier ones.
func (n *node) apply(list []change) *node {
	byDir := make(map[string][]change)
	for _, c := range list {
		dir, _ := splitPath(c.Path)
		byDir[dir] = append(byDir[dir], c)
	}
	for dir, group := range byDir {
		n = n.update(dir, func(links []Entry) []Entry { return editLinks(links, group) })
	}
	return n
}

func editLinks(links []Entry, group []change) []Entry {
	if len(group) > 1 {
		group = slices.Clone(group)
		slices.SortStableFunc(group, func(a, b change) int { return strings.Compare(a.Path, b.Path) })
	}
	out := make([]Entry, 0, len(links)+len(group))
	at := 0
	for i, c := range group {
		if i+1 < len(group) && group[i+1].Path == c.Path {
			continue
		}
		j, ok := searchLinks(links[at:], c.Path)
		out = append(out, links[at:at+j]...)
		if at += j; ok {
			at++
		}
		if !c.forget {
			out = append(out, c.Entry)
		}
	}
	return append(out, links[at:]...)
}

// digest covers the live replicated links of the directory itself.
func (n *node) digest() digest {
	if d := n.own.Load(); d != nil {
		return *d
	}
	var d digest
	h := sha256.New()
	if c := dirClass(n.path); c == classRoot || c == classResource || c == classShared {
		for _, e := range n.links {
			if !e.IsDeleted() && Replicated(e.Path) {
				d.live = true
				hashString(h, e.Path)
				hashString(h, e.Value)
				hashInt(h, uint64(e.Stamp))
			}
		}
	}
	if d.live {
		copy(d.sum[:], h.Sum(nil))
	}
	n.own.Store(&d)
	return d
}

// total covers the directory and everything below it.
func (n *node) total() digest {
	if d := n.deep.Load(); d != nil {
		return *d
	}
	d := n.digest()
	h := sha256.New()
	h.Write(d.sum[:])
	for _, s := range n.subs {
		if sd := s.total(); sd.live {
			d.live = true
			hashString(h, s.path)
			h.Write(sd.sum[:])
		}
	}
	if d.live {
		copy(d.sum[:], h.Sum(nil))
	}
	n.deep.Store(&d)
	return d
}

func hashInt(h hash.Hash, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

func hashString(h hash.Hash, s string) {
	hashInt(h, uint64(len(s)))
	h.Write([]byte(s))
}

// Snapshot is the tree at one moment. It never changes and may be read by any
// number of goroutines.
type Snapshot struct{ top *node }

// Get returns the value of a live link; "", false for a tombstone or no link.
func (s *Snapshot) Get(path string) (value string, ok bool) {
	e, ok := s.top.entry(path)
	if !ok || e.IsDeleted() {
		return "", false
	}
	return e.Value, true
}

// Entry returns the link with its stamp, tombstones included.
func (s *Snapshot) Entry(path string) (Entry, bool) { return s.top.entry(path) }

// List returns the live links directly in dir ("" is the root), sorted.
func (s *Snapshot) List(dir string) []Entry {
	return s.filter(dir, func(e Entry) bool { return !e.IsDeleted() })
}

// Dirs returns the names of the directories directly in dir, sorted.
func (s *Snapshot) Dirs(dir string) []string {
	d := s.top.find(dir)
	if d == nil {
		return nil
	}
	names := make([]string, len(d.subs))
	for i, sub := range d.subs {
		_, names[i] = splitPath(sub.path)
	}
	return names
}

// Dir returns the replicated links directly in dir, tombstones included, sorted.
func (s *Snapshot) Dir(dir string) []Entry {
	return s.filter(dir, func(e Entry) bool { return Replicated(e.Path) })
}

func (s *Snapshot) filter(dir string, keep func(Entry) bool) []Entry {
	d := s.top.find(dir)
	if d == nil {
		return nil
	}
	out := make([]Entry, 0, len(d.links))
	for _, e := range d.links {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// RootDigest is equal on two nodes iff their DirDigests are. Like these it covers
// the path, value and stamp of live replicated links, and no tombstones.
func (s *Snapshot) RootDigest() [16]byte { return s.top.total().sum }

// DirDigests has a digest for every directory with a live replicated link; the
// key of the root is "".
func (s *Snapshot) DirDigests() map[string][16]byte {
	out := make(map[string][16]byte)
	s.top.walk(func(n *node) {
		if d := n.digest(); d.live {
			out[n.path] = d.sum
		}
	})
	return out
}

// Same reports whether the links directly in dir are those of other, without
// looking at them: false says only that something may have changed.
func (s *Snapshot) Same(other *Snapshot, dir string) bool {
	a, b := s.top.find(dir), other.top.find(dir)
	if a == b {
		return true
	}
	return a != nil && b != nil && len(a.links) == len(b.links) && (len(a.links) == 0 || &a.links[0] == &b.links[0])
}

// With returns a snapshot in which the links of put have these values, and those
// of hide are unknown. The tree is not changed.
func (s *Snapshot) With(put []Entry, hide []string) *Snapshot {
	list := make([]change, 0, len(put)+len(hide))
	for _, e := range put {
		list = append(list, change{Entry: e})
	}
	for _, path := range hide {
		list = append(list, change{Entry: Entry{Path: path}, forget: true})
	}
	return &Snapshot{top: s.top.apply(list)}
}

// AllDirs returns every known directory, parents first.
func (s *Snapshot) AllDirs() []string {
	var out []string
	s.top.walk(func(n *node) { out = append(out, n.path) })
	return out
}

func (n *node) walk(f func(*node)) {
	f(n)
	for _, s := range n.subs {
		s.walk(f)
	}
}
