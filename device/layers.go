package device

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"mars/logfile"
)

// logRef is a logfile that layers point into.
type logRef struct {
	name   logfile.Name
	writer atomic.Pointer[logfile.Writer] // while this engine appends to it
	into   *layers                        // what its new records enter
}

// layer indexes the records [start, end) of one log. The newest layer grows; the
// others are frozen: the writeback reads them without a lock. A cycle writes
// exactly one layer, so after it the disk is exactly the prefix that ends there,
// whatever has been written since.
type layer struct {
	log        *logRef
	start, end int64
	since      time.Time // when it became dirty
	closed     time.Time // when it was frozen
	ext        extentMap
}

func (l *layer) empty() bool { return l.start == l.end }

func (l *layer) endPos() logfile.Position { return logfile.Position{Log: l.log.name, Offset: l.end} }

// piece is a part of a device range and where its newest content is; log is nil
// for the disk.
type piece struct {
	extent
	log *logRef
}

// layers is the extent index: newest layer last. Every range that no layer has is
// on the disk.
type layers struct {
	mu   sync.RWMutex
	list []*layer // at least one

	limit    int64
	count    atomic.Int64 // extents held
	reserved atomic.Int64 // extents that writers under way may add
	waiters  atomic.Int64
	room     signal // something of a layer was written, or it was dropped

	// See admit.
	drained atomic.Int64 // extents of the oldest layer that are written
	total   atomic.Int64 // written since the start, in parts of an extent
	owed    atomic.Int64 // what total must reach before the latest admitted writer goes on

	touched atomic.Int64 // when something was added last, by the clock of born
	born    time.Time

	wakeBytes int64 // log bytes of the newest layer that wake the writeback
}

func newLayers(from logfile.Position, cfg *EngineConfig) *layers {
	x := &layers{born: time.Now(), limit: int64(cfg.IndexLimit), wakeBytes: cfg.WritebackBytes}
	x.list = []*layer{{log: &logRef{name: from.Log}, start: from.Offset, end: from.Offset}}
	return x
}

func (x *layers) top() *layer { return x.list[len(x.list)-1] }

// end is the position behind the newest record in the index.
func (x *layers) end() logfile.Position {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.top().endPos()
}

// worst is the number of extents that n insertions can add: itself and, when it
// splits another one, the tail of that.
func worst(n int) int64 { return 2 * int64(n) }

// tryReserve takes room for n insertions. A request larger than the whole limit is
// let in when it is alone.
func (x *layers) tryReserve(n int) bool {
	for w := worst(n); ; {
		// In this order: a writer raises count before it lowers reserved.
		r := x.reserved.Load()
		held := x.count.Load()
		if r+w+held > x.limit && r+held > 0 {
			return false
		}
		if x.reserved.CompareAndSwap(r, r+w) {
			return true
		}
	}
}

