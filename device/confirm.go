package device

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/logfile"
)

// Confirm says what a FLUSH or FUA waits for beyond the own log: that so many members have received
// the log up to there. The zero value waits for nobody.
type Confirm struct {
	Members int
	// Patience is how long one waits at most. After that it is answered, and so is everything else
	// that the own log has, until the members have caught up (degraded). 0: for ever.
	Patience time.Duration
}

// ConfirmStatus is how it goes.
type ConfirmStatus struct {
	Confirm
	Degraded bool      // nobody is waited for at present
	Since    time.Time // of Degraded
	Waiting  int       // FLUSH and FUA requests
	// Oldest is when the first of those that wait was durable here; zero without any.
	Oldest   time.Time
	Received logfile.Position // what enough members have
}

// confirmer holds back answers until enough members have what is answered. Its queue is in log order.
type confirmer struct {
	on atomic.Bool // cfg.Members > 0

	mu       sync.Mutex
	cfg      Confirm
	received map[string]logfile.Position
	enough   logfile.Position // what cfg.Members of them have
	queue    []unconfirmed
	closed   error
	timer    *time.Timer
	degraded bool
	since    time.Time
	// goal is where the log ended at goalAt: members that have it before their patience is over have
	// caught up.
	goal   logfile.Position
	goalAt time.Time
}

type unconfirmed struct {
	pos  logfile.Position
	at   time.Time
	done []func(error)
}

// after orders positions in logs of one host.
func after(a, b logfile.Position) bool {
	return a.Log.Seq > b.Log.Seq || a.Log.Seq == b.Log.Seq && a.Offset > b.Offset
}

// SetConfirm changes what FLUSH and FUA wait for, also for those that wait already. It
// reports whether anything is new.
func (e *Engine) SetConfirm(c Confirm) bool {
	f := &e.confirm
	f.mu.Lock()
	if f.cfg == c {
		f.mu.Unlock()
		return false
	}
	f.cfg = c
	f.on.Store(c.Members > 0)
	f.degraded, f.since = false, time.Time{}
	f.count()
	ready := f.take()
	e.watchPatience()
	f.mu.Unlock()
	answer(ready, nil)
	e.notify()
	return true
}

// Received tells that a member has the own logs up to pos. Reports may come late, twice and in
// any order.
func (e *Engine) Received(member string, pos logfile.Position) error {
	if pos.Log.Host != e.cfg.Host {
		return fmt.Errorf("resource %s: %s reports %v: %w: not a log of %s", e.cfg.Resource, member, pos, syscall.EINVAL, e.cfg.Host)
	}
	end := e.logEnd()
	if after(pos, end) {
		return fmt.Errorf("resource %s: %s reports %v: %w: the log ends at %v", e.cfg.Resource, member, pos, syscall.EINVAL, end)
	}
	f := &e.confirm
	f.mu.Lock()
	if !after(pos, f.received[member]) {
		f.mu.Unlock()
		return nil
	}
	if f.received == nil {
		f.received = make(map[string]logfile.Position)
	}
	f.received[member] = pos
	f.count()
	changed := f.catchUp(end)
	ready := f.take()
	f.mu.Unlock()
	answer(ready, nil)
	if changed {
		e.notify()
	}
	return nil
}

// KeepMembers drops what others have reported: they are members no more.
func (e *Engine) KeepMembers(members []string) {
	f := &e.confirm
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.received)
	maps.DeleteFunc(f.received, func(m string, _ logfile.Position) bool { return !slices.Contains(members, m) })
	if len(f.received) < n {
		f.count()
	}
}

// logEnd is the end of the own log, or of what is in the index.
func (e *Engine) logEnd() logfile.Position {
	e.idx.mu.RLock()
	defer e.idx.mu.RUnlock()
	return e.idx.top().endPos()
}

