package faultnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Network connects hosts, which are known by their IP address.
type Network struct {
	dice *dice

	mu        sync.Mutex
	all       Link
	links     map[[2]string]Link
	listeners map[string]*listener
	packets   map[string]*packetConn
	streams   map[*conn]struct{} // one end of each
	changed   chan struct{}
	port      int
	dials     int
}

// New returns a perfect network.
func New(seed uint64) *Network {
	return &Network{
		dice: newDice(seed), links: map[[2]string]Link{}, listeners: map[string]*listener{},
		packets: map[string]*packetConn{}, streams: map[*conn]struct{}{}, changed: make(chan struct{}), port: 40000,
	}
}

// SetAll sets the faults of every link that SetLink did not set.
func (n *Network) SetAll(l Link) { n.set(func() { n.all = l }) }

// SetLink sets the faults of one direction.
func (n *Network) SetLink(from, to string, l Link) {
	n.set(func() { n.links[[2]string{from, to}] = l })
}

// SetBoth sets the faults of both directions.
func (n *Network) SetBoth(a, b string, l Link) {
	n.set(func() { n.links[[2]string{a, b}], n.links[[2]string{b, a}] = l, l })
}

// Cut holds everything between two groups.
func (n *Network) Cut(a, b []string) {
	n.set(func() {
		for _, x := range a {
			for _, y := range b {
				n.links[[2]string{x, y}], n.links[[2]string{y, x}] = Link{Hold: true}, Link{Hold: true}
			}
		}
	})
}

// Heal makes everything perfect again.
func (n *Network) Heal() {
	n.set(func() { n.all, n.links = Link{}, map[[2]string]Link{} })
}

func (n *Network) set(f func()) {
	n.mu.Lock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
	var wake []*half
	for c := range n.streams {
		wake = append(wake, c.in, c.out)
	}
	n.mu.Unlock()
	for _, h := range wake {
		h.change(func() {})
	}
}

// Reset breaks all streams between two hosts.
func (n *Network) Reset(a, b string) {
	n.mu.Lock()
	var list []*conn
	for c := range n.streams {
		x, y := hostOf(c.local), hostOf(c.remote)
		if x == a && y == b || x == b && y == a {
			list = append(list, c)
		}
	}
	n.mu.Unlock()
	for _, c := range list {
		c.reset()
	}
}

// Dials counts the streams that were connected so far.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Streams counts the open streams.
func (n *Network) Streams() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.streams)
}

func (n *Network) link(from, to string) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l, ok := n.links[[2]string{from, to}]; ok {
		return l
	}
	return n.all
}

func addr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

func hostOf(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// Host is a network seen from one IP address. Its methods have the signatures of
// package net, so that they fit into Dial and Listen settings.
type Host struct {
	n    *Network
	ip   string
	down atomic.Bool
}

// Host returns the host with this IP address.
func (n *Network) Host(ip string) *Host {
	netip.MustParseAddr(ip)
	return &Host{n: n, ip: ip}
}

// Down is the death of the host: its listeners and sockets are gone, its streams break, and it
// connects nobody any more. Network.Host makes its successor at the same address.
func (h *Host) Down() {
	if h.down.Swap(true) {
		return
	}
	n := h.n
	n.mu.Lock()
	var list []interface{ Close() error }
	for a, l := range n.listeners {
		if hostOf(addr(a)) == h.ip {
			list = append(list, l)
		}
	}
	for _, p := range n.packets {
		if hostOf(p.addr) == h.ip {
			list = append(list, p)
		}
	}
	var broken []*conn
	for c := range n.streams {
		if hostOf(c.local) == h.ip || hostOf(c.remote) == h.ip {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, l := range list {
		l.Close()
	}
	for _, c := range broken {
		c.reset()
	}
	n.set(func() {}) // who waits for a held link looks again
}

// alive is nil, or why nothing goes in or out.
func (h *Host) alive() error {
	if h.down.Load() {
		return syscall.ENETDOWN
	}
	return nil
}

// resolve completes ":port" and "0.0.0.0:port" with the host's own address and
// picks a port for 0.
func (h *Host) resolve(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = h.ip
	}
	if port == "0" {
		h.n.port++
		port = fmt.Sprint(h.n.port)
	}
	return net.JoinHostPort(host, port), nil
}

// Dial connects a stream.
func (h *Host) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "faultnet", Err: fmt.Errorf("%s: %w", address, err)}
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fail(err)
	}
	n, to := h.n, ap.Addr().String()
	for {
		n.mu.Lock()
		changed := n.changed
		n.mu.Unlock()
		if err := h.alive(); err != nil {
			return fail(err)
		}
		out, back := n.link(h.ip, to), n.link(to, h.ip)
		if !out.Hold && !back.Hold {
			if out.Refuse || out.Loss > 0 && n.dice.float() < out.Loss {
				return fail(syscall.ECONNREFUSED)
			}
			if d := out.Delay + back.Delay; d > 0 {
				t := time.NewTimer(d)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
					return fail(ctx.Err())
				}
			}
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	n.mu.Lock()
	l := n.listeners[address]
	n.port++
	local := addr(net.JoinHostPort(h.ip, fmt.Sprint(20000+n.port%40000)))
	n.mu.Unlock()
	if l == nil {
		return fail(syscall.ECONNREFUSED)
	}
	near, far := pair(n.dice, local, addr(address),
		func() Link { return n.link(h.ip, to) }, func() Link { return n.link(to, h.ip) })
	n.mu.Lock()
	n.streams[near] = struct{}{}
	n.dials++
	n.mu.Unlock()
	forget := func() {
		n.mu.Lock()
		delete(n.streams, near)
		n.mu.Unlock()
	}
	// A stream counts as open until one side has closed it.
	near.onClose, far.onClose = forget, forget
	select {
	case l.queue <- far:
		return near, nil
	case <-l.done:
	case <-ctx.Done():
	}
	near.Close()
	far.Close()
	return fail(syscall.ECONNREFUSED)
}

