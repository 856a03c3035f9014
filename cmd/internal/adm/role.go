package adm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func roleVerbs() []verb {
	return []verb{
		{name: "primary", args: "RES", help: "take over the role of the primary; --force: without the old one's consent", res: oneRes, each: primary},
		{name: "secondary", args: "RES", help: "give up the role of the primary", res: oneRes, each: secondary},
	}
}

// primaryInput is what the preconditions of a handover depend on, beside the tree.
type primaryInput struct {
	res               symlinktree.Resource
	host              string
	force, ignoreSync bool
	services          bool // leave the device when they are told to
	now               symlinktree.Stamp
	window            time.Duration
}

// oldPrimary finds the host that had the role last: the designated one, else the
// one that userspace remembers, else the writer of the newest log if it is unique.
func oldPrimary(t macro.Tree, r symlinktree.Resource) string {
	// What names no member, or cannot be read, is about to be overwritten.
	if p, _ := t.Get(r.PrimaryPath()); p != "" && p != symlinktree.NoHost && macro.IsMember(t, string(r), p) {
		return p
	}
	if p, ok := t.Get(r.LastPrimaryPath()); ok && has(t, r.DataPath(p)) {
		return p
	}
	best, owner := 0, ""
	for _, m := range macro.Members(t, string(r)) {
		v, _ := t.Get(r.ReplayPath(m))
		rep, err := symlinktree.ParseReplay(v)
		if err != nil {
			continue
		}
		switch {
		case rep.Seq > best:
			best, owner = rep.Seq, rep.Origin
		case rep.Seq == best && rep.Origin != owner:
			owner = ""
		}
	}
	if owner != "" && !has(t, r.DataPath(owner)) {
		return ""
	}
	return owner
}

// checkPrimary is pure: everything that can be said before a handover begins
// (reference symlink-tree 7).
func checkPrimary(t macro.Tree, in primaryInput) error {
	r, h := in.res, in.host
	on := func(path string) bool { v, _ := t.Get(path); return symlinktree.Switch(v) }
	old := oldPrimary(t, r)
	if v, _ := t.Get(r.SizePath()); symlinktree.CheckValue(r.SizePath(), v) != nil {
		return refuse(fmt.Sprintf("marsadm why %s tells what it was; then ln -sfn BYTES %s in the root of the tree", r, r.SizePath()), "its size link is broken: %q", v)
	}
	at, _ := ownDamage(t, r, h)
	if in.force && at == "" && on(r.TodoPath(h, symlinktree.SwitchConnect)) {
		return refuse(fmt.Sprintf("think twice, then: marsadm pause-fetch %s; marsadm primary --force %s", r, r),
			"a forced handover may lose data and is refused while fetch is on")
	}
	if !in.force && at != "" {
		return refuse(fmt.Sprintf("see marsadm view %s for what would be lost; then make a member primary that has it, or give it up: marsadm primary --force %s", r, r),
			"the own log of %s is damaged at %s", h, at)
	}
	if old != h {
		if err := checkSynced(t, r, h); err != nil {
			return err
		}
		if err := checkOthersSynced(t, in, old); err != nil {
			return err
		}
	}
	for _, sw := range []struct{ name, cmd string }{
		{symlinktree.SwitchAttach, "attach"}, {symlinktree.SwitchConnect, "resume-fetch"}, {symlinktree.SwitchAllowReplay, "resume-replay"},
	} {
		if !on(r.TodoPath(h, sw.name)) && !(in.force && sw.name == symlinktree.SwitchConnect) {
			return refuse(fmt.Sprintf("marsadm %s %s (or marsadm up %s)", sw.cmd, r, r), "switch %s is off on %s", sw.name, h)
		}
	}
	if in.force || old == "" || old == h {
		return nil
	}
	if code, _ := t.Get(r.ActualPath(h, "replay-code")); macro.Number(code) < 0 {
		return refuse(fmt.Sprintf("look at marsadm view %s; marsadm invalidate %s copies everything anew", r, r),
			"replay has stopped on %s with an error: %s", h, macro.ErrnoText(code))
	}
	if in.services {
		return nil
	}
	return checkUnused(t, r, old, false)
}

