package oracle

import (
	"fmt"
	"time"
)

// cuts checks that at most one request is cut: the log has one end.
func (p *proof) cuts() {
	if p.opt.RecordSectors == 0 {
		return
	}
	first := int32(none)
	for i := range p.c.reqs[:p.live] {
		w := &p.c.reqs[i]
		if p.need[i] == 0 || p.need[i] == w.n || p.absent(int32(i)) == w.n || (p.opt.Torn && !p.completed(w)) {
			continue
		}
		if first == none {
			first = int32(i)
			continue
		}
		s := w.first + p.need[i] - 1
		p.violate(Violation{Rule: RuleTorn, Sector: s, Sectors: 1, Visible: w.number, Missing: w.number, Witness: p.c.reqs[first].number,
			Text: fmt.Sprintf("%s is cut after sector %d, and so is %s: a history ends only once, so that only its last request can be cut",
				p.request(int32(i)), s, p.request(first))})
	}
}

// summary fills in the figures and what Resolve needs.
func (p *proof) summary() {
	v, c := p.v, p.c
	for s, cls := range p.seen.cls {
		switch {
		case cls == clsStamp:
			v.Stamped++
			v.Youngest = max(v.Youngest, c.reqs[p.seen.vis[s]].number)
		case cls == clsBase:
			v.Initial++
		case cls == clsOther:
			v.Other++
		default:
			v.Zero++
		}
	}
	var oldest time.Time
	for i := range c.reqs[:p.live] {
		w := &c.reqs[i]
		if w.void {
			continue
		}
		acked := p.completed(w)
		if p.need[i] > 0 {
			v.Must++
			if acked {
				v.Low++
			}
			v.present = append(v.present, part{w.number, p.need[i]})
		}
		if p.need[i] == w.n {
			continue
		}
		rest := p.absent(int32(i))
		if rest == w.n {
			continue
		}
		if !p.opt.mayCut(w) {
			rest = 0
		}
		v.missing = append(v.missing, part{w.number, rest})
		if acked {
			v.Lag++
			if r := find(c.all, w.number); oldest.IsZero() || r.When.Before(oldest) {
				oldest = r.When
			}
		}
	}
	if !oldest.IsZero() {
		v.Age = time.Since(oldest)
	}
}

// request describes request i.
func (p *proof) request(i int32) string {
	if i == none {
		return "the content before the test"
	}
	w := &p.c.reqs[i]
	s := fmt.Sprintf("%s %d (sectors %d to %d, submitted at %d", w.kind, w.number, w.first, w.first+w.length-1, w.number)
	if p.completed(w) {
		return s + fmt.Sprintf(", acknowledged at %d)", w.complete)
	}
	return s + ", not acknowledged)"
}

// explain is the text of a contradiction.
func (p *proof) explain(rule Rule, i int32, s int64, witness int32) string {
	text := fmt.Sprintf("sector %d (byte %d) shows %s instead of %s", s, s*SectorSize, p.request(p.choice[s]), p.request(i))
	switch rule {
	case RuleUndurable:
		why := "it was acknowledged before the cut at"
		if p.opt.Durable == Flushed {
			why = "it was acknowledged, and durable by FUA or by a later flush that was answered, before the cut at"
			if p.c.reqs[i].kind == KindFUA {
				why = "it was acknowledged with FUA before the cut at"
			}
		}
		return fmt.Sprintf("%s: %s %d", text, why, p.opt.AsOf)
	case RuleWentBack:
		return fmt.Sprintf("%s: an earlier image (as of %d) contained it", text, p.opt.Since.AsOf)
	case RuleTorn:
		return fmt.Sprintf("%s, of which other sectors are visible or implied", text)
	}
	return fmt.Sprintf("%s, which had been acknowledged before %s, which the image contains, was submitted", text, p.request(witness))
}

// describe is the text of a finding about a single sector.
func (p *proof) describe(f finding) string {
	text := fmt.Sprintf("sector %d (byte %d) ", f.sector, f.sector*SectorSize)
	st := f.stamp
	switch f.rule {
	case RuleGarbage:
		return text + "holds neither an intact stamp nor zeros nor the content before the test"
	case RuleForeign:
		return text + fmt.Sprintf("belongs to run %d (write %d, branch %d), not to run %d", st.Run, st.Write, st.Branch, p.c.cfg.Run)
	case RuleBranch:
		return text + fmt.Sprintf("shows write %d of branch %d, which does not belong to the history of branch %d", st.Write, st.Branch, p.c.cfg.Branch)
	case RuleUnknown:
		return text + fmt.Sprintf("shows write %d of branch %d, which nobody had submitted as a write by %d", st.Write, st.Branch, p.opt.AsOf)
	case RuleResurrected:
		return text + fmt.Sprintf("shows write %d, which is known to have been lost before", st.Write)
	}
	return text + fmt.Sprintf("shows sector %d of %d of write %d, which belongs elsewhere", st.Index, st.Length, st.Write)
}
