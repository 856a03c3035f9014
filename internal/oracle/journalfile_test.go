package oracle

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"mars/internal/testutil"
)

func TestJournalFileRoundTrip(t *testing.T) {
	seed := testutil.Seed(t)
	var file bytes.Buffer
	j, load, dev := newSim(t, JournalConfig{Run: seed, Branch: 3, Size: 64 * SectorSize, Initial: 5, TrimZeroes: true, File: &file}, small(PT), seed)
	dev.fail = 30
	if err := load.Run(context.Background(), 60, dev); !errors.Is(err, errLost) {
		t.Fatal(err)
	}
	got, err := LoadJournal(bytes.NewReader(file.Bytes()), nil)
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b *Journal) {
		t.Helper()
		ra, rb := a.Requests(), b.Requests()
		for i := range ra { // the monotonic clock is not in the file
			ra[i].When, rb[i].When = ra[i].When.Round(0), rb[i].When.Round(0)
		}
		if !reflect.DeepEqual(ra, rb) {
			t.Fatalf("journals differ:\n%v\n%v", ra, rb)
		}
	}
	same(j, got)
	if a, b := j.Tick(), got.Tick(); b < a-1 {
		t.Fatalf("the loaded journal continues at %d, the other at %d", b, a)
	}

	// A fork and its resolution are in its own file.
	img := replay(make([]byte, j.cfg.Size), dev.recs)
	if err := StampInitial(sliceDisk(img), seed, 5); err != nil {
		t.Fatal(err)
	}
	img = replay(img, dev.recs)
	v, err := j.CheckImage(bytes.NewReader(img), Options{})
	if err != nil || !v.OK() {
		t.Fatal(err, v.Err())
	}
	var second bytes.Buffer
	fork, err := j.Fork(4, v, &second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fork.Submit(KindZero, 0, SectorSize, 1); err != nil {
		t.Fatal(err)
	}
	if got, err = LoadJournal(bytes.NewReader(second.Bytes()), nil); err != nil {
		t.Fatal(err)
	}
	same(fork, got)

	// Killed in the middle of a line.
	cut := file.Bytes()[:file.Len()-4]
	if _, err := LoadJournal(bytes.NewReader(cut), nil); err != nil {
		t.Fatal("torn last line: ", err)
	}
}

func TestLoadJournalRefusesNonsense(t *testing.T) {
	const head = "journal run=1 branch=1 size=4096 initial=0 trimzeroes=true\n"
	for _, text := range []string{
		"", "hello\n", head + "what 1\n", head + "done 1 at=2 wall=3\n", head + "submit 1 write branch=1 off=4096 len=512 conn=0\n",
		head + "submit 1 nothing branch=1 off=0 len=512 conn=0\n", head + "submit 1 write branch=1 off=0 len=100 conn=0\n",
		head + "submit 2 flush branch=1 off=0 len=0 conn=0\nsubmit 2 flush branch=1 off=0 len=0 conn=0\n",
		head + "submit 2 write branch=1 off=0 len=512 conn=0\ndone 2 at=2 wall=0\n",
		head + "submit 2 write branch=1 off=0 len=1024 conn=0\ncut 2 kept=1024\n",
		strings.Replace(head, "4096", "100", 1),
	} {
		if _, err := LoadJournal(strings.NewReader(text), nil); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

type brokenFile struct{ left int }

func (b *brokenFile) Write(p []byte) (int, error) {
	if b.left--; b.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

// A load whose journal cannot be written stops: it would prove nothing.
func TestJournalFileErrorStopsTheLoad(t *testing.T) {
	_, load, dev := newSim(t, JournalConfig{Run: 1, Branch: 1, Size: 64 * SectorSize, File: &brokenFile{left: 20}}, small(P8), 1)
	if err := load.Run(context.Background(), 100, dev); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Fatal(err)
	}
}

func FuzzLoadJournal(f *testing.F) {
	f.Add("journal run=1 branch=1 size=4096 initial=0 trimzeroes=true\nsubmit 1 write branch=1 off=0 len=512 conn=0\ndone 1 at=2 wall=3\nresolve at=5\n")
	f.Add("journal run=1 branch=1 size=4096 initial=2 trimzeroes=false\nsubmit 1 trim branch=1 off=0 len=2048 conn=0\nfail 1 at=2 \"x\"\ncut 1 kept=512\n")
	f.Fuzz(func(t *testing.T, text string) {
		j, err := LoadJournal(strings.NewReader(text), nil)
		if err != nil || j.cfg.Size > 1<<20 {
			return
		}
		// Whatever was loaded can be judged with.
		if _, err := j.CheckImage(bytes.NewReader(make([]byte, j.cfg.Size)), Options{Durable: Always, RecordSectors: 1}); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseStamp(f *testing.F) {
	p := make([]byte, SectorSize)
	Stamp{Run: 1, Branch: 2, Write: 3, Index: 4, Length: 5}.Put(p)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := ParseStamp(p)
		if err != nil {
			return
		}
		q := make([]byte, SectorSize)
		s.Put(q)
		if t2, err := ParseStamp(q); err != nil || t2 != s {
			t.Fatal("no round trip")
		}
	})
}

func TestStampCRC(t *testing.T) {
	p, q := make([]byte, SectorSize), make([]byte, SectorSize)
	s := Stamp{Run: 1, Branch: 2, Write: 3, Index: 4, Length: 5}
	s.Put(p)
	if got, err := ParseStamp(p); err != nil || got != s {
		t.Fatal(got, err)
	}
	for bit := range SectorSize * 8 {
		copy(q, p)
		q[bit/8] ^= 1 << (bit % 8)
		if _, err := ParseStamp(q); err == nil {
			t.Fatalf("bit %d flipped and accepted", bit)
		}
	}
	s.Index++
	s.Put(q)
	for off := fillerOff; off < crcOff; off += 8 {
		if bytes.Equal(p[off:off+8], q[off:off+8]) {
			t.Fatalf("two sectors have the same filler at %d", off)
		}
	}
}
