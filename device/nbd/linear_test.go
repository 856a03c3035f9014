package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/testutil"
)

// access is one read or write of one sector; start and end come from one counter.
type access struct {
	write      bool
	value      uint64
	start, end int64
}

// linearizable decides whether a history of one register, in which each value is written once,
// has a legal order (Gibbons and Korach 1997): the accesses of each value span a zone from their first
// end to their last start. Zones that run forward must not overlap, and none that runs backward
// may lie within one that runs forward. The register starts with value 0.
func linearizable(history []access) error {
	type zone struct {
		firstEnd, lastStart, writeStart int64
		written                         bool
	}
	zones := map[uint64]*zone{0: {firstEnd: -1, lastStart: -2, writeStart: -2, written: true}}
	for _, a := range history {
		z := zones[a.value]
		if z == nil {
			z = &zone{firstEnd: a.end, lastStart: a.start}
			zones[a.value] = z
		}
		z.firstEnd, z.lastStart = min(z.firstEnd, a.end), max(z.lastStart, a.start)
		if a.write {
			z.written, z.writeStart = true, a.start
		}
	}
	for v, z := range zones {
		if !z.written {
			return fmt.Errorf("value %d was read but never written", v)
		}
		if z.firstEnd < z.writeStart {
			return fmt.Errorf("value %d was read before it was written", v)
		}
	}
	for v, z := range zones {
		if z.firstEnd >= z.lastStart {
			continue
		}
		for w, y := range zones {
			if v == w {
				continue
			}
			lo, hi := min(y.firstEnd, y.lastStart), max(y.firstEnd, y.lastStart)
			if forward := y.firstEnd < y.lastStart; forward && lo < z.lastStart && z.firstEnd < hi {
				return fmt.Errorf("values %d and %d were both current, one before and after the other", v, w)
			} else if !forward && z.firstEnd < lo && hi < z.lastStart {
				return fmt.Errorf("value %d was there before and after value %d", v, w)
			}
		}
	}
	return nil
}

func TestLinearizableChecker(t *testing.T) {
	for _, tc := range []struct {
		name    string
		history []access
		legal   bool
	}{
		{"empty", nil, true},
		{"read of the start", []access{{false, 0, 1, 2}}, true},
		{"plain", []access{{true, 1, 1, 2}, {false, 1, 3, 4}, {true, 2, 5, 6}, {false, 2, 7, 8}}, true},
		{"concurrent read sees old", []access{{true, 1, 1, 4}, {false, 0, 2, 3}}, true},
		{"concurrent read sees new", []access{{true, 1, 1, 4}, {false, 1, 2, 3}}, true},
		{"stale read", []access{{true, 1, 1, 2}, {false, 0, 3, 4}}, false},
		{"new, then old again", []access{{true, 1, 1, 8}, {false, 1, 2, 3}, {false, 0, 4, 5}}, false},
		{"flip-flop of concurrent writes", []access{{true, 1, 1, 10}, {true, 2, 1, 10}, {false, 1, 2, 3}, {false, 2, 4, 5}, {false, 1, 6, 7}}, false},
		{"concurrent writes in any order", []access{{true, 1, 1, 10}, {true, 2, 1, 10}, {false, 2, 11, 12}, {false, 2, 13, 14}}, true},
		{"lost update", []access{{true, 1, 1, 2}, {true, 2, 3, 4}, {false, 1, 5, 6}}, false},
		{"read from the future", []access{{false, 1, 1, 2}, {true, 1, 3, 4}}, false},
		{"out of thin air", []access{{false, 9, 1, 2}}, false},
	} {
		if err := linearizable(tc.history); (err == nil) != tc.legal {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

const (
	hotSectors = 64
	sectorSize = 512
)

// hotLoad lets clients read and write overlapping ranges of hot sectors, and
// returns the history of each sector.
func hotLoad(t testing.TB, b Backend, rounds int) [hotSectors][]access {
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: b})
	seed := testutil.Seed(t)
	var clock, values atomic.Int64
	var mu sync.Mutex
	var history [hotSectors][]access
	var wg sync.WaitGroup
	for i := range 4 {
		c := ts.dial(nbdclient.Options{Export: "disk"})
		for k := range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				rnd := rand.New(rand.NewPCG(seed, uint64(10*i+k)))
				for range rounds {
					n := 1 + rnd.IntN(8)
					first := rnd.IntN(hotSectors - n + 1)
					p := make([]byte, n*sectorSize)
					a := access{write: rnd.IntN(2) == 0}
					var err error
					if a.write {
						for s := range n {
							binary.LittleEndian.PutUint64(p[s*sectorSize:], uint64(values.Add(1)))
						}
						a.start = clock.Add(1)
						err = c.Write(context.Background(), p, int64(first)*sectorSize)
					} else {
						a.start = clock.Add(1)
						err = c.Read(context.Background(), p, int64(first)*sectorSize)
					}
					a.end = clock.Add(1)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for s := range n {
						a.value = binary.LittleEndian.Uint64(p[s*sectorSize:])
						history[first+s] = append(history[first+s], a)
					}
					mu.Unlock()
				}
			}()
		}
	}
	wg.Wait()
	return history
}

func illegal(history [hotSectors][]access) (list []error) {
	for s, h := range history {
		if err := linearizable(h); err != nil {
			list = append(list, fmt.Errorf("sector %d: %w", s, err))
		}
	}
	return list
}

func TestHotSectorsAreLinearizable(t *testing.T) {
	var n atomic.Int64
	m := NewMemory(hotSectors * sectorSize)
	b := &hookBackend{Memory: m, try: func(p []byte, off int64) (bool, error) {
		if n.Add(1)%2 == 0 {
			return false, nil
		}
		return m.TryReadAt(p, off)
	}}
	if bad := illegal(hotLoad(t, b, 150)); bad != nil {
		t.Error(bad)
	}
}

// TestHotSectorsNoticesLies is the negative control.
func TestHotSectorsNoticesLies(t *testing.T) {
	t.Run("acknowledges before it has written", func(t *testing.T) {
		m := NewMemory(hotSectors * sectorSize)
		var mu sync.Mutex
		var late []Op
		b := &hookBackend{Memory: m, submit: func(ops []Op) error {
			mu.Lock()
			defer mu.Unlock()
			if len(late) > 3 {
				m.Submit(late)
				late = nil
			}
			for _, op := range ops {
				op.Data = append([]byte(nil), op.Data...)
				late = append(late, op)
			}
			return nil
		}}
		if illegal(hotLoad(t, b, 60)) == nil {
			t.Error("not noticed")
		}
	})
	t.Run("a read by a worker sees the disk behind the log", func(t *testing.T) {
		m, disk := NewMemory(hotSectors*sectorSize), NewMemory(hotSectors*sectorSize)
		var n atomic.Int64
		b := &hookBackend{Memory: m, submit: func(ops []Op) error {
			if n.Add(1)%4 != 0 {
				disk.Submit(ops)
			}
			return m.Submit(ops)
		}, try: func(p []byte, off int64) (bool, error) { return false, nil }, read: disk.ReadAt}
		if illegal(hotLoad(t, b, 60)) == nil {
			t.Error("not noticed")
		}
	})
}
