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
