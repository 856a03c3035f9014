package macro

import (
	"strings"
	"testing"
)

func TestDetectSplit(t *testing.T) {
	for _, c := range []struct {
		name    string
		chain   []string
		found   bool
		after   string
		amounts [2]int64
	}{
		{name: "nobody"},
		{name: "one member", chain: []string{"a 1a100: 1a100"}},
		{name: "equal", chain: []string{"a 1a100: 1a100", "b 1a100: 1a100"}},
		{name: "behind in the same log", chain: []string{"a 1a100: 1a100", "b 1a50: 1a50"}},
		{name: "behind, the writer's disk too", chain: []string{"a 1a30: 1a100", "b 1a50: 1a60"}},
		{name: "behind by a rotation", chain: []string{"a 2a10: 2a10<1a100 1a100", "b 1a50: 1a60"}},
		{name: "behind by a rotation, at its end", chain: []string{"a 2a10: 2a10<1a100 1a100", "b 1a100: 1a100"}},
		{name: "behind by three rotations", chain: []string{"a 4a10: 4a10<3a30 3a30<2a20 2a20<1a100 1a100", "b 1a70: 1a70"}},
		{name: "planned handover, not followed yet", chain: []string{"a 1a100: 1a100", "b 2b0: 2b0<1a100 1a100"}},
		{name: "planned handover, followed", chain: []string{"a 2b0: 2b0<1a100 1a100", "b 2b9: 2b9<1a100 1a100"}},
		{name: "version link not here yet, the one before tells", chain: []string{"a 2a10: 1a100", "b 1a50: 1a50"}},
		{name: "zero digests of a new resource prove nothing", chain: []string{"a 1a0: 1a0#0", "b 1a0: 1a0#5"}},

		{
			name: "both wrote a second log", chain: []string{"a 2a40: 2a40<1a100 1a100", "b 2b20: 2b20<1a100 1a100"},
			found: true, after: "log-000000001-a,100", amounts: [2]int64{40, 20},
		},
		{
			name: "forced from behind: the old primary is beyond the fork", chain: []string{"a 1a150: 1a150", "b 2b20: 2b20<1a100 1a100"},
			found: true, after: "log-000000001-a,100", amounts: [2]int64{50, 20},
		},
		{
			name: "forced from behind, the old primary has not written back", chain: []string{"a 1a90: 1a150", "b 2b20: 2b20<1a100 1a100"},
			found: true, after: "log-000000001-a,100", amounts: [2]int64{50, 20},
		},
		{
			name: "an innocent third one that stops before the fork", chain: []string{"b 2b20: 2b20<1a100 1a100", "c 1a80: 1a150"},
		},
		{
			name:  "a third one beyond the fork",
			chain: []string{"b 2b20: 2b20<1a100 1a100", "c 1a120: 1a150"}, found: true, after: "log-000000001-a,100", amounts: [2]int64{20, 20},
		},
		{
			name:  "both rotated several times",
			chain: []string{"a 4a5: 4a5<3a30 3a30<2a20 2a20<1a100 1a100", "b 3b7: 3b7<2b9 2b9<1a60 1a60"},
			found: true, after: "log-000000001-a,60", amounts: [2]int64{40 + 20 + 30 + 5, 9 + 7},
		},
		{
			name: "different histories before equal positions", chain: []string{"a 1a100: 1a100#4", "b 1a100: 1a100#5"},
			found: true, amounts: [2]int64{100, 100},
		},
		{
			name: "different histories found on the way back", chain: []string{"a 2a10: 2a10<1a100#4 1a100#4", "b 1a100: 1a100#5"},
			found: true, amounts: [2]int64{110, 100},
		},
		{
			name: "links are missing", chain: []string{"a 3a10:", "b 1a50: 1a50"}, found: true, amounts: [2]int64{10, 50},
		},
		{
			name: "a gap that both have jumped", chain: []string{"a 5a10: 5a10<3a30 3a30", "b 4b10: 4b10<3a30 3a30"},
			found: true, after: "log-000000003-a,30", amounts: [2]int64{10, 10},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := chain(t, c.chain...)
			s := DetectSplit(tree, "r")
			if s.Found != c.found || s.After != c.after || s.Amount1 != c.amounts[0] || s.Amount2 != c.amounts[1] {
				t.Errorf("%+v", s)
			}
			if s.Found == (s.Reason == "") {
				t.Errorf("reason %q", s.Reason)
			}
		})
	}
}

