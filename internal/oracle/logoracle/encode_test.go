package logoracle

import (
	"bytes"
	"compress/zlib"
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// rec is a record to encode, straight from the table in the reference.
type rec struct {
	pos      int64
	code     int16
	seq      uint32
	data     []byte
	digest   string // "" means crc32c
	compress string
	sealed   bool
}

func (r rec) encode(t testing.TB) []byte {
	t.Helper()
	le := binary.LittleEndian
	flags, word, field := digestFor(r.digest, r.data)
	area, original := r.data, 0
	if r.compress != "" {
		f, packed := compressed(t, r.compress, r.data)
		flags |= f
		original = len(r.data)
		area = append(packed, bytes.Repeat([]byte{0xee}, (8-len(packed)%8)%8)...)
		r.data = packed
	}
	total := 48 + len(area) + 36
	p := make([]byte, total)
	le.PutUint64(p, 0xA8F7E908D9177957)
	p[8], p[9] = 1, 1
	le.PutUint16(p[10:], uint16(total))
	le.PutUint64(p[12:], 1700000000)
	le.PutUint64(p[20:], 123456789)
	le.PutUint64(p[28:], uint64(r.pos))
	le.PutUint16(p[36:], uint16(len(r.data)))
	le.PutUint16(p[38:], uint16(original))
	le.PutUint16(p[44:], uint16(r.code))
	copy(p[48:], area)
	end := p[48+len(area):]
	le.PutUint64(end, 0x74941FB74AB5726D)
	le.PutUint32(end[8:], word)
	end[12] = 1
	le.PutUint16(end[14:], flags)
	le.PutUint32(end[16:], r.seq)
	copy(end[20:], field)
	if r.sealed {
		end[13] = 0x4D
		le.PutUint32(p[40:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	}
	return p
}

func fold(d []byte) []byte {
	d = append(d, make([]byte, 32-len(d))...)
	out := make([]byte, 16)
	for i := range out {
		out[i] = d[i] ^ d[i+16]
	}
	return out
}

func digestFor(name string, data []byte) (flags uint16, word uint32, field []byte) {
	eight := func(sum func([]byte) uint32) []byte {
		var d []byte
		n := len(data) / 8
		for i := range 8 {
			hi := (i + 1) * n
			if i == 7 {
				hi = len(data)
			}
			d = binary.LittleEndian.AppendUint32(d, sum(data[i*n:hi]))
		}
		return fold(d)
	}
	switch name {
	case "md5-old":
		s := md5.Sum(data)
		return 1, binary.LittleEndian.Uint32(s[:4]), nil
	case "md5":
		a, b := md5.Sum(data[:len(data)/2]), md5.Sum(data[len(data)/2:])
		return 2, 0, fold(append(a[:], b[:]...))
	case "crc32":
		return 8, 0, eight(func(p []byte) uint32 { // bit by bit, seed 0, no final inversion
			c := uint32(0)
			for _, b := range p {
				c ^= uint32(b)
				for range 8 {
					c = c>>1 ^ 0xEDB88320*(c&1)
				}
			}
			return c
		})
	case "sha1":
		s := sha1.Sum(data)
		return 16, 0, fold(s[:])
	case "none":
		return 0, 0, nil
	}
	return 4, 0, eight(func(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) })
}

func compressed(t testing.TB, how string, data []byte) (uint16, []byte) {
	t.Helper()
	if how == "lz4" {
		out := make([]byte, lz4.CompressBlockBound(len(data)))
		n, err := lz4.CompressBlock(data, out, nil)
		if err != nil || n == 0 {
			t.Fatal("not compressible", err)
		}
		return 0x0200, out[:n]
	}
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write(data)
	z.Close()
	return 0x0400, b.Bytes()
}

func rangeRec(code int16, pos, length int64, seq uint32) rec {
	p := make([]byte, 16)
	binary.LittleEndian.PutUint64(p, uint64(length))
	return rec{pos: pos, code: code, seq: seq, data: p, sealed: true}
}
