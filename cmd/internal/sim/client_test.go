package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"mars/cluster"
	"mars/device"
	"mars/device/nbd"
	"mars/internal/oracle"
	"mars/logfile"
)

// session is an export that exists: the device on one node, and the application that uses
// it. It takes the place of the NBD server.
type session struct {
	w    *world
	n    *node
	inc  *incarnation
	eng  *device.Engine
	dev  nbd.Backend
	log  logfile.Name // that it began with
	hist *history
	rng  *rand.Rand

	mu      sync.Mutex
	closed  bool
	inUse   bool
	flying  int
	idle    chan struct{} // closed when flying falls to 0 after closed
	blocked []span        // requests without an answer

	ops, acked int
}

type span struct{ off, len int64 }

// openExport is Config.OpenExport: the device appears.
func (inc *incarnation) openExport(_ string, eng *device.Engine) (cluster.Exported, error) {
	if inc.isDead() {
		return nil, errors.New("the machine is dead")
	}
	w := inc.n.w
	s := &session{w: w, n: inc.n, inc: inc, eng: eng, dev: eng.Backend(), log: eng.Status().Current, idle: make(chan struct{})}
	img := make([]byte, size)
	if err := s.dev.ReadAt(img, 0); err != nil {
		return nil, err // as a client would see it
	}
	if inc.isDead() {
		return nil, errors.New("the machine is dead")
	}
	w.attribute(s, img)
	w.mu.Lock()
	s.rng = w.rng(uint64(1000 + len(w.sessions)))
	w.sessions = append(w.sessions, s)
	w.mu.Unlock()
	w.note("device appears on %s, log %s, history %d", s.n.name, s.log, s.hist.id)
	w.work.Go(s.application)
	return s, nil
}

func (s *session) Path() string { return "sim:" + s.n.name }

func (s *session) OpenCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse {
		return 1
	}
	return 0
}

func (s *session) InFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flying
}

// Stop takes the device away.
func (s *session) Stop(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed, s.inUse = true, false
		if s.flying == 0 {
			close(s.idle)
		}
		defer s.w.note("device vanishes from %s", s.n.name)
	}
	s.mu.Unlock()
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serves tells whether clients can use it.
func (s *session) serves() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && !s.inc.isDead()
}

// enter begins a request; false if the device has vanished.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.inc.isDead() {
		return false
	}
	s.flying++
	return true
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying--; s.flying == 0 && s.closed {
		close(s.idle)
	}
}

// application opens the device and writes, as long as it may.
func (s *session) application() {
	for s.serves() {
		pause := time.Duration(40+s.rng.IntN(220)) * time.Millisecond
		s.w.mu.Lock()
		if s.w.burst {
			pause /= 10
		}
		stop := s.w.calm || s.n.noApp > 0
		s.w.mu.Unlock()
		s.mu.Lock()
		s.inUse = !stop && !s.closed
		s.mu.Unlock()
		if stop {
			pause = 20 * time.Millisecond
		} else if !s.enter() {
			return
		} else {
			s.request()
			s.leave()
		}
		select {
		case <-time.After(pause):
		case <-s.inc.dead:
			return
		case <-s.w.ended:
			return
		}
	}
}

// maxLatency is what a request may take while the disk answers at once (P10). It is exceeded
// only while the log has no space and emergency mode begins or ends.
const maxLatency = 4 * time.Second

// request sends some writes at a time, and a FLUSH now and then.
func (s *session) request() {
	began := time.Now()
	if s.rng.IntN(5) == 0 {
		s.flush()
	} else {
		s.write()
	}
	if d := time.Since(began); d > maxLatency && !s.inc.isDead() && !s.w.crowded(s.n) {
		s.w.violation("P10", "a request took %v on %s", d, s.n.name)
	}
	if m := s.eng.Status().Mode; m == device.Direct || m == device.Ceasing {
		s.w.aroundLog(s)
	}
}

// answer records the outcome of a request, if there is still somebody to hear of it.
func (s *session) answer(number uint64, err error, sp span) {
	if s.inc.isDead() {
		return
	}
	if err != nil {
		s.blocked = append(s.blocked, sp)
	} else {
		s.acked++
	}
	if jerr := s.hist.j.Complete(number, err); jerr != nil {
		panic(jerr)
	}
}

// sync waits until everything acknowledged so far is durable.
func (s *session) sync() error {
	done := make(chan error, 1)
	s.dev.Sync(func(err error) { done <- err })
	return <-done
}

func (s *session) flush() {
	number, err := s.hist.j.Submit(oracle.KindFlush, 0, 0, s.n.i)
	if err != nil {
		panic(err)
	}
	s.ops++
	s.answer(number, s.sync(), span{})
}

func (s *session) write() {
	var ops []nbd.Op
	var numbers []uint64
	var taken []span
	fua := false
	for range 1 + s.rng.IntN(3) {
		sp := span{len: int64(1+s.rng.IntN(1<<s.rng.IntN(6))) * oracle.SectorSize}
		sp.off = s.rng.Int64N((size-sp.len)/oracle.SectorSize+1) * oracle.SectorSize
		if overlaps(taken, sp) || overlaps(s.blocked, sp) {
			continue
		}
		taken = append(taken, sp)
		op := nbd.Op{Kind: nbd.OpWrite, Off: sp.off, Len: sp.len, FUA: s.rng.IntN(4) == 0}
		kind := oracle.KindWrite
		switch s.rng.IntN(12) {
		case 0:
			op.Kind, kind = nbd.OpTrim, oracle.KindTrim
		case 1:
			op.Kind, kind = nbd.OpZeroes, oracle.KindZero
		default:
			if op.FUA {
				kind = oracle.KindFUA
			}
		}
		fua = fua || kind == oracle.KindFUA
		number, err := s.hist.j.Submit(kind, sp.off, sp.len, s.n.i)
		if err != nil {
			panic(err)
		}
		if kind == oracle.KindWrite || kind == oracle.KindFUA {
			op.Data = make([]byte, sp.len)
			oracle.FillRequest(op.Data, s.w.s.seed, uint32(s.hist.id), number)
		}
		ops, numbers = append(ops, op), append(numbers, number)
		s.ops++
	}
	if len(ops) == 0 {
		return
	}
	err := s.dev.Submit(ops)
	for i, op := range ops {
		if !op.FUA || err != nil || op.Kind != nbd.OpWrite {
			s.answer(numbers[i], err, taken[i])
		}
	}
	if !fua || err != nil {
		return
	}
	err = s.sync()
	for i, op := range ops {
		if op.FUA && op.Kind == nbd.OpWrite {
			s.answer(numbers[i], err, taken[i])
		}
	}
	if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.ESHUTDOWN) && !s.inc.isDead() {
		s.w.note("%s answers a flush with %v", s.n.name, fmt.Sprint(err))
	}
}

func overlaps(list []span, s span) bool {
	for _, x := range list {
		if s.off < x.off+x.len && x.off < s.off+s.len {
			return true
		}
	}
	return false
}
