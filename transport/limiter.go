package transport

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// minRate keeps the smallest piece (4 KiB) below a few seconds.
const minRate = 1024

// bucket is the token bucket of one class to one peer, or of one class of one resource.
type bucket struct{ lim *rate.Limiter }

func newBucket(bytesPerSecond int64) *bucket {
	b := &bucket{lim: rate.NewLimiter(0, 0)}
	b.set(bytesPerSecond)
	return b
}

func (b *bucket) set(bytesPerSecond int64) {
	if bytesPerSecond == 0 {
		b.lim.SetLimit(rate.Inf)
		b.lim.SetBurst(MaxFrame)
		return
	}
	b.lim.SetLimit(rate.Limit(bytesPerSecond))
	b.lim.SetBurst(pieceFor(bytesPerSecond))
}

// pieceFor is the largest piece to send at once: a quarter of a second's worth,
// so that one piece does not make the link look dead or crowd out its sibling.
func pieceFor(bytesPerSecond int64) int {
	return int(min(max(bytesPerSecond/4, 4<<10), MaxFrame))
}

func (b *bucket) piece() int { return b.lim.Burst() }

// wait takes n tokens. While that takes longer than every, it calls beat.
func (b *bucket) wait(ctx context.Context, n int, every time.Duration, beat func() error) error {
	for n > 0 {
		k := min(n, b.lim.Burst())
		r := b.lim.ReserveN(time.Now(), k)
		if !r.OK() { // the burst has just been lowered
			continue
		}
		for d := r.Delay(); d > 0; d = r.Delay() {
			step := d
			if beat != nil {
				step = min(d, every)
			}
			if err := sleep(ctx, step); err != nil {
				r.Cancel()
				return err
			}
			if beat != nil && r.Delay() > 0 {
				if err := beat(); err != nil {
					return err
				}
			}
		}
		n -= k
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quietLog writes at most one line per kind and interval, and says how many it
// kept back. Kinds are constants, so the map is bounded.
type quietLog struct {
	log   *slog.Logger
	every time.Duration

	mu    sync.Mutex
	kinds map[string]*quietKind
}

type quietKind struct {
	next       time.Time
	suppressed int
}

func newQuietLog(log *slog.Logger, every time.Duration) *quietLog {
	return &quietLog{log: log, every: every, kinds: map[string]*quietKind{}}
}

func (q *quietLog) warn(kind, msg string, args ...any) {
	q.mu.Lock()
	k := q.kinds[kind]
	if k == nil {
		k = &quietKind{}
		q.kinds[kind] = k
	}
	now := time.Now()
	if now.Before(k.next) {
		k.suppressed++
		q.mu.Unlock()
		return
	}
	k.next = now.Add(q.every)
	n := k.suppressed
	k.suppressed = 0
	q.mu.Unlock()
	if n > 0 {
		args = append(args, "suppressed", n)
	}
	q.log.Warn(msg, args...)
}