// ownDamage is the place where host's own log is damaged, as marsd says, and the
// bytes of log that are behind it; empty if it is sound.
func ownDamage(t macro.Tree, r symlinktree.Resource, host string) (at string, lost int64) {
	v, _ := t.Get(r.ActualPath(host, symlinktree.LogDamage))
	i := strings.LastIndexByte(v, ',')
	if i < 0 {
		return "", 0
	}
	return v[:i], macro.Number(v[i+1:])
}

// checkSynced: a disk that is not a version of the data can never become primary,
// whatever the force.
func checkSynced(t macro.Tree, r symlinktree.Resource, host string) error {
	hint := fmt.Sprintf("wait until it is: marsadm view %s; no --force overrides this", r)
	if needsSync(t, r, host) {
		pos, _ := t.Get(r.SyncStatusPath(host))
		size, _ := t.Get(r.SizePath())
		return refuse(hint, "the full sync of %s is not finished (%d of %d bytes)", host, macro.Number(pos), macro.Number(size))
	}
	v, ok := t.Get(r.SyncPosPath(host))
	if !ok {
		return nil
	}
	end, err := symlinktree.ParseReplay(v)
	if err != nil {
		return refuse(fmt.Sprintf("marsadm invalidate %s", r), "the end position of its sync cannot be read: %v", err)
	}
	v, _ = t.Get(r.ReplayPath(host))
	rep, err := symlinktree.ParseReplay(v)
	end.Min, end.Len = end.End(), 0
	if err != nil || symlinktree.CompareReplay(rep, end) < 0 {
		return refuse(hint, "the disk of %s is not consistent yet: replay stands at %s, but the full sync needs %s", host, v, end)
	}
	return nil
}

// checkOthersSynced: a handover makes every sync that is under way start over.
func checkOthersSynced(t macro.Tree, in primaryInput, old string) error {
	if in.force || in.ignoreSync {
		return nil
	}
	for _, m := range macro.Members(t, string(in.res)) {
		if m == in.host || m == old || !needsSync(t, in.res, m) {
			continue
		}
		v, _ := t.Get(symlinktree.ActualPath(m, "time"))
		if s, err := symlinktree.ParseStamp(v); err != nil || time.Duration(in.now-s) > 2*in.window {
			continue // silent for long: it does not sync
		}
		return refuse("wait until it has finished, or --ignore-sync", "%s is in the middle of its full sync, which would start over", m)
	}
	return nil
}

// gate decides whether a handover from old to host loses nothing: both stand at the
// same position of the same history (reference symlink-tree 4.7). It returns what
// is missing, or a refusal that time will not mend.
func gate(t macro.Tree, r symlinktree.Resource, old, host string) (missing string, err error) {
	if v, _ := t.Get(r.ActualPath(host, "has-emergency")); symlinktree.Switch(v) {
		return "", refuse("free space, and wait until it is over", "%s is in emergency mode", host)
	}
	if s := macro.DetectSplit(t, string(r)); s.Found {
		return "", refuse(fmt.Sprintf("decide for one side: marsadm primary --force %s there, marsadm invalidate %s on the others", r, r),
			"split brain between %s and %s: %s", s.Host1, s.Host2, s.Reason)
	}
	if w := macro.BehindHole(t, string(r), host); w != "" {
		return "", refuse(fmt.Sprintf("when %s logs again: marsadm invalidate %s; to go on with the old version: marsadm pause-fetch %s; marsadm primary --force %s", w, r, r, r),
			"the disk of %s is older than what %s has written without a log (emergency mode)", host, w)
	}
	members := replayMembers(t, r)
	if len(members) < 2 || old == host {
		return "", nil
	}
	if v, _ := t.Get(r.TodoPath(host, symlinktree.ReplayDelay)); macro.Number(v) > 0 {
		return "", refuse(fmt.Sprintf("marsadm set-replay-delay %s 0, then again", r), "%s replays only what is %s s old", host, v)
	}
	if v, _ := t.Get(r.ActualPath(host, "replay-code")); macro.Number(v) < 0 {
		return "", refuse(fmt.Sprintf("look at marsadm view %s", r), "replay has stopped on %s with an error: %s", host, macro.ErrnoText(v))
	}
	highest := highestVersion(t, r)
	if old == "" {
		first, _ := t.Get(r.VersionPath(highest, members[0]))
		for _, m := range members[1:] {
			if v, _ := t.Get(r.VersionPath(highest, m)); v != first {
				return fmt.Sprintf("%s and %s are not at the same position yet", members[0], m), nil
			}
		}
		return "", nil
	}
	if v, _ := t.Get(r.ActualPath(old, symlinktree.LogRecovered)); v == "0" {
		return fmt.Sprintf("%s has not found the end of its own log yet", old), nil
	}
	for _, p := range []func(string) string{r.ReplayPath, func(h string) string { return r.VersionPath(highest, h) }} {
		theirs, ok1 := t.Get(p(old))
		ours, ok2 := t.Get(p(host))
		if theirs != ours || !ok1 || !ok2 {
			return fmt.Sprintf("%s stands at %s, %s at %s", old, orMissing(theirs), host, orMissing(ours)), nil
		}
	}
	return "", nil
}

