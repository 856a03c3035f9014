package oracle

import (
	"fmt"
	"math"
	"sort"
)

const (
	never        = math.MaxInt32 // no candidate
	inexplicable = -2            // choice of a sector with a finding of its own
)

// proof searches the smallest set of requests that explains an image, closed
// under happened-before. Every step is forced: the set only contains what each
// legal explanation contains, so that a contradiction is a violation, and none is
// a proof. The work is O(sectors of the image and of the requests in the set).
//
// A sector may have several explanations (zeros: any zeroing of it, or the
// content before the test). It gets the oldest that is not older than a request
// which must be in the set; as the writes of one sector never overlap in time, a
// younger explanation would imply the older one if that was answered; see judge
// for the others.
type proof struct {
	c    *Checker
	opt  Options
	v    *Verdict
	seen *seen
	live int // requests submitted by AsOf

	absentees map[int32]bool // explain nothing: see judge
	free      map[int32]bool // explain a sector without any consequence for others

	choice  []int32 // per sector: the visible request, none or inexplicable
	need    []int64 // per request: so many of its sectors, from the first, are in the set
	reason  []reason
	visible []int32 // per request: sectors that show it
	queue   []int32
	youth   uint64 // submit time of the youngest request in the set: all that completed before are in
	witness int32
	done    int // c.byDone[:done] are in the set
	lost    map[int32]bool
}

// reason says why a request is in the set.
type reason struct {
	rule  Rule
	other int32 // RuleHole: the younger request
}

func (p *proof) run() {
	n := len(p.c.reqs)
	p.need, p.reason, p.visible = make([]int64, n), make([]reason, n), make([]int32, n)
	p.lost = map[int32]bool{}
	p.witness = none
	p.findings()
	p.demands()
	for s := range p.choice {
		if p.choice[s] != inexplicable {
			p.choice[s] = none
			p.choose(int64(s), none)
		}
	}
	p.close()
	p.cuts()
	p.summary()
}

// findings handles the sectors that no stamp and no base explains: a trim
// without promise may, everything else is a violation.
func (p *proof) findings() {
	for _, list := range p.seen.findings {
		for _, f := range list {
			if p.next(f.sector, none+1) != never {
				continue
			}
			p.choice[f.sector] = inexplicable
			p.violate(Violation{Rule: f.rule, Sector: f.sector, Sectors: 1, Visible: f.stamp.Write, Text: p.describe(f)})
		}
	}
}

// demands puts into the set what Options.Durable and Since want.
func (p *proof) demands() {
	c, opt := p.c, &p.opt
	if opt.Since != nil {
		for _, part := range opt.Since.present {
			if i := c.byNumber(part.number); i != none && int(i) < p.live {
				p.add(i, min(part.sectors, c.reqs[i].n), reason{rule: RuleWentBack})
			}
		}
	}
	if opt.Durable == OrderOnly {
		return
	}
	covered := uint64(0) // the youngest flush that was answered
	for i := range c.flushes {
		if f := &c.flushes[i]; f.Complete <= opt.AsOf {
			covered = max(covered, f.Number)
		}
	}
	for i := range c.reqs[:p.live] {
		w := &c.reqs[i]
		if w.complete == 0 || w.complete > opt.AsOf || w.void {
			continue
		}
		if opt.Durable == Always || w.kind == KindFUA || w.complete < covered {
			p.add(int32(i), w.n, reason{rule: RuleUndurable})
		}
	}
}

// next returns the oldest request from index `from` on that explains what the
// sector shows, or never.
func (p *proof) next(s int64, from int32) int32 {
	cls := p.seen.cls[s]
	best := int32(never)
	if cls == clsStamp && p.seen.vis[s] >= from && !p.absentees[p.seen.vis[s]] {
		best = p.seen.vis[s]
	}
	c := p.c
	if c.at == nil {
		return best
	}
	list := c.ranges[c.at[s]:c.at[s+1]]
	for k := sort.Search(len(list), func(k int) bool { return list[k] >= from }); k < len(list); k++ {
		i := list[k]
		if i >= best || int(i) >= p.live {
			break
		}
		w := &c.reqs[i]
		if !w.void && !p.absentees[i] && (!c.zeroes(w) || cls == clsZero || cls == clsZeroBase) {
			return i
		}
	}
	return best
}

