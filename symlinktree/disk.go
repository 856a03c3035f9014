package symlinktree

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// kind of what is found under a path on the disk.
type kind int

const (
	absent kind = iota
	link
	regular
	directory
	badLink // a link with a text that is not allowed
	strange // a socket, a device, ...
)

// found is what is on the disk under one path at one moment.
type found struct {
	kind  kind
	value string // link
	stamp Stamp  // link
	size  int64  // regular
}

// attempts bounds every loop that starts over because another process has
// changed the same path meanwhile.
const attempts = 32

// abs is the path for the file layer.
func (t *Tree) abs(path string) string {
	if path == "" {
		return t.root
	}
	return t.root + "/" + path
}

// probe looks at one name on the disk. Text and stamp belong together: when the
// link is replaced between the two system calls it looks again.
func (t *Tree) probe(name string) (found, error) { return t.probeFor(name, found{}) }

// probeFor saves the second look where the first has found what is expected:
// a pair of text and stamp that memory knows did not come about by mixing.
func (t *Tree) probeFor(name string, expect found) (found, error) {
	for range attempts {
		before, err := t.fs.Lstat(name)
		if notThere(err) {
			return found{}, nil
		}
		if err != nil {
			return found{}, err
		}
		switch mode := before.Mode(); {
		case mode.IsRegular():
			return found{kind: regular, size: before.Size()}, nil
		case mode.IsDir():
			return found{kind: directory}, nil
		case mode&fs.ModeSymlink == 0:
			return found{kind: strange}, nil
		}
		value, err := t.fs.Readlink(name)
		if notThere(err) || errors.Is(err, syscall.EINVAL) {
			continue
		}
		if err != nil {
			return found{}, err
		}
		if d := (found{kind: link, value: value, stamp: stampOf(before.ModTime())}); d == expect {
			return d, nil
		}
		after, err := t.fs.Lstat(name)
		if notThere(err) {
			continue
		}
		if err != nil {
			return found{}, err
		}
		if !sameFile(before, after) {
			continue
		}
		if ValidValue(value) != nil {
			return found{kind: badLink}, nil
		}
		return found{kind: link, value: value, stamp: stampOf(after.ModTime())}, nil
	}
	return found{}, &fs.PathError{Op: "read", Path: name, Err: ErrContended}
}

// look probes a path of the tree. A live link where a logfile belongs is not one of ours.
func (t *Tree) look(path string) (found, error) {
	var expect found
	if known, ok := t.top.Load().entry(path); ok {
		expect = found{kind: link, value: known.Value, stamp: known.Stamp}
	}
	d, err := t.probeFor(t.abs(path), expect)
	if d.kind == link && d.value != Deleted && isLogName(path) {
		return found{kind: badLink}, err
	}
	return d, err
}

// sameFile compares two Lstat results of one name: was it replaced or touched?
func sameFile(a, b fs.FileInfo) bool {
	if a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) || a.Size() != b.Size() {
		return false
	}
	x, ok1 := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	return !ok1 || !ok2 || x.Dev == y.Dev && x.Ino == y.Ino && x.Ctim == y.Ctim
}

// notThere reports whether err says that a name, or a directory on the way, is absent.
func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// verdict is what a decision function wants to have on the disk.
type verdict struct {
	write bool
	value string
	stamp Stamp
}

// store puts a link in place. decide is shown what is on the disk and answers
// what to write, if anything; it is asked again whenever somebody else turns out
// to have changed the path in between, so that no edit of another process is
// overwritten unseen. It returns what was there, and the verdict carried out.
func (t *Tree) store(path string, decide func(found) (verdict, error)) (was found, done verdict, err error) {
	dir, _ := splitPath(path)
	for range attempts {
		was, err = t.look(path)
		if err != nil {
			return was, verdict{}, err
		}
		done, err = decide(was)
		if err != nil || !done.write {
			return was, done, err
		}
		if t.readOnly {
			return was, verdict{}, ErrReadOnly
		}
		changed, err := t.ensureDir(dir)
		if err != nil {
			return was, verdict{}, err
		}
		if changed {
			continue // a directory that comes back brings its links along
		}
		ok, err := t.replace(path, was, done, decide)
		if err != nil || ok {
			return was, done, err
		}
		t.doubt = true // perhaps the directory is gone
	}
	return was, verdict{}, ErrContended
}

