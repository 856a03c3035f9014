package transport

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DefaultPort is the gossip port; data is on the next one.
const DefaultPort = 7777

// SplitAddr completes the value of an ips/ip-NODE link, ADDR or ADDR:PORT, to
// the addresses of the node's gossip port and data port.
func SplitAddr(value string) (gossip, data string, err error) {
	host, port := value, DefaultPort
	if _, err := netip.ParseAddr(strings.Trim(value, "[]")); err == nil {
		host = strings.Trim(value, "[]")
	} else if h, p, err := net.SplitHostPort(value); err == nil {
		host = h
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || n == 65535 {
			return "", "", &net.AddrError{Err: "port must be 1 to 65534", Addr: value}
		}
		port = int(n)
	}
	if host == "" || strings.ContainsAny(host, " /[]") || strings.Contains(host, ":") && !strings.Contains(host, "::") && strings.Count(host, ":") < 7 {
		return "", "", &net.AddrError{Err: "want ADDR or ADDR:PORT", Addr: value}
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), net.JoinHostPort(host, strconv.Itoa(port+1)), nil
}

// maxJoins bounds the joins that run at a time: each may hang for a while.
const maxJoins = 16

// attempts remembers when to try a peer again.
type attempt struct {
	next time.Time
	wait time.Duration
}

// rejoin joins every configured peer that is not alive, for ever: memberlist
// itself gives up on dead members, so that a partition longer than its patience
// would stay one.
func (g *Gossip) rejoin() {
	base := g.cfg.RejoinInterval
	tries := map[string]*attempt{}
	var joins sync.WaitGroup
	defer joins.Wait()
	slots := make(chan struct{}, maxJoins)
	var mu sync.Mutex
	running := map[string]bool{}
	for {
		todo := g.absent()
		for peer := range tries {
			if !todo[peer] {
				delete(tries, peer) // alive or not configured any more: start afresh
			}
		}
		now := time.Now()
		for peer := range todo {
			t := tries[peer]
			if t == nil {
				t = &attempt{wait: base}
				tries[peer] = t
			}
			mu.Lock()
			busy := running[peer]
			mu.Unlock()
			if now.Before(t.next) || busy {
				continue
			}
			t.next = now.Add(jitter(t.wait))
			t.wait = min(2*t.wait, 6*base)
			mu.Lock()
			running[peer] = true
			mu.Unlock()
			joins.Go(func() {
				select {
				case slots <- struct{}{}:
					g.join(peer)
					<-slots
				case <-g.ctx.Done():
				}
				mu.Lock()
				delete(running, peer)
				mu.Unlock()
			})
		}
		if sleep(g.ctx, jitter(base/4)) != nil {
			return
		}
	}
}

func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

func (g *Gossip) join(peer string) {
	_, err := g.ml.Join([]string{peer})
	if g.ctx.Err() == nil {
		g.log.Debug("gossip: join", "peer", peer, "err", err)
	}
}

// absent returns the configured peers that are not alive.
func (g *Gossip) absent() map[string]bool {
	todo := map[string]bool{}
	if g.cfg.Peers == nil {
		return todo
	}
	names, addrs := map[string]bool{g.cfg.Node: true}, map[string]bool{g.Addr(): true}
	g.mu.Lock()
	for name, m := range g.members {
		names[name] = m.alive
		addrs[m.addr] = addrs[m.addr] || m.alive
	}
	g.mu.Unlock()
	for _, p := range g.cfg.Peers() {
		name, addr, named := strings.Cut(p, "/")
		if !named {
			addr = p
		}
		if named && names[name] || !named && addrs[addr] {
			continue
		}
		todo[p] = true
	}
	return todo
}

// mailbox hands the latest state of each node to callbacks that may block, out
// of memberlist's way.
type mailbox struct {
	onMember func(string, bool)
	onHint   func(string, Hint)

	mu      sync.Mutex
	wake    chan struct{}
	members map[string]bool
	hints   map[string]Hint
}

func newMailbox(onMember func(string, bool), onHint func(string, Hint)) *mailbox {
	if onMember == nil {
		onMember = func(string, bool) {}
	}
	if onHint == nil {
		onHint = func(string, Hint) {}
	}
	return &mailbox{onMember: onMember, onHint: onHint, wake: make(chan struct{}, 1), members: map[string]bool{}, hints: map[string]Hint{}}
}

func (m *mailbox) member(name string, alive bool) {
	m.mu.Lock()
	m.members[name] = alive
	m.mu.Unlock()
	m.ring()
}

func (m *mailbox) hint(name string, h Hint) {
	m.mu.Lock()
	m.hints[name] = h
	m.mu.Unlock()
	m.ring()
}

func (m *mailbox) ring() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) run(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		members, hints := m.members, m.hints
		m.members, m.hints = map[string]bool{}, map[string]Hint{}
		m.mu.Unlock()
		for name, alive := range members {
			if ctx.Err() != nil {
				return
			}
			m.onMember(name, alive)
		}
		for name, h := range hints {
			if ctx.Err() != nil {
				return
			}
			m.onHint(name, h)
		}
	}
}
