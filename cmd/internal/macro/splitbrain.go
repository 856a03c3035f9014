package macro

import (
	"fmt"
	"strings"
	"time"

	"mars/symlinktree"
)

// Split describes a split brain: two members whose histories have parted. The
// zero Split means that there is none.
type Split struct {
	Found bool
	// Host1 and Host2 are the first pair found, After the last common position
	// ("log-N-ORIGIN,POS"), empty if no common one is known.
	Host1, Host2, After string
	// Amount1 and Amount2 are the log bytes that each side has beyond After: what
	// would be lost if the other side won.
	Amount1, Amount2 int64
	// Reason says which rule of the detector applied.
	Reason string
	// Behind is the one of the two hosts, if any, that stands in front of a hole in the
	// history of the other one (emergency mode). That alone is no split brain.
	Behind string
}

// position is a node on the way back through the version chain of one host.
type position struct {
	host   string // whose version links are followed
	seq    int
	origin string
	pos    int64
	digest string // of the version link that names this position; "" if unknown
	depth  int
	walked int64 // bytes of log between here and the start of the walk
}

func (p position) String() string {
	if p.seq == 0 {
		return ""
	}
	return fmt.Sprintf("log-%09d-%s,%d", p.seq, p.origin, p.pos)
}

// DetectSplit looks for a split brain of a resource, from the tree alone
// (reference symlink-tree 4.9): for every pair of members the version chains are
// walked back to their common point. Unlike the original it compares the digests
// as well, so that equal positions with different histories are found (9.38).
func DetectSplit(t Tree, res string) Split {
	r := symlinktree.Resource(res)
	var hosts []string
	for _, h := range hostsWith(t, r.Dir(), "replay") {
		if _, ok := startOf(t, r, h); ok {
			hosts = append(hosts, h)
		}
	}
	for i, a := range hosts {
		for _, b := range hosts[i+1:] {
			if s := comparePair(t, r, a, b); s.Found {
				return s
			}
		}
	}
	return Split{}
}

// startOf is where a host stands now: its replay position, or the end of its own
// log, because what it has written there is its history even when it is not yet
// on its disk. The digest is known if the version link vouches for that position.
func startOf(t Tree, r symlinktree.Resource, host string) (position, bool) {
	v, _ := t.Get(r.ReplayPath(host))
	rep, err := symlinktree.ParseReplay(v)
	if err != nil {
		return position{}, false
	}
	p := position{host: host, seq: rep.Seq, origin: rep.Origin, pos: rep.Min}
	if ver, ok := versionOf(t, r, rep.Seq, host); ok && ver.Origin == rep.Origin {
		if rep.Origin == host && ver.Pos > rep.Min {
			p.pos = ver.Pos
		}
		if ver.Pos == p.pos {
			p.digest = ver.Digest
		}
	}
	return p, true
}

func versionOf(t Tree, r symlinktree.Resource, n int, host string) (symlinktree.Version, bool) {
	v, ok := t.Get(r.VersionPath(n, host))
	if !ok {
		return symlinktree.Version{}, false
	}
	ver, err := symlinktree.ParseVersion(v)
	return ver, err == nil
}

// step is how a walk gets on.
type step int

const (
	stepLog     step = iota // to the end of the log before
	stepHole                // over a hole, to the end of what its writer had logged before
	stepEnd                 // there is a hole, and nothing is known from before it
	stepMissing             // a version link is missing
)

// back steps to the end of the log before p as the chain of p.host tells it. A link
// that does not lead to a lower number is malformed and counts as missing.
func back(t Tree, r symlinktree.Resource, p position) (position, step) {
	to := position{host: p.host, depth: p.depth + 1, walked: p.walked + p.pos}
	ver, ok := versionOf(t, r, p.seq, p.host)
	if ok {
		if prev, ok := ver.Predecessor(); ok && prev.Seq < p.seq {
			to.seq, to.origin, to.pos, to.digest = prev.Seq, prev.Origin, prev.Pos, prev.Digest
			return to, stepLog
		}
	}
	if ok && ver.IsHole() {
		return overHole(t, r, ver, to)
	}
	if ver, ok := versionOf(t, r, p.seq-1, p.host); ok && ver.Seq < p.seq {
		to.seq, to.origin, to.pos, to.digest = ver.Seq, ver.Origin, ver.Pos, ver.Digest
		return to, stepLog
	}
	return to, stepMissing
}

