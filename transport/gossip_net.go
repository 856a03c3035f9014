package transport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network is where gossip gets its sockets from; nil functions mean the real
// ones. faultnet.Host fits.
type Network struct {
	Listen       func(network, addr string) (net.Listener, error)
	ListenPacket func(network, addr string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, addr string) (net.Conn, error)
}

// maxGossipStreams bounds the incoming streams that are open at a time.
const maxGossipStreams = 256

// gossipNet is a memberlist.Transport that ends when it is told to: its dials
// are cancelled and its streams closed, so that nothing of memberlist waits for a
// peer that does not answer.
type gossipNet struct {
	net       Network
	log       *slog.Logger
	quiet     *quietLog
	listener  net.Listener
	packets   net.PacketConn
	advertise netip.AddrPort
	packetCh  chan *memberlist.Packet
	streamCh  chan net.Conn
	ctx       context.Context
	cancel    context.CancelFunc
	work      sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	streams map[*gossipStream]struct{}
	inbound int
}

func newGossipNet(n Network, bind string, advertise netip.AddrPort, log *slog.Logger, quiet *quietLog) (*gossipNet, error) {
	if n.Listen == nil {
		n.Listen = net.Listen
	}
	if n.ListenPacket == nil {
		n.ListenPacket = net.ListenPacket
	}
	if n.Dial == nil {
		n.Dial = (&net.Dialer{}).DialContext
	}
	g := &gossipNet{
		net: n, log: log, quiet: quiet, advertise: advertise,
		packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn), streams: map[*gossipStream]struct{}{},
	}
	var err error
	if g.listener, err = n.Listen("tcp", bind); err != nil {
		return nil, err
	}
	// The same port for both, also when the kernel chose it.
	if g.packets, err = n.ListenPacket("udp", g.listener.Addr().String()); err != nil {
		g.listener.Close()
		return nil, err
	}
	if uc, ok := g.packets.(*net.UDPConn); ok {
		uc.SetReadBuffer(2 << 20) // best effort
	}
	if err := g.choose(); err != nil {
		g.listener.Close()
		g.packets.Close()
		return nil, err
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.work.Go(g.accept)
	g.work.Go(g.receive)
	return g, nil
}

// choose completes the advertised address from the bound one.
func (g *gossipNet) choose() error {
	bound, err := netip.ParseAddrPort(g.listener.Addr().String())
	if err != nil {
		return err
	}
	ip, port := g.advertise.Addr(), g.advertise.Port()
	if !ip.IsValid() {
		ip = bound.Addr()
	}
	if ip.IsUnspecified() {
		return fmt.Errorf("bound to %v, which is no address that peers could use: set the address to advertise", bound)
	}
	if port == 0 {
		port = bound.Port()
	}
	g.advertise = netip.AddrPortFrom(ip.Unmap(), port)
	return nil
}

func (g *gossipNet) accept() {
	pause := time.Duration(0)
	for {
		c, err := g.listener.Accept()
		if g.ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil {
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.quiet.warn("accept", "cannot accept gossip connections", "err", err, "retry_in", pause)
			if sleep(g.ctx, pause) != nil {
				return
			}
			continue
		}
		pause = 0
		s := g.track(c, true)
		if s == nil {
			g.quiet.warn("streams", "too many gossip connections, dropping one", "remote", c.RemoteAddr().String(), "limit", maxGossipStreams)
			continue
		}
		select {
		case g.streamCh <- s:
		case <-g.ctx.Done():
			s.Close()
			return
		}
	}
}

func (g *gossipNet) receive() {
	buf := make([]byte, 65536)
	for {
		n, from, err := g.packets.ReadFrom(buf)
		now := time.Now()
		if g.ctx.Err() != nil {
			return
		}
		if err != nil {
			// On UDP these are stray ICMP errors; more of them come slowly.
			g.quiet.warn("packet", "cannot receive gossip packets", "err", err)
			if sleep(g.ctx, 10*time.Millisecond) != nil {
				return
			}
			continue
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: now}
		select {
		case g.packetCh <- p:
		case <-g.ctx.Done():
			return
		}
	}
}

// gossipStream tells when it is closed.
type gossipStream struct {
	net.Conn
	g       *gossipNet
	inbound bool
	once    sync.Once
}

func (s *gossipStream) Close() error {
	s.once.Do(func() {
		s.g.mu.Lock()
		defer s.g.mu.Unlock()
		delete(s.g.streams, s)
		if s.inbound {
			s.g.inbound--
		}
	})
	return s.Conn.Close()
}

// track returns nil, and closes c, if there may be no more streams.
func (g *gossipNet) track(c net.Conn, inbound bool) *gossipStream {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || inbound && g.inbound >= maxGossipStreams {
		c.Close()
		return nil
	}
	s := &gossipStream{Conn: c, g: g, inbound: inbound}
	g.streams[s] = struct{}{}
	if inbound {
		g.inbound++
	}
	return s
}

// FinalAdvertiseAddr has been decided at the start.
func (g *gossipNet) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(g.advertise.Addr().AsSlice()), int(g.advertise.Port()), nil
}

func (g *gossipNet) WriteTo(b []byte, addr string) (time.Time, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = g.packets.WriteTo(b, net.UDPAddrFromAddrPort(ap))
	return time.Now(), err
}

func (g *gossipNet) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return g.WriteTo(b, a.Addr)
}

func (g *gossipNet) PacketCh() <-chan *memberlist.Packet { return g.packetCh }

func (g *gossipNet) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(g.ctx, timeout)
	defer cancel()
	c, err := g.net.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if s := g.track(c, false); s != nil {
		return s, nil
	}
	return nil, ErrClosed
}

func (g *gossipNet) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return g.DialTimeout(a.Addr, timeout)
}

func (g *gossipNet) StreamCh() <-chan net.Conn { return g.streamCh }

// Shutdown ends everything that could make memberlist wait.
func (g *gossipNet) Shutdown() error {
	g.mu.Lock()
	g.closed = true
	list := make([]*gossipStream, 0, len(g.streams))
	for s := range g.streams {
		list = append(list, s)
	}
	g.mu.Unlock()
	g.cancel()
	g.listener.Close()
	g.packets.Close()
	for _, s := range list {
		s.Close()
	}
	g.work.Wait()
	return nil
}
