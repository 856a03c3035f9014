package device

import (
	"testing"
	"testing/synctest"
	"time"

	"mars/device/nbd"
)

// What always has made durable is told at once: recovery trusts the lengths that were published, and whoever
// publishes them must not learn of it by the writeback only.
func TestAlwaysTellsWhatIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 64<<10, nil, func(c *EngineConfig) {
			c.Durability, c.SyncInterval, c.WritebackAge = DurabilityAlways, time.Hour, time.Hour
		})
		w.primary()
		synctest.Wait()
		select {
		case <-w.e.Changed(): // what the start has told
		default:
		}
		must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
		select {
		case <-w.e.Changed():
		default:
			t.Error("nobody is told")
		}
		if s := w.e.Status(); s.LogDurable != s.LogEnd || s.LogEnd == 0 {
			t.Errorf("durable %d of %d", s.LogDurable, s.LogEnd)
		}
	})
}
