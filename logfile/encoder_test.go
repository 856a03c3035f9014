package logfile

import (
	"bytes"
	"compress/zlib"
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"
)

// testRecord is encoded by code that shares nothing with the package, so that a
// mistake there is not made twice.
type testRecord struct {
	seq      uint32
	sec      int64
	nsec     int64
	pos      int64
	code     int16
	payload  []byte
	digest   uint16 // one bit of 0x1f; 0: no checksum
	compress uint16 // 0, 0x200, 0x400
	seal     bool
}

// crcTable is the textbook table of a reflected CRC.
func crcTable(poly uint32) (t [256]uint32) {
	for i := range t {
		c := uint32(i)
		for range 8 {
			c = c>>1 ^ poly*(c&1)
		}
		t[i] = c
	}
	return t
}

var tableC, tableI = crcTable(0x82F63B78), crcTable(0xEDB88320)

// crcBytes is a CRC the slow way.
func crcBytes(table *[256]uint32, crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc = crc>>8 ^ table[byte(crc)^b]
	}
	return crc
}

func crc32cSlow(p []byte) uint32 { return ^crcBytes(&tableC, ^uint32(0), p) }

// testDigest returns the folded digest and the word.
func testDigest(alg uint16, p []byte) (folded [16]byte, word uint32) {
	var full []byte
	slices := func(crc func([]byte) uint32) {
		n := len(p) / 8
		for i := range 7 {
			full = binary.LittleEndian.AppendUint32(full, crc(p[i*n:(i+1)*n]))
		}
		full = binary.LittleEndian.AppendUint32(full, crc(p[7*n:]))
	}
	switch alg {
	case 0:
		return
	case 0x01:
		sum := md5.Sum(p)
		return folded, binary.LittleEndian.Uint32(sum[:4])
	case 0x02:
		a, b := md5.Sum(p[:len(p)/2]), md5.Sum(p[len(p)/2:])
		full = append(a[:], b[:]...)
	case 0x04:
		slices(crc32cSlow)
	case 0x08:
		slices(func(s []byte) uint32 { return crcBytes(&tableI, 0, s) })
	case 0x10:
		sum := sha1.Sum(p)
		full = append(sum[:], make([]byte, 12)...)
	}
	for i, b := range full {
		folded[i%16] ^= b
	}
	return folded, 0
}

// compressTest returns the compressed payload, nil if it did not shrink.
func compressTest(t testing.TB, alg uint16, p []byte) []byte {
	t.Helper()
	var out []byte
	switch alg {
	case 0:
		return nil
	case 0x200:
		out = make([]byte, lz4.CompressBlockBound(len(p)))
		n, err := lz4.CompressBlock(p, out, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = out[:n]
	case 0x400:
		var buf bytes.Buffer
		w := zlib.NewWriter(&buf)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out = buf.Bytes()
	}
	if len(out) == 0 || (len(out)+7)/8*8 >= len(p) {
		return nil
	}
	return out
}

func (r testRecord) encode(t testing.TB) []byte {
	t.Helper()
	stored, raw, flags := r.payload, 0, r.digest
	area := len(stored)
	if z := compressTest(t, r.compress, r.payload); z != nil {
		stored, raw, flags = z, len(r.payload), flags|r.compress
		area = (len(z) + 7) / 8 * 8
	}
	le := binary.LittleEndian
	var b []byte
	b = append(b, 0x57, 0x79, 0x17, 0xd9, 0x08, 0xe9, 0xf7, 0xa8, 1, 1)
	b = le.AppendUint16(b, uint16(84+area))
	b = le.AppendUint64(b, uint64(r.sec))
	b = le.AppendUint64(b, uint64(r.nsec))
	b = le.AppendUint64(b, uint64(r.pos))
	b = le.AppendUint16(b, uint16(len(stored)))
	b = le.AppendUint16(b, uint16(raw))
	b = append(b, 0, 0, 0, 0)
	b = le.AppendUint16(b, uint16(r.code))
	b = append(b, 0, 0)
	b = append(b, stored...)
	for len(b) < 48+area {
		b = append(b, 0xA5) // filler is whatever was there
	}
	folded, word := testDigest(r.digest, r.payload)
	b = append(b, 0x6d, 0x72, 0xb5, 0x4a, 0xb7, 0x1f, 0x94, 0x74)
	b = le.AppendUint32(b, word)
	b = append(b, 1, 0)
	if r.seal {
		b[len(b)-1] = 0x4D
	}
	b = le.AppendUint16(b, flags)
	b = le.AppendUint32(b, r.seq)
	b = append(b, folded[:]...)
	if r.seal {
		le.PutUint32(b[40:], crc32cSlow(b))
	}
	return b
}

var testName = Name{Seq: 7, Host: "host-a"}

// text is a payload that compresses.
func text(rng *rand.Rand, n int) []byte {
	words := []string{"extent ", "checkpoint ", "writeback ", "replay ", "fetch ", "sync "}
	var b []byte
	for len(b) < n {
		b = append(b, words[rng.IntN(len(words))]...)
	}
	return b[:n]
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// plain is a record as the original's kernel writes it.
func plain(seq uint32, pos int64, payload []byte) testRecord {
	return testRecord{seq: seq, sec: 1700000000 + int64(seq), nsec: int64(seq), pos: pos, code: 1, payload: payload, digest: 0x04}
}

// sealed is a record as this package writes it.
func sealed(seq uint32, pos int64, payload []byte) testRecord {
	r := plain(seq, pos, payload)
	r.seal = true
	return r
}

func encodeAll(t testing.TB, recs ...testRecord) []byte {
	t.Helper()
	var b []byte
	for _, r := range recs {
		b = append(b, r.encode(t)...)
	}
	return b
}

// readAll returns deep copies of all records and the error that ended them.
func readAll(t testing.TB, log []byte, opt ReaderOptions) ([]Record, error) {
	t.Helper()
	r := NewReader(bytes.NewReader(log), int64(len(log)), testName, opt)
	defer r.Close()
	var out []Record
	for {
		rec, err := r.Next(t.Context())
		if err != nil {
			return out, err
		}
		c := *rec
		c.Data = bytes.Clone(rec.Data)
		out = append(out, c)
	}
}

// mustRead expects the log to be sound.
func mustRead(t testing.TB, log []byte, opt ReaderOptions) []Record {
	t.Helper()
	out, err := readAll(t, log, opt)
	if err != io.EOF {
		t.Fatalf("after %d records: %v", len(out), err)
	}
	return out
}

func (r testRecord) check(t testing.TB, got Record) {
	t.Helper()
	if got.Seq != r.seq || got.Pos != r.pos || int16(got.Code) != r.code || !got.Stamp.Equal(time.Unix(r.sec, r.nsec)) {
		t.Errorf("got seq %d pos %d code %v stamp %v, want %d %d %d %d.%09d", got.Seq, got.Pos, got.Code, got.Stamp, r.seq, r.pos, r.code, r.sec, r.nsec)
	}
	if !bytes.Equal(got.Data, r.payload) {
		t.Errorf("record %d: payload differs (%d bytes, want %d)", r.seq, len(got.Data), len(r.payload))
	}
	if got.Sealed != r.seal || got.Digest != Flags(r.digest) {
		t.Errorf("record %d: sealed %v digest %v, want %v %v", r.seq, got.Sealed, got.Digest, r.seal, Flags(r.digest))
	}
}
