package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
	"mars/internal/testutil"
)

// fastArgs make the daemons notice and retry quickly.
var fastArgs = []string{"--heartbeat", "100ms", "--publish-interval", "50ms", "--retry-max", "500ms",
	"--alive-window", "3s", "--writeback-age", "300ms"}

// scenarioLoad is P8 with requests of moderate size, so that a short run has many.
var scenarioLoad = oracle.Profile{Name: "P8", InFlight: 8, MinLen: 512, MaxLen: 32 << 10, Align: 512, FlushEvery: 32}

// world is a resource whose every write is journalled by the oracle.
type world struct {
	t       testing.TB
	c       *Cluster
	size    int64
	base    []byte // content before the first write
	disks   map[*Node]string
	journal *oracle.Journal
	load    *oracle.Load
	gate    *pacer

	stop   context.CancelFunc
	ended  chan error
	client *nbdclient.Client
}

// newWorld makes the resource on the first node and joins all others.
func newWorld(t testing.TB, c *Cluster, size int64) *world {
	t.Helper()
	seed := testutil.Seed(t)
	w := &world{t: t, c: c, size: size, disks: map[*Node]string{}, gate: &pacer{}}
	sectors := size / oracle.SectorSize
	var err error
	w.journal, err = oracle.NewJournal(oracle.JournalConfig{Run: seed, Branch: 1, Size: size, Initial: sectors})
	if err != nil {
		t.Fatal(err)
	}
	w.load = oracle.NewLoad(w.journal, scenarioLoad, seed)
	for _, n := range c.Nodes {
		w.disks[n] = n.Disk("disk", size)
	}
	a := c.Nodes[0]
	f, err := os.OpenFile(w.disks[a], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := oracle.StampInitial(f, seed, sectors); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.base = readFile(t, w.disks[a])
	a.CreateResource(w.disks[a])
	for _, n := range c.Nodes[1:] {
		n.JoinResource(w.disks[n])
	}
	return w
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pacer passes requests on, at most rate bytes a second of writes, and counts.
type pacer struct {
	nbd    oracle.Client
	writes atomic.Int64

	mu   sync.Mutex
	rate float64 // bytes per second, 0: no limit
	next time.Time
}

func (p *pacer) Write(ctx context.Context, b []byte, off int64, flags ...uint16) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	at := p.next
	if p.rate > 0 {
		p.next = p.next.Add(time.Duration(float64(len(b)) / p.rate * float64(time.Second)))
	}
	p.mu.Unlock()
	time.Sleep(time.Until(at))
	err := p.nbd.Write(ctx, b, off, flags...)
	if err == nil {
		p.writes.Add(1)
	}
	return err
}

func (p *pacer) Flush(ctx context.Context) error { return p.nbd.Flush(ctx) }
func (p *pacer) Trim(ctx context.Context, off, n int64, flags ...uint16) error {
	return p.nbd.Trim(ctx, off, n, flags...)
}
func (p *pacer) WriteZeroes(ctx context.Context, off, n int64, flags ...uint16) error {
	return p.nbd.WriteZeroes(ctx, off, n, flags...)
}

// start runs the load on n until finish or crash.
func (w *world) start(n *Node) {
	w.t.Helper()
	w.client = n.Client()
	w.gate.nbd = w.client
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.ended = cancel, make(chan error, 1)
	go func(ended chan error) { ended <- w.load.Run(ctx, 0, w.gate) }(w.ended)
}

// more waits until n further writes have been acknowledged.
func (w *world) more(on *Node, n int) {
	w.t.Helper()
	want := w.gate.writes.Load() + int64(n)
	on.WaitFor("the load goes on", func() bool {
		select {
		case err := <-w.ended:
			w.ended <- err
			w.t.Fatalf("the load on %s ended: %v", on.Name, err)
		default:
		}
		return w.gate.writes.Load() >= want
	})
}

// finish ends the load; no request may have failed.
func (w *world) finish() {
	w.t.Helper()
	w.stop()
	if err := <-w.ended; err != nil {
		w.t.Fatalf("the load failed: %v", err)
	}
	w.client.Close()
}

// crashed collects the load after its server was killed.
func (w *world) crashed() {
	w.t.Helper()
	defer w.stop()
	if err := <-w.ended; err == nil {
		w.t.Fatal("the load ended without an error although the server was killed")
	}
	w.client.Kill()
	w.load.Fence()
}

// judge demands that an image is a prefix of the history.
func (w *world) judge(what string, img []byte, opt oracle.Options) *oracle.Verdict {
	w.t.Helper()
	v, err := w.journal.CheckImage(bytes.NewReader(img), opt)
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	if err := v.Err(); err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	return v
}

// readBack reads the device on n, which must hold every acknowledged write, and
// takes over which of the others exist.
func (w *world) readBack(what string, n *Node) *oracle.Verdict {
	w.t.Helper()
	c := n.Client()
	defer c.Close()
	img := make([]byte, w.size)
	if _, err := c.ReadAt(img, 0); err != nil {
		w.t.Fatalf("%s: read %s: %v", what, n.Name, err)
	}
	v := w.judge(what, img, oracle.Options{Durable: oracle.Always})
	if err := w.journal.Resolve(v); err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	return v
}

// position is the replay link of n.
func (w *world) position(n *Node) logoracle.Position {
	w.t.Helper()
	p := strings.Split(n.Res("replay-"+n.Name), ",")
	if len(p) == 3 {
		if off, err := strconv.ParseInt(p[1], 10, 64); err == nil {
			return logoracle.Position{Log: p[0], Offset: off}
		}
	}
	w.t.Fatalf("replay link of %s: %q", n.Name, n.Res("replay-"+n.Name))
	return logoracle.Position{}
}

// reduce is what the disk must be at a position, by the logs of a node.
func (w *world) reduce(logsOf *Node, to logoracle.Position) *logoracle.Image {
	w.t.Helper()
	files, _ := filepath.Glob(filepath.Join(logsOf.Root(), "resource-r0", "log-*"))
	var logs []logoracle.Log
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			w.t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			w.t.Fatal(err)
		}
		logs = append(logs, logoracle.Log{Name: filepath.Base(name), File: f, Length: st.Size()})
	}
	img := logoracle.NewImage(bytes.NewReader(w.base), w.size)
	if _, err := logoracle.Reduce(img, logs, to, logoracle.Options{}); err != nil {
		w.t.Fatalf("log of %s up to %v: %v", logsOf.Name, to, err)
	}
	return img
}

