package crashfs

import (
	"io"
	"io/fs"
	"syscall"
)

// file is an open handle.
type file struct {
	fs       *FS
	ino      *inode
	name     string
	writable bool
	closed   bool
}

func (h *file) err(op string, err error) error { return pathErr(op, h.name, err) }

// usable checks the handle itself; the lock is held.
func (h *file) usable(write bool) error {
	switch {
	case h.closed:
		return fs.ErrClosed
	case write && !h.writable:
		return syscall.EBADF
	case h.ino.dir:
		return syscall.EISDIR
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.look(Op{Kind: OpRead, Path: h.name, Off: off, Len: len(p)}); err != nil {
		return 0, h.err("read", err)
	}
	if err := h.usable(false); err != nil {
		return 0, h.err("read", err)
	}
	if off < 0 {
		return 0, h.err("read", syscall.EINVAL)
	}
	n := int(min(int64(len(p)), max(0, h.ino.cur.size-off)))
	h.ino.cur.readAt(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	return h.write([][]byte{p}, len(p), off)
}

// WritevAt implements vfs.File; it is one operation.
func (h *file) WritevAt(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return h.write(bufs, n, off)
}

func (h *file) write(bufs [][]byte, n int, off int64) (int, error) {
	f := h.fs
	// The bytes are captured before any delay: the caller owns them only during
	// the call, and the unit keeps them until they are durable.
	data := make([]byte, 0, n)
	for _, b := range bufs {
		data = append(data, b...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{Kind: OpWrite, Path: h.name, Off: off, Len: n}
	v, err := f.begin(&op)
	if err == nil {
		err = h.usable(true)
	}
	if err == nil && off < 0 {
		err = syscall.EINVAL
	}
	if err != nil {
		return 0, h.err("write", err)
	}
	if v.err != nil {
		data = data[:v.short(f.rng, n)]
	}
	room, full := h.room(off, int64(len(data)))
	if full {
		data = data[:room]
	}
	// A delayed write takes its place in the order when it lands, not when it
	// began: no sync that returned before covers it.
	f.seq++
	h.store(data, off, f.seq)
	switch {
	case v.err != nil:
		return len(data), h.err("write", v.err)
	case full:
		return len(data), h.err("write", syscall.ENOSPC)
	}
	return n, nil
}

// room tells how much of a write of n bytes at off finds space.
func (h *file) room(off, n int64) (int64, bool) {
	if h.ino.fixed && off+n > h.ino.cur.size {
		return max(0, h.ino.cur.size-off), true
	}
	f := h.fs
	if f.capacity == 0 {
		return n, false
	}
	free := f.capacity/pageSize - f.used
	if h.ino.cur.missing(off, n) <= free {
		return n, false
	}
	// Page by page up to the first that finds none.
	fit := int64(0)
	for fit < n {
		step := min(n-fit, pageSize-(off+fit)%pageSize)
		if need := h.ino.cur.missing(off+fit, step); need > free {
			break
		} else {
			free -= need
		}
		fit += step
	}
	return fit, true
}

func (h *file) store(data []byte, off int64, seq uint64) {
	if len(data) == 0 {
		return
	}
	f, ino := h.fs, h.ino
	before := ino.cur.pages
	p := pending{seq: seq, off: off, data: data, size: -1}
	if end := off + int64(len(data)); end > ino.cur.size {
		p.size = end
	}
	ino.cur.apply(p)
	f.used += ino.cur.pages - before
	ino.mtime = f.now()
	f.addPending(ino, p)
}

// Truncate implements vfs.File.
func (h *file) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.usable(true)
	if err == syscall.EBADF {
		err = syscall.EINVAL // as ftruncate
	}
	if err == nil && (size < 0 || h.ino.fixed) {
		err = syscall.EINVAL
	}
	if err == nil {
		err = h.truncateLocked(size)
	}
	return h.err("truncate", err)
}

func (h *file) truncateLocked(size int64) error {
	f, ino := h.fs, h.ino
	op := Op{Kind: OpTruncate, Path: h.name, Off: size}
	v, err := f.begin(&op)
	if err == nil {
		err = v.err
	}
	if err != nil {
		return err
	}
	before := ino.cur.pages
	f.seq++
	p := pending{seq: f.seq, size: size}
	ino.cur.apply(p)
	f.used += ino.cur.pages - before
	ino.mtime = f.now()
	f.addPending(ino, p)
	return nil
}

// Datasync implements vfs.File. On a directory it does what SyncDir does.
func (h *file) Datasync() error {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.closed {
		return h.err("datasync", fs.ErrClosed)
	}
	op := Op{Kind: OpDatasync, Path: h.name}
	v, err := f.begin(&op)
	switch {
	case err != nil:
		return h.err("datasync", err)
	case v.err != nil:
		f.failSync(h.ino, op.seq)
		return h.err("datasync", v.err)
	case h.ino.dir:
		f.syncDirLocked(h.ino, op.seq)
		return nil
	}
	f.commitFile(h.ino, op.seq)
	if f.metadata == Journaled {
		f.commitMetadata(op.seq)
	}
	return nil
}

// Size implements vfs.File.
func (h *file) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.fs.frozen {
		return 0, h.err("size", ErrPowerCut)
	}
	if err := h.usable(false); err != nil {
		return 0, h.err("size", err)
	}
	return h.ino.cur.size, nil
}

// Close implements vfs.File; it makes nothing durable.
func (h *file) Close() error {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.closed {
		return h.err("close", fs.ErrClosed)
	}
	h.closed = true
	h.ino.open--
	if h.ino.open == 0 {
		f.dropped++
		if f.capacity > 0 {
			f.recount()
		}
	}
	if f.frozen {
		return h.err("close", ErrPowerCut)
	}
	return nil
}
