package symlinktree

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"mars/internal/vfs"
)

var errDisk = errors.New("disk failure of the test")

// spyFS is the real file layer that notes directory syncs, fails on demand, and
// can round time stamps.
type spyFS struct {
	mu     sync.Mutex
	op     string
	err    error
	synced []string
	round  time.Duration
	before map[string]func(name string) // called once before the operation
}

func (s *spyFS) fail(op string, err error) { s.mu.Lock(); s.op, s.err = op, err; s.mu.Unlock() }

func (s *spyFS) check(op, name string) error {
	s.mu.Lock()
	hook := s.before[op]
	delete(s.before, op)
	err := error(nil)
	if s.op == op {
		err = &fs.PathError{Op: op, Path: name, Err: s.err}
	}
	s.mu.Unlock()
	if hook != nil {
		hook(name)
	}
	return err
}

func (s *spyFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	return vfs.OS.OpenFile(name, flag, perm)
}

func (s *spyFS) Rename(a, b string) error {
	if err := s.check("Rename", b); err != nil {
		return err
	}
	return vfs.OS.Rename(a, b)
}

func (s *spyFS) Exchange(a, b string) error {
	if err := s.check("Exchange", b); err != nil {
		return err
	}
	return vfs.OS.(vfs.Exchanger).Exchange(a, b)
}

func (s *spyFS) RenameNoReplace(a, b string) error {
	if err := s.check("RenameNoReplace", b); err != nil {
		return err
	}
	return vfs.OS.(vfs.Exchanger).RenameNoReplace(a, b)
}

func (s *spyFS) Remove(name string) error { return vfs.OS.Remove(name) }

func (s *spyFS) Mkdir(name string, perm fs.FileMode) error {
	if err := s.check("Mkdir", name); err != nil {
		return err
	}
	return vfs.OS.Mkdir(name, perm)
}

func (s *spyFS) Symlink(target, name string, mtime time.Time) error {
	if err := s.check("Symlink", name); err != nil {
		return err
	}
	if s.round > 0 {
		mtime = mtime.Truncate(s.round)
	}
	return vfs.OS.Symlink(target, name, mtime)
}

func (s *spyFS) Readlink(name string) (string, error) {
	if err := s.check("Readlink", name); err != nil {
		return "", err
	}
	return vfs.OS.Readlink(name)
}

func (s *spyFS) Lstat(name string) (fs.FileInfo, error) {
	if err := s.check("Lstat", name); err != nil {
		return nil, err
	}
	return vfs.OS.Lstat(name)
}

func (s *spyFS) ReadDir(name string) ([]fs.DirEntry, error) { return vfs.OS.ReadDir(name) }

func (s *spyFS) SyncDir(name string) error {
	s.mu.Lock()
	s.synced = append(s.synced, name)
	s.mu.Unlock()
	if err := s.check("SyncDir", name); err != nil {
		return err
	}
	return vfs.OS.SyncDir(name)
}

func (s *spyFS) FreeSpace(name string) (int64, int64, error) { return vfs.OS.FreeSpace(name) }

// plainFS is a file layer that can do nothing beyond vfs.FS.
type plainFS struct{}

func (plainFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	return vfs.OS.OpenFile(name, flag, perm)
}
func (plainFS) Rename(a, b string) error                      { return vfs.OS.Rename(a, b) }
func (plainFS) Remove(name string) error                      { return vfs.OS.Remove(name) }
func (plainFS) Mkdir(name string, perm fs.FileMode) error     { return vfs.OS.Mkdir(name, perm) }
func (plainFS) Symlink(v, name string, mtime time.Time) error { return vfs.OS.Symlink(v, name, mtime) }
func (plainFS) Readlink(name string) (string, error)          { return vfs.OS.Readlink(name) }
func (plainFS) SyncDir(name string) error                     { return vfs.OS.SyncDir(name) }
func (plainFS) FreeSpace(name string) (int64, int64, error)   { return vfs.OS.FreeSpace(name) }
func (plainFS) Lstat(name string) (fs.FileInfo, error) {
	st, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	return plainInfo{st}, nil
}

func (plainFS) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := os.ReadDir(name)
	for i, l := 0, len(list)-1; i < l; i, l = i+1, l-1 { // in no useful order
		list[i], list[l] = list[l], list[i]
	}
	for i, e := range list {
		list[i] = unknownType{e}
	}
	return list, err
}

type plainInfo struct{ fs.FileInfo }

func (plainInfo) Sys() any { return nil }

// unknownType is a directory entry of a file system that does not tell the type.
type unknownType struct{ fs.DirEntry }

func (unknownType) Type() fs.FileMode { return fs.ModeIrregular }
func (unknownType) IsDir() bool       { return false }
