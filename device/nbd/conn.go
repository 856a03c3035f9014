package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/nbdproto"
)

// conn is one client. Its goroutine does the handshake, then receives, decodes
// and dispatches requests, batch by batch: see receive.go and batch.go.
type conn struct {
	srv  *Server
	nc   net.Conn
	door *door // through which it came
	id   uint64
	peer string
	log  *slog.Logger

	stopping atomic.Bool
	stopMu   sync.Mutex
	wire     wire        // from the end of the handshake on; guarded by stopMu
	killer   *time.Timer // shuts a connection that does not drain; guarded by stopMu

	exp        *export
	structured bool
	status     bool // base:allocation is negotiated
	out        *outbox
	rx         receiver
	batch      batch
	replies    replies
	habit      habit
}

func newConn(s *Server, nc net.Conn, d *door, id uint64) *conn {
	peer := peerName(nc)
	return &conn{srv: s, nc: nc, door: d, id: id, peer: peer, log: s.log.With(keyConn, id, keyPeer, peer)}
}

// find, attach and list make conn the directory of its handshake.
func (c *conn) find(name string) (*export, error)   { return c.srv.find(c.door.only, name) }
func (c *conn) attach(name string) (*export, error) { return c.srv.attach(c, name) }
func (c *conn) list() []Export                      { return c.srv.list(c.door.only) }

// run is the life of the connection.
func (c *conn) run() {
	defer c.nc.Close()
	c.nc.SetDeadline(time.Now().Add(c.srv.cfg.HandshakeTimeout))
	ses, err := negotiate(c.nc, c, c.door)
	if ses.exp != nil {
		c.exp, c.structured, c.status = ses.exp, ses.structured, ses.status
		defer func() {
			c.nc.Close() // what is reported as gone is gone
			c.srv.detach(c, c.exp)
		}()
	}
	if err != nil {
		c.handshakeFailed(err)
		return
	}
	c.nc.SetDeadline(time.Time{})
	c.log = c.log.With(keyExport, c.exp.Name)
	c.transmit(ses.tls)
}

func (c *conn) handshakeFailed(err error) {
	switch {
	case errors.Is(err, errAborted), errors.Is(err, io.EOF), c.stopping.Load():
		c.log.Debug("nbd: handshake ended", keyErr, err)
	case errors.Is(err, ErrUnknownExport):
		c.log.Info("nbd: client refused", keyErr, err)
	default:
		c.log.Warn("nbd: handshake failed, connection closed", keyErr, err)
	}
}

// transmit is the transmission phase, from the first request to the last reply.
func (c *conn) transmit(secure *tls.Conn) {
	var w wire
	if secure != nil {
		w = &connWire{nc: secure, raw: c.nc}
	} else {
		w = newWire(c.nc)
	}
	defer w.Close()
	c.stopMu.Lock()
	c.wire = w
	if c.stopping.Load() {
		w.StopReading()
		c.armKiller()
	}
	c.stopMu.Unlock()
	c.out = newOutbox(w, c.srv.cfg)
	c.rx = receiver{w: w, buf: c.srv.receiveBuffer()}
	defer c.srv.releaseReceiveBuffer(c.rx.buf)
	c.log.Info("nbd: client connected", keyTLS, secure != nil, keyOpen, c.srv.OpenCount(c.exp.Name))

	err := c.loop()
	var bad *streamError
	if errors.As(err, &bad) {
		c.log.Warn("nbd: protocol error, connection closed", keyErr, err)
	}
	// The backend finishes what it has; the client gets DrainTimeout to take its replies.
	c.out.answered(c.srv.cfg.DrainTimeout)
	c.stopMu.Lock()
	c.armKiller()
	c.stopMu.Unlock()
	drainErr := c.out.drained()
	c.stopMu.Lock()
	c.killer.Stop()
	c.stopMu.Unlock()
	if drainErr != nil && bad == nil {
		err = drainErr
	}
	c.log.Info("nbd: client gone", keyErr, err)
}

// errDisconnected is the orderly end (DISC).
var errDisconnected = errors.New("client disconnected")

// loop receives and executes batches until the client leaves, the stream breaks or stop is called.
func (c *conn) loop() error {
	for {
		room, err := c.out.room()
		if err != nil {
			return err
		}
		if c.stopping.Load() {
			return errStopped
		}
		if err := c.receive(room); err != nil {
			return err
		}
		c.execute()
		if c.rx.large != nil {
			c.rx.large.free() // an idle connection keeps no large memory
			c.rx.large = nil
		}
		if c.batch.disc {
			return errDisconnected
		}
	}
}

