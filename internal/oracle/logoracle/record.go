package logoracle

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"time"
)

// The layout of a record (reference/log-engine.md 1.2), little endian: start
// part, payload area, end part. Offsets of the end part count from its start.
const (
	startLen = 48
	endLen   = 36

	startMagic = 0xA8F7E908D9177957
	endMagic   = 0x74941FB74AB5726D

	offVersion  = 8
	offValid    = 9
	offTotal    = 10
	offSec      = 12
	offNsec     = 20
	offPos      = 28
	offStored   = 36
	offOriginal = 38
	offSeal     = 40 // ours: CRC-32C of the record with these four bytes zero
	offCode     = 44

	endWord   = 8
	endValid  = 12
	endMarker = 13 // ours: 0x4D if the seal is there
	endFlags  = 14
	endSeq    = 16
	endDigest = 20

	sealMarker = 0x4D
)

// Codes of records. All others are checked and skipped.
const (
	CodeWrite   int16 = 1
	CodeDiscard int16 = 0x4D01
	CodeZeroes  int16 = 0x4D02
)

// Record is one sound record.
type Record struct {
	Offset, End int64 // in the log file
	Stamp       time.Time
	Pos         int64 // on the device
	Code        int16
	Seq         uint32
	Data        []byte // uncompressed payload; valid during the callback
	Range       int64  // Discard, Zeroes: bytes from Pos
	Compressed  bool
	Digest      string // name of the digest that was checked, "" if there was none
	Sealed      bool
}

// Error is an unsound log.
type Error struct {
	Log    string
	Offset int64
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d: %s", e.Log, e.Offset, e.Reason)
}

