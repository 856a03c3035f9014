package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"mars/logfile"
	"mars/symlinktree"
	"mars/transport"
)

// handler answers peers. It only ever gives: what a peer wants changed arrives
// by way of the tree.
type handler struct{ n *Node }

var _ transport.Handler = (*handler)(nil)

func (n *Node) hello() transport.Hello {
	s := n.links()
	uuid, _ := s.Get(symlinktree.UUIDPath)
	addr, _ := s.Get(symlinktree.IPPath(n.cfg.Node))
	return transport.Hello{Node: n.cfg.Node, UUID: uuid, Addr: addr, Epoch: n.tree.Epoch(), Seq: n.tree.Seq(), Version: Version}
}

// sameCluster refuses to mix two trees.
func (n *Node) sameCluster(h transport.Hello) error {
	mine, _ := n.links().Get(symlinktree.UUIDPath)
	if mine == h.UUID || mine == symlinktree.AnyUUID || h.UUID == symlinktree.AnyUUID || n.merging(h.Node) || n.merged(h.UUID) {
		return nil
	}
	return fmt.Errorf("node %s belongs to cluster %s, node %s to cluster %s: two clusters are never mixed by accident", h.Node, h.UUID, n.cfg.Node, mine)
}

// Hello learns the address of a node that joins: its own link arrives as soon as
// its tree is followed, so ours is only preliminary.
func (h *handler) Hello(_ context.Context, peer string, in transport.Hello) (transport.Hello, error) {
	n := h.n
	if in.Node != peer {
		return transport.Hello{}, fmt.Errorf("the certificate says %s, the greeting says %s", peer, in.Node)
	}
	if peer == n.cfg.Node {
		return transport.Hello{}, fmt.Errorf("two nodes are named %s: each needs a --node of its own", peer)
	}
	if err := n.sameCluster(in); err != nil {
		return transport.Hello{}, err
	}
	if _, known := n.tree.Entry(symlinktree.IPPath(peer)); !known && in.Addr != "" {
		if _, _, err := peerAddr(in.Addr); err != nil {
			return transport.Hello{}, fmt.Errorf("address of node %s: %w", peer, err)
		}
		if err := n.tree.SetAt(symlinktree.IPPath(peer), in.Addr, preliminary); err != nil {
			return transport.Hello{}, err
		}
	}
	return n.helloTo(peer, in.UUID), nil
}

// preliminary is the stamp of links that anything real replaces.
const preliminary = symlinktree.Stamp(1e9)

func (h *handler) TreeSince(_ context.Context, _ string, epoch, seq uint64) ([]transport.TreeEntry, uint64, uint64, bool, error) {
	t := h.n.tree
	if epoch != t.Epoch() {
		return nil, t.Epoch(), t.Seq(), false, nil
	}
	list, next, ok := t.Since(seq)
	return wire(list), epoch, next, ok, nil
}

func (h *handler) TreeWait(ctx context.Context, _ string, epoch, seq uint64) error {
	t := h.n.tree
	wake, stop := t.Subscribe()
	defer stop()
	for epoch == t.Epoch() && t.Seq() <= seq {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		}
	}
	return nil
}

func (h *handler) TreeDigests(context.Context, string) (root [16]byte, dirs map[string][16]byte, epoch, seq uint64, err error) {
	t := h.n.tree
	seq = t.Seq() // before the digests: following from here repeats, it never misses
	return t.RootDigest(), t.DirDigests(), t.Epoch(), seq, nil
}

func (h *handler) TreeDirs(_ context.Context, _ string, dirs []string) ([]transport.TreeEntry, error) {
	var out []transport.TreeEntry
	for _, d := range dirs {
		out = append(out, wire(h.n.tree.Dir(d))...)
	}
	return out, nil
}

func (h *handler) Nudge(_ context.Context, peer string) error {
	h.n.beat()
	if p := h.n.peer(peer); p != nil {
		p.nudge()
	}
	return nil
}

