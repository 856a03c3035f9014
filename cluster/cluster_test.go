package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/testutil"
	"mars/internal/treeschema"
	"mars/symlinktree"
	"mars/transport"
)

const (
	deadline = 30 * time.Second
	size     = 8 << 20
)

// testNode is one node of a cluster in this process. Its intent is written the
// way an administrator without marsadm would: as links, by another opener of the
// same tree.
type testNode struct {
	t      *testing.T
	name   string
	cfg    Config
	disk   string
	node   *Node
	cancel context.CancelFunc
	ended  chan error
	logs   *logBuffer
}

// logBuffer keeps a node's log for the failure report.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// freePort finds a pair of free ports (gossip, data) on addr.
func freePort(t *testing.T, addr string) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l2, err := net.Listen("tcp", net.JoinHostPort(addr, fmt.Sprint(port+1)))
		l.Close()
		if err == nil {
			l2.Close()
			return port
		}
	}
	t.Fatal("no pair of free ports")
	return 0
}

func newTestNodes(t *testing.T, names ...string) map[string]*testNode {
	t.Helper()
	secret := transport.NewSecret()
	nodes := make(map[string]*testNode)
	for i, name := range names {
		dir := t.TempDir()
		addr := fmt.Sprintf("127.0.0.%d", 41+i)
		cfg := DefaultConfig(filepath.Join(dir, "mars"), name)
		cfg.Bind = net.JoinHostPort(addr, fmt.Sprint(freePort(t, addr)))
		cfg.SecretFile, cfg.NBDDir = filepath.Join(dir, "secret"), filepath.Join(dir, "nbd")
		cfg.Heartbeat, cfg.AliveWindow = 50*time.Millisecond, 2*time.Second
		cfg.Publish, cfg.Scan, cfg.RetryMin, cfg.RetryMax = 10*time.Millisecond, 100*time.Millisecond, 20*time.Millisecond, 200*time.Millisecond
		cfg.WritebackAge, cfg.FirstContact, cfg.DiskPatience = 100*time.Millisecond, 500*time.Millisecond, time.Second
		logs := &logBuffer{}
		cfg.Log = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
		n := &testNode{t: t, name: name, cfg: cfg, disk: filepath.Join(dir, "disk"), logs: logs}
		if err := os.Mkdir(cfg.Root, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := transport.WriteSecret(cfg.SecretFile, secret); err != nil {
			t.Fatal(err)
		}
		n.put("ips/ip-"+name, cfg.Bind)
		if i == 0 {
			n.put("uuid", "test_1.000000000")
		} else {
			first := nodes[names[0]]
			n.edit(func(tr *symlinktree.Tree) error {
				return errors.Join(tr.SetAt("uuid", symlinktree.AnyUUID, preliminary), tr.SetAt("ips/ip-"+first.name, first.cfg.Bind, preliminary))
			})
		}
		nodes[name] = n
		t.Cleanup(func() {
			n.stop()
			treeschema.Check(t, n.cfg.Root)
			if t.Failed() || os.Getenv("MARS_TEST_LOG") != "" {
				t.Logf("log of %s:\n%s", n.name, tail(n.logs.String(), 60000))
			}
		})
	}
	return nodes
}

// newPair starts two nodes with different disks; prepare may change a's settings.
func newPair(t *testing.T, prepare func(a *testNode)) (a, b *testNode) {
	t.Helper()
	nodes := newTestNodes(t, "a", "b")
	a, b = nodes["a"], nodes["b"]
	if prepare != nil {
		prepare(a)
	}
	a.makeDisk('A')
	b.makeDisk('B')
	a.start()
	b.start()
	return a, b
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (n *testNode) edit(f func(tr *symlinktree.Tree) error) {
	n.t.Helper()
	tr, err := symlinktree.Open(n.cfg.Root, symlinktree.Options{Node: n.name})
	if err == nil {
		err = f(tr)
	}
	if err != nil {
		n.t.Fatalf("edit tree of %s: %v", n.name, err)
	}
}

// put sets links: path, value, path, value...
func (n *testNode) put(kv ...string) {
	n.t.Helper()
	n.edit(func(tr *symlinktree.Tree) error {
		for i := 0; i < len(kv); i += 2 {
			if err := tr.Set(kv[i], kv[i+1]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (n *testNode) get(path string) string {
	v, err := os.Readlink(filepath.Join(n.cfg.Root, path))
	if err != nil || v == symlinktree.Deleted {
		return ""
	}
	return v
}

func (n *testNode) start() {
	n.t.Helper()
	node, err := NewNode(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.node, n.cancel, n.ended = node, cancel, make(chan error, 1)
	go func() { n.ended <- node.Run(ctx) }()
	select {
	case <-node.Ready():
	case err := <-n.ended:
		n.t.Fatalf("node %s: %v", n.name, err)
	case <-time.After(deadline):
		n.t.Fatalf("node %s is not ready", n.name)
	}
}

func (n *testNode) stop() {
	n.t.Helper()
	if n.node == nil {
		return
	}
	n.cancel()
	select {
	case err := <-n.ended:
		if err != nil {
			n.t.Errorf("node %s ended with %v", n.name, err)
		}
	case <-time.After(deadline):
		n.t.Errorf("node %s does not stop", n.name)
	}
	n.node = nil
}

func (n *testNode) makeDisk(fill byte) {
	n.t.Helper()
	if err := os.WriteFile(n.disk, []byte(strings.Repeat(string(fill), size)), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// create makes the links of create-resource, join those of join-resource.
func (n *testNode) create(r string) {
	d := "resource-" + r + "/"
	h := n.name
	n.put(d+"size", fmt.Sprint(size), d+"data-"+h, n.disk, d+"device-"+h, r,
		d+"todo-"+h+"/attach", "0", d+"todo-"+h+"/connect", "1", d+"todo-"+h+"/sync", "1", d+"todo-"+h+"/allow-replay", "1",
		d+"primary", h, d+"syncstatus-"+h, fmt.Sprint(size), d+"replay-"+h, "log-000000001-"+h+",0,0",
		d+"version-000000000-"+h, symlinktree.ZeroDigest+",log-000000000-"+h+",0:",
		d+"version-000000001-"+h, symlinktree.ZeroDigest+",log-000000001-"+h+",0:"+symlinktree.ZeroDigest+",log-000000000-"+h+",0",
		d+"maxnr", "1")
	f, err := os.OpenFile(filepath.Join(n.cfg.Root, d+"log-000000001-"+h), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	f.Close()
	n.put(d+"todo-"+h+"/attach", "1")
}

func (n *testNode) join(r, pri string) {
	n.t.Helper()
	d := "resource-" + r + "/"
	h := n.name
	n.await("position of the primary is known", func() bool {
		pos, err := symlinktree.ParseReplay(n.get(d + "replay-" + pri))
		return err == nil && n.get(fmt.Sprintf("%sversion-%09d-%s", d, pos.Seq, pri)) != "" && n.get(fmt.Sprintf("%sversion-%09d-%s", d, pos.Seq-1, pri)) != ""
	})
	pos, err := symlinktree.ParseReplay(n.get(d + "replay-" + pri))
	if err != nil {
		n.t.Fatal(err)
	}
	cur := fmt.Sprintf("version-%09d-", pos.Seq)
	prev := fmt.Sprintf("version-%09d-", pos.Seq-1)
	n.put(d+"data-"+h, n.disk, d+"device-"+h, r,
		d+"todo-"+h+"/attach", "0", d+"todo-"+h+"/connect", "1", d+"todo-"+h+"/sync", "1", d+"todo-"+h+"/allow-replay", "1",
		d+"replay-"+h, fmt.Sprintf("log-%09d-%s,0,0", pos.Seq, pos.Origin),
		d+prev+h, n.get(d+prev+pri), d+cur+h, n.get(d+cur+pri), d+"syncstatus-"+h, "0", d+"todo-"+h+"/attach", "1")
}

func (n *testNode) await(what string, cond func() bool) {
	n.t.Helper()
	testutil.WaitFor(n.t, deadline, n.name+": "+what, cond)
}

func (n *testNode) awaitLink(path, value string) {
	n.t.Helper()
	n.await(fmt.Sprintf("%s -> %s (is %q)", path, value, n.get(path)), func() bool { return n.get(path) == value })
}

func (n *testNode) device(r string) *nbdclient.Client {
	n.t.Helper()
	n.awaitLink("resource-"+r+"/actual-"+n.name+"/if-on", "1")
	c, err := nbdclient.Dial(context.Background(), nbdclient.Options{Network: "unix", Address: filepath.Join(n.cfg.NBDDir, r+".sock"), Export: r})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *testNode) diskSum() [32]byte {
	b, err := os.ReadFile(n.disk)
	if err != nil {
		n.t.Fatal(err)
	}
	return sha256.Sum256(b[:size])
}

// settled is quiescence as the tree shows it, which may be news from before the
// last write: tests ask for the content as well. b has everything of a, by replay and version links.
func settled(a, b *testNode, r string) bool {
	d := "resource-" + r + "/"
	ra, rb := b.get(d+"replay-"+a.name), b.get(d+"replay-"+b.name)
	pa, err := symlinktree.ParseReplay(ra)
	if err != nil || ra != rb || pa.Len != 0 {
		return false
	}
	v := fmt.Sprintf("%sversion-%09d-", d, pa.Seq)
	va, err := symlinktree.ParseVersion(b.get(v + a.name))
	return err == nil && va.Pos == pa.Min && b.get(v+a.name) == b.get(v+b.name) && b.get(d+"syncstatus-"+b.name) == fmt.Sprint(size)
}

func write(t *testing.T, c *nbdclient.Client, off int64, p []byte) {
	t.Helper()
	if err := c.Write(context.Background(), p, off); err != nil {
		t.Fatalf("write at %d: %v", off, err)
	}
}

func contentSum(t *testing.T, c *nbdclient.Client) [32]byte {
	t.Helper()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := c.Read(context.Background(), buf, off); err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		h.Write(buf)
	}
	return [32]byte(h.Sum(nil))
}

// The whole life of a resource by links alone: create, write, join with a disk
// full of something else, handover to and fro, restart, rotation.
func TestLifeByLinks(t *testing.T) {
	a, b := newPair(t, nil)
	a.awaitLink("ips/ip-b", b.cfg.Bind)
	b.awaitLink("uuid", "test_1.000000000")

	a.create("r0")
	c := a.device("r0")
	write(t, c, 4096, []byte(strings.Repeat("x", 8192)))
	b.join("r0", "a")
	write(t, c, 1<<20, []byte(strings.Repeat("y", 4096)))
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := contentSum(t, c)
	b.await("has the same disk", func() bool { return settled(a, b, "r0") && b.diskSum() == want })

	// The device is in use: a remains primary.
	b.put("resource-r0/primary", symlinktree.NoHost)
	a.await("says that it remains primary", func() bool { return strings.Contains(a.get("resource-r0/actual-a/msg-inf-primary"), "remains") })
	if got := a.get("resource-r0/actual-a/is-primary"); got != "1" {
		t.Fatalf("is-primary %q while the device is in use", got)
	}
	c.Close()
	b.awaitLink("resource-r0/actual-a/is-primary", "0")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	b.put("resource-r0/primary", "b")
	c = b.device("r0")
	if got := contentSum(t, c); got != want {
		t.Fatal("the device differs after the handover")
	}
	write(t, c, 2<<20, []byte(strings.Repeat("z", 512)))

	// Rotation by an empty file, as marsadm log-rotate asks for it.
	f, err := os.OpenFile(filepath.Join(b.cfg.Root, "resource-r0/log-000000003-b"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.await("rotates", func() bool { return b.get("resource-r0/version-000000003-b") != "" })
	write(t, c, 3<<20, []byte(strings.Repeat("w", 512)))
	want = contentSum(t, c)
	a.await("follows the new primary", func() bool { return settled(b, a, "r0") && a.diskSum() == want })
	c.Close()

	// Roles are remembered.
	b.stop()
	a.stop()
	b.start()
	a.start()
	c = b.device("r0")
	defer c.Close()
	if got := contentSum(t, c); got != want {
		t.Fatal("the device differs after a restart")
	}
	write(t, c, 0, []byte(strings.Repeat("v", 1024)))
	want = contentSum(t, c)
	a.await("catches up after the restart", func() bool { return settled(b, a, "r0") && a.diskSum() == want })
}

// A second daemon on the same root changes nothing and says why.
func TestSecondDaemon(t *testing.T) {
	a := newTestNodes(t, "a")["a"]
	a.start()
	second, err := NewNode(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another marsd") {
		t.Fatalf("second daemon: %v", err)
	}
}

// Nodes of two clusters never mix their trees, whatever addresses say.
func TestForeignCluster(t *testing.T) {
	nodes := newTestNodes(t, "a", "b")
	a, b := nodes["a"], nodes["b"]
	b.put("uuid", "other_2.000000000")
	a.start()
	b.start()
	b.await("reports the other cluster", func() bool {
		return strings.Contains(b.get("actual-b/msg-needed-connection-with-a"), "two clusters")
	})
	if v := a.get("ips/ip-b"); v != "" {
		t.Errorf("a took over b's address %q", v)
	}
	if v := b.get("uuid"); v != "other_2.000000000" {
		t.Errorf("uuid of b became %q", v)
	}
}

var _ io.Writer = (*logBuffer)(nil)

// A forced failover with the old primary cut off leaves two histories. Both sides
// say so, nothing is resolved by itself, and after an invalidate of the loser both
// disks are equal again (P9).
func TestSplitBrainByLinks(t *testing.T) {
	a, b := newPair(t, nil)
	a.create("r0")
	ca := a.device("r0")
	b.join("r0", "a")
	write(t, ca, 0, []byte(strings.Repeat("1", 4096)))
	want := contentSum(t, ca)
	b.await("has the same disk", func() bool { return settled(a, b, "r0") && b.diskSum() == want })

	// b is on its own from here: a goes on, b takes over by force.
	b.put("resource-r0/todo-b/connect", "0")
	b.awaitLink("resource-r0/actual-b/is-copying", "0")
	write(t, ca, 8192, []byte(strings.Repeat("a", 4096)))
	if err := ca.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.put("resource-r0/primary", "b")
	cb := b.device("r0")
	write(t, cb, 16384, []byte(strings.Repeat("b", 4096)))
	winner := contentSum(t, cb)
	a.await("says that it remains primary", func() bool { return strings.Contains(a.get("resource-r0/actual-a/msg-inf-primary"), "remains") })
	for _, e := range mustGlob(t, a.cfg.Root+"/resource-r0/log-000000002-*") {
		if !strings.HasSuffix(e, "-b") {
			t.Errorf("a wrote %s", e)
		}
	}
	ca.Close()
	a.awaitLink("resource-r0/actual-a/is-primary", "0")
	a.await("reports the split", func() bool {
		return strings.Contains(a.get("resource-r0/actual-a/msg-err-splitbrain-detected"), "invalidate")
	})
	if got := contentSum(t, cb); got != winner {
		t.Fatal("the winner's device changed")
	}

	// invalidate on a, as links.
	d := "resource-r0/"
	a.put(d+"todo-a/attach", "0", d+"todo-a/connect", "0", d+"todo-a/sync", "0", d+"todo-a/allow-replay", "0")
	a.awaitLink(d+"actual-a/is-attached", "0")
	a.edit(func(tr *symlinktree.Tree) error { return tr.Delete(d + "syncpos-a") }) // the longer log stays on a
	vb := a.get(d + "version-000000002-b")
	a.put(d+"syncstatus-a", "0", d+"replay-a", "log-000000002-b,0,0",
		d+"version-000000001-a", a.get(d+"version-000000001-b"), d+"version-000000002-a", vb, d+"skip-check-a", "2")
	b.put(d+"todo-b/connect", "1")
	a.put(d+"todo-a/attach", "1", d+"todo-a/connect", "1", d+"todo-a/sync", "1", d+"todo-a/allow-replay", "1")
	a.await("has the winner's content", func() bool { return settled(b, a, "r0") && a.diskSum() == winner })
	a.awaitLink(d+"actual-a/msg-err-splitbrain-detected", "OK")
	for _, n := range []*testNode{a, b} {
		for _, seq := range []string{"1", "2"} {
			va, vb := n.get(d+"version-00000000"+seq+"-a"), n.get(d+"version-00000000"+seq+"-b")
			if va != vb {
				t.Errorf("version links of log %s after the end of the split brain: %s and %s", seq, va, vb)
			}
		}
	}
	cb.Close()
}

func mustGlob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A secondary whose copy of a log was damaged stops in front of the damage, fetches
// that part again and goes on (scenario V09).
func TestDamagedCopyHeals(t *testing.T) {
	a, b := newPair(t, nil)
	a.create("r0")
	c := a.device("r0")
	defer c.Close()
	b.join("r0", "a")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	b.put("resource-r0/todo-b/allow-replay", "0")
	b.awaitLink("resource-r0/actual-b/is-replaying", "0")
	for i := range 64 {
		write(t, c, int64(i)*65536, []byte(strings.Repeat(string(rune('a'+i%26)), 4096)))
	}
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := contentSum(t, c)
	log := "resource-r0/log-000000001-a"
	b.await("has fetched", func() bool {
		sa, ea := os.Stat(filepath.Join(a.cfg.Root, log))
		sb, eb := os.Stat(filepath.Join(b.cfg.Root, log))
		return ea == nil && eb == nil && sa.Size() == sb.Size() && sa.Size() > 64*4096
	})
	f, err := os.OpenFile(filepath.Join(b.cfg.Root, log), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 20*4180+100); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.put("resource-r0/todo-b/allow-replay", "1")
	b.await("has healed", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	if !strings.Contains(b.logs.String(), "again") {
		t.Error("nothing was fetched again: the test damaged nothing")
	}
}

// Resize by links: the device grows, only the new part is synced.
func TestResizeByLinks(t *testing.T) {
	a, b := newPair(t, nil)
	a.create("r0")
	a.device("r0").Close()
	b.join("r0", "a")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	const larger = size + 1<<20
	a.put("resource-r0/syncstatus-a", fmt.Sprint(larger), "resource-r0/size", fmt.Sprint(larger))
	a.await("says that the disk is too small", func() bool { return a.get("resource-r0/actual-a/msg-err-resize") != "" })
	for _, n := range []*testNode{a, b} {
		if err := os.Truncate(n.disk, larger); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitLink("resource-r0/actual-a/device-size", fmt.Sprint(larger))
	c := a.device("r0")
	defer c.Close()
	write(t, c, size+4096, []byte(strings.Repeat("n", 4096)))
	b.awaitLink("resource-r0/syncstatus-b", fmt.Sprint(larger))
	b.await("has the new part", func() bool {
		p := make([]byte, 4096)
		f, err := os.Open(b.disk)
		if err != nil {
			return false
		}
		defer f.Close()
		_, err = f.ReadAt(p, size+4096)
		return err == nil && strings.Trim(string(p), "n") == ""
	})
}
