package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/vfs"
	"mars/symlinktree"
)

// ln puts a link the way "ln -sfn" does; with a stamp also "touch -h -d".
func (n *testNode) ln(value, path string, stamp time.Time) {
	n.t.Helper()
	path = filepath.Join(n.cfg.Root, path)
	tmp := filepath.Join(filepath.Dir(path), ".ln-"+filepath.Base(path))
	err := vfs.OS.Symlink(value, tmp, stamp)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// TestBrokenLinks: whatever an administrator breaks by hand, on either node, with
// an old or a new time stamp: it is said by link and log, nothing else changes, and
// is unsaid when the link is set right.
func TestBrokenLinks(t *testing.T) {
	a, b := newPair(t, nil)
	a.create("r0")
	c := a.device("r0")
	defer c.Close()
	b.join("r0", "a")
	content := bytes.Repeat([]byte{1}, 4096)
	write(t, c, 0, content)
	b.await("in sync", func() bool { return settled(a, b, "r0") })
	const res = "resource-r0/"
	resMsg := func(n *testNode) string { return n.get(res + "actual-" + n.name + "/msg-" + msgBroken) }
	hostMsg := func(n *testNode) string { return n.get("actual-" + n.name + "/msg-" + msgBroken) }
	now := time.Time{}
	for _, tt := range []struct {
		at    *testNode
		path  string
		value string
		stamp time.Time
	}{
		{a, res + "todo-a/attach", "yes", now},
		{b, res + "todo-a/attach", "off", now},
		{a, res + "todo-a/attach", "two\nlines", now},
		{b, res + "todo-b/attach", "-", time.Unix(1e9, 1)},
		{b, res + "todo-b/connect", "true", now},
		{b, res + "todo-b/allow-replay", "allow", time.Unix(1, 0)},
		{a, res + "primary", "b/../a", now},
		{b, res + "primary", "all", now},
		{a, res + "size", "8M", time.Unix(1e9, 1)},
		{b, res + "size", "none", now},
		{b, res + "syncfrom-b", "nobody here", now},
		{a, "ips/ip-b", "host.example", now},
		{b, "ips/ip-a", "10.0.0.256", time.Unix(1e9, 1)},
		{a, "uuid", "nonsense", now},
	} {
		name := fmt.Sprintf("%s on %s", tt.path, tt.at.name)
		before := tt.at.get(tt.path)
		msg := resMsg
		if !strings.HasPrefix(tt.path, res) {
			msg = hostMsg
		}
		stamp := tt.stamp
		if stamp == now {
			stamp = time.Now()
		}
		tt.at.ln(tt.value, tt.path, stamp)
		tt.at.await(name+" is reported", func() bool { return strings.Contains(msg(tt.at), tt.path) })
		if !strings.Contains(tt.at.logs.String(), "ignoring a broken link") {
			t.Errorf("%s: nothing in the log", name)
		}
		if before != "" && !strings.Contains(msg(tt.at), fmt.Sprintf("%q stays in force", before)) {
			t.Errorf("%s: %s", name, msg(tt.at))
		}
		// The device works, its writes arrive, nobody has changed his role.
		content[0]++
		write(t, c, 0, content)
		b.await(name+": news still arrive", func() bool { return settled(a, b, "r0") })
		for link, want := range map[string]string{"actual-a/is-primary": "1", "actual-a/if-on": "1", "actual-b/is-replaying": "1", "actual-b/is-attached": "1"} {
			if got := a.get(res + link); got != want {
				t.Errorf("%s: %s is %q", name, link, got)
			}
		}
		if before == "" {
			if err := os.Remove(filepath.Join(tt.at.cfg.Root, tt.path)); err != nil {
				t.Fatal(err)
			}
		} else {
			tt.at.ln(before, tt.path, time.Unix(1e9, 2))
		}
		for _, n := range []*testNode{a, b} {
			n.await(name+" is set right", func() bool {
				m := msg(n)
				return n.get(tt.path) == before && (m == "" || m == symlinktree.MessageOK)
			})
		}
	}
	noSplit(t, a, b)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	b.await("in sync", func() bool { return settled(a, b, "r0") })
}

// TestBrokenStatusIsMended: links that only the node itself writes come back with
// the value that was known, so that a restart finds them.
func TestBrokenStatusIsMended(t *testing.T) {
	a, b := newPair(t, nil)
	a.create("r0")
	c := a.device("r0")
	defer c.Close()
	b.join("r0", "a")
	write(t, c, 0, make([]byte, 4096))
	b.await("in sync", func() bool { return settled(a, b, "r0") })
	const res = "resource-r0/"
	for _, path := range []string{res + "replay-b", res + "version-000000001-b", res + "syncstatus-b", res + "actual-b/is-attached"} {
		mended := func(n *testNode) bool { v := n.get(path); return v != "" && symlinktree.CheckValue(path, v) == nil }
		b.ln("junk", path, time.Now())
		b.await(path+" is mended", func() bool { return mended(b) })
		a.await(path+" is mended, at the peer", func() bool { return mended(a) && a.get(path) == b.get(path) })
	}
	b.stop()
	b.start()
	write(t, c, 4096, make([]byte, 4096))
	b.await("in sync after a restart", func() bool { return settled(a, b, "r0") })
	noSplit(t, a, b)
}

// TestSieve: what is hidden, what stays in force, and that only changes are looked at.
func TestSieve(t *testing.T) {
	tree, err := symlinktree.Open(t.TempDir(), symlinktree.Options{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	set := func(path, value string) {
		t.Helper()
		if err := tree.Set("resource-r/"+path, value); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	v := &sieve{log: slog.New(slog.NewTextHandler(&log, nil))}
	clean := func() *symlinktree.Snapshot {
		return v.clean(tree.Snapshot(), []string{"resource-r", "resource-r/todo-a"})
	}
	check := func(what, path, want, complaint string) {
		t.Helper()
		s := clean()
		got, _ := s.Get("resource-r/" + path)
		if got != want {
			t.Errorf("%s: %s is %q, want %q", what, path, got, want)
		}
		if c := v.complaint(); complaint == "" && c != "" || !strings.Contains(c, complaint) {
			t.Errorf("%s: complaint %q, want %q", what, c, complaint)
		}
	}
	set("size", "x")
	set("todo-a/attach", "1")
	check("broken from the start", "size", "", "resource-r/size: \"x\"")
	check("others", "todo-a/attach", "1", "counts as missing")
	set("size", "4096")
	check("set right", "size", "4096", "")
	set("size", "-1")
	check("broken", "size", "4096", `"4096" stays in force`)
	set("size", "-2")
	check("broken again", "size", "4096", `"-2"`)
	lines := strings.Count(log.String(), "\n")
	clean()
	set("todo-a/sync", "1")
	check("another link", "size", "4096", `"-2"`)
	if n := strings.Count(log.String(), "\n"); n != lines {
		t.Errorf("said again without a change:\n%s", log.String())
	}
	if err := tree.Delete("resource-r/size"); err != nil {
		t.Fatal(err)
	}
	check("deleted", "size", "", "")
	set("size", "8192")
	check("new", "size", "8192", "")
	if err := os.Remove(filepath.Join(tree.Root(), "resource-r/size")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(tree.Root(), "resource-r/size"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Rescan(); err != nil {
		t.Fatal(err)
	}
	check("a directory in its place", "size", "8192", "no link")
	for i := range 10 {
		set(fmt.Sprintf("actsize-h%d", i), "much")
	}
	check("many", "size", "8192", "and 7 more")
}
