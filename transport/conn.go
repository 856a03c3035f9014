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

	in  inBuffer
	out outBuffer
}

// TLS reads and writes the network in records of 16 KiB and less; half of the
// time of a fast link would go into system calls. The buffers join them while
// data flows, and hold no memory while it does not.
const ioSize = 128 << 10

// inBuffer is used by whoever reads; TLS sees to it that it is one at a time.
type inBuffer struct {
	on    bool // client side only: that is where bulk data arrives
	hot   bool // the latest read was full, so there is more to come
	buf   *[]byte
	rest  []byte
	whole bool // rest came from a read that filled the buffer
}

// outBuffer collects what is written between cork and uncork. The lock is for
// the alert that tls.Conn.Close sends from another goroutine.
type outBuffer struct {
	mu     sync.Mutex
	corked bool
	buf    *[]byte
	n      int
}

func newGuard(c net.Conn, read, write time.Duration) *guardConn {
	g := &guardConn{Conn: c, class: -1}
	g.readTimeout.Store(int64(read))
	g.writeTimeout.Store(int64(write))
	return g
}

func (g *guardConn) Read(p []byte) (int, error) {
	in := &g.in
	if len(in.rest) == 0 && !(in.on && in.hot && len(p) < ioSize) {
		n, err := g.read(p)
		in.hot = n == len(p)
		return n, err
	}
	if len(in.rest) == 0 {
		in.buf = getBuffer(ioSize)
		buf := (*in.buf)[:ioSize]
		n, err := g.read(buf)
		in.rest, in.whole = buf[:n], n == ioSize
		if n == 0 {
			in.drop()
			return 0, err
		}
		// An error beside data comes again with the next read.
	}
	n := copy(p, in.rest)
	if in.rest = in.rest[n:]; len(in.rest) == 0 {
		in.drop()
	}
	return n, nil
}

func (in *inBuffer) drop() {
	putBuffer(in.buf)
	in.buf, in.rest, in.hot = nil, nil, in.whole
	in.whole = false
}

func (g *guardConn) read(p []byte) (int, error) {
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
	o := &g.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.corked {
		return g.write(p)
	}
	n := 0
	for n < len(p) {
		if o.buf == nil {
			o.buf = getBuffer(ioSize)
		}
		m := copy((*o.buf)[o.n:ioSize], p[n:])
		n += m
		if o.n += m; o.n == ioSize {
			if err := g.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// cork collects writes until uncork, whose error is theirs.
func (g *guardConn) cork() {
	g.out.mu.Lock()
	defer g.out.mu.Unlock()
	g.out.corked = true
}

func (g *guardConn) uncork() error {
	g.out.mu.Lock()
	defer g.out.mu.Unlock()
	g.out.corked = false
	return g.flush()
}

// flush needs the lock.

func (g *guardConn) flush() error {
	o := &g.out
	if o.buf == nil {
		return nil
	}
	_, err := g.write((*o.buf)[:o.n])
	putBuffer(o.buf)
	o.buf, o.n = nil, 0
	return err
}

func (g *guardConn) write(p []byte) (int, error) {
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
