package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
)

// refuse reports tree entries that cannot be links, once in a while.
func (p *Peer) refuse(err error) {
	p.quiet.warn("entry", "tree entry from peer refused", "peer", p.name, "err", err)
}

// TreeSince fetches the entries that changed after (epoch, seq). ok is false if
// the peer cannot tell: then compare digests and go on from the epoch and seq
// returned. Entries that can never be links are left out and logged.
func (p *Peer) TreeSince(ctx context.Context, epoch, seq uint64) (entries []TreeEntry, newEpoch, newSeq uint64, ok bool, err error) {
	ok = true
	err = p.treeReply(ctx, request{method: "GET", path: "/v1/tree/since", query: seqQuery(epoch, seq)}, func(line treeLine, list []TreeEntry) {
		newEpoch, newSeq = line.Epoch, line.Seq
		ok = ok && line.Type != lineResync
		entries = append(entries, list...)
	})
	return entries, newEpoch, newSeq, ok && err == nil, p.explain(ctx, Error{Op: "fetch tree changes"}, err)
}

// TreeDirs fetches whole directories, tombstones included.
func (p *Peer) TreeDirs(ctx context.Context, dirs []string) (entries []TreeEntry, err error) {
	for len(dirs) > 0 && err == nil {
		n := min(len(dirs), maxDirs/8) // a request stays below the limit for any length of path
		err = p.treeReply(ctx, request{method: "POST", path: "/v1/tree/dirs", body: dirs[:n]}, func(_ treeLine, list []TreeEntry) {
			entries = append(entries, list...)
		})
		dirs = dirs[n:]
	}
	return entries, p.explain(ctx, Error{Op: "fetch tree directories"}, err)
}

// treeReply reads lines up to the end line.
func (p *Peer) treeReply(ctx context.Context, q request, f func(treeLine, []TreeEntry)) error {
	x, err := p.start(ctx, q)
	if err != nil {
		return err
	}
	defer x.done()
	lr := newLineReader(x.Body, p.refuse)
	for {
		line, entries, err := lr.next()
		if err != nil {
			return truncated(err, "in a tree reply")
		}
		switch line.Type {
		case lineEnd:
			x.silence(p.cfg.IdleTimeout)
			io.Copy(io.Discard, x.Body) // so that the connection can be used again
			return nil
		case lineError:
			return line.err()
		case lineHeartbeat:
		default:
			f(line, entries)
		}
	}
}

// TreeStream follows the peer's change feed from (epoch, seq) until something
// fails or ctx ends; it never returns nil. f is called once at the beginning,
// possibly without entries, and then for all changes, in order. With resync the
// peer could not tell what changed: compare digests; the stream goes on after
// (epoch, seq). An error of f ends the stream and is returned.
func (p *Peer) TreeStream(ctx context.Context, epoch, seq uint64, f func(entries []TreeEntry, epoch, seq uint64, resync bool) error) error {
	e := Error{Op: "follow tree"}
	x, err := p.start(ctx, request{stream: true, method: "GET", path: "/v1/tree/stream", query: seqQuery(epoch, seq)})
	if err != nil {
		return p.explain(ctx, e, err)
	}
	defer x.done()
	x.silence(silentHeartbeats * p.cfg.HeartbeatInterval)
	lr := newLineReader(x.Body, p.refuse)
	for {
		line, entries, err := lr.next()
		if err != nil {
			return p.explain(ctx, e, truncated(err, "in a tree stream"))
		}
		switch line.Type {
		case lineHeartbeat:
			continue
		case lineError:
			return p.explain(ctx, e, line.err())
		case lineEnd:
			return p.explain(ctx, e, fmt.Errorf("%w: end of a stream that has none", ErrCorrupt))
		}
		if err := f(entries, line.Epoch, line.Seq, line.Type == lineResync); err != nil {
			return err
		}
	}
}

// Log subscribes to one logfile from byte off. deliver is called for consecutive
// pieces of the file, in order, without gap or overlap; once at the beginning
// without data; data is valid during the call only. durable is the length that
// the peer could not lose any more when it sent the piece. With sealed the piece
// is the last one of a complete file and Log returns nil.
//
// Every other end is an error: an *Error, whose Offset is where to resume, the
// cause of ctx, or deliver's own error. There is no retry inside.
func (p *Peer) Log(ctx context.Context, resource, log string, off int64, deliver func(off int64, data []byte, durable int64, sealed bool) error) error {
	e := Error{Op: "fetch log", Resource: resource, Log: log, Offset: off}
	if err := errors.Join(checkName("resource", resource), checkLogName(log)); err != nil {
		return p.explain(ctx, e, fmt.Errorf("%w: %v", ErrRefused, err))
	}
	query := url.Values{"offset": {strconv.FormatInt(off, 10)}}
	packed := p.accept(query)
	x, err := p.start(ctx, request{
		class: ClassLog, stream: true, method: "GET", path: "/v1/log/" + resource + "/" + log, query: query,
	})
	if err != nil {
		return p.explain(ctx, e, err)
	}
	defer x.done()
	x.silence(silentHeartbeats * p.cfg.HeartbeatInterval)
	fr := &frameReader{r: x.Body, packed: packed}
	defer fr.release()
	durable := int64(0)
	for first := true; ; first = false {
		f, err := fr.next()
		if err != nil {
			return p.explain(ctx, e, truncated(err, "before the end of the log"))
		}
		if f.flags&flagError != 0 {
			return p.explain(ctx, e, decodeError(f.payload))
		}
		if err := checkLogFrame(f, e.Offset, durable); err != nil {
			return p.explain(ctx, e, err)
		}
		durable = f.durable
		sealed := f.flags&flagSealed != 0
		if first || sealed || len(f.payload) > 0 {
			if err := deliver(f.offset, f.payload, f.durable, sealed); err != nil {
				return err
			}
		}
		e.Offset += int64(len(f.payload))
		if sealed {
			return nil
		}
	}
}

