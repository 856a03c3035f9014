package cluster

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/logfile"
)

// newTrio starts a primary and two secondaries, of which c prefers b as a source of logs.
func newTrio(t *testing.T) (a, b, c *testNode, dev *nbdclient.Client) {
	t.Helper()
	nodes := newTestNodes(t, "a", "b", "c")
	a, b, c = nodes["a"], nodes["b"], nodes["c"]
	for _, n := range []*testNode{a, b, c} {
		n.makeDisk('0')
		n.start()
	}
	a.create("r0")
	dev = a.device("r0")
	t.Cleanup(func() { dev.Close() })
	for _, n := range []*testNode{b, c} {
		n.join("r0", "a")
		n.await("is settled", func() bool { return settled(a, n, "r0") })
	}
	c.put("resource-r0/connect-c", "b,a")
	c.await("fetches from the preferred source", func() bool { return c.source() == "b" })
	return a, b, c, dev
}

// source is the peer that the running subscription reads from, as far as the log of the node tells.
func (n *testNode) source() string {
	_, s, _ := strings.Cut(n.logs.String()[max(0, strings.LastIndex(n.logs.String(), "action=\"fetch ")):], " from ")
	return s[:min(1, len(s))]
}

func fill(t *testing.T, dev *nbdclient.Client, b byte) {
	t.Helper()
	for i := range int64(32) {
		write(t, dev, i*16384, bytes.Repeat([]byte{b}, 4096))
	}
	flush(t, dev)
}

// A source that is alive and has nothing to send, although another member has more, is left.
func TestFetchLeavesASourceThatFallsBehind(t *testing.T) {
	t.Parallel()
	a, b, c, dev := newTrio(t)
	fill(t, dev, '1')
	c.await("follows by way of b", func() bool { return settled(a, c, "r0") && c.diskSum() == contentSum(t, dev) })
	if s := c.source(); s != "b" {
		t.Fatalf("c fetches from %s", s)
	}
	b.put("resource-r0/todo-b/connect", "0")
	b.awaitLink("resource-r0/actual-b/is-copying", "0")
	fill(t, dev, '2')
	want := contentSum(t, dev)
	c.await("has gone over to the writer", func() bool { return settled(a, c, "r0") && c.diskSum() == want && c.source() == "a" })
	if !strings.Contains(c.logs.String(), errStalled.Error()) {
		t.Error("c does not say why it left its source")
	}
	b.put("resource-r0/todo-b/connect", "1")
	b.await("follows, too", func() bool { return b.diskSum() == want })
	noSplit(t, a, b, c)
}

// A copy whose damage comes from the source is mended by another member.
func TestDamageFromASecondaryIsFetchedElsewhere(t *testing.T) {
	t.Parallel()
	a, b, c, dev := newTrio(t)
	c.put("resource-r0/todo-c/connect", "0")
	c.awaitLink("resource-r0/actual-c/is-copying", "0")
	at := c.node.worker("r0").engine().Status().IngestEnd
	fill(t, dev, '1')
	want := contentSum(t, dev)
	b.await("is settled", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	flip(t, filepath.Join(b.cfg.Root, "resource-r0", at.Log.String()), at.Offset+20000)
	c.put("resource-r0/todo-c/connect", "1")
	c.await("has healed", func() bool { return settled(a, c, "r0") && c.diskSum() == want })
	if text := c.logs.String(); !strings.Contains(text, "cutting a damaged part") || c.source() != "a" {
		t.Errorf("the damage of b did not reach c: the test shows nothing; last source %s", c.source())
	}
	noSplit(t, a, b, c)
}

func TestSuppliersAreRemembered(t *testing.T) {
	w := &worker{ctx: context.Background(), n: &Node{cfg: DefaultConfig("/", "b")}, distrust: map[string]time.Time{}, supplies: map[logfile.Name][]supply{}}
	w.wake = make(chan struct{}, 1)
	sent := func(l logfile.Name, peer string, from, to int64) {
		job := &fetchJob{what: FetchFact{Log: l, Peer: peer}, from: from}
		job.pos.Store(to)
		w.supplied(job)
	}
	l := log(1, "a")
	sent(l, "a", 0, 100)
	sent(l, "a", 100, 200)
	sent(l, "c", 200, 200) // nothing came
	sent(l, "c", 200, 300)
	sent(l, "d", 250, 400) // after a cut
	for at, want := range map[int64]string{0: "a", 199: "a", 200: "c", 249: "c", 250: "d", 1000: "d"} {
		clear(w.distrust)
		w.blame(l, at)
		if len(w.distrust) != 1 || w.distrust[want].IsZero() {
			t.Errorf("damage at %d: blamed %v, want %s", at, w.distrust, want)
		}
	}
	clear(w.distrust)
	if w.blame(log(2, "a"), 0); len(w.distrust) != 0 {
		t.Error("somebody is blamed for a log that came from nobody")
	}
	for i := range 1000 {
		sent(log(i+1, "a"), "a", 0, 1)
		sent(l, []string{"a", "c"}[i%2], int64(1000+i), int64(2000+i))
	}
	if len(w.supplies) > 2*maxPrefetch+1 || len(w.supplies[l]) > maxSupplies {
		t.Errorf("%d logs, %d suppliers of one: grows for ever", len(w.supplies), len(w.supplies[l]))
	}
}
