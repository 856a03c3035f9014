package symlinktree

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// load reads the whole tree at Open.
func (t *Tree) load() error {
	top, err := t.scan("")
	if err != nil {
		return err
	}
	var stamps []Stamp
	var newest Stamp
	limit := t.clock.Limit()
	poisoned := 0
	top.walk(func(n *node) {
		for _, e := range n.links {
			stamps = append(stamps, e.Stamp)
			if e.Stamp > limit {
				poisoned++
			} else {
				newest = max(newest, e.Stamp)
			}
		}
	})
	if poisoned*2 > len(stamps) {
		// One broken clock in the past leaves a few such links. When most of the
		// tree seems to come from the future, it is our clock that is wrong.
		slices.Sort(stamps)
		median := stamps[len(stamps)/2]
		t.clock.trust(median)
		t.log.Warn("the clock of this node is far behind the stamps of its own tree; set it (NTP)", keyStamp, median.String())
		limit = t.clock.Limit()
		i, _ := slices.BinarySearch(stamps, limit+1)
		newest = stamps[max(i-1, 0)]
	}
	if err := t.clock.Observe(newest); err != nil {
		return err
	}
	t.top.Store(top)
	if poisoned == 0 || t.passive {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var bad []string
	top.walk(func(n *node) {
		for _, e := range n.links {
			if e.Stamp > limit {
				bad = append(bad, e.Path)
			}
		}
	})
	for _, path := range bad {
		if _, err := t.reconcile(path, false); err != nil {
			return err
		}
	}
	return nil
}

// scan reads dir and everything below it.
func (t *Tree) scan(dir string) (*node, error) {
	list, err := t.fs.ReadDir(t.abs(dir))
	if err != nil {
		return nil, err
	}
	n := &node{path: dir, links: make([]Entry, 0, len(list))}
	for _, de := range list {
		name := de.Name()
		path := joinPath(dir, name)
		if checkComponent(name) != nil {
			continue
		}
		d, err := t.look(path)
		if err != nil {
			return nil, err
		}
		isDir := childClass(dir, name) != classUnknown
		switch {
		case d.kind == directory && isDir:
			sub, err := t.scan(path)
			if notThere(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			n.subs = append(n.subs, sub)
		case d.kind == link && !isDir && ValidPath(path) == nil:
			n.links = append(n.links, Entry{Path: path, Value: d.value, Stamp: d.stamp})
		case d.kind == badLink:
			t.log.Warn("ignoring a link with an unusable text", keyPath, path)
		}
	}
	slices.SortFunc(n.links, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(n.subs, func(a, b *node) int { return strings.Compare(a.path, b.path) })
	return n, nil
}

// rescanDir compares one directory with the memory, and tells its sub-directories
// of a known class. It does not enter these.
func (t *Tree) rescanDir(dir string, patience bool) (out outcome, subs []string, err error) {
	if dir == "" {
		if err := t.checkRoot(); err != nil {
			return out, nil, err
		}
	}
	there, err := t.isDir(dir)
	if err == nil && there {
		var names []string
		if names, subs, err = t.differing(dir); err == nil {
			out, err = t.settle(dir, names, subs, patience)
			return out, subs, err
		}
	}
	if err != nil && !notThere(err) {
		return out, nil, fmt.Errorf("rescan %s: %w", t.abs(dir), err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return out, nil, t.loseDir(dir)
}

// differing reads the directory without any lock and returns the paths that need
// a closer look, and the sub-directories.
func (t *Tree) differing(dir string) (paths, subs []string, err error) {
	list, err := t.fs.ReadDir(t.abs(dir))
	if err != nil {
		return nil, nil, err
	}
	n := t.top.Load().find(dir)
	if n == nil {
		n = &node{path: dir}
	}
	seen := make([]bool, len(n.links))
	for _, de := range list {
		name := de.Name()
		if checkComponent(name) != nil {
			continue
		}
		path := joinPath(dir, name)
		if childClass(dir, name) != classUnknown {
			if there, err := t.isDir(path); err != nil {
				return nil, nil, err
			} else if there {
				subs = append(subs, path)
			}
			continue
		}
		i, known := searchLinks(n.links, path)
		if known {
			seen[i] = true
		}
		d, err := t.glance(t.abs(path))
		if err != nil {
			return nil, nil, err
		}
		same := known && d == (found{kind: link, value: n.links[i].Value, stamp: n.links[i].Stamp})
		if !same && (known || d.kind == link) {
			paths = append(paths, path)
		}
	}
	for i, e := range n.links {
		if !seen[i] {
			paths = append(paths, e.Path)
		}
	}
	return paths, subs, nil
}

// glance is a probe that may mix text and stamp of two successive links. It is
// good enough to find out that nothing has changed.
func (t *Tree) glance(name string) (found, error) {
	st, err := t.fs.Lstat(name)
	if err != nil || st.Mode().Type() != symlinkMode {
		if notThere(err) {
			err = nil
		}
		return found{}, err
	}
	value, err := t.fs.Readlink(name)
	if err != nil {
		return found{kind: link}, nil // replaced meanwhile: have a closer look
	}
	return found{kind: link, value: value, stamp: stampOf(st.ModTime())}, nil
}

// settle reconciles the given paths of dir, and what memory knows about
// sub-directories with those that are there.
func (t *Tree) settle(dir string, paths, subs []string, patience bool) (out outcome, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs errorList
	if t.lost[dir] {
		if err := t.restore(dir); err != nil {
			return out, fmt.Errorf("restore the links of %s: %w", t.abs(dir), err)
		}
	}
	if t.top.Load().find(dir) == nil {
		t.learnDir(dir)
	}
	for _, path := range paths {
		more, err := t.reconcile(path, patience)
		out.add(more)
		if errs.add(err); errors.Is(err, ErrVanished) {
			break
		}
	}
	slices.Sort(subs)
	if n := t.top.Load().find(dir); n != nil {
		for _, s := range n.subs {
			if _, ok := slices.BinarySearch(subs, s.path); !ok {
				errs.add(t.missingDir(s.path))
			}
		}
	}
	return out, errs.join()
}

// missingDir settles a known directory that was not found in its parent.
func (t *Tree) missingDir(dir string) error {
	there, err := t.isDir(dir)
	if err != nil || there {
		return err
	}
	return t.loseDir(dir)
}

// errorList collects errors, the first few in full.
type errorList struct {
	list []error
	more int
}

func (l *errorList) add(err error) {
	switch {
	case err == nil:
	case len(l.list) < maxRefusals:
		l.list = append(l.list, err)
	default:
		l.more++
	}
}

func (l *errorList) join() error {
	if l.more > 0 {
		return errors.Join(append(l.list, fmt.Errorf("and %d more errors", l.more))...)
	}
	return errors.Join(l.list...)
}

// Rescan compares the disk with the memory: edits by hand and by other
// processes. Without arguments it does so for the whole tree, else for the given
// directories ("" is the root) and those in them that were not known yet. See the
// package comment for how differences are settled. A vanished directory changes
// nothing and is reported as ErrVanished; the rest of the tree is done all the same.
func (t *Tree) Rescan(dirs ...string) (changed []Entry, err error) {
	out, err := t.rescan(dirs, scanOptions{})
	return out.changed, err
}

type scanOptions struct {
	patience bool             // vanished links and passing names are for a second look
	deep     bool             // enter all sub-directories, not just new ones
	visit    func(dir string) // called before a directory is read
}

func (t *Tree) rescan(dirs []string, opt scanOptions) (out outcome, err error) {
	queue := slices.Clone(dirs)
	if len(dirs) == 0 {
		queue, opt.deep = []string{""}, true
	}
	var errs errorList
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		if dirClass(dir) == classUnknown {
			errs.add(fmt.Errorf("rescan: %w %.80q: not a directory of the tree", ErrPath, dir))
			continue
		}
		before := t.top.Load().find(dir)
		if opt.visit != nil {
			opt.visit(dir)
		}
		more, subs, err := t.rescanDir(dir, opt.patience)
		out.add(more)
		if errs.add(err); errors.Is(err, ErrRootGone) {
			break
		}
		for _, s := range subs {
			fresh := before == nil
			if !fresh {
				_, known := before.sub(s)
				fresh = !known
			}
			if opt.deep || fresh || t.isLost(s) {
				queue = append(queue, s)
			}
		}
	}
	return out, errs.join()
}

func (t *Tree) isLost(dir string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost[dir]
}

// RemoveTemp removes temporary links older than age that a crash has left
// behind, in all directories of the tree, and returns their number.
func (t *Tree) RemoveTemp(age time.Duration) (n int, err error) {
	if t.readOnly {
		return 0, ErrReadOnly
	}
	var errs errorList
	for _, dir := range t.Snapshot().AllDirs() {
		list, err := t.fs.ReadDir(t.abs(dir))
		if err != nil {
			if !notThere(err) {
				errs.add(err)
			}
			continue
		}
		for _, de := range list {
			if !strings.HasPrefix(de.Name(), tempPrefix) {
				continue
			}
			name := t.abs(joinPath(dir, de.Name()))
			st, err := t.fs.Lstat(name)
			if err != nil || st.Mode().Type() != symlinkMode || t.clock.real().Sub(createdAt(st)) < age {
				continue
			}
			if err := t.fs.Remove(name); err == nil {
				n++
			} else if !notThere(err) {
				errs.add(err)
			}
		}
	}
	return n, errs.join()
}
