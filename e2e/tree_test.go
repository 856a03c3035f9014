package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sighting is a link as it was seen: its value and its Lamport stamp.
type sighting struct {
	stamp int64
	value string
}

const tombstone = ".deleted"

// readTree reads all replicated links below root. A link that changes while it is
// read is read again.
func readTree(root string) (links map[string]sighting, temps []string) {
	links = map[string]sighting{}
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		name := e.Name()
		if e.IsDir() {
			if strings.HasPrefix(name, "local-") || strings.HasPrefix(name, "cache-") {
				return fs.SkipDir
			}
			return nil
		}
		rel, _ := filepath.Rel(root, path)
		if strings.HasPrefix(name, ".tmp.") {
			temps = append(temps, rel)
			return nil
		}
		if s, ok := readLink(path); ok {
			links[rel] = s
		}
		return nil
	})
	return links, temps
}

func readLink(path string) (sighting, bool) {
	for range 100 {
		before, err := os.Lstat(path)
		if err != nil || before.Mode()&fs.ModeSymlink == 0 {
			return sighting{}, false
		}
		value, err := os.Readlink(path)
		if err != nil {
			continue
		}
		after, err := os.Lstat(path)
		if err == nil && os.SameFile(before, after) && before.ModTime().Equal(after.ModTime()) {
			return sighting{before.ModTime().UnixNano(), value}, true
		}
	}
	return sighting{}, false
}

// treeOracle judges what watchers see of the trees of all nodes (reference 8.8).
type treeOracle struct {
	looking sync.Mutex
	mu      sync.Mutex
	last    map[string]map[string]sighting // by node
	best    map[string]sighting            // the newest that anybody has had
	values  map[string]map[int64]string    // by path and stamp, anywhere
	temps   map[string]time.Time           // temporary names, since when
	changes int
	wrong   []string
}

func newTreeOracle() *treeOracle {
	return &treeOracle{last: map[string]map[string]sighting{}, best: map[string]sighting{}, values: map[string]map[int64]string{},
		temps: map[string]time.Time{}}
}

func (o *treeOracle) say(format string, args ...any) {
	if len(o.wrong) < 20 {
		o.wrong = append(o.wrong, fmt.Sprintf(format, args...))
	}
}

// see takes in one look at one node. missing asks again for a path that this look
// did not have: a directory that changes while it is listed may hide one.
func (o *treeOracle) see(node string, links map[string]sighting, temps []string, missing func(path string) bool, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.last[node]
	if before == nil {
		before = map[string]sighting{}
		o.last[node] = before
	}
	for path, was := range before {
		if _, ok := links[path]; !ok && was.value != tombstone && missing(path) {
			o.say("%s: %s -> %q of %d has vanished without being deleted", node, path, was.value, was.stamp)
			before[path] = sighting{was.stamp, tombstone} // say it once
		}
	}
	for path, s := range links {
		was, ok := before[path]
		if ok && s.stamp < was.stamp {
			o.say("%s: %s goes back from %q of %d to %q of %d", node, path, was.value, was.stamp, s.value, s.stamp)
		}
		if ok && s == was {
			continue
		}
		o.changes++
		before[path] = s
		if o.values[path] == nil {
			o.values[path] = map[int64]string{}
		}
		if v, ok := o.values[path][s.stamp]; ok && v != s.value {
			o.say("%s: %s has stamp %d with %q and with %q", node, path, s.stamp, v, s.value)
		}
		o.values[path][s.stamp] = s.value
		if s.stamp >= o.best[path].stamp {
			o.best[path] = s
		}
	}
	o.seeTemps(node, temps, now)
}

// seeTemps: no temporary name stays for a minute.
func (o *treeOracle) seeTemps(node string, temps []string, now time.Time) {
	there := map[string]bool{}
	for _, path := range temps {
		key := node + ": " + path
		there[key] = true
		if since, ok := o.temps[key]; !ok {
			o.temps[key] = now
		} else if now.Sub(since) > time.Minute {
			o.say("%s is older than a minute", key)
		}
	}
	for key := range o.temps {
		if strings.HasPrefix(key, node+": ") && !there[key] {
			delete(o.temps, key)
		}
	}
}

// forget: the tree of the node has been replaced.
func (o *treeOracle) forget(node string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.last, node)
}

