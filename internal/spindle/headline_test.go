package spindle_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"mars/device"
	"mars/internal/spindle"
)

// headline is one line of the table for the promise that made the log worth its cost: random writes
// through it are faster than the disk itself.
type headline struct {
	name  string
	span  int64
	depth int
	flush int
	limit int // IndexLimit, 0: default
	warm  time.Duration
}

func (h headline) run(t *testing.T, measured time.Duration) (raws, eng outcome) {
	l := newLoad(h.depth, h.span, 4096)
	l.flush, l.warm, l.time = h.flush, h.warm, measured
	r := l
	// The raw disk has no CPU to wait for, and all that it has done is durable.
	r.perOp, r.flush, r.warm, r.time = 0, 0, 0, 30*time.Second
	raws = raw(t, spindle.HDD7200(), r)
	eng, st, _ := engine(t, spindle.HDD7200(), l, func(c *device.EngineConfig) {
		if h.limit > 0 {
			c.IndexLimit = h.limit
		}
	})
	t.Logf("%s: raw %v\n\tengine %v\n\t%.2f x raw; %d cycles", h.name, raws, eng, eng.iops/raws.iops, st.Counters.Cycles)
	return raws, eng
}

// TestHeadline measures sustained random writes: long after the index has filled up to where
// writers go at the pace of the writeback. The table has the defaults; MARS_SPINDLE_TABLE is the file for it.
func TestHeadline(t *testing.T) {
	if path := os.Getenv("MARS_SPINDLE_TABLE"); path != "" {
		headlineTable(t, path)
		return
	}
	if testing.Short() {
		t.Skip("a few seconds of simulation")
	}
	// The density of a full index over 64 GiB, at a 32nd of the size.
	r, e := headline{name: "short form", span: 2 << 30, depth: 32, limit: 1 << 15, warm: 20 * time.Second}.run(t, 30*time.Second)
	if ratio := e.iops / r.iops; ratio < shortFloor {
		t.Errorf("%.2f times the raw disk, want at least %.1f", ratio, shortFloor)
	}
}

// shortFloor guards what has been reached in the short form; the table has the goal, 3.1.
const shortFloor = 1.5

func headlineTable(t *testing.T, path string) {
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	enc := json.NewEncoder(f)
	for _, h := range []headline{
		{name: "qd32, 16 GiB", span: 16 << 30, depth: 32, warm: 300 * time.Second},
		{name: "qd32, 64 GiB", span: 64 << 30, depth: 32, warm: 300 * time.Second},
		{name: "qd1, 64 GiB", span: 64 << 30, depth: 1, warm: 300 * time.Second},
		{name: "qd128, 64 GiB", span: 64 << 30, depth: 128, warm: 300 * time.Second},
		{name: "qd32, 64 GiB, index limit 4M (192 MiB)", span: 64 << 30, depth: 32, limit: 4 << 20, warm: 900 * time.Second},
		{name: "qd32, 16 GiB, FLUSH after 16", span: 16 << 30, depth: 32, flush: 16, warm: 300 * time.Second},
		{name: "qd32, 16 GiB, FLUSH after each", span: 16 << 30, depth: 32, flush: 1, warm: 300 * time.Second},
	} {
		r, e := h.run(t, 120*time.Second)
		check(t, enc.Encode([]string{h.name, fmt.Sprintf("%.0f", r.iops), fmt.Sprintf("%.0f", e.iops), fmt.Sprintf("%.2f", e.iops/r.iops),
			fmt.Sprintf("%.0f", e.burst), e.millis(), r.millis()}))
	}
}

func (o outcome) millis() string {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Sprintf("%.1f / %.0f / %.0f / %.0f", ms(o.p50), ms(o.p99), ms(o.p999), ms(o.max))
}
