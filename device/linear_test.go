package device

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/nbdclient"
	"mars/internal/register"
	"mars/internal/testutil"
)

const (
	hotSectors = 64
	sector     = 512
	minTurns   = 4 // of what runs meanwhile
)

// hotLoad lets clients on several connections read and write overlapping ranges of a few sectors,
// and returns the history of each sector. between runs meanwhile, again and again.
func hotLoad(t testing.TB, b nbd.Backend, conns, clients, rounds int, between func() error) (history [hotSectors][]register.Access) {
	t.Helper()
	s := nbd.NewServer(nbd.Config{Log: slog.New(slog.DiscardHandler)})
	must(t, s.Add(nbd.Export{Name: "r", Backend: b}))
	path := t.TempDir() + "/s"
	l, err := listenUnix(path)
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Close()
		must(t, <-served)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	seed := testutil.Seed(t)
	var clock, values, turns atomic.Int64
	var mu sync.Mutex
	var load, others sync.WaitGroup
	for i := range clients {
		if i >= conns {
			break
		}
		c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: path, Export: "r"})
		must(t, err)
		defer c.Close()
		for k := i; k < clients; k += conns {
			load.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(k)))
				for i := 0; i < rounds || turns.Load() < minTurns && ctx.Err() == nil; i++ {
					n := 1 + rnd.IntN(8)
					first := rnd.IntN(hotSectors - n + 1)
					p := make([]byte, n*sector)
					a := register.Access{Write: rnd.IntN(2) == 0}
					var err error
					if a.Write {
						for s := range n {
							binary.LittleEndian.PutUint64(p[s*sector:], uint64(values.Add(1)))
						}
						a.Start = clock.Add(1)
						err = c.Write(ctx, p, int64(first)*sector)
					} else {
						a.Start = clock.Add(1)
						err = c.Read(ctx, p, int64(first)*sector)
					}
					a.End = clock.Add(1)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for s := range n {
						a.Value = binary.LittleEndian.Uint64(p[s*sector:])
						history[first+s] = append(history[first+s], a)
					}
					mu.Unlock()
				}
			})
		}
	}
	done := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := between(); err != nil {
				t.Error(err)
				cancel()
				return
			}
			turns.Add(1)
		}
	})
	load.Wait()
	close(done)
	others.Wait()
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

// TestHotSectorsAreLinearizable: reads that race with writes, with rotation, with writeback and with the removal of
// logs never see an older state than somebody has seen before (section 8.7 of the acceptance reference).
func TestHotSectorsAreLinearizable(t *testing.T) {
	for _, tc := range []struct{ conns, clients int }{{1, 4}, {2, 8}, {4, 16}} {
		t.Run(fmt.Sprintf("%d clients on %d connections", tc.clients, tc.conns), func(t *testing.T) {
			e, _ := fileEngine(t, 1<<20, func(c *EngineConfig) { c.WritebackAge = time.Millisecond })
			seq := 1
			history := hotLoad(t, e.Backend(), tc.conns, tc.clients, 100, func() error {
				seq++
				if err := e.Rotate(name(seq, "a")); err != nil {
					return err
				}
				return e.WriteBack(context.Background())
			})
			if bad := illegal(history); bad != nil {
				t.Error(bad)
			}
		})
	}
}

// staleReads is an engine that serves some reads from the disk although the log is newer: the mistake that
// the original avoids with its temporary buffer.
type staleReads struct {
	backend
	n atomic.Int64
}

func (b *staleReads) TryReadAt(p []byte, off int64) (bool, error) {
	if b.n.Add(1)%8 != 0 {
		return b.backend.TryReadAt(p, off)
	}
	_, err := b.disk.ReadAt(p, off)
	return true, err
}

// TestHotSectorsNoticesStaleReads is the negative control.
func TestHotSectorsNoticesStaleReads(t *testing.T) {
	e, _ := fileEngine(t, 1<<20, nil)
	seq := 1
	history := hotLoad(t, &staleReads{backend: backend{e}}, 2, 8, 60, func() error {
		seq++
		return e.Rotate(name(seq, "a"))
	})
	if illegal(history) == nil {
		t.Error("not noticed")
	}
}
