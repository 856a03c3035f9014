package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mars/symlinktree"
)

// hand runs a command in the root of n, as an administrator types it.
func (n *Node) hand(format string, args ...any) {
	n.t.Helper()
	cmd := exec.Command("sh", "-c", fmt.Sprintf(format, args...))
	cmd.Dir = n.Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("%s on %s: %v\n%s", cmd.Args[2], n.Name, err, out)
	}
}

// raw is the text of a link, tombstone or not, and its stamp.
func (n *Node) raw(path string) (string, time.Time) {
	full := filepath.Join(n.Root(), path)
	v, _ := os.Readlink(full)
	st, err := os.Lstat(full)
	if err != nil {
		return v, time.Time{}
	}
	return v, st.ModTime()
}

// TestByHand: links set, touched and removed by hand, on the node that they are about
// or on another one, with fresh and with old time stamps, are carried out and
// reach the peer. Half of them must have done so within a second; on a busy
// machine not every single one.
func TestByHand(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2) // the intervals of production
	a, b := c.Nodes[0], c.Nodes[1]
	const size = 16 * mib
	a.CreateResource(a.Disk("disk", size))
	b.JoinResource(b.Disk("disk", size))
	const todo = "resource-r0/todo-hostb/"
	replaying := func(want string) func(n *Node) bool {
		return func(n *Node) bool { return n.Res("actual-hostb/is-replaying") == want }
	}
	link := func(path, want string) func(n *Node) bool {
		return func(n *Node) bool { return n.Link(path) == want }
	}
	stampOf := func(path string) (of func(n *Node) time.Time) {
		return func(n *Node) time.Time { _, s := n.raw(path); return s }
	}
	const old = "touch -h -d '2001-01-01 00:00:00' "
	var took []time.Duration
	for _, tt := range []struct {
		at     *Node
		line   string
		effect func(n *Node) bool // on both nodes
	}{
		{b, "ln -sfn 0 " + todo + "allow-replay", replaying("0")},
		{b, "ln -sfn 1 " + todo + "allow-replay", replaying("1")},
		{a, "ln -sfn 0 " + todo + "allow-replay", replaying("0")},
		{a, "ln -sfn 1x " + todo + "allow-replay", replaying("1")}, // a leading number is one, as always
		{a, "rm " + todo + "allow-replay", replaying("0")},
		{b, "ln -s 1 " + todo + ".new && " + old + todo + ".new && mv -T " + todo + ".new " + todo + "allow-replay", replaying("1")},
		{b, "ln -sfn 0 " + todo + "allow-replay && " + old + todo + "allow-replay", replaying("0")},
		{a, "ln -sfn 1 " + todo + "allow-replay && " + old + todo + "allow-replay", replaying("1")},
		{b, "ln -sfn 0 " + todo + "attach", func(n *Node) bool { return n.Res("actual-hostb/is-attached") == "0" }},
		{b, "ln -sfn 1 " + todo + "attach", func(n *Node) bool { return n.Res("actual-hostb/is-attached") == "1" && replaying("1")(n) }},
		{a, "ln -sfn hello userspace/note", link("userspace/note", "hello")},
		{b, "ln -sfn again userspace/note && " + old + "userspace/note", link("userspace/note", "again")},
		{a, "rm userspace/note", link("userspace/note", "")},
		{b, "ln -sfn hosta resource-r0/userspace/owner", link("resource-r0/userspace/owner", "hosta")},
		{b, "ln -sfn 3 defaults-hostb/sync-limit", link("defaults-hostb/sync-limit", "3")},
	} {
		begin := time.Now()
		tt.at.hand("%s", tt.line)
		for _, n := range c.Nodes {
			n.WaitFor("carries out: "+tt.line, func() bool { return tt.effect(n) })
		}
		took = append(took, time.Since(begin))
		t.Logf("%6.0f ms  %s: %s", float64(took[len(took)-1].Microseconds())/1000, tt.at.Name, tt.line)
	}
	// touch alone is a change, too: the peer gets the new stamp, also one from the past, which becomes one of now.
	stamp := stampOf(todo + "allow-replay")
	for _, line := range []string{"touch -h " + todo + "allow-replay", old + todo + "allow-replay"} {
		before, begin := stamp(a), time.Now()
		a.hand("%s", line)
		b.WaitFor("has the new stamp", func() bool { s := stamp(b); return s.After(before) && s.Equal(stamp(a)) })
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("half of the edits took more than %v: %v", median, took)
	}
	// What was removed is a tombstone everywhere, not just missing.
	for _, n := range c.Nodes {
		if v, _ := n.raw("userspace/note"); v != symlinktree.Deleted {
			t.Errorf("%s: userspace/note is %q, not a tombstone", n.Name, v)
		}
	}
}

// TestBrokenByHand: a value that nobody can read is said in a link, in the view and in
// the log of the node, and changes nothing: the device is written to meanwhile.
func TestBrokenByHand(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	image := make([]byte, 16*mib)
	disks := map[*Node]string{a: a.Disk("disk", int64(len(image))), b: b.Disk("disk", int64(len(image)))}
	a.CreateResource(disks[a])
	b.JoinResource(disks[b])
	l := startLoad(a, image)
	for _, tt := range []struct {
		at          *Node
		path, value string
	}{
		{a, "resource-r0/primary", "hosta/hostb"},
		{b, "resource-r0/primary", "all"},
		{a, "resource-r0/size", "16M"},
		{b, "resource-r0/todo-hosta/attach", "no"},
		{b, "resource-r0/todo-hostb/connect", "off"},
		{a, "ips/ip-hostb", "hostb.example.org"},
	} {
		right := tt.at.Link(tt.path)
		dir := ""
		if strings.HasPrefix(tt.path, "resource-") {
			dir = "resource-r0/"
		}
		tt.at.hand("ln -sfn %s %s", tt.value, tt.path)
		for _, n := range c.Nodes {
			msg := dir + "actual-" + n.Name + "/msg-err-broken-link"
			n.WaitFor("says that "+tt.path+" is broken", func() bool {
				v := n.Link(msg)
				return strings.Contains(v, tt.path) && strings.Contains(v, tt.value) && strings.Contains(v, right)
			})
			n.WaitFor("has it in the log", func() bool {
				return strings.Contains(n.Log(), "ignoring a broken link") && strings.Contains(n.Log(), tt.path)
			})
			if dir != "" {
				// The original hides errors younger than the timeout.
				if out := n.Adm("view", "r0", "--timeout=0"); !strings.Contains(out, tt.path) {
					t.Errorf("view on %s does not show that %s is broken:\n%s", n.Name, tt.path, out)
				}
			}
		}
		l.more(a, 100)
		at := b.Res("replay-hostb")
		b.WaitFor("replay goes on", func() bool { return b.Res("replay-hostb") != at })
		if a.View("is-primary", "r0") != "1" || a.Res("actual-hosta/if-on") != "1" {
			t.Errorf("%s -> %s has cost hosta its role", tt.path, tt.value)
		}
		tt.at.hand("ln -sfn %s %s", right, tt.path)
		for _, n := range c.Nodes {
			msg := dir + "actual-" + n.Name + "/msg-err-broken-link"
			n.WaitFor(tt.path+" is right again", func() bool { return n.Link(msg) == "OK" && n.Link(tt.path) == right })
		}
	}
	l.finish()
	equalDisks(t, image, a, disks)
}