// TestBehindHole: who stands in front of what a primary has written without a log is no
// party of a split brain, unless it has gone its own way. "0" digits with # are the links
// of holes.
func TestBehindHole(t *testing.T) {
	const holed = "a 12a5: 12a5<11a0#0 11a0#0 1a100"
	for _, c := range []struct {
		name   string
		chain  []string
		split  bool
		behind map[string]string
	}{
		{name: "at the end of the log before", chain: []string{holed, "b 1a100: 1a100"}, behind: map[string]string{"b": "a"}},
		{name: "and before that", chain: []string{holed, "b 1a50: 1a50"}, behind: map[string]string{"b": "a"}},
		{name: "emergency mode lasts: no link of the next log yet", chain: []string{"a 12a0: 11a0#0 1a100", "b 1a100: 1a100"}, behind: map[string]string{"b": "a"}},
		{name: "the logs before it have been forgotten", chain: []string{"a 12a5: 12a5<11a0#0 11a0#0", "b 1a50: 1a50"}, behind: map[string]string{"b": "a"}},
		{name: "two holes", chain: []string{"a 23a5: 23a5<22a0#0 22a0#0 12a9<11a0#0 11a0#0 1a100", "b 1a100: 1a100"}, behind: map[string]string{"b": "a"}},
		{name: "copied anew", chain: []string{holed, "b 12a3: 12a5<11a0#0 11a0#0"}, behind: map[string]string{"b": "", "a": ""}},
		{name: "copied anew, a third one not", chain: []string{holed, "b 12a3: 12a5<11a0#0 11a0#0", "c 1a100: 1a100"}, behind: map[string]string{"b": "", "c": "a"}},
		{name: "a branch that was given up says nothing", chain: []string{holed, "b 12a3: 12a5<11a0#0 11a0#0 2b9<1a90", "c 1a100: 1a100"}, behind: map[string]string{"c": "a"}},
		{name: "forced primary in front of the hole", chain: []string{holed, "b 2b7: 2b7<1a100 1a100"}, split: true, behind: map[string]string{"b": ""}},
		{name: "beyond what was logged", chain: []string{"a 12a5: 12a5<11a0#0 11a0#0 2a60<1a100 1a100", "b 2b7: 2b7<1a90 1a90"}, split: true},
		{name: "no hole", chain: []string{"a 2a10: 2a10<1a100 1a100", "b 1a50: 1a50"}, behind: map[string]string{"b": "", "a": ""}},
		{name: "a missing link is no hole", chain: []string{"a 3a10:", "b 1a50: 1a50"}, split: true, behind: map[string]string{"b": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := chain(t, c.chain...)
			if s := DetectSplit(tree, "r"); s.Found != c.split {
				t.Errorf("%+v", s)
			}
			for host, want := range c.behind {
				if got := BehindHole(tree, "r", host); got != want {
					t.Errorf("%s is behind a hole of %q, want %q", host, got, want)
				}
			}
		})
	}
}

// TestBehindHoleWords: consistent, but old.
func TestBehindHoleWords(t *testing.T) {
	tree := chain(t, "a 12a5: 12a5<11a0#0 11a0#0 1a100", "b 1a100: 1a100")
	for path, v := range parseTree(t, `resource-r/primary -> a
		resource-r/size -> 4096
		resource-r/syncstatus-b -> 4096
		resource-r/todo-b/attach -> 1
		resource-r/todo-b/connect -> 1
		resource-r/todo-b/allow-replay -> 1
		resource-r/actual-b/is-attached -> 1
		resource-r/actual-b/is-replaying -> 1
		actual-a/time -> 10000.000000000
		actual-b/time -> 10000.000000000`) {
		tree[path] = v
	}
	c := testContext(tree, "b")
	look := func() string {
		var out []string
		for _, m := range []string{"diskstate", "replstate", "is-consistent", "is-split-brain", "is-behind-hole", "fetch-reached", "work-reached", "replay-reached", "flags", "diskstate-1and1"} {
			v, err := c.Eval(m)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		return strings.Join(out, " ")
	}
	if got, want := look(), "OutDated[H] BehindHole 1 0 1   1 dCASfR Outdated[H]"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if r := c.Report("b"); r.BehindHole == nil || *r.BehindHole != "a" || !r.Consistent || r.Split != nil {
		t.Errorf("%+v", r)
	}
	tree["resource-r/replay-b"] = parseTree(t, "x -> log-000000012-a,5,0")["x"]
	for path, v := range chain(t, "b: 12a5<11a0#0 11a0#0") {
		tree[path] = v
	}
	if got, want := look(), "UpToDate Replaying 1 0 0 1 1 1 dCASFR Uptodate"; got != want {
		t.Errorf("copied anew: %q, want %q", got, want)
	}
}

// FuzzDetectSplit: whatever the links say, the walk ends, and the answer does not
// depend on the order of the hosts.
func FuzzDetectSplit(f *testing.F) {
	f.Add("log-000000002-a,5,0", "log-000000001-a,5,0", "11111111111111111111111111111111,log-000000002-a,5:11111111111111111111111111111111,log-000000001-a,5", "x")
	f.Add("log-000000002-a,5,0", "log-000000002-b,5,0", "11111111111111111111111111111111,log-000000002-a,5:11111111111111111111111111111111,log-000000002-a,5", "")
	f.Add("log-000000009-a,5,0", "log-000000002-b,5,0", "11111111111111111111111111111111,log-000000009-a,5:11111111111111111111111111111111,log-000000009-b,5", "y")
	f.Fuzz(func(t *testing.T, ra, rb, v1, v2 string) {
		build := func(a, b string) memTree {
			m := memTree{}
			for p, v := range map[string]string{
				"replay-" + a: ra, "replay-" + b: rb, "version-000000002-" + a: v1, "version-000000009-" + a: v1, "version-000000001-" + a: v2,
				"version-000000002-" + b: v2, "version-000000008-" + b: v1,
			} {
				if v != "" && !strings.ContainsRune(v, 0) {
					e := m["resource-r/"+p]
					e.Path, e.Value, e.Stamp = "resource-r/"+p, v, 1
					m["resource-r/"+p] = e
				}
			}
			return m
		}
		// The names also decide what counts as the own log, so only that it ends counts.
		DetectSplit(build("a", "b"), "r")
		DetectSplit(build("b", "a"), "r")
	})
}
