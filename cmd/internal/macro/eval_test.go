package macro

import (
	"errors"
	"strings"
	"testing"
)

// pairTree: a is primary of r, b lags; both are heard.
const pairTree = `
	uuid -> a_1.000000000
	ips/ip-a -> 10.0.0.1
	ips/ip-b -> 10.0.0.2
	ips/ip-gone -> .deleted
	actual-a/time -> 9999.000000000
	actual-b/time -> 9930.000000000
	actual-a/rest-space -> 29
	actual-a/usable -> 4,5,0x031f0000
	resource-r/size -> 1048576
	resource-r/primary -> a
	resource-r/data-a -> /dev/vg/r
	resource-r/device-a -> dev
	resource-r/actsize-a -> 2097152
	resource-r/actsize-b -> 1572864
	resource-r/data-b -> /dev/vg/r
	resource-r/device-b -> dev
	resource-r/device-c -> dev
	resource-r/syncstatus-a -> 1048576
	resource-r/syncstatus-b -> 524288
	resource-r/replay-a -> log-000000002-a,50,0 @9000
	resource-r/replay-b -> log-000000001-a,40,8 @8000
	resource-r/version-000000001-a -> 11111111111111111111111111111111,log-000000001-a,100: @8500
	resource-r/version-000000002-a -> 22222222222222222222222222222222,log-000000002-a,60:11111111111111111111111111111111,log-000000001-a,100 @9000
	resource-r/version-000000001-b -> 11111111111111111111111111111111,log-000000001-a,90: @8000
	resource-r/actual-a/is-primary -> 1
	resource-r/actual-a/is-attached -> 1
	resource-r/actual-b/is-attached -> 1
	resource-r/actual-a/open-count -> 2
	resource-r/actual-a/if-on -> 1
	resource-r/actual-b/is-replaying -> 1
	resource-r/actual-b/amount-replay_rate -> 2
	resource-r/actual-b/msg-err-old -> 1.000000000 1.000000000 broken = -5 @9000
	resource-r/actual-b/msg-err-new -> 1.000000000 1.000000000 broken @9900
	resource-r/actual-b/msg-wrn-x -> 1.000000000 1.000000000 beware
	resource-r/actual-b/msg-inf-ok -> OK
	resource-r/todo-b/connect -> 0
	resource-r10/size -> 1
	resource-r2/device-a -> x
`

func TestPrimitives(t *testing.T) {
	tree := parseTree(t, pairTree)
	c := testContext(tree, "a", "log-000000001-a=100", "log-000000002-a=60")
	for expr, want := range map[string]string{
		// expression: name and arguments, by blanks
		"is-primary": "1", "is-primary b": "", "is-secondary b": "1", "is_primary": "1", "IsPrimary": "1",
		"is-attach b": "1", "is-replay b": "1", "is-fetch b": "", "todo-fetch b": "0", "todo-primary": "1", "todo-primary b": "", "todo-secondary b": "1",
		"get-primary": "a", "nr-primary": "1", "nr-secondary": "1", "nr-attach": "2",
		"is-alive": "1", "is-alive b": "0", "is-alive nobody": "0", "is-split-brain": "0",
		"is-consistent": "1", "is-consistent b": "0", "is-member r b": "1", "is-member r c": "0", "is-guest r c": "1", "is-guest r b": "0",
		"get-disk": "/dev/vg/r", "get-device": "/dev/mars/dev", "device-opened": "2", "device-opened b": "0", "device-nrflying": "0",
		"sync-pos b": "524288", "sync-size b": "1048576", "sync-rest b": "524288", "sync-rest": "0", "sync-percent b": "50.25",
		"sync-reached": "1", "sync-reached b": "", "sync-vector / b": "524288/1048576", "sync-threshold-reached 524288 b": "1", "sync-threshold-reached 524287 b": "",
		"replay-pos": "150", "fetch-pos": "160", "fetch-size": "160", "replay-rest": "10", "fetch-rest": "0", "work-rest": "10", "writeback-rest": "10",
		"replay-pos b": "40", "fetch-pos b": "90", "work-size b": "160", "replay-rest b": "50", "fetch-rest b": "70", "work-rest b": "120",
		"summary-vector : b": "40:90:160", "replay-lognr": "2", "replay-basenr": "1", "replay-lognr b": "1", "fetch-lognr b": "1", "work-lognr b": "2",
		"work-logcount b": "1", "occupied-size": "160", "deletable-size": "0", "disk-size b": "1572864", "resource-size": "1048576", "resource-possible-size": "1572864",
		"replay-rate b": "0", "replay-remain b": "-1", "fetch-remain b": "-1", "work-remain b": "-1", "fetch-remain": "0",
		"replay-age": "1000", "replay-age b": "2000", "replay-lag b": "1000", "fetch-lag b": "1000", "alive-age b": "70", "alive-age nobody": "-1",
		"rest-space": "29", "uuid": "a_1.000000000", "resource-members": "a\nb\n", "count-resource-members": "2", "guest-peers": "c\n",
		"cluster-peers": "a\nb\n", "count-cluster-peers": "2", "all-resources": "r\nr2\nr10\n", "my-resources": "r\nr2\n", "my-members": "r\n", "my-guests": "r2\n",
		"usable-compressions": "COMPRESS_LZO|COMPRESS_LZ4", "errno-text -5": "[EIO:Input/output_error]", "role": "Primary", "role b": "Secondary", "role c": "None",
		"flags": "DCaSF-", "todo-role b": "Secondary", "primarynode": "a", "commstate": "",
		"all-count b": "4", "the-count b": "2", "the-err-msg b": "err-old: 1.000000000 1.000000000 broken = -5\n",
		"all-err-count b": "2", "the-wrn-count b": "1", "the-inf-count b": "0",
		"the-pretty-err-msg b": "err-old: 1.000000000 1.000000000 broken = -[EIO:Input/output error]\n",
		"time":                 "10000.000000000", "real-time": "10000.000000000",
	} {
		w := strings.Fields(expr)
		got, err := c.Eval(w[0], w[1:]...)
		if err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", expr, got, err, want)
		}
	}
	if _, err := c.Eval("no-such-thing"); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown macro: %v", err)
	}
}