// differs tells how the trees are not one and the same, with the newest value that
// anybody has ever had at each path. Beacons never stand still.
func (o *treeOracle) differs(trees map[string]map[string]sighting) (list []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	paths := map[string]bool{}
	for _, tree := range trees {
		for p := range tree {
			paths[p] = true
		}
	}
	for p := range o.best {
		paths[p] = true
	}
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if name := filepath.Base(p); name == "time" || name == "alive" || name == "rest-space" {
			continue
		}
		want := o.best[p]
		for node, tree := range trees {
			have, ok := tree[p]
			switch {
			case !ok && want.value != tombstone:
				list = append(list, fmt.Sprintf("%s lacks %s -> %q", node, p, want.value))
			case ok && have.stamp < want.stamp, ok && have.stamp == want.stamp && have.value != want.value:
				list = append(list, fmt.Sprintf("%s has %s -> %q of %d, the newest is %q of %d", node, p, have.value, have.stamp, want.value, want.stamp))
			}
		}
	}
	return list
}

// watchers look at the trees of all nodes until the returned function is called.
func (o *treeOracle) watch(c *Cluster) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				o.lookAt(n)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func (o *treeOracle) lookAt(n *Node) map[string]sighting {
	o.looking.Lock() // or an older look comes in after a newer one
	defer o.looking.Unlock()
	links, temps := readTree(n.Root())
	o.see(n.Name, links, temps, func(path string) bool {
		_, err := os.Lstat(filepath.Join(n.Root(), path))
		return errors.Is(err, fs.ErrNotExist)
	}, time.Now())
	return links
}

// converged waits until all nodes have the newest of everything.
func (o *treeOracle) converged(c *Cluster, what string) {
	c.t.Helper()
	began := time.Now()
	var left []string
	defer func() {
		if c.t.Failed() {
			c.t.Logf("%s: %d differences, first %v", what, len(left), left[:min(len(left), 8)])
		}
	}()
	c.Nodes[0].WaitFor(what+": all trees are one", func() bool {
		trees := map[string]map[string]sighting{}
		for _, n := range c.Nodes {
			trees[n.Name] = o.lookAt(n)
		}
		left = o.differs(trees)
		return len(left) == 0
	})
	c.t.Logf("%s: one tree after %v", what, time.Since(began).Round(time.Millisecond))
	for _, n := range c.Nodes {
		for _, m := range c.Nodes {
			heard := n.Link("actual-" + m.Name + "/time")
			n.WaitFor("goes on hearing of "+m.Name, func() bool { return n.Link("actual-"+m.Name+"/time") != heard })
		}
	}
}

// driver gives random orders on random nodes, some of them for the same link on two
// nodes at once.
type driver struct {
	c     *Cluster
	rnd   *rand.Rand
	done  int
	wrong []string // orders that lost against what they could see
}

// order is a random command; link is what it writes at any rate, or empty.
func (d *driver) order() (args []string, link string) {
	res := fmt.Sprintf("r%d", d.rnd.IntN(5))
	host := d.c.Nodes[d.rnd.IntN(3)].Name
	if d.rnd.IntN(3) == 0 {
		n := d.rnd.IntN(10) // percent of space that must be left: no real emergency
		return []string{"set-emergency-limit", res, fmt.Sprint(n), "--host=" + host}, "resource-" + res + "/todo-" + host + "/emergency-limit"
	}
	verbs := []string{"pause-fetch", "resume-fetch", "pause-replay", "resume-replay", "pause-sync", "resume-sync", "disconnect", "connect",
		"pause-fetch-global", "resume-fetch-global", "pause-replay-global", "resume-replay-global", "attach", "detach", "up", "down"}
	switch verb := verbs[d.rnd.IntN(len(verbs))]; d.rnd.IntN(8) {
	case 0:
		return []string{"set-global-sync-limit-value", fmt.Sprint(d.rnd.IntN(9))}, ""
	case 1:
		return []string{"set-global-enabled-log-compressions", []string{"COMPRESS_LZ4", "COMPRESS_ZLIB", ""}[d.rnd.IntN(3)]}, ""
	case 2:
		return []string{[]string{"activate-guest", "deactivate-guest"}[d.rnd.IntN(2)], "r4"}, ""
	case 3:
		return []string{"set-connect-pref-list", res, host}, ""
	default:
		return []string{verb, res, "--host=" + host}, ""
	}
}

// give carries an order out. Whoever gives one has seen what is there, so the order
// must win against it.
func give(ctx context.Context, n *Node, args []string, link string) (complaint string) {
	path := filepath.Join(n.Root(), link)
	before, _ := readLink(path)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "marsadm"), append(args, "--no-wait", "--timeout=2")...)
	cmd.Env = n.env()
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "DATA RACE") || strings.Contains(string(out), "panic:") {
		return fmt.Sprintf("%v on %s: %s", args, n.Name, out)
	}
	if link == "" || err != nil {
		return "" // refusals are legal
	}
	if after, _ := readLink(path); after.stamp <= before.stamp {
		return fmt.Sprintf("%v on %s wrote %q of %d over %q of %d", args, n.Name, after.value, after.stamp, before.value, before.stamp)
	}
	return ""
}

