package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/testutil"
)

// slack is what a command may take beyond its --timeout: two seconds, and what
// starting a program takes on this machine at the moment.
func slack(n *Node) time.Duration {
	n.t.Helper()
	began := time.Now()
	n.Adm("version")
	return 2*time.Second + 4*time.Since(began)
}

// intent is every link that states what is wanted, as n has it.
func intent(n *Node) map[string]string {
	n.t.Helper()
	links, _ := readTree(n.Root())
	out := map[string]string{}
	for path, s := range links {
		if strings.Contains(path, "/actual-") || strings.HasPrefix(path, "actual-") || strings.Contains(path, "/version-") ||
			strings.Contains(path, "/replay-") || strings.Contains(path, "/syncstatus-") || strings.Contains(path, "/syncsource-") ||
			strings.Contains(path, "/syncpos-") || strings.Contains(path, "/verifystatus-") {
			continue
		}
		out[path] = s.value
	}
	return out
}

// turnedDown runs a command that cannot be carried out: it must say so in time, and
// leave the orders alone.
func turnedDown(n *Node, timeout time.Duration, args ...string) (stderr string) {
	n.t.Helper()
	before, limit := intent(n), timeout+slack(n)
	began := time.Now()
	out, stderr, code := n.Try(append(args, fmt.Sprintf("--timeout=%g", timeout.Seconds()))...)
	took := time.Since(began)
	if code == 0 {
		n.t.Errorf("%v on %s is done: %s%s", args, n.Name, out, stderr)
	}
	if took > limit {
		n.t.Errorf("%v --timeout=%v on %s took %v", args, timeout, n.Name, took)
	}
	if diff := changed(before, intent(n)); len(diff) > 0 {
		n.t.Errorf("%v on %s was refused (%s), but: %v", args, n.Name, strings.TrimSpace(stderr), diff)
	}
	if !strings.Contains(stderr, "ERROR: ") {
		n.t.Errorf("%v on %s does not say why: %q", args, n.Name, stderr)
	}
	return stderr
}

