package logfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// bigLog has records of all sizes, more bytes than a chunk.
func bigLog(t testing.TB, size int) ([]byte, []testRecord) {
	rng := newRand(20)
	var log []byte
	var recs []testRecord
	for seq := uint32(1); len(log) < size; seq++ {
		n := MaxPayload
		switch seq % 3 {
		case 1:
			n = 1 + rng.IntN(MaxPayload)
		case 2:
			n = 1 + rng.IntN(5000)
		}
		r := sealed(seq, int64(rng.IntN(1<<20)), noise(rng, n))
		log, recs = append(log, r.encode(t)...), append(recs, r)
	}
	return log, recs
}

func TestReaderChunks(t *testing.T) {
	log, recs := bigLog(t, 5*bigChunk/2)
	got := mustRead(t, log, ReaderOptions{Mode: Strict, End: -1})
	if len(got) != len(recs) {
		t.Fatalf("%d records, want %d", len(got), len(recs))
	}
	for i, r := range recs {
		r.check(t, got[i])
		if i > 0 && got[i].Offset != got[i-1].End() {
			t.Fatalf("record %d at %d, the one before ended at %d", i, got[i].Offset, got[i-1].End())
		}
	}
}

// stutter returns few bytes at a time, as io.ReaderAt must not, and files in
// user space sometimes do.
type stutter struct {
	r io.ReaderAt
	n int
}

func (s stutter) ReadAt(p []byte, off int64) (int, error) {
	return s.r.ReadAt(p[:min(len(p), s.n)], off)
}

func TestReaderShortReads(t *testing.T) {
	log, recs := bigLog(t, 300_000)
	r := NewReader(stutter{bytes.NewReader(log), 777}, int64(len(log)), testName, ReaderOptions{End: -1})
	for i, want := range recs {
		rec, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(i, err)
		}
		want.check(t, *rec)
	}
	if _, err := r.Next(t.Context()); err != io.EOF {
		t.Error(err)
	}
}

// growing is a file that gets longer.
type growing struct{ b []byte }

func (g *growing) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(g.b).ReadAt(p, off)
}

// TestReaderExtend follows a log that grows in pieces of any size.
func TestReaderExtend(t *testing.T) {
	log, recs := bigLog(t, 400_000)
	f := &growing{}
	r := NewReader(f, 0, testName, ReaderOptions{Mode: Strict, End: 0})
	rng := newRand(21)
	seen := 0
	for len(f.b) < len(log) {
		f.b = log[:min(len(log), len(f.b)+1+rng.IntN(20000))]
		r.Extend(int64(len(f.b)))
		for {
			rec, err := r.Next(t.Context())
			if err == nil {
				recs[seen].check(t, *rec)
				seen++
				continue
			}
			var torn *TornError
			if err == io.EOF && r.Offset() != int64(len(f.b)) || err != io.EOF && !errors.As(err, &torn) {
				t.Fatalf("%d of %d bytes there: %v", r.Offset(), len(f.b), err)
			}
			break
		}
		if r.chunk != nil {
			t.Fatal("an idle reader keeps its buffer")
		}
		r.Extend(0) // smaller values change nothing
	}
	if seen != len(recs) || r.LastSeq() != uint32(seen) {
		t.Errorf("%d records, want %d; last sequence %d", seen, len(recs), r.LastSeq())
	}
}

// TestReaderEnd: the authoritative length rules, whatever the file has.
func TestReaderEnd(t *testing.T) {
	rng := newRand(22)
	a, b := sealed(1, 0, noise(rng, 512)).encode(t), sealed(2, 512, noise(rng, 512)).encode(t)
	log := append(bytes.Clone(a), b...)
	one := int64(len(a))

	got, err := readAll(t, log, ReaderOptions{End: one})
	if err != io.EOF || len(got) != 1 {
		t.Errorf("end at the border: %d records, %v", len(got), err)
	}
	_, err = readAll(t, log, ReaderOptions{End: one + 200})
	checkDefect(t, err, wantDefect{true, 11, 10006, -1, one})
	got, err = readAll(t, log, ReaderOptions{End: 0})
	if err != io.EOF || len(got) != 0 {
		t.Errorf("end at 0: %d records, %v", len(got), err)
	}
	// The file is shorter than the log.
	_, err = readAll(t, log, ReaderOptions{End: 5000})
	checkDefect(t, err, wantDefect{true, 0, 0, -1, int64(len(log))})
	_, err = readAll(t, log[:one+100], ReaderOptions{End: 5000})
	checkDefect(t, err, wantDefect{true, 11, 10006, -1, one})
	// Starting behind the end.
	_, err = readAll(t, log, ReaderOptions{Start: 5000, End: -1})
	checkDefect(t, err, wantDefect{false, 0, 0, -1, 5000})
	// Starting beside a border.
	_, err = readAll(t, log, ReaderOptions{Start: 4, End: -1})
	checkDefect(t, err, wantDefect{false, 74, 10013, -1, 4})
}

