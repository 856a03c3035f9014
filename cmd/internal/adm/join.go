package adm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

// joinRounds is how often joining starts over when the primary's logs move on
// under it.
const joinRounds = 5

// source is the primary that a replica copies from.
type source struct {
	host   string
	replay symlinktree.Replay
}

// findSource is pure: the designated primary and where it stands.
func findSource(t macro.Tree, r symlinktree.Resource, host string) (source, error) {
	p, _ := t.Get(r.PrimaryPath())
	hint := fmt.Sprintf("make a member that has the right data primary: marsadm primary %s", r)
	switch {
	case p == "" || p == symlinktree.NoHost:
		return source{}, refuse(hint, "it has no designated primary to copy from")
	case p == host:
		return source{}, refuse(hint, "%s is its designated primary itself", host)
	}
	if v, _ := t.Get(r.ActualPath(p, "has-emergency")); symlinktree.Switch(v) {
		return source{}, refuse("free space on "+p+" and wait until it is over", "its primary %s is in emergency mode", p)
	}
	v, _ := t.Get(r.ReplayPath(p))
	rep, err := symlinktree.ParseReplay(v)
	if err != nil {
		return source{}, refuse("marsadm wait-cluster fetches the latest news", "the position of its primary %s is not known: %v", p, err)
	}
	return source{p, rep}, nil
}

// startOver are the links with which a replica begins at the start of the log that
// the primary is in, with nothing synced. The file part of the primary's replay
// link is copied as it is: while it recovers, that may be a log of another origin.
func startOver(t macro.Tree, r symlinktree.Resource, host string, src source) ([]op, error) {
	n := src.replay.Seq
	batch := []op{set(r.ReplayPath(host), symlinktree.Replay{Seq: n, Origin: src.replay.Origin}.String())}
	copied := 0
	for _, k := range []int{n, n - 1} {
		// Number 0 is only the foot of the creator's own chain.
		if v, ok := t.Get(r.VersionPath(k, src.host)); ok && k > 0 {
			batch = append(batch, set(r.VersionPath(k, host), v))
			copied++
		}
	}
	if copied == 0 {
		return nil, refuse("marsadm wait-cluster fetches the latest news", "the version links of its primary %s for log %d are not known", src.host, n)
	}
	return append(batch, set(r.SkipCheckPath(host), strconv.Itoa(n))), nil
}

// joinResourceInput is what a plan for joining a resource depends on, beside the tree.
type joinResourceInput struct {
	res  symlinktree.Resource
	host string
	diskArgs
	diskSize int64
	logs     []logfile.Info
	force    bool
}

// checkJoin is pure. It is asked twice: with what is known of the cluster, and again
// when the latest news of the resource are here.
func checkJoin(t macro.Tree, in joinResourceInput) error {
	r, h := in.res, in.host
	if has(t, r.DataPath(h)) && !in.force {
		return refuse(fmt.Sprintf("marsadm invalidate %s copies everything anew", r), "%s is a member already", h)
	}
	if !has(t, symlinktree.IPPath(h)) {
		return refuse("", "%s has no address link in the cluster", h)
	}
	if err := checkDiskUse(t, r, h, in.diskArgs); err != nil {
		return err
	}
	text, known := t.Get(r.SizePath())
	if !known {
		return refuse("resources known here: "+words(macro.Resources(t)), "no such resource in the cluster")
	}
	size := macro.Number(text)
	switch {
	case in.size != 0 && in.size != size:
		return refuse("leave the size out", "its size is %d, not %d", size, in.size)
	case in.diskSize < size && !in.force:
		return refuse("use a bigger disk", "%s has %d bytes, but the resource has %d", in.disk, in.diskSize, size)
	}
	src, err := findSource(t, r, h)
	if err != nil || in.force {
		return err
	}
	return checkLeftovers(t, r, h, in.logs, src.replay.Seq)
}

// planActivate makes marsd interested in the resource.
func planActivate(in joinResourceInput) []op {
	return []op{
		mkdir(in.res.ActualDir(in.host)),
		set(in.res.DevicePath(in.host), in.device),
		set(in.res.ActualPath(in.host, "if-on"), "0"),
	}
}

// planJoin is pure (reference marsadm.md 6.2).
func planJoin(t macro.Tree, in joinResourceInput) ([]op, error) {
	r, h := in.res, in.host
	src, err := findSource(t, r, h)
	if err != nil {
		return nil, err
	}
	start, err := startOver(t, r, h, src)
	if err != nil {
		return nil, err
	}
	batch := []op{
		mkdir(r.Path("userspace")), mkdir(r.Path("defaults")), mkdir(r.Path("defaults-" + h)), mkdir(r.Path("local-" + h)),
		mkdir(r.ActualDir(h)), mkdir(r.TodoDir(h)),
		set(r.DataPath(h), in.disk),
		set(r.DevicePath(h), in.device),
		set(r.ActualPath(h, "if-on"), "0"),
		set(r.TodoPath(h, symlinktree.SwitchAttach), "0"),
		set(r.TodoPath(h, symlinktree.SwitchConnect), "1"),
		set(r.TodoPath(h, symlinktree.SwitchSync), "1"),
		set(r.TodoPath(h, symlinktree.SwitchAllowReplay), "1"),
		unlink(r.SyncStatusPath(h)),
	}
	batch = append(batch, start...)
	return append(batch, set(r.SyncStatusPath(h), "0")), nil
}

