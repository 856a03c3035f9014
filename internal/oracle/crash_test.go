package oracle

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"mars/internal/testutil"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

// store is a device as small as can be that keeps the promises: a log file with
// checksums, synced for FUA and FLUSH. Its bugs are the negative controls for
// crashfs and the oracle together.
type store struct {
	fs  vfs.FS
	bug string

	mu      sync.Mutex
	log     vfs.File
	end     int64
	flushes int
}

const storeHeader = 24 // length u32, crc u32, offset u64, sequence u64; crc over header (crc zero) and payload

func openStore(fs vfs.FS, bug string) (*store, error) {
	log, err := fs.OpenFile("/mars/log", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if bug != "no directory sync" {
		if err := fs.SyncDir("/mars"); err != nil {
			return nil, err
		}
	}
	return &store{fs: fs, bug: bug, log: log}, nil
}

func storeCRC(p []byte) uint32 {
	q := bytes.Clone(p)
	clear(q[4:8])
	return crc32.ChecksumIEEE(q)
}

func (s *store) append(p []byte, off, length int64) error {
	rec := make([]byte, storeHeader+len(p))
	le := binary.LittleEndian
	le.PutUint32(rec, uint32(len(rec)))
	le.PutUint64(rec[8:], uint64(off))
	le.PutUint64(rec[16:], uint64(length))
	copy(rec[storeHeader:], p)
	le.PutUint32(rec[4:], storeCRC(rec))
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.log.WriteAt(rec, s.end); err != nil {
		return err
	}
	s.end += int64(len(rec))
	return nil
}

func (s *store) Write(_ context.Context, p []byte, off int64, flags ...uint16) error {
	if err := s.append(p, off, int64(len(p))); err != nil {
		return err
	}
	if len(flags) > 0 && s.bug != "FUA without sync" {
		return s.log.Datasync()
	}
	return nil
}

func (s *store) WriteZeroes(_ context.Context, off, n int64, _ ...uint16) error {
	return s.append(nil, off, n)
}
func (s *store) Trim(ctx context.Context, off, n int64, _ ...uint16) error {
	return s.WriteZeroes(ctx, off, n)
}

func (s *store) Flush(context.Context) error {
	s.mu.Lock()
	s.flushes++
	skip := s.bug == "every fifth flush omitted" && s.flushes%5 == 0
	s.mu.Unlock()
	if skip {
		return nil
	}
	return s.log.Datasync()
}

// recoverStore returns the device content after a restart.
func recoverStore(fs *crashfs.FS, size int64, bug string) ([]byte, error) {
	img := make([]byte, size)
	log, err := fs.ReadFile("/mars/log")
	if os.IsNotExist(err) {
		return img, nil
	}
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	for len(log) >= storeHeader {
		n := int(le.Uint32(log))
		if n < storeHeader || n > len(log) || le.Uint32(log[4:]) != storeCRC(log[:n]) {
			if bug != "skips bad records" {
				break
			}
			log = log[8:] // looks for the next good one
			continue
		}
		off, length := int64(le.Uint64(log[8:])), int64(le.Uint64(log[16:]))
		if n == storeHeader {
			clear(img[off : off+length])
		} else {
			copy(img[off:], log[storeHeader:n])
		}
		log = log[n:]
	}
	return img, nil
}

// sweep runs a load and cuts the power before each operation under each policy.
// It returns the number of crash states and the findings.
func sweep(t testing.TB, bug string, p Profile, writes int, seed uint64) (states int, findings map[Rule]int) {
	t.Helper()
	fs := crashfs.New(seed)
	if err := fs.MkdirAll("/mars"); err != nil {
		t.Fatal(err)
	}
	const size = 128 * SectorSize
	j, err := NewJournal(JournalConfig{Run: seed, Branch: 1, Size: size, TrimZeroes: true})
	if err != nil {
		t.Fatal(err)
	}
	findings = map[Rule]int{}
	r := rand.New(rand.NewPCG(seed, 5))
	judge := func(what string, fs *crashfs.FS, tick uint64, d Durability) {
		states++
		img, err := recoverStore(fs, size, bug)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		v, err := j.CheckImage(bytes.NewReader(img), Options{AsOf: tick, Durable: d})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, x := range v.Violations {
			findings[x.Rule]++
		}
		if bug == "" && !v.OK() {
			t.Errorf("%s: %v", what, v.Err())
		}
	}
	fs.OnOp(func(c *crashfs.Cut) {
		if t.Failed() {
			return
		}
		tick := j.Tick()
		for _, p := range crashfs.Policies {
			judge(fmt.Sprintf("cut at operation %d, %v", c.Op.N, p), c.Crash(p, r), tick, Flushed)
		}
		judge(fmt.Sprintf("kill at operation %d", c.Op.N), c.KillState(), tick, Always)
	})
	s, err := openStore(fs, bug)
	if err != nil {
		t.Fatal(err)
	}
	if err := NewLoad(j, p, seed).Run(context.Background(), writes, s); err != nil {
		t.Fatal(err)
	}
	return states, findings
}

func TestCrashSweep(t *testing.T) {
	seed := testutil.Seed(t)
	mixed := small(PT)
	mixed.FUA, mixed.FlushEvery = 0.2, 4
	began := time.Now()
	states, _ := sweep(t, "", mixed, 150, seed)
	took := time.Since(began)
	t.Logf("correct store: %d crash states without a finding, %.0f states/s", states, float64(states)/took.Seconds())

	// With more in flight the neighbours of a flush that is left out cover for it.
	flushed := mixed
	flushed.FUA, flushed.FlushEvery, flushed.InFlight = 0, 6, 2
	serial := flushed // many unsynced records whose order is known
	serial.FlushEvery, serial.InFlight = 20, 1
	for _, tt := range []struct {
		bug     string
		profile Profile
		want    Rule
	}{
		{"no directory sync", mixed, RuleUndurable},
		{"FUA without sync", mixed, RuleUndurable},
		{"every fifth flush omitted", flushed, RuleUndurable},
		{"skips bad records", serial, RuleHole},
	} {
		states, found := sweep(t, tt.bug, tt.profile, 100, seed)
		t.Logf("%s: %v in %d crash states", tt.bug, found, states)
		if found[tt.want] == 0 {
			t.Errorf("store with the bug %q: no finding of kind %s", tt.bug, tt.want)
		}
	}
}

// Cutting one deterministic run at every operation gives the same states as
// looking at each from a hook, and the store stops at the cut.
func TestCutAtStopsTheStore(t *testing.T) {
	seed := testutil.Seed(t)
	run := func(cut uint64) (*crashfs.FS, *Journal, error) {
		fs := crashfs.New(seed)
		if err := fs.MkdirAll("/mars"); err != nil {
			t.Fatal(err)
		}
		fs.CutAt(cut)
		j, _ := NewJournal(JournalConfig{Run: seed, Branch: 1, Size: 64 * SectorSize})
		s, err := openStore(fs, "")
		if err == nil {
			p := small(P1)
			err = NewLoad(j, p, seed).Run(context.Background(), 20, s)
		}
		return fs, j, err
	}
	fs, _, err := run(0)
	if err != nil {
		t.Fatal(err)
	}
	total := fs.Ops()
	if total != 42 {
		t.Fatalf("%d operations, want 42: create, syncdir and two for each write", total)
	}
	for n := uint64(1); n <= total; n++ {
		fs, j, err := run(n)
		if err == nil || !fs.Frozen() || fs.Ops() != n-1 {
			t.Fatalf("cut at %d: %v, %d operations", n, err, fs.Ops())
		}
		img, err := recoverStore(fs.Crash(crashfs.LoseAll, rand.New(rand.NewPCG(1, 1))), 64*SectorSize, "")
		if err != nil {
			t.Fatal(err)
		}
		v, err := j.CheckImage(bytes.NewReader(img), Options{Durable: Flushed})
		if err != nil || !v.OK() {
			t.Fatalf("cut at %d: %v %v", n, err, v.Err())
		}
		// Operations 1 and 2 make the file; each write is durable after its second.
		if want := max(0, (int(n)-3)/2); v.Low != want {
			t.Fatalf("cut at %d: low %d, want %d", n, v.Low, want)
		}
	}
}

func BenchmarkCheck64MiB(b *testing.B) {
	const size = 64 << 20
	j, _ := NewJournal(JournalConfig{Run: 1, Branch: 1, Size: size, TrimZeroes: true})
	dev := &simLog{rng: rand.New(rand.NewPCG(1, 4))}
	load := NewLoad(j, P8, 1)
	if err := load.Run(context.Background(), 10000, dev); err != nil {
		b.Fatal(err)
	}
	img := replay(make([]byte, size), dev.recs)
	r := bytes.NewReader(img)
	b.SetBytes(size)
	for b.Loop() {
		v, err := j.CheckImage(r, Options{Durable: Always})
		if err != nil || !v.OK() {
			b.Fatal(err, v.Err())
		}
	}
}

func BenchmarkCheck64KiB(b *testing.B) {
	const size = 64 << 10
	j, _ := NewJournal(JournalConfig{Run: 1, Branch: 1, Size: size, TrimZeroes: true})
	dev := &simLog{rng: rand.New(rand.NewPCG(1, 4))}
	if err := NewLoad(j, small(PT), 1).Run(context.Background(), 500, dev); err != nil {
		b.Fatal(err)
	}
	img := replay(make([]byte, size), dev.recs)
	c := NewChecker(j)
	for b.Loop() {
		if v, err := c.Check(bytes.NewReader(img), Options{Durable: Always}); err != nil || !v.OK() {
			b.Fatal(err, v.Err())
		}
	}
}
