package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Client is one connection to the device under test, or a bundle of them. It is
// safe for concurrent use; a method returns when the request is answered, or with
// an error if that will not happen any more. Flags are those of NBD. The client
// of package nbdclient is one.
type Client interface {
	Write(ctx context.Context, p []byte, off int64, flags ...uint16) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, length int64, flags ...uint16) error
	WriteZeroes(ctx context.Context, off, length int64, flags ...uint16) error
}

// flagFUA is NBD_CMD_FLAG_FUA.
const flagFUA uint16 = 1

// ErrNoRoom: every place on the device is blocked by a request that may still
// arrive. Call Fence when it cannot.
var ErrNoRoom = errors.New("no place on the device is free of requests without an answer")

// Load writes stamped sectors and keeps the journal. Requests in flight never
// overlap; the range of a request without an answer stays blocked, also in later
// Runs, until Fence.
type Load struct {
	// OpTimeout bounds each request, default 60 s.
	OpTimeout time.Duration

	j       *Journal
	profile Profile

	mu      sync.Mutex
	wake    sync.Cond
	rng     *rand.Rand
	busy    []span
	flying  int
	next    int64 // Sequential
	toFlush int   // writes until the next flush
	failed  error
	stop    bool
	stats   Stats
}

type span struct{ off, len int64 }

// request is what a worker does next.
type request struct {
	number   uint64
	kind     Kind
	off, len int64
}

// NewLoad makes a load; the seed fixes the sequence of requests (with more than
// one in flight their order of submission is still up to the scheduler).
func NewLoad(j *Journal, profile Profile, seed uint64) *Load {
	l := &Load{OpTimeout: time.Minute, j: j, profile: profile.fit(j.cfg.Size), rng: rand.New(rand.NewPCG(seed, 0x6c6f6164))}
	l.wake.L = &l.mu
	l.armFlush()
	return l
}

// Run sends requests until ctx ends, limit requests have been submitted (0: no
// limit), or one fails. It returns when all are answered or have failed: nil, or
// the first failure. Requests in flight are not interrupted by ctx. The workers
// spread over the clients; connection numbers in the journal count from conn.
func (l *Load) Run(ctx context.Context, limit int, clients ...Client) error {
	if len(clients) == 0 {
		return errors.New("load: no client")
	}
	l.mu.Lock()
	l.stop, l.failed = false, nil
	l.mu.Unlock()
	defer context.AfterFunc(ctx, func() { l.halt(nil) })()
	left := limit
	var wg sync.WaitGroup
	for w := range l.profile.InFlight {
		wg.Go(func() {
			conn := w % len(clients)
			buf := make([]byte, l.profile.MaxLen)
			for {
				req, ok := l.take(&left, limit > 0, conn)
				if !ok {
					return
				}
				began := time.Now()
				err := l.send(context.WithoutCancel(ctx), clients[conn], req, buf)
				l.finish(req, err, time.Since(began))
			}
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Fence tells that nothing that was sent so far can still take effect: the
// server process has ended, or says that no request is in flight. Not during Run.
func (l *Load) Fence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = nil
}

// SetJournal continues with another journal after a Fork; it implies Fence.
func (l *Load) SetJournal(j *Journal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.j, l.busy = j, nil
}

func (l *Load) halt(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = true
	if err != nil && l.failed == nil {
		l.failed = err
	}
	l.wake.Broadcast()
}

// take waits for a free place, decides on the next request and journals it.
func (l *Load) take(left *int, limited bool, conn int) (request, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.stop || (limited && *left == 0) {
			return request{}, false
		}
		req, ok := l.decide()
		if ok {
			*left--
			number, err := l.j.Submit(req.kind, req.off, req.len, conn)
			if err != nil {
				l.stop, l.failed = true, errors.Join(l.failed, err)
				l.wake.Broadcast()
				return request{}, false
			}
			req.number = number
			if req.kind != KindFlush {
				l.busy = append(l.busy, span{req.off, req.len})
			}
			l.flying++
			return req, true
		}
		if l.flying == 0 {
			l.stop = true
			if l.failed == nil {
				l.failed = ErrNoRoom
			}
			return request{}, false
		}
		l.wake.Wait()
	}
}

func (l *Load) armFlush() {
	if l.profile.FlushEvery > 0 {
		l.toFlush = 1 + l.rng.IntN(2*l.profile.FlushEvery-1)
	}
}

// decide draws a request that overlaps none in flight.
func (l *Load) decide() (request, bool) {
	p := &l.profile
	if p.FlushEvery > 0 && l.toFlush == 0 {
		l.armFlush()
		return request{kind: KindFlush}, true
	}
	req := request{kind: p.kind(l.rng), len: p.length(l.rng)}
	size := l.j.cfg.Size / p.Align * p.Align
	for try := range 64 {
		if p.Sequential {
			if l.next+req.len > size {
				l.next = 0
			}
			req.off = l.next
		} else {
			req.off = l.rng.Int64N((size-req.len)/p.Align+1) * p.Align
		}
		if l.free(req.off, req.len) {
			l.next = req.off + req.len
			l.toFlush--
			return req, true
		}
		switch {
		case p.Sequential:
			l.next += p.Align
		case try >= 16:
			req.len = max(p.MinLen, req.len/2/p.Align*p.Align)
		}
	}
	return request{}, false
}

func (l *Load) free(off, length int64) bool {
	for _, s := range l.busy {
		if off < s.off+s.len && s.off < off+length {
			return false
		}
	}
	return true
}

func (l *Load) send(ctx context.Context, c Client, req request, buf []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.OpTimeout, fmt.Errorf("%s %d: no answer for %v", req.kind, req.number, l.OpTimeout))
	defer cancel()
	switch req.kind {
	case KindFlush:
		return c.Flush(ctx)
	case KindZero:
		return c.WriteZeroes(ctx, req.off, req.len)
	case KindTrim:
		return c.Trim(ctx, req.off, req.len)
	}
	p := buf[:req.len]
	FillRequest(p, l.j.cfg.Run, l.j.cfg.Branch, req.number)
	if req.kind == KindFUA {
		return c.Write(ctx, p, req.off, flagFUA)
	}
	return c.Write(ctx, p, req.off)
}

func (l *Load) finish(req request, err error, took time.Duration) {
	jerr := l.j.Complete(req.number, err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	if err == nil {
		if req.kind != KindFlush {
			l.release(req)
		}
		l.stats.add(req, took)
	} else {
		err = fmt.Errorf("%s %d [%d+%d]: %w", req.kind, req.number, req.off, req.len, err)
	}
	if err = errors.Join(err, jerr); err != nil {
		l.stop = true
		if l.failed == nil {
			l.failed = err
		}
	}
	l.wake.Broadcast()
}

func (l *Load) release(req request) {
	for i, s := range l.busy {
		if s.off == req.off && s.len == req.len {
			l.busy[i] = l.busy[len(l.busy)-1]
			l.busy = l.busy[:len(l.busy)-1]
			return
		}
	}
}
