package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"mars/symlinktree"
	"mars/transport"
)

// Two clusters become one when an administrator asks for it (marsadm
// merge-cluster). A request link in local-H names the peer: as long as it exists, this
// node and that peer greet each other as a joining node and its cluster do, so
// their trees flow together; of the two uuids the newer one wins, as with every
// link. todo-global/uuid-UUID then tells for ever that nodes which still have UUID
// (they were down during the merge) belong here.
const (
	requestMerge = "merge" // PEER: let its cluster in
	requestProbe = "probe" // "PEER ADDR TOKEN": write down in probe-H what that node knows
)

// mergedUUIDPath is the link that admits nodes of a cluster that has been merged
// into this one.
func mergedUUIDPath(uuid string) string { return symlinktree.TodoGlobalPath("uuid-" + uuid) }

// probeTimeout bounds one look at a foreign cluster.
const probeTimeout = 20 * time.Second

// merging reports whether the cluster of peer is to be let in.
func (n *Node) merging(peer string) bool {
	v, ok := n.tree.Get(symlinktree.LocalPath(n.cfg.Node, requestMerge))
	return ok && v == peer
}

// merged reports whether uuid is that of a cluster that has become this one.
func (n *Node) merged(uuid string) bool {
	_, ok := n.tree.Get(mergedUUIDPath(uuid))
	return ok
}

// helloTo greets a peer. uuid is what the peer has said, if it has.
func (n *Node) helloTo(peer, uuid string) transport.Hello {
	h := n.hello()
	switch {
	case n.merging(peer):
		h.UUID = symlinktree.AnyUUID
	case uuid != "" && uuid != h.UUID && n.merged(uuid):
		h.UUID = uuid // it has slept through the merge and refuses ours
	}
	return h
}

// probe writes what a node of another cluster knows into probe-H, for marsadm to
// look at: uuid, ip-HOST, resource-RES; and got-PEER -> TOKEN or error-PEER at the end.
func (n *Node) probe(ctx context.Context, request string) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	words := append(strings.Fields(request), "", "", "")
	peer, addr, token := words[0], words[1], words[2]
	for _, e := range n.tree.List("probe-" + n.cfg.Node) {
		if err := n.tree.Unlink(e.Path); err != nil {
			n.log.Warn("cannot remove what an older probe has left", keyPath, e.Path, keyErr, err)
		}
	}
	put := func(name, value string) {
		// Also when the value is as before: marsadm has removed the old links itself,
		// and that may not have been noticed here yet.
		if err := n.tree.Touch(symlinktree.ProbePath(n.cfg.Node, name), value); err != nil {
			n.log.Error("cannot write link", keyPath, name, keyErr, err)
		}
	}
	if err := n.probeInto(ctx, peer, addr, put); err != nil {
		n.log.Warn("cannot look at another cluster", keyPeer, peer, keyAddr, addr, keyErr, err)
		put("error-"+peer, strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	put("got-"+peer, token)
}

func (n *Node) probeInto(ctx context.Context, peer, addr string, put func(name, value string)) error {
	if err := symlinktree.ValidName(peer); err != nil {
		return err
	}
	_, data, err := peerAddr(addr)
	if err != nil {
		return fmt.Errorf("address of %s: %w", peer, err)
	}
	c := transport.NewPeer(n.id, peer, data, n.transportConfig())
	defer c.Close()
	mine := n.hello()
	// Without an address the other side does not take us for a node that joins.
	mine.UUID, mine.Addr = symlinktree.AnyUUID, ""
	hello, err := c.Hello(ctx, mine)
	if err != nil {
		return err
	}
	put("uuid", hello.UUID)
	_, dirs, _, _, err := c.TreeDigests(ctx)
	if err != nil {
		return err
	}
	for dir := range dirs {
		if name, ok := strings.CutPrefix(dir, "resource-"); ok && symlinktree.ValidName(name) == nil {
			if err := n.probeResource(ctx, c, name, put); err != nil {
				return err
			}
		}
	}
	ips, err := c.TreeDirs(ctx, []string{"ips"})
	if err != nil {
		return err
	}
	for _, e := range ips {
		if h, ok := symlinktree.HostOf(strings.TrimPrefix(e.Path, "ips/"), "ip"); ok && e.Value != symlinktree.Deleted {
			put("ip-"+h, e.Value)
		}
	}
	return nil
}

// probeResource notes a resource of which more is left than its name.
func (n *Node) probeResource(ctx context.Context, c *transport.Peer, name string, put func(name, value string)) error {
	r := symlinktree.Resource(name)
	list, err := c.TreeDirs(ctx, []string{r.Dir()})
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Path == r.SizePath() && e.Value != symlinktree.Deleted {
			put("resource-"+name, e.Value)
		}
	}
	return nil
}
