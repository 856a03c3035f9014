package crashfs

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Policy says which unsynced units survive a power cut.
type Policy int

const (
	LoseAll    Policy = iota // everything unsynced is lost
	KeepAll                  // nothing is lost
	Subset                   // each unit by chance, some data units torn
	AllButOne                // one unit is lost
	NewestOnly               // only the last operation survives
	TornLast                 // everything survives, the last write partly
	Prefix                   // what was issued up to some instant
)

// Policies lists all of them, for sweeps.
var Policies = []Policy{LoseAll, KeepAll, Subset, AllButOne, NewestOnly, TornLast, Prefix}

var policyNames = []string{"lose-all", "keep-all", "subset", "all-but-one", "newest-only", "torn-last", "prefix"}

func (p Policy) String() string {
	if p < 0 || int(p) >= len(policyNames) {
		return fmt.Sprintf("Policy(%d)", int(p))
	}
	return policyNames[p]
}

// Crash returns the state that a power cut at this instant leaves, as a new file
// system that works. The live one (or the frozen one) is not changed, so that
// many crashes can be derived from one instant.
func (f *FS) Crash(p Policy, r *rand.Rand) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashLocked(p, r)
}

// KillState returns the state that the death of the process leaves: nothing is
// lost, but what was not synced still may be in a later power cut.
func (f *FS) KillState() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.killLocked()
}

type unitKind uint8

const (
	dataUnit unitKind = iota
	sizeUnit
	entryUnit
	mtimeOnly
)

// unit is the smallest thing that survives or is lost, except for torn data.
type unit struct {
	seq  uint64
	kind unitKind
	ino  *inode // data, size
	idx  int    // in ino.pend, or in dirOps
	link *link  // mtime
	keep bool
	tear []bool // data: per sector; nil: whole
}

// units lists what is not durable, in issue order.
func (f *FS) units() []unit {
	n := len(f.dirOps) + len(f.mtimes)
	for _, ino := range f.dirty {
		n += 2 * len(ino.pend)
	}
	list := make([]unit, 0, n)
	for _, ino := range f.dirty {
		for i, p := range ino.pend {
			if p.data != nil {
				list = append(list, unit{seq: p.seq, kind: dataUnit, ino: ino, idx: i})
			}
			if p.size >= 0 {
				list = append(list, unit{seq: p.seq, kind: sizeUnit, ino: ino, idx: i})
			}
		}
	}
	for i, op := range f.dirOps {
		list = append(list, unit{seq: op.seq, kind: entryUnit, idx: i})
	}
	for l, u := range f.mtimes {
		list = append(list, unit{seq: u.seq, kind: mtimeOnly, link: l})
	}
	slices.SortFunc(list, func(a, b unit) int {
		return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.kind, b.kind))
	})
	return list
}

func (u *unit) sectors() int {
	p := u.ino.pend[u.idx]
	return int((p.off+int64(len(p.data))+sectorSize-1)/sectorSize - p.off/sectorSize)
}

// decide sets keep and tear.
func (p Policy) decide(list []unit, r *rand.Rand) {
	if len(list) == 0 || p == LoseAll {
		return
	}
	for i := range list {
		list[i].keep = true
	}
	switch p {
	case Subset:
		chance := 0.25 * float64(1+r.IntN(3))
		for i := range list {
			u := &list[i]
			u.keep = r.Float64() < chance
			if u.keep && u.kind == dataUnit && r.IntN(4) == 0 {
				u.torn(r)
			}
		}
	case AllButOne:
		list[r.IntN(len(list))].keep = false
	case NewestOnly:
		for i := range list {
			list[i].keep = list[i].seq == list[len(list)-1].seq
		}
	case TornLast:
		for i := len(list) - 1; i >= 0; i-- {
			if list[i].kind == dataUnit {
				list[i].torn(r)
				break
			}
		}
	case Prefix:
		for i := r.IntN(len(list) + 1); i < len(list); i++ {
			list[i].keep = false
		}
	}
}

// torn keeps a proper part of the unit's sectors: a beginning, or any of them. A
// single sector cannot be torn; it is lost.
func (u *unit) torn(r *rand.Rand) {
	n := u.sectors()
	if n < 2 {
		u.keep = false
		return
	}
	u.tear = make([]bool, n)
	if r.IntN(2) == 0 {
		for i := range 1 + r.IntN(n-1) {
			u.tear[i] = true
		}
		return
	}
	for i := range u.tear {
		u.tear[i] = r.IntN(2) == 0
	}
	u.tear[r.IntN(n)] = false
}

