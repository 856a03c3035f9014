package adm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// switchNames maps the words of commands to switches.
var switchNames = []struct{ word, link, help string }{
	{"fetch", symlinktree.SwitchConnect, "copying of logs"},
	{"replay", symlinktree.SwitchAllowReplay, "application of logs to the disk"},
	{"sync", symlinktree.SwitchSync, "the full sync"},
}

func switchVerbs() []verb {
	out := []verb{
		{name: "up", args: "RES", help: "attach the disk and switch everything on", res: oneRes, each: up},
		{name: "down", args: "RES", help: "switch everything off and detach the disk", res: oneRes, each: down},
		{name: "attach", args: "RES", help: "open the disk", res: oneRes, each: attach},
		{name: "detach", args: "RES", help: "stop everything and close the disk", res: oneRes, each: detach},
		{name: "connect", args: "RES", help: "= resume-fetch", res: oneRes, each: turn(symlinktree.SwitchConnect, true, false)},
		{name: "disconnect", args: "RES", help: "= pause-fetch", res: oneRes, each: turn(symlinktree.SwitchConnect, false, false)},
		{name: "connect-local", args: "RES", hidden: true, res: oneRes, each: turn(symlinktree.SwitchConnect, true, false)},
		{name: "disconnect-local", args: "RES", hidden: true, res: oneRes, each: turn(symlinktree.SwitchConnect, false, false)},
		{name: "connect-global", args: "RES", hidden: true, res: oneRes, each: turn(symlinktree.SwitchConnect, true, true)},
		{name: "disconnect-global", args: "RES", hidden: true, res: oneRes, each: turn(symlinktree.SwitchConnect, false, true)},
	}
	for _, sw := range switchNames {
		for _, on := range []bool{false, true} {
			verbWord, does := "pause-", "stop "
			if on {
				verbWord, does = "resume-", "allow "
			}
			name := verbWord + sw.word
			out = append(out,
				verb{name: name, args: "RES", help: does + sw.help + " here", res: oneRes, each: turn(sw.link, on, false)},
				verb{name: name + "-local", args: "RES", hidden: true, res: oneRes, each: turn(sw.link, on, false)},
				verb{name: name + "-global", args: "RES", help: does + sw.help + " on all hosts", res: oneRes, each: turn(sw.link, on, true)})
		}
	}
	return out
}

// planTurn sets one switch, here or on every host that has switches. A switch that
// is on already is left alone; one that is off gets a fresh stamp, so that the word
// of the administrator beats an older contrary one that is still on its way.
func planTurn(t macro.Tree, r symlinktree.Resource, host, name string, on, global bool) (batch []op, already bool) {
	hosts := []string{host}
	if global {
		hosts = nil
		for _, d := range t.Dirs(r.Dir()) {
			if h, ok := symlinktree.HostOf(filepath.Base(d), "todo"); ok && has(t, r.TodoPath(h, name)) {
				hosts = append(hosts, h)
			}
		}
	}
	value := "0"
	if on {
		value = "1"
	}
	for _, h := range hosts {
		p := r.TodoPath(h, name)
		if v, _ := t.Get(p); on && symlinktree.Switch(v) {
			continue
		}
		batch = append(batch, set(p, value))
	}
	return batch, len(batch) == 0
}

// checkResumeSync is pure: a sync needs a primary that works.
func checkResumeSync(t macro.Tree, r symlinktree.Resource, host string) error {
	p, _ := t.Get(r.PrimaryPath())
	if p == "" || p == symlinktree.NoHost {
		return refuse(fmt.Sprintf("marsadm primary %s on the member with the right data", r), "it has no designated primary to sync from")
	}
	if v, _ := t.Get(r.ActualPath(p, "has-emergency")); p != host && symlinktree.Switch(v) {
		return refuse("free space on "+p+" and wait until it is over", "its primary %s is in emergency mode", p)
	}
	return nil
}

func turn(name string, on, global bool) func(context.Context, *job) error {
	return func(_ context.Context, j *job) error {
		if name == symlinktree.SwitchSync && on {
			if err := checkResumeSync(j.tree, j.r, j.host); err != nil {
				return err
			}
		}
		return j.turn(name, on, global)
	}
}

func (j *job) turn(name string, on, global bool) error {
	batch, already := planTurn(j.tree.Snapshot(), j.r, j.host, name, on, global)
	if already {
		j.detail("%s of %s on %s is already activated", name, j.r, j.host)
		return nil
	}
	return j.apply(batch)
}

