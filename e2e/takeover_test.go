package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"mars/internal/oracle/logoracle"
	"mars/symlinktree"
)

const kernelLog = "log-000000001-nodea"

// kernelNodes are the two machines of the recordings, nodea and nodeb.
func kernelNodes(t *testing.T) (c *Cluster, a, b *Node) {
	c = NewCluster(t, 2, Apart(), WithArgs(fastArgs...))
	a, b = c.Nodes[0], c.Nodes[1]
	a.Name, b.Name = "nodea", "nodeb"
	return c, a, b
}

// makeSecret is the line of docs/OPERATIONS.md.
func (n *Node) makeSecret() {
	n.t.Helper()
	line := "umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \\n' >" + n.secret()
	if !strings.Contains(string(readFile(n.t, "../docs/OPERATIONS.md")), strings.ReplaceAll(line, n.secret(), "/etc/mars/secret")) {
		n.t.Error("docs/OPERATIONS.md has another way to make the secret")
	}
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
}

// readdress gives the nodes of the tree addresses of this test; before marsd starts,
// as after a move to another network.
func readdress(nodes ...*Node) {
	for _, n := range nodes {
		for _, o := range nodes {
			n.Adm("lowlevel-set-host-ip", o.Name, o.Addr)
		}
	}
}

// view is a macro of mydata.
func (n *Node) view(macro string) string { n.t.Helper(); return n.View(macro, string(kernelRes)) }

func (n *Node) waitView(macro, want string) {
	n.t.Helper()
	n.WaitFor("view-"+macro+" is "+want, func() bool { return n.view(macro) == want })
}

// my is a link of mydata.
func (n *Node) my(name string) string { return n.Link(kernelRes.Path(name)) }

// level waits until both stand at the end of the same log, clean, by what their own
// trees say.
func level(a, b *Node) {
	a.t.Helper()
	a.WaitFor("stands where "+b.Name+" does", func() bool {
		for _, n := range []*Node{a, b} {
			ra, erra := symlinktree.ParseReplay(n.my("replay-" + a.Name))
			rb, errb := symlinktree.ParseReplay(n.my("replay-" + b.Name))
			if erra != nil || errb != nil || ra != rb || ra.Len != 0 {
				return false
			}
			va, vb := n.Link(kernelRes.VersionPath(ra.Seq, a.Name)), n.Link(kernelRes.VersionPath(ra.Seq, b.Name))
			v, err := symlinktree.ParseVersion(va)
			if err != nil || va != vb || v.Pos != ra.Min {
				return false
			}
		}
		return true
	})
	for _, n := range []*Node{a, b} {
		if v := n.view("is-split-brain"); v != "0" {
			n.t.Fatalf("%s sees a split brain (%s)\n%s", n.Name, v, n.Adm("view", "all"))
		}
	}
}

