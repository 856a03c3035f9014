package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
)

// combination is a resource with its switches and its role on the node under test.
type combination struct {
	res                         string
	role                        string // primary, secondary, none
	attach, fetch, replay, sync bool
	disk                        string // on the node under test
}

// planned are the combinations of attach, fetch, replay and sync of the short form.
var planned = map[string][]string{
	"secondary": {"1111", "1011", "1101", "1110", "1000", "0111", "0010"},
	"primary":   {"1111", "1000", "1010", "0111"},
	"none":      {"1111", "1010", "0101"},
}

// combinations are the planned ones, or all 48.
func combinations(all bool) []*combination {
	var list []*combination
	for _, role := range []string{"secondary", "primary", "none"} {
		bits := planned[role]
		if all {
			bits = nil
			for n := 15; n >= 0; n-- {
				bits = append(bits, fmt.Sprintf("%04b", n))
			}
		}
		for _, b := range bits {
			list = append(list, &combination{res: fmt.Sprintf("r%d", len(list)), role: role,
				attach: b[0] == '1', fetch: b[1] == '1', replay: b[2] == '1', sync: b[3] == '1'})
		}
	}
	return list
}

// macros reads a line of macros of every resource on n, by resource.
func macros(n *Node, names ...string) map[string]string {
	n.t.Helper()
	text := "= %{res}"
	for _, m := range names {
		text += " %" + m + "{}"
	}
	state := map[string]string{}
	for line := range strings.Lines(n.Adm("view", "all", "--macro="+text+`\n`)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "=" {
			state[f[1]] = strings.Join(f[2:], " ")
		}
	}
	return state
}

// orders are the switches and the designation, as scripts read them.
func orders(n *Node) map[string]string {
	n.t.Helper()
	return macros(n, "todo-attach", "todo-fetch", "todo-replay", "todo-sync", "get-primary")
}

// changed names what differs between two states.
func changed(before, after map[string]string) []string {
	var list []string
	for r, v := range before {
		if after[r] != v {
			list = append(list, fmt.Sprintf("%s: %q, then %q", r, v, after[r]))
		}
	}
	for r, v := range after {
		if _, ok := before[r]; !ok {
			list = append(list, fmt.Sprintf("%s: nothing, then %q", r, v))
		}
	}
	return list
}

