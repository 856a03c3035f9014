package logfile

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Layout of a record (docs/LOG-FORMAT.md). All integers are little endian.
const (
	startMagic = 0xA8F7E908D9177957
	endMagic   = 0x74941FB74AB5726D

	formatVersion = 1

	headerSize  = 48
	trailerSize = 36

	// Overhead is what a record costs beyond its payload area.
	Overhead = headerSize + trailerSize
	// MaxPayload is the largest payload that the original's readers are known to
	// accept (63 sectors), and the largest this package writes.
	MaxPayload = 32256
	// maxTotal bounds the record length field, a signed 16 bit number.
	maxTotal = 1<<15 - 1

	// sealMarker in the spare byte of the trailer says that the spare word of the
	// header holds a CRC-32C of the whole encoded record.
	sealMarker = 0x4D

	// kernelPayload is the page size, the largest payload the original writes;
	// kernelRegion is the device border that its records never cross.
	kernelPayload = 4096
	kernelRegion  = 64 << 10

	// sectorSize divides the uncompressed length of every compressed record.
	sectorSize = 512
)

// Offsets inside the header.
const (
	offMagic   = 0
	offVersion = 8
	offValid   = 9
	offTotal   = 10
	offSec     = 12
	offNsec    = 20
	offPos     = 28
	offStored  = 36
	offRaw     = 38
	offSeal    = 40
	offCode    = 44
)

// Offsets inside the trailer.
const (
	offEndMagic = 0
	offWord     = 8
	offValid2   = 12
	offMarker   = 13
	offFlags    = 14
	offSeq      = 16
	offDigest   = 20
)

// Code says what a record means.
type Code int16

const (
	CodeUnknown Code = 0
	CodeWrite   Code = 1 // the payload is the new content at Pos
	CodeOld     Code = 2 // the payload is what was there before; never replayed
	// CodeDiscard and CodeZeroes are ours. The original checks and skips them.
	// Their payload is RangePayload; the header's Pos is the device offset.
	CodeDiscard Code = 0x4D01
	CodeZeroes  Code = 0x4D02
)

func (c Code) String() string {
	switch c {
	case CodeUnknown:
		return "unknown"
	case CodeWrite:
		return "write"
	case CodeOld:
		return "old"
	case CodeDiscard:
		return "discard"
	case CodeZeroes:
		return "zeroes"
	}
	return fmt.Sprintf("code(%#04x)", uint16(c))
}

// rangePayloadSize is the size of the payload of CodeDiscard and CodeZeroes.
const rangePayloadSize = 16

// RangePayload encodes the payload of a CodeDiscard or CodeZeroes record.
func RangePayload(length int64) []byte {
	p := make([]byte, rangePayloadSize)
	binary.LittleEndian.PutUint64(p, uint64(length))
	return p
}

// ParseRangePayload decodes a payload made by RangePayload.
func ParseRangePayload(p []byte) (length int64, err error) {
	if len(p) != rangePayloadSize {
		return 0, fmt.Errorf("range payload has %d bytes, want %d", len(p), rangePayloadSize)
	}
	length = int64(binary.LittleEndian.Uint64(p))
	if length <= 0 {
		return 0, fmt.Errorf("range payload covers %d bytes", length)
	}
	if f := binary.LittleEndian.Uint32(p[8:]); f != 0 {
		return 0, fmt.Errorf("range payload has unknown flags %#x", f)
	}
	return length, nil
}

// Flags is a set of digest or compression bits as they stand in a record.
type Flags uint16

const (
	DigestMD5Old Flags = 0x0001
	DigestMD5    Flags = 0x0002
	DigestCRC32C Flags = 0x0004
	DigestCRC32  Flags = 0x0008
	DigestSHA1   Flags = 0x0010
	CompressLZO  Flags = 0x0100
	CompressLZ4  Flags = 0x0200
	CompressZlib Flags = 0x0400

	digestMask   = DigestMD5Old | DigestMD5 | DigestCRC32C | DigestCRC32 | DigestSHA1
	foldedMask   = digestMask &^ DigestMD5Old
	compressMask = CompressLZO | CompressLZ4 | CompressZlib
)

var flagNames = []struct {
	flag Flags
	name string
}{
	{DigestCRC32C, "crc32c"}, {DigestCRC32, "crc32"}, {DigestMD5, "md5"}, {DigestSHA1, "sha1"}, {DigestMD5Old, "md5old"},
	{CompressLZO, "lzo"}, {CompressLZ4, "lz4"}, {CompressZlib, "zlib"},
}

// String names the bits, joined by "+"; no bit at all is "none".
func (f Flags) String() string {
	if f == 0 {
		return "none"
	}
	var out []string
	for _, n := range flagNames {
		if f&n.flag != 0 {
			out = append(out, n.name)
			f &^= n.flag
		}
	}
	if f != 0 {
		out = append(out, fmt.Sprintf("%#04x", uint16(f)))
	}
	return strings.Join(out, "+")
}

// Record is one decoded record. The Reader reuses it: a Record and its Data are
// valid until the next call of Next.
type Record struct {
	Offset int64     // file offset of the first byte
	Total  int       // bytes in the file; the next record starts at Offset+Total
	Stamp  time.Time // Lamport time of the write
	Pos    int64     // target, bytes on the device
	Code   Code
	Data   []byte // uncompressed payload
	// DataOffset is the file offset of the payload, -1 if it is stored compressed.
	DataOffset  int64
	Stored      int   // bytes of the payload as stored
	Compression Flags // 0: stored as is
	Digest      Flags // the digest that was checked, 0: none (lenient only)
	Seq         uint32
	Sealed      bool // carries our CRC-32C of the whole record, and it is right
}

// End is the log position of the record: the offset behind its last byte.
func (r *Record) End() int64 { return r.Offset + int64(r.Total) }

// length is the number of device bytes that the record covers, 0 for codes that
// do not change the device.
func (r *Record) length() (int64, error) {
	switch r.Code {
	case CodeWrite:
		return int64(len(r.Data)), nil
	case CodeDiscard, CodeZeroes:
		return ParseRangePayload(r.Data)
	}
	return 0, nil
}
