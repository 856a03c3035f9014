package adm

import (
	"errors"
	"sort"
	"strings"
	"testing"
	"time"

	"mars/logfile"
	"mars/symlinktree"
)

// memTree is a tree in memory: path to value. All stamps are 1000 s.
type memTree map[string]string

func (m memTree) Get(path string) (string, bool) {
	v, ok := m[path]
	return v, ok && v != symlinktree.Deleted
}

func (m memTree) Entry(path string) (symlinktree.Entry, bool) {
	v, ok := m[path]
	return symlinktree.Entry{Path: path, Value: v, Stamp: 1000e9}, ok
}

func (m memTree) List(dir string) []symlinktree.Entry {
	var out []symlinktree.Entry
	for p, v := range m {
		if i := strings.LastIndexByte(p, '/'); p[:max(i, 0)] == dir && v != symlinktree.Deleted {
			out = append(out, symlinktree.Entry{Path: p, Value: v, Stamp: 1000e9})
		}
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Path < out[k].Path })
	return out
}

func (m memTree) Dirs(dir string) []string {
	seen := map[string]bool{}
	var out []string
	for p := range m {
		rest := p
		if dir != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(p, dir+"/"); !ok {
				continue
			}
		}
		if name, _, ok := strings.Cut(rest, "/"); ok && !seen[name] {
			seen[name] = true
			out = append(out, strings.TrimPrefix(dir+"/"+name, "/"))
		}
	}
	sort.Strings(out)
	return out
}

// with is a copy with some paths below resource-r changed; an empty value removes.
func (m memTree) with(pairs ...string) memTree {
	out := memTree{}
	for p, v := range m {
		out[p] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		if out["resource-r/"+pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(out, "resource-r/"+pairs[i])
		}
	}
	return out
}

const (
	v1     = "11111111111111111111111111111111,log-000000001-a,100:"
	v1late = "44444444444444444444444444444444,log-000000001-a,150:"
	v2b    = "22222222222222222222222222222222,log-000000002-b,9:11111111111111111111111111111111,log-000000001-a,100"
)

// twoMembers: a is primary, b has everything.
var twoMembers = memTree{
	"ips/ip-a": "10.0.0.1", "ips/ip-b": "10.0.0.2",
	"resource-r/size": "4096", "resource-r/primary": "a",
	"resource-r/data-a": "/d", "resource-r/data-b": "/d", "resource-r/device-a": "r", "resource-r/device-b": "r",
	"resource-r/replay-a": "log-000000001-a,100,0", "resource-r/replay-b": "log-000000001-a,100,0",
	"resource-r/version-000000001-a": v1, "resource-r/version-000000001-b": v1,
	"resource-r/syncstatus-a": "4096", "resource-r/syncstatus-b": "4096",
	"resource-r/todo-b/attach": "1", "resource-r/todo-b/connect": "1", "resource-r/todo-b/allow-replay": "1",
}

// TestGate: nobody takes over who would lose something, or does not know.
func TestGate(t *testing.T) {
	for _, c := range []struct {
		name           string
		tree           memTree
		old            string
		missing, final bool
	}{
		{"all equal", twoMembers, "a", false, false},
		{"old is unknown, versions equal", twoMembers, "", false, false},
		{"old is the new one", twoMembers.with("replay-b", "log-000000001-a,50,0"), "b", false, false},
		{"behind", twoMembers.with("replay-b", "log-000000001-a,99,0"), "a", true, false},
		{"old has not written back", twoMembers.with("replay-a", "log-000000001-a,90,10"), "a", true, false},
		{"dirty zone here", twoMembers.with("replay-b", "log-000000001-a,100,5"), "a", true, false},
		{"equal positions, the old one's log is longer", twoMembers.with("version-000000001-a", v1late), "a", true, false},
		{"equal positions, other digest", twoMembers.with("version-000000001-b", strings.Replace(v1, "1", "3", 32)), "a", false, true},
		{"own version link is missing", twoMembers.with("version-000000001-b", ""), "a", true, false},
		{"both version links are missing", twoMembers.with("version-000000001-b", "", "version-000000001-a", ""), "a", true, false},
		{"old has no position", twoMembers.with("replay-a", "", "replay-c", "log-000000001-a,100,0", "data-c", "/d"), "a", true, false},
		{"alone", twoMembers.with("replay-a", "", "data-a", ""), "a", false, false},
		{"a third one has a higher log", twoMembers.with("version-000000002-c", v2b), "a", true, false},
		{"emergency", twoMembers.with("actual-b/has-emergency", "1"), "a", false, true},
		{"replay has failed", twoMembers.with("actual-b/replay-code", "-74"), "a", false, true},
		{"split brain", twoMembers.with("replay-b", "log-000000002-b,9,0", "version-000000002-b", v2b, "replay-a", "log-000000001-a,150,0",
			"version-000000001-a", v1late), "a", false, true},
		{"old is unknown, versions differ", twoMembers.with("version-000000001-a", v1late), "", true, false},
	} {
		missing, err := gate(c.tree, "r", c.old, "b")
		if (missing != "") != c.missing || (err != nil) != c.final {
			t.Errorf("%s: %q, %v", c.name, missing, err)
		}
	}
}

