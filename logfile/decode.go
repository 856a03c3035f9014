package logfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// header and trailer are the raw fields of a record.
type header struct {
	magic       uint64
	version     byte
	valid       byte
	total       int
	sec, nsec   int64
	pos         int64
	stored, raw int
	seal        uint32
	code        Code
}

type trailer struct {
	magic  uint64
	word   uint32
	valid  byte
	marker byte
	flags  Flags
	seq    uint32
	digest [16]byte
}

func parseHeader(b []byte) header {
	le := binary.LittleEndian
	return header{
		magic:   le.Uint64(b[offMagic:]),
		version: b[offVersion],
		valid:   b[offValid],
		total:   int(int16(le.Uint16(b[offTotal:]))),
		sec:     int64(le.Uint64(b[offSec:])),
		nsec:    int64(le.Uint64(b[offNsec:])),
		pos:     int64(le.Uint64(b[offPos:])),
		stored:  int(int16(le.Uint16(b[offStored:]))),
		raw:     int(int16(le.Uint16(b[offRaw:]))),
		seal:    le.Uint32(b[offSeal:]),
		code:    Code(le.Uint16(b[offCode:])),
	}
}

func parseTrailer(b []byte) trailer {
	le := binary.LittleEndian
	t := trailer{
		magic:  le.Uint64(b[offEndMagic:]),
		word:   le.Uint32(b[offWord:]),
		valid:  b[offValid2],
		marker: b[offMarker],
		flags:  Flags(le.Uint16(b[offFlags:])),
		seq:    le.Uint32(b[offSeq:]),
	}
	copy(t.digest[:], b[offDigest:])
	return t
}

// area is the size of the payload area that the length fields promise.
func (h *header) area() int {
	if h.raw != 0 {
		return padded(h.stored)
	}
	return h.stored
}

// consistent reports whether the length fields agree with each other.
func (h *header) consistent() bool { return h.stored > 0 && h.total == Overhead+h.area() }

// fault is a Defect without its place, and whether it can only be the trace of a
// write that never finished (subject to the position in the file).
type fault struct {
	errno, mars int
	repeated    int
	short       bool // more bytes may make it a good record
	reason      string
}

func bad(errno, mars int, format string, args ...any) *fault {
	return &fault{errno: errno, mars: mars, repeated: -1, reason: fmt.Sprintf(format, args...)}
}

// decoder turns bytes into records. It remembers what is needed to judge the
// next one; it knows nothing about files.
type decoder struct {
	mode    Mode
	maxPos  int64
	lastSeq uint32
	first   bool // no record has been seen and the next one is the file's first
	sealed  bool // a sealed record has been seen: its writer seals all of them
	z       inflater
}

// decode reads one record from the start of b. avail is the number of bytes that
// the log has from there on; b may be shorter than avail only if it holds at
// least maxTotal bytes. rec.Offset is set by the caller beforehand.
// The order of the checks is the original's (docs/LOG-FORMAT.md, "Reader rules").
func (d *decoder) decode(b []byte, avail int64, rec *Record) *fault {
	if avail <= Overhead {
		return &fault{repeated: -1, short: true, reason: fmt.Sprintf("only %d bytes are left, less than the smallest record", avail)}
	}
	h := parseHeader(b)
	if f := checkHeader(&h, avail); f != nil {
		return f
	}
	b = b[:h.total]
	t := parseTrailer(b[h.total-trailerSize:])
	if f := d.checkTrailer(&t); f != nil {
		return f
	}
	if f := d.checkSeal(b, &h, &t); f != nil {
		return f
	}
	if !h.consistent() {
		return bad(errnoEBADMSG, marsSize, "record of %d bytes claims a payload of %d (uncompressed %d)", h.total, h.stored, h.raw)
	}
	off := rec.Offset
	*rec = Record{
		Offset: off, Total: h.total, Stamp: time.Unix(h.sec, h.nsec), Pos: h.pos, Code: h.code,
		Data: b[headerSize : headerSize+h.stored], DataOffset: off + headerSize, Stored: h.stored,
		Compression: t.flags & compressMask, Seq: t.seq, Sealed: t.marker == sealMarker,
	}
	if f := d.unpack(&h, rec); f != nil {
		return f
	}
	if f := d.checkDigest(&t, rec); f != nil {
		return f
	}
	if f := d.checkTarget(rec); f != nil {
		return f
	}
	d.lastSeq, d.first, d.sealed = t.seq, false, d.sealed || rec.Sealed
	return nil
}