func orMissing(v string) string {
	if v == "" {
		return "nothing"
	}
	return v
}

// replayMembers are the members with a position.
func replayMembers(t macro.Tree, r symlinktree.Resource) []string {
	var out []string
	for _, m := range macro.Members(t, string(r)) {
		if has(t, r.ReplayPath(m)) {
			out = append(out, m)
		}
	}
	return out
}

// highestVersion is the highest number of a version link of a resource.
func highestVersion(t macro.Tree, r symlinktree.Resource) int {
	highest := 0
	for _, e := range t.List(r.Dir()) {
		if n, _, ok := symlinktree.NumberedOf(e.Path[strings.LastIndexByte(e.Path, '/')+1:], "version"); ok {
			highest = max(highest, n)
		}
	}
	return highest
}

// planDesignate gives the role to a host. prev-primary gets the stamp of now, as
// all links of a batch.
func planDesignate(t macro.Tree, r symlinktree.Resource, host string) []op {
	var batch []op
	if last, ok := t.Get(r.LastPrimaryPath()); ok && last != host {
		batch = append(batch, set(r.PrevPrimaryPath(), last))
	}
	return append(batch, set(r.PrimaryPath(), host), set(r.LastPrimaryPath(), host))
}

// planRelease takes the role from everybody. The stamp is weak: only just newer
// than the old value, so that a designation that somebody else makes at the same
// time wins.
func planRelease(t macro.Tree, r symlinktree.Resource) []op {
	e, _ := t.Entry(r.PrimaryPath())
	return []op{setAt(r.PrimaryPath(), symlinktree.NoHost, weak(e.Stamp))}
}

func primary(ctx context.Context, j *job) error {
	if err := j.needDaemon(); err != nil {
		return err
	}
	check := func() error {
		services := moves(j.tree, j.r) && j.opt.systemd != 0
		return checkPrimary(j.tree, primaryInput{j.r, j.host, j.forced(), j.opt.ignoreSync, services, j.tree.Clock().Now(), j.opt.window})
	}
	// Fresh news first: `umount` on the old primary and then `primary` here must not
	// be refused because of an open-count that is still on its way.
	var dead []string
	if !j.forced() {
		var err error
		if dead, err = j.waitCluster(ctx, string(j.r), 3); err != nil {
			return err
		}
	}
	if err := check(); err != nil {
		return err
	}
	old := oldPrimary(j.tree, j.r)
	if err := checkReachable(j.tree, j.r, old, dead); err != nil {
		return err
	}
	designated, _ := j.tree.Get(j.r.PrimaryPath())
	if old != "" && !macro.IsMember(j.tree, string(j.r), designated) && designated != symlinktree.NoHost {
		j.warn("the designated primary %q is no member of %s: overwritten", designated, j.r)
		designated = old // who gets the role back if this fails
	}
	switch {
	case j.forced():
		j.warnForced(old)
		if err := j.awaitLinks(ctx, "fetch has stopped", linkIs{path: j.r.ActualPath(j.host, "is-copying"), want: "0"}); err != nil {
			return err
		}
		// Last: what marsd gives up upon it does not come back if the command fails.
		if err := j.giveUp(); err != nil {
			return err
		}
	case designated != j.host:
		if err := j.handoverServices(ctx, old, designated); err != nil {
			return err
		}
	}
	if err := j.apply(planDesignate(j.tree.Snapshot(), j.r, j.host)); err != nil {
		return err
	}
	if j.forced() && moves(j.tree, j.r) {
		if err := j.apply([]op{set(j.r.SystemdWantPath(), j.host)}); err != nil {
			return err
		}
	}
	if err := j.awaitPrimary(ctx); err != nil {
		return err
	}
	return j.startServices(ctx)
}

