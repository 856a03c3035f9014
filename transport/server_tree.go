package transport

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// maxSmallBody bounds hello and nudge requests.
const maxSmallBody = 64 << 10

// index tells a person with curl where he is.
func (c *call) index() error {
	return c.reply(map[string]any{
		"node": c.s.id.node, "protocol": Protocol, "you_are": c.peer,
		"time": time.Now().UTC().Format(time.RFC3339Nano),
		"endpoints": []string{
			"POST /v1/hello", "POST /v1/nudge",
			"GET /v1/tree/since?epoch=&seq=", "GET /v1/tree/stream?epoch=&seq=", "GET /v1/tree/digests", "POST /v1/tree/dirs",
			"GET /v1/log/RESOURCE/LOG?offset=", "GET /v1/range/RESOURCE?offset=&length=", "GET /v1/digests/RESOURCE?offset=&length=&chunk=",
		},
	})
}

func (c *call) hello() error {
	var in Hello
	if err := c.body(maxSmallBody, &in); err != nil {
		return err
	}
	if in.Node != c.peer {
		return fmt.Errorf("%w: hello of node %q over a connection of node %s", ErrRefused, in.Node, c.peer)
	}
	if in.Protocol != Protocol {
		return fmt.Errorf("%w: node %s speaks protocol %d, this is protocol %d", ErrRefused, c.peer, in.Protocol, Protocol)
	}
	out, err := c.s.h.Hello(c.ctx, c.peer, in)
	if err != nil {
		return err
	}
	out.Protocol = Protocol
	return c.reply(out)
}

func (c *call) nudge() error {
	if err := c.body(maxSmallBody, nil); err != nil {
		return err
	}
	if err := c.s.h.Nudge(c.ctx, c.peer); err != nil {
		return err
	}
	return c.reply(struct{}{})
}

func (c *call) since() (epoch, seq uint64, err error) {
	if epoch, err = c.number("epoch"); err != nil {
		return 0, 0, err
	}
	seq, err = c.number("seq")
	return epoch, seq, err
}

func (c *call) treeSince() error {
	epoch, seq, err := c.since()
	if err != nil {
		return err
	}
	entries, newEpoch, newSeq, ok, err := c.s.h.TreeSince(c.ctx, c.peer, epoch, seq)
	if err != nil {
		return err
	}
	lw := c.lines(c.ctx)
	if !ok {
		err = lw.send(treeLine{Type: lineResync, Epoch: newEpoch, Seq: newSeq})
	} else {
		err = lw.entries(entries, epoch, seq, newEpoch, newSeq)
	}
	if err != nil {
		return err
	}
	return lw.send(treeLine{Type: lineEnd})
}

func (c *call) treeDirs() error {
	var dirs []string
	if err := c.body(maxDirs*64, &dirs); err != nil {
		return err
	}
	if len(dirs) > maxDirs {
		return fmt.Errorf("%w: %d directories, at most %d", ErrRefused, len(dirs), maxDirs)
	}
	for _, d := range dirs {
		if err := checkDir(d); err != nil {
			return err
		}
	}
	entries, err := c.s.h.TreeDirs(c.ctx, c.peer, dirs)
	if err != nil {
		return err
	}
	lw := c.lines(c.ctx)
	if err := lw.entries(entries, 0, 0, 0, 0); err != nil {
		return err
	}
	return lw.send(treeLine{Type: lineEnd})
}

// wireDigests is the reply to GET /v1/tree/digests; digests in hexadecimal.
type wireDigests struct {
	Epoch uint64            `json:"epoch,string"`
	Seq   uint64            `json:"seq,string"`
	Root  string            `json:"root"`
	Dirs  map[string]string `json:"dirs"`
}