// TestV25Timeouts: with a peer that does not answer, with a daemon that hangs and
// with none, every command ends when it should, and what is refused is not done half.
func TestV25Timeouts(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	a.CreateResource(a.Disk("disk", mib))
	b.JoinResource(b.Disk("disk", mib))
	a.Adm("create-resource", "r1", a.Disk("other", mib))
	b.WaitFor("knows r1", func() bool {
		return b.Link("resource-r1/primary") == a.Name && b.Link("resource-r1/replay-hosta") != ""
	})
	spare := b.Disk("spare", mib)
	c.Isolate(a)
	waiting := [][]string{{"wait-cluster"}, {"wait-connect", "r0"}, {"update-cluster"}, {"primary", "r0"}, {"invalidate", "r0"},
		{"join-resource", "r1", spare}, {"wait-resource", "r0", "is-sync"}, {"wait-resource", "r0", "is-attach-off"}}
	for _, timeout := range []time.Duration{0, 3 * time.Second} {
		for _, args := range waiting {
			// With the usual window it would count as dead after half a minute, and nobody waits
			// for the dead.
			turnedDown(b, timeout, append(args, "--window=3600")...)
		}
	}
	for _, args := range waiting {
		before, began, limit := intent(b), time.Now(), slack(b)
		if _, errs, code := b.Try(append(args, "--timeout=-1")...); code != 2 || time.Since(began) > limit {
			t.Errorf("%v --timeout=-1: exit code %d after %v: %s", args, code, time.Since(began), errs)
		}
		if diff := changed(before, intent(b)); len(diff) > 0 {
			t.Errorf("%v --timeout=-1 has changed %v", args, diff)
		}
	}
	// What needs no peer is done, however unreachable that is.
	for _, args := range [][]string{{"pause-replay", "r0"}, {"resume-replay", "r0"}, {"detach", "r0"}, {"attach", "r0"}, {"down", "r0"}, {"up", "r0"},
		{"wait-umount", "r0"}, {"cron"}, {"view", "all"}} {
		if _, errs, code := b.Try(append(args, "--timeout=20")...); code != 0 {
			t.Errorf("%v while the peer is silent: exit code %d, %s", args, code, errs)
		}
	}
	c.Heal()
	b.WaitFor("hears of "+a.Name+" again", func() bool {
		_, errs, code := b.Try("wait-cluster")
		return code == 0 && !strings.Contains(errs, "does not answer")
	})

	b.Freeze()
	for _, args := range [][]string{{"wait-cluster"}, {"primary", "r0"}, {"invalidate", "r0"}, {"wait-resource", "r0", "is-sync"}} {
		turnedDown(b, 3*time.Second, args...)
	}
	b.Thaw()
	b.WaitFor("goes on", func() bool { _, _, code := b.Try("wait-cluster"); return code == 0 })
	b.Kill()
	// Its last sign of life is taken for one for a moment.
	testutil.WaitFor(t, waitLimit, "marsd is known to be gone", func() bool {
		_, errs, _ := b.Try("wait-cluster", "--timeout=0")
		return strings.Contains(errs, "marsd is not running")
	})
	for _, args := range [][]string{{"wait-cluster"}, {"primary", "r0"}, {"invalidate", "r0"}, {"join-resource", "r1", spare}, {"wait-resource", "r0", "is-sync"}} {
		if errs := turnedDown(b, 5*time.Second, args...); !strings.Contains(errs, "marsd") {
			t.Errorf("%v without marsd says %q", args, errs)
		}
	}
	// A switch is a wish for the next start; nobody shall take it for done.
	if _, errs, code := b.Try("down", "r0"); code != 0 || !strings.Contains(errs, "not running") {
		t.Errorf("down without marsd: exit code %d, %s", code, errs)
	}
	if _, errs, code := b.Try("up", "r0"); code == 0 || !strings.Contains(errs, "not running") || b.Res("todo-hostb/attach") != "1" {
		t.Errorf("up without marsd: exit code %d, %s, attach is %s", code, errs, b.Res("todo-hostb/attach"))
	}
	b.Start()
	b.Primary()
}

// TestV25Twice: a command that is given twice does no more than one that is given
// once.
func TestV25Twice(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	a.CreateResource(a.Disk("disk", mib))
	diskB := b.Disk("disk", mib)
	b.JoinResource(diskB)
	for _, k := range []struct {
		n       *Node
		args    string
		refused bool // the second time
	}{
		{b, "pause-fetch r0", false}, {b, "pause-replay r0", false}, {b, "pause-sync r0", false}, {b, "detach r0", false}, {b, "attach r0", false},
		{b, "resume-sync-global r0", false}, {b, "down r0", false}, {b, "up r0", false}, {b, "set-emergency-limit r0 1", false},
		{b, "set-connect-pref-list r0 hosta", false}, {b, "set-global-sync-limit-value 2", false}, {b, "set-global-enabled-log-compressions COMPRESS_LZ4", false},
		{a, "create-cluster", true}, {b, "join-cluster hosta " + a.Addr, true}, {a, "create-resource r0 " + a.Path("disk"), true},
		{a, "create-resource r1 " + a.Disk("more", mib), true}, {b, "wait-cluster", false}, {b, "join-resource r0 " + diskB, true},
		{b, "activate-guest r1", false}, {b, "deactivate-guest r1", true},
		{a, "log-rotate r0", false}, {a, "log-delete-all r0", false}, {a, "log-purge-all r0", false}, {a, "cron", false}, {a, "err-purge-all r0", false},
		{b, "primary r0", false}, {a, "primary r0", false}, {b, "invalidate r0", false}, {b, "wait-resource r0 is-sync-off", false},
		{b, "down r0", false}, {b, "leave-resource r0", true}, {a, "secondary r0", false}, {a, "down r0", false}, {a, "leave-resource r0", true},
		{a, "delete-resource r0", true},
	} {
		args := strings.Fields(k.args)
		if _, errs, code := k.n.Try(args...); code != 0 && args[0] != "create-cluster" && args[0] != "join-cluster" && k.args != "create-resource r0 "+a.Path("disk") && k.args != "join-resource r0 "+diskB {
			t.Fatalf("%s on %s: exit code %d, %s", k.args, k.n.Name, code, errs)
		}
		if args[0] == "invalidate" {
			k.n.WaitView("is-consistent", "1")
		}
		once := intent(k.n)
		out, errs, code := k.n.Try(args...)
		if (code != 0) != k.refused {
			t.Errorf("%s on %s, the second time: exit code %d, %s%s", k.args, k.n.Name, code, out, errs)
		}
		twice := intent(k.n)
		diff := changed(once, twice)
		diff = slices.DeleteFunc(diff, func(s string) bool { return strings.Contains(s, "local-") })
		if len(diff) > 0 {
			t.Errorf("%s on %s, the second time: %v", k.args, k.n.Name, diff)
		}
		if args[0] == "invalidate" {
			k.n.WaitView("is-consistent", "1")
		}
	}
}