// cumulate applies the rule that an inode's size is one field: if a version of
// it survives, so do the truncates before.
func cumulate(list []unit) {
	later := map[*inode]bool{}
	for i := len(list) - 1; i >= 0; i-- {
		u := &list[i]
		if u.kind == sizeUnit {
			u.keep = u.keep || later[u.ino]
			later[u.ino] = u.keep
		}
	}
}

// journal applies the rules of a metadata journal: what survives is a prefix of
// all metadata units, and a size only with the data that were written before it.
func (p Policy) journal(list []unit, r *rand.Rand) {
	var meta []int
	for i := range list {
		if list[i].kind != dataUnit {
			meta = append(meta, i)
		}
	}
	n := 0 // length of the prefix
	switch p {
	case Subset:
		n = r.IntN(len(meta) + 1)
	case NewestOnly:
		if len(meta) > 0 && list[meta[len(meta)-1]].keep {
			n = len(meta)
		}
	default:
		for n < len(meta) && list[meta[n]].keep {
			n++
		}
	}
	for i, m := range meta {
		list[m].keep = i < n
	}
	sized := map[*inode]bool{}
	for i := len(list) - 1; i >= 0; i-- {
		switch u := &list[i]; {
		case u.kind == sizeUnit && u.keep:
			sized[u.ino] = true
		case u.kind == dataUnit && (sized[u.ino] || u.sizedBy(list, i)):
			u.keep, u.tear = true, nil
		}
	}
}

// sizedBy tells whether the size unit of the same write, which follows the data
// unit in the list, survives.
func (u *unit) sizedBy(list []unit, i int) bool {
	return i+1 < len(list) && list[i+1].kind == sizeUnit && list[i+1].seq == u.seq && list[i+1].keep
}

func (f *FS) crashLocked(p Policy, r *rand.Rand) *FS {
	list := f.units()
	p.decide(list, r)
	if f.metadata == Journaled {
		p.journal(list, r)
	} else {
		cumulate(list)
	}
	n := f.sibling(r.Uint64())
	lost := map[*link]bool{}
	for _, u := range list {
		if u.kind == mtimeOnly && !u.keep {
			lost[u.link] = true
		}
	}
	dirs := map[uint64]*dirMap{} // those that differ from the durable state
	for _, u := range list {
		if u.kind == entryUnit && u.keep {
			f.applyDirOp(f.dirOps[u.idx], dirs, lost)
		}
	}
	files := map[*inode][]unit{}
	for _, u := range list {
		if u.ino != nil {
			files[u.ino] = append(files[u.ino], u)
		}
	}
	f.build(n, rootIno, dirs, files)
	if n.capacity > 0 {
		n.recount()
	}
	return n
}

// sibling is an empty file system with the settings of f; cuts, hooks and faults
// stay behind.
func (f *FS) sibling(seed uint64) *FS {
	n := New(seed)
	n.now, n.metadata, n.capacity = f.now, f.metadata, f.capacity
	n.nextIno, n.seq = f.nextIno, f.seq
	n.inodes = make(map[uint64]*inode, len(f.inodes))
	return n
}

func (f *FS) applyDirOp(op *dirOp, dirs map[uint64]*dirMap, lost map[*link]bool) {
	for _, c := range op.changes {
		d := dirs[c.dir]
		if d == nil {
			src := f.inodes[c.dir]
			if src == nil {
				continue
			}
			m := src.durEnts.clone()
			d = &m
			dirs[c.dir] = d
		}
		e := c.ent
		if e.link != nil && lost[e.link] {
			e = entry{link: &link{target: e.link.target, mtime: e.link.created, created: e.link.created}}
		}
		d.set(c.name, e)
	}
}

// build copies what is reachable from directory id after the crash.
func (f *FS) build(n *FS, id uint64, dirs map[uint64]*dirMap, files map[*inode][]unit) {
	src := f.inodes[id]
	d := &inode{id: id, dir: true, perm: src.perm, mtime: src.mtime}
	n.inodes[id] = d
	if m := dirs[id]; m != nil {
		d.ents = *m
	} else {
		d.ents = src.durEnts.clone()
	}
	var names []string
	for name, e := range d.ents.m {
		if e.ino != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		ino := d.ents.m[name].ino
		child, again := f.inodes[ino], n.inodes[ino] != nil
		switch {
		case again && child.dir:
			// Of two renames in a row only the second survived: two names. A file may
			// have them (they act like hard links), a directory not.
			d.ents.set(name, entry{})
		case again:
		case child.dir:
			f.build(n, ino, dirs, files)
		default:
			n.inodes[ino] = child.crashed(files[child])
		}
	}
	d.durEnts = d.ents.clone()
}