// replace writes v at path where was has been seen. It returns false when that
// is no longer true and the caller must look again.
func (t *Tree) replace(path string, was found, v verdict, decide func(found) (verdict, error)) (bool, error) {
	name, tmp := t.abs(path), t.temp(path)
	if err := t.fs.Symlink(v.value, tmp, v.stamp.Time()); err != nil {
		if notThere(err) {
			return false, nil
		}
		return false, err
	}
	done, err := t.swapIn(name, tmp, was, v, decide)
	if !done && !errors.Is(err, ErrContended) { // then tmp may hold the edit of somebody else
		t.discard(tmp)
	}
	return done, err
}

// swapIn renames tmp over name. Where the file system can exchange names it
// finds out what it has displaced; where it cannot, an edit that falls into the
// microseconds since the probe is lost like any earlier value: the last rename wins.
func (t *Tree) swapIn(name, tmp string, was found, v verdict, decide func(found) (verdict, error)) (bool, error) {
	if t.swap == nil || t.noSwap.Load() {
		return t.renamed(t.fs.Rename(tmp, name))
	}
	if was.kind == absent {
		err := t.swap.RenameNoReplace(tmp, name)
		if t.unsupported(err) {
			return t.renamed(t.fs.Rename(tmp, name))
		}
		if errors.Is(err, fs.ErrExist) {
			return false, nil
		}
		return t.renamed(err)
	}
	err := t.swap.Exchange(tmp, name)
	if t.unsupported(err) {
		return t.renamed(t.fs.Rename(tmp, name))
	}
	if err != nil {
		return t.renamed(err)
	}
	// Stamps are not given out twice: that of the old link is proof enough.
	if st, err := t.fs.Lstat(tmp); err == nil && was.kind == link && st.Mode().Type() == symlinkMode &&
		stampOf(st.ModTime()) == was.stamp && st.Size() == int64(len(was.value)) {
		t.discard(tmp)
		return true, nil
	}
	displaced, err := t.probe(tmp)
	if err != nil {
		return false, err
	}
	if displaced != was && !stays(v, displaced, decide) {
		return false, t.putBack(name, tmp, found{kind: link, value: v.value, stamp: v.stamp}, displaced)
	}
	t.discard(tmp)
	return true, nil
}

// stays reports whether v, which has displaced something unseen, may stay: it
// would have been written over that as well, and with a newer stamp.
func stays(v verdict, displaced found, decide func(found) (verdict, error)) bool {
	again, err := decide(displaced)
	return err == nil && again.write && again.value == v.value &&
		(displaced.kind != link || v.stamp > displaced.stamp)
}

// putBack undoes an exchange: tmp holds put, which somebody wrote between our
// probe and the exchange, and name holds ours. If it then turns out that a third
// one has written over ours, that one is the last writer and goes back instead.
func (t *Tree) putBack(name, tmp string, onDisk, put found) error {
	for range attempts {
		if err := t.swap.Exchange(tmp, name); err != nil {
			_, err = t.renamed(err)
			return err
		}
		out, err := t.probe(tmp)
		if err != nil || out == onDisk {
			return err
		}
		onDisk, put = put, out
	}
	return ErrContended
}

// renamed sorts the outcome of a rename: done, look again, or failed.
func (t *Tree) renamed(err error) (bool, error) {
	switch {
	case err == nil:
		return true, nil
	case notThere(err):
		return false, nil
	}
	return false, err
}

// unsupported notes that the file system below cannot exchange names.
func (t *Tree) unsupported(err error) bool {
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, errors.ErrUnsupported) {
		t.noSwap.Store(true)
		return true
	}
	return false
}

// discard removes a temporary name. A leftover is harmless: RemoveTemp gets it.
func (t *Tree) discard(tmp string) {
	if err := t.fs.Remove(tmp); err != nil && !notThere(err) {
		t.log.Warn("cannot remove temporary link", keyPath, tmp, keyError, err)
	}
}

// tempPrefix marks names that are not yet, or no longer, part of the tree.
const tempPrefix = ".tmp."

