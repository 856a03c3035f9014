package symlinktree

import (
	"fmt"
	"slices"
)

// Set writes a value with a new stamp, newer than any known for the path, in
// memory or on the disk. It does nothing if the link has that value already.
// Directories are made as needed. The value Deleted makes a tombstone. The link
// is atomic but not yet durable: see SyncDir and SetAllDurable.
func (t *Tree) Set(path, value string) error { return t.set(path, value, false) }

// Touch is Set with a new stamp even if the value is equal.
func (t *Tree) Touch(path, value string) error { return t.set(path, value, true) }

// Delete leaves a tombstone, whether or not there was a link. It also replaces a
// regular file of that name: deleting a logfile is this.
func (t *Tree) Delete(path string) error { return t.set(path, Deleted, false) }

func (t *Tree) set(path, value string, force bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.setLocked(path, value, force)
}

func (t *Tree) setLocked(path, value string, force bool) error {
	if err := t.checkWrite(path, value); err != nil {
		return fmt.Errorf("set %.200q: %w", path, err)
	}
	known, _ := t.top.Load().entry(path)
	err := t.storeAndPublish(path, known, func(d found) (verdict, error) {
		switch d.kind {
		case regular:
			if err := replaceable(path, value, d); err != nil && value != Deleted {
				return verdict{}, err
			}
		case directory, strange:
			return verdict{}, ErrIsDirectory
		case link:
			if d.value == value && !force && t.inOrder(d, known) {
				return verdict{}, nil
			}
		}
		return verdict{write: true, value: value, stamp: t.stampAfter(d, known)}, nil
	})
	if err != nil {
		return fmt.Errorf("set %s/%s to %.80q: %w", t.root, path, value, err)
	}
	return nil
}

// SetAt writes a value with an explicit stamp: one that is meant to lose against
// a real one elsewhere (joining, giving up a role). If the link there is newer,
// nothing is written and the error is ErrStale.
func (t *Tree) SetAt(path, value string, s Stamp) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.checkWrite(path, value)
	if err == nil && s <= 0 {
		err = fmt.Errorf("%w: stamp %v is not after 1970", ErrValue, s)
	}
	if err == nil {
		err = t.clock.Observe(s)
	}
	if err != nil {
		return fmt.Errorf("set %.200q at %v: %w", path, s, err)
	}
	known, ok := t.top.Load().entry(path)
	offer := Entry{Path: path, Value: value, Stamp: s}
	err = t.storeAndPublish(path, known, func(d found) (verdict, error) {
		if ok && !t.poisoned(known.Stamp) && newer(known, offer) {
			return verdict{}, ErrStale
		}
		return t.contest(offer, d, newer)
	})
	if err != nil {
		return fmt.Errorf("set %s/%s to %.80q at %v: %w", t.root, path, value, s, err)
	}
	return nil
}

// contest decides whether offer, which carries its own stamp, goes over d. The
// error is ErrStale if d is newer; an equal entry is no error and no write.
func (t *Tree) contest(offer Entry, d found, wins func(a, b Entry) bool) (verdict, error) {
	v := verdict{write: true, value: offer.Value, stamp: offer.Stamp}
	switch d.kind {
	case directory, strange:
		return verdict{}, ErrIsDirectory
	case regular:
		return v, replaceable(offer.Path, offer.Value, d)
	case link:
		there := Entry{Path: offer.Path, Value: d.value, Stamp: d.stamp}
		switch {
		case there == offer:
			return verdict{}, nil
		case !t.poisoned(d.stamp) && !wins(offer, there):
			return verdict{}, ErrStale
		}
	}
	return v, nil
}

// replaceable says whether a link with value may take the place of a regular
// file: a tombstone may replace a logfile, anything an empty file. Nothing else,
// because somebody may keep his data in a file there.
func replaceable(path, value string, d found) error {
	switch {
	case isLogName(path) && value == Deleted, !isLogName(path) && d.size == 0:
		return nil
	case isLogName(path):
		return fmt.Errorf("%w: a logfile, only a tombstone may replace it", ErrRegularFile)
	}
	return fmt.Errorf("%w of %d bytes; remove it by hand if it is not needed", ErrRegularFile, d.size)
}

// checkWrite checks an own write. A live link in the place of a logfile would
// keep the logfile from being made.
func (t *Tree) checkWrite(path, value string) error {
	if t.readOnly {
		return ErrReadOnly
	}
	if err := ValidPath(path); err != nil {
		return err
	}
	if err := ValidValue(value); err != nil {
		return err
	}
	if isLogName(path) && value != Deleted {
		return fmt.Errorf("%w: the name belongs to a logfile, only a tombstone may stand there", ErrPath)
	}
	return nil
}

// storeAndPublish stores and takes the outcome into memory: what was written, or
// what was found there instead of what memory knew.
func (t *Tree) storeAndPublish(path string, known Entry, decide func(found) (verdict, error)) error {
	if err := t.checkNanoseconds(); err != nil {
		return err
	}
	was, v, err := t.store(path, decide)
	if err != nil {
		return err
	}
	e := Entry{Path: path, Value: v.value, Stamp: v.stamp}
	if !v.write {
		if was.kind != link {
			return nil
		}
		e.Value, e.Stamp = was.value, was.stamp
		if err := t.clock.Observe(e.Stamp); err != nil {
			return err
		}
	}
	if e != known {
		t.publish(change{Entry: e})
	}
	return nil
}

