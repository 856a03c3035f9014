package sim

import (
	"runtime"
	"slices"
	"testing"
	"time"
)

// shrinkRuns bounds the search for a shorter schedule.
const shrinkRuns = 120

// shrink drops events as long as the rule is still found violated: halves first, then single
// ones. A finding that hangs on the order of goroutines gets a second chance.
func shrink(t *testing.T, s *schedule, opt options, rule string) (*schedule, *result) {
	t.Helper()
	var last *result
	left := shrinkRuns
	fails := func(c *schedule) bool {
		for range 2 {
			if left--; left < 0 {
				return false
			}
			if r := run(t, c, opt); r.has(rule) {
				last = r
				return true
			}
		}
		return false
	}
	for size := max(1, len(s.events)/2); ; size /= 2 {
		for at := 0; at < len(s.events); {
			c := s.with(slices.Delete(slices.Clone(s.events), at, min(at+size, len(s.events))))
			if fails(c) {
				s = c
			} else {
				at += size
			}
		}
		if size == 1 {
			return s, last
		}
	}
}

// TestShrink: -sim.seed=N finds the short schedule of a failing seed. Without, a mutant's
// finding is made short, and stays one.
func TestShrink(t *testing.T) {
	if *seedFlag != 0 {
		s := newSchedule(*seedFlag)
		r := run(t, s, options{})
		if len(r.found) == 0 {
			t.Fatalf("seed %d finds nothing", s.seed)
		}
		s, _ = shrink(t, s, options{}, r.found[0].rule)
		t.Errorf("%vis enough for %v", s, r.found[0])
		return
	}
	m := mutants()[0]
	for seed := uint64(1); ; seed++ {
		s := newSchedule(seed)
		r := run(t, s, m.options())
		if len(r.found) == 0 && seed < maxMutantSeeds {
			continue
		}
		if len(r.found) == 0 {
			t.Fatalf("mutant %q was not found in %d seeds", m.name, seed)
		}
		if len(s.events) < 4 {
			continue
		}
		short, again := shrink(t, s, m.options(), r.found[0].rule)
		if len(short.events) >= len(s.events) || again == nil {
			t.Errorf("of %d events %d are left", len(s.events), len(short.events))
		}
		t.Logf("%d events became %d: %v%v", len(s.events), len(short.events), short, again.found[0])
		return
	}
}

// TestDeterministic plays seeds twice, on one processor: the schedule is the same always, what
// follows nearly always. See the doc comment for what the runtime decides.
func TestDeterministic(t *testing.T) {
	if raceEnabled {
		t.Skip("the runtime schedules at random under the race detector")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const seeds = 20
	same := 0
	began := time.Now()
	for seed := uint64(1); seed <= seeds; seed++ {
		a, b := newSchedule(seed), newSchedule(seed)
		if a.String() != b.String() {
			t.Fatalf("two schedules of one seed:\n%v%v", a, b)
		}
		ra, rb := run(t, a, options{}), run(t, b, options{})
		if ra.hash() == rb.hash() {
			same++
			continue
		}
		for i := range min(len(ra.trace), len(rb.trace)) {
			if ra.trace[i] != rb.trace[i] {
				t.Logf("seed %d, line %d: %.140s | %.140s", seed, i, ra.trace[i], rb.trace[i])
				break
			}
		}
	}
	t.Logf("%d of %d seeds had the same trace twice, in %v", same, seeds, time.Since(began))
	if same == 0 { // how many differ is up to the load of the machine
		t.Errorf("none of %d seeds had the same trace twice", seeds)
	}
}