// TestRates: a rate is what marsd says, as long as it is heard.
func TestRates(t *testing.T) {
	for heard, want := range map[string][2]string{"9941": {"2048", "0.0244140625"}, "9940": {"0", "-1"}} {
		c := testContext(parseTree(t, pairTree+"\nactual-b/time -> "+heard+".000000000"), "a", "log-000000001-a=100", "log-000000002-a=60")
		for i, name := range []string{"replay-rate", "replay-remain"} {
			if got, err := c.Eval(name, "b"); got != want[i] || err != nil {
				t.Errorf("heard at %s: %s is %q, %v, want %q", heard, name, got, err, want[i])
			}
		}
	}
}

// TestAllMacrosBearAnything: no macro panics or hangs, whatever is in the tree,
// with and without a resource, and every one has a help text.
func TestAllMacrosBearAnything(t *testing.T) {
	broken := strings.NewReplacer("log-00000000", "lug-", "1111", "x", " -> 1", " -> -99999999999999999999").Replace(pairTree)
	for _, text := range []string{"", pairTree, broken} {
		tree := parseTree(t, text)
		for _, res := range []string{"", "r", "nothing"} {
			for _, host := range []string{"a", "b", "nobody", ""} {
				c := testContext(tree, host, "log-000000001-a=100")
				c.Res = res
				for _, m := range All() {
					for _, args := range [][]string{nil, {"-1", "x", "", "%"}} {
						if _, err := c.Eval(m.Name, args...); err != nil {
							t.Errorf("%s %q: %v", m.Name, args, err)
						}
					}
					if m.Help == "" || m.Name == "" {
						t.Fatalf("%+v has no help", m)
					}
				}
			}
		}
	}
}

func TestConsistent(t *testing.T) {
	for _, c := range []struct {
		name, links string
		host        string
		want        bool
	}{
		{"primary, written back", "resource-r/replay-a -> log-000000002-a,50,0", "a", true},
		{"primary, not written back", "resource-r/replay-a -> log-000000002-a,50,10", "a", false},
		{"secondary, replaying", "resource-r/syncstatus-b -> 1048576\nactual-b/time -> 9999.000000000", "b", true},
		{"secondary, replaying when last heard of", "resource-r/syncstatus-b -> 1048576", "b", false},
		{"secondary, paused in the middle of the zone", "resource-r/syncstatus-b -> 1048576\nactual-b/time -> 9999.000000000\nresource-r/actual-b/is-replaying -> 0", "b", false},
		{"secondary, detached in the middle of the zone", "resource-r/syncstatus-b -> 1048576\nresource-r/actual-b/is-attached -> 0", "b", false},
		{"sync not finished", "", "b", false},
		{"replay before the end of the sync", "resource-r/syncstatus-b -> 1048576\nresource-r/syncpos-b -> log-000000001-a,41,0", "b", false},
		{"replay before the dirty end of the sync", "resource-r/syncstatus-b -> 1048576\nresource-r/syncpos-b -> log-000000001-a,40,1", "b", false},
		{"replay at the end of the sync", "resource-r/syncstatus-b -> 1048576\nactual-b/time -> 9999.000000000\nresource-r/syncpos-b -> log-000000001-a,30,10", "b", true},
		{"unreadable end of the sync", "resource-r/syncstatus-b -> 1048576\nresource-r/syncpos-b -> x", "b", false},
		{"no position", "resource-r/syncstatus-b -> 1048576\nresource-r/replay-b -> .deleted", "b", false},
	} {
		if got := testContext(parseTree(t, pairTree+"\n"+c.links), c.host).consistent(c.host, true); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestOwnFilesOnly: what another host has is what it says itself; files on this
// machine count for this machine only.
func TestOwnFilesOnly(t *testing.T) {
	tree := parseTree(t, pairTree)
	c := testContext(tree, "b", "log-000000001-a=100", "log-000000002-a=60")
	if a := c.amounts("b"); a.fetchPos != 90 {
		t.Errorf("seen from a, b has %d bytes", a.fetchPos)
	}
	c.Node = "b"
	if a := c.amounts("b"); a.fetchPos != 160 {
		t.Errorf("on b itself, b has %d bytes", a.fetchPos)
	}
}

func TestDeleteLimit(t *testing.T) {
	for links, want := range map[string]int{
		"": 1,
		"resource-r/replay-b -> log-000000005-a,0,0":                     2,
		"resource-r/replay-b -> .deleted":                                0,
		"resource-r/replay-b -> nonsense":                                0,
		"resource-r/replay-b -> .deleted\nresource-r/data-b -> .deleted": 2,
	} {
		if got := DeleteLimit(parseTree(t, pairTree+"\n"+links), "r"); got != want {
			t.Errorf("%q: %d, want %d", links, got, want)
		}
	}
}