// some gives an order, or two at the same time on two nodes.
func (d *driver) some(ctx context.Context) {
	n := d.c.Nodes[d.rnd.IntN(3)]
	args, link := d.order()
	orders, nodes := [][]string{args}, []*Node{n}
	if d.rnd.IntN(5) == 0 {
		other := slices.Clone(args)
		switch { // the contrary
		case args[0] == "set-emergency-limit":
			other[2] = fmt.Sprint(d.rnd.IntN(10))
		case strings.HasPrefix(args[0], "pause-"):
			other[0] = "resume-" + strings.TrimPrefix(args[0], "pause-")
		case strings.HasPrefix(args[0], "resume-"):
			other[0] = "pause-" + strings.TrimPrefix(args[0], "resume-")
		}
		orders, nodes = append(orders, other), append(nodes, d.c.Nodes[(n.i+1)%3])
	}
	var wg sync.WaitGroup
	said := make([]string, len(orders))
	for i := range orders {
		wg.Go(func() { said[i] = give(ctx, nodes[i], orders[i], link) })
	}
	wg.Wait()
	for _, s := range said {
		if s != "" {
			d.wrong = append(d.wrong, s)
		}
	}
	d.done += len(orders)
}

// oneWay lets nothing of a through to b any more; b still reaches a, which cannot
// answer.
func (c *Cluster) oneWay(a, b *Node) {
	c.t.Helper()
	c.net.ip("-n", c.net.nodes[a.i], "neigh", "replace", b.Addr, "lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0")
}

func (c *Cluster) bothWays(a, b *Node) {
	c.t.Helper()
	c.net.ip("-n", c.net.nodes[a.i], "neigh", "del", b.Addr, "dev", "eth0")
}

// nemesis does one bad thing, and makes up for it when the nodes have had time to
// suffer from it: until the driver has given some more orders.
func nemesis(c *Cluster, rnd *rand.Rand, suffer func()) (did string) {
	i := rnd.IntN(3)
	n, m := c.Nodes[i], c.Nodes[(i+1)%3]
	switch kind := []string{"isolate", "cut", "one-way", "kill", "stop", "freeze"}[rnd.IntN(6)]; kind {
	case "isolate":
		c.Isolate(n)
		suffer()
		c.Heal()
		return "isolate " + n.Name
	case "cut":
		c.Cut(n, m)
		suffer()
		c.Heal()
		return "cut " + n.Name + " from " + m.Name
	case "one-way":
		c.oneWay(n, m)
		suffer()
		c.bothWays(n, m)
		return "nothing from " + n.Name + " to " + m.Name
	case "freeze":
		n.Freeze()
		suffer()
		n.Thaw()
		return "freeze " + n.Name
	default:
		if kind == "kill" {
			n.Kill()
		} else {
			n.Stop()
		}
		suffer()
		n.Start()
		return kind + " " + n.Name
	}
}

// copyTree copies a /mars as a backup would.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	// What marsd removes while it is copied is no matter.
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "No such file") {
			t.Fatalf("cp -a %s: %v: %s", from, err, out)
		}
	}
}