func checkHeader(h *header, avail int64) *fault {
	switch {
	case h.magic != startMagic:
		return bad(errnoEBADMSG, marsScanMagic, "start magic is %016x", h.magic)
	case h.version != formatVersion:
		return bad(errnoEBADMSG, marsInval, "format version %d, this reader knows %d", h.version, formatVersion)
	case h.valid != 1:
		return bad(errnoEBADMSG, marsInval, "valid flag of the header is %d", h.valid)
	case h.total == 0:
		return bad(errnoERESTART, marsZero, "record length is 0")
	case h.total < 0:
		return bad(errnoEBADMSG, marsNegative, "record length is negative (%d)", h.total)
	case int64(h.total) > avail:
		f := bad(errnoEAGAIN, marsBadLen, "record of %d bytes, but only %d are there", h.total, avail)
		// A record that was cut has a sound header. One whose length was damaged
		// contradicts itself, and must not pass as an unfinished write.
		f.short = h.consistent()
		if !f.short {
			f.reason += fmt.Sprintf(", and its payload length %d (uncompressed %d) contradicts that", h.stored, h.raw)
		}
		return f
	case h.total <= Overhead:
		return bad(errnoERESTART, marsAdvance, "record length %d is smaller than an empty record", h.total)
	}
	return nil
}

func (d *decoder) checkTrailer(t *trailer) *fault {
	if t.magic != endMagic {
		lowest := t.magic & 0xff
		switch {
		case t.magic == 0:
			return bad(errnoERESTART, 0, "end magic is zero: the header was written, the end was not")
		case t.magic == lowest*0x0101010101010101:
			f := bad(errnoEBADMSG, marsEndRepeated, "end magic is filled with byte %#02x", lowest)
			f.repeated = int(lowest)
			return f
		}
		return bad(errnoEBADRQC, marsEndMagic, "end magic is %016x", t.magic)
	}
	if t.valid != 1 {
		return bad(errnoEBADMSG, marsIncomplete, "valid flag of the end part is %d", t.valid)
	}
	expected := d.lastSeq + 1
	counts := d.mode == Strict || t.marker == sealMarker && d.mode != Lenient // who seals counts from 1
	if d.lastSeq == 0 {
		if counts && d.first && t.seq != 1 {
			return bad(errnoEBADMSG, marsSeqForward, "first record has sequence number %d, want 1", t.seq)
		}
		return nil
	}
	switch {
	case (counts || d.sealed && d.mode != Lenient) && t.seq < expected:
		return bad(errnoEBADMSG, marsSeqBackward, "sequence number %d, expected %d", t.seq, expected)
	case t.seq > expected:
		return bad(errnoEBADMSG, marsSeqForward, "sequence number %d, expected %d: records are missing", t.seq, expected)
	}
	return nil
}

// checkSeal verifies our own CRC over the whole record.
func (d *decoder) checkSeal(b []byte, h *header, t *trailer) *fault {
	if t.marker != sealMarker {
		if d.mode == Strict {
			return bad(errnoEBADMSG, marsCRCFlags, "no record checksum, which strict mode demands")
		}
		if d.sealed && d.mode != Lenient {
			return bad(errnoEBADMSG, marsCRCFlags, "no record checksum, although the records before have one")
		}
		if h.seal != 0 && d.mode != Lenient && lostMarker(b, h.seal) {
			return bad(errnoEBADMSG, marsCRCFlags, "the mark of the record checksum is damaged")
		}
		return nil
	}
	if crc := seal(b); crc != h.seal {
		return bad(errnoEBADMSG, marsCRCMismatch, "record checksum is %08x, computed %08x", h.seal, crc)
	}
	return nil
}

