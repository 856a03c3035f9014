package cluster

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"mars/internal/vfs"
	"mars/symlinktree"
)

const d0 = "resource-r0/"

// short makes emergency mode end soon; its file system is fake and has room.
func short(cfg *Config) {
	cfg.EmergencyHold, cfg.SpaceInterval = 300*time.Millisecond, 5*time.Millisecond
	cfg.Reserves = eightEach()
	f := cfg.FS.(*brokenFS)
	f.total.Store(64 * mib)
	f.free.Store(64 * mib)
}

func pattern(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }

// invalidate of n by links, as marsadm does it.
func (n *testNode) invalidate(r, pri string) {
	n.t.Helper()
	d := "resource-" + r + "/"
	h := n.name
	n.put(d+"todo-"+h+"/attach", "0", d+"todo-"+h+"/connect", "0", d+"todo-"+h+"/sync", "0", d+"todo-"+h+"/allow-replay", "0")
	n.awaitLink(d+"actual-"+h+"/is-attached", "0")
	pos, err := symlinktree.ParseReplay(n.get(d + "replay-" + pri))
	if err != nil {
		n.t.Fatal(err)
	}
	cur, prev := fmt.Sprintf("%sversion-%09d-", d, pos.Seq), fmt.Sprintf("%sversion-%09d-", d, pos.Seq-1)
	n.await("has the links of the primary", func() bool { return n.get(cur+pri) != "" && n.get(prev+pri) != "" })
	n.edit(func(tr *symlinktree.Tree) error { return tr.Delete(d + "syncpos-" + h) })
	n.put(d+"syncstatus-"+h, "0", d+"replay-"+h, fmt.Sprintf("log-%09d-%s,0,0", pos.Seq, pos.Origin),
		prev+h, n.get(prev+pri), cur+h, n.get(cur+pri), d+"skip-check-"+h, fmt.Sprint(pos.Seq))
	n.put(d+"todo-"+h+"/attach", "1", d+"todo-"+h+"/connect", "1", d+"todo-"+h+"/sync", "1", d+"todo-"+h+"/allow-replay", "1")
}