var errStopped = errors.New("disconnected by the server")

// stop makes the connection end: no further request is taken, those in flight are
// answered. It does not wait.
func (c *conn) stop() {
	c.stopMu.Lock()
	defer c.stopMu.Unlock()
	if c.stopping.Swap(true) {
		return
	}
	if c.wire == nil {
		c.nc.SetDeadline(time.Unix(1, 0)) // ends the handshake
		return
	}
	c.wire.StopReading()
	c.armKiller()
}

// armKiller bounds the time that the client has to take what it is owed. It needs stopMu.
func (c *conn) armKiller() {
	if c.killer == nil {
		c.killer = time.AfterFunc(c.srv.cfg.DrainTimeout, c.wire.Shutdown)
	}
}

// receiver is the receiving half: bytes [r, n) of buf are received and not yet decoded.
type receiver struct {
	w   wire
	buf []byte
	r,
	n int
	skip  int     // payload bytes of a refused request still to come
	large *buffer // payload of the batch's only request, if it did not fit into buf
}

// pending is what is received and not yet decoded.
func (x *receiver) pending() []byte { return x.buf[x.r:x.n] }

// fill receives once more. It moves a request that was begun to the front when it needs
// the space: want is how many bytes of it there are to be in all.
func (x *receiver) fill(want int) error {
	if x.r == x.n {
		x.r, x.n = 0, 0
	} else if len(x.buf)-x.r < want {
		x.n = copy(x.buf, x.buf[x.r:x.n])
		x.r = 0
	}
	n, err := x.w.Read(x.buf[x.n:])
	x.n += n
	if errors.Is(err, io.EOF) && (x.n > x.r || x.skip > 0) {
		err = fmt.Errorf("in the middle of a request: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// receive decodes requests into the batch: at least one, and then whatever is
// there already, at most room.
func (c *conn) receive(room int) error {
	c.batch.reset()
	for {
		lim := c.limits()
		want, err := c.decode(lim, room)
		if c.batch.len() > 0 {
			return nil // an error comes back next time, behind what was in front of it
		}
		if err != nil {
			return err
		}
		if err := c.rx.fill(want); err != nil {
			return err
		}
		if c.stopping.Load() {
			return errStopped
		}
	}
}

// limits are asked for anew whenever something was received.
func (c *conn) limits() limits {
	e := c.exp
	return limits{
		size: e.Backend.Size(), trans: e.trans, structured: c.structured, status: c.status,
		slowZeroes: e.sparse != nil && !e.sparse.FastZeroes(),
	}
}

// decode takes complete requests out of the receive buffer. It returns how many
// bytes the next one needs.
func (c *conn) decode(lim limits, room int) (want int, err error) {
	x := &c.rx
	for c.batch.len() < room && !c.batch.disc {
		p := x.pending()
		if x.skip > 0 {
			n := min(x.skip, len(p))
			x.r += n
			x.skip -= n
			if x.skip > 0 {
				return 1, nil
			}
			c.batch.refuse(c.batch.skipped, c.batch.why)
			continue
		}
		if len(p) < nbdproto.RequestSize {
			return nbdproto.RequestSize, nil
		}
		r, err := decodeRequest(p)
		if err != nil {
			return 0, err
		}
		no := lim.check(r)
		end := nbdproto.RequestSize + r.payload()
		switch {
		case no != nil && len(p) < end:
			x.r, x.skip = x.n, end-len(p)
			c.batch.skipped, c.batch.why = r, no
		case no != nil:
			x.r += end
			c.batch.refuse(r, no)
		case len(p) >= end:
			x.r += end
			c.batch.add(r, p[nbdproto.RequestSize:end:end])
		case end <= len(x.buf):
			return end, nil
		case c.batch.len() > 0:
			return 0, nil // does not fit: goes alone, after the others
		default:
			return 0, c.receiveLarge(r)
		}
	}
	return 0, nil
}

// receiveLarge receives a payload that does not fit into the receive buffer.
func (c *conn) receiveLarge(r request) error {
	x := &c.rx
	x.large = getBuffer(r.payload())
	data := x.large.take(r.payload())
	have := copy(data, x.pending()[nbdproto.RequestSize:])
	x.r, x.n = 0, 0
	for have < len(data) {
		n, err := x.w.Read(data[have:])
		have += n
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("in the middle of a request: %w", io.ErrUnexpectedEOF)
			}
			return err
		}
	}
	c.batch.add(r, data)
	return nil
}