// handoverServices is a handover of the role together with the services that use
// the device: they stop there first. When it fails they are wanted there again.
func (j *job) handoverServices(ctx context.Context, old, designated string) error {
	return j.withServices(ctx, j.host, old, func(bool) error { return j.handover(ctx, old, designated) })
}

// checkReachable: a primary that cannot be asked cannot hand over.
func checkReachable(t macro.Tree, r symlinktree.Resource, old string, dead []string) error {
	for _, h := range dead {
		if v, _ := t.Get(r.ActualPath(old, "is-primary")); h == old && v != "0" {
			return refuse(fmt.Sprintf("repair it; or, if its latest data may be lost: marsadm pause-fetch %s; marsadm primary --force %s", r, r),
				"its primary %s does not answer", old)
		}
	}
	return nil
}

// giveUp tells marsd to end the own log in front of its damage, and the person what
// that costs. It holds for this very damage.
func (j *job) giveUp() error {
	at, lost := ownDamage(j.tree, j.r, j.host)
	if at == "" {
		return nil
	}
	j.warn("the own log of %s ends at %s from now on: %d bytes of log behind that (%s) are given up; logs behind it are kept as given-up-log-* in the resource directory",
		j.host, at, lost, macro.HumanNumber(float64(lost)))
	return j.apply([]op{set(j.r.TodoPath(j.host, symlinktree.GiveUp), at)})
}

// handover takes the role from the old primary and waits until nothing of its
// history is missing here. If that does not come about, the old primary gets its
// role back.
func (j *job) handover(ctx context.Context, old, designated string) error {
	passed := func(t *symlinktree.Snapshot) (bool, string, error) {
		missing, err := gate(t, j.r, old, j.host)
		return missing == "" && err == nil, missing, err
	}
	if err := j.turn(symlinktree.SwitchConnect, true, false); err != nil {
		return err
	}
	if err := j.awaitChecked(ctx, "everything is replayed here", passed); err != nil {
		return err
	}
	if err := checkUnused(j.tree, j.r, old, false); old != "" && err != nil {
		return err
	}
	if designated != symlinktree.NoHost {
		if err := j.apply(planRelease(j.tree.Snapshot(), j.r)); err != nil {
			return err
		}
	}
	err := j.awaitChecked(ctx, old+" is no longer primary and everything is replayed here", func(t *symlinktree.Snapshot) (bool, string, error) {
		if old != "" && old != j.host {
			if v, _ := t.Get(j.r.ActualPath(old, "is-primary")); v != "0" {
				opened, _ := t.Get(j.r.ActualPath(old, "open-count"))
				return false, fmt.Sprintf("%s still is primary (open-count %s)", old, orMissing(opened)), nil
			}
		}
		return passed(t)
	})
	if err == nil {
		_, err = j.waitCluster(ctx, string(j.r), 3)
	}
	if err == nil {
		// With the news of all, once more.
		err = j.awaitChecked(ctx, "everything is replayed here", passed)
	}
	if err != nil && designated != symlinktree.NoHost && designated != "" {
		return errors.Join(err, j.giveBack(designated))
	}
	return err
}

