package cluster

import (
	"time"

	"mars/logfile"
)

// sourceState is what is known of a log where it comes from.
type sourceState struct {
	pos   int64 // its length, 0 = unknown
	final int64 // where it was left for its successor, -1 = not yet
}

// sourceState is what the writer of a log, or else another one than node, says of it.
func (v versions) sourceState(log logfile.Name, node string) sourceState {
	src := sourceState{final: v.final(log)}
	if pos, ok := v.holds(log.Host, log); ok {
		src.pos = pos
		return src
	}
	for host := range v.bySeq[log.Seq] {
		if pos, ok := v.holds(host, log); ok && host != node {
			src.pos = max(src.pos, pos)
		}
	}
	return src
}

// refetches counts how often one damaged place was fetched again. After maxRefetches the
// damage is at the source, too; then it is tried again slowly, because a log may be
// repaired without anybody hearing of it, and at once when the source has another one.
type refetches struct {
	log    logfile.Name
	at     int64
	n      int
	last   time.Time
	pause  time.Duration // before the next try if the source has grown
	source sourceState   // at the last try

	min, slow time.Duration // bounds of pause; slow also without any change
}

// slowRefetch is how many times RetryMax lies between two tries in vain.
const slowRefetch = 12

// count is the number of tries as far as they count: below maxRefetches it may be tried again.
func (r *refetches) count(log logfile.Name, at int64, now sourceState, t time.Time) int {
	if r.log != log || r.at != at {
		return 0
	}
	if r.n < maxRefetches {
		return r.n
	}
	wait := r.slow
	switch {
	case now.final != r.source.final, now.pos < r.source.pos:
		return 0 // not the log that was damaged
	case now.pos > r.source.pos:
		wait = r.pause
	}
	if t.Sub(r.last) >= wait {
		return maxRefetches - 1
	}
	return r.n
}

// add notes a try.
func (r *refetches) add(log logfile.Name, at int64, now sourceState, t time.Time) {
	another := r.log != log || r.at != at || r.n >= maxRefetches && (now.final != r.source.final || now.pos < r.source.pos)
	if another {
		r.log, r.at, r.n, r.pause = log, at, 0, 0
	}
	r.n++
	r.last, r.source = t, now
	r.pause = min(max(2*r.pause, r.min), r.slow)
}
