package device

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"mars/internal/vfs"
)

// Sentinels of OpenDisk.
var (
	// ErrInUse: another process or another resource has the disk or socket.
	ErrInUse = errors.New("in use")
	// ErrNotDisk: neither a block device nor a regular file.
	ErrNotDisk = errors.New("neither a block device nor a regular file")
	// ErrTooSmall: the disk cannot hold the device.
	ErrTooSmall = errors.New("too small")
)

// MinDiskSize is the smallest disk that OpenDisk accepts, in bytes.
const MinDiskSize = 4096

// Disk is the backing store of a resource: a block device or a regular file that
// this process has for itself. It is safe for concurrent use; callers see to it
// that writes in flight do not overlap.
type Disk struct {
	path  string
	file  vfs.File
	fd    int // -1 when the file layer has none: no locking, no hole punching
	block bool
	size  atomic.Int64

	noHole, noZero, noWait atomic.Bool // the kernel said that it cannot
	noRange                bool        // the same of sync_file_range, at the start

	// flushMu is held for reading by those to whom the kernel may report a lost write
	// in passing, so that no flush succeeds before that is counted.
	flushMu sync.RWMutex
	failed  atomic.Uint64 // flushes that failed so far
}

// OpenDisk opens path exclusively and never creates it.
func OpenDisk(fsys vfs.FS, path string) (*Disk, error) {
	st, err := fsys.Lstat(path)
	for hops := 0; err == nil && st.Mode()&fs.ModeSymlink != 0; hops++ { // /dev/VG/LV is a link
		var real string
		if real, err = resolve(fsys, path, hops); err == nil {
			path = real
			st, err = fsys.Lstat(path)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open disk %s: %w; create the volume or file first, it is never created here", path, err)
	case err != nil:
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	flags := os.O_RDWR
	block := st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	switch {
	case block:
		flags |= os.O_EXCL // without O_CREATE: refused if mounted or claimed
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("open disk %s: %w (%v)", path, ErrNotDisk, st.Mode().Type())
	}
	f, err := fsys.OpenFile(path, flags, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("open disk %s: %w by another process (mounted, or part of a volume group, RAID or mapping): %w", path, ErrInUse, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &Disk{path: path, file: f, fd: -1, block: block}
	if h, ok := f.(vfs.Fd); ok {
		d.fd = int(h.Fd())
		// Also on block devices: O_EXCL does not exclude the same process twice.
		if err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("open disk %s: %w by another process, which holds a lock on it", path, ErrInUse)
			}
			return nil, fmt.Errorf("lock disk %s: %w", path, err)
		}
		// Asked now, while nothing is at stake: later the same error could be that of a lost write.
		err := unix.SyncFileRange(d.fd, 0, 1, unix.SYNC_FILE_RANGE_WRITE)
		d.noRange = err != nil && !errors.Is(err, unix.EINTR)
	}
	if err := d.refresh(); err != nil {
		f.Close()
		return nil, err
	}
	if n := d.Size(); n < MinDiskSize {
		f.Close()
		return nil, fmt.Errorf("open disk %s: %w: %d bytes, need at least %d", path, ErrTooSmall, n, MinDiskSize)
	}
	return d, nil
}

// resolve follows one symlink.
func resolve(fsys vfs.FS, path string, hops int) (string, error) {
	if hops > 40 {
		return "", &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
	}
	to, err := fsys.Readlink(path)
	if err != nil {
		return "", err
	}
	if to != "" && to[0] != '/' {
		i := len(path) - 1
		for i > 0 && path[i] != '/' {
			i--
		}
		to = path[:i+1] + to
	}
	return to, nil
}

// refresh reads the size again: volumes grow while they are open.
func (d *Disk) refresh() error {
	n, err := d.file.Size()
	if err != nil {
		return fmt.Errorf("size of disk %s: %w", d.path, err)
	}
	d.size.Store(n)
	return nil
}

// Size is the length in bytes, as of OpenDisk or the last Engine.Resize.
func (d *Disk) Size() int64 { return d.size.Load() }

// Path is the path of the disk with symlinks resolved.
func (d *Disk) Path() string { return d.path }

// ReadAt fills p or fails.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.file.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("read disk %s at %d, length %d: %w", d.path, off, len(p), err)
}

// TryReadAt fills p from the page cache, or says that this is not possible.
func (d *Disk) TryReadAt(p []byte, off int64) bool {
	if d.fd < 0 || d.noWait.Load() {
		return false
	}
	for {
		n, err := unix.Preadv2(d.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			d.noWait.Store(true)
		}
		return err == nil && n == len(p)
	}
}

// WriteAt writes all of p or fails.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.inside(off, len(p)); err != nil {
		return 0, err
	}
	n, err := d.file.WriteAt(p, off)
	return d.written(n, err, off, len(p))
}

// WritevAt writes the concatenation of bufs or fails.
func (d *Disk) WritevAt(bufs [][]byte, off int64) (int, error) {
	want := 0
	for _, b := range bufs {
		want += len(b)
	}
	if err := d.inside(off, want); err != nil {
		return 0, err
	}
	n, err := d.file.WritevAt(bufs, off)
	return d.written(n, err, off, want)
}

