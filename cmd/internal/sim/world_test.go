package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/cluster"
	"mars/internal/faultnet"
	"mars/internal/oracle"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
	"mars/symlinktree"
)

const (
	root     = "/mars"
	diskPath = "/dev/lv"
	res      = symlinktree.Resource("r")
	size     = 64 << 10 // of the device
	uuid     = "sim_1.000000000"
)

var names = []string{"a", "b", "c", "d"}

// world is one run: a cluster, what happens to it, and what is known about it.
type world struct {
	s     *schedule
	log   io.Writer // nil: the nodes' logs are thrown away
	net   *faultnet.Network
	begin time.Time
	nodes []*node
	// wrap is a mutant's layer between a node and its disk; nil for none.
	wrap    func(n *node, fs *crashfs.FS) vfs.FS
	mutated func(w *world, n *node) // in place of a planned handover

	mu       sync.Mutex
	trace    []string
	found    []finding
	history  []*history
	sessions []*session
	faults   []*fault
	forced   bool // a forced failover was ordered: branches may exist
	lossy    bool // ... or something else after which replicas may have to be made anew
	calm     bool // clients write no more
	burst    bool
	links    *links
	tally    stats
	work     sync.WaitGroup
	hurry    chan struct{} // closed when nothing more shall happen
	ended    chan struct{} // closed when everything shall end
}

// finding is a violation: the rule and what was seen.
type finding struct {
	rule, text string
	at         time.Duration
}

func (f finding) String() string { return fmt.Sprintf("%s at %v: %s", f.rule, f.at, f.text) }

// result of a run.
type result struct {
	found []finding
	trace []string
	stats stats
}

type stats struct {
	writes, acked, checks, crashes, commands, refused, dials int
	took                                                     time.Duration // of fake time
}

// hash is a fingerprint of what happened.
func (r *result) hash() uint64 {
	h := fnv.New64a()
	for _, l := range r.trace {
		io.WriteString(h, l+"\n")
	}
	return h.Sum64()
}

// has tells whether a rule was found violated.
func (r *result) has(rule string) bool {
	for _, f := range r.found {
		if f.rule == rule {
			return true
		}
	}
	return false
}

// options of a run beside the schedule.
type options struct {
	handover func(w *world, n *node) // of a mutant
	log      io.Writer
	wrap     func(n *node, fs *crashfs.FS) vfs.FS
}

// run plays a schedule in a bubble of its own.
func run(t *testing.T, s *schedule, opt options) (r *result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{s: s, log: opt.log, wrap: opt.wrap, mutated: opt.handover, net: faultnet.New(s.seed), begin: time.Now(), hurry: make(chan struct{}), ended: make(chan struct{})}
		r = w.play()
	})
	return r
}

func (w *world) play() *result {
	w.links = newLinks(w)
	w.build()
	for _, n := range w.nodes {
		w.start(n)
	}
	w.perform()
	w.finish()
	close(w.ended)
	for _, n := range w.nodes {
		w.stop(n)
	}
	w.work.Wait()
	time.Sleep(time.Minute) // of the bubble: memberlist lets probes run out
	r := &result{found: w.found, trace: w.trace, stats: w.count()}
	return r
}

func (w *world) now() time.Duration { return time.Since(w.begin) }

// note adds a line to the trace.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%9.3f ", w.now().Seconds()) + fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, line)
	if w.log != nil {
		fmt.Fprintln(w.log, "SIM "+line)
	}
}

// maxFindings bounds what one run reports: the first ones are what matters.
const maxFindings = 8

func (w *world) violation(rule, format string, args ...any) {
	f := finding{rule, fmt.Sprintf(format, args...), w.now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) < maxFindings {
		w.found = append(w.found, f)
		if w.log != nil {
			fmt.Fprintln(w.log, "SIM FINDING "+f.String())
		}
	}
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.found) > 0
}

func (w *world) rng(what uint64) *rand.Rand { return rand.New(rand.NewPCG(w.s.seed, what)) }

