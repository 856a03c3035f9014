package transport

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// guardConn sits between TLS and the network. It bounds how long the network
// may make no progress at all in either direction, which works for links of any
// speed: a large frame on a thin line is fine as long as bytes move.
type guardConn struct {
	net.Conn

	readTimeout  atomic.Int64 // nanoseconds, 0 = none
	writeTimeout atomic.Int64

	mu            sync.Mutex
	writeDeadline time.Time // set from above, by tls.Conn.Close

	// What the client said before it was authenticated, for the server's log only.
	wanted, claims string

	class Class // of the latest request, server side
}

func newGuard(c net.Conn, read, write time.Duration) *guardConn {
	g := &guardConn{Conn: c, class: -1}
	g.readTimeout.Store(int64(read))
	g.writeTimeout.Store(int64(write))
	return g
}

func (g *guardConn) Read(p []byte) (int, error) {
	if d := g.readTimeout.Load(); d > 0 {
		if err := g.Conn.SetReadDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return g.Conn.Read(p)
}

// writePiece bounds what one write call has to get rid of within the timeout.
const writePiece = 64 << 10

func (g *guardConn) Write(p []byte) (int, error) {
	n := 0
	for {
		piece := p[n:min(len(p), n+writePiece)]
		if err := g.Conn.SetWriteDeadline(g.deadline()); err != nil {
			return n, err
		}
		m, err := g.Conn.Write(piece)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

func (g *guardConn) deadline() time.Time {
	t := time.Now().Add(time.Duration(g.writeTimeout.Load()))
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.writeDeadline.IsZero() && g.writeDeadline.Before(t) {
		return g.writeDeadline
	}
	return t
}

// SetWriteDeadline is remembered, so that it limits Write's own.
func (g *guardConn) SetWriteDeadline(t time.Time) error {
	g.mu.Lock()
	g.writeDeadline = t
	g.mu.Unlock()
	return g.Conn.SetWriteDeadline(t)
}

// SetDeadline splits as net.Conn says.
func (g *guardConn) SetDeadline(t time.Time) error {
	if err := g.Conn.SetReadDeadline(t); err != nil {
		return err
	}
	return g.SetWriteDeadline(t)
}
