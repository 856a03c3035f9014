package adm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func dataVerbs() []verb {
	return []verb{
		{name: "invalidate", args: "RES", help: "throw the content of this replica away and copy it anew", res: oneRes, each: invalidate},
		{name: "fake-sync", args: "RES", help: "declare the disk equal to the primary's without looking (only for fresh disks)", res: oneRes, each: fakeSync},
		{name: "set-replay", args: "RES NR", help: "let replay go on at the start of log NR (for experts)", hidden: true, res: oneRes, min: 1, max: 1, each: setReplay},
		{name: "resize", args: "RES [SIZE]", help: "enlarge a resource whose disks have grown", res: oneRes, max: 1, each: resize},
	}
}

// checkInvalidate is pure.
func checkInvalidate(t macro.Tree, r symlinktree.Resource, host string, force bool) error {
	if !has(t, r.DataPath(host)) {
		return refuse(fmt.Sprintf("marsadm join-resource %s DISK", r), "%s does not store it", host)
	}
	if err := checkNotPrimary(t, r, host, force); err != nil {
		return err
	}
	_, err := findSource(t, r, host)
	return err
}

// planForget gives the old content up: nothing is synced, and the history from the
// primary's log on is forgotten.
func planForget(t macro.Tree, r symlinktree.Resource, host string, src source) []op {
	batch := []op{set(r.SyncStatusPath(host), "0")}
	for _, e := range t.List(r.Dir()) {
		if n, h, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version"); ok && h == host && n >= src.replay.Seq {
			batch = append(batch, del(e.Path))
		}
	}
	if has(t, r.SyncPosPath(host)) {
		batch = append(batch, del(r.SyncPosPath(host)))
	}
	return append(batch, del(r.ReplayPath(host)))
}

func invalidate(ctx context.Context, j *job) error {
	if err := j.needDaemon(); err != nil {
		return err
	}
	if err := checkInvalidate(j.tree, j.r, j.host, j.forced()); err != nil {
		return err
	}
	dead, err := j.waitCluster(ctx, string(j.r), 3)
	if err != nil {
		return err
	}
	if err := checkInvalidate(j.tree, j.r, j.host, j.forced()); err != nil {
		return err
	}
	if p, _ := j.tree.Get(j.r.PrimaryPath()); slices.Contains(dead, p) {
		const why = "%s, the primary to copy from, does not answer: until it does there is no usable replica on %s"
		if !j.forced() {
			return refuse(fmt.Sprintf("marsadm why %s; with --force the present content is given up all the same", j.r), why, p, j.host)
		}
		j.warn(why, p, j.host)
	}
	j.warnOnlyHere(othersOf(j.tree, j.r, j.host))
	if err := j.closeDisk(ctx); err != nil {
		return err
	}
	for range joinRounds {
		again, err := j.invalidateOnce(ctx)
		if err != nil || !again {
			return err
		}
	}
	return fmt.Errorf("%w, %d times; try again", errRace, joinRounds)
}

// closeDisk orders everything off that uses the disk, and waits until it is. When that cannot be had,
// what was ordered before is ordered again.
func (j *job) closeDisk(ctx context.Context) error {
	var off, back []op
	for _, sw := range []string{symlinktree.SwitchAttach, symlinktree.SwitchSync, symlinktree.SwitchConnect, symlinktree.SwitchAllowReplay} {
		path := j.r.TodoPath(j.host, sw)
		off = append(off, set(path, "0"))
		if v, ok := j.tree.Get(path); ok {
			back = append(back, set(path, v))
		}
	}
	if err := j.apply(off); err != nil || j.forced() {
		return err
	}
	var links []linkIs
	for _, name := range []string{"is-syncing", "is-copying", "is-replaying", "is-attached"} {
		links = append(links, linkIs{path: j.r.ActualPath(j.host, name), want: "0"})
	}
	if err := j.awaitLinks(ctx, "the disk is closed", links...); err != nil {
		return errors.Join(err, j.apply(back))
	}
	return nil
}