// TestReaderRetries: a torn record that is completed later is read by the same
// Reader, without Extend when the length was known before.
func TestReaderRetries(t *testing.T) {
	log := sealed(1, 0, noise(newRand(23), 512)).encode(t)
	f := &growing{b: log[:300]}
	r := NewReader(f, 300, testName, ReaderOptions{End: int64(len(log))})
	var torn *TornError
	if _, err := r.Next(t.Context()); !errors.As(err, &torn) {
		t.Fatal(err)
	}
	f.b = bytes.Clone(log)
	f.b[100]++
	var corrupt *CorruptError
	if _, err := r.Next(t.Context()); !errors.As(err, &corrupt) {
		t.Fatal(err)
	}
	f.b = log
	if rec, err := r.Next(t.Context()); err != nil || rec.Seq != 1 {
		t.Fatal(err)
	}
}

// TestReaderDurable: what was confirmed is never a torn tail, and what was not
// confirmed is never damage.
func TestReaderDurable(t *testing.T) {
	rng := newRand(24)
	var log []byte
	var ends []int64
	for i := range 30 {
		log = append(log, sealed(uint32(i+1), 0, noise(rng, 8192)).encode(t)...)
		ends = append(ends, int64(len(log)))
	}
	hole := bytes.Clone(log)
	clear(hole[ends[9]+4096 : ends[9]+8192]) // far from the end, records follow
	for _, c := range []struct {
		log     []byte
		durable int64
		torn    bool
	}{
		{hole, ends[9], true},
		{hole, ends[3], true},
		{hole, 0, true},
		{hole, ends[10], false},
		{hole, ends[29], false},
		{log[:ends[28]+100], ends[28], true},
		{log[:ends[28]+100], ends[29], false},
		{log[:ends[28]], ends[28], true}, // sound, see below
	} {
		got, err := readAll(t, c.log, ReaderOptions{Mode: Strict, End: -1, DurableKnown: true, Durable: c.durable})
		if int64(len(c.log)) == ends[28] {
			if err != io.EOF {
				t.Error(err)
			}
			continue
		}
		want := wantDefect{c.torn, 74, 10101, -1, ends[9]}
		if len(got) != 10 {
			want = wantDefect{c.torn, 11, 10006, -1, ends[28]}
		}
		checkDefect(t, err, want)
	}
	// Confirmed bytes that are missing altogether.
	_, err := readAll(t, log[:ends[28]], ReaderOptions{End: ends[29], DurableKnown: true, Durable: ends[29]})
	checkDefect(t, err, wantDefect{false, 0, 0, -1, ends[28]})
	if !strings.Contains(err.Error(), "confirmed") {
		t.Errorf("the hint does not name the confirmed length: %v", err)
	}
}

func TestReaderCancel(t *testing.T) {
	log, _ := bigLog(t, 100_000)
	r := NewReader(bytes.NewReader(log), int64(len(log)), testName, ReaderOptions{End: -1})
	cause := errors.New("role changed")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := r.Next(ctx); err != nil {
		t.Fatal(err)
	}
	off := r.Offset()
	cancel(cause)
	_, err := r.Next(ctx)
	if !errors.Is(err, cause) || isDefect(err) || r.Offset() != off {
		t.Errorf("got %v at %d", err, r.Offset())
	}
	if _, err := r.Next(t.Context()); err != nil {
		t.Errorf("after a cancelled call: %v", err)
	}
}

var errDisk = errors.New("disk on fire")

type failingReader struct {
	r    io.ReaderAt
	fail bool
}

func (f *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if f.fail {
		return 0, errDisk
	}
	return f.r.ReadAt(p, off)
}

// TestReaderIOError: an unreadable disk is neither a torn tail nor damage.
func TestReaderIOError(t *testing.T) {
	log, recs := bigLog(t, 3*bigChunk/2)
	f := &failingReader{r: bytes.NewReader(log)}
	r := NewReader(f, int64(len(log)), testName, ReaderOptions{End: -1})
	seen := 0
	for {
		if seen == 1 {
			f.fail = true
		}
		if _, err := r.Next(t.Context()); err != nil {
			if !errors.Is(err, errDisk) || isDefect(err) || !strings.Contains(err.Error(), testName.String()) {
				t.Fatal(err)
			}
			break
		}
		seen++
	}
	f.fail = false
	for {
		_, err := r.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen++
	}
	if seen != len(recs) {
		t.Errorf("%d records, want %d", seen, len(recs))
	}
	_, err := Verify(&failingReader{fail: true}, 1000, testName, Compat)
	if !errors.Is(err, errDisk) {
		t.Errorf("Verify: %v", err)
	}
}

func TestReaderAllocs(t *testing.T) {
	log, _ := bigLog(t, 2*bigChunk)
	r := NewReader(bytes.NewReader(log), int64(len(log)), testName, ReaderOptions{Mode: Strict, End: -1})
	ctx := t.Context()
	if _, err := r.Next(ctx); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(50, func() {
		if _, err := r.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}
