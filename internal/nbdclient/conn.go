package nbdclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdproto"
)

// conn is one connection in the transmission phase.
type conn struct {
	nc         net.Conn
	rd         *bufio.Reader
	readerDone chan struct{}

	sendLock chan struct{} // holds an element while a request is written
	hdr      [nbdproto.RequestSize]byte

	mu      sync.Mutex
	calls   map[uint64]*call
	handle  uint64
	err     error
	goodbye bool // DISC is sent: an EOF is expected
}

// call is a request in flight.
type call struct {
	cmd   uint16
	off   int64
	n     int64
	data  []byte // READ: where the data goes; guarded by conn.mu
	got   int64  // READ: bytes that arrived
	err   error
	done  chan struct{}
	using bool // the reader is copying into data; guarded by conn.mu
	gone  bool // the caller has given up: data must not be touched; guarded by conn.mu
}

func dialConn(ctx context.Context, o Options) (*conn, ExportInfo, error) {
	r, err := DialRaw(ctx, o.Network, o.Address)
	if err != nil {
		return nil, ExportInfo{}, err
	}
	var info ExportInfo
	err = r.during(ctx, func() (err error) {
		info, err = r.Go(o.Export, !o.Simple)
		return err
	})
	if err != nil {
		r.Close()
		return nil, info, err
	}
	c := &conn{nc: r.Conn, rd: bufio.NewReaderSize(r.Conn, 64<<10), readerDone: make(chan struct{}), sendLock: make(chan struct{}, 1), calls: make(map[uint64]*call)}
	go c.readLoop()
	return c, info, nil
}

// do sends one request and waits for its answer.
func (c *conn) do(ctx context.Context, cmd uint16, flags Flag, off, n int64, data []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	cl := &call{cmd: cmd, off: off, n: n, done: make(chan struct{})}
	if cmd == nbdproto.CmdRead {
		cl.data = data
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("nbd %s: %w", nbdproto.CommandName(cmd), c.err)
	}
	c.handle++
	handle := c.handle
	c.calls[handle] = cl
	c.mu.Unlock()

	var payload []byte
	if cmd == nbdproto.CmdWrite {
		payload = data
	}
	select {
	case c.sendLock <- struct{}{}:
	case <-ctx.Done():
		return c.unsent(ctx, handle)
	}
	sent, err := c.send(ctx, cmd, flags, handle, off, n, payload)
	<-c.sendLock
	if err != nil {
		if sent == 0 && ctx.Err() != nil {
			return c.unsent(ctx, handle)
		}
		c.fail(fmt.Errorf("send: %w", err))
	}
	select {
	case <-cl.done:
		return cl.err
	case <-ctx.Done():
	}
	return c.abandon(ctx, cl)
}

// unsent takes back a call of which no byte was sent.
func (c *conn) unsent(ctx context.Context, handle uint64) error {
	c.mu.Lock()
	delete(c.calls, handle)
	c.mu.Unlock()
	return context.Cause(ctx)
}

// patience is how long an answer that has begun to arrive may take when its
// caller's context has ended.
const patience = time.Second

// abandon gives up a call whose request is sent; its answer will be dropped.
func (c *conn) abandon(ctx context.Context, cl *call) error {
	c.mu.Lock()
	cl.gone = true
	using := cl.using
	c.mu.Unlock()
	if !using {
		return context.Cause(ctx)
	}
	// The data is arriving this moment, into the caller's memory.
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-cl.done:
	case <-t.C:
		c.fail(fmt.Errorf("the server stopped in the middle of an answer: %w", context.Cause(ctx)))
		<-cl.done
	}
	return cl.err
}

// send writes one request and returns how many bytes went out; the caller holds sendLock. A context
// that ends in the middle breaks the connection: half a request cannot be taken back.
func (c *conn) send(ctx context.Context, cmd uint16, flags Flag, handle uint64, off, n int64, payload []byte) (int64, error) {
	nbdproto.PutRequest(c.hdr[:], &protocol.TransmissionRequestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
		CommandFlags: flags, Type: cmd, Handle: handle, Offset: uint64(off), Length: uint32(n),
	})
	if ctx.Done() != nil {
		hit := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			c.nc.SetWriteDeadline(time.Unix(1, 0))
			close(hit)
		})
		defer func() {
			if !stop() { // ended while we wrote: the deadline must not hit the next request
				<-hit
				c.nc.SetWriteDeadline(time.Time{})
			}
		}()
	}
	bufs := net.Buffers{c.hdr[:]}
	if len(payload) > 0 {
		bufs = append(bufs, payload)
	}
	sent, err := bufs.WriteTo(c.nc)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return sent, err
}

// readLoop receives replies until the connection ends.
func (c *conn) readLoop() {
	defer close(c.readerDone)
	for {
		if err := c.readReply(); err != nil {
			c.mu.Lock()
			if c.goodbye {
				err = ErrClosed
			} else if errors.Is(err, io.EOF) {
				err = fmt.Errorf("server closed the connection: %w", io.ErrUnexpectedEOF)
			}
			c.mu.Unlock()
			c.fail(err)
			c.failCalls()
			return
		}
	}
}

func (c *conn) lookup(handle uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.calls[handle]
	if cl == nil {
		return nil, fmt.Errorf("reply to unknown handle %#x", handle)
	}
	return cl, nil
}

func (c *conn) readReply() error {
	var p [nbdproto.ChunkHeaderSize]byte
	if _, err := io.ReadFull(c.rd, p[:nbdproto.SimpleReplySize]); err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(p[:]); magic {
	case protocol.TRANSMISSION_MAGIC_REPLY:
		return c.simpleReply(binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint64(p[8:]))
	case nbdproto.MagicStructuredReply:
		if _, err := io.ReadFull(c.rd, p[nbdproto.SimpleReplySize:]); err != nil {
			return err
		}
		return c.chunk(nbdproto.Chunk(p[:]))
	default:
		return fmt.Errorf("bad reply magic %#08x", magic)
	}
}

