package logfile

import (
	"io/fs"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"mars/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// faultFS is the real file system with hooks; a nil hook does nothing.
type faultFS struct {
	vfs.FS
	mu sync.Mutex
	// write may cut a write of n bytes to allow bytes and make it fail.
	write func(off int64, n int) (allow int, err error)
	sync  func() error
	trunc func(size int64) error
	// syncDir replaces SyncDir.
	syncDir func(dir string) error

	writes   int // vectored writes
	syncs    int
	dirSyncs int
	open     int // descriptors
}

func newFaultFS() *faultFS { return &faultFS{FS: vfs.OS} }

func (f *faultFS) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count reads a counter.
func (f *faultFS) count(n *int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *n
}

func (f *faultFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	f.set(func() { f.open++ })
	return &faultFile{File: file, fs: f}, nil
}

func (f *faultFS) SyncDir(name string) error {
	f.mu.Lock()
	f.dirSyncs++
	hook := f.syncDir
	f.mu.Unlock()
	if hook != nil {
		return hook(name)
	}
	return f.FS.SyncDir(name)
}

type faultFile struct {
	vfs.File
	fs *faultFS
}

func (f *faultFile) allow(off int64, n int) (int, error) {
	f.fs.mu.Lock()
	f.fs.writes++
	hook := f.fs.write
	f.fs.mu.Unlock()
	if hook == nil {
		return n, nil
	}
	return hook(off, n)
}

func (f *faultFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	var all []byte
	for _, b := range bufs {
		all = append(all, b...)
	}
	return f.WriteAt(all, off)
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	n, fault := f.allow(off, len(p))
	if n > 0 {
		if n, err := f.File.WriteAt(p[:n], off); err != nil {
			return n, err
		}
	}
	return n, fault
}

func (f *faultFile) Datasync() error {
	f.fs.mu.Lock()
	f.fs.syncs++
	hook := f.fs.sync
	f.fs.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return err
		}
	}
	return f.File.Datasync()
}

func (f *faultFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	hook := f.fs.trunc
	f.fs.mu.Unlock()
	if hook != nil {
		if err := hook(size); err != nil {
			return err
		}
	}
	return f.File.Truncate(size)
}

func (f *faultFile) Close() error {
	f.fs.set(func() { f.fs.open-- })
	return f.File.Close()
}

// errFull is what a full disk says.
var errFull = &fs.PathError{Op: "pwritev", Path: "log", Err: syscall.ENOSPC}