// both runs two commands at the same time and returns their exit codes.
func both(n1 *Node, args1 []string, n2 *Node, args2 []string) (code1, code2 int, said string) {
	n1.t.Helper()
	var wg sync.WaitGroup
	var errs1, errs2 string
	wg.Go(func() { _, errs1, code1 = n1.Try(args1...) })
	wg.Go(func() { _, errs2, code2 = n2.Try(args2...) })
	wg.Wait()
	return code1, code2, errs1 + errs2
}

// TestV25TwoAtOnce: two administrators give contrary orders at the same time. One
// of the orders counts, wholly.
func TestV25TwoAtOnce(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	a.CreateResource(a.Disk("disk", mib))
	b.JoinResource(b.Disk("disk", mib))
	repeat(t, 4, func(i int) {
		small, big := a.Disk(fmt.Sprintf("small%d", i), mib), a.Disk(fmt.Sprintf("big%d", i), 2*mib)
		res := fmt.Sprintf("n%d", i)
		c1, c2, said := both(a, []string{"create-resource", res, small}, a, []string{"create-resource", res, big})
		if (c1 == 0) == (c2 == 0) {
			t.Errorf("two resources of one name: exit codes %d and %d, %s", c1, c2, said)
		}
		want := map[string]string{small: fmt.Sprint(mib), big: fmt.Sprint(2 * mib)}
		if size, disk := a.Link("resource-"+res+"/size"), a.Link("resource-"+res+"/data-hosta"); want[disk] != size || (disk == small) != (c1 == 0) {
			t.Errorf("two resources of one name (exit codes %d and %d): size %s on %s", c1, c2, size, disk)
		}
		a.Adm("wait-resource", res, "is-device")

		both(b, []string{"pause-replay", "r0"}, b, []string{"resume-replay", "r0"})
		b.WaitFor("the switch counts", func() bool { return b.Res("todo-hostb/allow-replay") == b.Res("actual-hostb/is-replaying") })
		b.Adm("resume-replay", "r0")
		both(b, []string{"down", "r0", "--timeout=5"}, b, []string{"up", "r0", "--timeout=5"})
		b.Adm("up", "r0")

		writeAt(t, a, 0, byte(i+1))
		both(a, []string{"log-rotate", "r0"}, a, []string{"log-rotate", "r0"})
		both(a, []string{"cron"}, b, []string{"cron"})
		contiguous(t, a)
		a.Adm("wait-umount", "r0")
		c1, c2, said = both(a, []string{"primary", "r0", "--timeout=30"}, b, []string{"primary", "r0", "--timeout=30"})
		if c1 != 0 && c2 != 0 {
			t.Errorf("nobody has become primary: %s", said)
		}
		for _, n := range c.Nodes {
			n.WaitFor("there is one primary, the designated one", func() bool {
				p := n.View("get-primary", "r0")
				return (p == a.Name || p == b.Name) && n.View("nr-primary", "r0") == "1" && n.Res("actual-"+p+"/is-primary") == "1"
			})
			if n.View("is-split-brain", "r0") != "0" {
				t.Errorf("%s sees a split brain", n.Name)
			}
		}
		a.Primary()
	})
}

