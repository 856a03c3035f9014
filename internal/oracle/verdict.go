package oracle

import (
	"fmt"
	"strings"
	"time"
)

// Rule names what an image violates.
type Rule string

const (
	RuleGarbage     Rule = "garbage"      // no stamp, no zeros, not the content before the test
	RuleForeign     Rule = "foreign"      // stamp of another run
	RuleBranch      Rule = "other-branch" // stamp of another history of this run
	RuleUnknown     Rule = "unknown"      // stamp of a write that nobody submitted by then
	RuleMisplaced   Rule = "misplaced"    // right stamp, wrong sector
	RuleWiped       Rule = "wiped"        // zeros that no request explains
	RuleResurrected Rule = "resurrected"  // a write that a crash had lost is back
	RuleHole        Rule = "hole"         // a younger write is visible without one that was acknowledged before it
	RuleTorn        Rule = "torn"         // only a part of a request is visible
	RuleUndurable   Rule = "undurable"    // a write is missing that had to be durable
	RuleWentBack    Rule = "went-back"    // a write is missing that an earlier image contained
)

// Violation is one finding. Consecutive sectors with the same finding are one.
type Violation struct {
	Rule    Rule
	Sector  int64  // the first one
	Sectors int64  // how many
	Visible uint64 // write number that the sector shows, 0: the content before the test, or nothing known
	Missing uint64 // write number that should be visible, 0: does not apply
	Witness uint64 // the visible write that proves that Missing belongs into the image
	Text    string
}

func (v Violation) String() string { return string(v.Rule) + ": " + v.Text }

// Verdict is the judgement over one image.
type Verdict struct {
	AsOf       uint64
	Violations []Violation // the first Options.MaxViolations
	Total      int         // all violations
	// Low is the number of acknowledged writes, zeroings and trims that the image
	// must contain; Must counts those without an answer as well.
	Low, Must int
	// Lag is the number of acknowledged ones that it does not contain.
	Lag int
	// Age is the time since the oldest of them was acknowledged, 0 without lag.
	Age time.Duration
	// Youngest is the largest write number in the image.
	Youngest uint64
	// What the sectors show.
	Stamped, Zero, Initial, Other int64

	unsure  bool   // missing and present are not complete
	missing []part // known not to be in the image as a whole, with what may be
	present []part // known to be in it, with how much of it
}

// part is the first sectors of a request.
type part struct {
	number  uint64
	sectors int64
}

// OK tells whether nothing was found.
func (v *Verdict) OK() bool { return v.Total == 0 }

// Has tells whether a reported violation is of this rule.
func (v *Verdict) Has(r Rule) bool {
	for _, x := range v.Violations {
		if x.Rule == r {
			return true
		}
	}
	return false
}

// Err is nil, or an error that lists the violations.
func (v *Verdict) Err() error {
	if v.OK() {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the image is no legal state: %d violations (%s)", v.Total, v.Summary())
	for _, x := range v.Violations {
		b.WriteString("\n  " + x.String())
	}
	if n := v.Total - len(v.Violations); n > 0 {
		fmt.Fprintf(&b, "\n  and %d more", n)
	}
	return &VerdictError{Verdict: v, text: b.String()}
}

// VerdictError is a Verdict with violations, as an error.
type VerdictError struct {
	Verdict *Verdict
	text    string
}

func (e *VerdictError) Error() string { return e.text }

// Summary is one line of figures.
func (v *Verdict) Summary() string {
	return fmt.Sprintf("as of %d: low %d, must %d, lag %d, age %v, youngest write %d; sectors: %d stamped, %d zero, %d initial, %d other",
		v.AsOf, v.Low, v.Must, v.Lag, v.Age.Round(time.Millisecond), v.Youngest, v.Stamped, v.Zero, v.Initial, v.Other)
}
