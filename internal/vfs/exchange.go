package vfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// Exchanger is implemented by file systems that can replace a name without
// losing what another process put there meanwhile. Callers must cope with
// EINVAL, ENOSYS and EOPNOTSUPP, which mean that the file system below cannot.
type Exchanger interface {
	// Exchange swaps what the two names stand for, atomically. Both must exist.
	Exchange(a, b string) error
	// RenameNoReplace renames, and fails with EEXIST if newname exists.
	RenameNoReplace(oldname, newname string) error
}

func (osFS) Exchange(a, b string) error { return rename2(a, b, unix.RENAME_EXCHANGE) }

func (osFS) RenameNoReplace(oldname, newname string) error {
	return rename2(oldname, newname, unix.RENAME_NOREPLACE)
}

func rename2(oldname, newname string, flags uint) error {
	if err := unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, flags); err != nil {
		return &os.LinkError{Op: "renameat2", Old: oldname, New: newname, Err: err}
	}
	return nil
}
