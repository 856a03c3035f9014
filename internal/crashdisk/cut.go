package crashdisk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
)

// Policy selects which of the writes that no flush has covered survive.
type Policy int

// The policies.
const (
	None      Policy = iota // nothing is written without a flush
	All                     // everything has reached the disk
	Half                    // a random half
	AllButOne               // one was slow
	Newest                  // only the last one: the worst order
	Torn                    // all, but of the last one only some sectors
	policies
)

// Policies lists all of them.
func Policies() []Policy {
	list := make([]Policy, policies)
	for i := range list {
		list[i] = Policy(i)
	}
	return list
}

func (p Policy) String() string {
	return [...]string{"none", "all", "half", "all-but-one", "newest", "torn"}[p]
}

// History is what was recorded up to some moment. Read only.
type History struct {
	Entries []Entry
	disks   []*disk
}

// History returns everything up to now.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &History{Entries: slices.Clip(r.entries), disks: slices.Clone(r.disks)}
}

// Tick is the last moment of the clock at which only the first index entries
// existed: whatever was promised before it must survive a cut at index.
func (h *History) Tick(index int) uint64 {
	if index < len(h.Entries) {
		return h.Entries[index].Tick
	}
	return h.Entries[len(h.Entries)-1].Tick
}

// Near returns the indexes from lo up to hi that are within dist of a mark whose text
// passes, ascending. A cut at one of them has the entries before it.
func (h *History) Near(lo, hi, dist int, pass func(text string) bool) []int {
	var list []int
	for i := range h.Entries {
		if e := &h.Entries[i]; e.Kind == Mark && pass(e.Text) {
			for k := max(lo, i-dist); k <= min(hi, i+dist); k++ {
				list = append(list, k)
			}
		}
	}
	sort.Ints(list)
	return slices.Compact(list)
}

// Cutter rebuilds disks; indexes must not descend.
type Cutter struct {
	h      *History
	at     int
	stable []*image // per disk: up to its last flush
	volat  [][]int  // per disk: entries since
}

// Cutter starts at the beginning of the history.
func (h *History) Cutter() *Cutter {
	c := &Cutter{h: h, volat: make([][]int, len(h.disks))}
	for _, d := range h.disks {
		c.stable = append(c.stable, d.base.clone())
	}
	return c
}

// State is what the disks contain after a cut.
type State struct {
	names  []string
	images []*image
	// Lost is the number of writes that did not survive as a whole, of Volatile that
	// no flush had covered.
	Lost, Volatile int
}

// Cut returns the disks after the first index entries.
func (c *Cutter) Cut(index int, p Policy, rng *rand.Rand) *State {
	if index < c.at || index > len(c.h.Entries) {
		panic(fmt.Sprintf("crashdisk: cut at %d after one at %d, of %d entries", index, c.at, len(c.h.Entries)))
	}
	for ; c.at < index; c.at++ {
		switch e := &c.h.Entries[c.at]; e.Kind {
		case Write, Zero:
			c.volat[e.Disk] = append(c.volat[e.Disk], c.at)
		case Flush:
			for _, k := range c.volat[e.Disk] {
				c.h.Entries[k].apply(c.stable[e.Disk])
			}
			c.volat[e.Disk] = c.volat[e.Disk][:0]
		}
	}
	s := &State{}
	for i, d := range c.h.disks {
		img := c.stable[i].clone()
		s.Volatile += len(c.volat[i])
		s.Lost += len(c.volat[i]) - c.survive(img, c.volat[i], p, rng)
		s.names = append(s.names, d.name)
		s.images = append(s.images, img)
	}
	return s
}

// survive applies what the policy selects and returns how many did as a whole.
func (c *Cutter) survive(img *image, list []int, p Policy, rng *rand.Rand) (whole int) {
	slow := -1
	if len(list) > 0 {
		slow = rng.IntN(len(list))
	}
	for k, i := range list {
		e := &c.h.Entries[i]
		last := k == len(list)-1
		var keep bool
		switch p {
		case All:
			keep = true
		case Half:
			keep = rng.IntN(2) == 0
		case AllButOne:
			keep = k != slow
		case Newest:
			keep = last
		case Torn:
			if keep = !last; last {
				e.tear(img, rng)
			}
		}
		if keep {
			e.apply(img)
			whole++
		}
	}
	return whole
}

// tear applies a random half of the sectors.
func (e *Entry) tear(img *image, rng *rand.Rand) {
	for at := int64(0); at < e.Len; at += SectorSize {
		if rng.IntN(2) == 0 {
			part := Entry{Kind: e.Kind, Off: e.Off + at, Len: SectorSize}
			if e.Kind == Write {
				part.Data = e.Data[at : at+SectorSize]
			}
			part.apply(img)
		}
	}
}

// Image is the content of a disk; nil if there is no such disk.
func (s *State) Image(disk string) []byte {
	if i := slices.Index(s.names, disk); i >= 0 {
		return s.images[i].bytes()
	}
	return nil
}

// WriteFile makes a sparse file of a disk.
func (s *State) WriteFile(disk, path string) error {
	i := slices.Index(s.names, disk)
	if i < 0 {
		return fmt.Errorf("no crash disk %q", disk)
	}
	return s.images[i].writeFile(path)
}
