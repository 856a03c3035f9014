package macro

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"mars/internal/testutil"
)

// The truth about a resource, as somebody knows it who sees all disks and logs at
// once. Bytes of log are numbered through from the first one ever written.
type world struct {
	now     int64 // seconds
	size    int64 // of the resource
	primary string
	logs    []int64 // sizes of all logs, from number 1 on
	base    int     // number of the oldest log that has not been deleted
	members []*memberWorld
}

type memberWorld struct {
	name                     string
	attach, sync, fetch, rep bool  // switches
	isAttached, isRep        bool  // states
	replayed, fetched        int64 // of all bytes of log
	dirty                    int64 // behind replayed, the disk may hold any mixture
	synced                   int64
	syncEnd                  int64 // replay has to pass this byte of the log
	heard, moved             int64 // seconds: last news, last progress of replay
	rates                    map[string]int64
	diskError                int64
	emergency                bool
}

// random makes up a state that a cluster could be in.
func random(rng *rand.Rand) *world {
	w := &world{now: 100000, size: 4096 * (1 + rng.Int64N(1<<20)), base: 1}
	for range 1 + rng.IntN(5) {
		w.logs = append(w.logs, rng.Int64N(1<<30))
	}
	w.base = 1 + rng.IntN(len(w.logs))
	hosts := []string{"a", "b", "c", "b-c"}[:1+rng.IntN(4)]
	w.primary = hosts[rng.IntN(len(hosts))]
	coin := func(p float64) bool { return rng.Float64() < p }
	first, end := w.start(w.base), w.start(len(w.logs)+1)
	for _, h := range hosts {
		m := &memberWorld{name: h, attach: coin(.9), sync: coin(.8), fetch: coin(.8), rep: coin(.8), synced: w.size,
			heard: w.now - rng.Int64N(120), moved: w.now - 1 - rng.Int64N(9999), rates: map[string]int64{}, emergency: coin(.1)}
		m.isAttached = m.attach != coin(.1)
		m.isRep = m.isAttached && h != w.primary && m.rep
		m.replayed = first + rng.Int64N(end-first+1)
		if m.fetched = m.replayed; coin(.7) {
			m.fetched += rng.Int64N(end - m.replayed + 1)
		}
		if h == w.primary {
			m.fetched = end
		}
		if coin(.3) && m.fetched > m.replayed {
			// The dirty zone does not reach into the next log.
			n := w.numberAt(m.replayed)
			m.dirty = min(m.fetched, w.start(n+1)) - m.replayed
		}
		if coin(.2) && h != w.primary {
			m.synced = rng.Int64N(w.size)
		}
		if coin(.3) {
			m.syncEnd = first + rng.Int64N(end-first+1)
		}
		for _, r := range []string{"if", "sync", "file", "replay"} {
			if m.rates[r] = 0; coin(.6) {
				m.rates[r] = rng.Int64N(1 << 20)
			}
		}
		if coin(.1) {
			m.diskError = -5
		}
		w.members = append(w.members, m)
	}
	return w
}

// start is the number of the first byte of log n.
func (w *world) start(n int) (sum int64) {
	for _, s := range w.logs[:n-1] {
		sum += s
	}
	return sum
}

// numberAt is the log that holds a byte; the end of one log is still in it.
func (w *world) numberAt(b int64) int {
	for n := w.base; ; n++ {
		if n == len(w.logs) || b <= w.start(n+1) {
			return n
		}
	}
}

