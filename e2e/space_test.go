package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/symlinktree"
)

// smallFS mounts a filesystem of so many bytes on dir.
func smallFS(t testing.TB, dir string, size int64) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "needs root: a filesystem of its own for /mars")
	}
	if err := syscall.Mount("mars", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		t.Fatalf("mount a tmpfs of %d bytes on %s: %v", size, dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
}

// fill is a foreign file in a node's /mars.
type fill struct {
	n    *Node
	size int64
}

func (f *fill) path() string { return filepath.Join(f.n.Root(), "foreign") }

// set makes the file bytes long, of as many as there is room for.
func (f *fill) set(bytes int64) {
	f.n.t.Helper()
	file, err := os.OpenFile(f.path(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		f.n.t.Fatal(err)
	}
	defer file.Close()
	if bytes < f.size {
		err = file.Truncate(bytes)
	} else {
		for at := f.size; at < bytes && err == nil; at += 1 << 20 {
			err = syscall.Fallocate(int(file.Fd()), 0, at, min(1<<20, bytes-at))
			if err == syscall.ENOSPC {
				bytes, err = at, nil
				break
			}
		}
	}
	if err != nil {
		f.n.t.Fatal(err)
	}
	f.size = bytes
}

// restPercent is what is free of a node's /mars after the reserves, as marsd counts it: what logs
// have allocated ahead of their end is free.
func restPercent(n *Node, reserves int64) float64 {
	n.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(n.Root(), &st); err != nil {
		n.t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	logs, _ := filepath.Glob(filepath.Join(n.Root(), "resource-*", "log-*"))
	for _, l := range logs {
		if info, err := os.Lstat(l); err == nil && info.Mode().IsRegular() {
			free += max(0, info.Sys().(*syscall.Stat_t).Blocks*512-info.Size())
		}
	}
	return 100 * float64(free-reserves) / float64(int64(st.Blocks)*st.Bsize-reserves)
}

// replicates waits until res on b has everything that a has logged by now.
func replicates(a, b *Node, res string) {
	b.t.Helper()
	r := symlinktree.Resource(res)
	pos := func(n *Node) symlinktree.Replay {
		p, err := symlinktree.ParseReplay(n.Link(r.ReplayPath(n.Name)))
		if err != nil {
			n.t.Fatalf("position of %s on %s: %v", res, n.Name, err)
		}
		return p
	}
	want := pos(a)
	want.Min, want.Len = want.Min+want.Len, 0
	b.WaitFor(fmt.Sprintf("%s replicates up to %s", res, want), func() bool { return symlinktree.CompareReplay(pos(b), want) >= 0 })
}

// TestV26EmergencyLimits: three resources share one /mars that a foreign file fills. Each stops logging at its own
// limit, the others go on; in reverse when the file shrinks.
func TestV26EmergencyLimits(t *testing.T) {
	t.Parallel()
	const reserve, size = 1 * mib, 4 * mib
	args := append([]string{"--space-reserve", "1M,1M,1M,1M", "--emergency-hold", "500ms", "--log-rotate-size", "512K"}, fastArgs...)
	c := NewCluster(t, 2, WithArgs(args...), WithMars(128*mib, 0))
	a, b := c.Nodes[0], c.Nodes[1]
	names, limits := []string{"r1", "r2", "r3"}, []int{80, 60, 40}
	images, loads := map[string][]byte{}, map[string]*load{}
	for i, r := range names {
		images[r] = make([]byte, size)
		a.Adm("create-resource", r, a.Disk(r, size))
		a.Adm("set-emergency-limit", r, strconv.Itoa(limits[i]))
		a.Adm("wait-resource", r, "is-device")
		b.Adm("join-resource", r, b.Disk(r, size))
	}
	for _, r := range names {
		b.WaitFor(r+" is consistent", func() bool { return b.View("is-consistent", r) == "1" })
		loads[r] = startLoadOn(a, r, images[r], 20*time.Millisecond)
		replicates(a, b, r)
	}
	on := func(r string) bool { return a.Link("resource-"+r+"/actual-"+a.Name+"/is-emergency") == "1" }
	f := &fill{n: a}
	t.Cleanup(func() { os.Remove(f.path()) })
	for i, r := range names {
		var below time.Time // since when less than the limit is left
		for !on(r) {
			for _, later := range names[i+1:] {
				if on(later) {
					t.Fatalf("%s is in emergency mode before %s", later, r)
				}
			}
			switch rest := restPercent(a, 4*reserve); {
			case rest >= float64(limits[i]): // or above it again, because logs were removed
				f.set(f.size + 1*mib/2)
				below = time.Time{}
			case below.IsZero():
				below = time.Now()
			case time.Since(below) > 5*time.Second*slowness:
				t.Fatalf("%.1f %% are left, %s with a limit of %d %% goes on logging", rest, r, limits[i])
			}
			time.Sleep(40 * time.Millisecond) // the foreign writer's pace
		}
		if got := restPercent(a, 4*reserve); got < float64(limits[i]-2) || got > float64(limits[i]+2) {
			t.Errorf("%s stopped logging with %.1f %% left, its limit is %d %%", r, got, limits[i])
		}
		if v := a.View("is-emergency", r); v != "1" {
			t.Errorf("view of %s: is-emergency %q", r, v)
		}
		for _, later := range names[i+1:] {
			replicates(a, b, later)
		}
		for _, any := range names {
			loads[any].more(a, 5)
		}
		b.WaitFor(r+" says that it stays behind", func() bool {
			return strings.Contains(b.Link("resource-"+r+"/actual-"+b.Name+"/msg-err-log-not-contiguous"), "invalidate")
		})
		if v := b.View("is-consistent", r); v != "1" {
			t.Errorf("%s of %s stays at an old state, is-consistent is %q", r, b.Name, v)
		}
	}
	if v := a.Link("actual-" + a.Name + "/emergency"); v != "0" {
		t.Errorf("the file system is at level %s, only limits of resources were to be reached", v)
	}
	if _, said, code := b.Try("invalidate", "r1", "--timeout=1"); code == 0 || !strings.Contains(said, "emergency") {
		t.Errorf("invalidate while the primary is in emergency mode: exit %d, %s", code, said)
	}
	for i := len(names) - 1; i >= 0; i-- {
		r := names[i]
		for on(r) {
			for _, earlier := range names[:i] {
				if !on(earlier) {
					t.Fatalf("%s has left emergency mode before %s", earlier, r)
				}
			}
			if f.size == 0 { // what is left are logs
				a.Adm("cron")
				a.WaitFor(r+" logs again", func() bool { return !on(r) })
			}
			f.set(max(0, f.size-1*mib/2))
			time.Sleep(40 * time.Millisecond)
		}
		b.Adm("invalidate", r)
		b.WaitFor(r+" is consistent again", func() bool { return b.View("is-consistent", r) == "1" })
		replicates(a, b, r)
		for _, any := range names {
			loads[any].more(a, 5)
		}
	}
	a.Adm("cron")
	for _, r := range names {
		loads[r].finish()
		b.WaitFor(r+" has caught up", func() bool {
			ra, rb := a.Link("resource-"+r+"/replay-"+a.Name), b.Link("resource-"+r+"/replay-"+b.Name)
			return ra == rb && strings.HasSuffix(ra, ",0") && b.View("work-rest", r) == "0" && b.View("fetch-rest", r) == "0"
		})
		for _, n := range c.Nodes {
			if v := n.View("is-split-brain", r); v != "0" {
				t.Errorf("%s of %s: is-split-brain %q", r, n.Name, v)
			}
		}
		if _, slowest, _ := loads[r].status(); slowest > 5*time.Second {
			t.Errorf("a write to %s took %v", r, slowest)
		}
	}
	for _, r := range names {
		for _, n := range []*Node{b, a} {
			n.Adm("down", r)
			if got := readFile(t, n.Path(r)); !bytes.Equal(got[:size], images[r]) {
				t.Errorf("disk of %s on %s differs from what was written", r, n.Name)
			}
		}
	}
}
