package e2e

import (
	"bytes"
	"testing"

	"mars/internal/oracle"
	"mars/internal/testutil"
)

// failover writes with FLUSH and FUA, kills the primary, makes b primary by force and judges what it
// has by what had been confirmed.
func failover(t *testing.T, prepare func(w *world, a, b *Node)) (v *oracle.Verdict, b *Node) {
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 4*mib)
	profile := scenarioLoad
	profile.FUA, profile.FlushEvery = 0.1, 8
	w.load = oracle.NewLoad(w.journal, profile, testutil.Seed(t))
	w.gate.rate = 2e6
	b.WaitView("is-consistent", "1")
	a.Adm("set-traffic-limit", "log", "200") // KiB/s, a tenth of what is written: b is behind if nobody waits for it
	w.start(a)
	w.more(a, 20)
	prepare(w, a, b)
	w.more(a, 60)
	a.Kill()
	w.crashed()
	b.Adm("disconnect", "r0")
	b.Adm("primary", "r0", "--force", "--window=1")
	b.Adm("wait-resource", "r0", "is-device")
	cl := b.Client()
	defer cl.Close()
	img := make([]byte, w.size)
	if _, err := cl.ReadAt(img, 0); err != nil {
		t.Fatal(err)
	}
	v, err := w.journal.CheckImage(bytes.NewReader(img), oracle.Options{Durable: oracle.Flushed})
	if err != nil {
		t.Fatal(err)
	}
	return v, b
}

// TestNearLosesNothing: what a FLUSH or FUA has confirmed while a member was near is there after a forced
// failover to it. Without that mode, and with a member that is behind, the same judge finds a loss.
func TestNearLosesNothing(t *testing.T) {
	t.Parallel()
	t.Run("near", func(t *testing.T) {
		t.Parallel()
		v, b := failover(t, func(_ *world, a, b *Node) {
			a.Adm("set-sync-mode", "r0", "near", "1", "20000")
			b.WaitFor("the mode is in force", func() bool { return b.Res("actual-hosta/sync-mode") == "near,1,20000" })
		})
		if since := b.Res("actual-hosta/sync-degraded"); since != "0.000000000" {
			t.Fatalf("the member was not near all the time: degraded since %s", since)
		}
		if err := v.Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("async", func(t *testing.T) {
		t.Parallel()
		v, _ := failover(t, func(w *world, a, _ *Node) { w.more(a, 100) })
		if v.Err() == nil {
			t.Error("a member behind a slow line that nobody waited for is said to have lost nothing")
		}
	})
}