// TestV17TreeConverges: while orders are given everywhere and the network and the
// nodes fail, no tree ever goes back or loses anything, and in the end all are one; a node that
// comes back with an old tree is brought up to date and brings nobody back.
func TestV17TreeConverges(t *testing.T) {
	t.Parallel()
	if soak(t) == 0 {
		skip(t, "three nodes under a nemesis take minutes; make soak has it")
	}
	c := NewCluster(t, 3, WithNetwork(), WithArgs(fastArgs...))
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for i := range 5 {
		res := fmt.Sprintf("r%d", i)
		a.Adm("create-resource", res, a.Disk("disk-"+res, mib))
		for _, n := range []*Node{b, d} {
			if i < 4 || n == b {
				n.Adm("join-resource", res, n.Disk("disk-"+res, mib))
			}
		}
	}
	o := newTreeOracle()
	end := sync.OnceFunc(o.watch(c))
	t.Cleanup(end)
	o.converged(c, "before")

	dr := &driver{c: c, rnd: seeded(t)}
	rnd := rand.New(rand.NewPCG(dr.rnd.Uint64(), 2))
	batch := func(orders int) { dr.runFor(t, orders) }
	old := b.Path("old-mars")
	copied := time.Now()
	copyTree(t, b.Root(), old)
	kinds := map[string]bool{}
	repeat(t, 6, func(i int) {
		did := nemesis(c, rnd, func() { batch(8) })
		kinds[strings.Fields(did)[0]] = true
		t.Logf("%d: %s", i, did)
	})
	o.converged(c, fmt.Sprintf("after %d orders, %v", dr.done, slices.Sorted(maps.Keys(kinds))))

	b.Kill()
	batch(4)
	end() // the tree is exchanged behind the watchers' backs
	if err := errors.Join(os.Rename(b.Root(), b.Path("newest-mars")), os.Rename(old, b.Root())); err != nil {
		t.Fatal(err)
	}
	o.forget(b.Name)
	end = sync.OnceFunc(o.watch(c))
	t.Cleanup(end)
	b.Start()
	o.converged(c, fmt.Sprintf("hostb with a tree %v old", time.Since(copied).Round(time.Second)))
	end()
	for _, s := range append(o.wrong, dr.wrong...) {
		t.Error(s)
	}
	if o.changes < 500 || dr.done < 50 {
		t.Errorf("%d changes by %d orders: too few to prove anything", o.changes, dr.done)
	}
	t.Logf("%d orders, %d changes seen", dr.done, o.changes)
}

// runFor gives some orders.
func (d *driver) runFor(t testing.TB, orders int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	stop := d.done + orders
	for d.done < stop && ctx.Err() == nil {
		d.some(ctx)
	}
	if ctx.Err() != nil {
		t.Fatalf("%d orders take longer than %v", orders, waitLimit)
	}
}

// TestV17OracleSeesFaults is the negative control of the tree oracle.
func TestV17OracleSeesFaults(t *testing.T) {
	t.Parallel()
	const a, b = "hosta", "hostb"
	good := map[string]sighting{"resource-r0/todo-hosta/attach": {10, "1"}, "resource-r0/primary": {20, "hosta"}, "ips/ip-hostb": {5, tombstone}}
	with := func(path string, s sighting) map[string]sighting {
		tree := maps.Clone(good)
		if tree[path] = s; s.stamp == 0 {
			delete(tree, path)
		}
		return tree
	}
	gone := func(string) bool { return true }
	begin := time.Unix(1000, 0)
	for _, k := range []struct {
		name, want  string // want: in the complaint; empty: none
		node        string
		tree        map[string]sighting
		temps       []string
		later       time.Duration
		stillThere  bool
		differences bool // hostb differs from hosta in the end
	}{
		{name: "nothing happens", node: b, tree: good},
		{name: "newer value", node: b, tree: with("resource-r0/primary", sighting{21, "hostb"}), differences: true},
		{name: "deleted", node: b, tree: with("resource-r0/primary", sighting{21, tombstone}), differences: true},
		{name: "tombstone cleaned up", node: b, tree: with("ips/ip-hostb", sighting{})},
		{name: "lost link", want: "vanished", node: b, tree: with("resource-r0/primary", sighting{}), differences: true},
		{name: "hidden by a change of the directory", node: b, tree: with("resource-r0/primary", sighting{}), stillThere: true, differences: true},
		{name: "stamp reverted", want: "goes back", node: b, tree: with("resource-r0/primary", sighting{19, "hosta"}), differences: true},
		{name: "older value", want: "goes back", node: b, tree: with("resource-r0/todo-hosta/attach", sighting{9, "0"}), differences: true},
		{name: "undeleted", want: "goes back", node: b, tree: with("ips/ip-hostb", sighting{4, "10.0.0.1"}), differences: true},
		{name: "other value, same stamp", want: "with", node: b, tree: with("resource-r0/primary", sighting{20, "hostb"}), differences: true},
		{name: "temporary name stays", want: "older than a minute", node: b, tree: good, temps: []string{"resource-r0/.tmp.1.x"}, later: 2 * time.Minute},
		{name: "temporary name for a moment", node: b, tree: good, temps: []string{"resource-r0/.tmp.1.x"}, later: time.Second},
	} {
		o := newTreeOracle()
		o.see(a, good, nil, gone, begin)
		o.see(b, good, k.temps, gone, begin)
		o.see(k.node, k.tree, k.temps, func(string) bool { return !k.stillThere }, begin.Add(k.later))
		if all := strings.Join(o.wrong, "; "); (k.want == "") != (all == "") || !strings.Contains(all, k.want) {
			t.Errorf("%s: complaints are %q, want %q", k.name, all, k.want)
		}
		if diff := o.differs(map[string]map[string]sighting{a: good, b: k.tree}); (len(diff) > 0) != k.differences {
			t.Errorf("%s: differences are %q, want some: %v", k.name, diff, k.differences)
		}
	}
	// A node that was brought up to date with an old value of another node's.
	o := newTreeOracle()
	o.see(a, with("resource-r0/primary", sighting{30, "hostb"}), nil, gone, begin)
	old := map[string]map[string]sighting{a: good, b: good}
	if len(o.differs(old)) == 0 {
		t.Error("two trees that agree on an old value pass for one that has converged")
	}
}

