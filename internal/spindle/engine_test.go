package spindle_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/device"
	"mars/device/nbd"
	"mars/internal/spindle"
	"mars/logfile"
)

// load is a random write load in virtual time.
type load struct {
	depth int           // clients, each with one request in flight
	span  int64         // device bytes that are written to
	block int64         // bytes of one write
	flush int           // FLUSH after so many writes of a client; 0: never
	warm  time.Duration // not measured
	time  time.Duration // measured
	// perOp is the time that one client needs besides the disk
	perOp time.Duration
}

// What the engine does through NBD when no disk limits it, by make bench; the virtual clock knows
// no CPU time.
const (
	cpuIOPS  = 40_000
	cpuBytes = 1_000_000_000 // a second, on top
)

func newLoad(depth int, span, block int64) load {
	perOp := time.Second/cpuIOPS + time.Duration(block)*time.Second/cpuBytes
	return load{depth: depth, span: span, block: block, perOp: time.Duration(depth) * perOp}
}

// outcome of a load.
type outcome struct {
	iops           float64
	burst          float64 // IOPS of the first second
	p50, p99, p999 time.Duration
	max            time.Duration // longest request
	gap            time.Duration // longest time without any completion
	perSecond      []int
	written        []int64 // bytes written back until the end of each second
	trace          []string
}

func (o outcome) String() string {
	return fmt.Sprintf("%.0f IOPS, burst %.0f, p50 %v p99 %v p99.9 %v max %v, longest silence %v", o.iops, o.burst,
		round(o.p50), round(o.p99), round(o.p999), round(o.max), round(o.gap))
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// run drives write and flush.
func (l load) run(tb testing.TB, write func(off int64) error, flush func() error, second func(n int) (line string, written int64)) outcome {
	var (
		mu    sync.Mutex
		out   outcome
		times []time.Duration
		last  = time.Now()
		start = last
		ops   int
		sec   int
		first int
	)
	stop := make(chan struct{})
	note := func(began time.Time) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		sec++
		if now.Sub(start) < time.Second {
			first++
		}
		if now.Sub(start) >= l.warm {
			out.gap = max(out.gap, now.Sub(last))
			times = append(times, now.Sub(began))
			ops++
		}
		last = now
	}
	var wg sync.WaitGroup
	for i := range l.depth {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 42))
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				time.Sleep(l.perOp)
				began := time.Now()
				if err := write(r.Int64N(l.span/l.block) * l.block); err != nil {
					tb.Error(err)
					return
				}
				if l.flush > 0 && n%l.flush == 0 {
					if err := flush(); err != nil {
						tb.Error(err)
						return
					}
				}
				note(began)
			}
		})
	}
	for range int((l.warm + l.time) / time.Second) {
		time.Sleep(time.Second)
		mu.Lock()
		out.perSecond = append(out.perSecond, sec)
		if second != nil {
			line, written := second(sec)
			out.trace, out.written = append(out.trace, line), append(out.written, written)
		}
		sec = 0
		mu.Unlock()
	}
	mu.Lock()
	out.gap = max(out.gap, time.Since(last))
	out.iops = float64(ops) / l.time.Seconds()
	out.burst = float64(first)
	all := slices.Clone(times)
	mu.Unlock()
	close(stop)
	wg.Wait()
	slices.Sort(all)
	if n := len(all); n > 0 {
		out.p50, out.p99, out.p999, out.max = all[n/2], all[n*99/100], all[n*999/1000], all[n-1]
	}
	return out
}

// virtual runs f in a bubble. What pools keep from an earlier one must not get into it.
func virtual(t *testing.T, f func(t *testing.T)) {
	runtime.GC()
	runtime.GC()
	synctest.Test(t, f)
	runtime.GC()
	runtime.GC()
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

const dataSize = 256 << 30

// raw is the load on the disk itself: each request waits until it is on the platter.
func raw(t *testing.T, geo spindle.Geometry, l load) (out outcome) {
	virtual(t, func(t *testing.T) {
		d, err := spindle.NewDisk(geo)
		check(t, err)
		defer d.Close()
		out = l.run(t, func(off int64) error { d.Do(off, l.block); return nil }, func() error { return nil }, nil)
	})
	return out
}

// journal is durable at once and takes the time of a link in the tree: nothing. It is written
// once per cycle.
type journal struct{ n atomic.Int64 }

func (j *journal) Dirty(logfile.Name, int64, int64) error      { j.n.Add(1); return nil }
func (j *journal) Checkpoint(logfile.Name, int64, int64) error { j.n.Add(1); return nil }

// engine is the load through an Engine whose log and data are on the same spindle.
func engine(t *testing.T, geo spindle.Geometry, l load, tune func(*device.EngineConfig)) (out outcome, st device.Status, ds spindle.Stats) {
	virtual(t, func(t *testing.T) {
		d, err := spindle.NewDisk(geo)
		check(t, err)
		defer d.Close()
		fsys := spindle.NewFS(d, dataSize)
		fsys.AddFile("/disk", 0, dataSize)
		check(t, fsys.Mkdir("/log", 0o700))
		disk, err := device.OpenDisk(fsys, "/disk")
		check(t, err)
		chain, err := logfile.OpenChain(fsys, "/log")
		check(t, err)
		cfg := device.DefaultEngineConfig()
		cfg.Resource, cfg.Host, cfg.Disk, cfg.Chain, cfg.Size, cfg.Journal = "r", "a", disk, chain, dataSize, &journal{}
		cfg.Log = slog.New(slog.DiscardHandler)
		if tune != nil {
			tune(&cfg)
		}
		name := logfile.Name{Seq: 1, Host: "a"}
		e, err := device.OpenEngine(t.Context(), cfg, logfile.Position{Log: name}, 0)
		check(t, err)
		_, _, err = e.Recover(context.Background(), false)
		check(t, err)
		check(t, e.StartLogging(name))
		b := e.Backend()
		p := make([]byte, l.block)
		began := time.Now()
		var before spindle.Stats
		out = l.run(t, func(off int64) error {
			return b.Submit([]nbd.Op{{Off: off, Len: l.block, Data: p}})
		}, func() error {
			ch := make(chan error, 1)
			b.Sync(func(err error) { ch <- err })
			return <-ch
		}, func(n int) (string, int64) {
			s, now := e.Status(), d.Stats()
			line := fmt.Sprintf("%4.0fs acked %6d  extents %7d  written back %6d runs  log syncs %4d  cycles %3d  waits %d  busy %2.0f%%",
				time.Since(began).Seconds(), n, s.Extents, s.Counters.WritebackOps, s.Counters.LogSyncs, s.Counters.Cycles, s.Counters.WriterWaits,
				100*(now.Busy-before.Busy).Seconds())
			before = now
			return line, s.Counters.WritebackBytes
		})
		st, ds = e.Status(), d.Stats()
		d.Instant()
		time.Sleep(time.Second) // whoever was waiting for the disk is done
		check(t, e.Close())
		check(t, chain.Close())
		check(t, disk.Close())
	})
	return out, st, ds
}
