package spindle

import (
	"io"
	"slices"
	"syscall"
)

// file is an open file of an FS.
type file struct {
	fs   *FS
	n    *node
	name string
}

// ReadAt gives zeros, at no cost: what is read soon after it was written is in the page cache.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	size := h.n.size
	h.fs.mu.Unlock()
	if off < 0 {
		return 0, pathErr("read", h.name, syscall.EINVAL)
	}
	k := int(max(0, min(int64(len(p)), size-off)))
	clear(p[:k])
	if k < len(p) {
		return k, io.EOF
	}
	return k, nil
}

// WriteAt implements vfs.File.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	return len(p), h.write(off, int64(len(p)))
}

// WritevAt implements vfs.File.
func (h *file) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	return total, h.write(off, int64(total))
}

func (h *file) write(off, n int64) error {
	if off < 0 {
		return pathErr("write", h.name, syscall.EINVAL)
	}
	h.fs.mu.Lock()
	h.n.size = max(h.n.size, off+n)
	direct := h.n.direct
	if h.fs.disk != nil && !direct && n > 0 {
		h.n.mark(span{off, off + n})
	}
	h.fs.mu.Unlock()
	if h.fs.disk != nil && direct {
		h.submit(Background, span{off, off + n})
	}
	return nil
}

// mark adds a dirty range; appends extend the last one.
func (n *node) mark(s span) {
	if k := len(n.dirty); k > 0 && n.dirty[k-1].end >= s.off && n.dirty[k-1].off <= s.off {
		n.dirty[k-1].end = max(n.dirty[k-1].end, s.end)
		return
	}
	n.dirty = append(n.dirty, s)
}

// submit queues a range in requests of at most maxRequest, waiting for room in the queue.
func (h *file) submit(class Class, s span) {
	for s.off < s.end {
		k := min(s.end-s.off, maxRequest)
		h.wait(h.fs.depth - 1)
		h.fs.mu.Lock()
		h.n.under++
		h.fs.mu.Unlock()
		h.fs.disk.Submit(class, h.n.base+s.off, k, h.landed)
		s.off += k
	}
}

func (h *file) landed() {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.n.under--
	if h.n.room != nil {
		close(h.n.room)
		h.n.room = nil
	}
}

// wait returns when at most limit requests are under way.
func (h *file) wait(limit int) {
	for {
		h.fs.mu.Lock()
		if h.n.under <= limit {
			h.fs.mu.Unlock()
			return
		}
		if h.n.room == nil {
			h.n.room = make(chan struct{})
		}
		room := h.n.room
		h.fs.mu.Unlock()
		<-room
	}
}

// Datasync implements vfs.File.
func (h *file) Datasync() error {
	if h.fs.disk == nil {
		return nil
	}
	h.fs.mu.Lock()
	dirty := h.n.dirty
	h.n.dirty = nil
	size, grown := h.n.size, h.n.size != h.n.synced
	h.fs.mu.Unlock()
	slices.SortFunc(dirty, func(a, b span) int { return int(min(1, max(-1, a.off-b.off))) })
	for _, s := range dirty {
		h.submit(Waited, s)
	}
	h.wait(0)
	if grown {
		h.fs.commit()
		h.fs.mu.Lock()
		h.n.synced = size
		h.fs.mu.Unlock()
	}
	return nil
}

// Truncate implements vfs.File.
func (h *file) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.n.direct {
		return pathErr("truncate", h.name, syscall.EINVAL)
	}
	h.n.size = size
	h.n.dirty = slices.DeleteFunc(h.n.dirty, func(s span) bool { return s.off >= size })
	return nil
}

// Size implements vfs.File.
func (h *file) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return h.n.size, nil
}

// Close implements vfs.File.
func (h *file) Close() error { return nil }
