package device

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/device/nbd"
	"mars/internal/vfs/crashfs"
)

// slowDisk makes every write to the disk take that long, one after the other, and
// counts them.
func (w *world) slowDisk(each time.Duration, wrote func()) {
	head := make(chan struct{}, 1)
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: diskPath, Delay: func(crashfs.Op) {
		head <- struct{}{}
		time.Sleep(each)
		<-head
		wrote()
	}})
}

func (w *world) write4k(r *rand.Rand) error {
	return w.e.Submit([]nbd.Op{{Kind: nbd.OpWrite, Off: r.Int64N(w.size/4096) * 4096, Len: 4096, Data: make([]byte, 4096)}})
}

// overload lets eight clients write as fast as they may to a disk that takes a write each 10 ms, for
// so long. It returns how many were let in per write that the disk can take, and the longest wait.
func overload(t *testing.T, k knobs, length time.Duration) (share float64, worst time.Duration) {
	const each = 10 * time.Millisecond
	w := newWorld(t, 1, 128<<20, nil, func(c *EngineConfig) {
		c.IndexLimit, c.WritebackAge, c.SyncInterval, c.knobs = 2048, 2*time.Second, 20*time.Millisecond, k
	})
	w.primary()
	w.slowDisk(each, func() {})
	var wrote atomic.Int64
	var mu sync.Mutex
	start := time.Now()
	warm, end := start.Add(length/4), start.Add(length)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			for began := time.Now(); began.Before(end); began = time.Now() {
				if err := w.write4k(r); err != nil {
					t.Error(err)
					return
				}
				if began.After(warm) {
					wrote.Add(1)
				}
				mu.Lock()
				worst = max(worst, time.Since(began))
				mu.Unlock()
				time.Sleep(time.Millisecond) // a client's turn
			}
		})
	}
	wg.Wait()
	share = float64(wrote.Load()) / (float64(end.Sub(warm)) / float64(each))
	t.Logf("let in %.2f of what the disk takes, longest wait %v", share, worst)
	return share, worst
}

// TestOverload: with more writes than the disk can take, none waits for long, and
// as many are let in as the disk takes.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share, worst := overload(t, knobs{}, time.Minute)
		if worst > time.Second {
			t.Errorf("a write waited %v", worst)
		}
		if share < 0.9 {
			t.Errorf("%.2f of what the disk takes was let in", share)
		}
	})
}

// TestOverloadMutant: without the pacing of writers the same load must show.
func TestOverloadMutant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, worst := overload(t, knobs{skipAdmit: true}, 40*time.Second); worst < time.Second {
			t.Errorf("nobody was paced, and yet the longest wait is %v", worst)
		}
	})
}

// TestWritebackSpread: while clients write, the disk is not written in bursts.
func TestWritebackSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 64<<20, nil, func(c *EngineConfig) { c.WritebackAge, c.SyncInterval = 2*time.Second, 20*time.Millisecond })
		w.primary()
		start := time.Now()
		var mu sync.Mutex
		per := make(map[time.Duration]int) // writes to the disk in each tenth of a second
		w.slowDisk(10*time.Microsecond, func() {
			mu.Lock()
			per[time.Since(start)/(100*time.Millisecond)]++
			mu.Unlock()
		})
		r := rand.New(rand.NewPCG(7, 7))
		for range 2000 {
			must(t, w.write4k(r))
			time.Sleep(10 * time.Millisecond)
		}
		sum, most := 0, 0
		mu.Lock()
		defer mu.Unlock()
		for _, n := range per {
			sum += n
			most = max(most, n)
		}
		t.Logf("%d writes to the disk in 20 s, at most %d in 0.1 s", sum, most)
		if sum < 1500 { // the rest is of the last 2 s and neighbours
			t.Errorf("%d of 2000 writes reached the disk in 20 s", sum)
		}
		if most > 40 { // one cycle has 200
			t.Errorf("%d writes in 0.1 s: a burst", most)
		}
	})
}

// TestWritebackIdle: when nothing more is written, the disk need not wait for the age.
func TestWritebackIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1<<20, nil, func(c *EngineConfig) { c.WritebackAge, c.SyncInterval = 10*time.Second, 20*time.Millisecond })
		w.primary()
		must(t, w.write4k(rand.New(rand.NewPCG(7, 7))))
		end := w.e.idx.end()
		time.Sleep(900 * time.Millisecond)
		if pos, _ := w.jour.get(); pos == end {
			t.Error("written back while clients may still be writing")
		}
		time.Sleep(200 * time.Millisecond)
		if pos, _ := w.jour.get(); pos != end {
			t.Errorf("position %v a second after the last write, which ended at %v", pos, end)
		}
	})
}