// reserve is tryReserve that waits for room; full is called before it waits.
func (x *layers) reserve(ctx context.Context, n int, full func()) error {
	if x.tryReserve(n) {
		return nil
	}
	x.waiters.Add(1)
	defer x.waiters.Add(-1)
	for {
		room := x.room.wait()
		if x.tryReserve(n) {
			return nil
		}
		full()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Parts of the limit between which writers are slowed down, in percent: from none at
// easyFill to the pace of the disk at fairFill, and on in the same way.
const (
	easyFill = 25
	fairFill = 40
)

// oneExtent is the unit of total and owed: charges are fractions of an extent.
const oneExtent = 1 << 10

// charge is how much the disk must have taken before a writer of n extents goes on,
// 0 while there is plenty of room.
func (x *layers) charge(n int) int64 {
	held := x.count.Load() - x.drained.Load()
	over := held + int64(n) - x.limit*easyFill/100
	if held == 0 || over <= 0 {
		return 0
	}
	return int64(n) * oneExtent * over / (x.limit*(fairFill-easyFill)/100 + 1)
}

// admit slows a writer of n extents down the more, the fuller the index is, until writers
// run at the pace of the disk. So a backlog neither grows up to the limit, where writers would wait for
// a whole layer, nor stops anybody who comes after it. full is called before it waits.
func (x *layers) admit(ctx context.Context, n int, full func()) error {
	charge := x.charge(n)
	target := int64(0)
	for {
		owed := x.owed.Load()
		target = max(owed, x.total.Load()) + charge
		if x.owed.CompareAndSwap(owed, target) {
			break
		}
	}
	x.waiters.Add(1)
	defer x.waiters.Add(-1)
	for {
		room := x.room.wait()
		if x.total.Load() >= target || x.charge(n) == 0 {
			return nil
		}
		full()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// drain says that n more extents of the oldest layer are written.
func (x *layers) drain(n int) {
	x.drained.Add(int64(n))
	x.total.Add(int64(n) * oneExtent)
	if x.waiters.Load() > 0 {
		x.room.fire()
	}
}

// touch notes that something is being added.
func (x *layers) touch() { x.touched.Store(int64(time.Since(x.born))) }

// idle is the time since something was added.
func (x *layers) idle() time.Duration {
	return time.Since(x.born) - time.Duration(x.touched.Load())
}

func (x *layers) release(n int) {
	x.reserved.Add(-worst(n))
	if x.waiters.Load() > 0 {
		x.room.fire()
	}
}

// add puts one record that ends at end into the newest layer and reports whether
// the writeback should look at it. The caller holds mu.
func (x *layers) add(e extent, end int64) (wake bool) {
	l := x.top()
	if wake = l.empty(); wake {
		l.since = time.Now()
	}
	wake = wake || (l.end-l.start < x.wakeBytes && end-l.start >= x.wakeBytes)
	l.end = end
	if e.len == 0 {
		return wake
	}
	before := l.ext.count
	l.ext.insert(e)
	x.count.Add(int64(l.ext.count - before))
	return wake
}

// freeze ends the newest layer at its present end and starts another one on log.
// The caller holds mu.
func (x *layers) freeze(log *logRef, start int64) {
	x.top().closed = time.Now()
	x.list = append(x.list, &layer{log: log, start: start, end: start})
}

// written forgets what the oldest layer, l, held: it is on the disk. That comes before the
// new position is published, because then its log may be removed.
func (x *layers) written(l *layer) {
	x.mu.Lock()
	x.count.Add(-int64(l.ext.count))
	x.total.Add(oneExtent * max(0, int64(l.ext.count)-x.drained.Swap(0)))
	l.ext.reset()
	l.start = l.end
	x.mu.Unlock()
	x.room.fire()
}

// drop takes the oldest layer away.
func (x *layers) drop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.list = append(x.list[:0:0], x.list[1:]...)
}

// swap puts fresh in the place of all layers if f, which runs while nobody can look
// anything up, succeeds.
func (x *layers) swap(fresh []*layer, f func() error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := f(); err != nil {
		return err
	}
	n := 0
	for _, l := range fresh {
		n += l.ext.count
	}
	for _, l := range x.list {
		l.ext.reset()
	}
	x.list = fresh
	x.count.Store(int64(n))
	x.drained.Store(0)
	x.room.fire()
	return nil
}

// lookup appends the pieces that make up [off, end), in order.
func (x *layers) lookup(dst []piece, off, end int64) []piece {
	x.mu.RLock()
	dst = x.fill(dst, len(x.list)-1, off, end)
	x.mu.RUnlock()
	return dst
}

func (x *layers) fill(dst []piece, li int, off, end int64) []piece {
	for ; li >= 0; li-- {
		l := x.list[li]
		c := l.ext.seek(off)
		e := l.ext.at(c)
		if e == nil || e.off >= end {
			continue
		}
		for e != nil && e.off < end {
			p := piece{*e, l.log}
			if p.off < off {
				p.cutFront(off)
			}
			if p.off > off {
				dst = x.fill(dst, li-1, off, p.off)
			}
			p.len = min(p.len, end-p.off)
			dst = append(dst, p)
			off = p.end()
			c = l.ext.next(c)
			e = l.ext.at(c)
		}
		if off >= end {
			return dst
		}
	}
	if n := len(dst); n > 0 && dst[n-1].log == nil && dst[n-1].end() == off {
		dst[n-1].len += end - off
		return dst
	}
	return append(dst, piece{extent: extent{off: off, len: end - off}})
}

// signal is a broadcast that costs nothing while nobody waits.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next fire closes. Take it before looking at the
// condition.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
