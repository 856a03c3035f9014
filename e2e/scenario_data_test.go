package e2e

import (
	"bytes"
	"testing"
	"time"

	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
)

// TestV02AnytimeConsistency: a secondary that lags is stopped again and again; each
// time its disk is an older version of the device, and exactly the one that its
// replay link names.
func TestV02AnytimeConsistency(t *testing.T) {
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 16*mib)
	w.gate.rate = 1200e3
	c.Rate(b, "8mbit") // a megabyte a second: less than what is written
	w.start(a)
	w.more(a, 100)
	lagging := 0
	var last *oracle.Verdict
	n := repeat(t, 8, func(i int) {
		w.more(a, 30)
		img, pos := w.freeze(b)
		// Writes that were submitted later cannot be in the image.
		asOf := w.journal.Tick()
		v := w.judge("frozen disk", img, oracle.Options{AsOf: asOf, Since: last})
		if last != nil && v.Low < last.Low {
			t.Errorf("freeze %d: %d writes, %d at the freeze before", i, v.Low, last.Low)
		}
		if v.Lag > 0 {
			lagging++
		}
		diffs, err := logoracle.Compare(bytes.NewReader(img), w.reduce(a, pos), w.size, 5)
		if err != nil {
			t.Fatal(err)
		}
		if len(diffs) > 0 {
			t.Errorf("freeze %d: the disk is not what the log says at %v: %v", i, pos, diffs)
		}
		if i == 0 {
			w.mustCatch(img, v, asOf)
		}
		t.Logf("freeze %d at %v: low %d, lag %d, age %v", i, pos, v.Low, v.Lag, v.Age.Round(time.Millisecond))
		last = v
		w.thaw(b)
	})
	if lagging < n*5/6 {
		t.Errorf("only %d of %d freezes had a lag: they prove nothing", lagging, n)
	}
	w.finish()
	c.Rate(b, "")
	w.equal(a)
}
