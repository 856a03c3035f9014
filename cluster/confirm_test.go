package cluster

import (
	"context"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/symlinktree"
)

// members are a primary and a secondary of r that has everything.
func members(t *testing.T, r string) (a, b *testNode) {
	a, b = newPair(t, nil)
	a.create(r)
	b.join(r, "a")
	b.await("all is replayed", func() bool { return settled(a, b, r) })
	return a, b
}

// flushAsync starts a FLUSH.
func flushAsync(c *nbdclient.Client) <-chan error {
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		ended <- c.Flush(ctx)
	}()
	return ended
}

// TestSyncModes: with sync a FLUSH is answered when the member has the data and not before; with near it is
// answered after a while without it, which is shown until the member has caught up.
func TestSyncModes(t *testing.T) {
	const r = "r0"
	a, b := members(t, r)
	if got := a.get("resource-r0/actual-a/sync-mode"); got != "" {
		t.Errorf("a resource that nobody gave a mode shows %q", got)
	}
	mode := symlinktree.Resource(r).SyncModePath()
	shows := func(m string) {
		t.Helper()
		a.awaitLink("resource-r0/actual-a/sync-mode", m)
		b.awaitLink(mode, m)
	}
	degraded := func(want bool) {
		t.Helper()
		a.await("sync-degraded", func() bool {
			return (a.get("resource-r0/actual-a/sync-degraded") != "0.000000000") == want
		})
	}
	c := a.device(r)
	defer c.Close()
	a.put(mode, "sync,1")
	shows("sync,1")
	write(t, c, 0, []byte{1: 1, 4095: 0})
	if err := <-flushAsync(c); err != nil {
		t.Fatal(err)
	}
	degraded(false)

	b.put("resource-r0/todo-b/connect", "0")
	a.awaitLink("resource-r0/actual-b/is-copying", "0")
	write(t, c, 4096, []byte{2: 2, 4095: 0})
	f := flushAsync(c)
	a.awaitLink("resource-r0/actual-a/sync-waiting", "1")
	select {
	case err := <-f:
		t.Fatalf("FLUSH is answered (%v) although nobody fetches", err)
	default:
	}
	b.put("resource-r0/todo-b/connect", "1")
	if err := <-f; err != nil {
		t.Fatal(err)
	}
	a.awaitLink("resource-r0/actual-a/sync-waiting", "0")

	a.put(mode, "near,1,300")
	shows("near,1,300")
	b.put("resource-r0/todo-b/connect", "0")
	a.awaitLink("resource-r0/actual-b/is-copying", "0")
	write(t, c, 8192, []byte{3: 3, 4095: 0})
	began := time.Now()
	if err := <-flushAsync(c); err != nil || time.Since(began) < 250*time.Millisecond {
		t.Fatalf("near: answered after %v: %v", time.Since(began), err)
	}
	degraded(true)
	b.put("resource-r0/todo-b/connect", "1")
	degraded(false)

	// A mode that cannot be read changes nothing.
	a.put(mode, "async")
	shows("async")
	b.await("all is replayed", func() bool { return settled(a, b, r) })
}

// TestReplayDelayByLinks: a delayed member has the log and not the data, until the delay is taken away, or it shall be primary.
func TestReplayDelayByLinks(t *testing.T) {
	const r = "r0"
	a, b := members(t, r)
	b.put("resource-r0/todo-b/replay-delay", "3600")
	before := b.diskSum()
	c := a.device(r)
	write(t, c, 0, []byte{9: 9, 4095: 0})
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await("the log is fetched", func() bool {
		own, _ := symlinktree.ParseVersion(a.get("resource-r0/version-000000001-a"))
		copied, _ := symlinktree.ParseVersion(a.get("resource-r0/version-000000001-b"))
		return own.Pos > 0 && own.Pos == copied.Pos
	})
	pos, _ := symlinktree.ParseReplay(b.get("resource-r0/replay-b"))
	if b.diskSum() != before || pos.Min != 0 {
		t.Fatalf("a delayed replica has replayed: %+v", pos)
	}
	b.put("resource-r0/todo-b/replay-delay", "0")
	b.await("all is replayed", func() bool { return settled(a, b, r) })
	sum := contentSum(t, c)
	c.Close()
	if b.diskSum() != sum {
		t.Error("after the fast forward the disks differ")
	}
}
