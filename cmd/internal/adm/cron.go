package adm

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

// cronWait is how long cron waits for news before it decides what can be deleted.
const cronWait = 7 * time.Second

func cron(ctx context.Context, s *session, args []string) error {
	list := macro.ResourcesOf(s.tree, s.host)
	if len(args) > 0 && args[0] != "all" {
		v := findVerb("cron")
		var err error
		if list, err = s.resources(v, args[0]); err != nil {
			return err
		}
	}
	var errs failures
	note := func(err error, res string) {
		if err != nil {
			errs = append(errs, named(err, s.command, res, s.host))
		}
	}
	note(s.apply(append([]op{set(symlinktree.ActualPath(s.host, "marsadm-version"), admVersion)}, s.planLinkPurge(globalDirs(s.tree))...)), "")
	note(s.removeTemps(), "")
	for _, res := range purgeable(s.tree, list, len(args) > 0) {
		j := &job{session: s, r: symlinktree.Resource(res)}
		note(s.apply(planForgotten(s.tree.Snapshot(), j.r, j.logs(j.r), s.env.Now().Add(-2*s.opt.window))), res)
		note(j.linkPurge(), res)
	}
	s.forgetUnits(ctx)
	for _, res := range list {
		j := &job{session: s, r: symlinktree.Resource(res)}
		why, err := j.rotate()
		if why != "" {
			s.detail("%s: not rotated: %s", res, why)
		}
		note(err, res)
	}
	s.freshNews(ctx)
	for _, res := range list {
		j := &job{session: s, r: symlinktree.Resource(res)}
		why, err := j.deleteLogs(false)
		if why != "" {
			s.detail("%s: log deletion stopped: %s", res, why)
		}
		note(err, res)
	}
	if s.opt.autoclean > 0 {
		for _, res := range list {
			note(s.apply(planAutoclean(s.tree.Snapshot(), symlinktree.Resource(res), s.tree.Clock().Now()-symlinktree.Stamp(s.opt.autoclean))), res)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// planAutoclean deletes links of hosts that the cluster does not know, when they
// are older than limit: what a host has left behind that went without saying so.
// It is pure.
func planAutoclean(t macro.Tree, r symlinktree.Resource, limit symlinktree.Stamp) []op {
	known := make(map[string]bool)
	for _, h := range macro.Hosts(t) {
		known[h] = true
	}
	var batch []op
	for _, e := range t.List(r.Dir()) {
		name := filepath.Base(e.Path)
		if e.Stamp >= limit || e.Value == symlinktree.Deleted {
			continue
		}
		for _, prefix := range []string{"data", "device", "replay", "syncstatus", "syncpos", "actsize", "skip-check", "verifystatus", "connect", "syncfrom", "syncsource"} {
			if h, ok := symlinktree.HostOf(name, prefix); ok && !known[h] {
				batch = append(batch, del(e.Path))
			}
		}
		if _, h, ok := symlinktree.NumberedOf(name, "version"); ok && !known[h] && !has(t, r.ReplayPath(h)) {
			batch = append(batch, del(e.Path))
		}
	}
	return batch
}

// purgeable adds to the resources of a cron run those that nobody stores any more:
// what is left of them are tombstones.
func purgeable(t macro.Tree, list []string, only bool) []string {
	if only {
		return list
	}
	out := list
	for _, res := range macro.Resources(t) {
		if len(macro.Peers(t, res)) == 0 {
			out = append(out[:len(out):len(out)], res)
		}
	}
	return out
}

// planForgotten deletes the logs of a resource that was deleted: whoever did it could
// name only those that he had. An empty one that is not older than limit may be the beginning of
// another life. It is pure.
func planForgotten(t macro.Tree, r symlinktree.Resource, logs []logfile.Info, limit time.Time) []op {
	if e, ok := t.Entry(r.SizePath()); !ok || e.Value != symlinktree.Deleted || len(macro.Peers(t, string(r))) > 0 {
		return nil
	}
	var batch []op
	for _, l := range logs {
		if l.Size > 0 || l.ModTime.Before(limit) {
			batch = append(batch, del(r.Path(l.Name.String())))
		}
	}
	return batch
}

// freshNews tries to learn the latest positions of all members before logs are
// deleted. Without marsd the known ones have to do: they can only be too old, and
// then less is deleted.
func (s *session) freshNews(ctx context.Context) {
	if !s.daemonRuns() || s.opt.dryRun {
		return
	}
	ctx, cancel := s.within(ctx, cronWait)
	defer cancel()
	if _, err := s.waitCluster(ctx, "", 3); err != nil {
		s.detail("cron goes on with what is known: %v", err)
	}
}

// globalDirs are the directories outside of resources.
func globalDirs(t macro.Tree) []string {
	dirs := []string{""}
	for _, d := range t.Dirs("") {
		if !strings.HasPrefix(filepath.Base(d), "resource-") {
			dirs = append(dirs, filepath.Base(d))
		}
	}
	return dirs
}

// resourceDirs are the directories of one resource.
func resourceDirs(t macro.Tree, r symlinktree.Resource) []string {
	dirs := []string{r.Dir()}
	for _, d := range t.Dirs(r.Dir()) {
		dirs = append(dirs, r.Path(filepath.Base(d)))
	}
	return dirs
}

// tombstoneLimit is the Lamport time up to which tombstones may go: every host of
// the cluster has been heard since then, so all of them know of the deletion. The
// original gives up on hosts after a week and lets them revive what was deleted;
// here a host that is gone for good has to be taken out (leave-cluster --host).
func tombstoneLimit(t macro.Tree, node string, now symlinktree.Stamp, window time.Duration, force bool) symlinktree.Stamp {
	limit := now
	if !force {
		for _, h := range peersOf(t, "", node) {
			v, _ := t.Get(symlinktree.ActualPath(h, "time"))
			if s, err := symlinktree.ParseStamp(v); err == nil {
				limit = min(limit, s)
			}
		}
	}
	return limit - symlinktree.Stamp(window)
}

// tombstones lists those below limit in some directories; those of addresses only
// below ipLimit.
func tombstones(snap *symlinktree.Snapshot, dirs []string, limit, ipLimit symlinktree.Stamp) []op {
	var batch []op
	for _, dir := range dirs {
		for _, e := range snap.Dir(dir) {
			if e.IsDeleted() && e.Stamp < limit && (dir != "ips" || e.Stamp < ipLimit) {
				batch = append(batch, unlink(e.Path))
			}
		}
	}
	return batch
}

func (s *session) planLinkPurge(dirs []string) []op {
	now := s.tree.Clock().Now()
	limit := tombstoneLimit(s.tree, s.node, now, s.opt.window, s.forced())
	return tombstones(s.tree.Snapshot(), dirs, limit, min(limit, now-symlinktree.Stamp(s.opt.keepBackups)))
}

func (j *job) linkPurge() error {
	dirs := resourceDirs(j.tree, j.r)
	batch := j.planLinkPurge(dirs)
	if len(macro.Peers(j.tree, string(j.r))) == 0 {
		for _, dir := range dirs[1:] {
			batch = append(batch, rmdir(dir))
		}
	}
	return j.apply(batch)
}

func linkPurgeVerb(_ context.Context, j *job) error { return j.linkPurge() }

// removeTemps removes temporary links that a crash has left behind.
func (s *session) removeTemps() error {
	if s.opt.dryRun {
		return nil
	}
	n, err := s.tree.RemoveTemp(s.opt.stuck)
	if n > 0 {
		s.detail("removed %d temporary links", n)
	}
	return err
}
