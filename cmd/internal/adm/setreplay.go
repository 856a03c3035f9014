package adm

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// checkSetReplay is pure: the position is for experts, who have stopped everything
// first. It returns the new one.
func checkSetReplay(t macro.Tree, r symlinktree.Resource, host string, n int, force bool) (symlinktree.Replay, error) {
	none := symlinktree.Replay{}
	if !has(t, r.DataPath(host)) {
		return none, refuse(fmt.Sprintf("marsadm join-resource %s DISK", r), "%s does not store it", host)
	}
	if err := checkNotPrimary(t, r, host, false); err != nil {
		return none, err
	}
	if v, _ := t.Get(r.TodoPath(host, symlinktree.SwitchAllowReplay)); symlinktree.Switch(v) {
		return none, refuse(fmt.Sprintf("marsadm pause-replay %s", r), "replay is not paused on %s", host)
	}
	v, _ := t.Get(r.ReplayPath(host))
	now, err := symlinktree.ParseReplay(v)
	if err == nil && n > now.Seq && !force {
		return none, refuse("--force, if a disk that no member ever had is what you want; marsadm invalidate gives a true replica",
			"logs %d to %d would be left out: the disk of %s would be consistent no more", now.Seq, n-1, host)
	}
	// The log with that number in the history of the primary, or of anybody.
	hosts := macro.Members(t, string(r))
	if p, _ := t.Get(r.PrimaryPath()); p != "" && p != symlinktree.NoHost {
		hosts = append([]string{p}, hosts...)
	}
	for _, h := range hosts {
		text, _ := t.Get(r.VersionPath(n, h))
		if ver, err := symlinktree.ParseVersion(text); err == nil {
			return symlinktree.Replay{Seq: n, Origin: ver.Origin}, nil
		}
	}
	return none, refuse(fmt.Sprintf("version links: ls -l %s/version-*", r.Dir()), "no member knows a log number %d", n)
}

// planSetReplay puts the replica of host in front of log to.
func planSetReplay(t macro.Tree, r symlinktree.Resource, host string, to symlinktree.Replay) (forget, start []op) {
	for _, e := range t.List(r.Dir()) {
		if n, h, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version"); ok && h == host && n >= to.Seq {
			forget = append(forget, del(e.Path))
		}
	}
	if has(t, r.ReplayPath(host)) {
		forget = append(forget, del(r.ReplayPath(host)))
	}
	start = []op{set(r.ReplayPath(host), to.String())}
	for _, k := range []int{to.Seq, to.Seq - 1} {
		for _, h := range macro.Members(t, string(r)) {
			if v, ok := t.Get(r.VersionPath(k, h)); ok && k > 0 && (h != host || k < to.Seq) {
				start = append(start, set(r.VersionPath(k, host), v))
				break
			}
		}
	}
	return forget, append(start, set(r.SkipCheckPath(host), strconv.Itoa(to.Seq)))
}

func setReplay(ctx context.Context, j *job) error {
	n, err := strconv.Atoi(j.args[0])
	if err != nil || n < 1 || n > 999_999_999 {
		return usage("%q is not the number of a log", j.args[0])
	}
	to, err := checkSetReplay(j.tree, j.r, j.host, n, j.forced())
	if err != nil {
		return err
	}
	if j.daemonRuns() {
		if err := j.awaitLinks(ctx, "replay has stopped", linkIs{path: j.r.ActualPath(j.host, "is-replaying"), want: "0"}); err != nil {
			return err
		}
	}
	forget, start := planSetReplay(j.tree.Snapshot(), j.r, j.host, to)
	if err := j.apply(forget); err != nil {
		return err
	}
	return j.apply(start)
}
