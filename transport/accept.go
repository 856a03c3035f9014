package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// gate stands before the HTTP server: it accepts, authenticates and counts, so
// that a stranger costs one goroutine for a few milliseconds and at most one log
// line, and net/http sees only verified nodes. It is the net.Listener that
// http.Server serves.
type gate struct {
	s    *Server
	l    net.Listener
	out  chan net.Conn
	done chan struct{}
	once sync.Once
}

func newGate(s *Server, l net.Listener) *gate {
	return &gate{s: s, l: l, out: make(chan net.Conn), done: make(chan struct{})}
}

// Accept returns the next authenticated connection.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.out:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

func (g *gate) Close() error {
	var err error
	g.once.Do(func() {
		close(g.done)
		err = g.l.Close()
	})
	return err
}

func (g *gate) Addr() net.Addr { return g.l.Addr() }

// run accepts until the gate is closed. Running out of descriptors or memory
// makes it slow, never busy and never dead.
func (g *gate) run() error {
	pause := time.Duration(0)
	for {
		c, err := g.l.Accept()
		select {
		case <-g.done:
			if err == nil {
				c.Close()
			}
			return ErrClosed
		default:
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %v: %w", g.l.Addr(), err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.s.quiet.warn("accept", "cannot accept connections", "addr", g.l.Addr().String(), "err", err, "retry_in", pause)
			if sleep(g.s.ctx, pause) != nil {
				return ErrClosed
			}
			continue
		}
		pause = 0
		g.admit(c)
	}
}

// admit starts the handshake. If too many are pending, one of them gives way.
func (g *gate) admit(raw net.Conn) {
	s := g.s
	if err := s.cfg.tune(raw); err != nil {
		s.quiet.warn("sockopt", "socket settings refused by the kernel", "err", err)
	}
	conn := newGuard(raw, 0, s.cfg.WriteTimeout)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		raw.Close()
		return
	}
	s.conns[conn] = ""
	s.pending = append(s.pending, conn)
	var victim *guardConn
	if len(s.pending) > s.cfg.MaxHandshakes {
		victim = s.dropPending()
	}
	s.work.Add(1)
	s.mu.Unlock()
	if victim != nil {
		s.quiet.warn("pending", "too many connections that do not authenticate, dropping the oldest", "remote", victim.RemoteAddr().String(), "limit", s.cfg.MaxHandshakes)
		victim.Conn.Close()
	}
	go func() {
		defer s.work.Done()
		if err := g.handshake(conn); err != nil {
			s.forget(conn)
			raw.Close()
			if s.ctx.Err() == nil {
				s.complain(conn, err)
			}
		}
	}()
}

// dropPending removes the oldest handshake of the address that has most of them:
// an honest node needs milliseconds for one, and does not suffer for a neighbour.
// The caller holds mu.
func (s *Server) dropPending() *guardConn {
	count := map[string]int{}
	worst := ""
	for _, p := range s.pending {
		h := remoteHost(p)
		if count[h]++; count[h] > count[worst] {
			worst = h
		}
	}
	for i, p := range s.pending {
		if remoteHost(p) == worst {
			s.pending = append(s.pending[:i], s.pending[i+1:]...)
			return p
		}
	}
	return nil
}

func remoteHost(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

func (g *gate) handshake(conn *guardConn) error {
	s := g.s
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	tc := tls.Server(conn, s.tls)
	err := tc.HandshakeContext(ctx)
	s.mu.Lock()
	for i, p := range s.pending {
		if p == conn {
			s.pending = append(s.pending[:i], s.pending[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	cs := tc.ConnectionState()
	if err := s.enter(conn, PeerName(&cs)); err != nil {
		return err
	}
	select {
	case g.out <- tc:
		return nil
	case <-g.done:
		return ErrClosed
	}
}

// sniff remembers what a client tells before it is authenticated, for the log.
func (s *Server) sniff(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	conn, ok := hello.Conn.(*guardConn)
	if !ok {
		return nil, nil
	}
	conn.wanted = hello.ServerName
	for _, p := range hello.SupportedProtos {
		if name, ok := strings.CutPrefix(p, alpnNode); ok && checkName("node", name) == nil {
			conn.claims = name
		}
	}
	return nil, nil
}

// complain logs why a connection was not admitted, once in a while.
func (s *Server) complain(conn *guardConn, err error) {
	args := []any{"remote", conn.RemoteAddr().String()}
	if conn.claims != "" {
		args = append(args, "claims_to_be", conn.claims)
	}
	who := "a stranger"
	if conn.claims != "" {
		who = "node " + conn.claims
	}
	text := err.Error()
	switch {
	case errors.Is(err, ErrBusy):
		s.quiet.warn("busy", "connection refused: too many connections", append(args, "err", err)...)
	case conn.wanted != "" && !strings.EqualFold(conn.wanted, s.id.node):
		s.quiet.warn("wrong-node", who+" looks for node "+conn.wanted+" here; check its ips/ip-"+conn.wanted+" link", append(args, "wanted", conn.wanted, "here", s.id.node)...)
	case errors.Is(err, ErrSecret), strings.Contains(text, "bad certificate"), strings.Contains(text, "unknown certificate authority"):
		s.quiet.warn("secret", "connection refused: "+who+" "+ErrSecret.Error(), append(args, "err", err)...)
	default:
		s.quiet.warn("garbage", "connection refused: not a node of this cluster", append(args, "err", err)...)
	}
}

// enter counts an authenticated connection to its peer.
func (s *Server) enter(conn *guardConn, peer string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.admitted >= s.cfg.MaxConns {
		return fmt.Errorf("%w: %d connections", ErrBusy, s.admitted)
	}
	if n := s.perPeer[peer]; n >= s.cfg.MaxPeerConns {
		return fmt.Errorf("%w: %d connections of node %s", ErrBusy, n, peer)
	}
	s.conns[conn] = peer
	s.admitted++
	s.perPeer[peer]++
	return nil
}

// forget is the end of a connection, whatever state it was in.
func (s *Server) forget(conn *guardConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer, ok := s.conns[conn]
	if !ok {
		return
	}
	delete(s.conns, conn)
	if peer == "" {
		return
	}
	s.admitted--
	if s.perPeer[peer]--; s.perPeer[peer] == 0 {
		delete(s.perPeer, peer)
	}
}