// overHole goes on with the newest log that the writer of the hole vouches for in front
// of it. Only its own links tell that: what others have there may be a branch that they
// have given up.
func overHole(t Tree, r symlinktree.Resource, hole symlinktree.Version, to position) (position, step) {
	var last symlinktree.Version
	for _, e := range t.List(r.Dir()) {
		n, h, ok := symlinktree.NumberedOf(base(e.Path), "version")
		if !ok || h != hole.Origin || n >= hole.Seq || n <= last.Seq {
			continue
		}
		if v, err := symlinktree.ParseVersion(e.Value); err == nil && v.Seq == n {
			last = v
		}
	}
	if last.Seq == 0 {
		return to, stepEnd
	}
	to.host, to.seq, to.origin, to.pos, to.digest = hole.Origin, last.Seq, last.Origin, last.Pos, last.Digest
	return to, stepHole
}

// comparePair walks both chains back until they meet or cannot.
func comparePair(t Tree, r symlinktree.Resource, ha, hb string) Split {
	a, _ := startOf(t, r, ha)
	b, _ := startOf(t, r, hb)
	s := Split{Host1: ha, Host2: hb}
	// ended: the walk of p cannot go on. In front of a hole that proves nothing.
	ended := func(how step, host string, p position) Split {
		if how == stepEnd && !s.Found {
			return s
		}
		s.Found, s.Reason = true, fmt.Sprintf("the version link of %s before %s is missing", host, p)
		s.Amount1, s.Amount2 = a.walked+a.pos, b.walked+b.pos
		return s
	}
	// walk takes a step; other is the host that this is compared with.
	walk := func(p *position, other string) (how step, before position) {
		before = *p
		*p, how = back(t, r, before)
		if (how == stepHole || how == stepEnd) && s.Behind == "" && before.seq > 0 {
			s.Behind = other
		}
		return how, before
	}
	for {
		switch {
		case a.seq > b.seq:
			if how, before := walk(&a, hb); how >= stepEnd {
				return ended(how, ha, before)
			}
		case b.seq > a.seq:
			if how, before := walk(&b, ha); how >= stepEnd {
				return ended(how, hb, before)
			}
		case a.origin != b.origin:
			// Two logs of one number: split for sure; only the common point is left to find.
			s.Found = true
			if s.Reason == "" {
				s.Reason = fmt.Sprintf("both wrote a log number %d", a.seq)
			}
			howA, beforeA := walk(&a, hb)
			if howA >= stepEnd {
				return ended(howA, ha, beforeA)
			}
			howB, beforeB := walk(&b, ha)
			if howB >= stepEnd {
				return ended(howB, hb, beforeB)
			}
		default:
			return s.meet(a, b)
		}
	}
}

// BehindHole is the member in whose history there is a hole that host stands in front
// of, empty if there is none: what was written meanwhile is in no log, so host can only
// be copied as a whole (invalidate). The designated primary is asked first.
func BehindHole(t Tree, res, host string) string {
	r := symlinktree.Resource(res)
	if _, ok := startOf(t, r, host); !ok {
		return ""
	}
	primary, _ := t.Get(r.PrimaryPath())
	hosts := append([]string{primary}, hostsWith(t, r.Dir(), "replay")...)
	for _, h := range hosts {
		if _, ok := startOf(t, r, h); !ok || h == host {
			continue
		}
		if s := comparePair(t, r, host, h); !s.Found && s.Behind == host {
			return h
		}
	}
	return ""
}