func TestOldPrimary(t *testing.T) {
	for _, c := range []struct {
		name, want string
		tree       memTree
	}{
		{"designated", "a", twoMembers},
		{"nobody, remembered", "b", twoMembers.with("primary", "(none)", "userspace/last-primary", "b")},
		{"nobody, remembered one has left", "a", twoMembers.with("primary", "(none)", "userspace/last-primary", "x")},
		{"nobody, writer of the newest log", "b", twoMembers.with("primary", "(none)", "replay-b", "log-000000002-b,9,0")},
		{"nobody, two writers", "", twoMembers.with("primary", "(none)", "replay-a", "log-000000002-a,9,0", "replay-b", "log-000000002-b,9,0")},
		{"nobody, the writer has left", "", twoMembers.with("primary", "(none)", "replay-a", "log-000000003-x,9,0")},
		{"nothing known", "", memTree{}},
	} {
		if got := oldPrimary(c.tree, "r"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestNeverOverridable: force relaxes many checks of a handover, but not that the
// target must have a version of the data.
func TestNeverOverridable(t *testing.T) {
	off := twoMembers.with("todo-b/connect", "0")
	in := primaryInput{res: "r", host: "b", force: true, ignoreSync: true, now: 2000e9, window: time.Minute}
	if err := checkPrimary(off, in); err != nil {
		t.Fatalf("a sound target: %v", err)
	}
	for name, tree := range map[string]memTree{
		"unfinished sync":           off.with("syncstatus-b", "0"),
		"no sync status":            off.with("syncstatus-b", ""),
		"replay before sync end":    off.with("syncpos-b", "log-000000001-a,101,0"),
		"replay before dirty end":   off.with("syncpos-b", "log-000000001-a,90,11"),
		"unreadable sync end":       off.with("syncpos-b", "x"),
		"no position but sync end":  off.with("syncpos-b", "log-000000001-a,90,0", "replay-b", ""),
		"detached":                  off.with("todo-b/attach", "0"),
		"fetch is on":               twoMembers,
		"fetch is on, strange text": off.with("todo-b/connect", "1yes"),
	} {
		if err := checkPrimary(tree, in); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestJudgePeer(t *testing.T) {
	stamp := func(sec int64) string { return symlinktree.Stamp(sec * 1e9).String() }
	for _, c := range []struct {
		name, before, after, alive string
		want                       peerState
	}{
		{"answered", stamp(99), stamp(101), "1", peerAlive},
		{"answered for the first time", "", stamp(101), "", peerAlive},
		{"answered, and goes", stamp(99), stamp(101), "0", peerAlive},
		{"news from before the question", stamp(90), stamp(95), "1", peerUnknown},
		{"not later than the question", stamp(90), stamp(100), "1", peerUnknown},
		{"silent, but a clock ahead", stamp(105), stamp(105), "1", peerUnknown},
		{"silent for half a window", stamp(80), stamp(80), "1", peerUnknown},
		{"silent for longer", stamp(79), stamp(79), "1", peerDead},
		{"said goodbye", stamp(99), stamp(99), "0", peerDead},
		{"never seen", "", "", "", peerDead},
		{"garbage", "x", "y", "", peerDead},
	} {
		if got := judgePeer(c.before, c.after, c.alive, 100e9, 110e9, time.Minute); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestDaemonRuns(t *testing.T) {
	for _, c := range []struct {
		tree memTree
		want bool
	}{
		{memTree{}, false},
		{memTree{"actual-a/time": "96.000000000"}, true},
		{memTree{"actual-a/time": "95.000000000", "actual-a/alive": "1"}, true},
		{memTree{"actual-a/time": "94.999999999", "actual-a/alive": "1"}, false},
		{memTree{"actual-a/time": "100.000000000", "actual-a/alive": "0"}, false},
		{memTree{"actual-a/time": "soon"}, false},
		{memTree{"actual-b/time": "100.000000000"}, false},
	} {
		if got := daemonRuns(c.tree, "a", 100e9); got != c.want {
			t.Errorf("%v: %v", c.tree, got)
		}
	}
}

// TestDeleteNeverNeeded: whatever the positions of members are, no log is deleted
// that a member still needs, nor the last one, nor a version link above the logs
// that are kept, less one.
func TestDeleteNeverNeeded(t *testing.T) {
	now := time.Unix(100000, 0)
	for positions := range 5 * 5 * 5 {
		p := []int{positions % 5, positions / 5 % 5, positions / 25}
		tree := memTree{}
		least := 99
		for i, n := range p {
			h := string(rune('a' + i))
			tree["resource-r/data-"+h] = "/d"
			if n == 0 {
				least = 0 // a member without a position
				continue
			}
			least = min(least, n)
			tree[symlinktree.Resource("r").ReplayPath(h)] = symlinktree.Replay{Seq: n, Origin: "a"}.String()
		}
		var logs []logfile.Info
		for n := 1; n <= 4; n++ {
			logs = append(logs, logfile.Info{Name: logfile.Name{Seq: n, Host: "a"}, Size: 10})
			tree[symlinktree.Resource("r").VersionPath(n, "a")] = "x"
		}
		for _, force := range []bool{false, true} {
			batch, _ := planLogDelete(tree, deleteInput{res: "r", logs: logs, now: now, lamport: symlinktree.Stamp(now.UnixNano()), window: time.Minute, force: force})
			deleted := map[string]bool{}
			for _, o := range batch {
				if deleted[o.path] = true; o.kind != opDelete {
					t.Fatalf("%+v", o)
				}
			}
			for n := 1; n <= 4; n++ {
				needed := n >= least || n == 4
				if got := deleted[symlinktree.Resource("r").LogPath(n, "a")]; got == needed {
					t.Errorf("positions %v: log %d deleted: %v", p, n, got)
				}
				if got := deleted[symlinktree.Resource("r").VersionPath(n, "a")]; got != (n < min(least, 4)-1) {
					t.Errorf("positions %v: version %d deleted: %v", p, n, got)
				}
			}
		}
	}
}

func TestTombstoneLimit(t *testing.T) {
	tree := memTree{"ips/ip-a": "1", "ips/ip-b": "2", "ips/ip-c": "3", "actual-a/time": "5.000000000", "actual-b/time": "900.000000000"}
	if got := tombstoneLimit(tree, "a", 1000e9, time.Minute, false); got != 840e9 {
		t.Errorf("%v", got)
	}
	if got := tombstoneLimit(tree, "a", 1000e9, time.Minute, true); got != 940e9 {
		t.Errorf("with force: %v", got)
	}
}

func TestExitCode(t *testing.T) {
	timeout, refusal, bad := &timeoutError{where: "x"}, refuse("do", "no"), usage("what?")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {refusal, 1}, {errors.New("x"), 1}, {bad, 2}, {timeout, 3}, {named(timeout, "a", "b", "c"), 3},
		{errors.Join(timeout, nil), 3}, {failures{timeout, timeout}, 3}, {failures{timeout, refusal}, 1}, {failures{refusal, errors.New("y")}, 1},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}