// checkLogFrame refuses what an honest server cannot send, whatever its checksum
// says.
func checkLogFrame(f frame, next, durable int64) error {
	end := f.offset + int64(len(f.payload))
	switch {
	case f.offset != next:
		return fmt.Errorf("%w: frame for offset %d", ErrCorrupt, f.offset)
	case f.durable < end:
		return fmt.Errorf("%w: bytes up to %d, but only %d are durable", ErrCorrupt, end, f.durable)
	case f.durable < durable:
		return fmt.Errorf("%w: durable length has shrunk from %d to %d", ErrCorrupt, durable, f.durable)
	case f.flags&flagSealed != 0 && end != f.durable:
		return fmt.Errorf("%w: sealed at %d of %d", ErrCorrupt, end, f.durable)
	case f.flags&flagHeartbeat != 0 && (len(f.payload) > 0 || f.flags&flagSealed != 0):
		return fmt.Errorf("%w: heartbeat with content", ErrCorrupt)
	}
	return nil
}

func decodeError(payload []byte) error {
	var we wireError
	if err := json.Unmarshal(payload, &we); err != nil {
		return fmt.Errorf("%w: error text: %v", ErrCorrupt, err)
	}
	return we.err()
}

// ReadRange fills b from the peer's device at off. The position is the peer's
// log end after the last byte was read.
func (p *Peer) ReadRange(ctx context.Context, resource string, off int64, b []byte) (pos Position, err error) {
	for len(b) > 0 {
		n := min(len(b), MaxRange)
		q := url.Values{"offset": {strconv.FormatInt(off, 10)}, "length": {strconv.Itoa(n)}}
		pos, err = p.bulk(ctx, Error{Op: "read", Resource: resource, Offset: off}, "/v1/range/", q, b[:n])
		if err != nil {
			return Position{}, err
		}
		b = b[n:]
		off += int64(n)
	}
	return pos, nil
}

// Digests fetches the SHA-256 of each chunk of the range; all-zero chunks have
// the all-zero sum. The position is the peer's log end after the last byte was
// read.
func (p *Peer) Digests(ctx context.Context, resource string, off, length, chunk int64) ([][32]byte, Position, error) {
	e := Error{Op: "fetch digests", Resource: resource, Offset: off}
	n, err := digestCount(length, chunk)
	if err != nil {
		return nil, Position{}, p.explain(ctx, e, err)
	}
	q := url.Values{
		"offset": {strconv.FormatInt(off, 10)}, "length": {strconv.FormatInt(length, 10)}, "chunk": {strconv.FormatInt(chunk, 10)},
	}
	b := make([]byte, 32*n)
	pos, err := p.bulk(ctx, e, "/v1/digests/", q, b)
	if err != nil {
		return nil, Position{}, err
	}
	sums := make([][32]byte, n)
	for i := range sums {
		copy(sums[i][:], b[32*i:])
	}
	return sums, pos, nil
}

// bulk reads a framed reply that fills b exactly.
func (p *Peer) bulk(ctx context.Context, e Error, path string, q url.Values, b []byte) (Position, error) {
	if err := checkName("resource", e.Resource); err != nil {
		return Position{}, p.explain(ctx, e, fmt.Errorf("%w: %v", ErrRefused, err))
	}
	packed := p.accept(q)
	x, err := p.start(ctx, request{class: ClassSync, method: "GET", path: path + e.Resource, query: q})
	if err != nil {
		return Position{}, p.explain(ctx, e, err)
	}
	defer x.done()
	x.silence(silentHeartbeats * p.cfg.HeartbeatInterval)
	pos, err := readBulk(&frameReader{r: x.Body, packed: packed}, e.Offset, b)
	if err != nil {
		return Position{}, p.explain(ctx, e, err)
	}
	x.silence(p.cfg.IdleTimeout)
	io.Copy(io.Discard, x.Body) // so that the connection can be used again
	return pos, nil
}

func readBulk(fr *frameReader, off int64, b []byte) (pos Position, err error) {
	defer fr.release()
	start := off
	for {
		f, err := fr.next()
		if err != nil {
			return pos, truncated(err, "before the end of a reply")
		}
		done := off - start
		switch {
		case f.flags&flagError != 0:
			return pos, decodeError(f.payload)
		case f.flags&flagHeartbeat != 0:
			continue
		case f.offset != off:
			return pos, fmt.Errorf("%w: frame for offset %d, want %d", ErrCorrupt, f.offset, off)
		case f.flags&flagSealed != 0:
			if done != int64(len(b)) {
				return pos, fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, done, len(b))
			}
			if err := json.Unmarshal(f.payload, &pos); err != nil {
				return pos, fmt.Errorf("%w: position: %v", ErrCorrupt, err)
			}
			return pos, nil
		case done+int64(len(f.payload)) > int64(len(b)):
			return pos, fmt.Errorf("%w: more than the %d bytes asked for", ErrCorrupt, len(b))
		}
		copy(b[done:], f.payload)
		off += int64(len(f.payload))
	}
}
