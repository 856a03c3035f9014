package cluster

import (
	"context"
	"net"
	"strconv"
	"time"

	"mars/symlinktree"
	"mars/transport"
)

// runGossip carries hints while the node runs. Gossip is advice (P11): it only
// makes this node look sooner. Without it everything works on the streams and
// the retry loops.
func (n *Node) runGossip(ctx context.Context) {
	for n.cfg.Gossip && n.gossip(ctx) {
	}
}

// gossip takes part until the uuid of the cluster changes, because two have become
// one; then it returns true.
func (n *Node) gossip(ctx context.Context) (again bool) {
	label, err := n.awaitUUID(ctx)
	if err != nil {
		return false
	}
	host, port, err := splitBind(n.cfg.Bind)
	if err != nil {
		return false // Validate has refused it before
	}
	adv, advPort := n.advertise(host, port)
	g, err := transport.NewGossip(transport.GossipConfig{
		Identity: n.id, Node: n.cfg.Node, Label: label,
		BindAddr: host, BindPort: port, AdvertiseAddr: adv, AdvertisePort: advPort,
		Preset: gossipPreset(host), Peers: n.gossipPeers, Hint: n.hint, OnHint: n.onHint, OnMember: n.onMember,
		RejoinInterval: 2 * n.cfg.RetryMax, Log: n.log, Network: n.cfg.Network,
	})
	if err != nil {
		n.log.Warn("gossip is off: the cluster works on, news travels by its streams alone", keyAddr, n.cfg.Bind, keyErr, err)
		return false
	}
	defer g.Close()
	wake, stop := n.tree.Subscribe()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			g.Leave(time.Second)
			return false
		case <-wake:
			if id, ok := n.tree.Get(symlinktree.UUIDPath); ok && id != label && id != symlinktree.AnyUUID {
				return true
			}
			g.Broadcast()
		}
	}
}

// awaitUUID waits until a joining node knows its cluster: gossip of different
// clusters is kept apart by it.
func (n *Node) awaitUUID(ctx context.Context) (string, error) {
	for {
		if id, ok := n.tree.Get(symlinktree.UUIDPath); ok && id != symlinktree.AnyUUID {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(n.cfg.RetryMin):
		}
	}
}

func (n *Node) advertise(host string, port int) (string, int) {
	if v, ok := n.tree.Get(symlinktree.IPPath(n.cfg.Node)); ok {
		if h, p, err := splitBind(v); err == nil {
			return h, p
		}
	}
	return host, port
}

// gossipPreset takes the fast timing among loopback addresses.
func gossipPreset(host string) transport.Preset {
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return transport.PresetLocal
	}
	return transport.PresetWAN
}

func (n *Node) gossipPeers() []string {
	s := n.links()
	var out []string
	for _, h := range symlinktree.Hosts(s) {
		v, ok := s.Get(symlinktree.IPPath(h))
		if !ok || h == n.cfg.Node {
			continue
		}
		if ip, port, err := splitBind(v); err == nil {
			out = append(out, net.JoinHostPort(ip, strconv.Itoa(port)))
		}
	}
	return out
}

func (n *Node) hint() transport.Hint {
	return transport.Hint{Epoch: n.tree.Epoch(), Seq: n.tree.Seq(), Digest: n.tree.RootDigest()}
}

// onHint: a peer has news. A peer whose stream is down is tried at once.
func (n *Node) onHint(node string, h transport.Hint) {
	if h.Digest == n.tree.RootDigest() {
		return
	}
	if p := n.peer(node); p != nil && !p.up() {
		p.nudge()
	}
}

func (n *Node) onMember(node string, alive bool) {
	n.log.Info("gossip", keyPeer, node, "alive", alive)
	if p := n.peer(node); p != nil && alive && !p.up() {
		p.nudge()
	}
}

func (p *peer) up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked && p.problem == ""
}