// giveBack designates the old primary again, unless somebody else has been chosen
// meanwhile.
func (j *job) giveBack(old string) error {
	if _, err := j.tree.Rescan(j.r.Dir()); err != nil {
		return err
	}
	if p, _ := j.tree.Get(j.r.PrimaryPath()); p != symlinktree.NoHost {
		return nil
	}
	j.warn("the handover of %s has failed: %s is designated again", j.r, old)
	return j.apply([]op{set(j.r.PrimaryPath(), old)})
}

// lasting is how long a refusal must hold to be believed.
const lasting = 500 * time.Millisecond

// awaitChecked is await for a condition that can also fail for good.
func (j *job) awaitChecked(ctx context.Context, what string, cond func(t *symlinktree.Snapshot) (bool, string, error)) error {
	if j.opt.dryRun {
		j.print("DRY_RUN: would wait until %s\n", what)
		return nil
	}
	var final error
	var since time.Time
	dirs := []string{j.r.Dir()}
	for _, m := range macro.Members(j.tree, string(j.r)) {
		dirs = append(dirs, j.r.ActualDir(m))
	}
	err := j.await(ctx, j.where(), what, dirs, func(t *symlinktree.Snapshot) (bool, string) {
		done, missing, err := cond(t)
		if final = err; err == nil {
			since = time.Time{}
			return done, missing
		}
		// Links are read one by one while others write them: only what lasts is true.
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) >= lasting, err.Error()
	})
	if err != nil {
		return err
	}
	return final
}

// awaitPrimary waits for the device, and then switches everything on. After a
// forced handover into a split brain fetch stays off: that is for the administrator.
func (j *job) awaitPrimary(ctx context.Context) error {
	if j.opt.noWait {
		return nil
	}
	err := j.awaitLinks(ctx, "the device is present", linkIs{path: j.r.ActualPath(j.host, "if-on"), want: "1"},
		linkIs{path: j.r.ActualPath(j.host, "is-primary"), want: "1"})
	if err != nil {
		return j.explain(err, "inf-primary", "err-primary-inconsistent", "err-replay-stop", "err-transition")
	}
	if s := macro.DetectSplit(j.tree.Snapshot(), string(j.r)); s.Found && j.forced() {
		j.warn("%s is primary of %s, but there is a split brain with another member; resolve it: marsadm invalidate %s on the loser, then marsadm resume-fetch %s here",
			j.host, j.r, j.r, j.r)
		return nil
	}
	for _, name := range []string{symlinktree.SwitchAttach, symlinktree.SwitchConnect, symlinktree.SwitchSync, symlinktree.SwitchAllowReplay} {
		if err := j.turn(name, true, false); err != nil {
			return err
		}
	}
	j.done("%s is primary of %s\n", j.host, j.r)
	return nil
}

func secondary(ctx context.Context, j *job) error {
	old := oldPrimary(j.tree, j.r)
	before, _ := j.tree.Get(j.r.SystemdWantPath())
	err := j.withServices(ctx, symlinktree.NoHost, old, func(moving bool) error {
		if old != "" && !(j.opt.dryRun && moving) {
			if err := checkUnused(j.tree, j.r, old, j.forced()); err != nil {
				return err
			}
		}
		return j.apply(planRelease(j.tree.Snapshot(), j.r))
	})
	if err != nil {
		return err
	}
	if j.opt.noWait {
		return nil
	}
	if !j.opt.dryRun && !j.daemonRuns() {
		j.warn("marsd is not running on %s: the role counts from its next start", j.node)
		return nil
	}
	links := []linkIs{{path: j.r.ActualPath(j.host, "if-on"), want: "0"}}
	if old != "" && old != j.host {
		links = append(links, linkIs{path: j.r.ActualPath(old, "is-primary"), want: "0"})
	}
	return j.stayStopped(j.awaitLinks(ctx, "the device has disappeared", links...), before)
}
