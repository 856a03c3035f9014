package cluster

import (
	"reflect"
	"testing"

	"mars/symlinktree"
	"mars/transport"
)

func TestReadTraffic(t *testing.T) {
	type limits = transport.Limits
	for _, c := range []struct {
		name     string
		links    map[string]string
		want     transport.Traffic
		compress bool
	}{
		{"nothing set", nil, transport.Traffic{}, true},
		{"to each peer", map[string]string{"defaults-a/traffic-limit-log": "100", "defaults-a/traffic-limit-sync": "7"},
			transport.Traffic{Limits: limits{Log: 102400, Sync: 7168}}, true},
		{"of somebody else", map[string]string{"defaults-b/traffic-limit-log": "100"}, transport.Traffic{}, true},
		{"to one peer", map[string]string{"defaults-a/traffic-limit-log": "100", "defaults-a/traffic-limit-log-b-c": "1", "defaults-a/traffic-limit-tree-b-c": "2"},
			transport.Traffic{Limits: limits{Log: 102400}, Peers: map[string]limits{"b-c": {Log: 1024, Tree: 2048}}}, true},
		{"one peer without", map[string]string{"defaults-a/traffic-limit-log": "100", "defaults-a/traffic-limit-log-b": "0"},
			transport.Traffic{Limits: limits{Log: 102400}, Peers: map[string]limits{"b": {}}}, true},
		{"of a resource", map[string]string{"resource-r/defaults-a/traffic-limit-sync": "3", "resource-r/size": "4096"},
			transport.Traffic{Resources: map[string]limits{"r": {Sync: 3072}}}, true},
		{"negative", map[string]string{"defaults-a/traffic-limit-log": "-1"}, transport.Traffic{}, true},
		{"no compression", map[string]string{"defaults/enabled-net-compressions": "0x00000000"}, transport.Traffic{}, false},
		{"one that is not here", map[string]string{"defaults/enabled-net-compressions": "0x04000000"}, transport.Traffic{}, false},
		{"compression", map[string]string{"defaults/enabled-net-compressions": "0x06000000"}, transport.Traffic{}, true},
	} {
		tree, err := symlinktree.Open(t.TempDir(), symlinktree.Options{Node: "a"})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []string{"a", "b", "b-c"} {
			if err := tree.Set(symlinktree.IPPath(h), "10.0.0.1"); err != nil {
				t.Fatal(err)
			}
		}
		for path, v := range c.links {
			if err := tree.Set(path, v); err != nil {
				t.Fatal(err)
			}
		}
		got, compress := readTraffic(tree.Snapshot(), "a")
		if !reflect.DeepEqual(got, c.want) || compress != c.compress {
			t.Errorf("%s: %+v compress=%v, want %+v %v", c.name, got, compress, c.want, c.compress)
		}
	}
	for path, want := range map[string]bool{
		"defaults/enabled-net-compressions": true, "defaults-a/sync-limit": true, "resource-r/defaults-a/traffic-limit-log": true,
		"resource-r/size": false, "actual-a/time": false,
	} {
		if steersTraffic(path) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}
