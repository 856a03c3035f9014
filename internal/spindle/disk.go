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
	window  []int      // see next
	idle    bool
	instant bool
	stats   Stats

	kick chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup
}

type request struct {
	off, n int64
	class  Class
	at     time.Duration // arrival
	ready  time.Duration // not before
	done   func()
}

// Class says who waits for a request.
type Class int

const (
	// Waited: a caller waits for it (O_DIRECT, fdatasync, the journal).
	Waited Class = iota
	// Background: write-out ahead of a sync. While there are Waited requests the kernel gives it half of the
	// disk's queue, and nothing when one of them has waited for Geometry.Patience.
	Background
)

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

// Instant makes everything from now on take no time: a measurement is over, and what used the disk shall
// end. In a bubble of synctest it is needed where a mutex is held during I/O, as time stands still
// while somebody waits for a mutex.
func (d *Disk) Instant() {
	d.mu.Lock()
	d.instant = true
	d.mu.Unlock()
}

func (d *Disk) now() time.Duration { return time.Since(d.born) }

// Submit queues the transfer of [off, off+n) and returns; done is called when it is on the
// platter, and must not block.
func (d *Disk) Submit(class Class, off, n int64, done func()) {
	r := &request{off: off, n: n, class: class, at: d.now(), done: done}
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

// Do is a Waited Submit, and waits.
func (d *Disk) Do(off, n int64) {
	done := make(chan struct{})
	d.Submit(Waited, off, n, func() { close(done) })
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
		if d.isInstant() {
			r.done()
			continue
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

func (d *Disk) isInstant() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.instant
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
		for _, i := range d.visible(now) {
			r := d.pending[i]
			if t := d.geo.Positioning(max(now, r.ready), head, r.off); least < 0 || t < least {
				best, least = i, t
			}
		}
	}
	r := d.pending[best]
	d.pending = append(d.pending[:best], d.pending[best+1:]...)
	return r
}

// visible are the indices of the requests that the kernel has handed to the disk. mu is held.
func (d *Disk) visible(now time.Duration) []int {
	w := d.window[:0]
	late := false
	for i, r := range d.pending {
		if r.class == Waited && len(w) < d.geo.Queue {
			w = append(w, i)
			late = late || now-r.at >= d.geo.Patience
		}
	}
	room := d.geo.Queue - len(w)
	if late {
		room = 0
	} else if len(w) > 0 {
		room = min(room, max(1, d.geo.Queue/2))
	}
	for i, r := range d.pending {
		if room == 0 {
			break
		}
		if r.class == Background {
			w = append(w, i)
			room--
		}
	}
	d.window = w
	return w
}
