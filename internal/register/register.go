package register

import "fmt"

// Access is one read or write of one sector. Start and End come from one counter; End is
// math.MaxInt64 for a write that never returned: it may have happened at any later time, or never.
type Access struct {
	Write      bool
	Value      uint64
	Start, End int64
}

// Check decides whether a history of one register, in which each value is written once,
// has a legal order (Gibbons and Korach 1997): the accesses of each value span a zone from their first
// end to their last start. Zones that run forward must not overlap, and none that runs backward
// may lie within one that runs forward. The register starts with value 0.
func Check(history []Access) error {
	type zone struct {
		firstEnd, lastStart, writeStart int64
		written                         bool
	}
	zones := map[uint64]*zone{0: {firstEnd: -1, lastStart: -2, writeStart: -2, written: true}}
	for _, a := range history {
		z := zones[a.Value]
		if z == nil {
			z = &zone{firstEnd: a.End, lastStart: a.Start}
			zones[a.Value] = z
		}
		z.firstEnd, z.lastStart = min(z.firstEnd, a.End), max(z.lastStart, a.Start)
		if a.Write {
			z.written, z.writeStart = true, a.Start
		}
	}
	for v, z := range zones {
		if !z.written {
			return fmt.Errorf("value %d was read but never written", v)
		}
		if z.firstEnd < z.writeStart {
			return fmt.Errorf("value %d was read before it was written", v)
		}
	}
	for v, z := range zones {
		if z.firstEnd >= z.lastStart {
			continue
		}
		for w, y := range zones {
			if v == w {
				continue
			}
			lo, hi := min(y.firstEnd, y.lastStart), max(y.firstEnd, y.lastStart)
			if forward := y.firstEnd < y.lastStart; forward && lo < z.lastStart && z.firstEnd < hi {
				return fmt.Errorf("values %d and %d were both current, one before and after the other", v, w)
			} else if !forward && z.firstEnd < lo && hi < z.lastStart {
				return fmt.Errorf("value %d was there before and after value %d", v, w)
			}
		}
	}
	return nil
}