// contiguous: the numbers of the logs of r0 have no holes.
func contiguous(t testing.TB, n *Node) {
	t.Helper()
	last := 0
	for _, p := range livePaths(n, "resource-r0") {
		var seq int
		if _, err := fmt.Sscanf(filepath.Base(p), "log-%d-", &seq); err != nil {
			continue
		}
		if last != 0 && seq != last+1 {
			t.Errorf("%s: log %d follows log %d", n.Name, seq, last)
		}
		last = seq
	}
	if last == 0 {
		t.Errorf("%s has no log", n.Name)
	}
}

// TestV25PartialFailure: of several resources those that can be done are done, the
// exit code says that not all could, and the output which and why. Of several parts of `up`
// likewise.
func TestV25PartialFailure(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	disks := map[string]string{}
	for _, res := range []string{"r0", "r1", "r2"} {
		a.Adm("create-resource", res, a.Disk("disk-"+res, mib))
		disks[res] = b.Disk("disk-"+res, mib)
		b.Adm("join-resource", res, disks[res])
	}
	for res := range disks {
		b.WaitFor(res+" is consistent", func() bool { return b.View("is-consistent", res) == "1" })
	}
	for _, how := range [][]string{{}, {"--parallel"}, {"--parallel=1"}} {
		b.Adm(append([]string{"down", "all"}, how...)...)
		if err := os.Rename(disks["r1"], disks["r1"]+".away"); err != nil {
			t.Fatal(err)
		}
		out, errs, code := b.Try(append([]string{"up", "all", "--timeout=4"}, how...)...)
		if code == 0 || !strings.Contains(errs, "up r1 on hostb") || strings.Contains(errs, "up r0") || strings.Contains(errs, "up r2") {
			t.Errorf("up all %v without the disk of r1: exit code %d, %s%s", how, code, out, errs)
		}
		// Each of them has been told everything, and the others have done it.
		for res, s := range macros(b, "is-attach", "todo-attach", "todo-fetch", "todo-replay", "todo-sync") {
			if want := digit(res != "r1") + " 1 1 1 1"; s != want {
				t.Errorf("up all %v: %s is %q, want %q", how, res, s, want)
			}
		}
		if err := os.Rename(disks["r1"]+".away", disks["r1"]); err != nil {
			t.Fatal(err)
		}
		b.Adm(append([]string{"up", "all"}, how...)...)
	}

	// One of three devices is in use: the others go.
	busy := a.Client() // of r0
	out, errs, code := b.Try("primary", "all", "--timeout=5")
	if code == 0 || !strings.Contains(errs, "primary r0") || !strings.Contains(errs, "in use") || strings.Contains(errs, "ERROR: primary r1") {
		t.Errorf("primary all with one device open: exit code %d, %s%s", code, out, errs)
	}
	want := map[string]string{"r0": a.Name, "r1": b.Name, "r2": b.Name}
	if diff := changed(want, macros(b, "get-primary")); len(diff) > 0 {
		t.Errorf("primary all with one device open: %v", diff)
	}
	busy.Close()

	// Without a primary nothing can be synced: everything else is switched on.
	b.Adm("down", "r0")
	b.Adm("set-link", "0", b.Root()+"/resource-r0/syncstatus-hostb", "--force")
	a.Adm("wait-umount", "r0")
	a.Adm("secondary", "r0")
	out, errs, code = b.Try("up", "r0", "--timeout=20")
	if got := macros(b, "is-attach", "todo-attach", "todo-fetch", "todo-replay", "todo-sync")["r0"]; code == 0 || !strings.Contains(errs, "no designated primary") || got != "1 1 1 1 0" {
		t.Errorf("up without a primary: exit code %d, switches %s, %s%s", code, got, out, errs)
	}
	a.Primary()
	b.Adm("up", "r0")
	b.WaitView("is-consistent", "1")
}
