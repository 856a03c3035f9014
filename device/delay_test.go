package device

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/logfile"
)

// TestReplayDelay: a delayed replica is, at any time, what the primary was that long ago, and catches up at
// once when it is told to. Pause and crash do not shorten the delay.
func TestReplayDelay(t *testing.T) {
	seed := testutil.Seed(t)
	synctest.Test(t, func(t *testing.T) {
		const size, delay = 256 << 10, time.Hour
		rnd := rand.New(rand.NewPCG(seed, 5))
		w := newWorld(t, seed, size, nil, func(c *EngineConfig) { c.WritebackAge = time.Hour })
		w.primary()
		type moment struct {
			at      time.Time
			content []byte
		}
		var history []moment
		for range 60 {
			op := randomOp(rnd, size, 16<<10, 512)
			must(t, w.e.Submit([]nbd.Op{op}))
			history = append(history, moment{time.Now(), w.content()})
			time.Sleep(time.Duration(1 + rnd.Int64N(int64(2*time.Minute))))
		}
		must(t, w.flush())
		log := name(1, "a")
		p, err := w.fs.ReadFile(logDir + "/" + log.String())
		must(t, err)
		w.e.abandon()

		b := newWorld(t, seed, size, nil, func(c *EngineConfig) { c.Host, c.WritebackAge = "b", time.Millisecond })
		defer b.close()
		b.e.SetReplayDelay(delay)
		must(t, b.e.SetReplay(t.Context(), true))
		b.feed(log, 0, p)
		must(t, b.e.Follow(log))
		// was is what the primary was at a time.
		was := func(at time.Time) (c []byte) {
			c = make([]byte, size)
			for _, m := range history {
				if !m.at.After(at) {
					c = m.content
				}
			}
			return c
		}
		step := func(what string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			if d := diff(b.diskContent(), was(time.Now().Add(-delay-time.Second))); d != nil && diff(b.diskContent(), was(time.Now().Add(-delay))) != nil {
				t.Fatalf("%s, %v after the first write: the disk is not what the primary was %v ago: %v", what, time.Since(history[0].at), delay, d)
			}
		}
		for i := range 30 {
			time.Sleep(time.Duration(rnd.Int64N(int64(2 * time.Minute))))
			step("running")
			if i%7 == 3 {
				must(t, b.e.SetReplay(t.Context(), false))
				time.Sleep(time.Minute)
				must(t, b.e.SetReplay(t.Context(), true))
				step("after a pause")
			}
		}
		if end := b.e.Status().IngestEnd; end.Offset >= int64(len(p)) {
			t.Fatalf("nothing is left to be delayed: %v", end)
		}
		b.e.SetReplayDelay(0)
		time.Sleep(time.Second)
		synctest.Wait()
		if s := b.e.Status(); s.Applied != (logfile.Position{Log: log, Offset: int64(len(p))}) {
			t.Fatalf("fast forward ends at %v, log ends at %d", s.Applied, len(p))
		}
		must(t, diff(b.diskContent(), history[len(history)-1].content))
	})
}