// tree writes what marsd of all hosts would publish.
func (w *world) tree(t testing.TB) memTree {
	var b strings.Builder
	link := func(path, format string, args ...any) {
		fmt.Fprintf(&b, "%s -> %s\n", path, fmt.Sprintf(format, args...))
	}
	link("uuid", "a_1.000000000")
	link("resource-r/size", "%d", w.size)
	link("resource-r/primary", "%s", w.primary)
	digest := strings.Repeat("1", 32)
	for _, m := range w.members {
		h, dir := m.name, "resource-r/actual-"+m.name+"/"
		link("ips/ip-"+h, "10.0.0.1")
		link("actual-"+h+"/time", "%d.000000000", m.heard)
		link("resource-r/data-"+h, "/disk")
		link("resource-r/device-"+h, "r")
		link("resource-r/actsize-"+h, "%d", w.size)
		link("resource-r/syncstatus-"+h, "%d", m.synced)
		at := w.numberAt(m.replayed)
		link("resource-r/replay-"+h, "log-%09d-%s,%d,%d @%d", at, w.primary, m.replayed-w.start(at), m.dirty, m.moved)
		if m.syncEnd > 0 {
			n := w.numberAt(m.syncEnd)
			// Split into position and length at random places means the same.
			whole := m.syncEnd - w.start(n)
			link("resource-r/syncpos-"+h, "log-%09d-%s,%d,%d", n, w.primary, whole/2, whole-whole/2)
		}
		for n := w.base; n <= len(w.logs); n++ {
			have := min(m.fetched, w.start(n+1)) - w.start(n)
			if have < 0 || n > w.numberAt(m.fetched) {
				break
			}
			prev := ""
			if n > 1 {
				prev = fmt.Sprintf("%s,log-%09d-%s,%d", digest, n-1, w.primary, w.logs[n-2])
			}
			link(fmt.Sprintf("resource-r/version-%09d-%s", n, h), "%s,log-%09d-%s,%d:%s", digest, n, w.primary, have, prev)
		}
		for _, s := range []struct {
			name string
			on   bool
		}{{"attach", m.attach}, {"sync", m.sync}, {"connect", m.fetch}, {"allow-replay", m.rep}} {
			link("resource-r/todo-"+h+"/"+s.name, "%s", flag(s.on))
		}
		link(dir+"is-attached", "%s", flag(m.isAttached))
		link(dir+"is-replaying", "%s", flag(m.isRep))
		link(dir+"is-primary", "%s", flag(h == w.primary && m.isAttached))
		link(dir+"if-on", "%s", flag(h == w.primary && m.isAttached))
		link(dir+"has-emergency", "%s", flag(m.emergency))
		link(dir+"disk-error", "%d", m.diskError)
		for _, r := range []string{"if", "sync", "file", "replay"} {
			link(dir+"amount-"+r+"_rate", "%d", m.rates[r])
		}
	}
	return parseTree(t, b.String())
}

// files are the logs that a host has.
func (w *world) files(m *memberWorld) []string {
	var out []string
	for n := w.base; n <= w.numberAt(m.fetched); n++ {
		out = append(out, fmt.Sprintf("log-%09d-%s=%d", n, w.primary, min(m.fetched, w.start(n+1))-w.start(n)))
	}
	return out
}

// isPrefix is P4: the disk is the base image plus a prefix of the log now, or marsd
// is seen to be on its way out of the dirty zone.
func (w *world) isPrefix(m *memberWorld) bool {
	if m.synced < w.size || m.replayed < m.syncEnd {
		return false
	}
	return m.dirty == 0 || m.isAttached && m.isRep && w.now-m.heard < 60
}

// expected are the values of primitives, from the truth alone.
func (w *world) expected(m *memberWorld, local bool) map[string]string {
	first, end := w.start(w.base), w.start(len(w.logs)+1)
	itoa := func(n int64) string { return strconv.FormatInt(n, 10) }
	isPrimary := m.name == w.primary && m.isAttached
	alive := w.now-m.heard < 60
	fetchRest, replayRest := end-m.fetched, m.fetched-m.replayed
	rate := func(kind string) int64 {
		if !alive {
			return 0 // what it was doing when it was last heard says nothing
		}
		return m.rates[kind]
	}
	left := func(rest, rate int64) string {
		switch {
		case rest == 0:
			return "0"
		case rate == 0:
			return "-1"
		}
		return ftoa(float64(rest) / float64(rate*1024))
	}
	x := map[string]string{
		"is-primary": flag(isPrimary), "is-secondary": flag(!isPrimary), "is-attach": flag(m.isAttached), "is-replay": flag(m.isRep),
		"todo-attach": flag(m.attach), "todo-sync": flag(m.sync), "todo-fetch": flag(m.fetch), "todo-replay": flag(m.rep),
		"todo-primary": truthText(m.name == w.primary), "is-emergency": flag(m.emergency), "is-split-brain": "0",
		"get-primary": w.primary, "is-consistent": flag(w.isPrefix(m)), "count-resource-members": strconv.Itoa(len(w.members)),
		"alive-age": itoa(w.now - m.heard), "is-alive": flag(alive), "replay-age": itoa(w.now - m.moved), "disk-error": itoa(m.diskError),
		"sync-size": itoa(w.size), "sync-pos": itoa(m.synced), "sync-rest": itoa(w.size - m.synced), "sync-reached": truthText(m.synced == w.size),
		"replay-pos": itoa(m.replayed - first), "replay-rest": itoa(replayRest), "fetch-pos": itoa(m.fetched - first), "fetch-size": itoa(end - first),
		"fetch-rest": itoa(fetchRest), "work-rest": itoa(end - m.replayed), "work-size": itoa(end - first), "writeback-rest": itoa(end - m.replayed),
		"summary-vector": itoa(m.replayed-first) + ":" + itoa(m.fetched-first) + ":" + itoa(end-first),
		"device-rate":    itoa(rate("if") * 1024), "sync-rate": itoa(rate("sync") * 1024), "fetch-rate": itoa(rate("file") * 1024),
		"replay-rate": itoa(rate("replay") * 1024), "work-rate": itoa(max(rate("file"), rate("replay")) * 1024),
		"sync-remain": left(w.size-m.synced, rate("sync")), "fetch-remain": left(fetchRest, rate("file")), "replay-remain": left(replayRest, rate("replay")),
		"replay-lognr": strconv.Itoa(w.numberAt(m.replayed)), "fetch-lognr": strconv.Itoa(max(w.numberAt(m.replayed), w.numberAt(m.fetched))),
		"replay-basenr": strconv.Itoa(w.base), "is-orphan": "0",
	}
	if isPrimary {
		x["is-consistent"] = flag(m.synced == w.size && m.replayed >= m.syncEnd && m.dirty == 0)
	}
	if local {
		sum, free := int64(0), int64(0)
		for n := w.base; n <= w.numberAt(m.fetched); n++ {
			size := min(m.fetched, w.start(n+1)) - w.start(n)
			sum += size
			needed := false
			for _, o := range w.members {
				needed = needed || w.numberAt(o.replayed) <= n
			}
			if !needed {
				free += size
			}
		}
		x["occupied-size"], x["deletable-size"] = itoa(sum), itoa(free)
	}
	switch {
	case m.name == w.primary && isPrimary:
		x["role"] = "Primary"
	case m.name == w.primary:
		x["role"] = "NotYetPrimary"
	default:
		x["role"] = "Secondary"
	}
	x["flags"] = w.flags(m, isPrimary, w.isPrefixStrict(m, isPrimary), fetchRest, replayRest)
	return x
}

