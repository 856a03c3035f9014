package adm

import (
	"strings"
	"sync"
	"testing"
	"time"

	"mars/symlinktree"
	"mars/transport"
)

// probed answers the questions of marsadm about other clusters as marsd does: with
// what it knows of each peer, or with an error. It also merges.
func (r *rig) probed(know map[string]map[string]string) {
	tree := r.tree()
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			_, _ = tree.Rescan()
			if q, ok := tree.Get(symlinktree.LocalPath(r.node, "probe")); ok {
				words := strings.Fields(q)
				for name, v := range know[words[0]] {
					if name != neverMerges {
						_ = tree.Touch(symlinktree.ProbePath(r.node, name), v)
					}
				}
				if _, merging := tree.Get(mergeRequest(r.node)); merging {
					for _, h := range symlinktree.Hosts(tree) {
						_ = tree.Touch(symlinktree.ProbePath(r.node, "ip-"+h), "10.9.9.9")
					}
				}
				if know[words[0]] != nil {
					_ = tree.Touch(symlinktree.ProbePath(r.node, "got-"+words[0]), words[2])
				} else {
					_ = tree.Touch(symlinktree.ProbePath(r.node, "error-"+words[0]), "connection refused")
				}
				_ = tree.Unlink(symlinktree.LocalPath(r.node, "probe"))
			}
			if peer, merging := tree.Get(mergeRequest(r.node)); merging && know[peer][neverMerges] == "" {
				_ = tree.Set(symlinktree.UUIDPath, know[peer]["uuid"])
				for name, v := range know[peer] {
					if h, ok := symlinktree.HostOf(name, "ip"); ok {
						_ = tree.Set(symlinktree.IPPath(h), v)
					}
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(4 * time.Millisecond):
			}
		}
	})
	r.t.Cleanup(func() { close(quit); wg.Wait() })
}

// neverMerges marks a peer of the stand-in that answers and then does nothing.
const neverMerges = "never"

func mergeRig(t *testing.T) *rig {
	r := newRig(t, "hosta")
	r.use("alone")
	r.put("resource-r0/size -> 4096")
	must(t, transport.WriteSecret(r.dir+"/secret", transport.NewSecret()))
	r.startDaemon("")
	r.probed(map[string]map[string]string{
		"hostx": {"uuid": "hostx_1.000000000", "ip-hostx": "10.9.1.1", "ip-hosty": "10.9.1.2", "resource-rx": "4096"},
		"hostr": {"uuid": "hostr_1.000000000", "ip-hostr": "10.9.1.1", "resource-r0": "4096"},
		"hosti": {"uuid": "hosti_1.000000000", "ip-hosti": "10.9.1.1", "ip-hosta": "10.9.7.7"},
		"hostn": {"ip-hostn": "10.9.1.1"},
		"hostl": {"uuid": "hostl_1.000000000", "ip-hostl": "10.9.1.1", neverMerges: "1"},
	})
	return r
}

func withoutProbes(state map[string]entry) map[string]entry {
	for p := range state {
		if strings.HasPrefix(p, "probe-") {
			delete(state, p)
		}
	}
	return state
}

// TestMergeCluster: the check tells and changes nothing; the merge waits until both
// sides know each other, and lets nobody in afterwards.
func TestMergeCluster(t *testing.T) {
	r := mergeRig(t)
	uuid := r.link("uuid")
	before := withoutProbes(r.state())
	res := r.ok("merge-cluster-check", "hostx", "10.9.1.1")
	if want := "cluster of hostx: uuid hostx_1.000000000, hosts hostx hosty, resources rx\nit can be merged with this one\n"; res.out != want {
		t.Errorf("%q", res.out)
	}
	if got := withoutBeacons(before, withoutProbes(r.state())); got != "" {
		t.Errorf("the check has changed\n%s", got)
	}
	res = r.ok("merge-cluster", "hostx", "10.9.1.1")
	if !strings.Contains(res.out, "one cluster: uuid hostx_1.000000000, hosts hosta hostb hostx hosty") {
		t.Errorf("%q", res.out)
	}
	if r.link("todo-global/uuid-"+uuid) != "1" || r.link("todo-global/uuid-hostx_1.000000000") != "1" || r.link("local-hosta/merge") != "" {
		t.Error("nodes that were down are not admitted, or everybody is")
	}
	if res := r.ok("merge-cluster", "hostx"); !strings.Contains(res.out, "is a member of this cluster already") {
		t.Errorf("a second time: %q", res.out)
	}
}

// Refused, or given up: nothing is changed, or the request is taken back.
func TestMergeClusterRefuses(t *testing.T) {
	r := mergeRig(t)
	before := withoutProbes(r.state())
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"hostr 10.9.1.1", ExitFailed, "both clusters have resources named: r0"}, {"hosti 10.9.1.1", ExitFailed, "both clusters have a host hosta: 10.9.0.1 here, 10.9.7.7 there"},
		{"hostn 10.9.1.1", ExitFailed, "belongs to no cluster itself"}, {"hostz 10.9.1.1", ExitFailed, "connection refused"}, {"hosta", ExitFailed, "with itself"},
		{"hostq", ExitFailed, "address of hostq is not known"}, {"a/b", ExitUsage, "bad name"}, {"hostx nonsense", ExitUsage, "not an address"}, {"", ExitUsage, "too few words"},
		{"hostx 10.9.1.1 10.9.1.2", ExitUsage, "surplus word"},
	} {
		for _, command := range []string{"merge-cluster", "merge-cluster-check"} {
			res := r.run(append([]string{command}, strings.Fields(c.args)...)...)
			if res.code != c.code || !strings.Contains(res.err, c.want) {
				t.Errorf("%s %s: exit %d: %s", command, c.args, res.code, res.err)
			}
		}
	}
	if got := withoutBeacons(before, withoutProbes(r.state())); got != "" {
		t.Errorf("changed:\n%s", got)
	}
	if res := r.run("--timeout=0.3", "merge-cluster", "hostl", "10.9.1.1"); res.code != ExitTimeout || r.link("local-hosta/merge") != "" {
		t.Errorf("a peer that never merges: exit %d: %s", res.code, res.err)
	}
}