// scribble writes to the device of n and to image.
func scribble(n *Node, image []byte, count int) {
	n.t.Helper()
	rnd := seeded(n.t)
	c := n.dial(string(kernelRes))
	defer c.Close()
	ctx := context.Background()
	for i := range count {
		length := 512 * (1 + rnd.Int64N(200))
		off := rnd.Int64N((int64(len(image))-length)/512) * 512
		p := image[off : off+length]
		var err error
		switch {
		case i%8 == 6:
			clear(p)
			err = c.WriteZeroes(ctx, off, length)
		case i%8 == 7:
			off, length = off&^4095, 256<<10
			off = min(off, int64(len(image))-length)
			clear(image[off : off+length])
			err = c.Trim(ctx, off, length)
		default:
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			err = c.Write(ctx, p, off)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		n.t.Fatal(err)
	}
}

// TestTakeoverPair: two nodes with a kernel MARS lose power, nodea in the middle of
// its writeback, nodeb with less of the log than nodea. Both start marsd instead.
func TestTakeoverPair(t *testing.T) {
	t.Parallel()
	c, a, b := kernelNodes(t)
	a.unpack("nodea-1-resource.tgz")
	log := readFile(t, filepath.Join(a.Root(), kernelRes.Dir(), kernelLog))
	ends := borders(t, log, kernelLog)
	half := ends[len(ends)/2]
	replay := func(min, end int64) string {
		return symlinktree.Replay{Seq: 1, Origin: "nodea", Min: min, Len: end - min}.String()
	}
	version := func(pos int64) string { return symlinktree.NewVersion(1, "nodea", pos, "").String() }
	// The logs of the later stage were not recorded: its trees are set back to the length of the log at hand.
	known := ends[len(ends)-20]
	for n, listing := range map[*Node]string{a: "nodea-2-joined.list", b: "nodeb-2-joined.list"} {
		if err := os.RemoveAll(n.Root()); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(n.Root(), 0o700); err != nil {
			t.Fatal(err)
		}
		n.plant(listing, func(string) bool { return true })
		n.setBack(kernelRes.ReplayPath("nodea"), replay(ends[len(ends)-200], known))
		n.setBack(kernelRes.ReplayPath("nodeb"), replay(half, half))
		n.setBack(kernelRes.SyncPosPath("nodeb"), replay(ends[100], ends[100]))
		n.setBack(kernelRes.VersionPath(1, "nodea"), version(known))
		n.setBack(kernelRes.VersionPath(1, "nodeb"), version(half))
	}
	write := func(path string, p []byte) {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(a.Root(), kernelRes.Dir(), kernelLog), log)
	write(filepath.Join(b.Root(), kernelRes.Dir(), kernelLog), log[:half])
	write(a.Path("disk"), kernelImage(t, log, kernelLog, ends[len(ends)-200], known))
	write(b.Path("disk"), kernelImage(t, log, kernelLog, half, half))
	image := kernelImage(t, log, kernelLog, int64(len(log)), int64(len(log)))

	// marsadm reads the tree before anything is changed.
	for _, n := range c.Nodes {
		if out := n.Adm("view", "all"); !strings.Contains(out, "mydata [2/2]") {
			t.Errorf("view of %s before the takeover:\n%s", n.Name, out)
		}
	}
	a.makeSecret()
	b.copySecret(a)
	readdress(a, b)
	for _, n := range c.Nodes {
		n.ln(n.Path("disk"), kernelRes.DataPath(n.Name))
		n.Start()
	}
	a.Adm("wait-resource", "mydata", "is-device")
	same(t, "device after the takeover", a.device(), image)
	level(a, b)
	b.waitView("is-consistent", "1")
	if l := a.my("primary"); l != "nodea" {
		t.Errorf("primary is %q", l)
	}

	scribble(a, image, 100)
	level(a, b)
	b.Adm("primary", "mydata")
	same(t, "device after the handover", b.device(), image)
	scribble(b, image, 50)
	level(b, a)
	a.Adm("primary", "mydata")
	same(t, "device after the way back", a.device(), image)
	for _, n := range c.Nodes {
		if bad := complaints(n, a.Name, b.Name); len(bad) > 0 {
			t.Errorf("%s complains:\n%s", n.Name, strings.Join(bad, "\n"))
		}
	}
	backToKernel(t, a, b, image)
}

// complaints are the messages that are not OK.
func complaints(n *Node, hosts ...string) (bad []string) {
	for _, h := range hosts {
		for _, dir := range []string{"actual-" + h, kernelRes.ActualDir(h)} {
			list, err := filepath.Glob(filepath.Join(n.Root(), dir, "msg-err-*"))
			if err != nil {
				n.t.Fatal(err)
			}
			for _, path := range list {
				rel, _ := filepath.Rel(n.Root(), path)
				if v := n.Link(rel); v != "" && v != "OK" {
					bad = append(bad, rel+" -> "+v)
				}
			}
		}
	}
	return bad
}

// backToKernel is the way back of docs/OPERATIONS.md, and what a kernel MARS would
// find: both at the clean end of the same history, logs that it can replay, no
// address or logfile name that it cannot parse.
func backToKernel(t *testing.T, a, b *Node, image []byte) {
	nodes := []*Node{a, b}
	for _, n := range nodes {
		n.Stop()
		n.Args = append(n.Args, "--log-format", "kernel")
		n.Start()
	}
	a.Adm("wait-resource", "mydata", "is-device")
	a.WaitFor("logs for the kernel", func() bool { return a.view("replay-rest") == "0" })
	first := a.my("maxnr")
	scribble(a, image, 100)
	a.Adm("log-rotate", "mydata")
	scribble(a, image, 100)
	c := a.dial("mydata")
	if err := c.Write(context.Background(), make([]byte, 100), 0); err == nil {
		t.Error("a write of 100 bytes was taken, which a kernel cannot replay")
	}
	c.Close()
	a.Adm("wait-umount", "mydata")
	level(a, b)
	for _, n := range nodes {
		n.Stop()
	}

	start, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, n := range nodes {
		same(t, "disk of "+n.Name, readFile(t, n.Path("disk")), image)
		own, err := symlinktree.ParseReplay(n.my("replay-" + n.Name))
		if err != nil || own.Len != 0 {
			t.Errorf("%s: replay position %v, %v", n.Name, own, err)
		}
		logs, _ := filepath.Glob(filepath.Join(n.Root(), kernelRes.Dir(), "log-*"))
		for _, path := range logs {
			name := filepath.Base(path)
			seq, _, ok := symlinktree.NumberedOf(name, "log")
			if !ok {
				t.Errorf("%s: a kernel MARS complains about the name %s", n.Name, name)
			}
			if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() || seq < start {
				continue
			}
			p := readFile(t, path)
			if name == filepath.Base(kernelRes.LogPath(own.Seq, own.Origin)) && int64(len(p)) != own.Min {
				t.Errorf("%s: %s has %d bytes, the replay link says %v", n.Name, name, len(p), own)
			}
			opt := logoracle.Options{Original: true, Sealed: true, Size: kernelSize}
			err := logoracle.Parse(bytes.NewReader(p), name, int64(len(p)), opt, func(*logoracle.Record) error { checked++; return nil })
			if err != nil {
				t.Errorf("%s: %v", n.Name, err)
			}
		}
		for _, o := range nodes {
			if ip := n.Link("ips/ip-" + o.Name); ip == "" || strings.Contains(ip, ":") {
				t.Errorf("%s: address of %s is %q, which a kernel MARS cannot use", n.Name, o.Name, ip)
			}
		}
		if bad := foreignNames(n); len(bad) > 0 {
			t.Errorf("%s: unknown names in the tree: %v", n.Name, bad)
		}
	}
	if checked < 1000 {
		t.Errorf("only %d records were checked under the rules of the original", checked)
	}
}

// ours are the names that only this project writes; a kernel MARS carries links of
// unknown names along and never reads them (reference symlink-tree 1.3).
var ours = []string{"syncsource-", "given-up-"}

// foreignNames are entries in the directory of the resource that begin like none of
// the original's, and are not known to be harmless.
func foreignNames(n *Node) (bad []string) {
	known := append([]string{"size", "primary", "maxnr", "data-", "device-", "actsize-", "syncstatus-", "syncpos-", "verifystatus-",
		"replay-", "version-", "skip-check-", "log-", "userspace", "defaults", "local-", "actual-", "todo-", "systemd-"}, ours...)
	list, err := os.ReadDir(filepath.Join(n.Root(), kernelRes.Dir()))
	if err != nil {
		n.t.Fatal(err)
	}
next:
	for _, e := range list {
		for _, k := range known {
			if strings.HasPrefix(e.Name(), k) {
				continue next
			}
		}
		bad = append(bad, e.Name())
	}
	return bad
}

// TestTakeoverSingle: what one kernel node has left becomes the first node of a
// cluster of two; the second one joins with an empty disk.
func TestTakeoverSingle(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		archive      string
		clean, dirty int64  // of log 1, on the disk
		file         string // in the file system, by its size
	}{
		"rotated": {"single-node.tgz", 5785932, 5785932, "1048576"},
		"written": {"nodea-1-resource.tgz", 8450340, 8986052, "2097152"}, // more on the disk than the links say
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, a, b := kernelNodes(t)
			a.unpack(tt.archive)
			log := readFile(t, filepath.Join(a.Root(), kernelRes.Dir(), kernelLog))
			if err := os.WriteFile(a.Path("disk"), kernelImage(t, log, kernelLog, tt.clean, tt.dirty), 0o600); err != nil {
				t.Fatal(err)
			}
			image := kernelImage(t, log, kernelLog, int64(len(log)), int64(len(log)))
			a.makeSecret()
			b.copySecret(a)
			a.ln(a.Path("disk"), kernelRes.DataPath(a.Name))
			readdress(a)
			if a.Link("ips/ip-nodeb") != "" { // a member of the cluster, not of the resource
				b.plant("nodeb-2-joined.list", func(path string) bool {
					return !strings.HasPrefix(path, kernelRes.Dir()) && !strings.HasPrefix(path, "cache-")
				})
				readdress(a, b)
			}
			a.Start()
			a.Adm("wait-resource", "mydata", "is-device")
			same(t, "device after the takeover", a.device(), image)
			soundExt4(t, image, tt.file)
			b.Start()
			if a.Link("ips/ip-nodeb") == "" {
				b.Adm("join-cluster", a.Name, a.Addr, "--ip="+b.Addr)
			}
			b.WaitFor("knows mydata", func() bool { return b.my("primary") == "nodea" })
			disk := b.Disk("disk", kernelSize)
			b.Adm("join-resource", "mydata", disk)
			scribble(a, image, 50)
			b.waitView("is-consistent", "1")
			level(a, b)
			b.Adm("primary", "mydata")
			same(t, "device after the handover", b.device(), image)
			scribble(b, image, 20)
			level(b, a)
			for _, n := range c.Nodes {
				n.Adm("down", "mydata")
				same(t, "disk of "+n.Name, readFile(t, n.Path("disk")), image)
			}
		})
	}
}

// soundExt4 demands that an image is an ext4 that needs no more than its journal, with
// a file of a size.
func soundExt4(t *testing.T, image []byte, size string) {
	t.Helper()
	for _, tool := range []string{"e2fsck", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("the file system is not looked at: %v", err)
			return
		}
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("e2fsck", "-fp", file).CombinedOutput()
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	if out, err = exec.Command("debugfs", "-R", "ls -l /", file).Output(); err != nil || !strings.Contains(string(out), size) {
		t.Errorf("no file of %s bytes: %v\n%s", size, err, out)
	}
}
