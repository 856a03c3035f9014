// Package vfs is the file layer under logfile, symlinktree and device. Every
// byte that the project makes durable goes through FS and File, so that tests
// can replace the disk by one that forgets, tears, reorders, fills up or fails
// (DESIGN section 8). OS is the real one.
package vfs

import (
	"io/fs"
	"time"
)

// FS is a file system. All names are absolute paths. Methods return
// *fs.PathError like package os; none of them retries.
type FS interface {
	// OpenFile opens with os.O_* flags. O_CREATE|O_EXCL never follows a symlink.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(oldname, newname string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error
	// Symlink creates a link whose text is target; mtime is its Lamport stamp,
	// set with UTIME_NOFOLLOW in the same call before anybody can see another one
	// under its final name (callers create under a temporary name and rename).
	Symlink(target, name string, mtime time.Time) error
	Readlink(name string) (string, error)
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes creations, renames and removals inside the directory durable.
	SyncDir(name string) error
	// FreeSpace reports free and total bytes of the file system holding name.
	FreeSpace(name string) (free, total int64, err error)
}

// File is an open regular file or block device. ReadAt and WriteAt follow
// io.ReaderAt and io.WriterAt; all methods may be called concurrently.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// WritevAt writes the concatenation of bufs at off with as few system calls
	// as possible (pwritev). It returns the bytes written and an error if short.
	WritevAt(bufs [][]byte, off int64) (int, error)
	Truncate(size int64) error
	// Datasync makes all completed writes and the file size durable (fdatasync).
	// After an error the kernel may have dropped dirty pages: a caller must never
	// treat a later success as covering the bytes of the failed call.
	Datasync() error
	// Size is the length in bytes; for block devices the device size.
	Size() (int64, error)
	Close() error
}

// Fd is implemented by files that have a kernel descriptor (the real ones), for
// ioctl, fallocate and locking. Fault layers that cannot offer one leave it out.
type Fd interface{ Fd() uintptr }

// Allocator is implemented by files that can be given space in advance.
type Allocator interface {
	// Allocate reserves space for [off, off+n). The size of the file stays as it is; what
	// lies beyond it is freed by Truncate. After an error a part may be reserved.
	Allocate(off, n int64) error
}