func (c *call) treeDigests() error {
	root, dirs, epoch, seq, err := c.s.h.TreeDigests(c.ctx, c.peer)
	if err != nil {
		return err
	}
	out := wireDigests{Epoch: epoch, Seq: seq, Root: hex.EncodeToString(root[:]), Dirs: make(map[string]string, len(dirs))}
	for d, sum := range dirs {
		out.Dirs[d] = hex.EncodeToString(sum[:])
	}
	return c.reply(out)
}

// treeStream is the tail of the change feed, for ever.
func (c *call) treeStream() error {
	epoch, seq, err := c.since()
	if err != nil {
		return err
	}
	ctx, done := c.subscribe("tree")
	defer done()
	lw := c.lines(ctx)
	err = lw.follow(epoch, seq)
	if err == nil || ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var sent *sentError
	if errors.As(err, &sent) {
		return err
	}
	we, _ := encodeError(err)
	lw.throttle = false
	lw.ctx = c.ctx
	lw.send(treeLine{Type: lineError, wireError: we})
	return &sentError{err}
}

// lineWriter sends tree lines, each flushed.
type lineWriter struct {
	c        *call
	ctx      context.Context
	rc       *http.ResponseController
	buf      bytes.Buffer
	started  bool
	throttle bool
}

func (c *call) lines(ctx context.Context) *lineWriter {
	return &lineWriter{c: c, ctx: ctx, rc: http.NewResponseController(c.w), throttle: true}
}

func (lw *lineWriter) send(line treeLine) error {
	if !lw.started {
		lw.started = true
		lw.c.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	lw.buf.Reset()
	if err := encodeLine(&lw.buf, line); err != nil {
		return err
	}
	if lw.throttle && line.Type != lineHeartbeat {
		b := bytes.Clone(lw.buf.Bytes())
		if err := lw.c.allow(lw.ctx, len(b), lw.beat); err != nil {
			return err
		}
		return lw.write(b)
	}
	return lw.write(lw.buf.Bytes())
}

func (lw *lineWriter) write(b []byte) error {
	if _, err := lw.c.w.Write(b); err != nil {
		return &sentError{err}
	}
	if err := lw.rc.Flush(); err != nil {
		return &sentError{err}
	}
	return nil
}

func (lw *lineWriter) beat() error { return lw.send(treeLine{Type: lineHeartbeat}) }

func (lw *lineWriter) entries(entries []TreeEntry, oldEpoch, oldSeq, epoch, seq uint64) error {
	for _, line := range treeLines(entries, oldEpoch, oldSeq, epoch, seq) {
		if err := lw.send(line); err != nil {
			return err
		}
	}
	return nil
}

func (lw *lineWriter) follow(epoch, seq uint64) error {
	h, peer, every := lw.c.s.h, lw.c.peer, lw.c.s.cfg.HeartbeatInterval
	for first := true; ; first = false {
		entries, newEpoch, newSeq, ok, err := h.TreeSince(lw.ctx, peer, epoch, seq)
		if err != nil {
			return err
		}
		news := newEpoch != epoch || newSeq != seq
		switch {
		case !ok:
			err = lw.send(treeLine{Type: lineResync, Epoch: newEpoch, Seq: newSeq})
		case first || news:
			// The first line comes at once even if it is empty: the stream stands.
			err = lw.entries(entries, epoch, seq, newEpoch, newSeq)
		default:
			// Woken for nothing. That must not become a busy loop.
			err = sleep(lw.ctx, every/8)
		}
		if err != nil {
			return err
		}
		epoch, seq = newEpoch, newSeq
		for waiting := true; waiting; {
			ctx, cancel := context.WithTimeout(lw.ctx, every)
			err := h.TreeWait(ctx, peer, epoch, seq)
			late := ctx.Err() != nil
			cancel()
			switch {
			case err == nil:
				waiting = false
			case lw.ctx.Err() != nil:
				return context.Cause(lw.ctx)
			case !late:
				return err
			default:
				if err := lw.beat(); err != nil {
					return err
				}
			}
		}
	}
}