// TestV17DryRun: --dry-run of every command, forced or not, changes nothing at all.
func TestV17DryRun(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	disk := b.Disk("disk", mib)
	a.CreateResource(a.Disk("disk", mib))
	b.JoinResource(disk)
	spare := b.Disk("spare", mib)
	Settle(a, b)
	lines := dryLines(b, spare)
	// A daemon that is stopped writes nothing; whatever changes was the command.
	a.Freeze()
	b.Freeze()
	before := everything(t, b.Root())
	var wg sync.WaitGroup
	next := make(chan []string)
	var mu sync.Mutex
	printed := 0
	for range 3 {
		wg.Go(func() {
			for args := range next {
				out, _, code := b.Try(append(args, "--dry-run", "--timeout=2")...)
				mu.Lock()
				if code == 0 && strings.Contains(out, "DRY_RUN: would create symlink") {
					printed++
				}
				mu.Unlock()
				if now := everything(t, b.Root()); len(changed(before, now)) > 0 {
					t.Errorf("about %v --dry-run: %v", args, changed(before, now))
				}
			}
		})
	}
	for _, line := range lines {
		next <- append(line, "--force")
		if soak(t) > 0 {
			next <- line
		}
	}
	close(next)
	wg.Wait()
	if len(lines) < 75 || printed < 25 {
		t.Errorf("%d commands, of which %d said what they would do", len(lines), printed)
	}
	t.Logf("%d commands, %d dry runs said what they would do", len(lines), printed)
	// Negative control: one of them in earnest.
	b.Adm("pause-replay", "r0", "--no-wait")
	if diff := changed(before, everything(t, b.Root())); !slices.ContainsFunc(diff, func(s string) bool { return strings.Contains(s, "allow-replay") }) {
		t.Errorf("pause-replay is not seen: %q", diff)
	}
	b.Thaw()
	a.Thaw()
}

// reading are the beginnings of the names of commands that only read.
var reading = regexp.MustCompile("^(get-|view|help|completion|log-dump|log-verify|version|dump-|show|cat|lowlevel-ls|merge-cluster-list|check$|why|tree|role$|state$)")

// dryLines is a command line for every command that help knows and that writes.
func dryLines(n *Node, spare string) (lines [][]string) {
	n.t.Helper()
	logName, _ := newestLog(n)
	words := map[string]string{"RES": "r0", "PEER": "hosta", "HOST": "hosta", "DISK": spare, "NR": "1", "PERCENT": "50", "N": "3",
		"FLAGS": "CHKSUM_MD5", "VALUE": "x", "PATH": n.Root() + "/resource-r0/userspace/x", "PATH...": n.Root() + "/uuid", "START": "x.service",
		"HOST|(none)": "hosta", "FILE": filepath.Join(n.Root(), "resource-r0", logName), "bash|zsh|fish": "bash",
		"[is-]{attach|fetch|replay|sync|primary|secondary|device}[-on|-off]": "is-attach"}
	for line := range strings.Lines(n.Adm("help", "-v")) {
		f := strings.Fields(line)
		if strings.HasPrefix(strings.TrimSpace(line), "Options") || strings.HasPrefix(line, "Options") {
			break
		}
		if !strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "   ") || reading.MatchString(f[0]) || strings.HasPrefix(f[0], "-") {
			continue
		}
		args := []string{f[0]}
		for _, w := range f[1:] {
			v, ok := words[w]
			if !ok {
				break
			}
			args = append(args, v)
		}
		lines = append(lines, args)
	}
	return lines
}

// everything is all that is below root: links, files, directories, and when they
// were changed.
func everything(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		value, _ := os.Readlink(path)
		all[path] = fmt.Sprintf("%v %d %d %q", st.Mode(), st.Size(), st.ModTime().UnixNano(), value)
		return nil
	})
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	return all
}
