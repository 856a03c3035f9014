package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"
)

const mib = 1 << 20

// load writes to a device until stopped and knows what must be on it.
type load struct {
	t     testing.TB
	image []byte

	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	writes  int
	slowest time.Duration
	err     error
}

// startLoad writes random blocks to the device of n, a FLUSH after every 16th.
func startLoad(n *Node, image []byte) *load {
	n.t.Helper()
	return startLoadOn(n, "r0", image, 0)
}

// startLoadOn does that for any resource, with a pause after each write.
func startLoadOn(n *Node, res string, image []byte, pause time.Duration) *load {
	n.t.Helper()
	l := &load{t: n.t, image: image, stop: make(chan struct{})}
	c := n.dial(res)
	rnd := seeded(n.t)
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		defer c.Close()
		for i := 1; ; i++ {
			select {
			case <-l.stop:
				return
			case <-time.After(pause):
			}
			off := rnd.Int64N(int64(len(image))/4096) * 4096
			p := image[off : off+4096]
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			begin := time.Now()
			err := c.Write(context.Background(), p, off)
			if err == nil && i%16 == 0 {
				err = c.Flush(context.Background())
			}
			l.mu.Lock()
			l.writes++
			l.slowest = max(l.slowest, time.Since(begin))
			l.err = err
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return l
}

func (l *load) status() (writes int, slowest time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes, l.slowest, l.err
}

// more waits until n further writes have been acknowledged.
func (l *load) more(on *Node, n int) {
	l.t.Helper()
	before, _, _ := l.status()
	on.WaitFor("the load goes on", func() bool {
		now, _, err := l.status()
		if err != nil {
			l.t.Fatalf("write failed: %v", err)
		}
		return now >= before+n
	})
}

// finish ends the load; it must not have seen an error.
func (l *load) finish() {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	if _, _, err := l.status(); err != nil {
		l.t.Fatalf("write failed: %v", err)
	}
}

// equalDisks takes the resource down everywhere and compares the disks with what
// must be on them.
func equalDisks(t testing.TB, image []byte, primary *Node, disks map[*Node]string) {
	t.Helper()
	for n := range disks {
		if n != primary {
			Settle(primary, n)
		}
	}
	for n := range disks {
		n.Adm("down", "r0")
	}
	for n, disk := range disks {
		got, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		got = got[:len(image)]
		for off := 0; off < len(image); off += 4096 {
			if !bytes.Equal(got[off:off+4096], image[off:off+4096]) {
				t.Fatalf("disk of %s differs from what was written, first in the block at %d", n.Name, off)
			}
		}
	}
}

// TestKillsAndHandover is the life of a resource with a load on it: a secondary
// joins, is killed, is frozen; the primary is killed; the role moves; in the end
// all disks are what was written.
func TestKillsAndHandover(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3)
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	image := make([]byte, 32*mib)
	disks := map[*Node]string{}
	for _, n := range c.Nodes {
		disks[n] = n.Disk("disk", int64(len(image)))
	}
	a.CreateResource(disks[a])
	l := startLoad(a, image)
	b.JoinResource(disks[b])
	d.JoinResource(disks[d])

	b.Kill()
	l.more(a, 200)
	b.Start()
	l.more(a, 100)
	d.Freeze()
	l.more(a, 200)
	d.Thaw()
	l.more(a, 100)
	l.finish()

	a.Kill()
	a.Start()
	a.Adm("wait-resource", "r0", "is-device")
	l = startLoad(a, image)
	l.more(a, 200)
	l.finish()

	a.Adm("wait-umount", "r0")
	b.Primary()
	if got := d.View("get-primary", "r0"); got != b.Name {
		d.WaitView("get-primary", b.Name)
	}
	l = startLoad(b, image)
	l.more(b, 200)
	l.finish()
	equalDisks(t, image, b, disks)
}

// TestCutNetwork: cutting and throttling the only peer changes nothing for the
// application (P10), and the peer catches up by itself.
func TestCutNetwork(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs("--alive-window", "5s"))
	a, b := c.Nodes[0], c.Nodes[1]
	image := make([]byte, 16*mib)
	disks := map[*Node]string{a: a.Disk("disk", int64(len(image))), b: b.Disk("disk", int64(len(image)))}
	a.CreateResource(disks[a])
	b.JoinResource(disks[b])

	l := startLoad(a, image)
	l.more(a, 500)
	c.Isolate(b)
	at := b.Res("replay-hostb")
	l.more(a, 1000)
	_, slowest, _ := l.status()
	if slowest > 5*time.Second {
		t.Errorf("a write took %v while the peer was cut off", slowest)
	}
	// Negative control: nothing gets through. What b had fetched it may still replay,
	// but the primary's news do not reach it.
	heard := b.Link("actual-hosta/time")
	l.more(a, 500)
	if now := b.Link("actual-hosta/time"); now != heard {
		t.Errorf("news of %s reach %s although it is cut off: %s, then %s", a.Name, b.Name, heard, now)
	}
	c.Heal()
	b.WaitFor("goes on after the cut", func() bool { return b.Res("replay-hostb") != at })
	c.Rate(b, "8mbit")
	l.more(a, 200)
	c.Rate(b, "")
	l.finish()
	equalDisks(t, image, a, disks)
}

// TestHarnessSeesCrash is the harness's negative control: a daemon that ends by
// itself fails a wait, and a cut pair really is one.
func TestHarnessSeesCrash(t *testing.T) {
	t.Parallel()
	probe := &fatalProbe{TB: t}
	c := NewCluster(t, 1)
	a := c.Nodes[0]
	a.Kill()
	a.t = probe
	err := probe.catch(func() { a.WaitFor("something that never comes", func() bool { return false }) })
	a.t = t
	if !errors.Is(err, errFatal) {
		t.Fatal("a wait on a dead daemon did not fail")
	}
}

var errFatal = errors.New("a Fatal was called")

// fatalProbe turns Fatal into a panic that catch catches.
type fatalProbe struct{ testing.TB }

func (p *fatalProbe) Fatalf(string, ...any) { panic(errFatal) }
func (p *fatalProbe) Helper()               {}
func (p *fatalProbe) catch(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(error)
		}
	}()
	f()
	return nil
}