// choose explains sector s by a request that is not older than from, and puts it
// into the set. It returns false if there is none.
func (p *proof) choose(s int64, from int32) bool {
	cls := p.seen.cls[s]
	if from == none && (cls == clsBase || cls == clsZeroBase) {
		p.choice[s] = none
		return true
	}
	i := p.next(s, max(from, 0))
	if i == never {
		if from == none {
			p.choice[s] = inexplicable
			p.violate(Violation{Rule: RuleWiped, Sector: s, Sectors: 1,
				Text: fmt.Sprintf("sector %d (byte %d) is all zeros, which neither a request nor the content before the test explains", s, s*SectorSize)})
		}
		return false
	}
	p.choice[s] = i
	p.visible[i]++
	w := &p.c.reqs[i]
	n := w.n
	switch {
	case p.opt.Torn && !p.completed(w), p.free[i]:
		n = 0 // this sector says nothing about its others
	case p.opt.mayCut(w):
		n = s - w.first + 1
	}
	p.add(i, n, reason{rule: RuleTorn})
	return true
}

func (p *proof) completed(w *want) bool { return w.complete != 0 && w.complete <= p.opt.AsOf }

// add puts the first n sectors of request i into the set.
func (p *proof) add(i int32, n int64, why reason) {
	w := &p.c.reqs[i]
	if p.reason[i].rule == "" {
		p.reason[i] = why
	}
	if w.number > p.youth {
		p.youth, p.witness = w.number, i
	}
	if n > p.need[i] {
		p.need[i] = n
		p.queue = append(p.queue, i)
	}
}

// close adds everything that the set implies.
func (p *proof) close() {
	c := p.c
	checked := make([]int64, len(c.reqs)) // so many sectors are known to fit
	for {
		for p.done < len(c.byDone) && c.reqs[c.byDone[p.done]].complete < p.youth {
			i := c.byDone[p.done]
			p.done++
			p.add(i, c.reqs[i].n, reason{rule: RuleHole, other: p.witness})
		}
		if len(p.queue) == 0 {
			return
		}
		i := p.queue[len(p.queue)-1]
		p.queue = p.queue[:len(p.queue)-1]
		w := &c.reqs[i]
		for k := checked[i]; k < p.need[i]; k++ {
			s := w.first + k
			if ch := p.choice[s]; ch >= i || ch == inexplicable {
				continue
			}
			old := p.choice[s]
			if p.choose(s, i) {
				if old >= 0 {
					p.visible[old]--
				}
				continue
			}
			p.contradict(i, s)
		}
		checked[i] = max(checked[i], p.need[i])
	}
}

// contradict reports that request i is in the set but sector s shows an older one.
func (p *proof) contradict(i int32, s int64) {
	why := p.reason[i]
	rule := why.rule
	if rule == RuleHole && p.visible[i] > 0 {
		rule = RuleTorn
	}
	if n := len(p.v.Violations); p.lost[i] && n > 0 {
		if last := &p.v.Violations[n-1]; last.Missing == p.c.reqs[i].number {
			last.Sectors++
		}
		return
	}
	p.lost[i] = true
	x := Violation{Rule: rule, Sector: s, Sectors: 1, Missing: p.c.reqs[i].number}
	if ch := p.choice[s]; ch >= 0 {
		x.Visible = p.c.reqs[ch].number
	}
	witness := p.witness
	if why.rule == RuleHole {
		witness = why.other
	}
	if witness != none {
		x.Witness = p.c.reqs[witness].number
	}
	x.Text = p.explain(rule, i, s, witness)
	p.violate(x)
}

// violate records x, or extends the violation before if it is the same one.
func (p *proof) violate(x Violation) {
	list := p.v.Violations
	if n := len(list); n > 0 && x.Missing == 0 {
		last := &list[n-1]
		if last.Rule == x.Rule && last.Visible == x.Visible && last.Missing == 0 && last.Sector+last.Sectors == x.Sector {
			last.Sectors++
			return
		}
	}
	p.v.Total++
	if len(list) < p.opt.MaxViolations {
		p.v.Violations = append(list, x)
	}
}

// absent returns how many sectors of request i, from the first, may be in the
// image: the first of its sectors that can show nothing as young ends it.
func (p *proof) absent(i int32) int64 {
	w := &p.c.reqs[i]
	for k := p.need[i]; k < w.n; k++ {
		s := w.first + k
		if ch := p.choice[s]; ch != inexplicable && ch < i && p.next(s, i) == never {
			return k
		}
	}
	return w.n
}
