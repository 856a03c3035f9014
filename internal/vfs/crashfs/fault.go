package crashfs

import (
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// Fault is a failure that is injected into matching calls. Several may be
// armed; each call meets the first one (in the order of Inject) that fires with
// an error, and the delays of all that fire before.
type Fault struct {
	Ops   OpKind  // union of the kinds it applies to
	Path  string  // pattern of path.Match on the whole name, or on the last component if it has no slash; "": all
	After int     // so many matching calls pass unharmed first
	Count int     // so many calls are hit then; 0: all
	Prob  float64 // chance of each of them; 0: certain
	// Err is what the call returns (it has no effect then, except that a write may
	// be Short and a Datasync loses its units). nil: the call succeeds after Delay.
	Err error
	// Short lets a failing write store a random, possibly empty, proper part.
	Short bool
	// Delay runs before the call takes effect, without any lock, and may block. A
	// delayed sync covers only what was written before it was called.
	Delay func(Op)
}

type armed struct {
	Fault
	seen, hits int
}

// verdict is what injection decided for one call.
type verdict struct {
	err      error
	shortens bool
}

// short returns how many of n bytes a failing write stores.
func (v verdict) short(r *rand.Rand, n int) int {
	if !v.shortens || n == 0 {
		return 0
	}
	return r.IntN(n)
}

// Inject arms a fault; the returned function disarms it. It panics on a bad
// pattern, which is a mistake in a test.
func (f *FS) Inject(fault Fault) (remove func()) {
	if _, err := path.Match(fault.Path, ""); err != nil {
		panic("crashfs: bad pattern " + fault.Path + ": " + err.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &armed{Fault: fault}
	f.faults = append(slices.Clip(f.faults), a)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.faults = slices.DeleteFunc(slices.Clone(f.faults), func(x *armed) bool { return x == a })
	}
}

func (a *armed) fires(op Op, r *rand.Rand) bool {
	if a.Ops&op.Kind == 0 {
		return false
	}
	if a.Path != "" {
		name := op.Path
		if !strings.Contains(a.Path, "/") {
			name = path.Base(name)
		}
		if ok, _ := path.Match(a.Path, name); !ok {
			return false
		}
	}
	a.seen++
	if a.seen <= a.After || (a.Count > 0 && a.hits >= a.Count) || (a.Prob > 0 && r.Float64() >= a.Prob) {
		return false
	}
	a.hits++
	return true
}

// inject is called with the lock held and releases it during delays.
func (f *FS) inject(op Op) verdict {
	for _, a := range f.faults { // replaced, never changed in place
		if !a.fires(op, f.rng) {
			continue
		}
		if a.Delay != nil {
			f.mu.Unlock()
			a.Delay(op)
			f.mu.Lock()
		}
		if a.Err != nil {
			return verdict{err: a.Err, shortens: a.Short}
		}
	}
	return verdict{}
}

// failSync is what a failed fdatasync leaves behind: the units count as clean,
// a random part of them is durable, and the rest will never be.
func (f *FS) failSync(ino *inode, mark uint64) {
	if ino.dir {
		return
	}
	var kept []pending
	for _, p := range ino.pend {
		switch {
		case p.seq > mark:
			kept = append(kept, p)
		case f.rng.IntN(2) == 0:
			ino.dur.apply(p)
		}
	}
	ino.pend = kept
	if len(kept) == 0 {
		delete(f.dirty, ino.id)
	}
}

// SetCapacity limits the space of file contents; 0 removes the limit. Writes
// beyond it store what fits and return ENOSPC.
func (f *FS) SetCapacity(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = bytes
	f.recount()
}

// recount computes the pages of all files that have a name or are open.
func (f *FS) recount() {
	named := map[uint64]bool{}
	for _, d := range f.inodes {
		for _, e := range d.ents.m {
			named[e.ino] = true
		}
	}
	f.used = 0
	for id, ino := range f.inodes {
		if named[id] || ino.open > 0 {
			f.used += ino.cur.pages
		}
	}
}
