package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Frames grow while the network takes them quickly and shrink while it does
// not, so that a thin or flaky line loses little with a broken frame.
const (
	minPiece  = 16 << 10
	quickSend = 50 * time.Millisecond
	slowSend  = 500 * time.Millisecond
)

func checkLogName(name string) error {
	if name == "" || len(name) > 255 || strings.HasPrefix(name, ".") {
		return fmt.Errorf("%w: log name %q", ErrRefused, name)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == '/' {
			return fmt.Errorf("%w: log name %q has a bad character", ErrRefused, name)
		}
	}
	return nil
}

// resourceLog is the logfile that a request is about.
func (c *call) resourceLog() (resource, name string, err error) {
	if resource, err = c.resource(); err != nil {
		return "", "", err
	}
	name = c.r.PathValue("log")
	return resource, name, checkLogName(name)
}

// log is a subscription to one logfile.
func (c *call) log() error {
	resource, name, err := c.resourceLog()
	if err != nil {
		return err
	}
	off, err := c.length("offset")
	if err != nil {
		return err
	}
	ctx, done := c.subscribe("log " + resource + " " + name)
	defer done()
	src, err := c.s.h.OpenLog(ctx, c.peer, resource, name)
	if err != nil {
		return err
	}
	defer src.Close()
	durable, sealed, err := src.Wait(ctx, -1)
	if err != nil {
		return err
	}
	if off > durable {
		return fmt.Errorf("%w: %s of %s has %d durable bytes on node %s, asked for offset %d", ErrBeyond, name, resource, durable, c.s.id.node, off)
	}
	fw := c.frames(ctx)
	ls := &logStream{frameWriter: fw, src: src, off: off, durable: durable, sealed: sealed}
	err = ls.run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fw.failed(err, off)
}

// frameWriter sends frames of one reply.
type frameWriter struct {
	c       *call
	ctx     context.Context
	rc      *http.ResponseController
	conn    *guardConn
	started bool
	beatAt  frame // what a heartbeat says
	piece   int
	packer  *packer       // nil: the peer takes no compressed frames
	took    time.Duration // for the latest piece
	small   [frameHeader]byte
}

func (c *call) frames(ctx context.Context) *frameWriter {
	fw := &frameWriter{c: c, ctx: ctx, rc: http.NewResponseController(c.w), conn: c.conn, piece: 64 << 10}
	if slices.Contains(strings.Split(c.r.URL.Query().Get("accept"), ","), acceptLZ4) {
		fw.packer = &c.lane.packers[c.class]
	}
	return fw
}

func (fw *frameWriter) start() {
	if !fw.started {
		fw.started = true
		h := fw.c.w.Header()
		h.Set("Content-Type", "application/x-mars-frames")
		if fw.c.class == ClassLog {
			// No chunks: the frames are frame enough, and the connection has served its
			// purpose when the stream ends.
			h.Set("Transfer-Encoding", "identity")
		}
	}
}

// raw sends a header and payload that lie together in b.
func (fw *frameWriter) raw(b []byte) error {
	fw.start()
	fw.conn.cork()
	_, err := fw.c.w.Write(b)
	if err == nil {
		err = fw.rc.Flush()
	}
	if uerr := fw.conn.uncork(); err == nil {
		err = uerr
	}
	if err != nil {
		return &sentError{err}
	}
	return nil
}

func (fw *frameWriter) beat() error {
	f := fw.beatAt
	f.flags, f.payload = flagHeartbeat, nil
	putHeader(fw.small[:], f)
	return fw.raw(fw.small[:])
}

