package logfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// Mode says how much a Reader demands of a record.
type Mode int

const (
	// Compat accepts what the original's kernel writes: the payload digest is
	// required. Where a record carries our seal, that is verified too, and once one
	// did, all that follow must.
	Compat Mode = iota
	// Strict accepts only sealed records with consecutive sequence numbers, as this
	// package writes them. No single flipped bit passes.
	Strict
	// Lenient also accepts records without any checksum (before 2020, or made by
	// mars-log-impex). Never replay with it unless an admin said so.
	Lenient
)

func (m Mode) String() string {
	switch m {
	case Compat:
		return "compat"
	case Strict:
		return "strict"
	case Lenient:
		return "lenient"
	}
	return fmt.Sprintf("mode(%d)", int(m))
}

// ReaderOptions configure a Reader.
type ReaderOptions struct {
	Mode Mode
	// Start is the record border to begin at.
	Start int64
	// End is the authoritative length: reading ends there, whatever the file says.
	// Negative: the size of the file.
	End int64
	// MaxPos is the device size; records beyond it are refused. 0: unchecked.
	MaxPos int64
	// Durable is the length that was ever confirmed to anybody, if DurableKnown.
	// Any defect at or behind it is a torn tail of unsynced blocks, however long;
	// any defect before it is corruption, however close to the end. If it is not
	// known, only a record cut by the end of the log, or by zeros from somewhere in
	// the last record up to the end, is a torn tail.
	Durable      int64
	DurableKnown bool
}

// Read buffers. The first chunk is small, for callers that want a few records;
// who goes on reading gets big ones. At the end of the log a reader holds none.
const (
	bigChunk   = 1 << 20
	smallChunk = 64 << 10 // at least maxTotal
)

var (
	bigChunks   = sync.Pool{New: func() any { return new([bigChunk]byte) }}
	smallChunks = sync.Pool{New: func() any { return new([smallChunk]byte) }}
)

// Reader yields the records of one logfile in order. It tells four endings
// apart: io.EOF (a record border at the authoritative length), *TornError,
// *CorruptError, and the cause of a cancelled context. After any of them it
// stands in front of the record that it could not deliver, and Next tries again
// from there, with fresh bytes. It is not safe for concurrent use.
type Reader struct {
	f    io.ReaderAt
	name Name
	opt  ReaderOptions
	dec  decoder
	rec  Record

	off  int64 // border behind the last delivered record
	end  int64 // authoritative length
	size int64 // file size when last seen

	primed bool   // the record before Start has been looked at
	buf    []byte // unread bytes from off on
	chunk  []byte // the whole buffer
	big    *[bigChunk]byte
	small  *[smallChunk]byte
	unpin  func()
	unpins runtime.Cleanup
}

// NewReader reads f, whose size is size. The Reader does not close f.
func NewReader(f io.ReaderAt, size int64, name Name, opt ReaderOptions) *Reader {
	r := &Reader{f: f, name: name, opt: opt, off: opt.Start, end: opt.End, size: size}
	if opt.End < 0 {
		r.end = size
	}
	r.dec = decoder{mode: opt.Mode, maxPos: opt.MaxPos, first: opt.Start == 0}
	return r
}

// Offset is the log position behind the last record that Next returned.
func (r *Reader) Offset() int64 { return r.off }

// LastSeq is the sequence number of the last record, 0 before the first.
func (r *Reader) LastSeq() uint32 { return r.dec.lastSeq }

// Extend tells that the authoritative length has grown to end (smaller values are
// ignored) and that the file has at least as many bytes.
func (r *Reader) Extend(end int64) {
	r.end = max(r.end, end)
	r.size = max(r.size, end)
}

// Close gives the buffers and, for a reader of a Chain, the file back.
func (r *Reader) Close() {
	r.release()
	if r.unpin != nil {
		r.unpins.Stop()
		r.unpin()
		r.unpin = nil
	}
}

