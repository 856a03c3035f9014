package sweep

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"mars/device"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// promised is how many distinct points TestSweep visits at least; a build for the
	// race detector visits a sample.
	promised, promisedRace = 20000, 1000
	// raceEvery: such a build cuts at one instant of so many.
	raceEvery = 24
	// recoveryCutEvery: one state of so many is recovered twice, the first time cut short.
	recoveryCutEvery = 4
	// damageEvery: one state of so many is damaged before it is recovered.
	damageEvery = 8
)

// tally counts what a sweep has visited. A point is distinct if no other has the same
// bytes on the file system, the same acknowledgements before it and the same promises about them.
type tally struct {
	mu             sync.Mutex
	seen           map[point]struct{}
	only           string // the one to be replayed
	states, killed int
	cuts, damaged  int
	recoveryCuts   int
}

type point struct {
	hash uint64
	acks int64
	mode device.Durability
	kill bool
}

// wanted tells whether s is new.
func (c *tally) wanted(r *run, s *state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.states++
	if c.seen == nil {
		c.seen = map[point]struct{}{}
	}
	p := point{s.hash, s.acks, r.mode, s.kill}
	if _, old := c.seen[p]; old {
		return false
	}
	c.seen[p] = struct{}{}
	if s.kill {
		c.killed++
	}
	return true
}

func (c *tally) distinct() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen) - c.killed
}

// sweepRun executes a run and judges what its cuts left. It returns the first finding.
func sweepRun(t *testing.T, r *run, c *tally, points *int) (found string) {
	var kept []*state
	r.keep = func(s *state) {
		if (c.only == "" || c.only == s.String()) && c.wanted(r, s) {
			kept = append(kept, s)
		}
	}
	r.execute(t)
	k := newChecker(r)
	if r.mutant != nil && r.mutant.recover != nil {
		k.recover = r.mutant.recover
	}
	for _, s := range kept {
		*points++
		err := k.check(s)
		if err == nil {
			err = k.damage(s)
		}
		s.fs = nil
		if err != nil {
			found = fmt.Sprintf("%v:%v, before %s: %v", r, s, s.op, err)
			if r.mutant == nil {
				found += fmt.Sprintf("\nrepeat it with: MARS_SEED=%d MARS_POINT=%v:%v go test -run TestSweep ./device/sweep", r.seed, r, s)
			}
			break
		}
	}
	c.mu.Lock()
	c.cuts += r.cuts
	c.recoveryCuts += k.cutsOfRecovery
	c.damaged += k.damaged
	c.mu.Unlock()
	return found
}

func workloadNamed(name string) *workload {
	for _, w := range workloads {
		if w.name == name {
			return w
		}
	}
	panic("no workload " + name)
}

// runs lists all combinations of one round.
func runs(seed uint64) (list []*run) {
	for _, meta := range []crashfs.Metadata{crashfs.Unordered, crashfs.Journaled} {
		for _, mode := range []device.Durability{device.DurabilityFlush, device.DurabilityAlways, device.DurabilityNone} {
			for _, w := range workloads {
				if !w.secondary || mode == device.DurabilityFlush {
					list = append(list, newRun(seed, w, mode, meta))
				}
			}
		}
	}
	return list
}

// budget reads MARS_SWEEP: a number of distinct points, or a time.
func budget(t *testing.T) (points int, until time.Time) {
	switch s := os.Getenv("MARS_SWEEP"); {
	case s == "" && raceEnabled:
		return promisedRace, time.Time{}
	case s == "":
		return promised, time.Time{}
	default:
		if n, err := strconv.Atoi(s); err == nil {
			return n, time.Time{}
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("MARS_SWEEP=%q: want a number of points or a time", s)
		}
		return promised, time.Now().Add(d)
	}
}

// TestSweep cuts the power at every persisted operation of every workload. MARS_SWEEP
// makes it longer; MARS_SEED with MARS_POINT replays one point.
func TestSweep(t *testing.T) {
	seed := testutil.Seed(t)
	c := &tally{}
	if p := os.Getenv("MARS_POINT"); p != "" {
		replayPoint(t, seed, p)
		return
	}
	points, until := budget(t)
	began := time.Now()
	for round := uint64(0); ; round++ {
		before := c.distinct()
		t.Run(fmt.Sprint("round", round), func(t *testing.T) {
			for _, r := range runs(seed + round) {
				if raceEnabled && os.Getenv("MARS_SWEEP") == "" {
					r.every = raceEvery
				}
				t.Run(r.String(), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						n := 0
						if found := sweepRun(t, r, c, &n); found != "" {
							t.Error(found)
						}
					})
				})
			}
		})
		if t.Failed() || c.distinct() == before || (c.distinct() >= points && !time.Now().Before(until)) {
			break
		}
	}
	t.Logf("%d distinct points in %v, of %d states at %d instants; besides: %d kills, %d cuts during recovery, %d damaged logs",
		c.distinct(), time.Since(began).Round(time.Second), c.states, c.cuts, c.killed, c.recoveryCuts, c.damaged)
	if c.distinct() < points && !t.Failed() {
		t.Errorf("%d distinct points, %d are promised", c.distinct(), points)
	}
}

// TestDeterministic runs each workload twice: the same cuts leave the same states, so
// a finding can be had again. The driver decides everything but what the runtime draws lots
// for, a select with several ready cases; so it may take another pair. (The race detector makes it draw lots
// for every goroutine.)
func TestDeterministic(t *testing.T) {
	if raceEnabled {
		t.Skip("the runtime schedules at random under the race detector")
	}
	seed := testutil.Seed(t)
	for i := range workloads {
		d := ""
		for range 3 {
			if d = firstDifference(states(t, seed, i), states(t, seed, i)); d == "" {
				break
			}
			t.Logf("%s: %s", workloads[i].name, d)
		}
		if d != "" {
			t.Errorf("%s: no two runs of three pairs were the same", workloads[i].name)
		}
	}
}

// states runs a workload and tells what every fifth cut would leave.
func states(t *testing.T, seed uint64, i int) (list []string) {
	r := runs(seed)[i]
	r.every = 5
	r.keep = func(s *state) {
		list = append(list, fmt.Sprint(s, s.op, s.hash, s.acks, s.tick, s.told, s.published))
	}
	synctest.Test(t, func(t *testing.T) { r.execute(t) })
	return list
}

func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("state %d of %d is %s, and then %s", i, len(a), a[i], b[i])
		}
	}
	if len(a) != len(b) {
		return fmt.Sprintf("%d states, and then %d", len(a), len(b))
	}
	return ""
}

// replayPoint visits one point: WORKLOAD/MODE/METADATA:CUT/POLICY/VARIANT.
func replayPoint(t *testing.T, seed uint64, name string) {
	of, at, _ := strings.Cut(name, ":")
	for _, r := range runs(seed) {
		if r.String() != of {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			n := 0
			if found := sweepRun(t, r, &tally{only: at}, &n); found != "" {
				t.Error(found)
			} else if n == 0 {
				t.Errorf("there is no point %s", at)
			}
		})
		return
	}
	t.Fatalf("MARS_POINT=%q: want WORKLOAD/MODE/METADATA:CUT/POLICY/VARIANT", name)
}