// data sends buf, whose payload begins at frameHeader, when the token buckets
// allow it; compressed if that pays.
func (fw *frameWriter) data(buf []byte, f frame) error {
	raw := len(buf) - frameHeader
	if fw.c.class == ClassSync {
		if err := fw.c.lane.yield(fw.ctx, fw.took, fw.c.s.cfg.HeartbeatInterval, fw.beat); err != nil {
			return err
		}
	}
	if fw.packer != nil && fw.packer.worthwhile(raw) {
		b := getBuffer(len(buf))
		defer putBuffer(b)
		if n := fw.packer.pack((*b)[frameHeader:len(buf)], buf[frameHeader:]); n > 0 {
			buf = (*b)[:frameHeader+n]
			f.flags |= flagCompressed
			fw.c.s.lanes.packing.used.Add(1)
		}
	}
	f.payload = buf[frameHeader:]
	begin := time.Now()
	if err := fw.c.allow(fw.ctx, len(buf), fw.beat); err != nil {
		return err
	}
	limited := time.Since(begin)
	putHeader(buf, f)
	if err := fw.raw(buf); err != nil {
		return err
	}
	total := time.Since(begin)
	fw.took = total - limited
	sent := &fw.c.s.lanes.sent[fw.c.class]
	sent.raw.Add(int64(raw))
	sent.wire.Add(int64(len(buf)))
	if fw.packer != nil {
		fw.packer.sent(len(buf), total, fw.conn)
	}
	if fw.c.class == ClassLog {
		fw.c.lane.held(fw.took)
	}
	switch {
	case fw.took < quickSend:
		fw.piece = min(2*fw.piece, MaxFrame)
	case fw.took > slowSend:
		fw.piece = max(fw.piece/2, minPiece)
	}
	return nil
}

// size is the payload to send next if n bytes are at hand.
func (fw *frameWriter) size(n int64) int {
	return int(min(n, int64(fw.piece), int64(fw.c.piece())))
}

// failed puts err into the stream, or returns it to be answered if the stream
// has not begun.
func (fw *frameWriter) failed(err error, off int64) error {
	var sent *sentError
	if errors.As(err, &sent) || !fw.started {
		return err
	}
	we, _ := encodeError(err)
	text, merr := json.Marshal(we)
	if merr != nil {
		return &sentError{errors.Join(err, merr)}
	}
	buf := make([]byte, frameHeader+len(text))
	copy(buf[frameHeader:], text)
	putHeader(buf, frame{flags: flagError, offset: off, durable: off, payload: text})
	fw.raw(buf)
	return &sentError{err}
}

// logStream sends a logfile from off to its sealed end. It never sends a byte
// beyond what the source called durable.
type logStream struct {
	*frameWriter
	src     LogSource
	off     int64
	durable int64
	sealed  bool
}

func (ls *logStream) run() error {
	// The first frame goes out at once: the subscriber learns that it stands, and
	// the durable length.
	ls.beatAt = frame{offset: ls.off, durable: ls.durable}
	if err := ls.beat(); err != nil {
		return err
	}
	for {
		var err error
		switch {
		case ls.off < ls.durable:
			err = ls.send()
			if err == nil && ls.sealed && ls.off == ls.durable {
				return nil
			}
		case ls.sealed:
			putHeader(ls.small[:], frame{flags: flagSealed, offset: ls.off, durable: ls.durable})
			return ls.raw(ls.small[:])
		default:
			err = ls.wait()
		}
		if err != nil {
			return err
		}
		ls.beatAt = frame{offset: ls.off, durable: ls.durable}
	}
}

func (ls *logStream) send() error {
	n := ls.size(ls.durable - ls.off)
	b := getBuffer(frameHeader + n)
	defer putBuffer(b)
	buf := (*b)[:frameHeader+n]
	if m, err := ls.src.ReadAt(buf[frameHeader:], ls.off); m < n {
		if err == nil || err == io.EOF {
			err = fmt.Errorf("log has %d bytes, but its durable length is %d", ls.off+int64(m), ls.durable)
		}
		return fmt.Errorf("read log at %d: %w", ls.off, err)
	}
	f := frame{offset: ls.off, durable: ls.durable}
	if ls.sealed && ls.off+int64(n) == ls.durable {
		f.flags = flagSealed
	}
	if err := ls.data(buf, f); err != nil {
		return err
	}
	ls.off += int64(n)
	return nil
}

// wait returns after news or a heartbeat.
func (ls *logStream) wait() error {
	every := ls.c.s.cfg.HeartbeatInterval
	ctx, cancel := context.WithTimeout(ls.ctx, every)
	durable, sealed, err := ls.src.Wait(ctx, ls.durable)
	late := ctx.Err() != nil
	cancel()
	switch {
	case err == nil && durable < ls.durable:
		return fmt.Errorf("durable length of the log has shrunk from %d to %d", ls.durable, durable)
	case err == nil && durable == ls.durable && !sealed:
		return sleep(ls.ctx, every/8) // woken for nothing: not a busy loop
	case err == nil:
		ls.durable, ls.sealed = durable, sealed
		return nil
	case ls.ctx.Err() != nil:
		return context.Cause(ls.ctx)
	case !late:
		return err
	}
	return ls.beat()
}
