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
	"mars/internal/register"
	"mars/internal/testutil"
)

const (
	hotSectors = 64
	sectorSize = 512
)

// hotLoad lets clients read and write overlapping ranges of hot sectors, and
// returns the history of each sector.
func hotLoad(t testing.TB, b Backend, rounds int) [hotSectors][]register.Access {
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: b})
	seed := testutil.Seed(t)
	var clock, values atomic.Int64
	var mu sync.Mutex
	var history [hotSectors][]register.Access
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
					a := register.Access{Write: rnd.IntN(2) == 0}
					var err error
					if a.Write {
						for s := range n {
							binary.LittleEndian.PutUint64(p[s*sectorSize:], uint64(values.Add(1)))
						}
						a.Start = clock.Add(1)
						err = c.Write(context.Background(), p, int64(first)*sectorSize)
					} else {
						a.Start = clock.Add(1)
						err = c.Read(context.Background(), p, int64(first)*sectorSize)
					}
					a.End = clock.Add(1)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for s := range n {
						a.Value = binary.LittleEndian.Uint64(p[s*sectorSize:])
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

func illegal(history [hotSectors][]register.Access) (list []error) {
	for s, h := range history {
		if err := register.Check(h); err != nil {
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
