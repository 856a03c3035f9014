package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/internal/crashdisk"
	"mars/internal/oracle"
	"mars/internal/testutil"
)

// sweep is a run of the stamp writer on crash disks.
type sweep struct {
	*world
	p      *power
	h      *crashdisk.History
	lo, hi int // the part of the history in which the writer ran
	rnd    *rand.Rand
}

// recordSectors is what the log stores as one record: a request without an answer
// may be cut there.
const recordSectors = 63

// prepareSweep puts n onto crash disks and prepares the writer: P8 with FLUSH and FUA.
func prepareSweep(t testing.TB, n *Node) *sweep {
	t.Helper()
	const size = 8 * mib
	seed := testutil.Seed(t)
	s := &sweep{rnd: rand.New(rand.NewPCG(seed, 7))}
	s.world = &world{t: t, c: n.c, size: size, disks: map[*Node]string{n: n.Path("disk")}, gate: &pacer{rate: 2e6}}
	var err error
	s.journal, err = oracle.NewJournal(oracle.JournalConfig{Run: seed, Branch: 1, Size: size, Initial: size / oracle.SectorSize})
	if err != nil {
		t.Fatal(err)
	}
	profile := scenarioLoad
	profile.FUA, profile.FlushEvery = 0.05, 16
	s.load = oracle.NewLoad(s.journal, profile, seed)
	s.base = make([]byte, size)
	if err := oracle.StampInitial(bytesAt(s.base), seed, size/oracle.SectorSize); err != nil {
		t.Fatal(err)
	}
	s.p = newPower(t, n, bytes.NewReader(s.base), s.journal.Tick)
	return s
}

// runSweep records a run of about this time, with a rotation every 2 s (four in
// all in the short form).
func runSweep(t testing.TB, n *Node, bins string, dur time.Duration) *sweep {
	t.Helper()
	s := prepareSweep(t, n)
	n.Bin = bins
	s.p.begin()
	s.p.watch()
	s.lo = s.p.rec.Len()
	s.start(n)
	every := 2 * time.Second
	if dur < 10*time.Second {
		every = dur / 4
	}
	for end := time.Now().Add(dur); time.Now().Before(end); {
		next := time.Now().Add(every)
		s.more(n, 30)
		n.WaitFor("the next rotation is due", func() bool { return time.Now().After(next) })
		s.p.rotate()
	}
	s.more(n, 10)
	s.hi = s.p.rec.Len()
	s.finish()
	s.h = s.p.end()
	return s
}

// bytesAt is a slice as an io.WriterAt.
type bytesAt []byte

func (b bytesAt) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// rotate rotates and marks the promise: the new log is there for ever.
func (p *power) rotate() {
	p.t.Helper()
	p.n.Adm("log-rotate", "r0")
	p.rec.Mark(fmt.Sprintf("rotated %d", p.logNumber()))
}

// promised is the highest log that marsadm had reported before the cut.
func (s *sweep) promised(index int) int {
	best := 0
	for i := range s.h.Entries[:index] {
		if nr, ok := strings.CutPrefix(s.h.Entries[i].Text, "rotated "); ok {
			best, _ = strconv.Atoi(nr)
		}
	}
	return best
}

// judgeCut brings the node back after a cut and says what is wrong.
func (s *sweep) judgeCut(state *crashdisk.State, index int, dur oracle.Durability) (v *oracle.Verdict, err error) {
	s.t.Helper()
	s.p.restore(state)
	defer s.p.drop()
	if nr := s.p.logNumber(); nr < s.promised(index) {
		return nil, fmt.Errorf("marsadm has reported log %d as created, but the last one is %d", s.promised(index), nr)
	}
	img, err := s.p.boot(s.size)
	if err != nil {
		return nil, err
	}
	v, err = s.journal.CheckImage(bytes.NewReader(img), oracle.Options{AsOf: s.h.Tick(index), Durable: dur, RecordSectors: recordSectors})
	if err == nil {
		err = v.Err()
	}
	if err != nil {
		return nil, err
	}
	return v, s.p.settled(img)
}

// each judges n cuts (all near marks and many others for 0) with changing
// policies until f returns false.
func (s *sweep) each(n int, dur oracle.Durability, f func(what string, v *oracle.Verdict, err error) bool) {
	s.t.Helper()
	cutter := s.h.Cutter()
	list := crashdisk.Policies()
	for i, index := range indexes(s.h, s.rnd, s.lo, s.hi, n) {
		policy := list[i%len(list)]
		state := cutter.Cut(index, policy, s.rnd)
		v, err := s.judgeCut(state, index, dur)
		what := fmt.Sprintf("cut at %d of %d, %v (%d of %d unflushed writes lost)", index, len(s.h.Entries), policy, state.Lost, state.Volatile)
		if !f(what, v, err) {
			return
		}
	}
}

