package crashfs

// File contents are persistent radix trees of two levels: a clone shares
// everything, and a write copies the path it touches. That is what makes a
// crashed state cheap: its cost grows with what is unsynced, not with the size
// of the files.

const (
	pageSize   = 4096
	leafPages  = 256
	leafBytes  = pageSize * leafPages
	sectorSize = 512
)

// token marks the one content that may change a node in place. It has a size
// because pointers to zero-size values may be equal.
type token struct{ _ byte }

type page struct {
	owner *token
	data  [pageSize]byte
}

type leaf struct {
	owner *token
	pages [leafPages]*page
}

// content is the bytes of one file. Missing leaves and pages read as zeros.
type content struct {
	owner *token
	root  []*leaf
	size  int64
	pages int64 // allocated, for FreeSpace
}

// clone returns an independent copy. Both sides get a new owner, so that the
// nodes which exist now are never changed again by anybody.
func (c *content) clone() content {
	c.owner = new(token)
	d := *c
	d.owner = new(token)
	d.root = append([]*leaf(nil), c.root...)
	return d
}

// readAt fills p from off and ignores size.
func (c *content) readAt(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % pageSize)
		n := min(len(p), pageSize-in)
		if pg := c.page(off); pg != nil {
			copy(p[:n], pg.data[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (c *content) page(off int64) *page {
	l := int(off / leafBytes)
	if l >= len(c.root) || c.root[l] == nil {
		return nil
	}
	return c.root[l].pages[off%leafBytes/pageSize]
}

// writeAt stores p at off and leaves size alone.
func (c *content) writeAt(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % pageSize)
		n := min(len(p), pageSize-in)
		copy(c.mutable(off).data[in:], p[:n])
		p, off = p[n:], off+int64(n)
	}
}

// mutable returns the page at off, copied first when it is shared.
func (c *content) mutable(off int64) *page {
	if c.owner == nil {
		c.owner = new(token)
	}
	l := int(off / leafBytes)
	for l >= len(c.root) {
		c.root = append(c.root, nil)
	}
	lf := c.root[l]
	switch {
	case lf == nil:
		lf = &leaf{owner: c.owner}
		c.root[l] = lf
	case lf.owner != c.owner:
		lf = &leaf{owner: c.owner, pages: lf.pages}
		c.root[l] = lf
	}
	slot := &lf.pages[off%leafBytes/pageSize]
	switch pg := *slot; {
	case pg == nil:
		*slot = &page{owner: c.owner}
		c.pages++
	case pg.owner != c.owner:
		*slot = &page{owner: c.owner, data: pg.data}
	}
	return *slot
}

// missing counts the pages that a write of n bytes at off would allocate.
func (c *content) missing(off, n int64) (count int64) {
	for at := off / pageSize * pageSize; at < off+n; at += pageSize {
		if c.page(at) == nil {
			count++
		}
	}
	return count
}

// truncate cuts or extends to size; what lies beyond reads as zeros afterwards.
func (c *content) truncate(size int64) {
	c.size = size
	if in := size % pageSize; in != 0 && c.page(size) != nil {
		clear(c.mutable(size).data[in:])
	}
	first := (size + pageSize - 1) / pageSize
	for l := int(first / leafPages); l < len(c.root); l++ {
		lf := c.root[l]
		if lf == nil {
			continue
		}
		from := 0
		if int64(l)*leafPages < first {
			from = int(first % leafPages)
		}
		c.dropPages(l, from)
	}
}

func (c *content) dropPages(l, from int) {
	lf := c.root[l]
	for i := from; i < leafPages; i++ {
		if lf.pages[i] == nil {
			continue
		}
		if lf.owner != c.owner || c.owner == nil {
			if c.owner == nil {
				c.owner = new(token)
			}
			lf = &leaf{owner: c.owner, pages: lf.pages}
			c.root[l] = lf
		}
		lf.pages[i] = nil
		c.pages--
	}
}
