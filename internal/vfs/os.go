package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OS is the file system of the kernel.
var OS FS = osFS{}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

func (osFS) Rename(oldname, newname string) error       { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) Mkdir(name string, perm fs.FileMode) error  { return os.Mkdir(name, perm) }
func (osFS) Readlink(name string) (string, error)       { return os.Readlink(name) }
func (osFS) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(name) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

func (osFS) Symlink(target, name string, mtime time.Time) error {
	if err := os.Symlink(target, name); err != nil {
		return err
	}
	ts := []unix.Timespec{unix.NsecToTimespec(mtime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		os.Remove(name)
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osFS) FreeSpace(name string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

type osFile struct{ f *os.File }

func (o *osFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, off) }
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }
func (o *osFile) Truncate(size int64) error                { return o.f.Truncate(size) }
func (o *osFile) Close() error                             { return o.f.Close() }
func (o *osFile) Fd() uintptr                              { return o.f.Fd() }

// iovMax is the kernel's limit of vectors a call (UIO_MAXIOV).
const iovMax = 1024

func (o *osFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := 0
	for len(bufs) > 0 {
		n := min(len(bufs), iovMax)
		want := 0
		for _, b := range bufs[:n] {
			want += len(b)
		}
		got, err := unix.Pwritev(int(o.f.Fd()), bufs[:n], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, &fs.PathError{Op: "pwritev", Path: o.f.Name(), Err: err}
		}
		total += got
		off += int64(got)
		if got == want {
			bufs = bufs[n:]
			continue
		}
		if got == 0 {
			return total, &fs.PathError{Op: "pwritev", Path: o.f.Name(), Err: io.ErrShortWrite}
		}
		bufs = skip(bufs, got)
	}
	return total, nil
}

// skip drops the first n bytes of bufs without touching the caller's slices.
func skip(bufs [][]byte, n int) [][]byte {
	out := append([][]byte(nil), bufs...)
	for n > 0 {
		if n >= len(out[0]) {
			n -= len(out[0])
			out = out[1:]
			continue
		}
		out[0] = out[0][n:]
		n = 0
	}
	return out
}

// Allocate implements Allocator.
func (o *osFile) Allocate(off, n int64) error {
	for {
		err := unix.Fallocate(int(o.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EINTR {
			return os.NewSyscallError("fallocate", err)
		}
	}
}

func (o *osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(o.f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "fdatasync", Path: o.f.Name(), Err: err}
		}
	}
}

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Mode().IsRegular() {
		return st.Size(), nil
	}
	if st.Mode()&fs.ModeDevice == 0 {
		return 0, &fs.PathError{Op: "size", Path: o.f.Name(), Err: errors.New("neither a regular file nor a block device")}
	}
	n, err := unix.IoctlGetInt(int(o.f.Fd()), unix.BLKGETSIZE64)
	if err != nil {
		return 0, &fs.PathError{Op: "BLKGETSIZE64", Path: o.f.Name(), Err: err}
	}
	return int64(n), nil
}
