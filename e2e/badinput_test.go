package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

// restless links change without anybody's doing.
func restless(path string) bool {
	base := filepath.Base(path)
	for _, suffix := range []string{"_rate", "rest-space", "if-flying", "open-count"} {
		if strings.HasSuffix(base, suffix) {
			return true
		}
	}
	return path == ".marsd.lock" || strings.HasPrefix(path, "local-") || strings.HasPrefix(path, "actual-") && base == "time"
}

// tree is everything in a node's /mars, one line each: links with their values,
// files with their sizes.
func tree(t testing.TB, n *Node) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(n.Root(), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a temporary name of a link that is being replaced
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(n.Root(), path)
		if err != nil || restless(rel) || e.IsDir() {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			v, err := os.Readlink(path)
			if err == nil {
				list = append(list, rel+" -> "+v)
			}
			return nil
		}
		st, err := e.Info()
		if err == nil {
			list = append(list, fmt.Sprintf("%s %d bytes", rel, st.Size()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(list)
	return strings.Join(list, "\n")
}

// quietTree is the tree once it does not change any more.
func quietTree(t testing.TB, n *Node) string {
	t.Helper()
	last, since := "", time.Now()
	n.WaitFor("the tree comes to rest", func() bool {
		now := tree(t, n)
		if now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
	return last
}

// diff shows the lines that two trees do not share.
func diff(before, after string) string {
	have := map[string]int{}
	for _, l := range strings.Split(before, "\n") {
		have[l]--
	}
	for _, l := range strings.Split(after, "\n") {
		have[l]++
	}
	var out []string
	for l, n := range have {
		switch {
		case n < 0:
			out = append(out, "- "+l)
		case n > 0:
			out = append(out, "+ "+l)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// content is the digest of the device.
func content(t testing.TB, n *Node) [32]byte {
	t.Helper()
	c := n.Client()
	defer c.Close()
	p := make([]byte, c.Size())
	if err := c.Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(p)
}

// unchanged runs f and then demands that trees and device are what they were.
func unchanged(t *testing.T, nodes []*Node, f func()) {
	t.Helper()
	var before []string
	for _, n := range nodes {
		before = append(before, quietTree(t, n))
	}
	data := content(t, nodes[0])
	f()
	for i, n := range nodes {
		var after string
		n.t = t
		testutil.WaitFor(&explained{t, func() string { return diff(before[i], after) }}, 10*time.Second, "the tree of "+n.Name+" is what it was", func() bool {
			after = tree(t, n)
			return after == before[i]
		})
	}
	if content(t, nodes[0]) != data {
		t.Error("the content of the device has changed")
	}
}

// explained adds what is known at the time of a failure.
type explained struct {
	testing.TB
	why func() string
}

func (e *explained) Fatalf(format string, args ...any) {
	e.TB.Helper()
	e.TB.Fatalf(format+"\n%s", append(args, e.why())...)
}

// TestBadInput gives nonsense to a running cluster. Each case must be answered by a
// clear error, and nothing may change.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	tcp := a.Addr + ":10809"
	a.Stop()
	a.Args = append(a.Args, "--nbd-tcp", tcp, "--nbd-tls", "off")
	a.Start()
	const size = 8 * mib
	diskA, diskB := a.Disk("disk", size), b.Disk("disk", size)
	rnd := seeded(t)
	image := make([]byte, size)
	for i := range image {
		image[i] = byte(rnd.Uint32())
	}
	if err := os.WriteFile(diskA, image, 0o600); err != nil {
		t.Fatal(err)
	}
	a.CreateResource(diskA)

	t.Run("join with a smaller disk", func(t *testing.T) {
		small := b.Disk("small", size-4096)
		unchanged(t, c.Nodes, func() { refused(t, b, "small", "join-resource", "r0", small) })
	})
	b.JoinResource(diskB)

	t.Run("negative control", func(t *testing.T) {
		before := quietTree(t, b)
		b.Adm("pause-replay", "r0")
		if diff(before, quietTree(t, b)) == "" {
			t.Error("a switch has been turned, and the tree looks the same")
		}
		b.Adm("resume-replay", "r0")
	})
	t.Run("commands", func(t *testing.T) { badCommands(t, c, diskA) })
	t.Run("second daemon", func(t *testing.T) { secondDaemon(t, c) })
	t.Run("wrong secret", func(t *testing.T) { wrongSecret(t, c) })
	t.Run("garbage", func(t *testing.T) { garbage(t, c, tcp, rnd) })
	t.Run("beyond the end", func(t *testing.T) { beyondTheEnd(t, c, tcp) })

	for _, n := range c.Nodes {
		n.t = t
	}
	// After all that the cluster does what it is for.
	cl := a.Client()
	if err := cl.Write(context.Background(), []byte("still alive"), 4096); err != nil {
		t.Fatal(err)
	}
	copy(image[4096:], "still alive")
	cl.Close()
	equalDisks(t, image, a, map[*Node]string{a: diskA, b: diskB})
}

// refused runs a command that must fail and say why.
func refused(t *testing.T, n *Node, word string, args ...string) {
	t.Helper()
	stdout, stderr, code := n.Try(args...)
	if code != 1 && code != 2 {
		t.Errorf("marsadm %q: exit code %d, want 1 or 2\n%s%s", args, code, stdout, stderr)
	}
	if !strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, word) {
		t.Errorf("marsadm %q does not say what is wrong (%q): %q", args, word, stderr)
	}
}

func badCommands(t *testing.T, c *Cluster, diskA string) {
	a, b := c.Nodes[0], c.Nodes[1]
	good := a.Disk("good", 4*mib)
	locked := a.Disk("locked", 4*mib)
	f, err := os.Open(locked)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	unaligned := a.Disk("tiny", 512)
	link := a.Path("dangling")
	if err := os.Symlink(a.Path("nowhere"), link); err != nil {
		t.Fatal(err)
	}
	unchanged(t, c.Nodes, func() {
		for _, name := range []string{"a/b", "../x", ".", "..", "", "a b", "a\nb", strings.Repeat("x", 300), "r1/"} {
			refused(t, a, "", "create-resource", name, good)
		}
		for _, args := range [][]string{
			{"nonexistent", "create-resource", "r1", a.Path("nonexistent")},
			{"dangling", "create-resource", "r1", link},
			{"absolute", "create-resource", "r1", "relative/disk"},
			{a.dir, "create-resource", "r1", a.dir},
			{"/dev/null", "create-resource", "r1", "/dev/null"},
			{"in use", "create-resource", "r1", locked},
			{"r0", "create-resource", "r1", diskA},
			{"512", "create-resource", "r1", unaligned},
			{"1", "create-resource", "r1", good, "r1", "1"},
			{"bytes", "create-resource", "r1", good, "r1", "1G"},
			{"exists", "create-resource", "r0", good},
			{"r9", "join-resource", "r9", good},
			{"no-such-command", "no-such-command", "r0"},
			{"--no-such-option", "--no-such-option", "view", "all"},
			{"no-such-condition", "wait-resource", "r0", "no-such-condition"},
		} {
			refused(t, a, args[0], args[1:]...)
		}
		refused(t, b, "", "join-resource", "r0", b.Path("disk")) // a member already
		refused(t, b, "create-cluster", "create-cluster", "--ip="+b.Addr)
		refused(t, b, "", "join-cluster", a.Name, a.Addr, "--ip="+b.Addr)
	})
}

// outcome waits for a process that must end by itself with an error.
func outcome(t *testing.T, n *Node, args ...string) string {
	t.Helper()
	cmd := n.daemon(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("marsd %v ended with %v, want exit code 1\n%s", args, err, out.String())
	}
	return out.String()
}

func says(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("the message lacks %q: %s", w, out)
		}
	}
}

func secondDaemon(t *testing.T, c *Cluster) {
	a := c.Nodes[0]
	unchanged(t, c.Nodes, func() {
		says(t, outcome(t, a), "another marsd", a.Root())
		// Nor with ports of its own.
		says(t, outcome(t, a, "--bind", a.Addr+":9999", "--nbd-dir", a.Path("other")), "another marsd", a.Root())
	})
	// Another node on ports that are taken.
	x := newNode(c, 5, a.Addr)
	x.copySecret(a)
	x.Adm("create-cluster", "--ip="+x.Addr)
	before := tree(t, x)
	says(t, outcome(t, x), "address already in use", a.Addr)
	if after := tree(t, x); after != before {
		t.Errorf("a daemon that could not start has changed its tree:\n%s", diff(before, after))
	}
	if !a.Running() {
		t.Error("the first daemon has ended")
	}
}

func wrongSecret(t *testing.T, c *Cluster) {
	a := c.Nodes[0]
	x := newNode(c, 6, loopbackAddrs(t, 1)[0])
	c.Nodes = append(c.Nodes, x) // ends with the others
	defer func() { x.end(); c.Nodes = c.Nodes[:2] }()
	other := newNode(c, 7, x.Addr)
	other.Adm("create-cluster", "--ip="+other.Addr) // makes another secret
	x.copySecret(other)
	unchanged(t, c.Nodes[:2], func() {
		x.Start()
		stdout, stderr, code := x.Try("join-cluster", a.Name, a.Addr, "--ip="+x.Addr, "--timeout=5")
		if code != 3 || !strings.Contains(stderr, "secret") {
			t.Errorf("join-cluster with a wrong secret: exit code %d, want 3\n%s%s", code, stdout, stderr)
		}
		x.WaitFor("marsd says why", func() bool { return strings.Contains(x.Log(), "secret") })
		if v := x.Link("uuid"); v != "(any)" {
			t.Errorf("the stranger has got the uuid %q", v)
		}
		if v := x.Res("primary"); v != "" {
			t.Errorf("the stranger has learned the primary: %q", v)
		}
		x.Stop()
	})
	// A secret that others may read is none.
	if err := os.Chmod(x.secret(), 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, outcome(t, x), "secret", "0600")
	for name, text := range map[string]string{"empty": "", "short": "abc", "binary": "\x00\x01\x02\n"} {
		if err := errors.Join(os.WriteFile(x.secret(), []byte(text), 0o600), os.Chmod(x.secret(), 0o600)); err != nil {
			t.Fatal(err)
		}
		if out := outcome(t, x); !strings.Contains(out, "secret") {
			t.Errorf("%s secret: %s", name, out)
		}
	}
}

// nonsense are byte streams for any port.
func nonsense(rnd *rand.Rand) map[string][]byte {
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	greeting := binary.BigEndian.AppendUint32(nil, uint32(nbdproto.FlagFixedNewstyle)|uint32(nbdproto.FlagNoZeroes))
	huge := append([]byte("IHAVEOPT"), 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff)
	export := append([]byte("IHAVEOPT"), 0, 0, 0, 1, 0, 0, 0, 2)
	return map[string][]byte{
		"nothing":        nil,
		"one byte":       {0},
		"zeroes":         make([]byte, 1<<20),
		"ones":           bytes.Repeat([]byte{0xff}, 1<<20),
		"random":         random,
		"http":           []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls hello":      append([]byte{0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfc, 3, 3}, random[:70000]...),
		"tls half":       {0x16, 3, 1, 2, 0, 1},
		"nbd huge":       append(greeting, huge...),
		"nbd bad option": append(greeting, append([]byte("IHAVEOPT"), random[:4096]...)...),
		"nbd bad magic":  append(greeting, random[:4096]...),
		"nbd transmission": append(append(append([]byte{}, greeting...), append(export, "r0"...)...),
			random[:4096]...),
		"nbd oldstyle": append([]byte("NBDMAGIC"), random[:200]...),
	}
}

func garbage(t *testing.T, c *Cluster, tcp string, rnd *rand.Rand) {
	a, b := c.Nodes[0], c.Nodes[1]
	ports := map[string][2]string{
		"gossip tcp": {"tcp", a.Addr + ":7777"},
		"gossip udp": {"udp", a.Addr + ":7777"},
		"data":       {"tcp", a.Addr + ":7778"},
		"nbd unix":   {"unix", a.Socket("r0")},
		"nbd tcp":    {"tcp", tcp},
	}
	unchanged(t, c.Nodes, func() {
		for port, addr := range ports {
			for kind, data := range nonsense(rnd) {
				if err := pour(addr[0], addr[1], data); err != nil {
					t.Errorf("%s to %s: %v", kind, port, err)
				}
			}
			a.WaitFor("is in touch with its peer after garbage to "+port, func() bool {
				before := b.Link("actual-hosta/time")
				a.Adm("wait-cluster")
				return b.Link("actual-hosta/time") != before && a.Running() && b.Running()
			})
		}
	})
}

// pour sends data, closes its side and reads until the other side has closed, too;
// a server that keeps such a connection for ever would collect them.
func pour(network, addr string, data []byte) error {
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if network == "udp" {
		for len(data) > 0 {
			n := min(len(data), 1400)
			if _, err := conn.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	}
	// The server may hang up at any time: that is an answer.
	_, _ = conn.Write(data)
	if w, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	_, err = io.Copy(io.Discard, conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("the server does not close the connection")
	}
	return nil
}

// beyondTheEnd sends requests that a client library would not.
func beyondTheEnd(t *testing.T, c *Cluster, tcp string) {
	a := c.Nodes[0]
	unchanged(t, c.Nodes, func() {
		for network, addr := range map[string]string{"unix": a.Socket("r0"), "tcp": tcp} {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			r, err := nbdclient.DialRaw(ctx, network, addr)
			if err != nil {
				t.Fatal(err)
			}
			info, err := r.Go("r0", false)
			if err != nil {
				t.Fatal(err)
			}
			size := uint64(info.Size)
			handle := uint64(1)
			for _, req := range []struct {
				cmd      uint16
				off      uint64
				length   uint32
				accepted bool
			}{
				{nbdproto.CmdRead, size, 4096, false},
				{nbdproto.CmdRead, size - 4096, 8192, false},
				{nbdproto.CmdRead, 1<<64 - 4096, 8192, false},
				{nbdproto.CmdWrite, size, 4096, false},
				{nbdproto.CmdWrite, size - 4096, 8192, false},
				{nbdproto.CmdWrite, 1<<63 - 1, 4096, false},
				{nbdproto.CmdTrim, size - 4096, 8192, false},
				{nbdproto.CmdTrim, 0, 0xfffff000, false},
				{nbdproto.CmdWriteZeroes, size - 4096, 8192, false},
				{nbdproto.CmdWriteZeroes, 1<<64 - 4096, 8192, false},
				{99, 0, 4096, false},
				{nbdproto.CmdRead, size - 4096, 4096, true}, // the connection has survived
			} {
				handle++
				parts := [][]byte{nbdclient.RequestHeader(req.cmd, 0, handle, req.off, req.length)}
				if req.cmd == nbdproto.CmdWrite {
					parts = append(parts, bytes.Repeat([]byte{0xee}, int(req.length)))
				}
				if err := r.Send(parts...); err != nil {
					t.Fatalf("%s: %+v: %v", network, req, err)
				}
				rep, err := r.ReadReply()
				if err != nil {
					t.Fatalf("%s: %+v: %v", network, req, err)
				}
				if rep.Handle != handle || (rep.Errno == 0) != req.accepted {
					t.Errorf("%s: %+v: reply %+v", network, req, rep)
				}
				if e := syscall.Errno(rep.Errno); !req.accepted && e != syscall.EINVAL && e != syscall.ENOSPC {
					t.Errorf("%s: %+v: errno %v, want EINVAL or ENOSPC", network, req, e)
				}
			}
			r.Close()
			cancel()
		}
	})
}