func digit(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// states is what the resource must come to while its peer runs or not: attach,
// fetch, replay, sync, primary.
func (c *combination) states(peer bool) string {
	secondary := c.role == "secondary"
	return strings.Join([]string{digit(c.attach), digit(c.attach && c.fetch && secondary && peer),
		digit(c.attach && c.replay && c.role != "primary"), "0", digit(c.attach && c.role == "primary")}, " ")
}

// actual is what the links say about the same.
func (c *combination) actual(n *Node) string {
	var f []string
	for _, name := range []string{"is-attached", "is-copying", "is-replaying", "is-syncing", "is-primary"} {
		v := n.Link("resource-" + c.res + "/actual-" + n.Name + "/" + name)
		if name == "is-copying" && c.role == "none" {
			v = "0" // whether it asks the others for logs is its own affair
		}
		f = append(f, v)
	}
	return strings.Join(f, " ")
}

// TestV21SwitchesSurvive: what was ordered counts after every kind of restart, and
// nothing else does.
func TestV21SwitchesSurvive(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	list := combinations(soak(t) > 0)
	makeCombinations(a, b, list)
	before := orders(b)
	for _, k := range list {
		primary := map[string]string{"primary": b.Name, "secondary": a.Name, "none": ""}[k.role]
		want := strings.TrimSpace(strings.Join([]string{digit(k.attach), digit(k.fetch), digit(k.replay), digit(k.sync), primary}, " "))
		if got := strings.TrimSpace(strings.ReplaceAll(before[k.res], "(none)", "")); got != want {
			t.Fatalf("%s (%s): orders are %q, want %q", k.res, k.role, got, want)
		}
	}
	same := func(what string, peer bool) {
		t.Helper()
		b.WaitFor(what+": states follow the orders", func() bool {
			for _, k := range list {
				if k.actual(b) != k.states(peer) {
					return false
				}
			}
			return true
		})
		for res, s := range macros(b, "is-attach", "is-fetch", "is-replay", "is-sync", "is-primary") {
			for _, k := range list {
				if k.res == res && k.role != "none" && s != k.states(peer) {
					t.Errorf("%s: states of %s are %s, want %s", what, res, s, k.states(peer))
				}
			}
		}
		if diff := changed(before, orders(b)); len(diff) > 0 {
			t.Errorf("%s: orders have changed: %v", what, diff)
		}
		for _, k := range list {
			if _, err := os.Stat(b.Socket(k.res)); (err == nil) != (k.attach && k.role == "primary") {
				t.Errorf("%s: device of %s (%s, attach %v): %v", what, k.res, k.role, k.attach, err)
			}
		}
	}
	same("before", true)
	repeat(t, 1, func(int) {
		b.Stop()
		b.Start()
		same("clean restart", true)
		b.Kill()
		b.Start()
		same("kill", true)
		a.Stop()
		b.Kill()
		began := time.Now()
		b.Start()
		same("kill, alone afterwards", false)
		// No quorum is asked for: it serves as soon as it has waited for the news that
		// the other one might have had.
		took := time.Since(began).Round(time.Millisecond)
		if took > 30*time.Second {
			t.Errorf("a node that starts alone is as ordered after %v only", took)
		}
		t.Logf("alone: everything is as ordered after %v", took)
		b.Stop()
		a.StartNoWait()
		b.StartNoWait()
		same("both start at once", true)
	})

	// Negative control: an order that changes meanwhile is seen.
	b.Stop()
	b.Adm("pause-replay", "r0")
	if diff := changed(before, orders(b)); len(diff) != 1 || !strings.HasPrefix(diff[0], "r0:") {
		t.Errorf("one switch was turned, the comparison says %q", diff)
	}
	b.Adm("resume-replay", "r0")
	missingDisks(b, list)
	same("disks are back", true)
	downAndDetach(b)
	detachedIsClosed(b, list[0].disk)
}

// makeCombinations makes the resources and turns the switches on b.
func makeCombinations(a, b *Node, list []*combination) {
	t := a.t
	t.Helper()
	var wg sync.WaitGroup
	lane := make(chan *combination)
	for range 4 {
		wg.Go(func() {
			for k := range lane {
				k.disk = b.Disk("disk-"+k.res, mib)
				first, second := a, b
				diskA := a.Disk("disk-"+k.res, mib)
				disks := map[*Node]string{a: diskA, b: k.disk}
				if k.role == "primary" {
					first, second = b, a
				}
				for i, args := range [][]string{{"create-resource", k.res, disks[first]}, {"join-resource", k.res, disks[second]}} {
					n := []*Node{first, second}[i]
					if _, errs, code := n.Try(args...); code != 0 {
						t.Errorf("%v on %s: exit code %d: %s", args, n.Name, code, errs)
					}
				}
			}
		})
	}
	for _, k := range list {
		lane <- k
	}
	close(lane)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, n := range []*Node{a, b} {
		n.WaitFor("all are consistent", func() bool {
			state := macros(n, "is-consistent")
			for _, k := range list {
				if state[k.res] != "1" {
					return false
				}
			}
			return true
		})
	}
	turn := func(n *Node, verb string, which func(*combination) bool) {
		var names []string
		for _, k := range list {
			if which(k) {
				names = append(names, k.res)
			}
		}
		n.Adm(verb, strings.Join(names, ","), "--parallel=4")
	}
	turn(a, "secondary", func(k *combination) bool { return k.role == "none" })
	turn(b, "pause-sync", func(k *combination) bool { return !k.sync })
	turn(b, "pause-replay", func(k *combination) bool { return !k.replay })
	turn(b, "disconnect", func(k *combination) bool { return !k.fetch })
	turn(b, "detach", func(k *combination) bool { return !k.attach })
}

// missingDisks starts b while the disks of its attached resources are not there:
// it says so, makes nothing up, and goes on when they come.
func missingDisks(b *Node, list []*combination) {
	t := b.t
	t.Helper()
	var gone []*combination
	for _, k := range list {
		if k.attach && k.replay && k.fetch && k.sync {
			gone = append(gone, k)
			if err := os.Rename(k.disk, k.disk+".away"); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.Start()
	for _, k := range gone {
		b.WaitFor("marsd says that the disk of "+k.res+" is missing", func() bool {
			said := ""
			for _, key := range []string{"err-attach", "err-transition", "err-disk"} {
				said += b.Link("resource-" + k.res + "/actual-" + b.Name + "/msg-" + key)
			}
			return strings.Contains(said, k.disk)
		})
		if got := b.View("diskstate", k.res); got != "NotPresent" {
			t.Errorf("%s (%s): diskstate %q without its disk", k.res, k.role, got)
		}
		if got := b.View("is-attach", k.res) + b.View("is-primary", k.res); got != "00" {
			t.Errorf("%s (%s): is-attach, is-primary are %s without its disk", k.res, k.role, got)
		}
		if out, errs, code := b.Try("attach", k.res, "--timeout=1"); code == 0 || !strings.Contains(errs, k.disk) {
			t.Errorf("attach %s without its disk: exit code %d, %s%s", k.res, code, out, errs)
		}
		if _, err := os.Lstat(k.disk); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was created: %v", k.disk, err)
		}
	}
	for _, k := range gone {
		if err := os.Rename(k.disk+".away", k.disk); err != nil {
			t.Fatal(err)
		}
	}
}

// downAndDetach: detach leaves the other switches alone, down does not.
func downAndDetach(b *Node) {
	t := b.t
	t.Helper()
	for _, step := range []struct{ verb, want string }{
		{"pause-replay", "1 1 0 1"}, {"detach", "0 1 0 1"}, {"attach", "1 1 0 1"},
		{"down", "0 0 0 0"}, {"attach", "1 0 0 0"}, {"detach", "0 0 0 0"}, {"up", "1 1 1 1"},
	} {
		b.Adm(step.verb, "r0")
		if got := macros(b, "todo-attach", "todo-fetch", "todo-replay", "todo-sync")["r0"]; got != step.want {
			t.Errorf("after %s: switches are %s, want %s", step.verb, got, step.want)
		}
		if got := b.View("is-attach", "r0"); got != step.want[:1] {
			t.Errorf("after %s: is-attach=%s", step.verb, got)
		}
	}
}

// detachedIsClosed: from the very moment at which a disk is reported detached,
// others can open it.
func detachedIsClosed(b *Node, disk string) {
	t := b.t
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	claim := func() error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
	if claim() == nil {
		t.Fatal("an attached disk can be claimed by others")
	}
	for i := range 6 {
		b.Adm("detach", "r0", "--no-wait")
		testutil.WaitFor(t, waitLimit, "r0 is reported detached", func() bool { return b.Res("actual-hostb/is-attached") == "0" })
		if err := claim(); err != nil {
			t.Fatalf("round %d: reported detached, but: %v", i, err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		b.Adm("attach", "r0")
	}
}
