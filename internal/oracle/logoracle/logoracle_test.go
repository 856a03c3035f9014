package logoracle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"mars/internal/testutil"
)

func pattern(n int, b byte) []byte { return bytes.Repeat([]byte{b, b + 1, 'x', 'y'}, n/4+1)[:n] }

func parse(p []byte, opt Options) (list []Record, err error) {
	err = Parse(bytes.NewReader(p), "log-000000001-a", int64(len(p)), opt, func(r *Record) error {
		c := *r
		c.Data = bytes.Clone(r.Data)
		list = append(list, c)
		return nil
	})
	return list, err
}

func TestDigestsAndCompression(t *testing.T) {
	for _, digest := range []string{"crc32c", "crc32", "md5", "sha1", "md5-old"} {
		for _, compress := range []string{"", "lz4", "zlib"} {
			data := pattern(4096, 'a')
			good := rec{pos: 8192, code: 1, seq: 1, data: data, digest: digest, compress: compress}.encode(t)
			list, err := parse(good, Options{})
			if err != nil || len(list) != 1 || !bytes.Equal(list[0].Data, data) || list[0].Digest != digest || list[0].Compressed != (compress != "") {
				t.Errorf("%s %s: %v, %d records", digest, compress, err, len(list))
			}
			bad := bytes.Clone(good)
			bad[48+len(bad[48:])/4] ^= 1
			if _, err := parse(bad, Options{}); err == nil {
				t.Errorf("%s %s: a flipped payload bit is accepted", digest, compress)
			}
		}
	}
}

func TestKernelLog(t *testing.T) {
	p, err := os.ReadFile("testdata/kernel-first.log")
	if err != nil {
		t.Fatal(err)
	}
	list, err := parse(p, Options{})
	if err != nil || len(list) != 12 || list[0].Digest != "crc32c" || list[0].Sealed {
		t.Fatalf("%d records, %v", len(list), err)
	}
	if _, err := parse(p, Options{Sealed: true}); err == nil {
		t.Fatal("a log of the original has no record CRC, but is accepted as sealed")
	}
}

// With the seal no bit of a record can change unnoticed.
func TestSealCoversEverything(t *testing.T) {
	good := rec{pos: 4096, code: 1, seq: 1, data: pattern(512, 'q'), sealed: true}.encode(t)
	if _, err := parse(good, Options{Sealed: true}); err != nil {
		t.Fatal(err)
	}
	for bit := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := parse(bad, Options{Sealed: true}); err == nil {
			t.Fatalf("bit %d flipped and accepted", bit)
		}
	}
}

