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
}

// position is a node on the way back through the version chain of one host.
type position struct {
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
	p := position{seq: rep.Seq, origin: rep.Origin, pos: rep.Min}
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

// back steps to the end of the log before p as host's own chain tells it. A link
// that does not lead to a lower number is malformed and counts as missing.
func back(t Tree, r symlinktree.Resource, host string, p position) (position, bool) {
	to := position{depth: p.depth + 1, walked: p.walked + p.pos}
	if ver, ok := versionOf(t, r, p.seq, host); ok {
		if prev, ok := ver.Predecessor(); ok && prev.Seq < p.seq {
			to.seq, to.origin, to.pos, to.digest = prev.Seq, prev.Origin, prev.Pos, prev.Digest
			return to, true
		}
	}
	if ver, ok := versionOf(t, r, p.seq-1, host); ok && ver.Seq < p.seq {
		to.seq, to.origin, to.pos, to.digest = ver.Seq, ver.Origin, ver.Pos, ver.Digest
		return to, true
	}
	return to, false
}

// comparePair walks both chains back until they meet or cannot.
func comparePair(t Tree, r symlinktree.Resource, ha, hb string) Split {
	a, _ := startOf(t, r, ha)
	b, _ := startOf(t, r, hb)
	s := Split{Host1: ha, Host2: hb}
	lost := func(host string, p position) Split {
		s.Found, s.Reason = true, fmt.Sprintf("the version link of %s before %s is missing", host, p)
		s.Amount1, s.Amount2 = a.walked+a.pos, b.walked+b.pos
		return s
	}
	for {
		var ok bool
		switch {
		case a.seq > b.seq:
			before := a
			if a, ok = back(t, r, ha, a); !ok {
				return lost(ha, before)
			}
		case b.seq > a.seq:
			before := b
			if b, ok = back(t, r, hb, b); !ok {
				return lost(hb, before)
			}
		case a.origin != b.origin:
			// Two logs of one number: split for sure; only the common point is left to find.
			s.Found = true
			if s.Reason == "" {
				s.Reason = fmt.Sprintf("both wrote a log number %d", a.seq)
			}
			ba, bb := a, b
			if a, ok = back(t, r, ha, a); !ok {
				return lost(ha, ba)
			}
			if b, ok = back(t, r, hb, b); !ok {
				return lost(hb, bb)
			}
		default:
			return s.meet(a, b)
		}
	}
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