// confirmed answers requests whose data the own log has: at once, or when enough members have it, too.
func (e *Engine) confirmed(done []func(error), err error) {
	f := &e.confirm
	if err != nil || !f.on.Load() {
		answer(done, err)
		return
	}
	pos := e.logEnd() // perhaps further than needed, never less
	f.mu.Lock()
	switch {
	case f.closed != nil:
		err = f.closed
	case f.cfg.Members == 0, f.degraded, !after(pos, f.enough):
	default:
		f.queue = append(f.queue, unconfirmed{pos, time.Now(), append([]func(error){}, done...)})
		done = nil
		e.watchPatience()
	}
	f.mu.Unlock()
	answer(done, err)
}

func answer(done []func(error), err error) {
	for _, d := range done {
		d(err)
	}
}

// count finds what enough members have. mu is held.
func (f *confirmer) count() {
	f.enough = logfile.Position{}
	if f.cfg.Members == 0 {
		return
	}
	for _, p := range f.received {
		n := 0
		for _, q := range f.received {
			if !after(p, q) {
				n++
			}
		}
		if n >= f.cfg.Members && after(p, f.enough) {
			f.enough = p
		}
	}
}

// take removes what may be answered from the queue. mu is held.
func (f *confirmer) take() (ready []func(error)) {
	n := 0
	for ; n < len(f.queue) && (f.cfg.Members == 0 || f.degraded || !after(f.queue[n].pos, f.enough)); n++ {
		ready = append(ready, f.queue[n].done...)
	}
	f.queue = f.queue[n:]
	if len(f.queue) == 0 {
		f.queue = nil
	}
	return ready
}

// catchUp ends the degraded state when enough members have, within the patience, what the log had: only then
// will the next FLUSH not wait in vain again. mu is held.
func (f *confirmer) catchUp(end logfile.Position) bool {
	if !f.degraded || after(f.goal, f.enough) {
		return false
	}
	if quick := time.Since(f.goalAt) <= f.cfg.Patience || !after(end, f.enough); !quick {
		f.goal, f.goalAt = end, time.Now()
		return false
	}
	f.degraded, f.since = false, time.Time{}
	return true
}

// watchPatience makes sure that the first of the queue does not wait too long. mu is held.
func (e *Engine) watchPatience() {
	f := &e.confirm
	if f.cfg.Patience == 0 || len(f.queue) == 0 {
		return
	}
	wait := time.Until(f.queue[0].at.Add(f.cfg.Patience))
	if f.timer == nil {
		f.timer = time.AfterFunc(wait, e.outOfPatience)
	} else {
		f.timer.Reset(wait)
	}
}

func (e *Engine) outOfPatience() {
	f := &e.confirm
	end := e.logEnd()
	f.mu.Lock()
	if f.cfg.Patience == 0 || len(f.queue) == 0 || f.closed != nil {
		f.mu.Unlock()
		return
	}
	if time.Since(f.queue[0].at) < f.cfg.Patience {
		e.watchPatience()
		f.mu.Unlock()
		return
	}
	first := f.queue[0].pos
	f.degraded, f.since = true, time.Now()
	f.goal, f.goalAt = end, f.since
	ready := f.take()
	f.mu.Unlock()
	answer(ready, nil)
	e.log.Warn("members are too slow: FLUSH is answered without them until they have caught up",
		"members", f.cfg.Members, "patience", f.cfg.Patience, "position", first.String())
	e.notify()
}

func (f *confirmer) status() ConfirmStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := ConfirmStatus{Confirm: f.cfg, Degraded: f.degraded, Since: f.since, Received: f.enough}
	for _, q := range f.queue {
		s.Waiting += len(q.done)
	}
	if len(f.queue) > 0 {
		s.Oldest = f.queue[0].at
	}
	return s
}

// close answers those that nobody will confirm any more.
func (f *confirmer) close(err error) {
	f.mu.Lock()
	f.closed = err
	queue := f.queue
	f.queue = nil
	if f.timer != nil {
		f.timer.Stop()
	}
	f.mu.Unlock()
	for _, q := range queue {
		answer(q.done, err)
	}
}