// inOrder reports whether d, found on the disk, is what memory knows or newer:
// if not, somebody has edited the link without a fitting stamp.
func (t *Tree) inOrder(d found, known Entry) bool {
	if t.poisoned(d.stamp) {
		return false
	}
	return d.stamp > known.Stamp || d.stamp == known.Stamp && d.value == known.Value
}

func (t *Tree) poisoned(s Stamp) bool { return s > t.clock.Limit() }

// stampAfter returns a stamp newer than what is on the disk and in memory. A
// stamp from the far future does not count: it is what must be got rid of.
func (t *Tree) stampAfter(d found, known Entry) Stamp {
	for _, s := range []Stamp{d.stamp, known.Stamp} {
		// An error means that s is poisoned, and to be ignored.
		_ = t.clock.Observe(s)
	}
	return t.clock.Now()
}

// checkNanoseconds refuses to work on a file system that rounds mtimes: order
// and equality of values would silently break. It looks once, before the first write.
func (t *Tree) checkNanoseconds() error {
	if t.checked || t.readOnly {
		return nil
	}
	tmp := t.temp("probe")
	const odd = Stamp(1_000_000_000_123_456_789)
	if err := t.fs.Symlink(Deleted, tmp, odd.Time()); err != nil {
		return err
	}
	defer t.discard(tmp)
	st, err := t.fs.Lstat(tmp)
	if err != nil {
		return err
	}
	if got := stampOf(st.ModTime()); got != odd {
		return fmt.Errorf("the file system of %s rounds time stamps (%v became %v); use one that keeps nanoseconds: ext4 with 256-byte inodes, xfs, btrfs", t.root, odd, got)
	}
	t.checked = true
	return nil
}

// SetAll is Set for each entry in order; their Stamps are ignored. It stops at
// the first error.
func (t *Tree) SetAll(list ...Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range list {
		if err := t.setLocked(e.Path, e.Value, false); err != nil {
			return err
		}
	}
	return nil
}

// SetAllDurable is SetAll followed by one sync of each directory concerned. When
// it returns nil, the links survive a power failure.
func (t *Tree) SetAllDurable(list ...Entry) error {
	if err := t.SetAll(list...); err != nil {
		return err
	}
	var dirs []string
	for _, e := range list {
		if dir, _ := splitPath(e.Path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err := t.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes the links in dir ("" is the root) durable, and the directory itself.
func (t *Tree) SyncDir(dir string) error {
	var chain []string // what has to be synced, from the leaf upwards
	t.mu.Lock()
	for at := dir; ; at, _ = splitPath(at) {
		chain = append(chain, at)
		if at == "" || t.anchored[at] {
			break
		}
	}
	t.mu.Unlock()
	for _, at := range chain {
		if err := t.fs.SyncDir(t.abs(at)); err != nil {
			return fmt.Errorf("sync directory %s: %w", t.abs(at), err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range chain {
		t.anchored[at] = true
	}
	return nil
}

// Unlink removes a link from the disk and from memory, with no tombstone: for
// links that are not replicated, and for old tombstones. A peer that still has
// the link will bring it back. No link is no error; what somebody puts there
// meanwhile survives.
func (t *Tree) Unlink(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.unlink(path); err != nil {
		return fmt.Errorf("unlink %s/%.200s: %w", t.root, path, err)
	}
	return nil
}

func (t *Tree) unlink(path string) error {
	if t.readOnly {
		return ErrReadOnly
	}
	if err := ValidPath(path); err != nil {
		return err
	}
	d, err := t.probe(t.abs(path))
	if err != nil {
		return err
	}
	switch d.kind {
	case regular:
		return ErrRegularFile
	case directory, strange:
		return ErrIsDirectory
	case link, badLink:
		if err := t.takeAway(path, d); err != nil {
			return err
		}
	}
	if _, ok := t.top.Load().entry(path); ok {
		t.publish(change{Entry: Entry{Path: path}, forget: true})
	}
	return nil
}

// takeAway removes d from path. It moves it aside first, to see that it was d.
func (t *Tree) takeAway(path string, d found) error {
	name, tmp := t.abs(path), t.temp(path)
	if done, err := t.renamed(t.fs.Rename(name, tmp)); !done {
		return err
	}
	moved, err := t.probe(tmp)
	if err != nil {
		return err
	}
	if moved != d && t.swap != nil && !t.noSwap.Load() {
		if err := t.swap.RenameNoReplace(tmp, name); err == nil {
			return fmt.Errorf("%w: somebody has just written it", ErrContended)
		}
	}
	t.discard(tmp)
	return nil
}

// RemoveDir removes an empty directory, from the disk and from memory.
func (t *Tree) RemoveDir(dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := dirClass(dir); t.readOnly || c == classUnknown || c == classRoot {
		return fmt.Errorf("remove directory %.200q: %w", dir, ErrPath)
	}
	if err := t.fs.Remove(t.abs(dir)); err != nil && !notThere(err) {
		return fmt.Errorf("remove directory: %w", err)
	}
	delete(t.lost, dir)
	delete(t.anchored, dir)
	t.forgetDir(dir)
	return nil
}
