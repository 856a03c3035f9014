package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
)

// network connects nodes by a bridge: every node is a namespace with one
// interface, the bridge is in a namespace of its own, so that nothing of it is seen
// outside.
type network struct {
	t     testing.TB
	hub   string
	nodes []string
	addrs []string
}

var networks atomic.Int32

func newNetwork(t testing.TB, n int) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "network namespaces need root")
	}
	id := fmt.Sprintf("me2e%d-%d", os.Getpid(), networks.Add(1))
	w := &network{t: t, hub: id + "-hub"}
	t.Cleanup(w.remove) // again, in case making it fails half-way
	w.ip("netns", "add", w.hub)
	w.ip("-n", w.hub, "link", "add", "br0", "type", "bridge")
	w.ip("-n", w.hub, "link", "set", "br0", "up")
	for i := range n {
		ns := fmt.Sprintf("%s-%d", id, i)
		w.ip("netns", "add", ns)
		w.nodes = append(w.nodes, ns)
		w.addrs = append(w.addrs, fmt.Sprintf("10.77.0.%d", i+1))
		w.ip("-n", w.hub, "link", "add", port(i), "type", "veth", "peer", "name", "eth0", "netns", ns)
		w.ip("-n", w.hub, "link", "set", port(i), "master", "br0", "up")
		w.ip("-n", ns, "addr", "add", w.addrs[i]+"/24", "dev", "eth0")
		w.ip("-n", ns, "link", "set", "lo", "up")
		w.ip("-n", ns, "link", "set", "eth0", "up")
	}
	return w
}

// port is the bridge's end of a node's cable.
func port(i int) string { return fmt.Sprintf("p%d", i) }

func (w *network) ip(args ...string) { w.t.Helper(); w.tool("ip", args...) }

func (w *network) tool(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// enter is the command line that runs line inside a node's namespace, as the same
// process.
func (w *network) enter(i int, line []string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + w.nodes[i], "--"}, line...)
}

func (w *network) remove() {
	for _, ns := range append(w.nodes, w.hub) {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			w.ip("netns", "del", ns)
		}
	}
	w.nodes = nil
}

// Isolate takes a node off the network, silently: the bridge drops its frames.
func (c *Cluster) Isolate(n *Node) {
	c.t.Helper()
	c.net.tool("bridge", "-n", c.net.hub, "link", "set", "dev", port(n.i), "state", "0")
}

// Cut separates two nodes from each other; both still reach all others. One pair at
// a time.
func (c *Cluster) Cut(a, b *Node) {
	c.t.Helper()
	for _, n := range []*Node{a, b} {
		c.net.tool("bridge", "-n", c.net.hub, "link", "set", "dev", port(n.i), "isolated", "on")
	}
}

// Heal undoes Isolate and Cut.
func (c *Cluster) Heal() {
	c.t.Helper()
	for i := range c.Nodes {
		c.net.tool("bridge", "-n", c.net.hub, "link", "set", "dev", port(i), "state", "3")
		c.net.tool("bridge", "-n", c.net.hub, "link", "set", "dev", port(i), "isolated", "off")
	}
}

// Rate limits what a node receives, in bits per second as tc understands them; ""
// takes the limit away.
func (c *Cluster) Rate(n *Node, rate string) {
	c.t.Helper()
	if rate == "" {
		c.net.tool("tc", "-n", c.net.hub, "qdisc", "del", "dev", port(n.i), "root")
		return
	}
	c.net.tool("tc", "-n", c.net.hub, "qdisc", "replace", "dev", port(n.i), "root", "tbf", "rate", rate, "burst", "32k", "latency", "200ms")
}
