package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// A frame is a header of 32 bytes and a payload of 0 to MaxFrame bytes, little
// endian:
//
//	 0  u16  magic 0x464d ("MF")
//	 2  u8   version 1
//	 3  u8   reserved, 0
//	 4  u32  flags
//	 8  u32  payload length
//	12  u32  CRC-32C of the header with this field zero, and the payload
//	16  u64  offset of the first payload byte in the file or device
//	24  u64  durable length of the file
const (
	frameMagic   = 0x464d
	frameVersion = 1
	frameHeader  = 32

	// MaxFrame is the largest payload of a frame.
	MaxFrame = 1 << 20
)

// Frame flags.
const (
	// flagSealed: this frame ends the file. Nothing follows, now or ever.
	flagSealed = 1 << iota
	// flagHeartbeat: no payload, the link lives.
	flagHeartbeat
	// flagError: the payload is a wireError in JSON; nothing follows.
	flagError
	// flagCompressed: the payload is compressed, see unpack. Senders set it only if
	// the receiver has said that it takes such frames.
	flagCompressed

	flagsKnown = flagSealed | flagHeartbeat | flagError | flagCompressed
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type frame struct {
	flags   uint32
	offset  int64
	durable int64
	payload []byte
}

// putHeader writes the header of a frame whose payload follows it in buf.
func putHeader(buf []byte, f frame) {
	le := binary.LittleEndian
	le.PutUint16(buf[0:], frameMagic)
	buf[2], buf[3] = frameVersion, 0
	le.PutUint32(buf[4:], f.flags)
	le.PutUint32(buf[8:], uint32(len(f.payload)))
	le.PutUint32(buf[12:], 0)
	le.PutUint64(buf[16:], uint64(f.offset))
	le.PutUint64(buf[24:], uint64(f.durable))
	le.PutUint32(buf[12:], frameSum(buf[:frameHeader], f.payload))
}

func frameSum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header, castagnoli), castagnoli, payload)
}

// frameReader decodes a stream of frames. The payload of a frame is valid until
// release or the next call of next.
type frameReader struct {
	r      io.Reader
	packed bool // compressed frames are welcome
	hdr    [frameHeader]byte
	buf    *[]byte
}

// next returns the content of a frame, whether it was compressed or not, and io.EOF only between frames. Everything else that ends the stream
// early is ErrTruncated, everything that cannot have been sent ErrCorrupt.
func (fr *frameReader) next() (frame, error) {
	fr.release()
	if n, err := io.ReadFull(fr.r, fr.hdr[:]); err != nil {
		if n == 0 && err == io.EOF {
			return frame{}, io.EOF
		}
		return frame{}, truncated(err, "in a frame header")
	}
	le := binary.LittleEndian
	h := fr.hdr[:]
	if m := le.Uint16(h); m != frameMagic {
		return frame{}, fmt.Errorf("%w: frame magic %#04x, want %#04x", ErrCorrupt, m, frameMagic)
	}
	if h[2] != frameVersion {
		return frame{}, fmt.Errorf("%w: frame version %d, want %d", ErrCorrupt, h[2], frameVersion)
	}
	f := frame{flags: le.Uint32(h[4:]), offset: int64(le.Uint64(h[16:])), durable: int64(le.Uint64(h[24:]))}
	size := le.Uint32(h[8:])
	switch {
	case h[3] != 0 || f.flags&^flagsKnown != 0:
		return frame{}, fmt.Errorf("%w: unknown frame flags %#x", ErrCorrupt, f.flags)
	case f.flags&flagCompressed != 0 && (!fr.packed || f.flags&(flagHeartbeat|flagError) != 0):
		return frame{}, fmt.Errorf("%w: compressed frame (flags %#x) that nobody asked for", ErrCorrupt, f.flags)
	case size > MaxFrame:
		return frame{}, fmt.Errorf("%w: frame of %d bytes, at most %d are allowed", ErrCorrupt, size, MaxFrame)
	case f.offset < 0 || f.durable < 0:
		return frame{}, fmt.Errorf("%w: negative frame position", ErrCorrupt)
	}
	if size > 0 {
		fr.buf = getBuffer(int(size))
		f.payload = (*fr.buf)[:size]
		if _, err := io.ReadFull(fr.r, f.payload); err != nil {
			return frame{}, truncated(err, fmt.Sprintf("in a frame of %d bytes", size))
		}
	}
	want := le.Uint32(h[12:])
	le.PutUint32(h[12:], 0)
	if got := frameSum(h, f.payload); got != want {
		return frame{}, fmt.Errorf("%w: frame checksum %08x, want %08x", ErrCorrupt, got, want)
	}
	if f.flags&flagCompressed != 0 {
		buf, raw, err := unpack(f.payload)
		if err != nil {
			return frame{}, err
		}
		fr.release()
		fr.buf, f.payload = buf, raw
		f.flags &^= flagCompressed
	}
	return f, nil
}

func (fr *frameReader) release() {
	if fr.buf != nil {
		putBuffer(fr.buf)
		fr.buf = nil
	}
}

func truncated(err error, where string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w %s", ErrTruncated, where)
	}
	return fmt.Errorf("%s: %w", where, err)
}

// Buffers come in three sizes, so that hundreds of subscriptions with small
// frames do not hold a megabyte each, and an idle one holds nothing.
var bufferSizes = [...]int{8 << 10, 128 << 10, frameHeader + MaxFrame}

var bufferPools [len(bufferSizes)]sync.Pool

func getBuffer(size int) *[]byte {
	for i, s := range bufferSizes {
		if size <= s {
			if b, ok := bufferPools[i].Get().(*[]byte); ok {
				return b
			}
			b := make([]byte, s)
			return &b
		}
	}
	panic("transport: frame buffer larger than a frame")
}

func putBuffer(b *[]byte) {
	for i, s := range bufferSizes {
		if len(*b) == s {
			bufferPools[i].Put(b)
		}
	}
}
