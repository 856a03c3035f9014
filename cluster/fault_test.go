package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/vfs"
)

// brokenFS fails on demand what lies below it: writes to the disk, appends to
// logfiles, the renaming of one link into place.
type brokenFS struct {
	vfs.FS
	disk, log atomic.Bool
	link      atomic.Pointer[string] // base name

	free, total atomic.Int64 // if total is not 0: what FreeSpace says
}

func (b *brokenFS) FreeSpace(name string) (free, total int64, err error) {
	if total := b.total.Load(); total != 0 {
		return b.free.Load(), total, nil
	}
	return b.FS.FreeSpace(name)
}

type brokenFile struct {
	vfs.File
	fs   *brokenFS
	base string
}

func (b *brokenFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := b.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &brokenFile{f, b, filepath.Base(name)}, nil
}

func (b *brokenFS) Rename(from, to string) error {
	if l := b.link.Load(); l != nil && filepath.Base(to) == *l {
		return &os.PathError{Op: "rename", Path: to, Err: syscall.ENOSPC}
	}
	return b.FS.Rename(from, to)
}

func (f *brokenFile) err() error {
	switch {
	case f.base == "disk" && f.fs.disk.Load():
		return syscall.EIO
	case strings.HasPrefix(f.base, "log-") && f.fs.log.Load():
		return syscall.ENOSPC
	}
	return nil
}

func (f *brokenFile) Fd() uintptr { return f.File.(vfs.Fd).Fd() }

func (f *brokenFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.err(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *brokenFile) WritevAt(p [][]byte, off int64) (int, error) {
	if err := f.err(); err != nil {
		return 0, err
	}
	return f.File.WritevAt(p, off)
}

func (f *brokenFile) Datasync() error {
	if err := f.err(); err != nil && f.base == "disk" {
		return err
	}
	return f.File.Datasync()
}

// brokenPair is a primary a whose file layer can be broken, and its secondary b.
func brokenPair(t *testing.T, prepare ...func(cfg *Config)) (a, b *testNode, bad *brokenFS, c *nbdclient.Client) {
	t.Helper()
	bad = &brokenFS{FS: vfs.OS}
	a, b = newPair(t, func(a *testNode) {
		a.cfg.FS = bad
		for _, p := range prepare {
			p(&a.cfg)
		}
	})
	a.create("r0")
	c = a.device("r0")
	b.join("r0", "a")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	return a, b, bad, c
}

// A log that had no space for a moment, and emergency mode is not allowed: the client gets the
// error, a new log is begun, nothing acknowledged is missing on either side.
func TestFailedLogIsFollowed(t *testing.T) {
	a, b, bad, c := brokenPair(t, func(cfg *Config) { cfg.Emergency = false })
	defer c.Close()
	write(t, c, 0, []byte(strings.Repeat("1", 4096)))
	bad.log.Store(true)
	if err := c.Write(context.Background(), make([]byte, 4096), 4096); !errors.Is(err, syscall.EIO) {
		t.Fatalf("write to a full log: %v, want EIO", err)
	}
	// if-state shows it too, but only until the next log has been begun.
	a.await("reports it", func() bool { return strings.Contains(a.logs.String(), "the log failed") })
	bad.log.Store(false)
	a.await("goes on in a new log", func() bool { return c.Write(context.Background(), []byte(strings.Repeat("2", 4096)), 8192) == nil })
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := contentSum(t, c)
	b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	if v := b.get("resource-r0/actual-b/msg-err-splitbrain-detected"); v != "" && v != "OK" {
		t.Errorf("false split brain: %s", v)
	}
}

// A version link that cannot be written while the log rotates must not make peers
// build on its stale value.
func TestRotateWithoutSpaceForLinks(t *testing.T) {
	a, b, bad, c := brokenPair(t)
	defer c.Close()
	stale := "version-000000001-a"
	bad.link.Store(&stale)
	write(t, c, 0, []byte(strings.Repeat("1", 4096)))
	f, err := os.OpenFile(filepath.Join(a.cfg.Root, "resource-r0/log-000000002-a"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	a.await("has rotated", func() bool { return a.node.worker("r0").engine().Status().Current.Seq == 2 })
	write(t, c, 4096, []byte(strings.Repeat("2", 4096)))
	if v := a.get("resource-r0/version-000000002-a"); v != "" {
		t.Errorf("the new log was announced on a stale predecessor: %s", v)
	}
	bad.link.Store(nil)
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := contentSum(t, c)
	b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
}

// A secondary whose disk is broken can be detached, a primary can give its role
// up: neither waits for the disk for ever, and nothing acknowledged is lost.
func TestBrokenDiskLetsGo(t *testing.T) {
	a, b, bad, c := brokenPair(t)
	bad.disk.Store(true)
	write(t, c, 0, []byte(strings.Repeat("1", 4096)))
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := contentSum(t, c)
	a.await("reports the disk", func() bool { return a.get("resource-r0/actual-a/disk-error") == "-5" })
	c.Close()
	b.put("resource-r0/primary", "b")
	a.awaitLink("resource-r0/actual-a/is-primary", "0")
	cb := b.device("r0")
	if got := contentSum(t, cb); got != want {
		t.Error("the new primary lacks what the old one had in its log")
	}
	cb.Close()
	a.put("resource-r0/todo-a/attach", "0")
	a.awaitLink("resource-r0/actual-a/is-attached", "0")
	bad.disk.Store(false)
}
