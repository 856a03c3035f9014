package spindle_test

import (
	"os"
	"testing"
	"time"

	"mars/device"
	"mars/internal/spindle"
)

// TestOverload writes more than the disk can take, from the first burst on, for half a minute of virtual
// time or MARS_SOAK. Writers must get slower, not stop: no request and no silence lasts longer than a second, and what is
// acknowledged is what the disk takes.
func TestOverload(t *testing.T) {
	if testing.Short() {
		t.Skip("a few seconds of simulation")
	}
	long, limit, span := 30*time.Second, 1<<15, int64(2<<30)
	if s := os.Getenv("MARS_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		check(t, err)
		long, limit, span = max(d, time.Minute), 0, 64<<30
	}
	for _, c := range []struct {
		name  string
		depth int
		flush int
		block int64
	}{
		{"qd32", 32, 0, 4096},
		{"qd128, FLUSH after 16", 128, 16, 4096},
		{"qd32, 64 KiB", 32, 0, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLoad(c.depth, span, c.block)
			l.flush, l.time = c.flush, long
			out, st, ds := engine(t, spindle.HDD7200(), l, func(cfg *device.EngineConfig) {
				if limit > 0 {
					cfg.IndexLimit = limit
				}
			})
			t.Logf("%v\n%+v\n%+v", out, st.Counters, ds)
			if out.max > time.Second || out.gap > time.Second {
				t.Errorf("the longest request took %v, the longest silence %v; want at most a second each", out.max, out.gap)
			}
			// In the second half, when nothing is left to buffer, writers get what the disk takes.
			half := len(out.perSecond) / 2
			var acked int64
			for _, n := range out.perSecond[half:] {
				acked += int64(n)
			}
			written := (out.written[len(out.written)-1] - out.written[half-1]) / c.block
			t.Logf("second half: %d writes acknowledged, %d written back", acked, written)
			if acked < written*8/10 {
				t.Errorf("%d writes were acknowledged while %d were written back", acked, written)
			}
			if busy := ds.Busy.Seconds() / long.Seconds(); busy < 0.9 {
				t.Errorf("the disk was busy for %.0f %% of the time: this was no overload, or it was wasted", 100*busy)
			}
			if t.Failed() || testing.Verbose() {
				for i, s := range out.trace {
					if i < 60 || i%30 == 0 {
						t.Log(s)
					}
				}
			}
		})
	}
}
