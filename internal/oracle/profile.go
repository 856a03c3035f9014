package oracle

import (
	"math/rand/v2"
)

// Profile is a kind of load (reference/acceptance.md part 1).
type Profile struct {
	Name     string
	InFlight int
	// Lengths are drawn so that each power of two is equally likely; both ends and
	// all offsets are multiples of Align.
	MinLen, MaxLen, Align int64
	Sequential            bool    // wrap around at the end of the device
	FUA                   float64 // share of the writes
	FlushEvery            int     // mean number of writes between two flushes; 0: none
	Zero, Trim            float64 // shares of the requests
}

// The profiles of the acceptance scenarios. P1 judges sharpest, as one request
// in flight leaves no freedom of order; the others are realistic.
var (
	P1 = Profile{Name: "P1", InFlight: 1, MinLen: 4096, MaxLen: 4096, Align: 4096, FUA: 1}
	P8 = Profile{Name: "P8", InFlight: 8, MinLen: 512, MaxLen: 256 << 10, Align: 512, FlushEvery: 32}
	PT = Profile{Name: "PT", InFlight: 8, MinLen: 512, MaxLen: 256 << 10, Align: 512, FlushEvery: 32, Zero: 0.1, Trim: 0.1}
	PS = Profile{Name: "PS", InFlight: 4, MinLen: 128 << 10, MaxLen: 128 << 10, Align: 4096, Sequential: true, FlushEvery: 32}
)

// fit returns the profile for a device of this size: requests are limited so
// that those in flight leave at least half of it free.
func (p Profile) fit(size int64) Profile {
	p.InFlight = max(p.InFlight, 1)
	p.Align = max(p.Align, SectorSize)
	limit := size / int64(2*p.InFlight) / p.Align * p.Align
	p.MaxLen = max(min(p.MaxLen, limit), p.Align)
	p.MinLen = max(min(p.MinLen, p.MaxLen), p.Align)
	return p
}

// length draws a length.
func (p *Profile) length(r *rand.Rand) int64 {
	lo, hi := p.MinLen/p.Align, p.MaxLen/p.Align
	for n := hi; ; {
		// From the top down, each halving with the same probability.
		half := max(n/2, lo)
		if half == n || r.IntN(levels(lo, n)) == 0 {
			return (half + r.Int64N(n-half+1)) * p.Align
		}
		n = half
	}
}

// levels counts the halvings between lo and n, at least one.
func levels(lo, n int64) int {
	count := 1
	for n/2 > lo {
		n /= 2
		count++
	}
	return count
}

// kind draws the kind of a request that is not a flush.
func (p *Profile) kind(r *rand.Rand) Kind {
	switch x := r.Float64(); {
	case x < p.Zero:
		return KindZero
	case x < p.Zero+p.Trim:
		return KindTrim
	case p.FUA > 0 && r.Float64() < p.FUA:
		return KindFUA
	}
	return KindWrite
}