// behindHole is BehindHole for the resource of the context; a primary is never behind.
func (c *Context) behindHole(host string) string {
	if c.on(c.actual(host, "is-primary")) {
		return ""
	}
	return BehindHole(c.Tree, c.Res, host)
}

// meet judges two positions in the same log. s.Found may be set already, then only
// the common point is reported.
func (s Split) meet(a, b position) Split {
	common := a
	if b.pos < a.pos {
		common = b
	}
	if !s.Found {
		switch {
		case a.pos == b.pos && a.depth > 0 && b.depth > 0 && a.seq > 0:
			// Both left this log at the same point, into logs of equal number and
			// origin: then they would have met earlier.
			s.Found, s.Reason = true, "both left "+a.String()+" for different logs"
		case a.pos == b.pos && a.digest != "" && b.digest != "" && a.digest != b.digest &&
			a.digest != symlinktree.ZeroDigest && b.digest != symlinktree.ZeroDigest:
			s.Found, s.Reason = true, "the histories before "+a.String()+" differ"
			common = position{}
		case a.pos < b.pos && a.depth > 0, b.pos < a.pos && b.depth > 0:
			s.Found, s.Reason = true, "one side left "+common.String()+" before the point that the other one reached"
		}
	}
	if s.Found {
		s.After = common.String()
		s.Amount1, s.Amount2 = a.walked+a.pos-common.pos, b.walked+b.pos-common.pos
	}
	return s
}

// SplitLines is what is said about a split brain (reference marsadm.md 7.5).
func (c *Context) SplitLines(s Split) []string {
	after := s.After
	if after == "" {
		after = "(no common position known)"
	}
	age := ""
	if rep, err := symlinktree.ParseReplay(after + ",0"); err == nil {
		if st := c.forkStamp(rep); st > 0 {
			age = " age ~" + HumanSeconds(c.age(st).Seconds())
		}
	}
	out := []string{fmt.Sprintf("SPLIT BRAIN of resource '%s' after logfile '%s'%s", c.Res, after, age)}
	for i, h := range []string{s.Host1, s.Host2} {
		amount := s.Amount1
		if i == 1 {
			amount = s.Amount2
		}
		out = append(out, fmt.Sprintf("   host%d = '%s'%s logfile_amount='%d' (%s)", i+1, h, c.splitRole(h), amount,
			HumanNumber(float64(amount))))
	}
	return out
}

func (c *Context) splitRole(h string) string {
	var b strings.Builder
	if c.on(c.actual(h, "is-primary")) {
		if h == c.Node {
			b.WriteString(" primary")
		} else {
			b.WriteString(" reported-primary")
		}
	}
	if _, ok := c.Tree.Get(symlinktree.IPPath(h)); !ok {
		b.WriteString(" unconfigured IP")
	}
	switch age, known := c.aliveAge(h); {
	case h == c.Node:
	case !known:
		b.WriteString(" unreachable")
	case age > c.Window:
		b.WriteString(" interrupted ~" + HumanSeconds(age.Seconds()))
	}
	return b.String()
}

// forkStamp is when the log after the common position was begun.
func (c *Context) forkStamp(fork symlinktree.Replay) symlinktree.Stamp {
	var first symlinktree.Stamp
	for _, e := range c.Tree.List(c.r().Dir()) {
		n, _, ok := symlinktree.NumberedOf(base(e.Path), "version")
		if ok && n == fork.Seq && (first == 0 || e.Stamp < first) {
			first = e.Stamp
		}
	}
	return first
}

// aliveAge is how old the latest news of a host is.
func (c *Context) aliveAge(host string) (age time.Duration, known bool) {
	v, ok := c.Tree.Get(c.global(host, "time"))
	if !ok {
		return 0, false
	}
	s, err := symlinktree.ParseStamp(v)
	if err != nil {
		return 0, false
	}
	return max(0, c.age(s)), true
}
