package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/internal/vfs"
	"mars/symlinktree"
	"mars/transport"
)

// Version of the software, shown to peers and in buildtag. The original's marsadm
// reads digits before a parenthesis as an old kernel's build number, so there
// are none (reference symlink-tree 1.2).
const Version = "marsd-userspace-v0.1.x"

// Node is one member of the cluster: the tree, its propagation, and a worker for
// each resource.
type Node struct {
	cfg     Config
	log     *slog.Logger
	tree    *symlinktree.Tree
	id      *transport.Identity
	server  *transport.Server
	exports *exports
	started time.Time
	// rotateSize can be reloaded; the rest of cfg stays as it was at the start.
	rotateSize atomic.Int64
	ready      chan struct{} // closed when the node serves
	space      space
	slots      syncSlots

	sieve      sieve  // links of the cluster
	saidBroken string // what of them was reported as broken; of dispatch
	compressed int64  // frames until the last look; of publishNode

	mu      sync.Mutex
	workers map[symlinktree.Resource]*worker
	peers   map[string]*peer
	plain   bool // peers are asked for no compressed frames
	// stopping: no worker is started any more.
	stopping  bool
	abandoned atomic.Bool
	wg        sync.WaitGroup
	cancel    context.CancelCauseFunc
}

// NewNode checks the configuration. Nothing is opened before Run.
func NewNode(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration of node %s: %w", cfg.Node, err)
	}
	n := &Node{
		cfg: cfg, log: cfg.Log.With(keyNode, cfg.Node),
		ready:   make(chan struct{}),
		workers: make(map[symlinktree.Resource]*worker),
		peers:   make(map[string]*peer),
	}
	n.sieve.log = n.log
	n.rotateSize.Store(cfg.LogRotateSize)
	return n, nil
}

// Ready is closed as soon as the node listens and its workers run.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Tree is the node's tree; nil before Run has opened it.
func (n *Node) Tree() *symlinktree.Tree { return n.tree }