// inside keeps writes from growing a regular file.
func (d *Disk) inside(off int64, n int) error {
	if off < 0 || off+int64(n) > d.Size() {
		return fmt.Errorf("write disk %s at %d, length %d: beyond its end at %d: %w", d.path, off, n, d.Size(), syscall.ENOSPC)
	}
	return nil
}

func (d *Disk) written(n int, err error, off int64, want int) (int, error) {
	if err == nil && n != want {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, fmt.Errorf("write disk %s at %d, length %d: %w", d.path, off, want, err)
	}
	return n, nil
}

// Epoch counts failed flushes. Whoever relies on FlushSince takes it before his
// first write.
func (d *Disk) Epoch() uint64 { return d.failed.Load() }

// Flush makes completed writes durable. See FlushSince for why its success alone
// proves nothing to a caller that shares the disk with others.
func (d *Disk) Flush() error { return d.FlushSince(d.Epoch()) }

// FlushSince makes everything durable that was written since epoch was taken. The
// kernel reports a lost write to one fdatasync only and drops the page, so a flush
// that succeeds after another caller's has failed is worthless: it fails as well.
// The caller must write again all it wrote since epoch.
func (d *Disk) FlushSince(epoch uint64) error {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	if err := d.file.Datasync(); err != nil {
		d.failed.Add(1)
		return fmt.Errorf("flush disk %s: %w", d.path, err)
	}
	if n := d.failed.Load() - epoch; n != 0 {
		return fmt.Errorf("flush disk %s: %d earlier flushes failed, data before them must be written again: %w", d.path, n, syscall.EIO)
	}
	return nil
}

// StartWriteOut makes the kernel begin to write what is dirty in a range, and WaitWriteOut
// waits until that is with the device. They bound what a later flush has to do, and prove
// nothing about durability.
func (d *Disk) StartWriteOut(off, length int64) error {
	return d.fileRange(off, length, unix.SYNC_FILE_RANGE_WRITE)
}

// WaitWriteOut fails like a flush: see FlushSince.
func (d *Disk) WaitWriteOut(off, length int64) error {
	return d.fileRange(off, length, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}

func (d *Disk) fileRange(off, length int64, flags int) error {
	if d.fd < 0 || d.noRange {
		return nil
	}
	d.flushMu.RLock()
	defer d.flushMu.RUnlock()
	for {
		err := unix.SyncFileRange(d.fd, off, length, flags)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		d.failed.Add(1)
		return fmt.Errorf("write disk %s at %d, length %d: %w", d.path, off, length, err)
	}
}

// Discard makes the range read as zeros and gives its space back where the disk
// can; where it cannot, it writes zeros.
func (d *Disk) Discard(off, length int64) error { return d.zero(off, length, true) }

// WriteZeroes makes the range read as zeros and keeps its space allocated.
func (d *Disk) WriteZeroes(off, length int64) error { return d.zero(off, length, false) }

// zeroAlign is what hole punching on block devices is aligned to.
const zeroAlign = 4096

func (d *Disk) zero(off, length int64, hole bool) error {
	end := off + length
	if off < 0 || length < 0 || end > d.Size() {
		return fmt.Errorf("zero disk %s at %d, length %d: beyond its end at %d: %w", d.path, off, length, d.Size(), syscall.ENOSPC)
	}
	from, to := (off+zeroAlign-1)/zeroAlign*zeroAlign, end/zeroAlign*zeroAlign
	if d.fd < 0 || from >= to {
		return d.writeZeros(off, end)
	}
	if err := d.writeZeros(off, from); err != nil {
		return err
	}
	// On block devices these two are the kernel's zero-out, never a bare discard:
	// they guarantee zeros or say EOPNOTSUPP.
	done := false
	if hole {
		done = d.fallocate(&d.noHole, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to)
	}
	if !done {
		done = d.fallocate(&d.noZero, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, from, to)
	}
	if !done {
		if err := d.writeZeros(from, to); err != nil {
			return err
		}
	}
	return d.writeZeros(to, end)
}

func (d *Disk) fallocate(never *atomic.Bool, mode uint32, from, to int64) bool {
	for !never.Load() {
		err := unix.Fallocate(d.fd, mode, from, to-from)
		switch {
		case err == nil:
			return true
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			never.Store(true)
		}
		return false // writing zeros decides whether this is an error
	}
	return false
}

var zeros [256 << 10]byte

func (d *Disk) writeZeros(off, end int64) error {
	var vec [4][]byte
	for off < end {
		bufs, n := vec[:0], int64(0)
		for len(bufs) < len(vec) && off+n < end {
			k := min(int64(len(zeros)), end-off-n)
			bufs = append(bufs, zeros[:k])
			n += k
		}
		if _, err := d.WritevAt(bufs, off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// Close gives the disk up. It does not flush.
func (d *Disk) Close() error {
	if err := d.file.Close(); err != nil {
		return fmt.Errorf("close disk %s: %w", d.path, err)
	}
	return nil
}