// temp is a name in the directory of path that nobody else uses: neither
// another process nor another goroutine.
func (t *Tree) temp(path string) string {
	dir, name := splitPath(path)
	return t.abs(joinPath(dir, tempPrefix+t.pid+"-"+strconv.FormatUint(tempSeq.Add(1), 36)+"."+name))
}

// ensureDir makes dir (mode 0700) and what is missing above it. What was known
// to be in a directory that had vanished comes back with it; changed tells that
// this has happened, or that a directory was made.
func (t *Tree) ensureDir(dir string) (changed bool, err error) {
	if err := t.checkRoot(); err != nil || dir == "" {
		return false, err
	}
	if !t.doubt && !t.lost[dir] && t.top.Load().find(dir) != nil {
		return false, nil // if it is not there any more, writing will tell
	}
	t.doubt = false
	for at := nextDir("", dir); ; at = nextDir(at, dir) {
		made, err := t.ensureOne(at)
		if err != nil {
			return false, err
		}
		if made {
			delete(t.anchored, at)
		}
		if t.top.Load().find(at) == nil {
			t.learnDir(at)
		}
		if made || t.lost[at] {
			changed = true
			if err := t.restore(at); err != nil {
				return false, err
			}
		}
		if at == dir {
			return changed, nil
		}
	}
}

func (t *Tree) ensureOne(dir string) (made bool, err error) {
	name := t.abs(dir)
	for range attempts {
		st, err := t.fs.Lstat(name)
		switch {
		case err == nil && st.IsDir():
			return false, nil
		case err == nil && st.Mode()&fs.ModeSymlink != 0:
			// The original turns empty directories into tombstones; that counts as absent.
			if v, err := t.fs.Readlink(name); err == nil && v != Deleted {
				return false, &fs.PathError{Op: "mkdir", Path: name, Err: fmt.Errorf("%w: it is a symlink to %.80q; remove it", ErrNotDirectory, v)}
			}
			if err := t.fs.Remove(name); err != nil && !notThere(err) {
				return false, err
			}
		case err == nil:
			return false, &fs.PathError{Op: "mkdir", Path: name, Err: ErrNotDirectory}
		case !notThere(err):
			return false, err
		}
		switch err := t.fs.Mkdir(name, 0o700); {
		case err == nil:
			return true, nil
		case !errors.Is(err, fs.ErrExist):
			return false, err
		}
	}
	return false, &fs.PathError{Op: "mkdir", Path: name, Err: ErrContended}
}

// restore writes back the links that memory knows of a directory that was lost.
func (t *Tree) restore(dir string) error {
	n := t.top.Load().find(dir)
	if n == nil || t.passive {
		delete(t.lost, dir)
		return nil
	}
	for _, e := range n.links {
		cur, err := t.probe(t.abs(e.Path))
		if err != nil {
			return err
		}
		if cur.kind != absent {
			continue
		}
		v := verdict{write: true, value: e.Value, stamp: e.Stamp}
		if _, err := t.replace(e.Path, cur, v, func(found) (verdict, error) { return verdict{}, nil }); err != nil {
			return err
		}
	}
	delete(t.lost, dir)
	if len(n.links) > 0 {
		t.log.Warn("a directory had vanished; its links are restored", keyDir, dir, keyCount, len(n.links))
	}
	return nil
}

// identity tells whether two directories are the same one.
type identity struct {
	dev, ino uint64
	known    bool
}

func identify(st fs.FileInfo) identity {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return identity{dev: uint64(sys.Dev), ino: sys.Ino, known: true}
	}
	return identity{}
}

// checkRoot refuses to work when the root is no longer the directory that was
// opened: it was unmounted, or something was mounted over it.
func (t *Tree) checkRoot() error {
	st, err := t.fs.Lstat(t.root)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRootGone, err)
	}
	if !st.IsDir() || identify(st) != t.rootID {
		return fmt.Errorf("%w: %s is not the directory that was opened; was it unmounted?", ErrRootGone, filepath.Clean(t.root))
	}
	return nil
}

const symlinkMode = fs.ModeSymlink

// createdAt is when a name was last written to the directory: the ctime where
// there is one, because the mtime of a link is its stamp.
func createdAt(st fs.FileInfo) time.Time {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return time.Unix(sys.Ctim.Unix())
	}
	return st.ModTime()
}