// Run serves until ctx ends, then stops cleanly: devices released, checkpoints
// written, alive=0 published. It returns the first fatal error, or nil.
func (n *Node) Run(ctx context.Context) error {
	unlock, err := lockRoot(n.cfg.FS, n.cfg.Root)
	if err != nil {
		return err
	}
	defer unlock()
	n.started = time.Now()
	if err := n.openTree(); err != nil {
		return err
	}
	ctx, n.cancel = context.WithCancelCause(ctx)
	defer n.cancel(nil)
	if err := n.awaitCluster(ctx); err != nil {
		return err
	}
	if err := n.openIdentity(); err != nil {
		return err
	}
	listener, err := n.listen()
	if err != nil {
		return err
	}
	if err := n.openExports(); err != nil {
		listener.Close()
		return err
	}
	// Only a node that has all its ports speaks in the tree: a second daemon or a
	// wrong address has changed nothing so far.
	n.server = transport.NewServer(n.id, &handler{n}, n.transportConfig())
	n.unsay()
	n.lookAtSpace()
	n.publishNode() // alive=1 before the first sign of life: marsadm wants both
	n.beat()
	seq := n.tree.Seq() // before anybody can change something that dispatch shall hear of
	n.spawn(func() { n.watch(ctx) })
	n.spawn(func() {
		if err := n.server.Serve(listener); err != nil && ctx.Err() == nil {
			n.cancel(fmt.Errorf("serve %s: %w", listener.Addr(), err))
		}
	})
	n.spawn(func() { n.heartbeats(ctx) })
	n.spawn(func() { n.watchSpace(ctx) })
	n.spawn(func() { n.runGossip(ctx) })
	n.spawn(func() { n.dispatch(ctx, seq) })
	close(n.ready)
	n.log.Info("node runs", keyRoot, n.cfg.Root, keyAddr, listener.Addr().String())

	<-ctx.Done()
	n.shutdown()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// unsay takes back what a marsd that was killed has left in the tree, before the
// first sign of life makes it credible: there is no device, and no disk is open.
// is-primary stays until the real end of the own log is known.
func (n *Node) unsay() {
	for _, r := range symlinktree.Resources(n.tree.Snapshot()) {
		for _, name := range []string{"if-on", "open-count", "is-attached", "is-replaying", "is-copying", "is-syncing"} {
			path := r.ActualPath(n.cfg.Node, name)
			if v, ok := n.tree.Get(path); ok && v != "0" {
				n.put(path, "0")
			}
		}
	}
}

// spawn runs f in a goroutine that shutdown waits for.
func (n *Node) spawn(f func()) {
	n.wg.Add(1)
	go func() { defer n.wg.Done(); f() }()
}

// shutdownTimeout bounds a clean stop; the log makes a rude one safe.
const shutdownTimeout = 60 * time.Second

// shutdownGrace is how long a resource may take to drop everything after that.
const shutdownGrace = time.Second

// shutdown stops the workers first (they still need peers to hear their last
// links), then the rest.
func (n *Node) shutdown() {
	n.mu.Lock()
	n.stopping = true
	workers := slices.Collect(maps.Values(n.workers))
	n.mu.Unlock()
	for _, w := range workers {
		if n.abandoned.Load() {
			w.cancel()
		} else {
			w.close()
		}
	}
	late, stop := context.WithTimeout(context.Background(), shutdownTimeout)
	defer stop()
	for _, w := range workers {
		select {
		case <-w.done:
		case <-late.Done():
			n.log.Error("a resource does not stop; what is missing on its disk is in its log", keyResource, string(w.r))
			w.cancel()
			if n.abandoned.Load() {
				<-w.done
			}
			select {
			case <-w.done:
			case <-time.After(shutdownGrace): // a disk that answers no more
			}
		}
	}
	if !n.abandoned.Load() {
		n.put(symlinktree.ActualPath(n.cfg.Node, "alive"), "0")
	}
	n.exports.close()
	n.server.Close()
	n.wg.Wait()
}

func (n *Node) openTree() error {
	clock := symlinktree.NewClock(n.cfg.Now)
	tree, err := symlinktree.Open(n.cfg.Root, symlinktree.Options{FS: n.cfg.FS, Node: n.cfg.Node, Clock: clock, Log: n.log, PollInterval: n.cfg.TreePoll})
	if err != nil {
		return fmt.Errorf("open tree %s: %w", n.cfg.Root, err)
	}
	n.tree = tree
	return nil
}

// awaitCluster waits until there is a cluster in the root: marsd may be started
// before marsadm create-cluster or join-cluster.
func (n *Node) awaitCluster(ctx context.Context) error {
	problem := ""
	for told := false; ; told = true {
		problem = n.watchSecret(problem)
		if _, ok := n.tree.Get(symlinktree.UUIDPath); ok {
			if _, ok := n.tree.Get(symlinktree.IPPath(n.cfg.Node)); ok {
				return nil
			}
			if hosts := symlinktree.Hosts(n.tree.Snapshot()); len(hosts) > 0 {
				return fmt.Errorf("%s belongs to a cluster of %s, which does not know a node %q: is --node right? (marsadm join-cluster adds a node)",
					n.cfg.Root, strings.Join(hosts, ", "), n.cfg.Node)
			}
		}
		if !told {
			n.log.Info("no cluster here yet: waiting for marsadm create-cluster or join-cluster", keyRoot, n.cfg.Root)
		}
		n.beat() // marsadm join-cluster wants to see that somebody will carry it out
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(n.cfg.Scan):
		}
		if _, err := n.tree.Rescan("", "ips"); err != nil {
			return fmt.Errorf("read tree %s: %w", n.cfg.Root, err)
		}
	}
}

// watchSecret says, in log and tree, what is wrong with the secret when that has changed: it is needed
// as soon as there is a cluster, and marsadm join-cluster shall know.
func (n *Node) watchSecret(before string) (problem string) {
	if _, err := n.cfg.secret(); err != nil {
		problem = err.Error()
	}
	path := symlinktree.ActualPath(n.cfg.Node, "msg-"+msgSecret)
	switch said, ok := n.tree.Get(path); {
	case problem != "" && problem != before:
		n.log.Warn("no usable cluster secret", keyErr, problem)
		n.put(path, n.message(problem))
	case problem == "" && ok && said != symlinktree.MessageOK:
		n.put(path, symlinktree.MessageOK)
	}
	return problem
}

func (n *Node) openIdentity() error {
	if n.id = n.cfg.Identity; n.id != nil {
		return nil
	}
	secret, err := n.cfg.secret()
	if err != nil {
		return err
	}
	n.id, err = transport.NewIdentity(secret, n.cfg.Node, n.cfg.SecretFile+"."+n.cfg.Node+".key")
	if err != nil {
		return fmt.Errorf("identity of node %s: %w", n.cfg.Node, err)
	}
	return nil
}

