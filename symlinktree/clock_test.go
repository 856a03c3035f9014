package symlinktree

import (
	"errors"
	"math"
	"sync"
	"testing"
	"time"
)

func TestStampText(t *testing.T) {
	for s, want := range map[Stamp]string{1: "0.000000001", testNow + 5: "1800000000.000000005", 1_000_000_000: "1.000000000", -1: "-1.999999999", math.MaxInt64: "9223372036.854775807"} {
		if s.String() != want {
			t.Errorf("%d prints as %s", int64(s), s)
		}
		if back, err := ParseStamp(want); s > 0 && (err != nil || back != s) {
			t.Errorf("%s parsed as %d, %v", want, int64(back), err)
		}
	}
	for _, v := range []string{"", "1", "1.", "1.5", ".000000000", "1.0000000000", "01.000000000", "1.00000000x", "-1.000000000", "9223372036.854775808", "99999999999.000000000", "1,000000000"} {
		if s, err := ParseStamp(v); err == nil {
			t.Errorf("ParseStamp(%q) = %v", v, s)
		}
	}
	for _, tc := range []struct {
		at   time.Time
		want Stamp
	}{
		{time.Unix(-5, 0), 1}, {time.Unix(0, 0), 1}, {time.Unix(0, 7), 7}, {time.Unix(1<<40, 0), math.MaxInt64}, {testNow.Time(), testNow},
	} {
		if got := stampOf(tc.at); got != tc.want {
			t.Errorf("stampOf(%v) = %d", tc.at, got)
		}
	}
}

func TestClock(t *testing.T) {
	real := &fakeReal{at: testNow}
	c := NewClock(real.now)
	a, b := c.Now(), c.Now()
	if a != testNow || b != a+1 {
		t.Errorf("a standing clock gives %v, %v", a, b)
	}
	real.at = testNow - Stamp(time.Hour)
	if s := c.Now(); s != b+1 {
		t.Errorf("after a jump back: %v", s)
	}
	if err := c.Observe(testNow + Stamp(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if s := c.Now(); s != testNow+Stamp(time.Hour)+1 {
		t.Errorf("after observing the future: %v", s)
	}
	if err := c.Observe(5); err != nil {
		t.Fatal(err)
	}
	before := c.Now()
	limit := real.at + Stamp(MaxFuture)
	if err := c.Observe(limit + 1); !errors.Is(err, ErrFuture) {
		t.Errorf("a stamp beyond the window: %v", err)
	}
	if s := c.Now(); s != before+1 {
		t.Errorf("the refused stamp moved the clock to %v", s)
	}
	if err := c.Observe(limit); err != nil {
		t.Errorf("a stamp at the edge of the window: %v", err)
	}
	real.at = testNow + Stamp(365*24*time.Hour)
	if s := c.Now(); s != real.at {
		t.Errorf("the real clock is ahead, but %v", s)
	}
	if c := NewClock(func() time.Time { return time.Unix(1<<40, 0) }); c.Limit() <= 0 {
		t.Error("the window overflows")
	}
}

func TestClockIsStrict(t *testing.T) {
	c := NewClock(time.Now)
	const workers, each = 8, 2000
	lists := make([][]Stamp, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for range each {
				s := c.Now()
				c.Observe(s + 3)
				lists[w] = append(lists[w], s)
			}
		})
	}
	wg.Wait()
	seen := make(map[Stamp]bool)
	for _, l := range lists {
		for i, s := range l {
			if seen[s] || i > 0 && s <= l[i-1] {
				t.Fatalf("stamp %v twice or out of order", s)
			}
			seen[s] = true
		}
	}
}