func TestDamage(t *testing.T) {
	le := binary.LittleEndian
	reseal := func(p []byte) {
		clear(p[40:44])
		le.PutUint32(p[40:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	}
	end := func(p []byte) []byte { return p[len(p)-36:] }
	const size = 1 << 20
	tests := []struct {
		name   string
		harm   func(p []byte) []byte // the second of two records
		reason string
	}{
		{"start magic", func(p []byte) []byte { p[0]++; return p }, "start magic"},
		{"zeros", func(p []byte) []byte { clear(p); return p }, "start magic"},
		{"version", func(p []byte) []byte { p[8] = 2; return p }, "version"},
		{"invalid", func(p []byte) []byte { p[9] = 0; return p }, "valid flag"},
		{"total zero", func(p []byte) []byte { le.PutUint16(p[10:], 0); return p }, "total length 0"},
		{"total negative", func(p []byte) []byte { le.PutUint16(p[10:], 0x8000); return p }, "total length -"},
		{"total too large", func(p []byte) []byte { le.PutUint16(p[10:], 30000); return p }, "more than there is"},
		{"empty payload", func(p []byte) []byte { le.PutUint16(p[10:], 84); return p }, "total length 84"},
		{"end magic", func(p []byte) []byte { end(p)[3] = 0; return p }, "end magic"},
		{"end valid", func(p []byte) []byte { end(p)[12] = 0; return p }, "at the end"},
		{"payload, resealed", func(p []byte) []byte { p[50]++; reseal(p); return p }, "digest differs"},
		{"seal", func(p []byte) []byte { p[41]++; return p }, "record CRC"},
		{"marker", func(p []byte) []byte { end(p)[13] = 0; return p }, "no record CRC"},
		{"sequence gap", func(p []byte) []byte { le.PutUint32(end(p)[16:], 3); reseal(p); return p }, "sequence number 3 where 2"},
		{"sequence repeated", func(p []byte) []byte { le.PutUint32(end(p)[16:], 1); reseal(p); return p }, "sequence number 1 where 2"},
		{"stored length", func(p []byte) []byte { le.PutUint16(p[36:], 8); reseal(p); return p }, "payload of 8"},
		{"stored length beyond", func(p []byte) []byte { le.PutUint16(p[36:], 9999); reseal(p); return p }, "stored length"},
		{"uncompressed length", func(p []byte) []byte { le.PutUint16(p[38:], 1024); reseal(p); return p }, "decompress"},
		{"position beyond", func(p []byte) []byte { le.PutUint64(p[28:], size-511); reseal(p); return p }, "outside of the device"},
		{"position negative", func(p []byte) []byte { le.PutUint64(p[28:], 1<<63); reseal(p); return p }, "outside of the device"},
		{"no digest", func(p []byte) []byte { le.PutUint16(end(p)[14:], 0); reseal(p); return p }, "no digest"},
		{"cut in the header", func(p []byte) []byte { return p[:20] }, "no start part"},
		{"cut in the payload", func(p []byte) []byte { return p[:100] }, "more than there is"},
		{"cut in the end", func(p []byte) []byte { return p[:len(p)-1] }, "more than there is"},
		{"range too short", func([]byte) []byte {
			return rec{code: CodeZeroes, seq: 2, data: make([]byte, 8), sealed: true}.encode(t)
		}, "payload of 8"},
		{"range beyond", func([]byte) []byte { return rangeRec(CodeZeroes, 512, size, 2).encode(t) }, "outside of the device"},
		{"range overflow", func([]byte) []byte { return rangeRec(CodeDiscard, 512, 1<<63-1, 2).encode(t) }, "outside of the device"},
	}
	first := rec{pos: 0, code: 1, seq: 1, data: pattern(512, 'a'), sealed: true}.encode(t)
	for _, tt := range tests {
		second := rec{pos: 512, code: 1, seq: 2, data: pattern(512, 'b'), sealed: true}.encode(t)
		log := append(bytes.Clone(first), tt.harm(second)...)
		img := NewImage(nil, size)
		res, err := Reduce(img, []Log{{Name: "log-000000001-a", File: bytes.NewReader(log)}}, Position{"log-000000001-a", int64(len(log))}, Options{Sealed: true})
		var bad *Error
		if !errors.As(err, &bad) || bad.Offset != int64(len(first)) || !strings.Contains(bad.Reason, tt.reason) {
			t.Errorf("%s: error %v, want one at %d with %q", tt.name, err, len(first), tt.reason)
		}
		if res.Records != 1 {
			t.Errorf("%s: %d records applied, want the one before the damage", tt.name, res.Records)
		}
	}
}

// A random history over several logs, reduced to each of its borders, equals the
// device as the writer knew it; anything else differs.
func TestReduce(t *testing.T) {
	r := rand.New(rand.NewPCG(testutil.Seed(t), 3))
	const size = 300 << 10
	base := make([]byte, size)
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	dev := bytes.Clone(base)
	var logs []Log
	var states [][]byte
	var at []Position
	for n, name := range []string{"log-000000007-a", "log-000000008-host-b", "log-000000009-a"} {
		var file []byte
		for seq := range uint32(20) {
			off, length := r.Int64N(size/512)*512, int64(512*(1+r.IntN(60)))
			length = min(length, size-off)
			switch r.IntN(6) {
			case 0:
				file = append(file, rangeRec([]int16{CodeZeroes, CodeDiscard}[r.IntN(2)], off, length, seq+1).encode(t)...)
				clear(dev[off : off+length])
			case 1: // codes of others are skipped
				file = append(file, rec{pos: off, code: int16(2 + r.IntN(3)), seq: seq + 1, data: pattern(512, 'z'), sealed: true}.encode(t)...)
			default:
				data := make([]byte, length)
				for i := range data {
					data[i] = byte(r.Uint32())
				}
				file = append(file, rec{pos: off, code: 1, seq: seq + 1, data: data, sealed: true}.encode(t)...)
				copy(dev[off:], data)
			}
			states = append(states, bytes.Clone(dev))
			at = append(at, Position{name, int64(len(file))})
		}
		length := int64(len(file))
		if n == 2 {
			file = append(file, "a torn tail"...)
		}
		logs = append(logs, Log{name, bytes.NewReader(file), length})
	}
	r.Shuffle(len(logs), func(i, j int) { logs[i], logs[j] = logs[j], logs[i] })
	for i, pos := range at {
		img := NewImage(bytes.NewReader(base), size)
		if _, err := Reduce(img, logs, pos, Options{Sealed: true}); err != nil {
			t.Fatalf("%v: %v", pos, err)
		}
		if diffs, err := Compare(img, bytes.NewReader(states[i]), size, 5); err != nil || len(diffs) > 0 {
			t.Fatalf("%v: %v %v", pos, diffs, err)
		}
		harmed := bytes.Clone(states[i])
		k := r.IntN(size)
		harmed[k] ^= 0x40
		diffs, err := Compare(img, bytes.NewReader(harmed), size, 5)
		if err != nil || len(diffs) != 1 || diffs[0].First != int64(k) || diffs[0].Off != int64(k/512*512) || diffs[0].Len != 512 {
			t.Fatalf("one byte at %d changed: %v %v", k, diffs, err)
		}
		if _, err := Reduce(NewImage(nil, size), logs, Position{pos.Log, pos.Offset - 4}, Options{}); err == nil {
			t.Fatalf("%v - 4 is no border, but is accepted", pos)
		}
	}
}

func TestReduceRefusesBrokenChains(t *testing.T) {
	log := func(name string) Log {
		p := rec{code: 1, seq: 1, data: pattern(512, 'a'), sealed: true}.encode(t)
		return Log{name, bytes.NewReader(p), int64(len(p))}
	}
	tests := []struct {
		name string
		logs []Log
		to   string
	}{
		{"gap", []Log{log("log-000000001-a"), log("log-000000003-a")}, "log-000000003-a"},
		{"two of one serial", []Log{log("log-000000001-a"), log("log-000000001-b"), log("log-000000002-a")}, "log-000000002-a"},
		{"target missing", []Log{log("log-000000001-a")}, "log-000000002-a"},
		{"target of another host", []Log{log("log-000000001-a")}, "log-000000001-b"},
		{"bad name", []Log{log("log-1-a")}, "log-000000001-a"},
	}
	if _, err := Reduce(NewImage(nil, 4096), []Log{log("log-000000001-a")}, Position{"log-000000001-a", -4}, Options{}); err == nil {
		t.Error("negative position: accepted")
	}
	for _, tt := range tests {
		if _, err := Reduce(NewImage(nil, 4096), tt.logs, Position{tt.to, 0}, Options{}); err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}

func TestBordersAndDump(t *testing.T) {
	a := rec{code: 1, seq: 1, data: pattern(512, 'a'), sealed: true}.encode(t)
	log := append(bytes.Clone(a), rangeRec(CodeDiscard, 1024, 4096, 2).encode(t)...)
	borders, err := Borders(bytes.NewReader(log), "l", int64(len(log)), Options{})
	if err != nil || len(borders) != 3 || borders[1] != int64(len(a)) || borders[2] != int64(len(log)) {
		t.Fatal(borders, err)
	}
	var b strings.Builder
	if err := Dump(&b, bytes.NewReader(log), "l", int64(len(log)), Options{}); err != nil {
		t.Fatal(err)
	}
	want := "0..596 seq=1 stamp=1700000000.123456789 pos=0 len=512 code=0x1 digest=crc32c compressed=false sealed=true\n" +
		"596..696 seq=2 stamp=1700000000.123456789 pos=1024 len=4096 code=0x4d01 digest=crc32c compressed=false sealed=true\n"
	if b.String() != want {
		t.Fatalf("dump:\n%s", b.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add(rec{code: 1, seq: 1, data: pattern(512, 'a'), sealed: true}.encode(f))
	f.Add(rec{code: 1, seq: 1, data: pattern(4096, 'a'), compress: "lz4"}.encode(f))
	f.Add(rec{code: 1, seq: 1, data: pattern(4096, 'a'), compress: "zlib", digest: "md5"}.encode(f))
	f.Add(rangeRec(CodeZeroes, 0, 512, 1).encode(f))
	f.Fuzz(func(t *testing.T, p []byte) {
		img := NewImage(nil, 1<<20)
		res, err := Reduce(img, []Log{{Name: "log-000000001-a", File: bytes.NewReader(p)}}, Position{"log-000000001-a", int64(len(p))}, Options{NoDigest: true})
		var bad *Error
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("error without a position: %v", err)
		}
		if err == nil && res.Records == 0 && len(p) > 0 {
			t.Fatal("bytes were accepted that are no record")
		}
	})
}

func BenchmarkReduce(b *testing.B) {
	var log []byte
	for i := range 2000 {
		log = append(log, rec{pos: int64(i%512) * 4096, code: 1, seq: uint32(i + 1), data: pattern(4096, byte(i)), sealed: true}.encode(b)...)
	}
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		if _, err := Reduce(NewImage(nil, 2<<20), []Log{{Name: "log-000000001-a", File: bytes.NewReader(log)}}, Position{"log-000000001-a", int64(len(log))}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