func (n *Node) listen() (net.Listener, error) {
	host, port, err := splitBind(n.cfg.Bind)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(host, strconv.Itoa(port+1))
	listen := n.cfg.Network.Listen
	if listen == nil {
		listen = net.Listen
	}
	l, err := listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("data port: %w (another marsd? choose one with --bind)", err)
	}
	return l, nil
}

func (n *Node) transportConfig() transport.Config {
	c := n.cfg.Transport
	c.Log = n.log
	if c.Dial == nil {
		c.Dial = n.cfg.Network.Dial
	}
	return c
}

// lockRoot keeps a second daemon off the same tree.
func lockRoot(fsys vfs.FS, root string) (unlock func(), err error) {
	name := filepath.Join(root, ".marsd.lock")
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	fd, ok := f.(vfs.Fd)
	if !ok { // no other process sees what is in such a file layer
		return func() { f.Close() }, nil
	}
	if err := syscall.Flock(int(fd.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another marsd already runs on %s (it holds %s)", root, name)
	}
	return func() { f.Close() }, nil
}

// put writes a status link of this node; a failure is a log line, the next round
// tries again.
func (n *Node) put(path, value string) {
	if err := n.tree.Set(path, value); err != nil {
		n.log.Error("cannot write link", keyPath, path, keyErr, err)
	}
}

func (n *Node) watch(ctx context.Context) {
	if err := n.tree.Watch(ctx); err != nil && ctx.Err() == nil {
		n.cancel(fmt.Errorf("watch %s: %w", n.cfg.Root, err))
	}
}

// dispatch turns changes of the tree into wake-ups: of the resource that a link
// belongs to, of the peers when addresses change, of the request handler. It begins with the
// changes after seq.
func (n *Node) dispatch(ctx context.Context, seq uint64) {
	wake, stop := n.tree.Subscribe()
	defer stop()
	defer n.stopPeers()
	n.unsayBroken()
	n.sayBroken()
	n.steerTraffic()
	n.refreshPeers(ctx)
	n.refreshWorkers(nil)
	tick := time.NewTicker(n.cfg.Scan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
		n.sayBroken()
		list, next, ok := n.tree.Since(seq)
		seq = next
		if !ok {
			n.steerTraffic()
			n.refreshPeers(ctx)
			n.refreshWorkers(nil)
		} else {
			n.dispatchChanges(ctx, list)
		}
		n.requests(ctx)
	}
}

func (n *Node) dispatchChanges(ctx context.Context, list []symlinktree.Entry) {
	touched := make(map[symlinktree.Resource]bool)
	if slices.ContainsFunc(list, func(e symlinktree.Entry) bool { return steersTraffic(e.Path) }) {
		n.steerTraffic()
	}
	for _, e := range list {
		dir, rest, _ := strings.Cut(e.Path, "/")
		switch {
		case strings.HasPrefix(dir, "resource-"):
			if r, ok := wakesServices(e, n.cfg.Node); ok && n.usesSystemd(r) {
				n.touchTrigger(r)
			}
			touched[symlinktree.Resource(strings.TrimPrefix(dir, "resource-"))] = true
		case dir == "defaults-"+n.cfg.Node:
			n.kickAll() // the limit of syncs, or their order
		case dir == "ips" || e.Path == symlinktree.UUIDPath:
			n.refreshPeers(ctx)
		case strings.HasPrefix(dir, "actual-") && rest == "time":
			n.heard(strings.TrimPrefix(dir, "actual-"))
		}
	}
	if len(touched) > 0 {
		n.refreshWorkers(touched)
	}
}

// refreshWorkers starts workers for resources that this node has storage for and
// wakes those that were touched (nil = all).
func (n *Node) refreshWorkers(touched map[symlinktree.Resource]bool) {
	s := n.tree.Snapshot()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range symlinktree.Resources(s) {
		if touched != nil && !touched[r] {
			continue
		}
		w := n.workers[r]
		if w == nil {
			if _, ok := s.Get(r.DataPath(n.cfg.Node)); !ok || n.stopping {
				continue
			}
			w = newWorker(n, r)
			n.workers[r] = w
			w.inheritSpace()
			go w.run()
		}
		w.kick()
	}
}

func (n *Node) worker(r symlinktree.Resource) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.workers[r]
}

// allWorkers are those of all resources.
func (n *Node) allWorkers() []*worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.workers))
}

// kickAll wakes every resource: a peer appeared or fell silent.
func (n *Node) kickAll() {
	for _, w := range n.allWorkers() {
		w.kick()
	}
}
