package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// processes are the three that work on a secondary, as they are ordered to.
type processes struct{ fetch, replay, sync bool }

// progress is where they stand.
type progress struct {
	fetch, replay, sync          int64
	isFetch, isReplay, isSync    string
	todoFetch, todoReplay, flags string
	todoSync                     string
}

func progressOf(n *Node) progress {
	n.t.Helper()
	f := strings.Fields(macros(n, "fetch-pos", "replay-pos", "sync-pos", "is-fetch", "is-replay", "is-sync",
		"todo-fetch", "todo-replay", "todo-sync", "flags")["r0"])
	if len(f) != 10 {
		n.t.Fatalf("%s: macros of r0 are %q", n.Name, f)
	}
	p := progress{isFetch: f[3], isReplay: f[4], isSync: f[5], todoFetch: f[6], todoReplay: f[7], todoSync: f[8], flags: f[9]}
	for i, to := range []*int64{&p.fetch, &p.replay, &p.sync} {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			n.t.Fatalf("%s: macros of r0 are %q", n.Name, f)
		}
		*to = v
	}
	return p
}

// judge compares two looks at a secondary whose primary has written in between:
// what is ordered has moved, and nothing else has. While the sync is not done.
func (on processes) judge(a, b progress) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for _, p := range []struct {
		name           string
		on, must       bool
		before, now    int64
		todo, is, flag string
	}{
		{"fetch", on.fetch, on.fetch, a.fetch, b.fetch, b.todoFetch, b.isFetch, b.flags[4:5]},
		{"replay", on.replay, on.replay && on.fetch, a.replay, b.replay, b.todoReplay, b.isReplay, b.flags[5:6]},
		{"sync", on.sync, on.sync, a.sync, b.sync, b.todoSync, b.isSync, b.flags[3:4]},
	} {
		if p.must && p.now <= p.before {
			say("%s is on and stands at %d", p.name, p.now)
		}
		if !p.on && p.now != p.before {
			say("%s is off and has moved from %d to %d", p.name, p.before, p.now)
		}
		if p.todo != digit(p.on) || p.is != digit(p.on) {
			say("todo-%s is %s, is-%s is %s, but it is ordered to be %s", p.name, p.todo, p.name, p.is, digit(p.on))
		}
		allowed := map[string]string{"fetch": "fF", "replay": "rR", "sync": "s"}[p.name]
		if !p.on {
			allowed = map[string]string{"fetch": "-", "replay": "-R", "sync": "-"}[p.name] // R: nothing left
		}
		if !strings.Contains(allowed, p.flag) {
			say("the flags are %s, letter %q of %s should be one of %s", b.flags, p.flag, p.name, allowed)
		}
	}
	return wrong
}

// newestLog is the size of the newest log that n has.
func newestLog(n *Node) (name string, size int64) {
	n.t.Helper()
	logs, _ := filepath.Glob(filepath.Join(n.Root(), "resource-r0", "log-*"))
	slices.Sort(logs)
	for i := len(logs) - 1; i >= 0; i-- {
		if st, err := os.Lstat(logs[i]); err == nil && st.Mode().IsRegular() {
			return filepath.Base(logs[i]), st.Size()
		}
	}
	n.t.Fatalf("%s has no log", n.Name)
	return "", 0
}

// TestV22Independence walks all combinations of the four switch commands in an
// order in which one changes at a time. A disconnect is a pause of fetch under another name, so
// of those two the last word counts.
func TestV22Independence(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 112*mib)
	startOverSlowly(c, w, b)
	w.gate.rate = 400e3
	w.start(a)

	off := []string{"pause-fetch", "pause-replay", "pause-sync", "disconnect"}
	on := []string{"resume-fetch", "resume-replay", "resume-sync", "connect"}
	now := processes{true, true, true}
	synced, walked := 0, 0
	var slowest time.Duration
	gray := func(i int) int { i &= 15; return i ^ i>>1 }
	rounds := repeat(t, 1, func(round int) {
		for i := 1; i <= 16; i++ {
			bit := 0
			for gray(i)^gray(i-1) != 1<<bit {
				bit++
			}
			verb, turned := on[bit], true
			if gray(i)>>bit&1 == 1 {
				verb, turned = off[bit], false
			}
			*[]*bool{&now.fetch, &now.replay, &now.sync, &now.fetch}[bit] = turned
			b.Adm(verb, "r0")
			if i%5 == 0 {
				a.Adm("log-rotate", "r0")
			}
			began := time.Now()
			what := fmt.Sprintf("%d.%d after %s, ordered %+v", round, i, verb, now)
			running := syncing(b)
			b.WaitFor(what+": the states follow", func() bool {
				is := func(name string) string { return b.Res("actual-hostb/is-" + name) }
				return is("copying") == digit(now.fetch) && is("replaying") == digit(now.replay) && (is("syncing") == digit(now.sync) || !syncing(b))
			})
			slowest = max(slowest, time.Since(began))
			walked++
			if running && watch(w, a, b, what, now) {
				synced++
			}
		}
	})
	// Without the race detector on a busy machine it is a second.
	if slowest > 10*time.Second {
		t.Errorf("a process needed %v to follow its switch", slowest)
	}
	t.Logf("%d states in %d rounds, in %d of them a sync was under way; slowest reaction %v", walked, rounds, synced, slowest.Round(time.Millisecond))
	if synced < 12 {
		t.Errorf("the sync was over after %d states: the others prove nothing about it", synced)
	}
	c.Rate(b, "")
	b.Adm("up", "r0")
	b.WaitView("is-consistent", "1")
	w.finish()
	w.equal(a)
}

