package logfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// wantDefect describes the expected end of a damaged log.
type wantDefect struct {
	torn        bool
	errno, mars int
	repeated    int
	offset      int64
}

func checkDefect(t *testing.T, err error, want wantDefect) {
	t.Helper()
	var torn *TornError
	var corrupt *CorruptError
	var d Defect
	switch {
	case errors.As(err, &torn):
		d = torn.Defect
	case errors.As(err, &corrupt):
		d = corrupt.Defect
	default:
		t.Fatalf("got %v, want a defect", err)
	}
	got := wantDefect{torn != nil, d.Errno, d.MarsCode, d.RepeatedByte, d.Offset}
	if got != want {
		t.Errorf("got %+v, want %+v (%v)", got, want, err)
	}
	if d.Log != testName || d.Reason == "" || d.Hint == "" || !strings.Contains(err.Error(), Position{testName, want.offset}.String()) {
		t.Errorf("the error does not say what and where: %v", err)
	}
}

// TestReaderRules is the table "Reader rules" of docs/LOG-FORMAT.md, row by row.
// Each row damages the second of three records, or the last.
func TestReaderRules(t *testing.T) {
	rng := newRand(1)
	le := binary.LittleEndian
	first := plain(1, 0, noise(rng, 512)).encode(t)
	third := plain(3, 8192, noise(rng, 512)).encode(t)
	at := int64(len(first))
	size := 84 + 1024
	end := size - 36 // the trailer of the second record
	compressed := func(alg uint16) []byte {
		r := plain(2, 4096, text(rng, 2048))
		r.compress = alg
		return r.encode(t)
	}
	rows := []struct {
		name   string
		damage func(b []byte) []byte // of the second record
		last   bool                  // nothing follows
		want   wantDefect
	}{
		{"84 bytes left", func(b []byte) []byte { return b[:84] }, true, wantDefect{true, 0, 0, -1, at}},
		{"1 byte of garbage left", func([]byte) []byte { return []byte{0xEE} }, true, wantDefect{true, 0, 0, -1, at}},
		{"start magic", func(b []byte) []byte { b[3]++; return b }, false, wantDefect{false, 74, 10013, -1, at}},
		{"start magic at the end", func(b []byte) []byte { b[3]++; return b }, true, wantDefect{false, 74, 10013, -1, at}},
		{"zeros inside", func(b []byte) []byte { clear(b); return b }, false, wantDefect{false, 74, 10013, -1, at}},
		{"zeros up to the end", func(b []byte) []byte { clear(b); return b }, true, wantDefect{true, 74, 10013, -1, at}},
		{"long zeros up to the end", func([]byte) []byte { return make([]byte, maxTotal+1) }, true, wantDefect{false, 74, 10013, -1, at}},
		{"version", func(b []byte) []byte { b[8] = 2; return b }, false, wantDefect{false, 74, 10003, -1, at}},
		{"valid flag", func(b []byte) []byte { b[9] = 0; return b }, false, wantDefect{false, 74, 10003, -1, at}},
		{"length 0", func(b []byte) []byte { le.PutUint16(b[10:], 0); return b }, false, wantDefect{false, 85, 10004, -1, at}},
		{"length 0 at the end, zeros behind", func(b []byte) []byte { clear(b[10:]); return b }, true, wantDefect{true, 85, 10004, -1, at}},
		{"length 0 at the end, data behind", func(b []byte) []byte { le.PutUint16(b[10:], 0); return b }, true, wantDefect{false, 85, 10004, -1, at}},
		{"length negative", func(b []byte) []byte { le.PutUint16(b[10:], 0x8000); return b }, false, wantDefect{false, 74, 10005, -1, at}},
		{"cut", func(b []byte) []byte { return b[:500] }, true, wantDefect{true, 11, 10006, -1, at}},
		{"length too long at the end", func(b []byte) []byte { le.PutUint16(b[10:], uint16(size+8)); return b }, true, wantDefect{false, 11, 10006, -1, at}},
		{"length 84", func(b []byte) []byte { le.PutUint16(b[10:], 84); return b }, false, wantDefect{false, 85, 10007, -1, at}},
		{"length half written at the end", func(b []byte) []byte { clear(b[11:]); b[10] = 84; return b }, true, wantDefect{true, 85, 10007, -1, at}},
		{"end never written", func(b []byte) []byte { clear(b[end:]); return b }, true, wantDefect{true, 85, 0, -1, at}},
		{"payload and end never written", func(b []byte) []byte { clear(b[48:]); return b }, true, wantDefect{true, 85, 0, -1, at}},
		{"end magic zero inside", func(b []byte) []byte { clear(b[end : end+8]); return b }, false, wantDefect{false, 85, 0, -1, at}},
		{"end magic zero, rest there", func(b []byte) []byte { clear(b[end : end+8]); return b }, true, wantDefect{false, 85, 0, -1, at}},
		{"end magic repeated", func(b []byte) []byte { copy(b[end:], bytes.Repeat([]byte{0x6b}, 8)); return b }, false, wantDefect{false, 74, 10021, 0x6b, at}},
		{"end magic", func(b []byte) []byte { b[end]++; return b }, false, wantDefect{false, 56, 10020, -1, at}},
		{"valid copy", func(b []byte) []byte { b[end+12] = 2; return b }, false, wantDefect{false, 74, 10009, -1, at}},
		{"sequence forward", func(b []byte) []byte { b[end+16] = 3; return b }, false, wantDefect{false, 74, 10010, -1, at}},
		{"uncompressed length not in sectors", func([]byte) []byte { z := compressed(0x200); le.PutUint16(z[38:], 2047); return z }, false, wantDefect{false, 74, 10152, -1, at}},
		{"uncompressed length too small", func([]byte) []byte { z := compressed(0x200); le.PutUint16(z[38:], 512); return z }, false, wantDefect{false, 74, 10152, -1, at}},
		{"uncompressed length negative", func([]byte) []byte { z := compressed(0x400); le.PutUint16(z[38:], 0x8200); return z }, false, wantDefect{false, 74, 10152, -1, at}},
		{"uncompressed length missing", func([]byte) []byte {
			r := plain(2, 0, noise(rng, 1024)).encode(t)
			le.PutUint16(r[end+14:], 0x0204)
			return r
		}, false, wantDefect{false, 74, 10152, -1, at}},
		{"lz4 block damaged", func([]byte) []byte { z := compressed(0x200); copy(z[48:], bytes.Repeat([]byte{0xff}, 64)); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"zlib stream damaged", func([]byte) []byte { z := compressed(0x400); z[60] ^= 0x10; return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"lz4 block holds less", func([]byte) []byte { z := compressed(0x200); le.PutUint16(z[38:], 4096); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"lz4 block holds more", func([]byte) []byte { z := compressed(0x200); le.PutUint16(z[38:], 1536); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"zlib stream holds less", func([]byte) []byte { z := compressed(0x400); le.PutUint16(z[38:], 4096); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"zlib stream holds more", func([]byte) []byte { z := compressed(0x400); le.PutUint16(z[38:], 1536); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"zlib header", func([]byte) []byte { z := compressed(0x400); z[48] = 0; return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"zlib checksum", func([]byte) []byte {
			z := compressed(0x400)
			z[48+int(le.Uint16(z[36:]))-1]++
			return z
		}, false, wantDefect{false, 74, 10150, -1, at}},
		{"lzo", func([]byte) []byte { z := compressed(0x400); le.PutUint16(z[len(z)-22:], 0x0104); return z }, false, wantDefect{false, 74, 10150, -1, at}},
		{"no checksum", func(b []byte) []byte { clear(b[end+14 : end+16]); return b }, false, wantDefect{false, 74, 10100, -1, at}},
		{"payload", func(b []byte) []byte { b[100]++; return b }, false, wantDefect{false, 74, 10101, -1, at}},
		{"digest", func(b []byte) []byte { b[end+20]++; return b }, false, wantDefect{false, 74, 10101, -1, at}},
		{"stored length", func(b []byte) []byte { le.PutUint16(b[36:], 1016); return b }, false, wantDefect{false, 74, 10012, -1, at}},
		{"stored length beyond the record", func(b []byte) []byte { le.PutUint16(b[36:], 2000); return b }, false, wantDefect{false, 74, 10012, -1, at}},
		{"stored length 0", func(b []byte) []byte { le.PutUint16(b[36:], 0); return b }, false, wantDefect{false, 74, 10012, -1, at}},
		{"negative position", func(b []byte) []byte { b[35] = 0x80; return b }, false, wantDefect{false, 74, 0, -1, at}},
		{"position at the end of all numbers", func(b []byte) []byte { le.PutUint64(b[28:], 1<<63-1); return b }, false, wantDefect{false, 74, 0, -1, at}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			log := append(bytes.Clone(first), row.damage(plain(2, 4096, noise(newRand(2), 1024)).encode(t))...)
			if !row.last {
				log = append(log, third...)
			}
			recs, err := readAll(t, log, ReaderOptions{End: -1})
			if len(recs) != 1 {
				t.Errorf("%d records before the damage, want 1", len(recs))
			}
			checkDefect(t, err, row.want)
		})
	}
}

// TestReaderRulesAccepted are the rows where the original goes on.
func TestReaderRulesAccepted(t *testing.T) {
	rng := newRand(3)
	seqs := func(list ...uint32) []byte {
		var b []byte
		for _, s := range list {
			b = append(b, plain(s, int64(s)*512, noise(rng, 512)).encode(t)...)
		}
		return b
	}
	for name, c := range map[string]struct {
		log   []byte
		count int
	}{
		"nothing left":            {nil, 0},
		"one record":              {seqs(1), 1},
		"sequence backward":       {seqs(5, 6, 2, 3), 4},
		"sequence 0 is wild":      {seqs(1, 0, 7, 8), 4},
		"starts in the middle":    {seqs(77, 78), 2},
		"unknown flag bits":       {func() []byte { b := seqs(1); b[84+512-22] |= 0x60; b[84+512-21] |= 0xf8; return b }(), 1},
		"spare bytes are ignored": {func() []byte { b := seqs(1); b[40], b[46], b[84+512-23] = 1, 2, 3; return b }(), 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustRead(t, c.log, ReaderOptions{End: -1}); len(got) != c.count {
				t.Errorf("%d records, want %d", len(got), c.count)
			}
		})
	}
	// Codes that are not ours are checked and handed over, whatever their position.
	for _, code := range []int16{0, 2, 3, 100, -1} {
		r := plain(1, -5, noise(rng, 100))
		r.code = code
		got := mustRead(t, r.encode(t), ReaderOptions{End: -1, MaxPos: 10})
		r.check(t, got[0])
	}
}

func TestStrictSequence(t *testing.T) {
	rng := newRand(4)
	for name, c := range map[string]struct {
		seqs []uint32
		mars int
	}{
		"first is not 1": {[]uint32{2}, 10010},
		"backward":       {[]uint32{1, 2, 2}, 10011},
		"zero":           {[]uint32{1, 0}, 10011},
		"forward":        {[]uint32{1, 3}, 10010},
	} {
		t.Run(name, func(t *testing.T) {
			var log []byte
			for _, s := range c.seqs {
				log = append(log, sealed(s, 0, noise(rng, 64)).encode(t)...)
			}
			recs, err := readAll(t, log, ReaderOptions{Mode: Strict, End: -1})
			checkDefect(t, err, wantDefect{false, 74, c.mars, -1, int64((len(c.seqs) - 1) * 148)})
			if len(recs) != len(c.seqs)-1 {
				t.Errorf("%d records", len(recs))
			}
		})
	}
	// In the middle of a file any number may come first.
	log := encodeAll(t, sealed(1, 0, noise(rng, 64)), sealed(2, 0, noise(rng, 64)))
	if got := mustRead(t, log, ReaderOptions{Mode: Strict, Start: 148, End: -1}); len(got) != 1 || got[0].Offset != 148 {
		t.Errorf("got %v", got)
	}
}

// TestEveryFlip changes each byte of a sealed record, in several ways: strict mode
// must notice every one, wherever the record stands, and never take one for the
// end of the log when a record follows.
func TestEveryFlip(t *testing.T) {
	rng := newRand(5)
	z := sealed(2, 4096, text(rng, 1024))
	z.compress = 0x400
	zeroes := sealed(2, 4096, RangePayload(1<<20))
	zeroes.code = int16(CodeZeroes)
	for name, mid := range map[string]testRecord{"write": sealed(2, 4096, noise(rng, 600)), "zeros": sealed(2, 512, make([]byte, 512)), "zlib": z, "range": zeroes} {
		for _, follow := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/follow=%v", name, follow), func(t *testing.T) {
				a, b := sealed(1, 0, noise(rng, 512)).encode(t), mid.encode(t)
				log := append(bytes.Clone(a), b...)
				if follow {
					log = append(log, sealed(3, 9000, noise(rng, 100)).encode(t)...)
				}
				mustRead(t, log, ReaderOptions{Mode: Strict, End: -1}) // negative control
				for i := range b {
					for _, x := range []byte{0x01, 0x80, 0xff} {
						at := len(a) + i
						log[at] ^= x
						recs, err := readAll(t, log, ReaderOptions{Mode: Strict, End: -1})
						log[at] ^= x
						var corrupt *CorruptError
						if len(recs) != 1 || !errors.As(err, &corrupt) {
							t.Fatalf("byte %d xor %#x: %d records, %v", i, x, len(recs), err)
						}
					}
				}
			})
		}
	}
}

// TestCompatFlips: in a sealed log compat mode is as sharp, from the first record on, although
// nothing before it announces its seal.
func TestCompatFlips(t *testing.T) {
	rng := newRand(6)
	a, b := sealed(1, 0, noise(rng, 512)).encode(t), sealed(2, 4096, noise(rng, 100)).encode(t)
	log := append(bytes.Clone(a), b...)
	for i := range log {
		log[i] ^= 0x04
		want := 0
		if i >= len(a) {
			want = 1
		}
		if recs, err := readAll(t, log, ReaderOptions{End: -1}); len(recs) != want || err == io.EOF {
			t.Fatalf("byte %d: %d records, %v", i, len(recs), err)
		}
		log[i] ^= 0x04
	}
}

// TestHolesOfTheFoldedDigest shows what the seal is for: each of these passes in
// an unsealed log, as with the original, and is refused in a sealed one.
func TestHolesOfTheFoldedDigest(t *testing.T) {
	rng := newRand(7)
	damages := map[string]func(b []byte){
		"position":        func(b []byte) { b[29] ^= 1 },
		"stamp":           func(b []byte) { b[12] ^= 1 },
		"payload of 0x55": func(b []byte) { copy(b[48:], bytes.Repeat([]byte{0x55}, 4096)) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			b := plain(1, 4096, make([]byte, 4096)).encode(t)
			damage(b)
			mustRead(t, b, ReaderOptions{End: -1})
			s := sealed(1, 4096, make([]byte, 4096)).encode(t)
			damage(s)
			for _, mode := range []Mode{Strict, Compat, Lenient} {
				_, err := readAll(t, s, ReaderOptions{Mode: mode, End: -1})
				checkDefect(t, err, wantDefect{false, 74, 10101, -1, 0})
			}
		})
	}
	// A swapped payload: the halves trade places.
	p := noise(rng, 4096)
	b := plain(1, 0, p).encode(t)
	copy(b[48:], p[2048:])
	copy(b[48+2048:], p[:2048])
	mustRead(t, b, ReaderOptions{End: -1})
	s := sealed(1, 0, p).encode(t)
	copy(s[48:], b[48:48+4096])
	if _, err := readAll(t, s, ReaderOptions{Mode: Strict, End: -1}); err == io.EOF {
		t.Error("swapped halves pass in strict mode")
	}
}

// TestEveryTruncation cuts a log at each byte: a border is the end, everything
// else a torn tail; never corruption, never a record too many.
func TestEveryTruncation(t *testing.T) {
	rng := newRand(8)
	z := sealed(3, 4096, text(rng, 2048))
	z.compress = 0x200
	recs := []testRecord{sealed(1, 0, noise(rng, 512)), sealed(2, 512, noise(rng, 7)), z, sealed(4, 0, noise(rng, 1000))}
	log := encodeAll(t, recs...)
	borders := map[int]int{0: 0}
	for i := range recs {
		borders[len(encodeAll(t, recs[:i+1]...))] = i + 1
	}
	for _, mode := range []Mode{Strict, Compat, Lenient} {
		whole := 0
		for cut := 0; cut <= len(log); cut++ {
			n, border := borders[cut]
			if border {
				whole = n
			}
			got, err := readAll(t, log[:cut], ReaderOptions{Mode: mode, End: -1})
			if len(got) != whole {
				t.Fatalf("%v, %d bytes: %d records, want %d", mode, cut, len(got), whole)
			}
			var torn *TornError
			if border != (err == io.EOF) || !border && !errors.As(err, &torn) {
				t.Fatalf("%v, %d bytes (border %v): %v", mode, cut, border, err)
			}
			// The same with the length still there, but the blocks never written.
			zeroed := append(bytes.Clone(log[:cut]), make([]byte, len(log)-cut)...)
			got, _ = readAll(t, zeroed, ReaderOptions{Mode: mode, End: -1})
			if len(got) < whole {
				t.Fatalf("%v, zeros from %d: %d records, want %d", mode, cut, len(got), whole)
			}
			for i, r := range got {
				if !bytes.Equal(r.Data, recs[i].payload) {
					t.Fatalf("%v, zeros from %d: record %d has a wrong payload", mode, cut, i)
				}
				if mode != Lenient { // which cannot know that there was a checksum
					recs[i].check(t, r)
				}
			}
		}
	}
}

// TestZeroTail: zeros from anywhere in the last record on are a torn tail as long
// as the end magic never made it; later the record was complete, so it is damage.
func TestZeroTail(t *testing.T) {
	rng := newRand(9)
	a, b := sealed(1, 0, noise(rng, 512)).encode(t), sealed(2, 512, noise(rng, 512)).encode(t)
	for n := range b {
		log := append(bytes.Clone(a), b[:n]...)
		log = append(log, make([]byte, len(b)-n)...)
		if bytes.Equal(log[len(a):], b) {
			continue // the digest ends in zeros
		}
		_, err := readAll(t, log, ReaderOptions{Mode: Strict, End: -1})
		var torn *TornError
		if got, want := errors.As(err, &torn), n <= len(b)-36; got != want {
			t.Errorf("zeros from byte %d of %d: torn %v, want %v (%v)", n, len(b), got, want, err)
		}
	}
}

func TestLenientAndSealRules(t *testing.T) {
	rng := newRand(10)
	bare := plain(1, 0, noise(rng, 512))
	bare.digest = 0
	old := bare.encode(t)
	binary.LittleEndian.PutUint64(old[len(old)-16:], 1400000000) // "written" time of 2019 and before

	_, err := readAll(t, old, ReaderOptions{End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10100, -1, 0})
	got := mustRead(t, old, ReaderOptions{Mode: Lenient, End: -1})
	bare.check(t, got[0])
	if _, err = readAll(t, plain(1, 0, noise(rng, 512)).encode(t), ReaderOptions{Mode: Strict, End: -1}); err == io.EOF {
		t.Error("strict mode accepts a record without seal")
	}

	// A word without flags is an MD5 word.
	md5old := plain(1, 0, noise(rng, 512))
	md5old.digest = 1
	b := md5old.encode(t)
	clear(b[len(b)-22 : len(b)-20])
	md5old.check(t, mustRead(t, b, ReaderOptions{End: -1})[0])
	b[60]++
	_, err = readAll(t, b, ReaderOptions{Mode: Lenient, End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10101, -1, 0})

	// A log has one writer: after a seal all records have one.
	mixed := encodeAll(t, sealed(1, 0, noise(rng, 64)), plain(2, 64, noise(rng, 64)))
	_, err = readAll(t, mixed, ReaderOptions{End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10100, -1, 148})
	mustRead(t, mixed, ReaderOptions{Mode: Lenient, End: -1})

	// MD5 halves need an even length; the original cannot sum odd ones either.
	odd := plain(1, 0, noise(rng, 511))
	odd.digest = 2
	_, err = readAll(t, odd.encode(t), ReaderOptions{End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10101, -1, 0})
}

// TestMD5WordOfZero: where the flag says MD5_OLD, a word of zero is a digest like any
// other, not a missing one.
func TestMD5WordOfZero(t *testing.T) {
	r := plain(1, 0, []byte("not the payload whose MD5 begins with zeros"))
	r.digest = 1
	b := r.encode(t)
	clear(b[len(b)-28 : len(b)-24])
	_, err := readAll(t, b, ReaderOptions{Mode: Lenient, End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10101, -1, 0})
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		Strict.String(): "strict", Compat.String(): "compat", Lenient.String(): "lenient", Mode(9).String(): "mode(9)",
		CodeUnknown.String(): "unknown", CodeWrite.String(): "write", CodeOld.String(): "old", CodeDiscard.String(): "discard",
		CodeZeroes.String(): "zeroes", Code(-1).String(): "code(0xffff)",
		Flags(0).String(): "none", (DigestCRC32C | CompressLZ4).String(): "crc32c+lz4", Flags(0x8004).String(): "crc32c+0x8000",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestRangeRecords(t *testing.T) {
	rec := func(code Code, pos int64, payload []byte) []byte {
		r := sealed(1, pos, payload)
		r.code = int16(code)
		return r.encode(t)
	}
	flags := RangePayload(10)
	flags[8] = 1
	for name, c := range map[string]struct {
		log []byte
		ok  bool
	}{
		"discard":     {rec(CodeDiscard, 0, RangePayload(4096)), true},
		"zeroes":      {rec(CodeZeroes, 4096, RangePayload(4096)), true},
		"beyond":      {rec(CodeZeroes, 4097, RangePayload(4096)), false},
		"empty":       {rec(CodeZeroes, 0, RangePayload(0)), false},
		"negative":    {rec(CodeDiscard, 0, RangePayload(-1)), false},
		"wraps":       {rec(CodeDiscard, 4096, RangePayload(1<<63-1)), false},
		"short":       {rec(CodeDiscard, 0, make([]byte, 8)), false},
		"flags":       {rec(CodeDiscard, 0, flags), false},
		"data":        {rec(CodeWrite, 4096, make([]byte, 4096)), true},
		"data beyond": {rec(CodeWrite, 4097, make([]byte, 4096)), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(t, c.log, ReaderOptions{Mode: Strict, End: -1, MaxPos: 8192})
			if c.ok {
				if err != io.EOF {
					t.Error(err)
				}
				return
			}
			checkDefect(t, err, wantDefect{false, 74, 0, -1, 0})
		})
	}
}

// FuzzDecode feeds anything to the decoder, in all modes, and checks that it keeps
// its bounds, does not lie about what it read, and that stricter modes accept less.
func FuzzDecode(f *testing.F) {
	rng := newRand(11)
	f.Add(encodeAll(f, sealed(1, 0, noise(rng, 100)), sealed(2, 100, noise(rng, 50))))
	for _, alg := range []uint16{0, 0x200, 0x400} {
		for _, digest := range []uint16{0, 1, 2, 4, 8, 16} {
			r := plain(1, 4096, text(rng, 1024))
			r.digest, r.compress = digest, alg
			f.Add(r.encode(f))
		}
	}
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, log []byte) {
		count := map[Mode]int{}
		for _, mode := range []Mode{Strict, Compat, Lenient} {
			recs, err := readAll(t, log, ReaderOptions{Mode: mode, End: -1, MaxPos: 1 << 30})
			count[mode] = len(recs)
			off := int64(0)
			for _, r := range recs {
				if r.Offset != off || r.Total <= Overhead || r.End() > int64(len(log)) || len(r.Data) == 0 || len(r.Data) > maxTotal {
					t.Fatalf("%v: bad record %+v at %d", mode, r, off)
				}
				if r.DataOffset >= 0 && !bytes.Equal(r.Data, log[r.DataOffset:r.DataOffset+int64(r.Stored)]) {
					t.Fatalf("%v: data is not at its offset", mode)
				}
				off = r.End()
			}
			if (err == io.EOF) != (off == int64(len(log))) || err != io.EOF && !isDefect(err) {
				t.Fatalf("%v: stopped at %d of %d with %v", mode, off, len(log), err)
			}
		}
		if count[Strict] > count[Compat] || count[Compat] > count[Lenient] {
			t.Fatalf("stricter modes accept more: %v", count)
		}
	})
}

