package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
)

// mount is a kernel filesystem on the device of a node: nbdfuse makes a file of
// the export, a loop device makes a block device of the file.
type mount struct {
	t    testing.TB
	dir  string // where the filesystem is
	file string // nbdfuse's file
	fuse string // nbdfuse's directory
	loop string
	nbd  *exec.Cmd
	done chan struct{}
	up   bool // the filesystem is mounted
}

// attach makes a block device of n's export, not mounted yet.
func attach(n *Node) *mount {
	n.t.Helper()
	m := fuseFile(n.t, n.URI("r0"), n.Path("mnt"), n.Path("fuse"))
	m.loop = loopDevice(n.t, m.file)
	return m
}

// fuseFile makes a file of an export; dir is where its filesystem would be mounted.
func fuseFile(t testing.TB, uri, dir, fuse string) *mount {
	t.Helper()
	m := &mount{t: t, dir: dir, fuse: fuse, done: make(chan struct{})}
	m.file = filepath.Join(m.fuse, "nbd")
	for _, d := range []string{m.dir, m.fuse} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.nbd = exec.Command("nbdfuse", m.file, uri)
	said := fuse + ".log"
	out, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	m.nbd.Stdout, m.nbd.Stderr = out, out
	if err := start(m.nbd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.nbd.Wait(); close(m.done) }()
	t.Cleanup(m.tearDown)
	testutil.WaitFor(t, waitLimit, "nbdfuse shows the device", func() bool {
		select {
		case <-m.done:
			b, _ := os.ReadFile(said)
			t.Fatalf("nbdfuse has ended: %s", b)
		default:
		}
		st, err := os.Stat(m.file)
		return err == nil && st.Size() > 0
	})
	return m
}

// mountOn attaches n's export and mounts the filesystem on it.
func mountOn(n *Node) *mount {
	n.t.Helper()
	m := attach(n)
	tool(n.t, "mount", "-t", "ext4", m.loop, m.dir)
	m.up = true
	return m
}

// umount leaves the filesystem clean and lets the device go.
func (m *mount) umount() {
	m.t.Helper()
	if m.up {
		tool(m.t, "umount", m.dir)
		m.up = false
	}
	m.release()
}

// release gives loop device and file back.
func (m *mount) release() {
	m.t.Helper()
	if m.loop != "" {
		tool(m.t, "losetup", "-d", m.loop)
		m.gone()
	}
	if m.nbd == nil {
		return
	}
	tool(m.t, "fusermount3", "-u", m.fuse)
	<-m.done
	m.nbd = nil
}

// gone waits until the kernel has let go of the loop device.
func (m *mount) gone() {
	m.t.Helper()
	backing := "/sys/block/" + filepath.Base(m.loop) + "/loop/backing_file"
	testutil.WaitFor(m.t, waitLimit, m.loop+" is free", func() bool {
		b, err := os.ReadFile(backing)
		return errors.Is(err, os.ErrNotExist) || err == nil && !strings.Contains(string(b), m.fuse)
	})
	m.loop = ""
}

// tearDown gets rid of all of it although the device does not answer any more:
// nbdfuse does not reconnect, so every I/O of the filesystem fails by now.
func (m *mount) tearDown() {
	if m.up {
		if err := syscall.Unmount(m.dir, syscall.MNT_DETACH); err != nil {
			m.t.Errorf("umount %s: %v", m.dir, err)
		}
		m.up = false
	}
	if m.loop != "" {
		if out, err := exec.Command("losetup", "-d", m.loop).CombinedOutput(); err != nil {
			m.t.Errorf("losetup -d %s: %v: %s", m.loop, err, out)
		}
		m.gone()
	}
	if m.nbd == nil {
		return
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		m.t.Error(err)
	}
	if strings.Contains(string(mounts), " "+m.fuse+" ") { // unless nbdfuse has failed at once
		if out, err := exec.Command("fusermount3", "-u", "-z", m.fuse).CombinedOutput(); err != nil {
			m.t.Errorf("fusermount3 -u -z %s: %v: %s", m.fuse, err, out)
		}
	}
	select {
	case <-m.done:
	case <-time.After(5 * time.Second):
		_ = m.nbd.Process.Kill()
		<-m.done
	}
	m.nbd = nil
}

// fsck demands that the filesystem is clean.
func (m *mount) fsck() {
	m.t.Helper()
	tool(m.t, "e2fsck", "-f", "-n", m.loop)
}