// invalidateOnce starts the replica over at the primary's present log.
func (j *job) invalidateOnce(ctx context.Context) (again bool, err error) {
	src, err := findSource(j.tree, j.r, j.host)
	if err != nil {
		return false, err
	}
	// Planned before anything is forgotten, so that it cannot fail half way.
	start, err := startOver(j.tree.Snapshot(), j.r, j.host, src)
	if err != nil {
		return false, err
	}
	if err := j.apply(planForget(j.tree.Snapshot(), j.r, j.host, src)); err != nil {
		return false, err
	}
	if err := j.purge(false); err != nil {
		return false, err
	}
	if err := j.apply(start); err != nil {
		return false, err
	}
	if _, err := j.waitCluster(ctx, string(j.r), 3); err != nil {
		return false, err
	}
	if j.checkRace() != nil {
		return true, nil
	}
	on := []op{}
	for _, sw := range []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchAllowReplay} {
		on = append(on, set(j.r.TodoPath(j.host, sw), "1"))
	}
	if err := j.apply(on); err != nil {
		return false, err
	}
	if err := j.apply([]op{set(j.r.TodoPath(j.host, symlinktree.SwitchSync), "1")}); err != nil {
		return false, err
	}
	j.done("%s copies resource %s anew from %s; marsadm view %s shows the progress\n", j.host, j.r, src.host, j.r)
	return false, nil
}

func fakeSync(ctx context.Context, j *job) error {
	size, ok := j.tree.Get(j.r.SizePath())
	if !ok {
		return refuse("", "its size is not known")
	}
	todo := j.r.TodoPath(j.host, symlinktree.SwitchSync)
	before, _ := j.tree.Get(todo)
	if err := j.apply([]op{set(todo, "0")}); err != nil {
		return err
	}
	if j.daemonRuns() || j.opt.dryRun {
		if err := j.awaitLinks(ctx, "the sync has stopped", linkIs{path: j.r.ActualPath(j.host, "is-syncing"), want: "0"}); err != nil {
			// Nothing has been declared: the sync that was ordered goes on.
			if symlinktree.Switch(before) {
				j.warn("the disk of %s counts as before, and its sync goes on", j.host)
				return errors.Join(err, j.apply([]op{set(todo, before)}))
			}
			return err
		}
	}
	return j.apply([]op{set(j.r.SyncStatusPath(j.host), size)})
}

// checkResize is pure and returns the new size.
func checkResize(t macro.Tree, r symlinktree.Resource, host string, wanted int64) (int64, error) {
	if v, _ := t.Get(r.ActualPath(host, "is-primary")); !symlinktree.Switch(v) {
		p, _ := t.Get(r.PrimaryPath())
		return 0, refuse("run it there", "only the actual primary can enlarge it; designated primary: %s", orMissing(p))
	}
	if s := macro.DetectSplit(t, string(r)); s.Found {
		return 0, refuse("resolve it first", "split brain between %s and %s", s.Host1, s.Host2)
	}
	text, _ := t.Get(r.SizePath())
	now, possible := macro.Number(text), macro.PossibleSize(t, string(r))/pageSize*pageSize
	if wanted == 0 {
		wanted = possible
	}
	switch {
	case possible == 0:
		return 0, refuse("marsadm up on every member, then marsadm wait-cluster", "the disk size of a member is not known (no actsize link)")
	case wanted > possible:
		return 0, refuse("enlarge the disks of all members first", "size %d is more than the smallest disk holds (%d)", wanted, possible)
	case wanted < now:
		return 0, refuse("a resource can only grow", "size %d is less than the present %d", wanted, now)
	case wanted == now:
		return 0, refuse("enlarge the disks of all members first", "it has %d bytes already", now)
	}
	return wanted, nil
}

func resize(ctx context.Context, j *job) error {
	wanted := int64(0)
	if len(j.args) > 0 {
		var err error
		if wanted, err = ParseSize(j.args[0]); err != nil {
			return usage("%v", err)
		}
	}
	if err := j.needDaemon(); err != nil {
		return err
	}
	if _, err := j.waitCluster(ctx, string(j.r), 3); err != nil {
		return err
	}
	size, err := checkResize(j.tree, j.r, j.host, wanted)
	if err != nil {
		return err
	}
	text := strconv.FormatInt(size, 10)
	for _, o := range []op{set(j.r.SyncStatusPath(j.host), text), set(j.r.SizePath(), text)} {
		if err := j.apply([]op{o}); err != nil {
			return err
		}
	}
	// marsd publishes the size of the device where it can change it while it is open.
	if p := j.r.ActualPath(j.host, "device-size"); has(j.tree, p) && !j.opt.noWait {
		if err := j.awaitLinks(ctx, "the device has grown", linkIs{path: p, want: text, literal: true}); err != nil {
			return err
		}
	}
	j.done("resource %s has %s bytes now\n", j.r, text)
	return nil
}
