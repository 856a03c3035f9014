package sim

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"
	"time"

	"mars/transport"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "replay the run of this seed, with the logs of its nodes")
	seedsFlag = flag.Int("sim.seeds", 0, "so many seeds")
	firstFlag = flag.Uint64("sim.first", 1, "the first seed")
)

// identities are made once: they cost more than a run.
var identities = map[string]*transport.Identity{}

func TestMain(m *testing.M) {
	flag.Parse()
	// Half of the time of a run went into post-quantum key exchanges and the collector.
	os.Setenv("GODEBUG", "tlsmlkem=0")
	debug.SetGCPercent(400)
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		panic(err)
	}
	secret := make(transport.Secret, transport.SecretSize)
	for _, n := range names {
		if identities[n], err = transport.NewIdentity(secret, n, filepath.Join(dir, n)); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestSim plays seeds and wants no finding.
func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		t.Run("seed", func(t *testing.T) { replay(t, *seedFlag) })
		return
	}
	n, until := budget(t)
	play(t, *firstFlag, n, until)
}

const (
	// promised is how many seeds TestSim plays; a build for the race detector plays a sample.
	promised, promisedRace = 2000, 6
)

// budget reads -sim.seeds, or MARS_SIM: a number of seeds, or a time.
func budget(t *testing.T) (seeds int, until time.Time) {
	switch v := os.Getenv("MARS_SIM"); {
	case *seedsFlag > 0:
		return *seedsFlag, time.Time{}
	case v == "" && raceEnabled:
		return promisedRace, time.Time{}
	case v == "":
		return promised, time.Time{}
	default:
		if n, err := strconv.Atoi(v); err == nil {
			return n, time.Time{}
		}
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("MARS_SIM=%q: want a number of seeds or a time", v)
		}
		*firstFlag = uint64(time.Now().UnixNano()) // others than those that everybody plays
		return 0, time.Now().Add(d)
	}
}

// play runs seeds on as many cores as there are, and reports each one that finds something.
func play(t *testing.T, first uint64, n int, until time.Time) {
	began := time.Now()
	var mu sync.Mutex
	var sum stats
	next := first
	t.Run("seeds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("core", i), func(t *testing.T) {
				t.Parallel()
				for {
					mu.Lock()
					seed := next
					next++
					mu.Unlock()
					if seed >= first+uint64(n) && !time.Now().Before(until) {
						return
					}
					s := newSchedule(seed)
					r := run(t, s, options{})
					mu.Lock()
					sum.add(r.stats)
					mu.Unlock()
					if len(r.found) > 0 {
						t.Errorf("%vfound: %.1200v\nrepeat it with: go test -run TestSim/seed ./cmd/internal/sim -sim.seed=%d, make it short with: go test -run TestShrink ./cmd/internal/sim -sim.seed=%d", s, r.found[0], seed, seed)
					}
				}
			})
		}
	})
	t.Logf("%d seeds in %v: %+v", next-first, time.Since(began).Round(time.Second), sum)
}

func (s *stats) add(o stats) {
	s.writes += o.writes
	s.acked += o.acked
	s.checks += o.checks
	s.crashes += o.crashes
	s.commands += o.commands
	s.refused += o.refused
	s.dials += o.dials
	s.took += o.took
}

func replay(t *testing.T, seed uint64) {
	s := newSchedule(seed)
	r := run(t, s, options{log: os.Stderr})
	t.Logf("%v", s)
	for _, l := range r.trace {
		fmt.Fprintln(os.Stderr, l)
	}
	for _, f := range r.found {
		t.Errorf("%v", f)
	}
}