func (c *conn) simpleReply(errno uint32, handle uint64) error {
	cl, err := c.lookup(handle)
	if err != nil {
		return err
	}
	if errno != 0 {
		cl.err = &Error{Command: cl.cmd, Off: cl.off, Len: cl.n, Errno: syscall.Errno(errno)}
	} else if cl.cmd == nbdproto.CmdRead && cl.n > 0 {
		if err := c.into(cl, 0, cl.n); err != nil {
			return err
		}
	}
	c.finish(handle, cl)
	return nil
}

// into receives n bytes of a read's data at position at.
func (c *conn) into(cl *call, at, n int64) error {
	c.mu.Lock()
	gone := cl.gone
	cl.using = !gone
	c.mu.Unlock()
	if gone {
		_, err := io.CopyN(io.Discard, c.rd, n)
		return err
	}
	_, err := io.ReadFull(c.rd, cl.data[at:at+n])
	cl.got += n
	return err
}

func (c *conn) chunk(h nbdproto.ChunkHeader) error {
	cl, err := c.lookup(h.Handle)
	if err != nil {
		return err
	}
	switch {
	case h.Type == nbdproto.ChunkNone:
		if h.Length != 0 {
			return fmt.Errorf("empty chunk of %d bytes", h.Length)
		}
	case h.Type == nbdproto.ChunkOffsetData && cl.cmd == nbdproto.CmdRead && h.Length > nbdproto.ChunkOffsetSize:
		at, err := c.chunkOffset(cl, int64(h.Length)-nbdproto.ChunkOffsetSize)
		if err != nil {
			return err
		}
		if err := c.into(cl, at, int64(h.Length)-nbdproto.ChunkOffsetSize); err != nil {
			return err
		}
	case h.Type == nbdproto.ChunkOffsetHole && cl.cmd == nbdproto.CmdRead && h.Length == nbdproto.ChunkOffsetSize+4:
		if err := c.hole(cl); err != nil {
			return err
		}
	case h.Type&nbdproto.ChunkErrBit != 0 && h.Length <= nbdproto.MaxName+64:
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(c.rd, p); err != nil {
			return err
		}
		errno, text, err := parseErrorChunk(p)
		if err != nil {
			return err
		}
		if cl.err == nil {
			cl.err = &Error{Command: cl.cmd, Off: cl.off, Len: cl.n, Errno: syscall.Errno(errno), Text: text}
		}
	default:
		return fmt.Errorf("chunk of type %#x and %d bytes does not fit to %s", h.Type, h.Length, nbdproto.CommandName(cl.cmd))
	}
	if h.Flags&nbdproto.ChunkDone == 0 {
		return nil
	}
	if cl.err == nil && cl.cmd == nbdproto.CmdRead && cl.got < cl.n && !c.isGone(cl) {
		cl.err = fmt.Errorf("nbd READ of %d bytes at %d: the server sent %d: %w", cl.n, cl.off, cl.got, io.ErrUnexpectedEOF)
	}
	c.finish(h.Handle, cl)
	return nil
}

func (c *conn) isGone(cl *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cl.gone
}

// chunkOffset reads the offset of a chunk and checks that n bytes from there belong to the request.
func (c *conn) chunkOffset(cl *call, n int64) (int64, error) {
	var p [8]byte
	if _, err := io.ReadFull(c.rd, p[:]); err != nil {
		return 0, err
	}
	off := binary.BigEndian.Uint64(p[:])
	if off < uint64(cl.off) || off-uint64(cl.off) > uint64(cl.n) || n > cl.n-int64(off-uint64(cl.off)) {
		return 0, fmt.Errorf("chunk of %d bytes at %d outside of the read of %d at %d", n, off, cl.n, cl.off)
	}
	return int64(off) - cl.off, nil
}

func (c *conn) hole(cl *call) error {
	var p [12]byte
	q, err := c.rd.Peek(len(p))
	if err != nil {
		return err
	}
	copy(p[:], q)
	n := int64(binary.BigEndian.Uint32(p[8:]))
	at, err := c.chunkOffset(cl, n)
	if err != nil {
		return err
	}
	if _, err := c.rd.Discard(4); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !cl.gone {
		clear(cl.data[at : at+n])
		cl.got += n
	}
	return nil
}

func (c *conn) finish(handle uint64, cl *call) {
	c.mu.Lock()
	delete(c.calls, handle)
	c.mu.Unlock()
	close(cl.done)
}

// fail ends the connection: requests in flight and later ones get the first err.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.nc.Close() // ends the reader, which ends the calls
	}
}

// failCalls ends all calls, when the reader touches them no more and no new ones come.
func (c *conn) failCalls() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for handle, cl := range c.calls {
		delete(c.calls, handle)
		cl.err = fmt.Errorf("nbd %s of %d bytes at %d: %w", nbdproto.CommandName(cl.cmd), cl.n, cl.off, c.err)
		close(cl.done)
	}
}

// close says goodbye.
func (c *conn) close() {
	c.mu.Lock()
	bad := c.err != nil
	c.goodbye = true
	c.mu.Unlock()
	if !bad {
		t := time.AfterFunc(time.Second, func() { c.nc.SetWriteDeadline(time.Unix(1, 0)) })
		c.sendLock <- struct{}{} // a sender that is stuck is freed by the deadline
		c.send(context.Background(), nbdproto.CmdDisc, 0, 0, 0, 0, nil)
		<-c.sendLock
		t.Stop()
	}
	c.fail(ErrClosed)
	<-c.readerDone
}
