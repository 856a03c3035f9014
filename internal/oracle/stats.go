package oracle

import (
	"math/bits"
	"time"
)

// Stats counts the answered requests of a Load since it was made or since the
// last TakeStats.
type Stats struct {
	Writes, Zeroes, Trims, Flushes int
	Bytes                          int64 // written
	Max                            time.Duration
	hist                           [256]int // latency, quarter octaves of nanoseconds
	total                          int
}

// TakeStats returns the counters and starts them anew.
func (l *Load) TakeStats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	l.stats = Stats{}
	return s
}

func (s *Stats) add(req request, took time.Duration) {
	switch req.kind {
	case KindFlush:
		s.Flushes++
	case KindZero:
		s.Zeroes++
	case KindTrim:
		s.Trims++
	default:
		s.Writes++
		s.Bytes += req.len
	}
	s.Max = max(s.Max, took)
	s.hist[bucket(took)]++
	s.total++
}

func bucket(d time.Duration) int {
	n := uint64(max(d, 4))
	e := bits.Len64(n) - 1
	return e*4 + int(n>>(e-2)&3)
}

// Quantile returns the latency that the share q of the requests did not exceed,
// rounded up to a quarter octave (at most 25 % too large).
func (s *Stats) Quantile(q float64) time.Duration {
	rank := int(q * float64(s.total))
	for b, n := range s.hist {
		if rank -= n; rank < 0 {
			e := b / 4
			return min(s.Max, time.Duration(1)<<e+time.Duration(b%4+1)<<(e-2))
		}
	}
	return s.Max
}
