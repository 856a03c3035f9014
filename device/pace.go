package device

import (
	"context"
	"time"
)

// pacer spreads the disk writes of a cycle over the time in which the next layer
// fills, so that FLUSH and reads of the clients find the disk free most of the
// time. It gives way as soon as somebody waits for the cycle or nobody else wants the disk.
type pacer struct {
	e     *Engine
	start time.Time
	span  time.Duration // 0: as fast as the disk can
	total int           // extents
}

// paceFraction of the time that a layer took to fill is used to write it; the rest is reserve.
const paceFraction = 3.0 / 4

func (e *Engine) newPacer(l *layer) *pacer {
	p := &pacer{e: e, start: time.Now(), total: l.ext.count}
	filled := l.closed.Sub(l.since)
	p.span = time.Duration(float64(min(filled, e.cfg.WritebackAge)) * paceFraction)
	return p
}

// Bounds of one pause: below, waiting costs more than it spares; above, it would notice
// too late that the cycle has become urgent.
const (
	minPause = time.Millisecond
	maxPause = 10 * time.Millisecond
)

// letPass is how long a unit waits at most for the sync of a client.
const letPass = 100 * time.Millisecond

// pause waits until it is time for what follows the first done extents.
func (p *pacer) pause(ctx context.Context, done int) {
	p.e.sync.letPass(ctx, letPass)
	for p.span > 0 && ctx.Err() == nil {
		due := time.Duration(float64(p.span) * float64(done) / float64(p.total))
		ahead := due - time.Since(p.start)
		if ahead < minPause {
			return
		}
		if p.urgent() {
			p.span = 0
			return
		}
		p.e.wait(ctx, min(ahead, maxPause))
	}
}

// urgent reports whether there is a reason to hurry, or none to spare the disk.
func (p *pacer) urgent() bool {
	e := p.e
	if e.wb.forced.Load() > 0 || e.wb.full.Load() || e.idx.idle() >= e.idleAge() {
		return true
	}
	e.idx.mu.RLock()
	defer e.idx.mu.RUnlock()
	return len(e.idx.list) > 2
}

// idleAge is how long nothing must have been logged until what is dirty is written
// back before its age demands it.
func (e *Engine) idleAge() time.Duration { return e.cfg.WritebackAge / 10 }
