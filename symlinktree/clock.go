package symlinktree

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Stamp is a Lamport time in nanoseconds since 1970: the mtime of a link.
type Stamp int64

// String prints SEC.NNNNNNNNN.
func (s Stamp) String() string {
	sec, ns := int64(s)/1e9, int64(s)%1e9
	if ns < 0 {
		sec, ns = sec-1, ns+1e9
	}
	return fmt.Sprintf("%d.%09d", sec, ns)
}

// Time is the stamp as wall-clock time.
func (s Stamp) Time() time.Time { return time.Unix(0, int64(s)) }

// ParseStamp is the inverse of String for stamps since 1970.
func ParseStamp(v string) (Stamp, error) {
	sec, frac, ok := strings.Cut(v, ".")
	n, err := ParseInt(sec)
	if !ok || err != nil || len(frac) != 9 || strings.Trim(frac, "0123456789") != "" {
		return 0, fmt.Errorf("%w: stamp %.40q: want SECONDS.NNNNNNNNN", ErrValue, v)
	}
	ns, _ := strconv.ParseInt(frac, 10, 64)
	if n > (math.MaxInt64-ns)/1_000_000_000 {
		return 0, fmt.Errorf("%w: stamp %.40q: beyond the year 2262", ErrValue, v)
	}
	return Stamp(n*1e9 + ns), nil
}

// stampOf converts an mtime. Times before 1970 count as the first nanosecond,
// those beyond 2262 as the last, so that comparing stays total.
func stampOf(t time.Time) Stamp {
	switch sec := t.Unix(); {
	case sec < 0:
		return 1
	case sec >= math.MaxInt64/1_000_000_000:
		return math.MaxInt64
	}
	return max(1, Stamp(t.UnixNano()))
}

// MaxFuture is how far a stamp may be ahead of the real clock. A machine with
// a broken clock would otherwise drag the whole cluster's time along for ever.
const MaxFuture = 30 * 24 * time.Hour

// Clock is the Lamport clock of a node: one for all trees and threads of it.
type Clock struct {
	real func() time.Time

	mu    sync.Mutex
	last  Stamp // newest stamp handed out or observed
	floor Stamp // lower bound of the real clock, see trust
}

// NewClock makes a clock over the given real one (time.Now).
func NewClock(real func() time.Time) *Clock { return &Clock{real: real} }

// Now returns a stamp newer than every stamp that this clock has handed out or
// observed, and not older than the real time.
func (c *Clock) Now() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(stampOf(c.real()), c.last+1)
	return c.last
}

// Observe makes all later stamps newer than s. A stamp more than MaxFuture
// ahead of the real clock is refused with ErrFuture and changes nothing.
func (c *Clock) Observe(s Stamp) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit := c.limit(); s > limit {
		return fmt.Errorf("%w: %v is more than %d days ahead of the clock of this node; check the clocks", ErrFuture, s, int(MaxFuture/(24*time.Hour)))
	}
	c.last = max(c.last, s)
	return nil
}

// Limit is the newest stamp that Observe takes at this moment.
func (c *Clock) Limit() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit()
}

func (c *Clock) limit() Stamp {
	now := max(stampOf(c.real()), c.floor)
	if now > math.MaxInt64-Stamp(MaxFuture) {
		return math.MaxInt64 - 1
	}
	return now + Stamp(MaxFuture)
}

// trust tells that the real clock is known to be behind s: it has come up
// without its battery, say. The window of Observe then starts at s.
func (c *Clock) trust(s Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor = max(c.floor, s)
}
