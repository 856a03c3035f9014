package symlinktree

import "fmt"

// outcome of looking at the disk again.
type outcome struct {
	changed []Entry
	gone    []string // links that have vanished, left for a second look
}

func (o *outcome) add(more outcome) {
	o.changed = append(o.changed, more.changed...)
	o.gone = append(o.gone, more.gone...)
}

// reconcile compares the disk with the memory for one path and settles the
// difference. The caller holds mu. With patience, a vanished link is only
// reported in gone.
func (t *Tree) reconcile(path string, patience bool) (out outcome, err error) {
	if ValidPath(path) != nil {
		return out, nil
	}
	for range attempts {
		known, isKnown := t.top.Load().entry(path)
		d, err := t.look(path)
		if err != nil {
			return out, err
		}
		switch {
		case d.kind == link && !isKnown && patience && isPassing(path):
			out.gone = append(out.gone, path)
			return out, nil
		case d.kind == absent && !isKnown, d.kind == link && isKnown && d == (found{kind: link, value: known.Value, stamp: known.Stamp}) && (t.passive || !t.poisoned(d.stamp)):
			return out, nil
		case d.kind == absent:
			done, more, err := t.vanished(known, patience)
			out.add(more)
			if done || err != nil {
				return out, err
			}
		case d.kind != link:
			if isKnown {
				t.log.Info("a link has given way to something else", keyPath, path)
				t.publish(change{Entry: known, forget: true})
			}
			return out, nil
		case t.passive, !t.poisoned(d.stamp) && (!isKnown || t.poisoned(known.Stamp) || d.stamp > known.Stamp):
			// Observe fails for a poisoned stamp only, which we are not to repair.
			_ = t.clock.Observe(d.stamp)
			e := Entry{Path: path, Value: d.value, Stamp: d.stamp}
			t.publish(change{Entry: e})
			out.changed = append(out.changed, e)
			return out, nil
		default:
			done, more, err := t.restamp(path, d, known)
			out.add(more)
			if done || err != nil {
				return out, err
			}
		}
	}
	return out, fmt.Errorf("rescan %s: %w", t.abs(path), ErrContended)
}

// isPassing reports whether path looks like the name under which "ln -sfn" (coreutils
// and gnulib: CuXXXXXX) makes a link before it renames it. Such a name is taken only
// if it is still there at the second look, or peers would keep tombstones of it.
func isPassing(path string) bool {
	_, name := splitPath(path)
	return len(name) == 8 && name[:2] == "Cu"
}

// restamp takes an edit that came without a stamp of its own order: a link set
// back in time, an equal stamp, or one from the far future. It gets one of now.
func (t *Tree) restamp(path string, d found, known Entry) (done bool, out outcome, err error) {
	_, v, err := t.store(path, func(now found) (verdict, error) {
		return verdict{write: now == d, value: d.value, stamp: t.stampAfter(d, known)}, nil
	})
	if err != nil || !v.write {
		return false, out, err
	}
	e := Entry{Path: path, Value: v.value, Stamp: v.stamp}
	t.log.Info("link edited by hand, stamped anew", keyPath, path, keyValue, e.Value, keyStamp, e.Stamp.String())
	t.publish(change{Entry: e})
	out.changed = append(out.changed, e)
	return true, out, nil
}

// vanished settles a link that memory knows and the disk does not.
func (t *Tree) vanished(known Entry, patience bool) (done bool, out outcome, err error) {
	dir, _ := splitPath(known.Path)
	if err := t.checkRoot(); err != nil {
		return true, out, err
	}
	if there, err := t.isDir(dir); err != nil || !there {
		if err == nil {
			err = t.loseDir(dir)
		}
		return true, out, err
	}
	switch {
	case t.passive, known.IsDeleted(), !Replicated(known.Path):
		t.publish(change{Entry: known, forget: true})
		return true, out, nil
	case patience:
		out.gone = append(out.gone, known.Path)
		return true, out, nil
	}
	_, v, err := t.store(known.Path, func(now found) (verdict, error) {
		return verdict{write: now.kind == absent, value: Deleted, stamp: t.stampAfter(now, known)}, nil
	})
	if err != nil || !v.write {
		return false, out, err
	}
	e := Entry{Path: known.Path, Value: Deleted, Stamp: v.stamp}
	t.log.Info("link removed by hand, now a tombstone", keyPath, e.Path)
	t.publish(change{Entry: e})
	out.changed = append(out.changed, e)
	return true, out, nil
}

func (t *Tree) isDir(dir string) (bool, error) {
	st, err := t.fs.Lstat(t.abs(dir))
	if notThere(err) {
		return false, nil
	}
	return err == nil && st.IsDir(), err
}

// loseDir notes that dir is not on the disk. Nothing is deleted for that: a
// directory goes by accident, or because the file system was unmounted. If it
// had no live links it is forgotten.
func (t *Tree) loseDir(dir string) error {
	n := t.top.Load().find(dir)
	if n == nil {
		return nil
	}
	if t.passive || !n.hasLive() {
		t.forgetDir(dir)
		return nil
	}
	if !t.lost[dir] {
		t.log.Warn("directory has vanished; its links stay valid in memory", keyDir, dir)
	}
	n.walk(func(n *node) {
		delete(t.anchored, n.path)
		t.lost[n.path] = true
	})
	return fmt.Errorf("%w: %s; its links stay valid and come back with the next write or with the directory", ErrVanished, t.abs(dir))
}
