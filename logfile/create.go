package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mars/internal/vfs"
)

// tombstone is the text of the symlink that a deleted logfile leaves behind.
const tombstone = ".deleted"

// filePerm: logs hold the content of the device.
const filePerm = 0o600

// createFile opens a new or existing empty logfile. A tombstone of the same name
// makes way in one step; whether the deletion still counts is the caller's
// decision. The name is durable when createFile returns.
func createFile(fsys vfs.FS, dir string, name Name) (vfs.File, error) {
	if err := name.valid(); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name.String())
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if errors.Is(err, fs.ErrExist) {
		f, err = replaceFile(fsys, dir, name)
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	size, err := f.Size()
	switch {
	case err != nil:
	case size != 0:
		err = fmt.Errorf("%d bytes from an earlier run; take the next serial number: %w", size, ErrNotEmpty)
	default:
		if err = f.Datasync(); err == nil {
			err = fsys.SyncDir(dir)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	return f, nil
}

// replaceFile opens what stands in the place of the new logfile: a regular file
// as it is, a tombstone after a new file was renamed over it.
func replaceFile(fsys vfs.FS, dir string, name Name) (vfs.File, error) {
	path := filepath.Join(dir, name.String())
	st, err := fsys.Lstat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case st.Mode().IsRegular():
		return fsys.OpenFile(path, os.O_RDWR, filePerm)
	case st.Mode()&fs.ModeSymlink == 0:
		return nil, &fs.PathError{Op: "create", Path: path, Err: fmt.Errorf("a %v is in the way", st.Mode().Type())}
	}
	target, err := fsys.Readlink(path)
	if err != nil {
		return nil, err
	}
	if target != tombstone {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fmt.Errorf("a symlink to %q is in the way", target)}
	}
	tmp := filepath.Join(dir, ".tmp-"+name.String())
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, err
	}
	if err := fsys.Rename(tmp, path); err != nil {
		f.Close()
		fsys.Remove(tmp)
		return nil, err
	}
	return f, nil
}