// node is a machine: disks, a clock, and a marsd that runs on it or does not.
type node struct {
	mu    sync.Mutex // of fs and inc
	w     *world
	i     int
	name  string
	ip    string
	fs    *crashfs.FS
	clock *clock
	inc   *incarnation // nil: down
	lives int
	noApp int           // > 0: the application that uses the device is stopped
	full  bool          // little space, now or a moment ago
	force bool          // a forced failover to it was ordered
	admin chan struct{} // one command at a time
}

// incarnation is one life of marsd, and of the machine under it.
type incarnation struct {
	n      *node
	fs     *crashfs.FS
	host   *faultnet.Host
	node   *cluster.Node
	cancel context.CancelFunc
	ended  chan struct{}
	dead   chan struct{} // closed at the instant of a crash
	once   sync.Once
	taken  atomic.Bool
}

// claim is for who begins the next life of the node: only one does.
func (inc *incarnation) claim() bool { return !inc.taken.Swap(true) }

func (inc *incarnation) isDead() bool {
	select {
	case <-inc.dead:
		return true
	default:
		return false
	}
}

// build makes the machines, with a cluster in which the resource has just been made: all
// disks are equal, node 0 is primary, the members have nothing to fetch.
func (w *world) build() {
	base := &memory{}
	if err := oracle.StampInitial(base, w.s.seed, size/oracle.SectorSize); err != nil {
		panic(err)
	}
	w.addHistory(nil, nil)
	for i := range w.s.nodes {
		n := &node{w: w, i: i, name: names[i], ip: fmt.Sprintf("10.0.0.%d", i+1), clock: newClock(w.s.clocks[i]), admin: make(chan struct{}, 1)}
		n.fs = crashfs.New(w.s.seed + uint64(i))
		n.fs.SetMetadata(w.s.metadata)
		for _, dir := range []string{root, root + "/" + res.Dir()} {
			if err := n.fs.Mkdir(dir, 0o700); err != nil {
				panic(err)
			}
		}
		if err := n.fs.AddDisk(diskPath, size, strings.NewReader(string(base.b))); err != nil {
			panic(err)
		}
		if err := n.fs.AddFile(root+"/"+res.LogPath(1, names[0]), 0, nil); err != nil && i == 0 {
			panic(err)
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		w.plant(n)
		n.fs.SyncAll()
	}
}

// plant writes the links of node n, and what it knows of the others.
func (w *world) plant(n *node) {
	t, err := symlinktree.Open(root, symlinktree.Options{FS: n.fs, Node: n.name, Clock: symlinktree.NewClock(time.Now)})
	if err != nil {
		panic(err)
	}
	stamp := symlinktree.Stamp(w.begin.UnixNano() - int64(time.Minute))
	set := func(path, value string) {
		stamp++
		if err := t.SetAt(path, value, stamp); err != nil {
			panic(fmt.Sprintf("plant %s: %v", path, err))
		}
	}
	first := names[0]
	v0 := symlinktree.Version{Digest: symlinktree.ZeroDigest, Origin: first}
	v1 := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: 1, Origin: first, Prev: v0.Head()}
	set(symlinktree.UUIDPath, uuid)
	set(res.SizePath(), fmt.Sprint(size))
	set(res.PrimaryPath(), first)
	set(res.LastPrimaryPath(), first)
	set(res.MaxNrPath(), "1")
	for _, m := range w.nodes {
		set(symlinktree.IPPath(m.name), m.ip+":7777")
		if m.i >= w.s.members {
			continue
		}
		set(res.DataPath(m.name), diskPath)
		set(res.DevicePath(m.name), string(res))
		for _, sw := range []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchSync, symlinktree.SwitchAllowReplay} {
			set(res.TodoPath(m.name, sw), "1")
		}
		set(res.SyncStatusPath(m.name), fmt.Sprint(size))
		set(res.ReplayPath(m.name), symlinktree.Replay{Seq: 1, Origin: first}.String())
		if m.i == 0 {
			set(res.VersionPath(0, m.name), v0.String())
		}
		set(res.VersionPath(1, m.name), v1.String())
	}
}

