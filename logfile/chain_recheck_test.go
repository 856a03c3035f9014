package logfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestRecheck: what others do to a logfile is learned, and the fetch goes on from there.
func TestRecheck(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100)
	for _, row := range []struct {
		name    string
		do      func(path string) error
		changed bool
		size    int64 // -1: there is no file
	}{
		{"nothing", func(string) error { return nil }, false, 1000},
		{"shortened", func(p string) error { return os.Truncate(p, 400) }, true, 400},
		{"emptied", func(p string) error { return os.Truncate(p, 0) }, true, 0},
		{"removed", os.Remove, true, -1},
		{"replaced by a shorter one", func(p string) error {
			return errors.Join(os.WriteFile(p+".new", content[:300], 0o600), os.Rename(p+".new", p))
		}, true, 300},
		{"a link in its place", func(p string) error { return errors.Join(os.Remove(p), os.Symlink(".deleted", p)) }, true, -1},
		{"lengthened", func(p string) error { return os.WriteFile(p, append(bytes.Clone(content), 'x'), 0o600) }, false, 1000},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			c, err := OpenChain(nil, dir)
			must(t, err)
			defer c.Close()
			must(t, c.AppendRaw(testName, 0, content))
			_, err = c.SyncRaw(testName)
			must(t, err)
			c.Seal(testName)
			must(t, row.do(filepath.Join(dir, testName.String())))
			changed, err := c.Recheck(testName)
			if err != nil || changed != row.changed {
				t.Fatalf("changed=%v, %v, want %v", changed, err, row.changed)
			}
			if again, err := c.Recheck(testName); again || err != nil {
				t.Errorf("changed again: %v %v", again, err)
			}
			size, err := c.Durable(testName)
			if row.size < 0 {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("size %d, %v, want none", size, err)
				}
				size = 0
			} else if err != nil || size != row.size {
				t.Fatalf("durable %d, %v, want %d", size, err, row.size)
			}
			must(t, c.AppendRaw(testName, size, content[size:]))
			if size, err = c.SyncRaw(testName); err != nil || size != 1000 {
				t.Errorf("%d bytes after fetching the rest, %v", size, err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, testName.String())); err != nil || !bytes.Equal(got[:1000], content) {
				t.Errorf("the file is %d bytes, %v", len(got), err)
			}
		})
	}
	c, _, _ := newChain(t)
	w, err := c.Create(testName, WriterOptions{})
	must(t, err)
	defer w.Close()
	if changed, err := c.Recheck(testName); changed || !errors.Is(err, ErrInUse) {
		t.Errorf("under a live Writer: %v %v", changed, err)
	}
}
