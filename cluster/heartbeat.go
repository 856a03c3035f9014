package cluster

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"mars/symlinktree"
)

// Digests and compressions that this software can read or write, as the bit mask
// of the features link (reference symlink-tree 1.1).
const (
	featureMask   = 0x06_1f0000 // MD5_OLD MD5 CRC32C CRC32 SHA1, LZ4 ZLIB
	digestCRC32C  = 0x00_040000
	featuresValue = "4,5"
)

// beat publishes the node's Lamport time: the liveness beacon, and the answer to
// whoever waits for news from here.
func (n *Node) beat() {
	path := symlinktree.ActualPath(n.cfg.Node, "time")
	if err := n.tree.Touch(path, n.tree.Clock().Now().String()); err != nil {
		n.log.Error("cannot write link", keyPath, path, keyErr, err)
	}
}

func (n *Node) heartbeats(ctx context.Context) {
	tick := time.NewTicker(n.cfg.Heartbeat)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n.beat()
		if i%10 == 0 {
			n.publishNode()
		}
	}
}

// publishNode writes the node's slow status links; unchanged values cost nothing.
func (n *Node) publishNode() {
	put := func(name, value string) { n.put(symlinktree.ActualPath(n.cfg.Node, name), value) }
	put("alive", "1")
	put("tree", "0.1")
	features := fmt.Sprintf("%s,0x%08x", featuresValue, featureMask)
	put("features", features)
	put("usable", features)
	put("buildtag", Version)
	put("compat-alivelinks", "0")
	put("used-log-digest", strconv.Itoa(digestCRC32C))
	put("used-net-digest", strconv.Itoa(digestCRC32C))
	put("used-log-compression", "0")
	put("used-net-compression", strconv.Itoa(n.usedCompression()))
}
