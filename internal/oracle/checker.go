package oracle

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"sort"
)

// Durability is what must have survived, beside the order (reference 8.5).
type Durability int

const (
	OrderOnly Durability = iota // completion semantics 0, and every secondary
	Flushed                     // 1: FUA writes, and writes covered by a FLUSH
	Always                      // 2: every acknowledged write; also after a mere kill of the process, and lag 0
)

func (d Durability) String() string { return [...]string{"order-only", "flushed", "always"}[d] }

// Options of a check. The zero value is PREFIX now.
type Options struct {
	// AsOf is the instant of the crash or of the copy (Journal.Tick): later
	// submissions and answers do not exist. 0: the whole journal.
	AsOf uint64
	// Durable is what had to be durable at AsOf.
	Durable Durability
	// Since demands what an earlier image of the same disk contained.
	Since *Verdict
	// RecordSectors is the largest number of sectors that the log stores as one
	// record. One data write that is longer may be cut at the end of the history,
	// at any sector. 0: no request may be cut.
	RecordSectors int64
	// SplitRanges lets zeroings and trims be cut as well.
	SplitRanges bool
	// Torn lets requests without an answer at AsOf be torn at any sector, as in raw
	// images.
	Torn bool
	// MaxViolations bounds the list, default 20.
	MaxViolations int
}

// mayCut tells whether the end of the history may cut w.
func (o *Options) mayCut(w *want) bool {
	return o.RecordSectors > 0 && w.n > o.RecordSectors && (w.data() || o.SplitRanges)
}

const none = -1 // index of "the content before the test"

// want is a request that changes the device. Its index in Checker.reqs is its
// place in the submit order, which for each sector is the order of its writes.
type want struct {
	number, complete uint64 // complete 0: never
	first, n         int64  // sectors; n less than length if it was cut for good
	length           int64
	kind             Kind
	branch           uint32
	void             bool
}

func (w *want) data() bool { return w.kind == KindWrite || w.kind == KindFUA }

// Checker is a snapshot of a journal, indexed for checking many images. It is
// read only after NewChecker: Check may be called concurrently.
type Checker struct {
	cfg     JournalConfig
	all     []Request
	reqs    []want
	byDone  []int32 // indexes of completed, not void requests, by completion
	flushes []Request
	last    uint64
	sectors int64
	// ranges of requests that leave no stamp, per sector: ranges[at[c]:at[c+1]];
	// at is nil if there are none.
	ranges []int32
	at     []int32
}

// NewChecker takes a snapshot of the journal.
func NewChecker(j *Journal) *Checker {
	c := &Checker{cfg: j.cfg, all: j.Requests(), sectors: j.cfg.Size / SectorSize, last: j.clock.Load()}
	unstamped := int64(0)
	for i := range c.all {
		r := &c.all[i]
		if r.Kind == KindFlush {
			if r.Complete != 0 {
				c.flushes = append(c.flushes, *r)
			}
			continue
		}
		w := want{number: r.Number, complete: r.Complete, first: r.Off / SectorSize, length: r.Len / SectorSize,
			kind: r.Kind, branch: r.Branch, void: r.Void}
		if w.n = w.length; r.Kept > 0 {
			w.n = r.Kept / SectorSize
		}
		if w.complete != 0 && !w.void {
			c.byDone = append(c.byDone, int32(len(c.reqs)))
		}
		if !w.data() {
			unstamped += w.n
		}
		c.reqs = append(c.reqs, w)
	}
	slices.SortFunc(c.byDone, func(a, b int32) int { return cmp.Compare(c.reqs[a].complete, c.reqs[b].complete) })
	if unstamped > 0 {
		c.indexRanges(unstamped)
	}
	return c
}

// indexRanges lists for each sector the zeroings and trims, ascending.
func (c *Checker) indexRanges(total int64) {
	c.at = make([]int32, c.sectors+1)
	c.ranges = make([]int32, total)
	each := func(f func(i int32, w *want)) {
		for i := range c.reqs {
			if w := &c.reqs[i]; !w.data() {
				f(int32(i), w)
			}
		}
	}
	each(func(_ int32, w *want) {
		for s := w.first; s < w.first+w.n; s++ {
			c.at[s+1]++
		}
	})
	for s := range c.sectors {
		c.at[s+1] += c.at[s]
	}
	next := slices.Clone(c.at)
	each(func(i int32, w *want) {
		for s := w.first; s < w.first+w.n; s++ {
			c.ranges[next[s]] = i
			next[s]++
		}
	})
}

