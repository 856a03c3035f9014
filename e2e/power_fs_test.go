package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/crashdisk"
	"mars/internal/oracle/logoracle"
	"mars/internal/testutil"
)

// makeExt4 makes a file with an empty filesystem, and opens it.
func makeExt4(t testing.TB, path string, size int64) *os.File {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// workloads are those of V19 and V20.
func workloads(tick func() uint64, seed uint64) map[string]workload {
	list := map[string]workload{}
	list["files"] = &hashed{confirmed: confirmed{tick: tick}, seed: seed}
	for _, mode := range []string{"WAL", "DELETE"} {
		list["sqlite-"+mode] = &sqlite{confirmed: confirmed{tick: tick}, mode: mode}
	}
	return list
}

// checkCopy mounts a copy of a filesystem, which replays its journal, checks the
// workloads on it, and then the filesystem itself.
func checkCopy(t testing.TB, img, dir string, c *crew, asOf uint64) (map[string]int, error) {
	t.Helper()
	m := loopMount(t, img, dir)
	there, err := c.check(dir, asOf)
	m.umount()
	if err != nil {
		return nil, err
	}
	if out, err := try(t, "e2fsck", "-f", "-n", img); err != nil {
		return nil, fmt.Errorf("e2fsck: %w\n%s", err, out)
	}
	return there, nil
}

// TestV19V20PowerCut: a filesystem on the device, a power cut anywhere: everything
// is there that fsync, or the commit of a database, had confirmed.
func TestV19V20PowerCut(t *testing.T) {
	t.Parallel()
	needBlockLayer(t, "python3", "e2fsck")
	seed := testutil.Seed(t)
	runs := map[string][]string{"all": {"files", "sqlite-WAL", "sqlite-DELETE"}}
	cuts, dur := 8, 3*time.Second
	if soak(t) > 0 { // alone nobody's sync helps the others
		cuts, dur = 120, 15*time.Second
		for _, name := range runs["all"] {
			runs[name] = []string{name}
		}
	}
	for name, names := range runs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var clock atomic.Uint64
			tick := func() uint64 { return clock.Add(1) }
			list := workloads(tick, seed)
			for k := range list {
				if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+k+" ") {
					delete(list, k)
				}
			}
			sweepFilesystem(t, list, tick, rand.New(rand.NewPCG(seed, 3)), cuts, dur)
		})
	}
}

