//go:build mutant_nosync

package vfs

import (
	"io/fs"
	"path/filepath"
	"strings"
)

// A mutant for the tests of power cuts, never part of a build without its tag:
// logfiles are not synced, so that everything is acknowledged before it is
// durable. A test that does not fail with it proves nothing.
func init() { OS = noSync{osFS{}} }

type noSync struct{ osFS }

func (m noSync) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := m.osFS.OpenFile(name, flag, perm)
	if o, ok := f.(*osFile); ok && strings.HasPrefix(filepath.Base(name), "log-") {
		return &noSyncFile{o}, err
	}
	return f, err
}

type noSyncFile struct{ *osFile }

func (*noSyncFile) Datasync() error { return nil }
