package e2e

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/oracle"
)

// cursor watches how far a full sync says to be. It may never go back.
type cursor struct {
	n    *Node
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	last  int64
	steps int
	back  string
}

func watchCursor(n *Node) *cursor {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cursor{n: n, stop: cancel}
	c.wg.Go(func() {
		for ctx.Err() == nil {
			c.look()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	n.t.Cleanup(c.end)
	return c
}

func (c *cursor) look() {
	at, err := strconv.ParseInt(c.n.Res("syncstatus-"+c.n.Name), 10, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.back = "no number: " + err.Error()
	case at < c.last:
		c.back = "back from " + strconv.FormatInt(c.last, 10) + " to " + strconv.FormatInt(at, 10)
	case at > c.last:
		c.steps++
	}
	c.last = max(c.last, at)
}

func (c *cursor) at() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// end stops watching.
func (c *cursor) end() {
	c.stop()
	c.wg.Wait()
}

// received is how many bytes have come into a node's network interface.
func (c *Cluster) received(n *Node) int64 {
	c.t.Helper()
	line := c.net.enter(n.i, []string{"cat", "/proc/self/net/dev"})
	out, err := exec.Command(line[0], line[1:]...).Output()
	if err != nil {
		c.t.Fatal(err)
	}
	for l := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(l), "eth0:"); ok {
			v, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			return v
		}
	}
	c.t.Fatalf("no eth0 in\n%s", out)
	return 0
}

// scramble makes a part of a disk different, in blocks of the size that a sync compares, and says how many bytes.
func scramble(t testing.TB, path string, size int64) (changed int64) {
	t.Helper()
	rnd := seeded(t)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const block = 64 << 10
	p := make([]byte, block)
	for off := int64(0); off < size; off += block {
		if rnd.IntN(10) >= 3 {
			continue
		}
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		changed += block
	}
	return changed
}

// TestV13SyncUnderFire: a third of a secondary's disk differs and is synced while the primary is busy. Both sides are
// killed, the network is cut. The sync goes on where it was, never says that it is done too early, moves little more than
// what differs, and ends with equal disks.
func TestV13SyncUnderFire(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	size, rate, rounds := int64(48*mib), "16mbit", 1
	if soak(t) > 0 {
		size, rounds = 256*mib, 4
	}
	w := newWorld(t, c, size)
	w.gate.rate = 200e3
	a.Adm("set-global-enabled-net-compressions", "0") // what is moved is counted
	w.start(a)
	w.more(a, 20)
	b.Adm("pause-sync", "r0")
	b.Adm("detach", "r0")
	changed := scramble(t, w.disks[b], size)
	logBefore := logBytes(a)
	// As invalidate does it, but without starting the sync.
	b.hand("ln -sfn 0 resource-r0/syncstatus-%s", b.Name)
	b.Adm("attach", "r0")
	watch := watchCursor(b)
	before := c.received(b)
	c.Rate(b, rate)
	b.hand("ln -sfn 1 resource-r0/todo-%s/sync", b.Name)

	inTheMiddle := 0
	moving := func() {
		from := watch.at()
		b.WaitFor("the sync moves on", func() bool { return watch.at() > from || watch.at() == size })
		if watch.at() < size {
			inTheMiddle++
		}
	}
	for range rounds {
		moving()
		w.unfinished(b)
		b.Kill()
		b.Start()
		moving()
		w.kill(a)
		moving()
		c.Isolate(b)
		alive(b, "0")
		c.Heal()
	}
	b.WaitFor("the sync is done", func() bool { return b.Res("syncstatus-"+b.Name) == strconv.FormatInt(size, 10) })
	moved := c.received(b) - before
	log := logBytes(a) - logBefore
	b.WaitView("is-consistent", "1")
	c.Rate(b, "")
	watch.end()
	img, _ := w.freeze(b)
	w.judge("first image behind the sync", img, oracle.Options{AsOf: w.journal.Tick()})
	w.thaw(b)
	w.finish()
	w.equal(a)

	watch.mu.Lock()
	defer watch.mu.Unlock()
	if watch.back != "" {
		t.Errorf("the cursor of the sync: %s", watch.back)
	}
	if inTheMiddle < 3*rounds-1 || watch.steps < 3 {
		t.Errorf("only %d of %d faults were within the sync, which had %d steps: they prove little", inTheMiddle, 3*rounds, watch.steps)
	}
	// What is copied twice after a kill is at most a step; the rest are digests, TCP's and the tree's own traffic.
	limit := (changed+log)*13/10 + int64(rounds)*4*mib
	t.Logf("%d of %d MiB differed, log %d KiB, moved %d KiB, allowed %d KiB, %d steps", changed>>20, size>>20, log>>10, moved>>10, limit>>10, watch.steps)
	if moved > limit {
		t.Errorf("%d bytes were moved, %d differed and %d were logged: more than %d", moved, changed, log, limit)
	}
	if moved < changed {
		t.Errorf("%d bytes were moved although %d differed: the count is wrong", moved, changed)
	}
}

// unfinished demands that b does not take its disk for more than it is.
func (w *world) unfinished(b *Node) {
	w.t.Helper()
	if got := b.View("is-consistent", "r0"); got != "0" {
		w.t.Errorf("is-consistent=%q in the middle of a sync", got)
	}
	if got := b.View("diskstate", "r0"); !strings.Contains(strings.ToLower(got), "inconsistent") {
		w.t.Errorf("diskstate %q in the middle of a sync", got)
	}
	for _, verb := range [][]string{{"primary", "r0", "--timeout=2"}, {"primary", "--force", "r0", "--timeout=2"}} {
		if out, errs, code := b.Try(verb...); code == 0 {
			w.t.Errorf("%v in the middle of a sync: passed\n%s%s", verb, out, errs)
		}
	}
}

// kill kills the primary under load and takes it up again.
func (w *world) kill(a *Node) {
	w.t.Helper()
	a.Kill()
	w.crashed()
	a.Start()
	a.WaitView("is-primary", "1")
	a.Adm("wait-resource", "r0", "is-device")
	w.readBack("device after the kill", a)
	w.start(a)
}
