package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// ErrNoUUID: gossip needs to know which cluster it belongs to. While a node
// joins and does not know the uuid yet it uses the data port, which needs the
// secret only, and starts gossip afterwards.
var ErrNoUUID = errors.New("cluster uuid is not known yet")

// Preset is a set of gossip intervals, see memberlist's Default...Config.
type Preset int

const (
	PresetLAN   Preset = iota // a failure is noticed within about 5 s
	PresetWAN                 // 30 s; fewer packets, longer round trips
	PresetLocal               // tests and demos on one machine
)

// GossipConfig says how to gossip. Zero durations mean those of the preset.
type GossipConfig struct {
	Identity *Identity
	// Node is the node's name; it must be the identity's.
	Node string
	// BindAddr and BindPort (0: any) for TCP and UDP. AdvertiseAddr and
	// AdvertisePort are what peers use, if that differs; AdvertiseAddr must be set if
	// BindAddr is unspecified.
	BindAddr      string
	BindPort      int
	AdvertiseAddr string
	AdvertisePort int
	// Label is the uuid of the cluster.
	Label  string
	Preset Preset

	// Peers returns the configured peers, "HOST:PORT" or better "NAME/HOST:PORT" of
	// their gossip ports. It is asked before each round of joining.
	Peers func() []string
	// Hint returns what to tell about this node's tree. It must not block.
	Hint func() Hint
	// OnHint and OnMember are called from one goroutine, with the latest state of
	// each node only; they may block.
	OnHint   func(node string, h Hint)
	OnMember func(node string, alive bool)

	// RejoinInterval is the pause between attempts to join configured peers that
	// are not alive, plus or minus a quarter. It doubles for each peer that does not
	// answer, up to six times the interval. Default 10 s.
	RejoinInterval time.Duration
	// HintInterval is the least time between two broadcasts. Default 100 ms.
	HintInterval time.Duration
	// ProbeInterval: one random member is probed this often; a member that does not
	// answer for ProbeTimeout is suspected and dead after about
	// SuspicionMult * log10(N+1) * ProbeInterval (at least SuspicionMult intervals). GossipInterval: news go out this often.
	// PushPullInterval: states are compared with a random member this often.
	// DeadTime: how long news still go to a dead member.
	ProbeInterval, ProbeTimeout, GossipInterval, PushPullInterval, DeadTime, StreamTimeout time.Duration

	Log     *slog.Logger
	Network Network
}

// Gossip tells who seems to be alive and spreads hints. It is advice: it may be
// late, wrong or lost.
type Gossip struct {
	cfg    GossipConfig
	log    *slog.Logger
	net    *gossipNet
	ml     *memberlist.Memberlist
	hints  *hintTable
	mail   *mailbox
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	dirty  chan struct{}

	leave, closeOnce sync.Once
	leaveErr         error
	mu               sync.Mutex
	members          map[string]member
}

func (c *GossipConfig) validate() error {
	switch {
	case c.Identity == nil:
		return errors.New("no identity")
	case c.Node != c.Identity.Node():
		return fmt.Errorf("node is %q, identity is of %q", c.Node, c.Identity.Node())
	case c.Label == "" || c.Label == "(any)":
		return ErrNoUUID
	case len(c.Label) > memberlist.LabelMaxSize:
		return fmt.Errorf("uuid has %d characters, at most %d", len(c.Label), memberlist.LabelMaxSize)
	case c.BindPort < 0 || c.BindPort > 65535 || c.AdvertisePort < 0 || c.AdvertisePort > 65535:
		return fmt.Errorf("bad port %d or %d", c.BindPort, c.AdvertisePort)
	}
	for _, d := range []time.Duration{c.RejoinInterval, c.HintInterval, c.ProbeInterval, c.ProbeTimeout, c.GossipInterval, c.PushPullInterval, c.DeadTime, c.StreamTimeout} {
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("interval %v is below 1ms", d)
		}
	}
	return nil
}

