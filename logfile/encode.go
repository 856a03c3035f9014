package logfile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"sync"
	"time"
)

// Entry is one thing to log. Data has 1 to MaxPayload bytes and must not change
// until Append returns; for CodeDiscard and CodeZeroes it is a RangePayload.
type Entry struct {
	Pos  int64
	Code Code
	Data []byte

	packed *packed // from ZeroEntries: what is stored instead of Data
}

// packed is a compressed payload with its folded digest.
type packed struct {
	stored []byte // padded to the payload area
	length int    // exact compressed length
	digest [16]byte
}

// Placed tells where a record went. Neighbouring entries of one Append may share
// a record, and a long one may be cut, so there is one Placed a record, not one
// an entry; together they cover the same device bytes in the same order.
type Placed struct {
	Pos  int64
	Code Code
	Len  int64 // device bytes covered: the payload, or the range of CodeDiscard and CodeZeroes
	// DataOffset is the file offset of the payload as it stands in the log; -1 for
	// the compressed zeros of ZeroEntries, where there is nothing worth reading.
	DataOffset int64
	End        int64 // log position behind the record
}

func (e *Entry) check() error {
	if len(e.Data) == 0 || len(e.Data) > MaxPayload {
		return fmt.Errorf("payload of %d bytes at device offset %d (1 to %d allowed): %w", len(e.Data), e.Pos, MaxPayload, ErrEntry)
	}
	n := int64(len(e.Data))
	switch e.Code {
	case CodeWrite:
	case CodeDiscard, CodeZeroes:
		var err error
		if n, err = ParseRangePayload(e.Data); err != nil {
			return fmt.Errorf("%v at device offset %d: %w: %w", e.Code, e.Pos, err, ErrEntry)
		}
	}
	if e.Pos < 0 || e.Pos > math.MaxInt64-n {
		return fmt.Errorf("%v of %d bytes at device offset %d: %w", e.Code, n, e.Pos, ErrEntry)
	}
	return nil
}

// zeros backs the Data of ZeroEntries.
var zeros [MaxPayload]byte

// packedZeros returns the zlib form of n zero bytes, n a multiple of a sector.
var packedZeros = func() func(n int) *packed {
	var mu sync.Mutex
	cache := map[int]*packed{} // at most MaxPayload/sectorSize
	return func(n int) *packed {
		mu.Lock()
		defer mu.Unlock()
		if p := cache[n]; p != nil {
			return p
		}
		var buf bytes.Buffer
		w, _ := zlib.NewWriterLevel(&buf, zlib.BestCompression) // fails for bad levels only
		w.Write(zeros[:n])                                      // a bytes.Buffer does not fail
		w.Close()
		sum, _ := payloadDigest(DigestCRC32C, zeros[:n])
		p := &packed{length: buf.Len(), digest: fold(sum)}
		p.stored = make([]byte, padded(p.length))
		copy(p.stored, buf.Bytes())
		cache[n] = p
		return p
	}
}()

// ZeroEntries yields write entries that put zeros on length bytes from pos on, as
// compressed payloads of 31.5 KiB each (under 100 bytes in the log), for logs that
// the original must be able to replay; its readers skip CodeZeroes. What is left
// below a sector is stored as it is. Placed.DataOffset of the others is -1.
func ZeroEntries(pos, length int64) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for length > 0 {
			n := min(length, MaxPayload)
			e := Entry{Pos: pos, Code: CodeWrite}
			if n >= sectorSize {
				n -= n % sectorSize
				e.packed = packedZeros(int(n))
			}
			e.Data = zeros[:n]
			if !yield(e) {
				return
			}
			pos, length = pos+n, length-n
		}
	}
}

// inlinePayload is the size below which copying a payload next to its header is
// cheaper than one more vector for the kernel.
const inlinePayload = 1024

// batch is the encoded form of the entries of one write call. Its buffers are
// kept from one batch to the next.
type batch struct {
	end    int64 // file offset behind the last record
	seq    uint32
	arena  []byte // headers, trailers, small payloads
	flush  int    // arena bytes before this one are in bufs already
	bufs   [][]byte
	placed []Placed
	parts  [][]byte // payload of the record being built
}

// keepArena bounds the memory that an idle Writer holds.
const keepArena = 256 << 10

func (b *batch) reset(end int64, seq uint32) {
	b.end, b.seq, b.flush = end, seq, 0
	if cap(b.arena) > keepArena {
		b.arena = nil
	}
	b.arena = b.arena[:0]
	clear(b.bufs) // payloads belong to the callers
	b.bufs, b.placed = b.bufs[:0], b.placed[:0]
	clear(b.parts)
	b.parts = b.parts[:0]
}

// reserve makes room for the entries of one batch, so that the arena never moves
// while vectors point into it.
func (b *batch) reserve(n int) {
	if n > cap(b.arena) {
		b.arena = make([]byte, 0, n)
	}
}

// arenaNeed is an upper bound of what an entry takes from the arena.
func arenaNeed(e *Entry, maxRecord int) int {
	records := 1
	if e.Code == CodeWrite && e.packed == nil {
		// One more for a region border inside the entry.
		records = (len(e.Data)+maxRecord-1)/maxRecord + 1
	}
	n := records * Overhead
	if e.packed != nil {
		return n + len(e.packed.stored)
	}
	return n + min(len(e.Data), records*inlinePayload)
}