// crashed is the file after the power cut.
func (ino *inode) crashed(list []unit) *inode {
	c := ino.dur.clone()
	survivors(&c, ino, list)
	return &inode{id: ino.id, perm: ino.perm, mtime: ino.mtime, fixed: ino.fixed, cur: c.clone(), dur: c}
}

// survivors applies the units that were kept to c.
func survivors(c *content, ino *inode, list []unit) {
	if !slices.ContainsFunc(list, func(u unit) bool { return u.keep }) {
		return
	}
	// From the newest back: a sector that survives in a later version contains
	// what earlier writes put into it.
	forced := map[int64]bool{}
	parts := make([][]bool, len(list))
	for i := len(list) - 1; i >= 0; i-- {
		if u := &list[i]; u.kind == dataUnit {
			parts[i] = u.part(forced)
		}
	}
	size := c.size
	for i, u := range list {
		p := ino.pend[u.idx]
		switch {
		case u.kind == dataUnit:
			writePart(c, p, parts[i])
		case !u.keep:
		case p.data == nil:
			c.truncate(p.size)
			size = p.size
		default:
			size = max(size, p.size)
		}
	}
	c.truncate(size)
}

// part returns which sectors of the unit survive, and notes in forced those of
// them that it covers only partly.
func (u *unit) part(forced map[int64]bool) []bool {
	p := u.ino.pend[u.idx]
	n, first := u.sectors(), p.off/sectorSize
	keep := make([]bool, n)
	for i := range keep {
		keep[i] = u.keep && (u.tear == nil || u.tear[i])
	}
	for s := range forced {
		if s >= first && s < first+int64(n) {
			keep[s-first] = true
		}
	}
	for _, i := range []int{0, n - 1} {
		lo, hi := (first+int64(i))*sectorSize, (first+int64(i)+1)*sectorSize
		if keep[i] && (p.off > lo || p.off+int64(len(p.data)) < hi) {
			forced[first+int64(i)] = true
		}
	}
	return keep
}

func writePart(c *content, p pending, keep []bool) {
	first := p.off / sectorSize
	for i := 0; i < len(keep); i++ {
		if !keep[i] {
			continue
		}
		j := i
		for j+1 < len(keep) && keep[j+1] {
			j++
		}
		lo := max(p.off, (first+int64(i))*sectorSize)
		hi := min(p.off+int64(len(p.data)), (first+int64(j)+1)*sectorSize)
		c.writeAt(p.data[lo-p.off:hi-p.off], lo)
		i = j
	}
}

func (f *FS) killLocked() *FS {
	n := f.sibling(f.seq)
	for id, ino := range f.inodes {
		k := &inode{id: id, dir: ino.dir, fixed: ino.fixed, perm: ino.perm, mtime: ino.mtime,
			ents: ino.ents.clone(), durEnts: ino.durEnts.clone(), pend: slices.Clip(ino.pend)}
		if !ino.dir {
			k.cur, k.dur = ino.cur.clone(), ino.dur.clone()
		}
		n.inodes[id] = k
		if len(k.pend) > 0 {
			n.dirty[id] = k
		}
	}
	n.dirOps = slices.Clip(f.dirOps)
	n.mtimes = maps.Clone(f.mtimes)
	if n.capacity > 0 {
		n.recount()
	}
	return n
}

// commitMetadata makes all metadata up to mark durable, and the data that grown
// sizes depend on.
func (f *FS) commitMetadata(mark uint64) {
	f.commitDirs(mark, func(*dirOp) bool { return true })
	for l, u := range f.mtimes {
		if u.seq <= mark {
			delete(f.mtimes, l)
		}
	}
	for _, ino := range f.dirty {
		last := uint64(0)
		for _, p := range ino.pend {
			if p.size >= 0 && p.seq <= mark {
				last = p.seq
			}
		}
		if last > 0 {
			f.commitFile(ino, last)
		}
	}
}