// NewGossip starts gossiping. It works without any peer being there.
func NewGossip(cfg GossipConfig) (*Gossip, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&cfg.RejoinInterval, 10*time.Second)
	set(&cfg.HintInterval, 100*time.Millisecond)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	g := &Gossip{cfg: cfg, log: cfg.Log, dirty: make(chan struct{}, 1), members: map[string]member{}}
	quiet := newQuietLog(cfg.Log, time.Minute)
	advertise, err := cfg.advertise()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	bind := net.JoinHostPort(cfg.BindAddr, strconv.Itoa(cfg.BindPort))
	if g.net, err = newGossipNet(cfg.Network, bind, advertise, cfg.Log, quiet); err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", bind, err)
	}
	g.mail = newMailbox(cfg.OnMember, cfg.OnHint)
	g.hints = &hintTable{
		me: hashNode(cfg.Node), own: cfg.Hint, news: g.mail.hint, quiet: quiet, now: time.Now,
		names: map[nodeHash]string{}, known: map[nodeHash]wireHint{},
	}
	mc := g.memberlistConfig(quiet)
	g.hints.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.count, RetransmitMult: mc.RetransmitMult}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.hints.publish()
	if g.ml, err = memberlist.Create(mc); err != nil {
		g.net.Shutdown()
		return nil, fmt.Errorf("gossip on %s: %w", bind, err)
	}
	g.work.Go(func() { g.mail.run(g.ctx) })
	g.work.Go(g.broadcaster)
	g.work.Go(g.rejoin)
	return g, nil
}

func (c *GossipConfig) advertise() (netip.AddrPort, error) {
	var ip netip.Addr
	if c.AdvertiseAddr != "" {
		var err error
		if ip, err = netip.ParseAddr(c.AdvertiseAddr); err != nil {
			return netip.AddrPort{}, fmt.Errorf("address to advertise: %w", err)
		}
	}
	return netip.AddrPortFrom(ip, uint16(c.AdvertisePort)), nil
}

func (g *Gossip) memberlistConfig(quiet *quietLog) *memberlist.Config {
	c := &g.cfg
	var mc *memberlist.Config
	switch c.Preset {
	case PresetWAN:
		mc = memberlist.DefaultWANConfig()
	case PresetLocal:
		mc = memberlist.DefaultLocalConfig()
	default:
		mc = memberlist.DefaultLANConfig()
	}
	for _, d := range []struct {
		dst *time.Duration
		v   time.Duration
	}{
		{&mc.ProbeInterval, c.ProbeInterval}, {&mc.ProbeTimeout, c.ProbeTimeout}, {&mc.GossipInterval, c.GossipInterval},
		{&mc.PushPullInterval, c.PushPullInterval}, {&mc.GossipToTheDeadTime, c.DeadTime}, {&mc.TCPTimeout, c.StreamTimeout},
	} {
		if d.v != 0 {
			*d.dst = d.v
		}
	}
	mc.Name = c.Node
	mc.Label = c.Label
	mc.SecretKey = c.Identity.GossipKey()
	mc.EnableCompression = false // hints are tiny, LZW costs only
	// A node that moves to another address may take its name along once it has been
	// dead for so long; the original address would win for ever otherwise.
	mc.DeadNodeReclaimTime = mc.GossipToTheDeadTime
	mc.Transport = g.net
	mc.Delegate = g.hints
	events := gossipEvents{g}
	mc.Events, mc.Alive, mc.Conflict = events, events, events
	mc.Logger = log.New(&gossipLog{g.log, quiet}, "", 0)
	return mc
}

func (g *Gossip) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 1
	for _, m := range g.members {
		if m.alive {
			n++
		}
	}
	return n
}

// Addr is the address that peers use.
func (g *Gossip) Addr() string { return g.net.advertise.String() }

// Alive tells for every other node that was met (of departed ones only the latest
// thousand or so) whether it seems alive.
func (g *Gossip) Alive() map[string]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[string]bool, len(g.members))
	for name, m := range g.members {
		out[name] = m.alive
	}
	return out
}

// Broadcast spreads this node's hint again, soon.
func (g *Gossip) Broadcast() {
	select {
	case g.dirty <- struct{}{}:
	default:
	}
}

