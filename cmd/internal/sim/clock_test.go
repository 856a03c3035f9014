package sim

import (
	"sync"
	"time"
)

// clock is the wall clock of a machine: the bubble's time, wrong by some amount, and fast
// or slow.
type clock struct {
	mu   sync.Mutex
	base time.Time // its reading at since
	at   time.Time
	rate float64
}

func newClock(off time.Duration) *clock {
	return &clock{base: time.Now().Add(off), at: time.Now(), rate: 1}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read()
}

func (c *clock) read() time.Time {
	return c.base.Add(time.Duration(float64(time.Since(c.at)) * c.rate))
}

// jump sets the clock forward or back.
func (c *clock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.at = c.read().Add(d), time.Now()
}

// run makes it run at another speed.
func (c *clock) run(rate float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.at, c.rate = c.read(), time.Now(), rate
}
