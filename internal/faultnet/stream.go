package faultnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Buffer is how many bytes one direction of a stream holds before Write blocks.
const Buffer = 256 << 10

type segment struct {
	data []byte
	due  time.Time
}

// half is one direction of a stream in memory.
type half struct {
	link func() Link
	path path

	mu     sync.Mutex
	wake   chan struct{} // closed and replaced at each change
	queue  []segment
	size   int
	closed bool // by the writer: EOF after the queue
	gone   bool // by the reader: nobody takes anything any more
	err    error

	readDeadline, writeDeadline time.Time
}

func newHalf(d *dice, link func() Link) *half {
	return &half{link: link, path: path{dice: d}, wake: make(chan struct{})}
}

// change runs f under the lock and wakes everybody.
func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.wake)
	h.wake = make(chan struct{})
}

// wait releases the lock until something changed or the time is reached; a zero
// time never is.
func (h *half) wait(until ...time.Time) {
	var first time.Time
	for _, t := range until {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	wake := h.wake
	h.mu.Unlock()
	defer h.mu.Lock()
	if first.IsZero() {
		<-wake
		return
	}
	t := time.NewTimer(time.Until(first))
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	}
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		var due time.Time
		hold, empty := h.link().Hold, len(h.queue) == 0
		switch {
		case h.gone:
			return 0, net.ErrClosed
		case expired(h.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case !hold && !empty && !time.Now().Before(h.queue[0].due):
			return h.take(p), nil
		case h.err != nil && (hold || empty):
			return 0, h.err
		case !hold && !empty:
			due = h.queue[0].due
		case !hold && h.closed:
			return 0, io.EOF
		}
		h.wait(h.readDeadline, due)
	}
}

// take moves all bytes that have arrived into p.
func (h *half) take(p []byte) int {
	n := 0
	for n < len(p) && len(h.queue) > 0 && !time.Now().Before(h.queue[0].due) {
		s := &h.queue[0]
		m := copy(p[n:], s.data)
		n += m
		if s.data = s.data[m:]; len(s.data) == 0 {
			h.queue = h.queue[1:]
		}
	}
	h.size -= n
	close(h.wake)
	h.wake = make(chan struct{})
	return n
}

func (h *half) write(p []byte) (n int, err error, reset bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n < len(p) {
		switch {
		case h.closed:
			return n, net.ErrClosed, false
		case h.err != nil:
			return n, h.err, false
		case h.gone:
			return n, errReset("write"), false
		case expired(h.writeDeadline):
			return n, os.ErrDeadlineExceeded, false
		}
		room := Buffer - h.size
		if room <= 0 {
			h.wait(h.writeDeadline)
			continue
		}
		l := h.link()
		piece := append([]byte(nil), p[n:min(len(p), n+room)]...)
		m, broken := h.path.pass(piece, l)
		n += m
		if m > 0 && !l.Silent {
			h.push(piece[:m], l)
			close(h.wake)
			h.wake = make(chan struct{})
		}
		if broken {
			return n, errReset("write"), true
		}
	}
	return n, nil, false
}

// mss is the largest part of a stream that arrives at once on a slow line.
const mss = 1460

func (h *half) push(p []byte, l Link) {
	h.size += len(p)
	for len(p) > 0 {
		n := len(p)
		if l.Rate > 0 {
			n = min(n, mss)
		}
		due := h.path.due(n, l)
		if k := len(h.queue); k > 0 && due.Before(h.queue[k-1].due) {
			due = h.queue[k-1].due // a stream stays in order
		}
		h.queue = append(h.queue, segment{p[:n], due})
		p = p[n:]
	}
}

// conn is one end of a stream in memory.
type conn struct {
	in, out       *half
	local, remote net.Addr
	onClose       func()
	once          sync.Once
}

// pair connects two addresses.
func pair(d *dice, a, b net.Addr, aToB, bToA func() Link) (*conn, *conn) {
	ab, ba := newHalf(d, aToB), newHalf(d, bToA)
	return &conn{in: ba, out: ab, local: a, remote: b}, &conn{in: ab, out: ba, local: b, remote: a}
}

// Pipe is a buffered stream without a network around it.
func Pipe() (net.Conn, net.Conn) {
	perfect := func() Link { return Link{} }
	a, b := pair(newDice(0), addr("10.0.0.1:1"), addr("10.0.0.2:2"), perfect, perfect)
	return a, b
}

func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.in.read(p)
	return n, wrapOp("read", err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err, reset := c.out.write(p)
	if reset {
		c.reset()
	}
	return n, wrapOp("write", err)
}

func wrapOp(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if _, ok := err.(*net.OpError); ok {
		return err
	}
	return &net.OpError{Op: op, Net: "faultnet", Err: err}
}

func (c *conn) Close() error {
	err := error(net.ErrClosed)
	c.once.Do(func() {
		err = nil
		c.out.change(func() { c.out.closed = true })
		c.in.change(func() { c.in.gone, c.in.queue, c.in.size = true, nil, 0 })
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// reset breaks the stream for both sides; what is in flight still arrives unless
// the link is held.
func (c *conn) reset() {
	for _, h := range []*half{c.in, c.out} {
		h.change(func() { h.err = errReset("read") })
	}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.readDeadline = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.change(func() { c.out.writeDeadline = t })
	return nil
}