func joinResource(ctx context.Context, j *job) error {
	a, err := parseDiskArgs(string(j.r), j.args)
	if err != nil {
		return err
	}
	in := joinResourceInput{res: j.r, host: j.host, diskArgs: a, logs: j.logs(j.r), force: j.forced()}
	if err := checkDiskUse(j.tree, j.r, j.host, a); err != nil {
		return err
	}
	if in.diskSize, err = j.measure(a.disk); err != nil {
		return err
	}
	if !j.opt.noWait {
		if err := j.needDaemon(); err != nil {
			return err
		}
		if _, err := j.waitCluster(ctx, "", 8); err != nil {
			return err
		}
	}
	if err := checkJoin(j.tree, in); err != nil {
		return err
	}
	member := has(j.tree, j.r.DataPath(j.host)) // with --force
	err = j.activate(ctx, in)
	if err == nil {
		err = checkJoin(j.tree, in)
	}
	if err == nil {
		err = j.purge(j.forced())
	}
	if err != nil && !member {
		// A guest by accident is of no use to anybody.
		return errors.Join(err, j.apply([]op{del(j.r.DevicePath(j.host)), del(j.r.ActualPath(j.host, "if-on"))}))
	}
	if err != nil {
		return err
	}
	for range joinRounds {
		if err := j.joinOnce(ctx, in); !errors.Is(err, errRace) {
			return err
		}
		if err := j.apply(planSwitches(j.r, j.host, false)); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w, %d times; try again: marsadm invalidate %s", errRace, joinRounds, j.r)
}

// activate writes the guest link, so that marsd mirrors the resource closely, and
// waits for fresh news of its members.
func (j *job) activate(ctx context.Context, in joinResourceInput) error {
	if err := j.apply(planActivate(in)); err != nil {
		return err
	}
	if p, _ := j.tree.Get(j.r.PrimaryPath()); p != "" && p != symlinktree.NoHost {
		if err := j.pull(p); err != nil {
			return err
		}
	}
	if j.opt.noWait {
		return nil
	}
	_, err := j.waitCluster(ctx, string(j.r), 8)
	return err
}

func (j *job) joinOnce(ctx context.Context, in joinResourceInput) error {
	batch, err := planJoin(j.tree.Snapshot(), in)
	if err != nil {
		return err
	}
	if err := j.apply(batch); err != nil {
		return err
	}
	if err := j.trigger(3); err != nil {
		return err
	}
	var dead []string
	if !j.opt.noWait {
		if dead, err = j.waitCluster(ctx, string(j.r), 3); err != nil {
			return err
		}
	}
	if err := j.checkRace(); err != nil {
		return err
	}
	if err := j.apply([]op{set(j.r.TodoPath(j.host, symlinktree.SwitchAttach), "1")}); err != nil {
		return err
	}
	src, _ := j.tree.Get(j.r.PrimaryPath())
	if slices.Contains(dead, src) && !j.opt.dryRun {
		j.warn("%s, the primary to copy from, does not answer: %s is a member from now on, but nothing is copied, and its replica is of no use, until %s does; marsadm why %s tells; to take it back: marsadm down %s; marsadm leave-resource %s",
			src, j.host, src, j.r, j.r, j.r)
	}
	j.done("%s joins resource %s, copying from %s; marsadm view %s shows the progress\n", j.host, j.r, src, j.r)
	return nil
}

// checkRace finds out whether the log to begin with has been deleted while this
// host was not yet known to need it.
func (j *job) checkRace() error {
	v, _ := j.tree.Get(j.r.ReplayPath(j.host))
	rep, err := symlinktree.ParseReplay(v)
	if err != nil || j.opt.dryRun {
		return nil
	}
	if e, ok := j.tree.Entry(j.r.LogPath(rep.Seq, rep.Origin)); ok && e.Value == symlinktree.Deleted {
		return errRace
	}
	return nil
}

// planSwitches sets all four switches in the order of up and down.
func planSwitches(r symlinktree.Resource, host string, on bool) []op {
	order := []string{symlinktree.SwitchAllowReplay, symlinktree.SwitchSync, symlinktree.SwitchConnect, symlinktree.SwitchAttach}
	value := "0"
	if on {
		order = []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchSync, symlinktree.SwitchAllowReplay}
		value = "1"
	}
	var batch []op
	for _, sw := range order {
		batch = append(batch, set(r.TodoPath(host, sw), value))
	}
	return batch
}
