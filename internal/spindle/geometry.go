package spindle

import (
	"errors"
	"math"
	"time"
)

// Geometry are the mechanics of a disk.
type Geometry struct {
	Capacity int64         // bytes
	Track    int64         // bytes of one track; Track per revolution is the media rate
	RPM      float64       // revolutions per minute
	SeekMin  time.Duration // to the next track, settling included
	SeekMax  time.Duration // full stroke
	Overhead time.Duration // of a command that finds the disk idle
	Queue    int           // requests that the disk itself sees, and orders
	MaxAge   time.Duration // a request that waited so long is next
	Patience time.Duration // a Waited request that waited so long stops Background ones; wbt_lat_usec of the kernel
}

// HDD7200 is a 1 TiB disk with 7200 rpm: 8.3 ms a revolution, 7.9 ms average seek, 140 MB/s with track switches,
// about 80 random writes a second one at a time.
func HDD7200() Geometry {
	return Geometry{
		Capacity: 1 << 40, Track: 1280 << 10, RPM: 7200,
		SeekMin: time.Millisecond, SeekMax: 14 * time.Millisecond,
		Overhead: 100 * time.Microsecond, Queue: 32, MaxAge: time.Second, Patience: 75 * time.Millisecond,
	}
}

// Validate reports what cannot be a disk.
func (g Geometry) Validate() error {
	switch {
	case g.Track <= 0 || g.Capacity < g.Track:
		return errors.New("spindle: Track must be positive and at most Capacity")
	case g.RPM <= 0 || g.SeekMin < 0 || g.SeekMax < g.SeekMin || g.Overhead < 0:
		return errors.New("spindle: RPM must be positive, 0 <= SeekMin <= SeekMax, Overhead >= 0")
	case g.Queue < 1 || g.MaxAge <= 0:
		return errors.New("spindle: Queue and MaxAge must be positive")
	}
	return nil
}

// Revolution is the time of one.
func (g Geometry) Revolution() time.Duration {
	return time.Duration(float64(time.Minute) / g.RPM)
}

// SeekTime is the time to move the head from the track of one offset to that of another.
func (g Geometry) SeekTime(from, to int64) time.Duration {
	d := from/g.Track - to/g.Track
	if d < 0 {
		d = -d
	}
	if d == 0 {
		return 0
	}
	part := math.Sqrt(float64(d-1) / float64(g.Capacity/g.Track))
	return g.SeekMin + time.Duration(float64(g.SeekMax-g.SeekMin)*part)
}

// angle is where an offset lies, in revolutions from the start of the disk. Each track is
// skewed against its neighbour by the time of a track switch, so that streaming never misses a turn.
func (g Geometry) angle(off int64) float64 {
	skew := float64(g.SeekMin) / float64(g.Revolution())
	return float64(off)/float64(g.Track) + float64(off/g.Track)*skew
}

// Positioning is the time from now, a moment on the disk's clock, until the head, at offset head, can
// transfer the byte at off: seek and the wait for the sector.
func (g Geometry) Positioning(now time.Duration, head, off int64) time.Duration {
	seek := g.SeekTime(head, off)
	rev := float64(g.Revolution())
	wait := g.angle(off) - float64(now+seek)/rev
	wait -= math.Floor(wait)
	if wait > 1-1e-4 { // it is just there: rounding must not cost a turn
		wait = 0
	}
	return seek + time.Duration(wait*rev)
}

// Transfer is the time to move n bytes from off once the head is there.
func (g Geometry) Transfer(off, n int64) time.Duration {
	if n <= 0 {
		return 0
	}
	turns := g.angle(off+n-1) + 1/float64(g.Track) - g.angle(off)
	return time.Duration(turns * float64(g.Revolution()))
}