// zeroes tells whether w leaves zeros; if not, it is a trim that leaves anything.
func (c *Checker) zeroes(w *want) bool { return w.kind == KindZero || c.cfg.TrimZeroes }

// byNumber returns the index of the request, or none.
func (c *Checker) byNumber(number uint64) int32 {
	i := sort.Search(len(c.reqs), func(i int) bool { return c.reqs[i].number >= number })
	if i == len(c.reqs) || c.reqs[i].number != number {
		return none
	}
	return int32(i)
}

// Check reads the whole image and judges it. The error is about reading only:
// what is wrong with the image is in the verdict.
func (c *Checker) Check(img io.ReaderAt, opt Options) (*Verdict, error) {
	if opt.AsOf == 0 {
		opt.AsOf = c.last
	}
	if opt.MaxViolations == 0 {
		opt.MaxViolations = 20
	}
	seen, err := c.scan(img, opt.AsOf)
	if err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	return c.judge(seen, opt), nil
}

// maxDoubts bounds the search of judge: 2^maxDoubts proofs.
const maxDoubts = 8

// judge proves or refutes. One proof decides, unless there are doubtful requests:
// without an answer, and overwritten later by one that leaves no stamp. Nobody
// knows whether such a request happened, and what its sectors show may be the
// work of the later one. A proof prefers the older explanation, so that after a
// failure it is repeated with the doubtful ones taken as absent, in all
// combinations. If there are too many for that, or if one may be cut anywhere,
// what a proof says that asks nothing of them stands: it may accept too much, but never refuses wrongly.
func (c *Checker) judge(seen *seen, opt Options) *Verdict {
	strict := c.prove(seen, opt, nil, nil)
	if strict.OK() {
		return strict
	}
	doubts := c.doubts(opt)
	if len(doubts) == 0 {
		return strict
	}
	free := map[int32]bool{}
	for _, i := range doubts {
		free[i] = true
	}
	relaxed := c.prove(seen, opt, nil, free)
	if !relaxed.OK() || len(doubts) > maxDoubts || slices.ContainsFunc(doubts, func(i int32) bool { return opt.mayCut(&c.reqs[i]) }) {
		return relaxed
	}
	for set := 1; set < 1<<len(doubts); set++ {
		absent := map[int32]bool{}
		for k, i := range doubts {
			absent[i] = set&(1<<k) != 0
		}
		if v := c.prove(seen, opt, absent, nil); v.OK() {
			return v
		}
	}
	return strict
}

func (c *Checker) prove(seen *seen, opt Options, absent, free map[int32]bool) *Verdict {
	p := &proof{c: c, opt: opt, seen: seen, absentees: absent, free: free,
		v:      &Verdict{AsOf: opt.AsOf, unsure: opt.Torn || len(free) > 0},
		live:   sort.Search(len(c.reqs), func(i int) bool { return c.reqs[i].number > opt.AsOf }),
		choice: make([]int32, c.sectors)}
	p.run()
	return p.v
}

// doubts lists the requests without an answer of which a part was overwritten
// later by a request that leaves no stamp.
func (c *Checker) doubts(opt Options) (list []int32) {
	if c.at == nil {
		return nil
	}
	demanded := map[uint64]bool{}
	if opt.Since != nil {
		for _, m := range opt.Since.present {
			demanded[m.number] = true
		}
	}
	for i := range c.reqs {
		w := &c.reqs[i]
		if w.number > opt.AsOf {
			break
		}
		if w.void || (w.complete != 0 && w.complete <= opt.AsOf) || demanded[w.number] {
			continue
		}
		for s := w.first; s < w.first+w.n; s++ {
			if n := c.at[s+1]; n > c.at[s] && c.ranges[n-1] > int32(i) {
				list = append(list, int32(i))
				break
			}
		}
	}
	return list
}