// modes are the promises of --durability.
var modes = []struct {
	name string
	dur  oracle.Durability
}{{"flush", oracle.Flushed}, {"always", oracle.Always}, {"none", oracle.OrderOnly}}

// TestV03PowerCut: wherever the power fails, the primary comes back by itself, at
// a prefix of the history that has everything it has promised.
func TestV03PowerCut(t *testing.T) {
	t.Parallel()
	needBlockLayer(t)
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			cuts, dur := 10, 3*time.Second
			if soak(t) > 0 {
				cuts, dur = 0, 20*time.Second
			}
			c := NewCluster(t, 1, Apart(), WithArgs(append([]string{"--durability", mode.name}, fastArgs...)...))
			s := runSweep(t, c.Nodes[0], bin, dur)
			count, lost := 0, 0
			s.each(cuts, mode.dur, func(what string, v *oracle.Verdict, err error) bool {
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if count++; v.Lag > 0 {
					lost++
				}
				t.Logf("%s: %s", what, v.Summary())
				return true
			})
			t.Logf("%d cuts, %d of them lost acknowledged writes that nobody had promised", count, lost)
		})
	}
}

// TestV03Mutants: a marsd that does not sync its logs, and one that does not sync
// directories, do not survive these tests.
func TestV03Mutants(t *testing.T) {
	t.Parallel()
	needBlockLayer(t)
	t.Run("nosync", func(t *testing.T) {
		t.Parallel()
		c := NewCluster(t, 1, Apart(), WithArgs(fastArgs...))
		s := runSweep(t, c.Nodes[0], tagged(t, "mutant_nosync"), 2*time.Second)
		tried := 0
		var found error
		s.each(60, oracle.Flushed, func(what string, _ *oracle.Verdict, err error) bool {
			tried++
			if err == nil {
				return true
			}
			if found = fmt.Errorf("%s: %w", what, err); !strings.Contains(err.Error(), "undurable") && !strings.Contains(err.Error(), "is damaged") {
				t.Errorf("neither a lost write nor a verdict about the log: %v", found)
			}
			return false
		})
		if found == nil {
			t.Fatalf("%d cuts did not show that FLUSH is answered before the log is synced", tried)
		}
		t.Logf("caught by cut %d: %v", tried, found)
	})
	for _, tags := range []string{"", "mutant_nodirsync"} {
		t.Run("rotation"+tags, func(t *testing.T) {
			t.Parallel()
			err := rotateAndCut(t, tags)
			switch {
			case tags == "" && err != nil:
				t.Fatal(err)
			case tags != "" && err == nil:
				t.Fatal("it is not noticed that directories are not synced")
			case err != nil:
				t.Logf("caught: %v", err)
			}
		})
	}
}

// rotateAndCut cuts as soon as marsadm has reported a rotation. While marsd stands
// still nobody else syncs what marsadm has created.
func rotateAndCut(t *testing.T, tags string) error {
	c := NewCluster(t, 1, Apart(), WithArgs(fastArgs...))
	n := c.Nodes[0]
	if tags != "" {
		n.Bin = tagged(t, tags)
	}
	var clock uint64
	p := newPower(t, n, bytes.NewReader(make([]byte, 4*mib)), func() uint64 { clock++; return clock })
	p.begin()
	cl := n.Client()
	if err := errors.Join(cl.Write(context.Background(), make([]byte, 4096), 0), cl.Flush(context.Background()), cl.Close()); err != nil {
		t.Fatal(err)
	}
	before := p.logNumber()
	n.Freeze()
	n.Adm("log-rotate", "r0")
	want, at := p.logNumber(), p.rec.Len()
	n.Thaw()
	h := p.end()
	if want != before+1 {
		t.Fatalf("log-rotate after log %d: the last one is %d", before, want)
	}
	p.restore(h.Cutter().Cut(at, crashdisk.None, seeded(t)))
	defer p.drop()
	if nr := p.logNumber(); nr < want {
		return fmt.Errorf("marsadm has reported log %d as created, but the last one is %d", want, nr)
	}
	_, err := p.boot(4 * mib)
	return err
}
