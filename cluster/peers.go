package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"mars/symlinktree"
	"mars/transport"
)

// peer is another node as seen from here: one loop keeps its tree flowing in.
type peer struct {
	n      *Node
	name   string
	addr   string // value of its ips link
	client *transport.Peer
	cancel context.CancelFunc
	done   chan struct{}
	retry  chan struct{} // nudge: try now

	mu       sync.Mutex
	asked    bool      // has answered at least once
	lastNews time.Time // when its time link last changed here; zero = never
	problem  string    // why there is no connection
}

func (n *Node) peer(name string) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[name]
}

// refreshPeers follows the ips links: every other node is a peer.
func (n *Node) refreshPeers(ctx context.Context) {
	s := n.links()
	want := make(map[string]string)
	for _, h := range symlinktree.Hosts(s) {
		if addr, ok := s.Get(symlinktree.IPPath(h)); ok && h != n.cfg.Node {
			want[h] = addr
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, p := range n.peers {
		if want[name] != p.addr {
			p.cancel()
			delete(n.peers, name)
		}
	}
	if ctx.Err() != nil {
		return
	}
	for name, addr := range want {
		if n.peers[name] != nil {
			continue
		}
		_, data, err := peerAddr(addr)
		if err != nil {
			n.log.Error("peer has no usable address", keyPeer, name, keyPath, symlinktree.IPPath(name), keyErr, err)
			continue
		}
		p := &peer{n: n, name: name, addr: addr, done: make(chan struct{}), retry: make(chan struct{}, 1),
			client: transport.NewPeer(n.id, name, data, n.transportConfig())}
		p.client.SetCompression(!n.plain)
		var pctx context.Context
		pctx, p.cancel = context.WithCancel(ctx)
		n.peers[name] = p
		n.spawn(func() { p.run(pctx) })
	}
}

func (n *Node) stopPeers() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		p.cancel()
	}
}

func (p *peer) nudge() {
	select {
	case p.retry <- struct{}{}:
	default:
	}
}

// run keeps a session with the peer, for ever: a partition of any length ends
// with the next try.
func (p *peer) run(ctx context.Context) {
	defer close(p.done)
	defer p.client.Close()
	cfg := &p.n.cfg
	pause := cfg.RetryMin
	for ctx.Err() == nil {
		begun := time.Now()
		err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			continue // the stream had its age; the next one goes on
		}
		p.failed(err)
		if time.Since(begun) > cfg.RetryMax {
			pause = cfg.RetryMin // it had worked for a while
		}
		select {
		case <-ctx.Done():
		case <-p.retry:
			pause = cfg.RetryMin
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(pause*2, cfg.RetryMax)
		}
	}
}

func (p *peer) failed(err error) {
	p.mu.Lock()
	changed := p.problem != err.Error()
	p.problem = err.Error()
	p.mu.Unlock()
	if changed {
		p.n.log.Warn("no connection to peer", keyPeer, p.name, keyAddr, p.addr, keyErr, err)
		p.n.put(connectionMsgPath(p.n, p.name), p.n.message(fmt.Sprintf("connection to '%s' (%s) could not be established: %v", p.name, p.addr, err)))
	}
}

// connected notes a complete exchange: what this node knew is now known here.
func (p *peer) connected() {
	p.mu.Lock()
	first, had := !p.asked, p.problem
	p.asked, p.problem = true, ""
	p.mu.Unlock()
	if had != "" || first {
		p.n.log.Info("connected to peer", keyPeer, p.name, keyAddr, p.addr)
		if v, ok := p.n.tree.Get(connectionMsgPath(p.n, p.name)); ok && v != "OK" {
			p.n.put(connectionMsgPath(p.n, p.name), "OK")
		}
		p.n.kickAll()
	}
}

func connectionMsgPath(n *Node, peer string) string {
	return symlinktree.ActualPath(n.cfg.Node, "msg-needed-connection-with-"+peer)
}

// message formats a msg- link: real stamp, Lamport stamp, text (reference
// symlink-tree 5.8).
func (n *Node) message(text string) string {
	return symlinktree.Stamp(n.cfg.Now().UnixNano()).String() + " " + n.tree.Clock().Now().String() + " " + strings.ReplaceAll(text, "\n", "; ")
}

// session is one connection: introduce, compare, then follow the live stream.
func (p *peer) session(ctx context.Context) error {
	n := p.n
	hello, err := p.client.Hello(ctx, n.helloTo(p.name, ""))
	if err != nil {
		return err
	}
	if err := n.sameCluster(hello); err != nil {
		return err
	}
	epoch, seq, err := p.exchange(ctx)
	if err != nil {
		return err
	}
	p.connected()

	// While the stream is up, digests are still compared now and then: what both
	// sides believe and what is true must not drift apart unnoticed.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n.spawn(func() { p.antiEntropy(ctx, cancel) })
	err = p.client.TreeStream(ctx, epoch, seq, func(entries []transport.TreeEntry, _, _ uint64, resync bool) error {
		if err := n.merge(p.name, entries); err != nil {
			return err
		}
		if resync {
			_, _, err := p.exchange(ctx)
			return err
		}
		return nil
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (p *peer) antiEntropy(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(p.n.cfg.AntiEntropy)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, _, err := p.exchange(ctx); err != nil {
			cancel(fmt.Errorf("compare trees with %s: %w", p.name, err))
			return
		}
	}
}

// exchange compares digests and fetches the directories that differ. It returns
// where the peer's change feed stood before, so that following it from there
// misses nothing.
func (p *peer) exchange(ctx context.Context) (epoch, seq uint64, err error) {
	n := p.n
	root, dirs, epoch, seq, err := p.client.TreeDigests(ctx)
	if err != nil {
		return 0, 0, err
	}
	if root == n.tree.RootDigest() {
		return epoch, seq, nil
	}
	mine := n.tree.DirDigests()
	var differ []string
	for dir, sum := range dirs {
		if mine[dir] != sum {
			differ = append(differ, dir)
		}
	}
	for dir := range mine {
		if _, ok := dirs[dir]; !ok {
			differ = append(differ, dir) // it may hold tombstones for what we have
		}
	}
	entries, err := p.client.TreeDirs(ctx, differ)
	if err != nil {
		return 0, 0, err
	}
	return epoch, seq, n.merge(p.name, entries)
}

// heard notes a sign of life: the peer's time link has changed.
func (n *Node) heard(name string) {
	p := n.peer(name)
	if p == nil {
		return
	}
	p.mu.Lock()
	silent := p.lastNews.IsZero() || time.Since(p.lastNews) > n.cfg.AliveWindow
	p.lastNews = time.Now()
	p.mu.Unlock()
	if silent {
		n.kickAll()
	}
}

// alive lists the peers with fresh news. Local monotonic time counts, so wrong
// clocks make nobody dead or alive.
func (n *Node) alive() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]bool, len(n.peers))
	for name, p := range n.peers {
		p.mu.Lock()
		out[name] = !p.lastNews.IsZero() && time.Since(p.lastNews) <= n.cfg.AliveWindow
		p.mu.Unlock()
	}
	return out
}

// heardAll: every one of the members has answered since the start, or the wait for
// them is over. One refused connection proves nothing: after a power cut of the
// whole site all nodes boot at about the same time. A node that slept through a failover must
// not serve its device before it could have learned of it.
func (n *Node) heardAll(members []string) bool {
	if time.Since(n.started) > n.cfg.FirstContact {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range members {
		p := n.peers[m]
		if p == nil {
			continue
		}
		p.mu.Lock()
		asked := p.asked
		p.mu.Unlock()
		if !asked {
			return false
		}
	}
	return true
}
