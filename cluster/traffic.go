package cluster

import (
	"strings"

	"mars/symlinktree"
	"mars/transport"
)

// compressLZ4 is the bit of the one compression of the network that there is (reference symlink-tree 1.1).
const compressLZ4 = 0x02000000

// steersTraffic says whether readTraffic may see something new in a link.
func steersTraffic(path string) bool {
	return strings.HasPrefix(path, "defaults") || strings.HasPrefix(path, "resource-") && strings.Contains(path, "/defaults-")
}

// readTraffic is what the tree says about the traffic that node sends.
func readTraffic(s *symlinktree.Snapshot, node string) (t transport.Traffic, compress bool) {
	classes := []string{"tree", "log", "sync"}
	fields := func(l *transport.Limits) []*int64 { return []*int64{&l.Tree, &l.Log, &l.Sync} }
	read := func(path string) (rate int64, ok bool) {
		v, ok := s.Get(path)
		if n := symlinktree.LeadingInt(v); n > 0 {
			rate = min(n, 1<<40) << 10
		}
		return rate, ok
	}
	limits := func(path func(key string) string) (l transport.Limits, any bool) {
		for i, c := range classes {
			rate, ok := read(path(symlinktree.TrafficLimit + c))
			*fields(&l)[i] = rate
			any = any || ok
		}
		return l, any
	}
	t.Limits, _ = limits(func(key string) string { return symlinktree.HostDefaultsPath(node, key) })
	for _, peer := range symlinktree.Hosts(s) {
		l := t.Limits
		for i, c := range classes {
			if rate, ok := read(symlinktree.HostDefaultsPath(node, symlinktree.TrafficLimit+c+"-"+peer)); ok {
				*fields(&l)[i] = rate
			}
		}
		if l != t.Limits {
			if t.Peers == nil {
				t.Peers = make(map[string]transport.Limits)
			}
			t.Peers[peer] = l
		}
	}
	for _, r := range symlinktree.Resources(s) {
		if l, any := limits(func(key string) string { return r.HostDefaultsPath(node, key) }); any {
			if t.Resources == nil {
				t.Resources = make(map[string]transport.Limits)
			}
			t.Resources[string(r)] = l
		}
	}
	v, set := s.Get(symlinktree.DefaultsPath("enabled-net-compressions"))
	mask, err := symlinktree.ParseMask(v)
	return t, !set || err != nil || mask&compressLZ4 != 0
}

// steerTraffic puts into force what the tree says about traffic.
func (n *Node) steerTraffic() {
	t, compress := readTraffic(n.links(), n.cfg.Node)
	if err := n.server.SetTraffic(t); err != nil {
		n.log.Error("limits of traffic refused; those before stay in force", keyErr, err)
	}
	n.server.SetCompression(compress)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plain = !compress
	for _, p := range n.peers {
		p.client.SetCompression(compress)
	}
}

// usedCompression is what has been used for sending since the last call, as a mask.
func (n *Node) usedCompression() int {
	now := n.server.Compressed()
	defer func() { n.compressed = now }()
	if now != n.compressed {
		return compressLZ4
	}
	return 0
}
