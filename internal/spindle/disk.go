package spindle

import (
	"sync"
	"time"
)

// Disk serves requests in real or virtual time. All methods are safe for concurrent use.
type Disk struct {
	geo  Geometry
	born time.Time

	mu      sync.Mutex
	pending []*request // in the order of arrival
	idle    bool
	stats   Stats

	kick chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup
}

type request struct {
	off, n int64
	at     time.Duration // arrival
	ready  time.Duration // not before
	done   func()
}

// Stats count since NewDisk.
type Stats struct {
	Requests, Bytes            int64
	Busy, Positioned, Transfer time.Duration // Busy == Positioned + Transfer
	Waited                     time.Duration // sum over requests, from arrival to completion
}

// NewDisk starts a disk. Close ends it.
func NewDisk(geo Geometry) (*Disk, error) {
	if err := geo.Validate(); err != nil {
		return nil, err
	}
	d := &Disk{geo: geo, born: time.Now(), idle: true, kick: make(chan struct{}, 1), stop: make(chan struct{})}
	d.wg.Go(d.serve)
	return d, nil
}

// Close stops the disk when the request it is working on is done. Requests that wait are never done.
func (d *Disk) Close() {
	close(d.stop)
	d.wg.Wait()
}

// Stats returns a snapshot.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

func (d *Disk) now() time.Duration { return time.Since(d.born) }

// Submit queues the transfer of [off, off+n) and returns; done is called when it is on the
// platter, and must not block.
func (d *Disk) Submit(off, n int64, done func()) {
	r := &request{off: off, n: n, at: d.now(), done: done}
	d.mu.Lock()
	r.ready = r.at
	if d.idle && len(d.pending) == 0 {
		r.ready += d.geo.Overhead // nothing hides it
	}
	d.pending = append(d.pending, r)
	d.mu.Unlock()
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// Do is Submit that waits.
func (d *Disk) Do(off, n int64) {
	done := make(chan struct{})
	d.Submit(off, n, func() { close(done) })
	<-done
}

func (d *Disk) serve() {
	var head int64
	for {
		r := d.next(head)
		if r == nil {
			select {
			case <-d.kick:
				continue
			case <-d.stop:
				return
			}
		}
		time.Sleep(max(0, r.ready-d.now()))
		pos := d.geo.Positioning(d.now(), head, r.off)
		move := d.geo.Transfer(r.off, r.n)
		time.Sleep(pos + move)
		head = max(r.off, r.off+r.n-1)
		d.mu.Lock()
		d.stats.Requests++
		d.stats.Bytes += r.n
		d.stats.Positioned += pos
		d.stats.Transfer += move
		d.stats.Busy += pos + move
		d.stats.Waited += d.now() - r.at
		d.mu.Unlock()
		r.done()
		select {
		case <-d.stop:
			return
		default:
		}
	}
}

// next takes the request that is reached first from the queue, or the oldest if it has waited for too long.
func (d *Disk) next(head int64) *request {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = len(d.pending) == 0
	if d.idle {
		return nil
	}
	best := 0
	if now-d.pending[0].at < d.geo.MaxAge {
		least := time.Duration(-1)
		for i, r := range d.pending[:min(len(d.pending), d.geo.Queue)] {
			if t := d.geo.Positioning(max(now, r.ready), head, r.off); least < 0 || t < least {
				best, least = i, t
			}
		}
	}
	r := d.pending[best]
	d.pending = append(d.pending[:best], d.pending[best+1:]...)
	return r
}
