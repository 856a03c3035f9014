package sim

import (
	"fmt"
	"path"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/internal/oracle"
	"mars/symlinktree"
)

// patience is how much fake time the cluster has to come together again once nothing
// disturbs it any more; an administrator helps where one is needed.
const patience = 120 * time.Second

// finish ends all faults and wants the cluster whole: P9 and liveness.
func (w *world) finish() {
	if w.failed() {
		close(w.hurry)
		return
	}
	w.mu.Lock()
	for _, f := range w.faults {
		f.gone = true
	}
	w.mu.Unlock()
	w.applyFaults()
	for _, n := range w.nodes {
		n.files().SetCapacity(0)
	}
	close(w.hurry)
	w.note("all faults end")
	w.until(w.now() + 1500*time.Millisecond)
	w.setCalm()
	w.heal()
}

func (w *world) setCalm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calm = true
}

// heal waits until the cluster is whole, and plays the administrator meanwhile.
func (w *world) heal() {
	began := w.now()
	said := ""
	for step := 0; w.now()-began < patience; step++ {
		w.until(w.now() + time.Second)
		w.check("while it heals")
		if w.failed() {
			return
		}
		if said = w.missing(); said == "" {
			w.until(w.now() + time.Second)
			w.check("at the end")
			w.note("whole after %v", w.now()-began)
			return
		}
		if step%8 == 3 {
			w.operate(w.now() - began)
		}
	}
	w.violation("liveness", "not whole %v after all faults have ended: %s%s", patience, said, w.messages())
}

// messages is what the nodes complain about.
func (w *world) messages() string {
	var b strings.Builder
	for _, n := range w.nodes {
		s := n.snapshot()
		if s == nil {
			continue
		}
		for _, e := range s.List(res.ActualDir(n.name)) {
			if name := path.Base(e.Path); strings.HasPrefix(name, "msg-") && e.Value != symlinktree.MessageOK {
				fmt.Fprintf(&b, "\n  %s says %s: %.300s", n.name, name, e.Value)
			}
		}
	}
	for _, n := range w.nodes {
		if s := n.snapshot(); s != nil && w.log != nil {
			for _, e := range s.List(res.Dir()) {
				if strings.Contains(e.Path, "/version-") && strings.HasSuffix(e.Path, "-"+n.name) {
					fmt.Fprintf(&b, "\n  %s -> %s", e.Path, e.Value)
				}
			}
		}
	}
	return b.String()
}

// missing is what is still wrong; "" if the cluster is whole.
func (w *world) missing() string {
	var pri *session
	for _, x := range w.sessions {
		if x.serves() {
			if pri != nil {
				return fmt.Sprintf("devices on %s and %s", pri.n.name, x.n.name)
			}
			pri = x
		}
	}
	if pri == nil {
		return "no device"
	}
	img := make([]byte, size)
	if err := pri.dev.ReadAt(img, 0); err != nil {
		return fmt.Sprintf("the device on %s cannot be read: %v", pri.n.name, err)
	}
	if v := pri.hist.judge(img, oracle.Always); !v.OK() && !pri.hist.direct {
		w.violation("P2", "the device on %s has lost something: %v", pri.n.name, v.Err())
	}
	want := pri.n.get(res.ReplayPath(pri.n.name))
	for _, n := range w.nodes {
		if n.get(symlinktree.UUIDPath) == "" {
			return n.name + " does not run"
		}
		if n.get(res.DataPath(n.name)) == "" {
			continue
		}
		rep, ok := position(n.snapshot(), n.name)
		if !ok || rep.Len != 0 || rep.String() != want {
			return fmt.Sprintf("%s stands at %v (consistent %v), %s at %s", n.name, rep, ok, pri.n.name, want)
		}
		disk, err := n.files().ReadFile(diskPath)
		if err != nil {
			return err.Error()
		}
		if k := differ(disk, img); k >= 0 {
			if n != pri.n || n.get(res.ActualPath(n.name, "is-attached")) == "1" {
				return fmt.Sprintf("the disk of %s differs from the device at %d", n.name, k)
			}
		}
	}
	for _, n := range w.nodes {
		if s := macro.DetectSplit(n.snapshot(), string(res)); s.Found {
			return fmt.Sprintf("%s sees a split brain between %s and %s: %s", n.name, s.Host1, s.Host2, s.Reason)
		}
	}
	return w.links.difference()
}

// operate is an administrator: everything is switched on, somebody is made primary, and
// replicas that cannot go on by themselves are made anew - only if something happened that
// justifies it.
func (w *world) operate(since time.Duration) {
	for _, n := range w.nodes {
		if n.get(res.DataPath(n.name)) != "" && !allOn(n) {
			n.marsadm(2*time.Second, "up", string(res))
		}
	}
	if since < 5*time.Second {
		return
	}
	var serving *session
	for _, x := range w.sessions {
		if x.serves() && (serving == nil || x.n.get(res.PrimaryPath()) == x.n.name) {
			serving = x
		}
	}
	if serving == nil {
		w.appoint(since > 40*time.Second)
		return
	}
	if since < 20*time.Second || !w.lossy {
		return
	}
	for _, n := range w.nodes {
		rep, ok := position(n.snapshot(), n.name)
		if n == serving.n || n.get(res.DataPath(n.name)) == "" || isOn(n.get(res.ActualPath(n.name, "is-syncing"))) {
			continue
		}
		if !ok || rep.String() != serving.n.get(res.ReplayPath(serving.n.name)) {
			n.marsadm(10*time.Second, "invalidate", string(res))
		}
	}
}

func allOn(n *node) bool {
	for _, sw := range []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchSync, symlinktree.SwitchAllowReplay} {
		if !isOn(n.get(res.TodoPath(n.name, sw))) {
			return false
		}
	}
	return true
}

// appoint makes a member primary: the designated one, else the last one, else anybody.
func (w *world) appoint(force bool) {
	var list []*node
	for i := len(w.sessions) - 1; i >= 0; i-- {
		list = append(list, w.sessions[i].n)
	}
	list = append(list, w.nodes...)
	for _, n := range list {
		if n.get(res.DataPath(n.name)) == "" {
			continue
		}
		if code, _ := n.marsadm(8*time.Second, "primary", string(res)); code == 0 {
			return
		}
		if force && w.lossy && n.failover(8*time.Second) {
			return
		}
	}
}
