package cluster

import (
	"context"
	"strings"
	"time"
)

// requests carries out what marsadm asked for in the node's own unreplicated
// directory and removes the links: they are requests, not state.
func (n *Node) requests(ctx context.Context) {
	dir := "local-" + n.cfg.Node
	for _, e := range n.tree.List(dir) {
		name := strings.TrimPrefix(e.Path, dir+"/")
		switch name {
		case "trigger":
			// Peers first: their answers travel while we publish ours.
			n.nudgePeers(ctx)
			n.beat()
			n.kickAll()
		case "pull":
			if p := n.peer(e.Value); p != nil {
				p.nudge()
			} else {
				n.log.Warn("request to pull from an unknown peer", keyPeer, e.Value)
			}
		case requestProbe:
			n.spawn(func() { n.probe(ctx, e.Value) })
		case requestMerge:
			// It counts as long as it is there.
			if p := n.peer(e.Value); p != nil {
				p.nudge()
			}
			continue
		default:
			continue
		}
		if err := n.tree.Unlink(e.Path); err != nil {
			n.log.Warn("cannot remove request link", keyPath, e.Path, keyErr, err)
		}
	}
}

// nudgePeers asks every peer to publish its time and to look at us, without
// waiting for those that do not answer.
func (n *Node) nudgePeers(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		p.nudge()
		n.spawn(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			if err := p.client.Nudge(ctx); err != nil {
				n.log.Debug("peer does not answer a nudge", keyPeer, p.name, keyErr, err)
			}
		})
	}
}
