package cluster

import (
	"strings"
	"testing"

	"mars/symlinktree"
)

// Two clusters become one by request, a node that was down at that time included;
// looking at the other cluster alone changes nothing there.
func TestMergeByLinks(t *testing.T) {
	nodes := newTestNodes(t, "a", "c", "b")
	a, b, c := nodes["a"], nodes["b"], nodes["c"]
	const first, second = "test_1.000000000", "other_2.000000000"
	b.edit(func(tr *symlinktree.Tree) error { return tr.Unlink("ips/ip-a") })
	b.put("uuid", second, "resource-rb/size", "4096")
	a.start()
	c.start()
	c.awaitLink("uuid", first)
	a.awaitLink("ips/ip-c", c.cfg.Bind)
	c.stop()
	b.start()

	a.put("local-a/probe", "b "+b.cfg.Bind+" token7")
	a.awaitLink("probe-a/got-b", "token7")
	for path, want := range map[string]string{"probe-a/uuid": second, "probe-a/ip-b": b.cfg.Bind, "probe-a/resource-rb": "4096", "local-a/probe": ""} {
		if v := a.get(path); v != want {
			t.Errorf("%s is %q, want %q", path, v, want)
		}
	}
	if v := b.get("ips/ip-a"); v != "" {
		t.Fatalf("b took over the address %q of a node that only looked", v)
	}

	a.put("local-a/merge", "b", mergedUUIDPath(first), "1", mergedUUIDPath(second), "1", "ips/ip-b", b.cfg.Bind)
	a.awaitLink("uuid", second)
	a.awaitLink("resource-rb/size", "4096")
	b.awaitLink("ips/ip-c", c.cfg.Bind)
	a.edit(func(tr *symlinktree.Tree) error { return tr.Unlink("local-a/merge") })

	c.start()
	c.awaitLink("uuid", second)
	c.awaitLink("ips/ip-b", b.cfg.Bind)
	c.put("userspace/word", "from-c")
	b.awaitLink("userspace/word", "from-c")
}

// A probe that fails says why.
func TestProbeFails(t *testing.T) {
	a := newTestNodes(t, "a")["a"]
	a.start()
	for request, want := range map[string]string{"z 127.0.0.1:1 t": "refused", "z nonsense t": "address of z"} {
		a.edit(func(tr *symlinktree.Tree) error { return tr.Unlink("probe-a/error-z") })
		a.put("local-a/probe", request)
		a.await("error of "+request, func() bool { return strings.Contains(a.get("probe-a/error-z"), want) })
	}
}