// A log without space: no client gets an error, the secondary stays at an old state and says why, and
// after an invalidate everything is equal again.
func TestEmergencyByFullLog(t *testing.T) {
	a, b, bad, c := brokenPair(t, short)
	defer c.Close()
	write(t, c, 0, pattern('1'))
	flush(t, c)
	old := contentSum(t, c)
	b.await("has it", func() bool { return settled(a, b, "r0") && b.diskSum() == old })

	bad.free.Store(0)
	bad.log.Store(true)
	for i := range 64 {
		write(t, c, int64(4096*i), pattern('2'))
		if i%16 == 0 {
			flush(t, c)
		}
	}
	a.awaitLink(d0+"actual-a/is-emergency", "1")
	a.awaitLink(d0+"actual-a/has-emergency", "1")
	a.awaitLink("actual-a/emergency", "4")
	b.await("says why it stays behind", func() bool { return strings.Contains(b.get(d0+"actual-b/msg-err-log-not-contiguous"), "invalidate") })
	if b.diskSum() != old || b.get(d0+"syncstatus-b") != fmt.Sprint(size) {
		t.Error("the secondary has changed")
	}
	if pos, err := symlinktree.ParseReplay(a.get(d0 + "replay-a")); err != nil || pos.Seq < 12 || a.get(fmt.Sprintf("%sversion-%09d-a", d0, pos.Seq)) != "" {
		t.Errorf("position %v, %v: want the start of a log behind a hole that has no version link yet", pos, err)
	}
	want := contentSum(t, c)

	// A full sync from here is refused while nothing of it has a log position.
	b.put(d0+"syncstatus-b", "4096")
	b.awaitLink(d0+"syncstatus-b", "0")
	b.awaitLink(d0+"actual-b/is-syncing", "0")

	bad.log.Store(false)
	bad.free.Store(31 * mib)
	time.Sleep(400 * time.Millisecond) // longer than the hold: it is the level that keeps it
	if v := a.get(d0 + "actual-a/is-emergency"); v != "1" {
		t.Errorf("emergency mode ended at level %s", a.get("actual-a/emergency"))
	}
	bad.free.Store(64 * mib)
	a.awaitLink(d0+"actual-a/is-emergency", "0")
	a.awaitLink("actual-a/emergency", "0")
	write(t, c, 1<<20, pattern('3'))
	flush(t, c)
	if contentSum(t, c) == want {
		t.Fatal("the write was lost")
	}
	want = contentSum(t, c)
	b.invalidate("r0", "a")
	b.await("is equal again", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	a.await("is equal again", func() bool { return a.diskSum() == want })
	noSplit(t, a, b)
	b.awaitLink(d0+"actual-b/msg-err-log-not-contiguous", "OK")
	write(t, c, 2<<20, pattern('4'))
	flush(t, c)
	want = contentSum(t, c)
	b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
}

// A node that dies in emergency mode comes back with everything, still in emergency mode; its
// secondary never takes what follows for what it has.
func TestEmergencyRestart(t *testing.T) {
	a, b, bad, c := brokenPair(t, short)
	write(t, c, 0, pattern('1'))
	flush(t, c)
	old := contentSum(t, c)
	b.await("has it", func() bool { return settled(a, b, "r0") && b.diskSum() == old })
	bad.free.Store(mib)
	a.awaitLink(d0+"actual-a/is-emergency", "1")
	write(t, c, 4096, pattern('2'))
	flush(t, c)
	want := contentSum(t, c)
	c.Close()
	a.stop()
	a.start()
	c = a.device("r0")
	defer c.Close()
	if contentSum(t, c) != want {
		t.Fatal("the device differs after a restart in emergency mode")
	}
	a.awaitLink(d0+"actual-a/is-emergency", "1")
	write(t, c, 8192, pattern('3'))
	bad.free.Store(64 * mib)
	a.awaitLink(d0+"actual-a/is-emergency", "0")
	write(t, c, 12288, pattern('4'))
	flush(t, c)
	want = contentSum(t, c)
	b.await("knows the new log", func() bool {
		pos, err := symlinktree.ParseReplay(b.get(d0 + "replay-a"))
		return err == nil && pos.Seq > 12 && b.get(fmt.Sprintf("%sversion-%09d-a", d0, pos.Seq)) != ""
	})
	if b.diskSum() != old {
		t.Fatal("the secondary went on behind the hole")
	}
	b.invalidate("r0", "a")
	b.await("is equal again", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	noSplit(t, a, b)
}

// Limits of resources: each in its turn, the others go on.
func TestEmergencyLimit(t *testing.T) {
	a, b, bad, c := brokenPair(t, short)
	defer c.Close()
	a.put(d0+"todo-a/emergency-limit", "50")
	bad.free.Store(49 * mib) // of 32 MiB behind the reserves 17 are left: more than 50 %
	write(t, c, 0, pattern('1'))
	flush(t, c)
	want := contentSum(t, c)
	b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	if v := a.get(d0 + "actual-a/has-emergency"); v != "0" {
		t.Fatalf("has-emergency %s above the limit", v)
	}
	bad.free.Store(47 * mib)
	a.awaitLink(d0+"actual-a/is-emergency", "1")
	if v := a.get("actual-a/emergency"); v != "0" {
		t.Errorf("level %s, only the limit of the resource is reached", v)
	}
	write(t, c, 4096, pattern('2'))
	bad.free.Store(49 * mib)
	a.awaitLink(d0+"actual-a/is-emergency", "0")
	bad.free.Store(47 * mib)
	a.awaitLink(d0+"actual-a/is-emergency", "1")
	a.put(d0+"todo-a/emergency-limit", "0") // taken away
	a.awaitLink(d0+"actual-a/is-emergency", "0")
}

// A secondary without space stops fetching before its file system is full, and goes on later. The
// primary does not notice.
func TestSecondaryStopsFetching(t *testing.T) {
	nodes := newTestNodes(t, "a", "b")
	a, b := nodes["a"], nodes["b"]
	bad := &brokenFS{FS: vfs.OS}
	b.cfg.FS = bad
	short(&b.cfg)
	a.makeDisk('A')
	b.makeDisk('B')
	a.start()
	b.start()
	a.create("r0")
	c := a.device("r0")
	defer c.Close()
	b.join("r0", "a")
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	bad.free.Store(15 * mib)
	b.awaitLink("actual-b/emergency", "3")
	write(t, c, 0, pattern('1'))
	flush(t, c)
	b.await("says so", func() bool { return strings.Contains(b.get(d0+"actual-b/msg-inf-fetch"), "does not fetch") })
	b.awaitLink(d0+"actual-b/is-copying", "0")
	b.await("knows that there is more", func() bool {
		v, err := symlinktree.ParseVersion(b.get(d0 + "version-000000001-a"))
		return err == nil && v.Pos > 4096
	})
	if st, err := os.Stat(b.cfg.Root + "/" + d0 + "log-000000001-a"); err == nil && st.Size() > 0 {
		t.Errorf("it has fetched %d bytes", st.Size())
	}
	if v := a.get(d0 + "actual-a/is-emergency"); v != "0" {
		t.Errorf("the primary is in emergency mode: %s", v)
	}
	bad.free.Store(64 * mib)
	want := contentSum(t, c)
	b.await("goes on", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
}

// Logs that no member needs make room before anything worse happens.
func TestPurgeMakesRoom(t *testing.T) {
	a, b, bad, c := brokenPair(t, short)
	defer c.Close()
	for i := range 3 {
		write(t, c, int64(i)*4096, pattern('1'))
		seq := i + 2
		a.rotateLog(seq)
		a.await("rotates", func() bool { return a.get(fmt.Sprintf("%sversion-%09d-a", d0, seq)) != "" })
	}
	b.await("is settled", func() bool { return settled(a, b, "r0") })
	bad.free.Store(31 * mib)
	for _, n := range []*testNode{a, b} {
		n.await("has no old logs any more", func() bool {
			list := mustGlob(t, n.cfg.Root+"/"+d0+"log-*-a")
			live := 0
			for _, l := range list {
				if n.get(strings.TrimPrefix(l, n.cfg.Root+"/")) == "" && isRegular(l) {
					live++
				}
			}
			return live == 1
		})
	}
	write(t, c, 0, pattern('2'))
	flush(t, c)
	want := contentSum(t, c)
	b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
	noSplit(t, a, b)
}

func isRegular(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular()
}