// startOverSlowly gives b a disk of junk and lets it begin its full sync over a
// line so slow that it lasts.
func startOverSlowly(c *Cluster, w *world, b *Node) {
	c.t.Helper()
	b.Adm("down", "r0")
	junk := make([]byte, w.size)
	for i := range junk {
		junk[i] = byte(i>>9) | 1
	}
	if err := os.WriteFile(w.disks[b], junk, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.Rate(b, "10mbit")
	b.Adm("invalidate", "r0")
}

// syncing: the full sync is not over.
func syncing(n *Node) bool { return n.Res("syncstatus-"+n.Name) != n.Res("size") }

// watch looks on while the primary writes. It reports whether the sync was under
// way all the time.
func watch(w *world, a, b *Node, what string, now processes) bool {
	t := w.t
	t.Helper()
	before := progressOf(b)
	heard, written := b.Link("actual-hosta/time"), highestVersion(b, a.Name)
	w.more(a, 8)
	b.WaitFor(what+": news of the primary arrive", func() bool {
		return b.Link("actual-hosta/time") != heard && highestVersion(b, a.Name) != written
	})
	var after progress
	var wrong []string
	end := time.Now().Add(waitLimit)
	b.WaitFor(what+": what is on moves", func() bool {
		after = progressOf(b)
		wrong = now.judge(before, after)
		stands := slices.ContainsFunc(wrong, func(s string) bool { return strings.Contains(s, "is on and stands") })
		return !stands || !syncing(b) || time.Now().After(end)
	})
	if !syncing(b) {
		return false
	}
	if len(wrong) > 0 {
		t.Errorf("%s: %s", what, strings.Join(wrong, "; "))
	}
	if now.replay && !now.fetch {
		replayedAll(t, b, what)
	}
	// Negative control: the same looks under any other order are wrong.
	for _, other := range []processes{{!now.fetch, now.replay, now.sync}, {now.fetch, !now.replay, now.sync}, {now.fetch, now.replay, !now.sync}} {
		if len(other.judge(before, after)) == 0 {
			t.Errorf("%s: the same would do for %+v", what, other)
		}
	}
	still := after
	still.fetch, still.replay, still.sync = before.fetch, before.replay, before.sync
	if moves := now.fetch || now.sync; moves && len(now.judge(before, still)) == 0 {
		t.Errorf("%s: standing still would do", what)
	}
	return true
}

// replayedAll: replay stands at the end of what is here. A record of which only the
// first part has been fetched is the rest, and reported as such.
func replayedAll(t testing.TB, n *Node, what string) {
	t.Helper()
	var link, rest, name string
	var size int64
	defer func() {
		if t.Failed() {
			t.Logf("%s: replay link %s, replay-rest %s, newest log %s of %d bytes", what, link, rest, name, size)
		}
	}()
	n.WaitFor(what+": replay stands at the end of what is here", func() bool {
		name, size = newestLog(n)
		link, rest = n.Res("replay-"+n.Name), n.View("replay-rest", "r0")
		var at, dirty, left int64
		f := strings.Split(link, ",")
		if len(f) != 3 {
			return false
		}
		if _, err := fmt.Sscan(f[1]+" "+f[2]+" "+rest, &at, &dirty, &left); err != nil {
			return false
		}
		const record = 64 << 10 // no record is that long
		return dirty == 0 && left < record && (f[0] == name && at+left == size || size == 0)
	})
}