func sweepFilesystem(t *testing.T, list map[string]workload, tick func() uint64, rnd *rand.Rand, cuts int, dur time.Duration) {
	const size = 48 * mib
	c := NewCluster(t, 1, Apart(), WithArgs(fastArgs...))
	n := c.Nodes[0]
	p := newPower(t, n, makeExt4(t, n.Path("inner.img"), size), tick)
	p.begin()
	m := mountOn(n)
	p.watch()
	crew := startCrew(t, m.dir, list)
	n.WaitFor("the workloads have begun", func() bool { return crew.least() > 0 })
	lo := p.rec.Len()
	for range 3 {
		next := time.Now().Add(dur / 3)
		n.WaitFor("the workloads go on", func() bool { return time.Now().After(next) && crew.least() > 3 })
		p.rotate()
	}
	hi := p.rec.Len()
	crew.finish()
	m.umount()
	h := p.end()
	cutter, policies := h.Cutter(), crashdisk.Policies()
	for i, index := range indexes(h, rnd, lo, hi, cuts) {
		state := cutter.Cut(index, policies[i%len(policies)], rnd)
		what := fmt.Sprintf("cut at %d of %d, %v (%d of %d unflushed writes lost)", index, len(h.Entries), policies[i%len(policies)], state.Lost, state.Volatile)
		p.restore(state)
		img, err := p.boot(size)
		var there map[string]int
		if err == nil {
			err = os.WriteFile(n.Path("copy.img"), img, 0o600)
		}
		if err == nil {
			there, err = checkCopy(t, n.Path("copy.img"), n.Path("copy"), crew, h.Tick(index))
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		p.drop()
		t.Logf("%s: %v", what, there)
	}
}

// TestV19V20Freeze: the disk of a secondary that lags is, at any time, a
// filesystem that mounts, is sound, and has an older version of everything.
func TestV19V20Freeze(t *testing.T) {
	t.Parallel()
	needBlockLayer(t, "python3", "e2fsck")
	const size = 48 * mib
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	var clock atomic.Uint64
	tick := func() uint64 { return clock.Add(1) }
	w := &world{t: t, c: c, size: size, disks: map[*Node]string{a: a.Path("disk"), b: b.Disk("disk", size)}}
	makeExt4(t, w.disks[a], size)
	a.CreateResource(w.disks[a])
	m := mountOn(a)
	crew := startCrew(t, m.dir, workloads(tick, testutil.Seed(t)))
	a.WaitFor("the workloads have begun", func() bool { return crew.least() > 2 })
	tool(t, "sync", "-f", m.dir)
	begun := tick()
	b.JoinResource(w.disks[b]) // what it holds from now on is younger
	c.Rate(b, "6mbit")
	freezes := 3
	if soak(t) > 0 {
		freezes = 30
	}
	last, lagging := map[string]int{}, 0
	repeat(t, freezes, func(i int) {
		before := crew.least()
		a.WaitFor("the workloads go on", func() bool { return crew.least() > before+10 })
		made := map[string]int{}
		img, _ := w.freeze(b)
		for name, l := range crew.list {
			made[name] = l.steps()
		}
		if err := os.WriteFile(b.Path("copy.img"), img, 0o600); err != nil {
			t.Fatal(err)
		}
		there, err := checkCopy(t, b.Path("copy.img"), b.Path("copy"), crew, begun)
		if err != nil {
			t.Fatalf("freeze %d: %v", i, err)
		}
		lag := false
		for name, k := range there {
			lag = lag || k < made[name]
			if k < last[name] {
				t.Errorf("freeze %d: %s went back from %d steps to %d", i, name, last[name], k)
			}
		}
		if lag {
			lagging++
		}
		t.Logf("freeze %d: %v of %v", i, there, made)
		last = there
		w.thaw(b)
	})
	if lagging == 0 {
		t.Error("the secondary never lagged: this proves nothing")
	}
	crew.finish()
	m.umount()
	c.Rate(b, "")
	Settle(a, b)
	w.noSplitBrain()
	for _, n := range c.Nodes {
		n.Adm("down", "r0")
	}
	diffs, err := logoracle.Compare(bytes.NewReader(readFile(t, w.disks[a])), bytes.NewReader(readFile(t, w.disks[b])), size, 5)
	if err != nil || len(diffs) > 0 {
		t.Errorf("disks differ: %v %v", diffs, err)
	}
}

// unsafeSQLite is a database that does not wait for the disk.
type unsafeSQLite struct{ *sqlite }

func (w unsafeSQLite) run(dir string, stop <-chan struct{}) error { return w.runSync(dir, "OFF", stop) }

// TestPowerControls: on crash disks alone, without MARS, workloads that sync as
// they should survive every cut, and those that do not are found out.
func TestPowerControls(t *testing.T) {
	t.Parallel()
	needBlockLayer(t, "python3", "e2fsck")
	seed := testutil.Seed(t)
	var clock atomic.Uint64
	tick := func() uint64 { return clock.Add(1) }
	for _, tt := range []struct {
		name  string
		list  map[string]workload
		sound bool
	}{
		{"sound", workloads(tick, seed), true},
		{"files without every fifth fsync", map[string]workload{
			"files": &hashed{confirmed: confirmed{tick: tick}, seed: seed, omitSync: 5}}, false},
		{"database without sync", map[string]workload{
			"sqlite": unsafeSQLite{&sqlite{confirmed: confirmed{tick: tick}, mode: "DELETE"}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 5))
			cuts := 12
			if soak(t) > 0 || !tt.sound {
				cuts = 200
			}
			tried, err := bareSweep(t, tt.list, tick, rnd, cuts)
			switch {
			case tt.sound && err != nil:
				t.Fatalf("after %d cuts: %v", tried, err)
			case !tt.sound && err == nil:
				t.Fatalf("%d cuts have found nothing", tried)
			}
			t.Logf("%d cuts: %v", tried, err)
		})
	}
}

// bareSweep runs workloads on a filesystem on a crash disk, until a cut shows
// that something is wrong.
func bareSweep(t *testing.T, list map[string]workload, tick func() uint64, rnd *rand.Rand, cuts int) (tried int, err error) {
	dir := workDir(t)
	rec := crashdisk.New(tick)
	if err := rec.AddDisk("fs", makeExt4(t, dir+"/img", 48*mib)); err != nil {
		t.Fatal(err)
	}
	stop, err := rec.Serve(dir+"/sock", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	m := fuseFile(t, "nbd+unix:///fs?socket="+dir+"/sock", dir+"/mnt", dir+"/fuse")
	m.loop = loopDevice(t, m.file)
	tool(t, "mount", "-t", "ext4", m.loop, m.dir)
	m.up = true
	crew := startCrew(t, m.dir, list)
	lo, end := rec.Len(), time.Now().Add(1500*time.Millisecond)
	testutil.WaitFor(t, waitLimit, "the workloads go on", func() bool { return time.Now().After(end) && crew.least() > 10 })
	hi := rec.Len()
	crew.finish()
	m.umount()
	h := rec.History()
	cutter, policies := h.Cutter(), crashdisk.Policies()
	for i, index := range indexes(h, rnd, lo, hi, cuts) {
		state := cutter.Cut(index, policies[i%len(policies)], rnd)
		if err := state.WriteFile("fs", dir+"/copy.img"); err != nil {
			t.Fatal(err)
		}
		if _, err := checkCopy(t, dir+"/copy.img", dir+"/copy", crew, h.Tick(index)); err != nil {
			return i + 1, fmt.Errorf("cut at %d of %d, %v: %w", index, len(h.Entries), policies[i%len(policies)], err)
		}
		tried++
	}
	return tried, nil
}
