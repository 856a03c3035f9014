package device

import (
	"errors"

	"golang.org/x/sys/unix"

	"mars/device/nbd"
)

// Extents tells which parts of [off, end) hold data, which read as zeroes, and which of those take no
// space: what the log has says the index, the rest is asked from the disk. At most limit extents are
// appended to dst, at least one.
//
// A part is looked up in the index before the disk is asked. Between the two, writeback may bring
// to the disk what was logged later; then the answer is that of a later moment of the same call.
func (e *Engine) Extents(dst []nbd.Extent, off, end int64, limit int) ([]nbd.Extent, error) {
	if err := e.checkRange(off, end-off); err != nil {
		return dst, err
	}
	max := len(dst) + limit
	for off < end && len(dst) < max {
		p := e.idx.first(off, end)
		x := nbd.Extent{Len: p.len}
		switch {
		case p.log == nil:
			x.Len, x.State = e.disk.state(off, p.end())
		case p.kind == kindDiscard:
			x.State = nbd.StateHole | nbd.StateZero
		case p.kind == kindZero:
			x.State = nbd.StateZero
		}
		off += x.Len
		dst = append(dst, x)
	}
	return dst, nil
}

// FastZeroes is true while zeroes are one record, whatever their length. In emergency mode it is up to the disk
// how long they take.
func (e *Engine) FastZeroes() bool { return !e.cfg.ZeroesAsWrites && !e.direct.on.Load() }

// maxPrefetch bounds what one Prefetch starts to read, in bytes: a client may name a range larger
// than the memory.
const maxPrefetch = 64 << 20

// Prefetch makes the kernel begin to read a range of the disk. What is in the log is usually in the
// page cache, because it was written a moment ago.
func (e *Engine) Prefetch(off, length int64) error {
	if err := e.checkRange(off, length); err != nil {
		return err
	}
	for end := off + min(length, maxPrefetch); off < end; {
		p := e.idx.first(off, end)
		if p.log == nil {
			e.disk.prefetch(p.off, p.len)
		}
		off = p.end()
	}
	return nil
}

// first is the first piece of [off, end): lookup for those who go through a range of any length,
// without its result in memory and without keeping writers out for long.
func (x *layers) first(off, end int64) piece {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for li := len(x.list) - 1; li >= 0; li-- {
		l := x.list[li]
		e := l.ext.at(l.ext.seek(off))
		if e == nil || e.off >= end {
			continue
		}
		if e.off > off {
			end = e.off // an older layer may know what is in front of it
			continue
		}
		p := piece{*e, l.log}
		p.cutFront(off)
		p.len = min(p.len, end-off)
		return p
	}
	return piece{extent: extent{off: off, len: end - off}}
}

// state tells how much from off on, at most up to end, is in one state, and in which. What cannot tell
// (a block device, a file system without holes) counts as data.
func (d *Disk) state(off, end int64) (length int64, state nbd.State) {
	if d.fd < 0 || d.block {
		return end - off, 0
	}
	data, err := seek(d.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end - off, nbd.StateHole | nbd.StateZero // no data from here on
	case err != nil || data < off:
		return end - off, 0
	case data > off:
		return min(data, end) - off, nbd.StateHole | nbd.StateZero
	}
	hole, err := seek(d.fd, off, unix.SEEK_HOLE)
	if err != nil || hole <= off { // also when it has become one since
		return end - off, 0
	}
	return min(hole, end) - off, 0
}

// seek moves the file's own position, which nobody uses.
func seek(fd int, off int64, whence int) (int64, error) {
	for {
		n, err := unix.Seek(fd, off, whence)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func (d *Disk) prefetch(off, length int64) {
	if d.fd >= 0 {
		// A hint: that it failed is found out by the read.
		unix.Fadvise(d.fd, off, length, unix.FADV_WILLNEED)
	}
}