func (h *handler) OpenLog(_ context.Context, peer, resource, log string) (transport.LogSource, error) {
	w, err := h.resource(resource)
	if err != nil {
		return nil, err
	}
	name, err := logfile.ParseName(log)
	if err != nil {
		return nil, err
	}
	return w.openLog(name)
}

func (h *handler) resource(name string) (*worker, error) {
	if err := symlinktree.ValidName(name); err != nil {
		return nil, err
	}
	w := h.n.worker(symlinktree.Resource(name))
	if w == nil {
		return nil, fmt.Errorf("resource %s is not on %s: %w", name, h.n.cfg.Node, fs.ErrNotExist)
	}
	return w, nil
}

func (h *handler) ReadRange(ctx context.Context, _, resource string, off int64, p []byte) (transport.Position, error) {
	w, err := h.resource(resource)
	if err != nil {
		return transport.Position{}, err
	}
	return w.readRange(ctx, p, off)
}

func (h *handler) Digests(ctx context.Context, _, resource string, off, length, chunk int64) ([][32]byte, transport.Position, error) {
	w, err := h.resource(resource)
	if err != nil {
		return nil, transport.Position{}, err
	}
	return w.digests(ctx, off, length, chunk)
}

func wire(list []symlinktree.Entry) []transport.TreeEntry {
	out := make([]transport.TreeEntry, len(list))
	for i, e := range list {
		out[i] = transport.TreeEntry{Path: e.Path, Value: e.Value, Stamp: int64(e.Stamp)}
	}
	return out
}

// merge takes a peer's entries into the tree. What is malformed is named and left
// out, the rest applies (P13).
func (n *Node) merge(from string, list []transport.TreeEntry) error {
	if len(list) == 0 {
		return nil
	}
	entries := make([]symlinktree.Entry, 0, len(list))
	for _, e := range list {
		if n.stillNeeded(e) {
			n.log.Warn("not deleting a logfile that this node still needs", keyPeer, from, keyPath, e.Path)
			continue
		}
		entries = append(entries, symlinktree.Entry{Path: e.Path, Value: e.Value, Stamp: symlinktree.Stamp(e.Stamp)})
	}
	if _, err := n.tree.Merge(from, entries); err != nil {
		n.log.Error("links of peer refused", keyPeer, from, keyErr, err)
	}
	return nil
}

// stillNeeded protects a log at or after this node's replay position from a
// deletion that was decided without knowing it (P8).
func (n *Node) stillNeeded(e transport.TreeEntry) bool {
	if e.Value != symlinktree.Deleted || !strings.HasPrefix(e.Path, "resource-") {
		return false
	}
	dir, name, _ := strings.Cut(e.Path, "/")
	log, err := logfile.ParseName(name)
	if err != nil {
		return false
	}
	r := symlinktree.Resource(strings.TrimPrefix(dir, "resource-"))
	if _, member := n.tree.Get(r.DataPath(n.cfg.Node)); !member {
		return false
	}
	v, _ := n.tree.Get(r.ReplayPath(n.cfg.Node))
	if w := n.worker(r); w != nil {
		v = w.get(r.ReplayPath(n.cfg.Node)) // also if somebody has broken it
	}
	pos, err := symlinktree.ParseReplay(v)
	if err != nil {
		return false
	}
	if log.Seq <= pos.Seq || log.Host == n.cfg.Node {
		return log.Seq >= pos.Seq && (log.Host == n.cfg.Node || log.Host == pos.Origin)
	}
	// A later log of somebody else: one of a branch that was given up is not on the way of this node, and
	// refusing its deletion for ever would keep the trees apart.
	st, err := n.cfg.FS.Lstat(filepath.Join(n.cfg.Root, e.Path))
	return err == nil && st.Mode().IsRegular() ||
		readVersions(n.tree.Snapshot(), r).follows(logfile.Name{Seq: pos.Seq, Host: pos.Origin}, log)
}