// memory is an io.WriterAt over bytes.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// start boots the machine and its marsd.
func (w *world) start(n *node) {
	if n.life() != nil {
		return
	}
	n.lives++
	inc := &incarnation{n: n, fs: n.files(), host: w.net.Host(n.ip), ended: make(chan struct{}), dead: make(chan struct{})}
	var fs vfs.FS = n.files()
	if w.wrap != nil {
		fs = w.wrap(n, n.files())
	}
	node, err := cluster.NewNode(w.config(n, inc, fs))
	if err != nil {
		w.violation("start", "node %s: %v", n.name, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	inc.node, inc.cancel = node, cancel
	n.live(inc, nil)
	w.work.Go(func() {
		err := node.Run(ctx)
		if err != nil && !inc.isDead() {
			w.violation("start", "marsd on %s ended: %v", n.name, err)
		}
		close(inc.ended)
	})
	w.note("%s starts", n.name)
}

func (w *world) logger(n *node) *slog.Logger {
	if w.log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("life", n.lives)
}

func (w *world) config(n *node, inc *incarnation, fs vfs.FS) cluster.Config {
	c := cluster.DefaultConfig(root, n.name)
	c.Bind = n.ip + ":7777"
	c.Identity = identities[n.name]
	c.FS, c.Now, c.Log = fs, n.clock.now, w.logger(n)
	c.Network.Listen, c.Network.ListenPacket, c.Network.Dial = inc.host.Listen, inc.host.ListenPacket, inc.host.Dial
	c.OpenExport = inc.openExport
	c.Gossip = w.s.gossip
	c.TreePoll = 5 * time.Second
	c.Heartbeat, c.AliveWindow, c.FirstContact = time.Second, 6*time.Second, 3*time.Second
	c.AntiEntropy, c.RetryMax = 15*time.Second, 2*time.Second
	c.SyncInterval, c.WritebackAge, c.DiskPatience = 50*time.Millisecond, 500*time.Millisecond, 2*time.Second
	c.SpaceInterval, c.EmergencyHold = 250*time.Millisecond, 2*time.Second
	c.LogRotateSize = w.s.rotate
	c.Transport.RequestTimeout, c.Transport.WriteTimeout, c.Transport.HandshakeTimeout, c.Transport.DialTimeout = 6*time.Second, 6*time.Second, 4*time.Second, 3*time.Second
	for i := range c.Reserves {
		c.Reserves[i] = cluster.Amount{Bytes: reserve}
	}
	return c
}

// reserve is the reserve of each level of the emergency ladder.
const reserve = 16 << 10

// stop ends marsd cleanly.
func (w *world) stop(n *node) {
	inc := n.life()
	if inc == nil {
		return
	}
	inc.cancel()
	select {
	case <-inc.ended:
	case <-time.After(2 * time.Minute):
		w.violation("P12", "marsd on %s does not stop", n.name)
		<-inc.ended
	}
	inc.host.Down()
	n.live(nil, nil)
}

func (n *node) life() *incarnation {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inc
}

// live sets the present life of the node, nil for none, and what is on its disks if that is something else now.
func (n *node) live(inc *incarnation, fs *crashfs.FS) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inc = inc; fs != nil {
		n.fs = fs
	}
}

// files is the file system of the machine.
func (n *node) files() *crashfs.FS {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fs
}

// snapshot is the tree of a running node, nil if there is none.
func (n *node) snapshot() *symlinktree.Snapshot {
	inc := n.life()
	if inc == nil {
		return nil
	}
	t := inc.node.Tree()
	if t == nil {
		return nil
	}
	return t.Snapshot()
}

func (n *node) get(path string) string {
	if s := n.snapshot(); s != nil {
		v, _ := s.Get(path)
		return v
	}
	return ""
}