// add encodes the entries of one Append. Entries that continue each other share a
// record as long as it stays within maxRecord.
func (b *batch) add(entries []Entry, maxRecord int, stamp time.Time) {
	for i := 0; i < len(entries); {
		e := &entries[i]
		if e.Code != CodeWrite || e.packed != nil {
			b.record(e.Pos, e.Code, append(b.parts[:0], e.Data), len(e.Data), e.packed, stamp)
			i++
			continue
		}
		room := recordRoom(e.Pos, maxRecord)
		if len(e.Data) > room {
			b.split(e, maxRecord, stamp)
			i++
			continue
		}
		parts, total := append(b.parts[:0], e.Data), len(e.Data)
		for i++; i < len(entries); i++ {
			n := &entries[i]
			if n.Code != CodeWrite || n.packed != nil || n.Pos != e.Pos+int64(total) || total+len(n.Data) > room {
				break
			}
			parts, total = append(parts, n.Data), total+len(n.Data)
		}
		b.record(e.Pos, CodeWrite, parts, total, nil, stamp)
	}
}

// recordRoom is the largest payload of a record that starts at pos. Logs with
// page-sized records also respect the regions of the original's writer.
func recordRoom(pos int64, maxRecord int) int {
	if maxRecord > kernelPayload {
		return maxRecord
	}
	return min(maxRecord, kernelRegion-int(pos%kernelRegion))
}

// split encodes an entry that is longer than a record may be.
func (b *batch) split(e *Entry, maxRecord int, stamp time.Time) {
	pos, data := e.Pos, e.Data
	for len(data) > 0 {
		n := min(len(data), recordRoom(pos, maxRecord))
		b.record(pos, CodeWrite, append(b.parts[:0], data[:n]), n, nil, stamp)
		pos, data = pos+int64(n), data[n:]
	}
}

// record encodes one record. total is the length of all parts.
func (b *batch) record(pos int64, code Code, parts [][]byte, total int, z *packed, stamp time.Time) {
	b.parts = parts
	stored, raw, area, flags := total, 0, total, DigestCRC32C
	var digest [16]byte
	if z != nil {
		stored, raw, area, flags, digest = z.length, total, len(z.stored), flags|CompressZlib, z.digest
		parts = append(parts[:0], z.stored)
	} else {
		digest = fold(crc32cParts(parts, total))
	}
	b.seq++
	start := len(b.arena)
	b.arena = append(b.arena, zeros[:headerSize]...)
	putHeader(b.arena[start:], Overhead+area, stamp, pos, stored, raw, code)
	crc := crc32.Update(0, castagnoli, b.arena[start:])
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
		b.payload(p)
	}
	end := len(b.arena)
	b.arena = append(b.arena, zeros[:trailerSize]...)
	putTrailer(b.arena[end:], flags, b.seq, digest)
	crc = crc32.Update(crc, castagnoli, b.arena[end:])
	binary.LittleEndian.PutUint32(b.arena[start+offSeal:], crc)

	p := Placed{Pos: pos, Code: code, Len: int64(total), DataOffset: b.end + headerSize}
	switch {
	case z != nil:
		p.DataOffset = -1
	case code == CodeDiscard || code == CodeZeroes:
		p.Len, _ = ParseRangePayload(parts[0]) // checked by Entry.check
	}
	b.end += int64(Overhead + area)
	p.End = b.end
	b.placed = append(b.placed, p)
}

// payload puts p behind what the batch holds, by reference if it is long.
func (b *batch) payload(p []byte) {
	if len(p) < inlinePayload {
		b.arena = append(b.arena, p...)
		return
	}
	b.seam()
	b.bufs = append(b.bufs, p)
}

// seam turns the arena bytes since the last vector into one.
func (b *batch) seam() {
	if n := len(b.arena); n > b.flush {
		b.bufs = append(b.bufs, b.arena[b.flush:n:n])
		b.flush = n
	}
}

// vectors is the whole batch, ready to be written.
func (b *batch) vectors() [][]byte {
	b.seam()
	return b.bufs
}

func putHeader(b []byte, total int, stamp time.Time, pos int64, stored, raw int, code Code) {
	le := binary.LittleEndian
	le.PutUint64(b[offMagic:], startMagic)
	b[offVersion], b[offValid] = formatVersion, 1
	le.PutUint16(b[offTotal:], uint16(total))
	le.PutUint64(b[offSec:], uint64(stamp.Unix()))
	le.PutUint64(b[offNsec:], uint64(stamp.Nanosecond()))
	le.PutUint64(b[offPos:], uint64(pos))
	le.PutUint16(b[offStored:], uint16(stored))
	le.PutUint16(b[offRaw:], uint16(raw))
	le.PutUint16(b[offCode:], uint16(code))
}

func putTrailer(b []byte, flags Flags, seq uint32, digest [16]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[offEndMagic:], endMagic)
	b[offValid2], b[offMarker] = 1, sealMarker
	le.PutUint16(b[offFlags:], uint16(flags))
	le.PutUint32(b[offSeq:], seq)
	copy(b[offDigest:], digest[:])
}
