package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/oracle"
)

// alive waits until n finds the primary silent for three seconds, or not.
func alive(n *Node, want string) {
	n.t.Helper()
	n.WaitFor("is-alive is "+want, func() bool {
		return strings.TrimSpace(n.Adm("view-is-alive", "r0", "--window=3")) == want
	})
}

// TestV06CutAndHeal: a silent cut changes nothing for the application, and the
// secondary goes on by itself afterwards.
func TestV06CutAndHeal(t *testing.T) {
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 16*mib)
	w.gate.rate = 1e6
	w.start(a)
	w.load.TakeStats()
	w.more(a, 300)
	base := w.load.TakeStats()
	repeat(t, 2, func(i int) {
		c.Isolate(b)
		w.more(a, 200)
		alive(b, "0")
		if i%2 == 1 {
			a.Adm("cron")
			b.Adm("cron")
		}
		img, pos := w.freeze(b)
		v := w.judge("disk of the node that is cut off", img, oracle.Options{AsOf: w.journal.Tick()})
		if v.Lag == 0 {
			t.Errorf("cycle %d: no lag behind a cut: it cut nothing", i)
		}
		w.thaw(b)
		cut := w.load.TakeStats()
		// The machine that runs the tests is busy; a stall is a matter of seconds.
		if p, limit := cut.Quantile(0.99), max(3*base.Quantile(0.99), time.Second); p > limit {
			t.Errorf("cycle %d: p99 of the writes is %v during the cut, %v before", i, p, base.Quantile(0.99))
		}
		c.Heal()
		healed := time.Now()
		b.WaitFor("replay goes on", func() bool { return w.position(b) != pos })
		t.Logf("cycle %d: p99 %v (%v before), lag %d, goes on %v after the cut", i, cut.Quantile(0.99),
			base.Quantile(0.99), v.Lag, time.Since(healed).Round(time.Millisecond))
		alive(b, "1")
		w.noSplitBrain()
	})
	w.finish()
	w.equal(a)
}

// storm rotates and deletes logs on all nodes until the returned function is
// called. Refusals are part of it: only a primary rotates.
func storm(c *Cluster) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		wg.Go(func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				for _, verb := range []string{"log-rotate", "log-delete-all"} {
					cmd := exec.CommandContext(ctx, filepath.Join(bin, "marsadm"), verb, "r0")
					cmd.Env = n.env()
					_ = cmd.Run() // a refusal is legal; damage is seen by the oracle
				}
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// TestV07HandoverPingPong: the role goes to and fro under load and a storm of
// rotations; a client that is still connected keeps it where it is.
func TestV07HandoverPingPong(t *testing.T) {
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	w := newWorld(t, c, 16*mib)
	w.gate.rate = 2e6
	end := storm(c)
	stopStorm := sync.OnceFunc(end)
	t.Cleanup(stopStorm)
	from, to := c.Nodes[0], c.Nodes[1]
	repeat(t, 3, func(i int) {
		w.start(from)
		w.more(from, 100)
		if out, errs, code := to.Try("primary", "r0", "--timeout=10"); code == 0 {
			t.Errorf("round %d: handover although a client is connected\n%s%s", i, out, errs)
		}
		if got := from.View("is-primary", "r0"); got != "1" {
			t.Errorf("round %d: is-primary=%q on %s after the refusal", i, got, from.Name)
		}
		w.more(from, 50) // undisturbed
		w.finish()
		from.Adm("wait-umount", "r0")
		began := time.Now()
		to.Primary()
		took := time.Since(began)
		from.WaitView("is-primary", "0")
		v := w.readBack("device after the handover", to)
		t.Logf("round %d: %s to %s in %v: %s", i, from.Name, to.Name, took.Round(time.Millisecond), v.Summary())
		w.noSplitBrain()
		from, to = to, from
	})
	stopStorm()
	w.equal(from)
}