// Next returns the next record. The Record and its Data are overwritten by the
// next call.
func (r *Reader) Next(ctx context.Context) (*Record, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("read %s: %w", Position{r.name, r.off}, context.Cause(ctx))
	}
	if r.off >= r.end {
		r.release()
		if r.off > r.end {
			return nil, r.defect(bad(0, 0, "reading position is beyond the end of the log (%d)", r.end), false)
		}
		return nil, io.EOF
	}
	if !r.primed {
		r.prime()
	}
	avail := r.avail()
	if int64(len(r.buf)) < min(avail, maxTotal) {
		if err := r.fill(avail); err != nil {
			return nil, err
		}
		avail = r.avail()
	}
	r.rec.Offset = r.off
	if f := r.dec.decode(r.buf, avail, &r.rec); f != nil {
		torn, err := r.torn(f, avail)
		if err == nil {
			err = r.defect(f, torn)
		}
		r.release()
		r.size = max(r.size, r.end) // the file may have been completed by the next try
		return nil, err
	}
	r.buf = r.buf[r.rec.Total:]
	r.off += int64(r.rec.Total)
	return &r.rec, nil
}

// prime learns from the record before Start which number must come next: a reader that
// was stopped by a wrong one must not be let past it by opening another.
func (r *Reader) prime() {
	r.primed = true
	if r.opt.Start < Overhead || r.opt.Mode == Lenient {
		return
	}
	var b [trailerSize]byte
	if n, _ := r.f.ReadAt(b[:], r.opt.Start-trailerSize); n != len(b) {
		return // fill reports what cannot be read
	}
	if t := parseTrailer(b[:]); t.magic == endMagic && t.valid == 1 {
		r.dec.lastSeq, r.dec.sealed = t.seq, t.marker == sealMarker
	}
}

// avail is the number of bytes that the log has in front of the reader.
func (r *Reader) avail() int64 { return max(min(r.end, r.size)-r.off, 0) }

// fill loads the chunk at r.off. If the file turns out to be shorter than it was
// said to be, r.size learns that.
func (r *Reader) fill(avail int64) error {
	have := len(r.buf)
	if r.chunk != nil && avail > smallChunk && r.big == nil {
		big := bigChunks.Get().(*[bigChunk]byte)
		copy(big[:], r.buf)
		r.releaseChunk()
		r.big, r.chunk = big, big[:]
	} else {
		if r.chunk == nil {
			r.small = smallChunks.Get().(*[smallChunk]byte)
			r.chunk = r.small[:]
		}
		copy(r.chunk, r.buf)
	}
	want := int(min(avail, int64(len(r.chunk))))
	for have < want {
		n, err := r.f.ReadAt(r.chunk[have:want], r.off+int64(have))
		have += n
		if have == want {
			break
		}
		if errors.Is(err, io.EOF) {
			r.size = r.off + int64(have)
			break
		}
		if err == nil && n > 0 {
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		at := r.off + int64(have)
		r.release()
		return fmt.Errorf("read %s: %w", Position{r.name, at}, err)
	}
	r.buf = r.chunk[:have]
	return nil
}

func (r *Reader) release() {
	r.buf, r.rec.Data = nil, nil
	r.releaseChunk()
}

func (r *Reader) releaseChunk() {
	if r.big != nil {
		bigChunks.Put(r.big)
	}
	if r.small != nil {
		smallChunks.Put(r.small)
	}
	r.big, r.small, r.chunk = nil, nil, nil
}

// torn decides whether a fault is the trace of an unfinished write.
func (r *Reader) torn(f *fault, avail int64) (bool, error) {
	if r.opt.DurableKnown {
		return r.off >= r.opt.Durable, nil
	}
	if f.short {
		return true, nil
	}
	// Zeros up to the end: look at the physical end of the log, not only at the
	// bytes that happen to be in the buffer.
	if avail > maxTotal || int64(len(r.buf)) < avail {
		return false, nil
	}
	return unfinished(r.buf[:avail]), nil
}

const (
	hintTorn    = "the designated primary ends its log here; elsewhere fetch the log again from this offset"
	hintCorrupt = "nothing from here on may be applied: fetch the log again from a peer that has a sound copy"
	hintDurable = "the log was confirmed up to offset %d: fetch it again from a peer that has a sound copy"
)

// defect makes the error for f at the current position.
func (r *Reader) defect(f *fault, torn bool) error {
	d := Defect{Log: r.name, Offset: r.off, Reason: f.reason, Errno: f.errno, MarsCode: f.mars, RepeatedByte: f.repeated}
	if torn {
		d.Hint = hintTorn
		return &TornError{d}
	}
	d.Hint = hintCorrupt
	if r.opt.DurableKnown {
		d.Hint = fmt.Sprintf(hintDurable, r.opt.Durable)
	}
	return &CorruptError{d}
}