// Listen accepts streams.
func (h *Host) Listen(_, address string) (net.Listener, error) {
	if err := h.alive(); err != nil {
		return nil, &net.OpError{Op: "listen", Net: "faultnet", Err: err}
	}
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	address, err := h.resolve(address)
	if err != nil {
		return nil, err
	}
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "faultnet", Err: syscall.EADDRINUSE}
	}
	l := &listener{n: n, addr: address, queue: make(chan net.Conn, 128), done: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

type listener struct {
	n     *Network
	addr  string
	queue chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "faultnet", Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.n.mu.Lock()
		delete(l.n.listeners, l.addr)
		l.n.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.addr) }

// ListenPacket receives packets. A full queue loses them, as a socket does.
func (h *Host) ListenPacket(_, address string) (net.PacketConn, error) {
	if err := h.alive(); err != nil {
		return nil, &net.OpError{Op: "listen", Net: "faultnet", Err: err}
	}
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	address, err := h.resolve(address)
	if err != nil {
		return nil, err
	}
	if n.packets[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "faultnet", Err: syscall.EADDRINUSE}
	}
	p := &packetConn{h: h, addr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)), queue: make(chan packet, 1024), done: make(chan struct{})}
	n.packets[address] = p
	return p, nil
}

type packet struct {
	data []byte
	from net.Addr
}

// packetConn has no deadlines: nobody needs them.
type packetConn struct {
	h     *Host
	addr  *net.UDPAddr
	queue chan packet
	done  chan struct{}
	once  sync.Once
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-p.queue:
		return copy(b, m.data), m.from, nil
	case <-p.done:
		return 0, nil, &net.OpError{Op: "read", Net: "faultnet", Err: net.ErrClosed}
	}
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n := p.h.n
	l := n.link(p.h.ip, hostOf(to))
	if l.Hold || l.Silent || l.Loss > 0 && n.dice.float() < l.Loss {
		return len(b), nil
	}
	pa := path{dice: n.dice}
	m := packet{append([]byte(nil), b...), p.addr}
	pa.pass(m.data, Link{FlipEvery: l.FlipEvery})
	deliver := func() {
		n.mu.Lock()
		dst := n.packets[to.String()]
		n.mu.Unlock()
		if dst == nil {
			return
		}
		select {
		case dst.queue <- m:
		default:
		}
	}
	if d := l.Delay + time.Duration(n.dice.upTo(int64(l.Jitter))); d > 0 {
		time.AfterFunc(d, deliver)
	} else {
		deliver()
	}
	return len(b), nil
}

func (p *packetConn) Close() error {
	p.once.Do(func() {
		p.h.n.mu.Lock()
		delete(p.h.n.packets, p.addr.String())
		p.h.n.mu.Unlock()
		close(p.done)
	})
	return nil
}

func (p *packetConn) LocalAddr() net.Addr              { return p.addr }
func (p *packetConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (p *packetConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (p *packetConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