func (g *Gossip) broadcaster() {
	for {
		select {
		case <-g.dirty:
		case <-g.ctx.Done():
			return
		}
		g.hints.publish()
		if sleep(g.ctx, g.cfg.HintInterval) != nil {
			return
		}
	}
}

// Leave tells the others that this node goes on purpose. The node still has to
// be closed.
func (g *Gossip) Leave(timeout time.Duration) error {
	g.leave.Do(func() {
		g.mu.Lock()
		closed := g.ctx.Err() != nil
		g.mu.Unlock()
		if closed {
			g.leaveErr = ErrClosed
			return
		}
		if err := g.ml.Leave(timeout); err != nil {
			g.leaveErr = fmt.Errorf("gossip: leave: %w", err)
		}
	})
	return g.leaveErr
}

// Close stops gossiping; the others notice in their own time. When it returns no
// callback runs any more and all sockets are closed; a probe of memberlist's that
// is waiting for its answer ends within the probe interval.
func (g *Gossip) Close() error {
	g.closeOnce.Do(func() {
		g.leave.Do(func() { g.leaveErr = ErrClosed }) // waits for a Leave, forbids later ones
		g.cancel()
		g.ml.Shutdown()
		g.work.Wait()
	})
	return nil
}

// gossipEvents are memberlist's callbacks; they must not block.
type gossipEvents struct{ g *Gossip }

func (e gossipEvents) NotifyJoin(n *memberlist.Node)   { e.g.member(n, true) }
func (e gossipEvents) NotifyLeave(n *memberlist.Node)  { e.g.member(n, false) }
func (e gossipEvents) NotifyUpdate(n *memberlist.Node) { e.g.member(n, true) }

// NotifyAlive refuses members whose names nobody else would accept.
func (e gossipEvents) NotifyAlive(n *memberlist.Node) error { return checkName("node name", n.Name) }

// NotifyConflict is called when a name appears at two addresses.
func (e gossipEvents) NotifyConflict(old, other *memberlist.Node) {
	e.g.hints.quiet.warn("conflict", "two addresses claim to be the same node; the first one is believed while it answers",
		"node", old.Name, "addr", old.Address(), "other", other.Address())
}

// maxDead bounds how many departed nodes are remembered.
const maxDead = 1024

// member is what is known of another node. memberlist's own list must not be
// read: it changes under the reader.
type member struct {
	alive bool
	addr  string
}

func (g *Gossip) member(n *memberlist.Node, alive bool) {
	if n.Name == g.cfg.Node {
		return
	}
	g.mu.Lock()
	news := g.members[n.Name].alive != alive
	g.members[n.Name] = member{alive, n.Address()}
	if len(g.members) > maxDead {
		for name, m := range g.members {
			if !m.alive {
				delete(g.members, name)
			}
		}
	}
	g.mu.Unlock()
	if news {
		g.hints.member(n.Name, alive)
		g.mail.member(n.Name, alive)
	}
}

// gossipLog takes memberlist's log lines. They are for debugging, except those
// that a person has to act upon.
type gossipLog struct {
	log   *slog.Logger
	quiet *quietLog
}

func (w *gossipLog) Write(p []byte) (int, error) {
	line := string(bytes.TrimSpace(p))
	line = strings.TrimPrefix(line, "[ERR] ")
	line = strings.TrimPrefix(line, "[WARN] ")
	switch {
	case strings.Contains(line, "installed keys could decrypt"):
		w.quiet.warn("gossip-secret", "gossip refused: a node there "+ErrSecret.Error(), "detail", line)
	case strings.Contains(line, `unacceptable label ""`):
		w.quiet.warn("gossip-garbage", "gossip refused: it is not from a node of any cluster", "detail", line)
	case strings.Contains(line, "unacceptable label"):
		w.quiet.warn("gossip-label", "gossip refused: it is from another cluster (its uuid differs)", "detail", line)
	case strings.Contains(line, "UDP probes failed"):
		w.quiet.warn("gossip-udp", "a node answers gossip over TCP but not over UDP: is a firewall in between?", "detail", line)
	default:
		w.log.Debug(line, "component", "gossip")
	}
	return len(p), nil
}
