package e2e

import (
	"bytes"
	"context"
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

// sickDisk is a backing disk that fails on demand: a file behind nbdkit's error
// filter, shown as a file again by nbdfuse.
type sickDisk struct {
	t       testing.TB
	path    string // what marsd opens
	backing string // what is really there
	fuse    string
	trigger map[string]string // operation -> file whose existence makes it fail
	cmd     *exec.Cmd
	done    chan struct{}
}

func newSickDisk(n *Node, size int64) *sickDisk {
	n.t.Helper()
	d := &sickDisk{t: n.t, backing: n.Disk("backing", size), fuse: n.Path("sick"), trigger: map[string]string{}, done: make(chan struct{})}
	d.path = filepath.Join(d.fuse, "disk")
	if err := os.MkdirAll(d.fuse, 0o700); err != nil {
		n.t.Fatal(err)
	}
	args := []string{d.path, "--command", "nbdkit", "-s", "--exit-with-parent", "--filter=error", "file", d.backing, "error=EIO"}
	for _, op := range []string{"pread", "pwrite", "zero", "trim"} {
		d.trigger[op] = n.Path("fail-" + op)
		args = append(args, "error-"+op+"-rate=100%", "error-"+op+"-file="+d.trigger[op])
	}
	d.cmd = exec.Command("nbdfuse", args...)
	out, err := os.Create(n.Path("sick.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := start(d.cmd); err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	n.t.Cleanup(d.remove)
	testutil.WaitFor(n.t, waitLimit, "nbdfuse shows the disk", func() bool {
		select {
		case <-d.done:
			b, _ := os.ReadFile(n.Path("sick.log"))
			n.t.Fatalf("nbdfuse has ended: %s", b)
		default:
		}
		st, err := os.Stat(d.path)
		return err == nil && st.Size() == size
	})
	return d
}

func (d *sickDisk) fail(ops ...string) {
	d.t.Helper()
	for _, op := range ops {
		if err := os.WriteFile(d.trigger[op], nil, 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *sickDisk) heal() {
	for _, f := range d.trigger {
		_ = os.Remove(f)
	}
}

// remove lets the disk go; marsd may still have it open when a test has failed.
func (d *sickDisk) remove() {
	d.heal()
	if out, err := exec.Command("fusermount3", "-u", "-z", d.fuse).CombinedOutput(); err != nil {
		d.t.Errorf("fusermount3 -u %s: %v: %s", d.fuse, err, out)
	}
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// seconds is how soon an error must be visible.
const seconds = 15 * time.Second

// TestDiskError: a primary's data disk that refuses writes costs the clients nothing, one that refuses
// reads gives EIO to who reads it; both are shown. When it works again everything gets there
// by itself.
func TestDiskError(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs("--writeback-age", "200ms"))
	a, b := c.Nodes[0], c.Nodes[1]
	image := make([]byte, 16*mib)
	sick := newSickDisk(a, int64(len(image)))
	a.CreateResource(sick.path)
	b.JoinResource(b.Disk("disk", int64(len(image))))
	l := startLoad(a, image)
	l.more(a, 100)

	sick.fail("pwrite", "zero", "trim")
	since := time.Now()
	a.WaitFor("the error is shown", func() bool { return a.View("disk-error", "r0") == "-5" })
	if d := time.Since(since); d > seconds {
		t.Errorf("the error is shown after %v", d)
	}
	b.WaitFor("the other node shows it", func() bool { return b.Res("actual-hosta/disk-error") == "-5" })
	out := a.Adm("view", "r0")
	for _, want := range []string{"DISK_ERROR=-5", "err-disk", "input/output error"} {
		if !strings.Contains(out, want) {
			t.Errorf("view does not say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(a.Log(), "writeback failed") {
		t.Error("the log does not tell of the error")
	}
	pos := a.Res("replay-hosta")
	l.more(a, 500) // nobody is failed
	if now := a.Res("replay-hosta"); strings.Split(now, ",")[1] != strings.Split(pos, ",")[1] {
		t.Errorf("the position moved from %s to %s although the disk takes nothing", pos, now)
	}
	l.finish()
	Settle2(a, b)
	sick.heal()
	a.WaitFor("the error has gone", func() bool { return a.View("disk-error", "r0") == "0" })
	a.WaitFor("everything is written back", func() bool { return strings.HasSuffix(a.Res("replay-hosta"), ",0") })

	// Reads: only what is not in the log and not in memory needs the disk.
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err == nil {
		sick.fail("pread")
		cl := a.Client()
		p := make([]byte, 65536)
		failed := false
		for off := int64(0); off < int64(len(image)) && !failed; off += int64(len(p)) {
			err := cl.Read(context.Background(), p, off)
			if failed = err != nil; failed && !errors.Is(err, syscall.EIO) {
				t.Errorf("read of a failing disk: %v, want EIO", err)
			}
		}
		if !failed {
			t.Error("all reads of a disk that refuses them succeed: nothing was tested")
		} else {
			a.WaitFor("the read error is shown", func() bool { return a.View("disk-error", "r0") == "-5" })
			if err := cl.Write(context.Background(), image[:4096], 0); err != nil {
				t.Errorf("write while reads fail: %v", err)
			}
		}
		sick.heal()
		if err := cl.Read(context.Background(), p, 0); err != nil || !bytes.Equal(p, image[:len(p)]) {
			t.Errorf("read of the healed disk: %v, content right: %v", err, bytes.Equal(p, image[:len(p)]))
		}
		cl.Close()
	} else {
		t.Logf("the page cache cannot be dropped, reads of a failing disk are not tested: %v", err)
	}
	equalDisks(t, image, a, map[*Node]string{a: sick.backing, b: b.Path("disk")})
}

// Settle2 waits until b has all of a's log, although a's disk does not take it.
func Settle2(a, b *Node) {
	b.WaitFor("has the whole log", func() bool {
		va, vb := highestVersion(a, a.Name), highestVersion(b, b.Name)
		return va != "" && va == vb
	})
}

// TestLogFull: /mars is full. The client gets the error, it is shown, nothing that
// was acknowledged is lost, and writing goes on by itself when there is space again.
func TestLogFull(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, Apart())
	a, b := c.Nodes[0], c.Nodes[1]
	if err := syscall.Mount("tmpfs", a.Root(), "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("tmpfs: %v", err)
	}
	gone := false
	umount := func() {
		if !gone {
			gone = true
			a.end()
			if err := syscall.Unmount(a.Root(), syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(umount)
	a.Args = append(a.Args, "--emergency=false") // or the device would go on without a log
	a.Adm("create-cluster", "--ip="+a.Addr)
	a.Start()
	b.copySecret(a)
	b.Start()
	b.Adm("join-cluster", a.Name, a.Addr, "--ip="+b.Addr)
	image := make([]byte, 16*mib)
	a.CreateResource(a.Disk("disk", int64(len(image))))
	b.JoinResource(b.Disk("disk", int64(len(image))))

	b.Adm("pause-replay", "r0") // or logs that both have would be removed in time
	ballast := filepath.Join(a.Root(), "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	cl := a.Client()
	ctx := context.Background()
	var failed error
	for i := 0; failed == nil && i < 4096; i++ {
		off := int64(i%4096) * 4096
		p := bytes.Repeat([]byte{byte(i + 1), byte(i >> 8)}, 2048)
		if failed = cl.Write(ctx, p, off); failed == nil {
			copy(image[off:], p)
		}
	}
	if !errors.Is(failed, syscall.EIO) && !errors.Is(failed, syscall.ENOSPC) {
		t.Fatalf("writing into a full /mars: %v, want EIO or ENOSPC", failed)
	}
	a.WaitFor("the log tells", func() bool { return strings.Contains(a.Log(), "no space left") })
	p := make([]byte, 4096)
	if err := cl.Read(ctx, p, 0); err != nil || !bytes.Equal(p, image[:4096]) {
		t.Errorf("read while the log is full: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	a.WaitFor("writes work again", func() bool {
		q := bytes.Repeat([]byte{0xab}, 4096)
		if cl.Write(ctx, q, int64(len(image))-4096) != nil {
			return false
		}
		copy(image[len(image)-4096:], q)
		return true
	})
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	b.Adm("resume-replay", "r0")
	equalDisks(t, image, a, map[*Node]string{a: a.Path("disk"), b: b.Path("disk")})
	if s := b.View("is-split-brain", "r0"); s != "0" {
		t.Errorf("split brain %s", s)
	}
	umount()
}
