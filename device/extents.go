package device

import "sync"

// kind says where the content of an extent is.
type kind uint8

const (
	kindLog     kind = iota // payload at pos of the logfile
	kindPacked              // payload of the compressed record that starts at pos, from byte skip
	kindDiscard             // zeros, the space may be given back
	kindZero                // zeros, the space stays allocated
)

// extent maps a device range to logged content. 32 bytes; with the fill of the
// leaves about 64 bytes each.
type extent struct {
	off, len int64
	pos      int64
	skip     uint16
	kind     kind
}

func (x *extent) end() int64 { return x.off + x.len }

// cutFront drops what is before off.
func (x *extent) cutFront(off int64) {
	d := off - x.off
	x.off, x.len = off, x.len-d
	switch x.kind {
	case kindLog:
		x.pos += d
	case kindPacked:
		x.skip += uint16(d) // payloads are below 32 KiB
	}
}

// data reports whether the extent has bytes of its own.
func (x *extent) data() bool { return x.kind == kindLog || x.kind == kindPacked }

// leafCap makes a leaf one page of memory.
const leafCap = 127

type leaf struct {
	n int
	e [leafCap]extent
}

var leaves = sync.Pool{New: func() any { return new(leaf) }}

// extentMap is an ordered set of extents that never overlap: a sorted array of
// leaves with their first offsets beside it, so that a search touches few cache
// lines and an insertion moves at most one leaf. Not safe for concurrent use.
type extentMap struct {
	leaf  []*leaf
	first []int64 // first[i] == leaf[i].e[0].off
	count int
	bytes int64 // of extents that have data
}

// cursor addresses an extent; li == len(leaf) is behind the last.
type cursor struct{ li, i int }

// seek returns the first extent that ends after off.
func (m *extentMap) seek(off int64) cursor {
	lo, hi := 0, len(m.first) // first leaf whose first offset is > off
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if m.first[mid] <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return cursor{}
	}
	li := lo - 1
	l := m.leaf[li]
	a, b := 0, l.n // first extent whose offset is > off; it is not the leaf's first
	for a < b {
		mid := int(uint(a+b) >> 1)
		if l.e[mid].off <= off {
			a = mid + 1
		} else {
			b = mid
		}
	}
	if l.e[a-1].end() > off {
		return cursor{li, a - 1}
	}
	return m.norm(cursor{li, a})
}

// norm moves a cursor that is behind the end of its leaf to the next one.
func (m *extentMap) norm(c cursor) cursor {
	if c.li < len(m.leaf) && c.i >= m.leaf[c.li].n {
		return cursor{c.li + 1, 0}
	}
	return c
}

func (m *extentMap) at(c cursor) *extent {
	if c.li >= len(m.leaf) {
		return nil
	}
	return &m.leaf[c.li].e[c.i]
}

func (m *extentMap) next(c cursor) cursor { return m.norm(cursor{c.li, c.i + 1}) }

// insert adds x, which overrides what it overlaps.
func (m *extentMap) insert(x extent) {
	c := m.seek(x.off)
	if e := m.at(c); e != nil && e.off < x.off {
		tail := *e
		m.resize(e, x.off-e.off)
		c = m.next(c)
		if tail.end() > x.end() {
			tail.cutFront(x.end())
			c = m.put(c, x)
			m.put(c, tail)
			return
		}
	}
	placed := false
	for e := m.at(c); e != nil && e.off < x.end(); e = m.at(c) {
		if e.end() > x.end() {
			before := e.len
			e.cutFront(x.end())
			if e.data() {
				m.bytes -= before - e.len
			}
			if c.i == 0 {
				m.first[c.li] = e.off
			}
			break
		}
		if placed {
			c = m.remove(c)
			continue
		}
		m.account(e, -1)
		*e = x
		m.account(e, 1)
		if c.i == 0 {
			m.first[c.li] = x.off
		}
		placed = true
		c = m.next(c)
	}
	if !placed {
		m.put(c, x)
	}
}

func (m *extentMap) account(x *extent, sign int) {
	m.count += sign
	if x.data() {
		m.bytes += int64(sign) * x.len
	}
}

func (m *extentMap) resize(x *extent, length int64) {
	if x.data() {
		m.bytes += length - x.len
	}
	x.len = length
}

// put inserts x before c and returns the place behind it.
func (m *extentMap) put(c cursor, x extent) cursor {
	m.account(&x, 1)
	if len(m.leaf) == 0 {
		m.addLeaf(0)
	}
	if c.i == 0 && c.li > 0 && (m.leaf[c.li-1].n < leafCap || c.li == len(m.leaf) || m.leaf[c.li].n == leafCap) {
		c = cursor{c.li - 1, m.leaf[c.li-1].n} // sequential writes fill leaves
	}
	l := m.leaf[c.li]
	if l.n == leafCap {
		keep := leafCap / 2
		if c.i == leafCap {
			keep = leafCap
		}
		r := m.addLeaf(c.li + 1)
		r.n = copy(r.e[:], l.e[keep:l.n])
		l.n = keep
		if r.n > 0 {
			m.first[c.li+1] = r.e[0].off
		}
		if c.i > keep || keep == leafCap {
			c = cursor{c.li + 1, c.i - keep}
			l = r
		}
	}
	copy(l.e[c.i+1:l.n+1], l.e[c.i:l.n])
	l.e[c.i] = x
	l.n++
	if c.i == 0 {
		m.first[c.li] = x.off
	}
	return m.next(c)
}

func (m *extentMap) addLeaf(li int) *leaf {
	l := leaves.Get().(*leaf)
	l.n = 0
	m.leaf = append(m.leaf, nil)
	copy(m.leaf[li+1:], m.leaf[li:])
	m.leaf[li] = l
	m.first = append(m.first, 0)
	copy(m.first[li+1:], m.first[li:])
	return l
}

// remove deletes the extent at c and returns the place of the one behind it.
func (m *extentMap) remove(c cursor) cursor {
	l := m.leaf[c.li]
	m.account(&l.e[c.i], -1)
	l.n--
	copy(l.e[c.i:l.n], l.e[c.i+1:l.n+1])
	switch {
	case l.n == 0:
		m.dropLeaf(c.li)
		return cursor{c.li, 0}
	case c.i == 0:
		m.first[c.li] = l.e[0].off
	}
	if li := c.li + 1; li < len(m.leaf) && l.n+m.leaf[li].n <= leafCap*3/4 {
		r := m.leaf[li]
		l.n += copy(l.e[l.n:], r.e[:r.n])
		m.dropLeaf(li)
	}
	return m.norm(c)
}

func (m *extentMap) dropLeaf(li int) {
	leaves.Put(m.leaf[li])
	m.leaf = append(m.leaf[:li], m.leaf[li+1:]...)
	m.first = append(m.first[:li], m.first[li+1:]...)
}

// reset empties the map and recycles its memory. Nobody may use it any more.
func (m *extentMap) reset() {
	for _, l := range m.leaf {
		leaves.Put(l)
	}
	*m = extentMap{}
}
