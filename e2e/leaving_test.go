package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
	"mars/internal/testutil"
)

// livePaths are the links below a directory of n's tree that are no tombstones, and
// logfiles.
func livePaths(n *Node, dir string) []string {
	var list []string
	_ = filepath.WalkDir(filepath.Join(n.Root(), dir), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // gone meanwhile
		}
		if v, err := os.Readlink(path); err == nil && v == ".deleted" {
			return nil
		}
		rel, _ := filepath.Rel(n.Root(), path)
		list = append(list, rel)
		return nil
	})
	return list
}

// ofMember: the path is state of a member of the resource.
func ofMember(path, res, host string) bool {
	rest, ok := strings.CutPrefix(path, "resource-"+res+"/")
	if !ok {
		return false
	}
	dir, name := filepath.Split(rest)
	switch {
	case strings.HasPrefix(name, ".tmp."), strings.HasPrefix(name, "log-"), strings.HasPrefix(name, "version-"), dir == "local-"+host+"/":
		return false
	case dir != "":
		return strings.TrimSuffix(dir, "/") == "actual-"+host || dir == "todo-"+host+"/" || dir == "defaults-"+host+"/"
	}
	return strings.HasSuffix(name, "-"+host)
}

// remains are the links that a member which has left should not have any more.
func remains(on *Node, res, host string) (left []string) {
	for _, p := range livePaths(on, "resource-"+res) {
		if ofMember(p, res, host) {
			left = append(left, p)
		}
	}
	return left
}

// staysGone: nothing of the former member comes back, neither by three rounds of
// cron nor by a restart of all nodes.
func staysGone(c *Cluster, res, host string) {
	t := c.t
	t.Helper()
	for _, n := range c.Nodes {
		n.WaitFor(host+" has left "+res, func() bool { return len(remains(n, res, host)) == 0 })
	}
	look := func(when string) {
		t.Helper()
		for _, n := range c.Nodes {
			if left := remains(n, res, host); len(left) > 0 {
				t.Errorf("%s: %s has links of %s in %s again: %v", when, n.Name, host, res, left)
			}
		}
	}
	for range 3 {
		for _, n := range c.Nodes {
			n.Adm("cron")
		}
		look("after cron")
	}
	for _, n := range c.Nodes {
		n.Stop()
	}
	for _, n := range c.Nodes {
		n.StartNoWait()
	}
	for _, n := range c.Nodes {
		n.Adm("wait-cluster")
	}
	look("after a restart of all")
}

// unclaimed: nobody has the disk open for himself, and it is as it was.
func unclaimed(n *Node, disk string, as []byte) {
	n.t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		n.t.Errorf("%s: the disk of the former member cannot be opened for oneself: %v", n.Name, err)
	}
	if !bytes.Equal(readFile(n.t, disk), as) {
		n.t.Errorf("%s: leaving has changed the disk", n.Name)
	}
}

// leave takes n out of r0; the disk stays as it is. It returns its content.
func leave(w *world, n *Node, args ...string) []byte {
	n.t.Helper()
	n.Adm("down", "r0")
	img := readFile(n.t, w.disks[n])
	n.Adm(append([]string{"leave-resource", "r0"}, args...)...)
	unclaimed(n, w.disks[n], img)
	return img
}

// TestV24LeaveDuringSync: a member leaves in the middle of its full sync, and
// another time while it is cut off; both times it comes back, and what it left
// does not.
func TestV24LeaveDuringSync(t *testing.T) {
	t.Parallel()
	if soak(t) == 0 {
		skip(t, "leaving in the middle of a sync takes minutes; make soak has it")
	}
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 16*mib)
	w.gate.rate = 300e3
	startOverSlowly(c, w, b)
	w.start(a)
	w.more(a, 5)
	b.WaitFor("is in the middle of its sync", func() bool { return b.Res("actual-hostb/is-syncing") == "1" && b.Res("syncstatus-hostb") != "0" })
	if _, errs, code := b.Try("leave-resource", "r0", "--timeout=5"); code == 0 || !strings.Contains(errs, "down r0") {
		t.Errorf("left although everything is on: exit code %d, %s", code, errs)
	}
	leave(w, b)
	w.more(a, 5)
	c.Rate(b, "")
	staysGoneUnder(w, a, b)

	b.JoinResource(w.disks[b])
	w.start(a)
	w.more(a, 20)
	c.Isolate(b)
	w.more(a, 20)
	leave(w, b, "--window=4")
	if got := a.Res("data-hostb"); got == "" {
		t.Error("hosta has heard of it across the cut")
	}
	a.Adm("log-rotate", "r0")
	w.more(a, 20)
	c.Heal()
	a.WaitFor("hears that hostb has left", func() bool { return len(remains(a, "r0", "hostb")) == 0 })
	onlyOneLog(a)
	staysGoneUnder(w, a, b)
	b.JoinResource(w.disks[b])
	w.start(a)
	w.more(a, 20)
	w.finish()
	w.equal(a)
}