func (w *world) isPrefixStrict(m *memberWorld, isPrimary bool) bool {
	if isPrimary {
		return w.isPrefix(m) && m.dirty == 0
	}
	return w.isPrefix(m)
}

func (w *world) flags(m *memberWorld, device, consistent bool, fetchRest, replayRest int64) string {
	pick := func(letter string, reached, wanted bool) string {
		switch {
		case reached:
			return strings.ToUpper(letter)
		case wanted:
			return letter
		}
		return "-"
	}
	return pick("d", device, true) + pick("c", consistent, true) + pick("a", m.attach && m.isAttached, m.attach || m.isAttached) +
		pick("s", m.synced == w.size, m.sync) + pick("f", fetchRest == 0, m.fetch) + pick("r", replayRest == 0, m.rep)
}

func truthText(b bool) string {
	if b {
		return "1"
	}
	return ""
}

// differences samples all primitives of the truth on every host, seen from each.
func (w *world) differences(t testing.TB, tree memTree) []string {
	var out []string
	for _, node := range w.members {
		for _, m := range w.members {
			c := testContext(tree, m.name, w.files(node)...)
			c.Node, c.Now = node.name, 100000e9
			c.Real = c.Now.Time()
			for name, want := range w.expected(m, node == m) {
				args := []string{m.name}
				if name == "summary-vector" || name == "count-resource-members" || name == "is-split-brain" || name == "get-primary" {
					args = nil
				}
				if got, err := c.Eval(name, args...); err != nil || got != want {
					out = append(out, fmt.Sprintf("on %s: %s of %s is %q, the truth is %q (%v)", node.name, name, m.name, got, want, err))
				}
			}
		}
	}
	return out
}

// TestEveryNumberIsTrue compares primitives with a truth that is computed without
// them, for many states of a cluster.
func TestEveryNumberIsTrue(t *testing.T) {
	rng := rand.New(rand.NewPCG(testutil.Seed(t), 2))
	for i := range 30 {
		w := random(rng)
		if list := w.differences(t, w.tree(t)); len(list) > 0 {
			t.Fatalf("state %d: %d differences:\n%s\n%+v", i, len(list), strings.Join(list[:min(10, len(list))], "\n"), w)
		}
	}
}

// TestSamplerSees is the negative control: links that lie are noticed.
func TestSamplerSees(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := random(rng)
	for len(w.members) < 2 || w.members[0].name == w.primary || w.members[0].rates["file"] == 0 || w.now-w.members[0].heard >= 60 || w.members[0].dirty == 0 || w.members[0].synced < w.size {
		w = random(rng)
	}
	h := w.members[0].name
	for path, lie := range map[string]string{
		"resource-r/replay-" + h:                                          "log-000000001-" + w.primary + ",1,0",
		"resource-r/syncstatus-" + h:                                      "1",
		"resource-r/actual-" + h + "/amount-file_rate":                    "0",
		"resource-r/actual-" + h + "/is-attached":                         flag(!w.members[0].isAttached),
		"actual-" + h + "/time":                                           "5.000000000",
		"resource-r/primary":                                              h,
		"resource-r/todo-" + h + "/connect":                               flag(!w.members[0].fetch),
		fmt.Sprintf("resource-r/version-%09d-%s", len(w.logs), w.primary): ".deleted",
	} {
		tree := w.tree(t)
		e := tree[path]
		e.Path, e.Value = path, lie
		tree[path] = e
		if list := w.differences(t, tree); len(list) == 0 {
			t.Errorf("nobody notices that %s is %s", path, lie)
		}
	}
}