// Options of parsing.
type Options struct {
	// Sealed demands our record CRC, as in every log that this project wrote.
	Sealed bool
	// Original demands what a kernel MARS can replay without loss: nothing but writes,
	// of whole sectors, one digest each, in records of at most a page that stay
	// within 64 KiB of the device, or compressed up to 31.5 KiB.
	Original bool
	// NoDigest accepts records without any checksum (logs from before 2020).
	NoDigest bool
	// Size of the device; records beyond it are unsound. 0: unchecked.
	Size int64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Parse calls f for each record of the file up to the byte `to`, which must be a
// record border. What lies behind is not looked at.
func Parse(file io.ReaderAt, name string, to int64, opt Options, f func(*Record) error) error {
	bad := func(off int64, format string, args ...any) error {
		return &Error{Log: name, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
	if to < 0 {
		return bad(to, "negative position")
	}
	buf := make([]byte, 0, max(0, min(1<<20, to)))
	base := int64(0) // file offset of buf[0]
	seq := uint32(1)
	for off := int64(0); off < to; {
		rest := buf[off-base:]
		if len(rest) < 1<<15 && base+int64(len(buf)) < to {
			n := int(min(int64(cap(buf)), to-off))
			buf, base = buf[:n], off
			if got, err := file.ReadAt(buf, off); got < n {
				return bad(off, "only %d of the %d bytes up to %d can be read: %v", got, n, to, err)
			}
			rest = buf
		}
		total, reason := frame(rest)
		if reason != "" {
			return bad(off, "%s (with %d bytes left before %d)", reason, to-off, to)
		}
		r := &Record{Offset: off, End: off + int64(total)}
		if reason = r.decode(rest[:total], opt); reason != "" {
			return bad(off, "%s", reason)
		}
		if r.Seq != 0 {
			if r.Seq != seq {
				return bad(off, "sequence number %d where %d is due", r.Seq, seq)
			}
		}
		seq++
		if opt.Original {
			if reason = r.original(rest[:total]); reason != "" {
				return bad(off, "not for a kernel MARS: %s", reason)
			}
		}
		if err := f(r); err != nil {
			return err
		}
		off = r.End
	}
	return nil
}

// frame checks the outer shape of the record at the start of p and returns its
// length.
func frame(p []byte) (int, string) {
	le := binary.LittleEndian
	if len(p) < startLen {
		return 0, fmt.Sprintf("%d bytes are no start part", len(p))
	}
	total := int(int16(le.Uint16(p[offTotal:])))
	switch {
	case le.Uint64(p) != startMagic:
		return 0, fmt.Sprintf("start magic is %#016x", le.Uint64(p))
	case p[offVersion] != 1:
		return 0, fmt.Sprintf("format version %d", p[offVersion])
	case p[offValid] != 1:
		return 0, fmt.Sprintf("valid flag is %d", p[offValid])
	case total <= startLen+endLen:
		return 0, fmt.Sprintf("total length %d", total)
	case total > len(p):
		return 0, fmt.Sprintf("total length %d is more than there is", total)
	}
	end := p[total-endLen : total]
	switch {
	case le.Uint64(end) != endMagic:
		return 0, fmt.Sprintf("end magic is %#016x", le.Uint64(end))
	case end[endValid] != 1:
		return 0, fmt.Sprintf("valid flag at the end is %d", end[endValid])
	}
	return total, ""
}

// decode fills r from the framed record p and checks everything inside.
func (r *Record) decode(p []byte, opt Options) string {
	le := binary.LittleEndian
	end := p[len(p)-endLen:]
	r.Stamp = time.Unix(int64(le.Uint64(p[offSec:])), int64(le.Uint64(p[offNsec:])))
	r.Pos = int64(le.Uint64(p[offPos:]))
	r.Code = int16(le.Uint16(p[offCode:]))
	r.Seq = le.Uint32(end[endSeq:])
	r.Sealed = end[endMarker] == sealMarker
	switch {
	case r.Sealed && le.Uint32(p[offSeal:]) != seal(p):
		return fmt.Sprintf("record CRC is %#08x, computed %#08x", le.Uint32(p[offSeal:]), seal(p))
	case !r.Sealed && opt.Sealed:
		return "no record CRC"
	}
	if reason := r.payload(p, end, opt); reason != "" {
		return reason
	}
	length := int64(len(r.Data))
	switch r.Code {
	case CodeDiscard, CodeZeroes:
		if len(r.Data) != 16 {
			return fmt.Sprintf("range record with a payload of %d bytes", len(r.Data))
		}
		r.Range = int64(le.Uint64(r.Data))
		length = r.Range
	case CodeWrite:
	default:
		return ""
	}
	if r.Pos < 0 || length <= 0 || r.Pos+length < 0 || (opt.Size > 0 && r.Pos+length > opt.Size) {
		return fmt.Sprintf("range [%d+%d] is outside of the device of %d bytes", r.Pos, length, opt.Size)
	}
	return ""
}

// original says what a kernel MARS would choke on or lose (reference/log-engine.md
// 1.2 to 1.5). What it ignores, our seal and its marker, is not looked at.
func (r *Record) original(p []byte) string {
	le := binary.LittleEndian
	flags := le.Uint16(p[len(p)-endLen+endFlags:])
	n := int64(len(r.Data))
	limit := int64(4096)
	if r.Compressed {
		limit = 32256
	}
	switch {
	case r.Code != CodeWrite:
		return fmt.Sprintf("code %#x is skipped", uint16(r.Code))
	case r.Seq == 0:
		return "no sequence number"
	case bits.OnesCount16(flags&0x1f) != 1:
		return fmt.Sprintf("flags %#04x do not name one digest", flags)
	case flags&^0x071f != 0:
		return fmt.Sprintf("unknown flags %#04x", flags)
	case flags&flagLZO != 0:
		return "LZO, which nobody can check here"
	case n > limit:
		return fmt.Sprintf("%d bytes in one record", n)
	case r.Pos%512 != 0 || n%512 != 0:
		return fmt.Sprintf("[%d+%d] is not whole sectors", r.Pos, n)
	case !r.Compressed && r.Pos>>16 != (r.Pos+n-1)>>16:
		return fmt.Sprintf("[%d+%d] crosses a border of 64 KiB", r.Pos, n)
	case len(p)%4 != 0:
		return fmt.Sprintf("record of %d bytes", len(p))
	case r.Stamp.Nanosecond() < 0 || le.Uint64(p[offNsec:]) >= 1e9:
		return fmt.Sprintf("stamp has %d nanoseconds", le.Uint64(p[offNsec:]))
	}
	return ""
}

// seal computes our record CRC.
func seal(p []byte) uint32 {
	c := crc32.Update(0, castagnoli, p[:offSeal])
	c = crc32.Update(c, castagnoli, make([]byte, 4))
	return crc32.Update(c, castagnoli, p[offSeal+4:])
}

// payload extracts and checks the payload.
func (r *Record) payload(p, end []byte, opt Options) string {
	le := binary.LittleEndian
	area := p[startLen : len(p)-endLen]
	stored := int(int16(le.Uint16(p[offStored:])))
	original := int(int16(le.Uint16(p[offOriginal:])))
	flags := le.Uint16(end[endFlags:])
	switch {
	case stored <= 0 || stored > len(area):
		return fmt.Sprintf("stored length %d in a payload area of %d", stored, len(area))
	case original == 0 && stored != len(area):
		return fmt.Sprintf("uncompressed payload of %d bytes in an area of %d", stored, len(area))
	case original != 0 && (len(area) != (stored+7)/8*8 || original <= stored || original%512 != 0):
		return fmt.Sprintf("compressed payload of %d for %d bytes in an area of %d", stored, original, len(area))
	}
	r.Data = area[:stored]
	if original != 0 {
		data, err := decompress(flags, area[:stored], original)
		if err != nil {
			return "decompress: " + err.Error()
		}
		r.Data, r.Compressed = data, true
	}
	name, ok := checkDigest(flags, r.Data, le.Uint32(end[endWord:]), end[endDigest:endDigest+16])
	switch {
	case name == "" && !opt.NoDigest:
		return "no digest"
	case !ok:
		return name + " digest differs"
	}
	r.Digest = name
	return ""
}