// staysGoneUnder is staysGone of a member of r0 for a running load, which pauses.
func staysGoneUnder(w *world, primary, left *Node) {
	w.t.Helper()
	w.finish()
	staysGone(w.c, "r0", left.Name)
	primary.Adm("wait-resource", "r0", "is-device")
	w.readBack("device after the restart", primary)
}

func countLogs(n *Node) int {
	count := 0
	for _, p := range livePaths(n, "resource-r0") {
		if strings.HasPrefix(p, "resource-r0/log-") {
			count++
		}
	}
	return count
}

// TestV24LaggingOneLeaves: logs are kept for a member that lags, and go when it has
// left; so does a member that was told to leave by another one, because it is dead.
func TestV24LaggingOneLeaves(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3, WithArgs(fastArgs...))
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	w := newWorld(t, c, 4*mib)
	w.gate.rate = 2e6
	d.Adm("pause-replay", "r0")
	w.start(a)
	for range 3 {
		w.more(a, 20)
		a.Adm("log-rotate", "r0")
	}
	w.more(a, 20)
	w.finish()
	Settle(a, b)
	before := countLogs(a)
	for _, n := range c.Nodes {
		n.Adm("log-delete-all", "r0", "--force")
	}
	if got := countLogs(a); got < 4 || got != before {
		t.Errorf("%d of %d logs are left although hostc has not replayed them", got, before)
	}
	leave(w, d)
	onlyOneLog(a)
	onlyOneLog(b)
	staysGone(c, "r0", d.Name)

	// The next one dies, and is taken out by hand; when it comes back it is out.
	b.Kill()
	img := readFile(t, w.disks[b])
	if _, errs, code := a.Try("leave-resource", "r0", "--host=hostb", "--timeout=5"); code == 0 || !strings.Contains(errs, "--force") {
		t.Errorf("a dead member was taken out without --force: exit code %d, %s", code, errs)
	}
	a.Adm("leave-resource", "r0", "--host=hostb", "--force", "--window=2")
	b.Start()
	b.WaitFor("hears that it has left", func() bool { return len(remains(b, "r0", "hostb")) == 0 })
	b.WaitFor("lets go of its disk", func() bool {
		f, err := os.Open(w.disks[b])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	})
	if !bytes.Equal(img, readFile(t, w.disks[b])) {
		t.Error("the disk of the dead member has changed")
	}
	staysGone(c, "r0", b.Name)
	a.Adm("wait-resource", "r0", "is-device")
	w.start(a)
	w.more(a, 20)
	w.finish()
	for _, n := range []*Node{b, d} {
		n.JoinResource(w.disks[n])
	}
	w.equal(a)
}

// TestV24Island: a primary leaves while it is cut off, makes the resource anew and
// goes on alone; the other one follows later.
func TestV24Island(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 4*mib)
	w.gate.rate = 300e3
	w.start(a)
	w.more(a, 30)
	for _, verb := range []string{"secondary", "leave-resource"} {
		if _, errs, code := a.Try(verb, "r0", "--timeout=5"); code == 0 {
			t.Errorf("%s although the device is open: %s", verb, errs)
		}
	}
	w.finish()
	a.Adm("wait-umount", "r0")
	if _, errs, code := a.Try("leave-resource", "r0", "--timeout=5"); code == 0 || !strings.Contains(errs, "primary") {
		t.Errorf("the primary may leave: exit code %d, %s", code, errs)
	}
	c.Isolate(b)
	a.Adm("secondary", "r0")
	img := leave(w, a, "--force", "--window=4")
	a.Adm("create-resource", "r0", w.disks[a], "--force")
	a.Adm("wait-resource", "r0", "is-device")
	w.judge("disk between the lives", img, oracle.Options{Durable: oracle.Always})
	w.start(a)
	w.more(a, 40)
	a.Adm("log-rotate", "r0")
	w.more(a, 10)
	c.Heal()
	b.WaitFor("hears of the second life", func() bool { return b.Res("primary") == "hosta" && b.Link("resource-r0/size") != "" })
	// What it has belongs to the first life.
	leave(w, b, "--force")
	b.Adm("log-purge-all", "r0", "--force")
	w.more(a, 10)
	b.JoinResource(w.disks[b])
	w.more(a, 10)
	w.finish()
	w.equal(a)
}

