package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mars/internal/logdamage"
	"mars/internal/oracle"
)

// copyDamage is something that happens to a copy of a logfile.
type copyDamage struct {
	name  string
	older bool // not to the newest log, but to the one before
	do    func(p []byte) []byte
	quiet bool // the copy is only too short: nothing in it is wrong
	short bool // belongs to the short form
}

var copyDamages = []copyDamage{
	{"last 5000 bytes overwritten", false, digitsOver, false, true},
	{"zeroed", false, func(p []byte) []byte { return make([]byte, len(p)) }, false, true},
	{"one bit in the middle", false, flipMiddle, false, false},
	{"one byte short", false, func(p []byte) []byte { return p[:len(p)-1] }, true, true},
	{"half as long", false, func(p []byte) []byte { return p[:len(p)/2] }, true, false},
	{"deleted", false, func([]byte) []byte { return nil }, true, true},
	{"last 5000 bytes overwritten", true, digitsOver, false, false},
	{"zeroed", true, func(p []byte) []byte { return make([]byte, len(p)) }, false, false},
	{"one bit in the middle", true, flipMiddle, false, true},
	{"one byte short", true, func(p []byte) []byte { return p[:len(p)-1] }, true, false},
	{"half as long", true, func(p []byte) []byte { return p[:len(p)/2] }, true, true},
	{"deleted", true, func([]byte) []byte { return nil }, true, false},
}

func digitsOver(p []byte) []byte {
	p = bytes.Clone(p)
	for i := max(0, len(p)-5000); i < len(p); i++ {
		p[i] = '0' + byte(i%10)
	}
	return p
}

func flipMiddle(p []byte) []byte {
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	return p
}

// copies lists the logs of a node from number from on, oldest first.
func copies(n *Node, from string) []string {
	files, err := filepath.Glob(filepath.Join(n.Root(), "resource-r0", "log-*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) < from })
}

// fetched waits until b has the logs of a, to the last byte.
func fetched(a, b *Node) {
	b.WaitFor("everything is fetched", func() bool {
		for _, f := range copies(a, "") {
			sa, erra := os.Stat(f)
			sb, errb := os.Stat(filepath.Join(b.Root(), "resource-r0", filepath.Base(f)))
			if erra != nil || errb != nil || sa.Size() != sb.Size() {
				return false
			}
		}
		return true
	})
}

// backlog gives b logs that it has fetched and not replayed, two of them from their beginning.
func (w *world) backlog(a, b *Node) {
	w.t.Helper()
	b.Adm("pause-replay", "r0")
	b.WaitView("is-replay", "0")
	w.start(a)
	w.more(a, 10)
	for range 2 {
		current := func() string { return strings.Split(highestVersion(a, a.Name)+",", ",")[1] }
		before := current()
		a.WaitFor("the log is rotated", func() bool {
			a.Adm("log-rotate", "r0", "--force") // does nothing as long as the log counts as empty
			return current() != before
		})
		w.more(a, 40)
	}
	w.finish()
	a.WaitView("writeback-rest", "0")
	fetched(a, b)
}

// damage does d to a copy of b; it returns the log and where its first bad record begins.
func (w *world) damage(b *Node, d copyDamage) (log string, at int64) {
	w.t.Helper()
	files := copies(b, w.position(b).Log)
	if len(files) < 3 {
		w.t.Fatalf("only %d logs: %v", len(files), files)
	}
	path := files[len(files)-1]
	if d.older {
		path = files[len(files)-2]
	}
	good := readFile(w.t, path)
	bad := d.do(good)
	for _, b := range logdamage.Borders(good) {
		if int(b) <= len(bad) && bytes.Equal(good[:b], bad[:b]) {
			at = b
		}
	}
	if at == int64(len(good)) {
		w.t.Fatalf("%s damages nothing", d.name)
	}
	if bad == nil {
		if err := os.Remove(path); err != nil {
			w.t.Fatal(err)
		}
		return filepath.Base(path), 0
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.Write(bad)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	return filepath.Base(path), at
}

// TestV09DamagedCopy: what a secondary has fetched is damaged while its replay is paused. It stops in front of the
// damage, gets that part again from a peer as soon as one can be reached, and goes on by itself.
func TestV09DamagedCopy(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 8*mib)
	w.gate.rate = 6e6
	long := soak(t) > 0
	for _, d := range copyDamages {
		if !d.short && !long {
			continue
		}
		what := fmt.Sprintf("%s, older=%v", d.name, d.older)
		w.backlog(a, b)
		w.damage(b, d)
		b.Adm("resume-replay", "r0")
		Settle(a, b)
		for _, f := range copies(a, "") {
			name := filepath.Base(f)
			if p, err := os.ReadFile(filepath.Join(b.Root(), "resource-r0", name)); err == nil && !bytes.Equal(p, readFile(t, f)) {
				t.Errorf("%s: the copy of %s is not what its writer has", what, name)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("%s: healed", what)
	}
	w.cutDamage(a, b, copyDamages[0])
	if long {
		for _, d := range copyDamages[1:] {
			w.cutDamage(a, b, d)
		}
	}
	w.byHand(a, b)
	w.equal(a)
}

// cutDamage does the same while no peer can be reached: replay stops exactly in front of the first bad record and says
// so; it heals after the cut, and not before.
func (w *world) cutDamage(a, b *Node, d copyDamage) {
	w.t.Helper()
	w.backlog(a, b)
	w.c.Isolate(b)
	alive(b, "0")
	log, at := w.damage(b, d)
	b.Adm("resume-replay", "r0")
	b.WaitFor("replay stops in front of the damage", func() bool {
		p := w.position(b)
		return p.Log == log && p.Offset == at && b.Res("replay-"+b.Name) == fmt.Sprintf("%s,%d,0", log, at)
	})
	if !d.quiet {
		b.WaitFor("diskstate names the damage", func() bool {
			s, code := b.View("diskstate", "r0"), b.View("replay-code", "r0")
			return strings.HasSuffix(s, "Log]") || strings.HasPrefix(code, "-") && strings.Contains(s, code[:3])
		})
	}
	b.Adm("detach", "r0")
	b.WaitView("is-attach", "0")
	v := w.judge("disk in front of the damage", readFile(w.t, w.disks[b])[:w.size], oracle.Options{AsOf: w.journal.Tick()})
	if v.Lag == 0 {
		w.t.Error("nothing is missing on the disk: it did not stop")
	}
	b.Adm("up", "r0")
	w.c.Heal()
	Settle(a, b)
}

// byHand repairs as the manual of the original says: down, cut the log, up.
func (w *world) byHand(a, b *Node) {
	w.t.Helper()
	w.backlog(a, b)
	b.Adm("pause-fetch", "r0")
	log, at := w.damage(b, copyDamages[0])
	b.Adm("resume-replay", "r0")
	b.WaitFor("replay stops in front of the damage", func() bool { return b.Res("replay-"+b.Name) == fmt.Sprintf("%s,%d,0", log, at) })
	b.Adm("down", "r0")
	if err := os.Truncate(filepath.Join(b.Root(), "resource-r0", log), at); err != nil {
		w.t.Fatal(err)
	}
	b.Adm("up", "r0")
	Settle(a, b)
}
