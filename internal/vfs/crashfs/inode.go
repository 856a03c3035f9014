package crashfs

import (
	"io/fs"
	"maps"
	"slices"
	"time"
)

// link is a symlink. It never changes, so that clones share it.
type link struct {
	target  string
	mtime   time.Time
	created time.Time // the mtime it has if the mtime unit is lost
}

// entry is the value of a directory entry: a symlink, or the number of a file
// or directory, or nothing.
type entry struct {
	link *link
	ino  uint64
}

func (e entry) none() bool { return e.link == nil && e.ino == 0 }

// dirMap is the entries of a directory. Clones share the map until one of them
// writes; a shared map is never changed.
type dirMap struct {
	m     map[string]entry
	owned bool
}

func (d *dirMap) clone() dirMap {
	d.owned = false
	return dirMap{m: d.m}
}

func (d *dirMap) set(name string, e entry) {
	if !d.owned {
		if d.m = maps.Clone(d.m); d.m == nil {
			d.m = map[string]entry{}
		}
		d.owned = true
	}
	if e.none() {
		delete(d.m, name)
	} else {
		d.m[name] = e
	}
}

// inode is a file or a directory of one FS.
type inode struct {
	id    uint64
	dir   bool
	fixed bool // size cannot change: a disk
	perm  fs.FileMode
	mtime time.Time
	open  int

	// file: what readers see, what is durable, and what lies between
	cur, dur content
	pend     []pending

	// directory
	ents, durEnts dirMap
}

// pending is a write or truncate of a file that is not durable yet.
type pending struct {
	seq  uint64
	off  int64
	data []byte // nil: truncate
	size int64  // size after it; -1 if it did not change the size
}

// dirOp is an atomic change of directory entries that is not durable yet.
type dirOp struct {
	seq     uint64
	changes []change
}

type change struct {
	dir  uint64
	name string
	ent  entry
}

type mtimeUnit struct {
	seq uint64
	dir uint64
}

// addPending records p and bounds the list.
func (f *FS) addPending(ino *inode, p pending) {
	ino.pend = append(ino.pend, p)
	f.dirty[ino.id] = ino
	if len(ino.pend) > pendingLimit {
		f.commitFile(ino, ino.pend[pendingLimit/2].seq)
	}
}

// commitFile makes the units of ino up to mark durable.
func (f *FS) commitFile(ino *inode, mark uint64) {
	n := 0
	for n < len(ino.pend) && ino.pend[n].seq <= mark {
		ino.dur.apply(ino.pend[n])
		n++
	}
	ino.pend = slices.Clone(ino.pend[n:])
	if len(ino.pend) == 0 {
		ino.pend = nil
		delete(f.dirty, ino.id)
	}
}

// apply performs one whole unit.
func (c *content) apply(p pending) {
	if p.data == nil {
		c.truncate(p.size)
		return
	}
	c.writeAt(p.data, p.off)
	if p.size >= 0 {
		c.size = max(c.size, p.size)
	}
}

// addDirOp performs a change of entries, which readers see from now on. It takes
// its place in the order now, not when the call began: see file.write.
func (f *FS) addDirOp(changes ...change) {
	f.seq++
	for _, c := range changes {
		d := f.inodes[c.dir]
		d.ents.set(c.name, c.ent)
		d.mtime = f.now()
	}
	f.dirOps = append(f.dirOps, &dirOp{seq: f.seq, changes: changes})
	if len(f.dirOps) > pendingLimit {
		mark := f.dirOps[pendingLimit/2].seq
		f.commitDirs(mark, func(*dirOp) bool { return true })
	}
}

// commitDirs makes the pending entry operations up to mark that want selects
// durable, in order. Older operations on the same names that stay pending lose
// their say: they must not overwrite a newer durable entry at a crash.
func (f *FS) commitDirs(mark uint64, want func(*dirOp) bool) {
	var rest []*dirOp
	newest := map[change]bool{} // key: dir and name only
	for i := len(f.dirOps) - 1; i >= 0; i-- {
		op := f.dirOps[i]
		if op.seq > mark || !want(op) {
			if kept := op.without(newest); kept != nil {
				rest = append(rest, kept)
			}
			continue
		}
		for _, c := range op.changes {
			if c.ent.link != nil {
				delete(f.mtimes, c.ent.link)
			}
			key := change{dir: c.dir, name: c.name}
			if newest[key] {
				continue
			}
			newest[key] = true
			if d := f.inodes[c.dir]; d != nil {
				d.durEnts.set(c.name, c.ent)
			}
		}
	}
	slices.Reverse(rest)
	f.dirOps = rest
	if f.dropped > 256 {
		f.collect()
	}
}

// without returns op less the changes of the names in newest, nil if none is left.
func (op *dirOp) without(newest map[change]bool) *dirOp {
	hit := false
	for _, c := range op.changes {
		hit = hit || newest[change{dir: c.dir, name: c.name}]
	}
	if !hit {
		return op
	}
	kept := &dirOp{seq: op.seq}
	for _, c := range op.changes {
		if !newest[change{dir: c.dir, name: c.name}] {
			kept.changes = append(kept.changes, c)
		}
	}
	if len(kept.changes) == 0 {
		return nil
	}
	return kept
}

// collect forgets inodes that nothing refers to any more.
func (f *FS) collect() {
	f.dropped = 0
	live := map[uint64]bool{rootIno: true}
	mark := func(m map[string]entry) {
		for _, e := range m {
			if e.ino != 0 {
				live[e.ino] = true
			}
		}
	}
	for id, ino := range f.inodes {
		mark(ino.ents.m)
		mark(ino.durEnts.m)
		if ino.open > 0 {
			live[id] = true
		}
	}
	for _, op := range f.dirOps {
		for _, c := range op.changes {
			live[c.dir] = true
			if c.ent.ino != 0 {
				live[c.ent.ino] = true
			}
		}
	}
	for id := range f.inodes {
		if !live[id] {
			delete(f.inodes, id)
			delete(f.dirty, id)
		}
	}
}