// checkUnused refuses to take a device away from its users.
func checkUnused(t macro.Tree, r symlinktree.Resource, host string, force bool) error {
	if v, _ := t.Get(r.ActualPath(host, "open-count")); symlinktree.Switch(v) && !force {
		return refuse(fmt.Sprintf("umount it, disconnect its clients, wait with marsadm wait-umount %s", r), "device is in use on %s (open-count %s)", host, v)
	}
	return nil
}

func attach(ctx context.Context, j *job) error {
	if err := j.turn(symlinktree.SwitchAttach, true, false); err != nil {
		return err
	}
	return j.awaitAttached(ctx)
}

func up(ctx context.Context, j *job) error {
	var syncErr error
	for _, name := range []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchSync, symlinktree.SwitchAllowReplay} {
		if name == symlinktree.SwitchSync {
			if syncErr = checkResumeSync(j.tree, j.r, j.host); syncErr != nil {
				continue
			}
		}
		if err := j.turn(name, true, false); err != nil {
			return err
		}
	}
	if err := j.awaitAttached(ctx); err != nil {
		return err
	}
	if syncErr != nil && needsSync(j.tree, j.r, j.host) {
		return syncErr
	}
	return nil
}

// needsSync: the disk of host is not a replica yet.
func needsSync(t macro.Tree, r symlinktree.Resource, host string) bool {
	pos, _ := t.Get(r.SyncStatusPath(host))
	size, _ := t.Get(r.SizePath())
	return macro.Number(pos) < macro.Number(size)
}

// leaveDevice writes a batch that takes the device away, and waits until it is gone,
// after making sure that nobody uses it: services that this program moves are stopped,
// everybody else is in the way.
func (j *job) leaveDevice(ctx context.Context, batch []op) error {
	act := func(moving bool) error {
		if !(j.opt.dryRun && moving) {
			if err := checkUnused(j.tree, j.r, j.host, j.forced()); err != nil {
				return err
			}
		}
		return j.apply(batch)
	}
	want, _ := j.tree.Get(j.r.SystemdWantPath())
	if want != j.host {
		if err := act(false); err != nil {
			return err
		}
		return j.awaitDetached(ctx)
	}
	if err := j.withServices(ctx, symlinktree.NoHost, j.host, act); err != nil {
		return err
	}
	return j.stayStopped(j.awaitDetached(ctx), want)
}

func detach(ctx context.Context, j *job) error {
	batch, _ := planTurn(j.tree.Snapshot(), j.r, j.host, symlinktree.SwitchAttach, false, false)
	return j.leaveDevice(ctx, batch)
}

func down(ctx context.Context, j *job) error {
	return j.leaveDevice(ctx, planSwitches(j.r, j.host, false))
}

// awaitAttached waits for the disk to be open. Without marsd the switch remains as
// a request, but nobody shall believe that it has been carried out.
func (j *job) awaitAttached(ctx context.Context) error {
	if j.forced() || j.opt.noWait {
		return nil
	}
	if err := j.needDaemon(); err != nil {
		var r *Refusal
		if errors.As(err, &r) {
			r.Hint += "; the switch is set and counts from then on"
		}
		return err
	}
	err := j.awaitLinks(ctx, "the disk is attached", linkIs{path: j.r.ActualPath(j.host, "is-attached"), want: "1"})
	return j.explain(err, "err-attach", "err-transition", "err-disk")
}

func (j *job) awaitDetached(ctx context.Context) error {
	if j.forced() || j.opt.noWait {
		return nil
	}
	if !j.opt.dryRun && !j.daemonRuns() {
		j.warn("marsd is not running on %s: the switch counts from its next start", j.node)
		return nil
	}
	links := []linkIs{}
	for _, name := range []string{"is-attached", "if-on", "is-replaying", "is-syncing"} {
		links = append(links, linkIs{path: j.r.ActualPath(j.host, name), want: "0"})
	}
	if err := j.awaitLinks(ctx, "the disk is closed", links...); err != nil {
		return err
	}
	if !j.opt.dryRun {
		j.env.SyncAll()
	}
	return nil
}

// explain adds to a timeout what marsd says about the reason.
func (j *job) explain(err error, keys ...string) error {
	t, ok := err.(*timeoutError)
	if !ok {
		return err
	}
	for _, k := range keys {
		if v, _ := j.tree.Get(j.r.ActualPath(j.host, "msg-"+k)); v != "" && v != "OK" {
			t.last += "; marsd says: " + v
		}
	}
	return t
}
