package device

import (
	"sync"
	"sync/atomic"
)

// rangeGuard keeps full sync, replay and writeback apart. Full sync copies a chunk
// as of some log position. A record behind that position which reached the disk first
// would be overwritten by older data, so:
//   - replay marks the chunks in flight that its records touch (touch);
//   - writeback marks them as well, and neither it nor full sync writes to a range
//     that the other one is writing to (write, flight.write);
//   - full sync throws a marked chunk away.
//
// A record that arrives while the chunk is being written waits its turn: it is
// written back after it.
type rangeGuard struct {
	active  atomic.Int32 // flights
	broken  bool         // negative control: marks are ignored
	mu      sync.Mutex
	freed   sync.Cond
	flights []*flight
	writes  []span // by writeback
}

type span struct{ off, len int64 }

func (s span) overlaps(off, length int64) bool { return s.off < off+length && off < s.off+s.len }

// flight is a chunk that full sync works on.
type flight struct {
	span
	g       *rangeGuard
	touched bool
	writing bool
	ended   bool
}

// begin registers a chunk before anything of it is read.
func (g *rangeGuard) begin(off, length int64) *flight {
	f := &flight{span: span{off, length}, g: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flights = append(g.flights, f)
	g.active.Add(1)
	return f
}

// touch says that a record for this range is about to enter the index.
func (g *rangeGuard) touch(off, length int64) {
	if g.active.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flights {
		if f.overlaps(off, length) {
			f.touched = true
		}
	}
}

// write lets writeback write a range; done ends that.
func (g *rangeGuard) write(off, length int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.freed.L == nil {
		g.freed.L = &g.mu
	}
	for again := true; again; {
		again = false
		for _, f := range g.flights {
			if f.overlaps(off, length) {
				if again = f.writing; again {
					g.freed.Wait()
					break
				}
				f.touched = true
			}
		}
	}
	g.writes = append(g.writes, span{off, length})
}

func (g *rangeGuard) done(off, length int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, s := range g.writes {
		if s == (span{off, length}) {
			last := len(g.writes) - 1
			g.writes[i] = g.writes[last]
			g.writes = g.writes[:last]
			break
		}
	}
	g.freed.Broadcast()
}

// write asks for permission to write the chunk; false means that it is stale.
func (f *flight) write() bool {
	g := f.g
	g.mu.Lock()
	defer g.mu.Unlock()
	f.touched = f.touched && !g.broken
	for !f.touched && g.writingTo(f.span) {
		if g.freed.L == nil {
			g.freed.L = &g.mu
		}
		g.freed.Wait()
	}
	f.writing = !f.touched
	return f.writing
}

func (g *rangeGuard) writingTo(s span) bool {
	for _, w := range g.writes {
		if w.overlaps(s.off, s.len) {
			return true
		}
	}
	return false
}

// end takes the chunk out and reports whether it was touched before it was written.
// Ending it again is harmless.
func (f *flight) end() (stale bool) {
	g := f.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.ended {
		return f.touched && !f.writing
	}
	f.ended = true
	for i := range g.flights {
		if g.flights[i] == f {
			g.flights = append(g.flights[:i], g.flights[i+1:]...)
			break
		}
	}
	g.active.Add(-1)
	if f.writing && g.freed.L != nil {
		g.freed.Broadcast()
	}
	return f.touched && !f.writing
}