// A reader that starts behind a sealed record knows which number must come next, and
// sealed logs start with 1: what stopped one reader stops the next one too.
func TestSealedNumbers(t *testing.T) {
	rng := newRand(77)
	one := sealed(1, 0, noise(rng, 600)).encode(t)
	start := int64(len(one))
	for _, c := range []struct {
		seq uint32
		ok  bool
	}{{2, true}, {3, false}, {1, false}, {9, false}} {
		log := append(bytes.Clone(one), sealed(c.seq, 4096, noise(rng, 600)).encode(t)...)
		for _, from := range []int64{0, start} {
			_, err := readAll(t, log, ReaderOptions{Start: from, End: int64(len(log))})
			if c.ok != (err == nil || err == io.EOF) {
				t.Errorf("number %d behind 1, read from %d: %v", c.seq, from, err)
			}
		}
		if _, err := readAll(t, log, ReaderOptions{Mode: Lenient, Start: start, End: -1}); err != nil && err != io.EOF {
			t.Errorf("lenient, number %d: %v", c.seq, err)
		}
	}
	if _, err := readAll(t, sealed(2, 0, noise(rng, 600)).encode(t), ReaderOptions{End: -1}); err == nil || err == io.EOF {
		t.Error("a sealed log that starts with number 2 passes")
	}
}