// TestV24DeleteWhileSplit: a resource with two primaries is deleted for good, and
// what one of them has lives on under another name.
func TestV24DeleteWhileSplit(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 4*mib)
	w.gate.rate = 2e6
	w.start(a)
	w.more(a, 30)
	w.finish()
	Settle(a, b)
	c.Isolate(b)
	b.Adm("pause-fetch", "r0")
	b.Adm("primary", "r0", "--force")
	users := []*nbdclient.Client{a.Client(), b.Client()} // a device that is in use stays
	writeAt(t, a, 0, 'A')
	writeAt(t, b, mib, 'B')
	c.Heal()
	for _, n := range c.Nodes {
		n.WaitView("is-split-brain", "1")
		n.WaitView("nr-primary", "2")
	}
	if _, errs, code := a.Try("delete-resource", "r0", "--timeout=5"); code == 0 || !strings.Contains(errs, "hosta hostb") {
		t.Errorf("deleted although both store it: exit code %d, %s", code, errs)
	}
	if got := a.View("is-primary", "r0") + b.View("is-primary", "r0"); got != "11" {
		t.Errorf("is-primary is %s after the refusal", got)
	}
	a.Adm("delete-resource", "r0", "--force")
	b.WaitFor("hears that r0 is deleted", func() bool { return b.Res("data-hostb") == "" })
	for _, u := range users {
		u.Close()
	}
	for _, n := range c.Nodes {
		goneEverywhere(n, "r0")
	}
	imgA, imgB := readFile(t, w.disks[a]), readFile(t, w.disks[b])
	if imgA[0] != 'A' || imgB[mib] != 'B' || imgB[0] == 'A' {
		t.Error("the disks are not what was written on either side")
	}
	for n, img := range map[*Node][]byte{a: imgA, b: imgB} {
		unclaimed(n, w.disks[n], img)
	}

	b.Adm("create-resource", "kept", w.disks[b])
	b.Adm("wait-resource", "kept", "is-device")
	a.Adm("wait-cluster")
	a.Adm("join-resource", "kept", w.disks[a])
	a.WaitFor("has a copy of what was kept", func() bool { return a.View("is-consistent", "kept") == "1" })
	for _, n := range []*Node{a, b} {
		n.Adm("down", "kept")
	}
	for _, n := range c.Nodes {
		if diffs, err := logoracle.Compare(bytes.NewReader(imgB), bytes.NewReader(readFile(t, w.disks[n])), w.size, 3); err != nil || len(diffs) > 0 {
			t.Errorf("%s: the disk is not the version that was kept: %v %v", n.Name, diffs, err)
		}
	}
	staysGone(c, "r0", "hosta")
	staysGone(c, "r0", "hostb")
}

// goneEverywhere waits until a deleted resource is gone, but for the number that keeps
// its lives apart.
func goneEverywhere(n *Node, res string) {
	n.t.Helper()
	var left []string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("%s: left of %s: %v", n.Name, res, left)
		}
	}()
	n.WaitFor("nothing is left of "+res, func() bool {
		n.Adm("cron")
		left = nil
		if _, err := os.Stat(n.Socket(res)); err == nil {
			left = append(left, n.Socket(res))
		}
		for _, p := range livePaths(n, "resource-"+res) {
			if filepath.Base(p) != "maxnr" && !strings.Contains(p, "/local-") {
				left = append(left, p)
			}
		}
		return len(left) == 0
	})
}

// onlyOneLog waits until all logs but the last can be deleted.
func onlyOneLog(n *Node) {
	n.t.Helper()
	var said string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("%s: %s\n%s", n.Name, said, strings.Join(livePaths(n, "resource-r0"), "\n"))
		}
	}()
	n.WaitFor("the logs can go", func() bool {
		_, said, _ = n.Try("log-delete-all", "r0", "--force", "-v")
		return countLogs(n) == 1
	})
}

// writeAt writes a block and flushes it.
func writeAt(t testing.TB, n *Node, off int64, b byte) {
	t.Helper()
	cl := n.Client()
	defer cl.Close()
	if err := cl.Write(t.Context(), bytes.Repeat([]byte{b}, 4096), off); err != nil {
		t.Fatal(err)
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestV24SeesRemains is the negative control: one link that came back is found,
// and a path of another member is no such link.
func TestV24SeesRemains(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1, Apart())
	n := c.Nodes[0]
	for path, mine := range map[string]bool{
		"resource-r0/data-hostb": true, "resource-r0/actual-hostb/is-primary": true, "resource-r0/todo-hostb/attach": true,
		"resource-r0/replay-hostb": true, "resource-r0/device-hostb": true, "resource-r0/syncstatus-hostb": true,
		"resource-r0/version-000000001-hostb": false, "resource-r0/log-000000001-hostb": false,
		"resource-r0/data-hosta": false, "resource-r0/todo-hosta/attach": false, "resource-r1/data-hostb": false,
	} {
		full := filepath.Join(n.Root(), path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(".deleted", full); err != nil {
			t.Fatal(err)
		}
		if left := remains(n, "r0", "hostb"); len(left) != 0 {
			t.Errorf("tombstones count: %v", left)
		}
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("1", full); err != nil {
			t.Fatal(err)
		}
		if left := remains(n, "r0", "hostb"); (len(left) == 1) != mine {
			t.Errorf("%s is state of hostb: want %v, found %v", path, mine, left)
		}
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
	}
	testutil.WaitFor(t, waitLimit, "the tree is empty", func() bool { return len(livePaths(n, "")) == 0 })
}