// lostMarker reports whether the record b is a sealed one but for its marker. The original has
// zeros in both places, and ignores what others have there.
func lostMarker(b []byte, sum uint32) bool {
	t := b[len(b)-trailerSize:]
	was := t[offMarker]
	t[offMarker] = sealMarker
	ours := seal(b) == sum
	t[offMarker] = was
	return ours
}

// unpack decompresses rec.Data.
func (d *decoder) unpack(h *header, rec *Record) *fault {
	if h.raw == 0 {
		if rec.Compression != 0 {
			return bad(errnoEBADMSG, marsUncompLength, "compressed with %v, but without an uncompressed length", rec.Compression)
		}
		return nil
	}
	if h.raw <= h.stored || h.raw%sectorSize != 0 {
		return bad(errnoEBADMSG, marsUncompLength, "uncompressed length %d of %d compressed bytes", h.raw, h.stored)
	}
	data, err := d.z.inflate(rec.Compression, rec.Data, h.raw)
	if err != nil {
		return bad(errnoEBADMSG, marsUncompress, "decompress %d bytes (%v) to %d: %v", h.stored, rec.Compression, h.raw, err)
	}
	rec.Data, rec.DataOffset = data, -1
	return nil
}

// checkDigest verifies the original's checksum over the uncompressed payload.
func (d *decoder) checkDigest(t *trailer, rec *Record) *fault {
	flags := t.flags & digestMask
	if flags&foldedMask != 0 {
		rec.Digest = preferred(flags)
		sum, ok := payloadDigest(rec.Digest, rec.Data)
		if !ok || fold(sum) != t.digest {
			return bad(errnoEBADMSG, marsCRCMismatch, "%v digest of the payload differs", rec.Digest)
		}
		return nil
	}
	// Without a flag and a word this is a record from before 2020 that nobody
	// checksummed. With the flag, a zero word can be what MD5 gave.
	if t.word == 0 && flags == 0 {
		if d.mode == Lenient || rec.Sealed {
			return nil
		}
		return bad(errnoEBADMSG, marsCRCFlags, "no checksum (flags %#04x), which only lenient mode accepts", uint16(t.flags))
	}
	rec.Digest = DigestMD5Old
	sum, _ := payloadDigest(DigestMD5Old, rec.Data)
	if word := binary.LittleEndian.Uint32(sum[:]); word != t.word {
		return bad(errnoEBADMSG, marsCRCMismatch, "md5 word is %08x, computed %08x", t.word, word)
	}
	return nil
}

// checkTarget refuses what cannot be applied to the device.
func (d *decoder) checkTarget(rec *Record) *fault {
	n, err := rec.length()
	if err != nil {
		return bad(errnoEBADMSG, 0, "%v record: %v", rec.Code, err)
	}
	if n == 0 {
		return nil
	}
	limit := d.maxPos
	if limit == 0 {
		limit = math.MaxInt64
	}
	if rec.Pos < 0 || rec.Pos > limit-n {
		return bad(errnoEBADMSG, 0, "%v of %d bytes at device offset %d is beyond the device (%d bytes)", rec.Code, n, rec.Pos, d.maxPos)
	}
	return nil
}

// unfinished reports whether the record at the start of rest, the remaining log,
// was cut by zeros that reach to the end of the log: the file had grown, but the
// last blocks never hit the disk. The end magic must be among those zeros,
// otherwise the record was complete once.
func unfinished(rest []byte) bool {
	written := len(bytes.TrimRight(rest, "\x00"))
	var magic [8]byte
	binary.LittleEndian.PutUint64(magic[:], startMagic)
	if n := min(written, len(magic)); !bytes.Equal(rest[:n], magic[:n]) {
		return false
	}
	if written <= headerSize {
		return true
	}
	h := parseHeader(rest)
	return h.consistent() && written <= h.total-trailerSize
}