// freeze stops n where it is, and returns its disk and the position that its
// replay link claims for it. thaw is the contrary.
func (w *world) freeze(n *Node) ([]byte, logoracle.Position) {
	w.t.Helper()
	n.Adm("pause-replay", "r0")
	n.WaitView("is-replay", "0")
	if got := n.View("is-consistent", "r0"); got != "1" {
		w.t.Errorf("%s: is-consistent=%q while replay is paused", n.Name, got)
	}
	n.Adm("detach", "r0")
	n.WaitView("is-attach", "0")
	return readFile(w.t, w.disks[n])[:w.size], w.position(n)
}

func (w *world) thaw(n *Node) { w.t.Helper(); n.Adm("up", "r0"); n.WaitView("is-attach", "1") }

// noSplitBrain looks at every node that runs.
func (w *world) noSplitBrain() {
	w.t.Helper()
	for _, n := range w.c.Nodes {
		if n.Running() && n.View("is-split-brain", "r0") == "1" {
			w.t.Errorf("split brain seen on %s\n%s", n.Name, n.Adm("view", "all"))
		}
	}
}

// equal takes the resource down everywhere: all disks must hold every acknowledged
// write, and be the same.
func (w *world) equal(primary *Node) {
	w.t.Helper()
	for _, n := range w.c.Nodes {
		if n != primary {
			Settle(primary, n)
		}
	}
	w.noSplitBrain()
	for _, n := range w.c.Nodes {
		n.Adm("down", "r0")
	}
	want := readFile(w.t, w.disks[primary])[:w.size]
	w.judge("disk of "+primary.Name, want, oracle.Options{Durable: oracle.Always})
	for _, n := range w.c.Nodes {
		diffs, err := logoracle.Compare(bytes.NewReader(want), bytes.NewReader(readFile(w.t, w.disks[n])), w.size, 5)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(diffs) > 0 {
			w.t.Errorf("disks of %s and %s differ: %v", primary.Name, n.Name, diffs)
		}
	}
}

// repeat calls f n times, or for the time of MARS_SOAK.
func repeat(t testing.TB, n int, f func(i int)) int {
	long := soak(t)
	end := time.Now().Add(long)
	i := 0
	for ; i < n || (long > 0 && time.Now().Before(end)); i++ {
		f(i)
		if t.Failed() {
			t.Fatalf("stopped after round %d", i)
		}
	}
	return i
}

// mustCatch is the negative control: seeded faults in a good image must be found
// by the oracle.
func (w *world) mustCatch(img []byte, v *oracle.Verdict, asOf uint64) {
	w.t.Helper()
	var a, b int64 = -1, -1 // two sectors with stamps of different writes
	var first oracle.Stamp
	for s := int64(0); s < w.size/oracle.SectorSize && b < 0; s++ {
		st, err := oracle.ParseStamp(img[s*oracle.SectorSize : (s+1)*oracle.SectorSize])
		switch {
		case err != nil || st.Write == 0:
		case a < 0:
			a, first = s, st
		case st.Write != first.Write:
			b = s
		}
	}
	if b < 0 {
		w.t.Fatalf("no two writes in the image: %s", v.Summary())
	}
	sector := func(p []byte, s int64) []byte { return p[s*oracle.SectorSize : (s+1)*oracle.SectorSize] }
	for _, fault := range []struct {
		name string
		do   func(p []byte)
		want []oracle.Rule
	}{
		{"flipped bit", func(p []byte) { sector(p, a)[100] ^= 1 }, []oracle.Rule{oracle.RuleGarbage}},
		{"swapped sectors", func(p []byte) {
			x := bytes.Clone(sector(p, a))
			copy(sector(p, a), sector(p, b))
			copy(sector(p, b), x)
		}, []oracle.Rule{oracle.RuleMisplaced}},
		{"older generation", func(p []byte) { copy(sector(p, a), sector(w.base, a)) }, []oracle.Rule{oracle.RuleHole, oracle.RuleTorn}},
	} {
		p := bytes.Clone(img)
		fault.do(p)
		got, err := w.journal.CheckImage(bytes.NewReader(p), oracle.Options{AsOf: asOf})
		if err != nil {
			w.t.Fatal(err)
		}
		found := false
		for _, r := range fault.want {
			found = found || got.Has(r)
		}
		if !found {
			w.t.Errorf("negative control %q was not caught as %v: %v", fault.name, fault.want, fmt.Sprint(got.Violations))
		}
		if d, err := logoracle.Compare(bytes.NewReader(img), bytes.NewReader(p), w.size, 1); err != nil || len(d) == 0 {
			w.t.Errorf("negative control %q is invisible to the comparison: %v", fault.name, err)
		}
	}
}
