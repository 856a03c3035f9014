package logfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "make the golden files of our own anew")

var (
	testDigests   = []uint16{0x04, 0x08, 0x02, 0x10, 0x01}
	testCompress  = []uint16{0, 0x200, 0x400}
	goldenLengths = []int{512, 1024, 1536, 3072, 7, 9, 4096, 100}
)

func goldenName(digest, compress uint16) string {
	return filepath.Join("testdata", "golden", fmt.Sprintf("%v-%v.log", Flags(digest), Flags(compress)))
}

// goldenRecords are the records of a golden file.
func goldenRecords(digest, compress uint16) []testRecord {
	rng := newRand(uint64(digest)<<16 | uint64(compress))
	var recs []testRecord
	for i, n := range goldenLengths {
		if digest == 0x02 {
			n += n % 2
		}
		r := plain(uint32(i+1), int64(i)*4096, text(rng, n))
		if i == 3 {
			r.payload = noise(rng, n) // does not compress
		}
		if i == 5 {
			r.code = 2
		}
		r.digest = digest
		if n%512 == 0 { // the reader takes nothing else compressed
			r.compress = compress
		}
		recs = append(recs, r)
	}
	return recs
}

// TestGolden reads the files of all digests and compressions, and compares them
// with what the test encoder makes today.
func TestGolden(t *testing.T) {
	for _, digest := range testDigests {
		for _, compress := range testCompress {
			file := goldenName(digest, compress)
			t.Run(filepath.Base(file), func(t *testing.T) {
				recs := goldenRecords(digest, compress)
				now := encodeAll(t, recs...)
				if *update {
					if err := os.WriteFile(file, now, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				log, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if compress == 0 && !bytes.Equal(log, now) { // compressors may change
					t.Error("the encoder makes other bytes than before")
				}
				got := mustRead(t, log, ReaderOptions{End: -1})
				if len(got) != len(recs) {
					t.Fatalf("%d records, want %d", len(got), len(recs))
				}
				packed := 0
				for i, r := range recs {
					r.check(t, got[i])
					if got[i].Compression != 0 {
						packed++
						if got[i].Compression != Flags(compress) || got[i].DataOffset != -1 {
							t.Errorf("record %d: compression %v, data at %d", i, got[i].Compression, got[i].DataOffset)
						}
					}
				}
				if compress != 0 && packed == 0 {
					t.Error("no record is compressed")
				}
			})
		}
	}
}

// sealedEntries are the entries of testdata/golden/sealed.log.
func sealedEntries() []Entry {
	rng := newRand(99)
	list := []Entry{
		{Pos: 0, Code: CodeWrite, Data: noise(rng, 512)},
		{Pos: 8192, Code: CodeWrite, Data: noise(rng, 1)},
		{Pos: 4096, Code: CodeWrite, Data: noise(rng, 4096)},
		{Pos: 8192, Code: CodeWrite, Data: noise(rng, 2000)},
		{Pos: 1 << 40, Code: CodeDiscard, Data: RangePayload(1 << 30)},
		{Pos: 1 << 41, Code: CodeZeroes, Data: RangePayload(512)},
		{Pos: 5, Code: Code(0x4D7F), Data: []byte("a marker")},
	}
	for e := range ZeroEntries(0, 2048) {
		list = append(list, e)
	}
	return list
}

// TestGoldenSealed pins the bytes that the Writer makes.
func TestGoldenSealed(t *testing.T) {
	dir := t.TempDir()
	sec := int64(1700000000)
	w, err := Create(dir, testName, WriterOptions{Now: func() time.Time { sec++; return time.Unix(sec, 42) }})
	if err != nil {
		t.Fatal(err)
	}
	entries := sealedEntries()
	for _, part := range [][]Entry{entries[:1], entries[1:]} {
		if _, err := w.Append(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(filepath.Join(dir, testName.String()))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "golden", "sealed.log")
	if *update {
		if err := os.WriteFile(file, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(log, now) {
		t.Error("the Writer makes other bytes than before")
	}
	// The records of uncompressed data must be what the independent encoder makes.
	want := encodeAll(t, testRecord{seq: 1, sec: 1700000001, nsec: 42, pos: 0, code: 1, payload: entries[0].Data, digest: 4, seal: true},
		testRecord{seq: 2, sec: 1700000002, nsec: 42, pos: 8192, code: 1, payload: entries[1].Data, digest: 4, seal: true},
		testRecord{seq: 3, sec: 1700000002, nsec: 42, pos: 4096, code: 1, payload: append(bytes.Clone(entries[2].Data), entries[3].Data...), digest: 4, seal: true},
		testRecord{seq: 4, sec: 1700000002, nsec: 42, pos: 1 << 40, code: 0x4D01, payload: entries[4].Data, digest: 4, seal: true})
	if !bytes.HasPrefix(log, want) {
		t.Error("the Writer and the independent encoder disagree")
	}
	for _, mode := range []Mode{Strict, Compat, Lenient} {
		got := mustRead(t, log, ReaderOptions{Mode: mode, End: -1})
		if len(got) != 7 {
			t.Fatalf("%v: %d records, want 7", mode, len(got))
		}
		if last := got[6]; last.Compression != CompressZlib || !bytes.Equal(last.Data, make([]byte, 2048)) {
			t.Errorf("%v: the zeros came back as %v, %d bytes", mode, last.Compression, len(last.Data))
		}
	}
}

func TestDigestVectors(t *testing.T) {
	p := []byte("123456789")
	if got := crc32.Checksum(p, castagnoli); got != 0xE3069283 || crc32cSlow(p) != got {
		t.Errorf("crc32c %08x, slow %08x", got, crc32cSlow(p))
	}
	rng := newRand(12)
	for _, alg := range testDigests {
		for _, n := range []int{1, 2, 7, 8, 9, 16, 511, 512, 4096, 32000} {
			if alg == 0x02 && n%2 != 0 {
				continue
			}
			p := noise(rng, n)
			sum, ok := payloadDigest(Flags(alg), p)
			want, _ := testDigest(alg, p)
			if alg == 0x01 {
				want = fold(sum)
			}
			if !ok || fold(sum) != want {
				t.Errorf("%v of %d bytes differs", Flags(alg), n)
			}
			if alg == 0x04 {
				// The Writer's form over scattered parts.
				parts := [][]byte{p[:n/3], p[n/3 : n/3], p[n/3 : n/2], p[n/2:]}
				if crc32cParts(parts, n) != sum {
					t.Errorf("crc32c of %d bytes in parts differs", n)
				}
			}
		}
	}
}

// TestKernelPieces reads pieces of logfiles that the original wrote.
func TestKernelPieces(t *testing.T) {
	for file, want := range map[string]struct {
		records  int
		firstSeq uint32
	}{"first.log": {12, 1}, "middle.log": {16, 1105}, "last.log": {24, 1456}} {
		log, err := os.ReadFile(filepath.Join("testdata", "kernel", file))
		if err != nil {
			t.Fatal(err)
		}
		got := mustRead(t, log, ReaderOptions{End: -1, MaxPos: 64 << 20})
		if len(got) != want.records || got[0].Seq != want.firstSeq || got[len(got)-1].Seq != want.firstSeq+uint32(want.records)-1 {
			t.Errorf("%s: %d records from %d on", file, len(got), got[0].Seq)
		}
		for _, r := range got {
			if r.Digest != DigestCRC32C || r.Code != CodeWrite || r.Sealed || r.Stamp.Year() != 2026 {
				t.Errorf("%s: unexpected %+v", file, r)
			}
		}
		if _, err := readAll(t, log, ReaderOptions{Mode: Strict, End: -1}); err == io.EOF {
			t.Errorf("%s: strict mode accepts a log without seals", file)
		}
	}
}

// TestKernelLogs reads whole logfiles of the original, every record.
func TestKernelLogs(t *testing.T) {
	tars, _ := filepath.Glob("../e2e/testdata/kernel/*.tgz")
	if len(tars) != 2 {
		t.Fatalf("recordings: %v", tars)
	}
	seen := 0
	for _, file := range tars {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(z); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name, err := ParseName(path.Base(h.Name))
			if err != nil || h.Typeflag != tar.TypeReg {
				continue
			}
			log, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			res, err := Verify(bytes.NewReader(log), int64(len(log)), name, Compat)
			if err != nil || res.Err != nil || res.End != int64(len(log)) {
				t.Errorf("%s: %s: %+v, %v", file, h.Name, res, err)
			}
			seen += res.Records
		}
	}
	if seen < 1000 {
		t.Errorf("only %d records in %v", seen, tars)
	}
}
