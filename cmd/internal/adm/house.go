package adm

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

func houseVerbs() []verb {
	return []verb{
		{name: "cron", args: "[RES]", help: "rotate and delete logs, clean up: run it every 10 minutes on every node", res: optRes, anyResource: true, run: cron},
		{name: "log-rotate", args: "RES", help: "let the primary go on in a new log", res: oneRes, each: logRotate},
		{name: "log-delete-all", args: "RES", help: "delete the logs that no member needs any more", res: oneRes, each: logDelete(false)},
		{name: "log-delete", args: "RES", hidden: true, res: oneRes, each: logDelete(false)},
		{name: "log-delete-all-replayed", args: "RES", hidden: true, res: oneRes, each: logDelete(false)},
		{name: "log-delete-one", args: "RES", help: "likewise, only the oldest one", hidden: true, res: oneRes, each: logDelete(true)},
		{name: "log-purge-all", args: "RES", help: "delete logs and version links that belong to no member's history", res: oneRes, anyResource: true, each: purgeVerb},
		{name: "err-purge-all", args: "RES", help: "forget error messages", hidden: true, res: oneRes, anyResource: true, each: errPurge},
		{name: "link-purge-all", args: "RES", help: "remove old tombstones", hidden: true, res: oneRes, anyResource: true, each: linkPurgeVerb},
	}
}

// rotateInput is what rotation depends on, beside the tree.
type rotateInput struct {
	res    symlinktree.Resource
	host   string
	logs   []logfile.Info
	now    time.Time
	window time.Duration
	files  int   // from this many own logs on
	bytes  int64 // only logs of this size are rotated
	force  bool
}

// planRotate is pure: the new empty log is the request to the primary to go on in
// it. Without need it returns nothing, and why.
func planRotate(t macro.Tree, in rotateInput) (batch []op, why string) {
	r, h := in.res, in.host
	isPrimary, _ := t.Get(r.ActualPath(h, "is-primary"))
	device, _ := t.Get(r.ActualPath(h, "if-on"))
	if !symlinktree.Switch(isPrimary) && !symlinktree.Switch(device) && !in.force {
		return nil, h + " is not primary"
	}
	var last logfile.Info
	own, highest := 0, 0
	for _, l := range in.logs {
		highest = max(highest, l.Name.Seq)
		if l.Name.Host == h {
			own++
			if l.Name.Seq > last.Name.Seq {
				last = l
			}
		}
	}
	switch {
	case own == 0:
		return nil, "there is no log of " + h
	case last.Size == 0:
		return nil, last.Name.String() + " is empty"
	case own >= in.files && last.Size < in.bytes && !in.force:
		return nil, fmt.Sprintf("there are %d logs already, and %s is not big", own, last.Name)
	case highest > last.Name.Seq:
		return nil, fmt.Sprintf("there is a log number %d already", highest)
	case !has(t, r.VersionPath(last.Name.Seq, h)) && in.now.Sub(last.ModTime) > 2*in.window && !in.force:
		return nil, "the version link of " + last.Name.String() + " is missing"
	}
	next := last.Name.Seq + 1
	return []op{createLog(r.LogPath(next, h)), set(r.MaxNrPath(), strconv.Itoa(next))}, ""
}

func (j *job) rotate() (why string, err error) {
	batch, why := planRotate(j.tree.Snapshot(), rotateInput{
		res: j.r, host: j.host, logs: j.logs(j.r), now: j.env.Now(), window: j.opt.window,
		files: j.opt.threshLogfiles, bytes: int64(j.opt.threshLogsize * 1e9), force: j.forced(),
	})
	if len(batch) == 0 {
		return why, nil
	}
	return "", j.apply(batch)
}

func logRotate(_ context.Context, j *job) error {
	isPrimary, _ := j.tree.Get(j.r.ActualPath(j.host, "is-primary"))
	designated, _ := j.tree.Get(j.r.PrimaryPath())
	if !symlinktree.Switch(isPrimary) && designated != j.host {
		return refuse("run it on the primary", "%s is neither actual nor designated primary", j.host)
	}
	why, err := j.rotate()
	if why != "" {
		j.print("not rotated: %s\n", why)
	}
	return err
}

// deleteInput is what deletion depends on, beside the tree.
type deleteInput struct {
	res     symlinktree.Resource
	logs    []logfile.Info
	now     time.Time         // for the age of files
	lamport symlinktree.Stamp // for the age of links
	window  time.Duration
	force   bool // files and links may be young
	one     bool // only the first
}

// planLogDelete is pure. It deletes never the last log, and never one that a member's replay position
// has not passed. While somebody is joining (a disk, but no position yet) nothing
// is deleted at all.
func planLogDelete(t macro.Tree, in deleteInput) (batch []op, why string) {
	r := in.res
	limit := macro.DeleteLimit(t, string(r))
	if limit == 0 {
		return nil, "a member has no replay position (it is joining, or starting over)"
	}
	highest := 0
	for _, l := range in.logs {
		highest = max(highest, l.Name.Seq)
	}
	limit = min(limit, highest)
	for _, l := range in.logs { // ascending
		if l.Name.Seq >= limit {
			break
		}
		if in.now.Sub(l.ModTime) < 2*in.window && !in.force {
			why = l.Name.String() + " is younger than " + (2 * in.window).String()
			limit = l.Name.Seq // so that its version links stay, too
			break
		}
		batch = append(batch, del(r.Path(l.Name.String())))
		if in.one {
			limit = l.Name.Seq + 1
			break
		}
	}
	return append(batch, planVersionDelete(t, in, limit)...), why
}

// planVersionDelete deletes version links of all hosts below limit-1: one number
// more is kept than of logs, because the chain is walked back over its end. Links
// of one number go together, when all of them are old.
func planVersionDelete(t macro.Tree, in deleteInput, limit int) []op {
	byNumber := make(map[int][]op)
	young := make(map[int]bool)
	var order []int
	for _, e := range t.List(in.res.Dir()) {
		n, _, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version")
		if !ok || n >= limit-1 {
			continue
		}
		if byNumber[n] == nil {
			order = append(order, n)
		}
		byNumber[n] = append(byNumber[n], del(e.Path))
		if time.Duration(in.lamport-e.Stamp) < 2*in.window && !in.force {
			young[n] = true
		}
	}
	var batch []op
	for _, n := range order {
		if !young[n] {
			batch = append(batch, byNumber[n]...)
		}
	}
	return batch
}

func (j *job) deleteLogs(one bool) (why string, err error) {
	batch, why := planLogDelete(j.tree.Snapshot(), deleteInput{
		res: j.r, logs: j.logs(j.r), now: j.env.Now(), lamport: j.tree.Clock().Now(),
		window: j.opt.window, force: j.forced(), one: one,
	})
	return why, j.apply(batch)
}

func logDelete(one bool) func(context.Context, *job) error {
	return func(_ context.Context, j *job) error {
		why, err := j.deleteLogs(one)
		if why != "" {
			j.detail("log deletion of %s stopped: %s", j.r, why)
		}
		return err
	}
}

func purgeVerb(_ context.Context, j *job) error {
	logs := j.logs(j.r)
	j.warnPurge(planPurge(j.tree.Snapshot(), j.r, j.host, logs, j.forced()), logs)
	return j.purge(j.forced())
}

// purge deletes what belongs to no member's history. foreign includes logs and
// version links of other hosts.
func (j *job) purge(foreign bool) error {
	if _, err := j.tree.Rescan(j.r.Dir()); err != nil {
		return err
	}
	return j.apply(planPurge(j.tree.Snapshot(), j.r, j.host, j.logs(j.r), foreign))
}

// planPurge is pure. Reachable are the log numbers from the oldest to the newest
// that any member's position or version chain leads to; of those, every log that a
// version link names as part of such a chain.
func planPurge(t macro.Tree, r symlinktree.Resource, host string, logs []logfile.Info, foreign bool) []op {
	keep := reachable(t, r)
	member := make(map[string]bool)
	for _, m := range replayMembers(t, r) {
		member[m] = true
	}
	var batch []op
	for _, l := range logs {
		if !keep[l.Name] && (l.Name.Host == host || foreign) {
			batch = append(batch, del(r.Path(l.Name.String())))
		}
	}
	for _, e := range t.List(r.Dir()) {
		n, h, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version")
		if !ok || (h != host && !foreign) {
			continue
		}
		v, err := symlinktree.ParseVersion(e.Value)
		if err == nil && n == v.Seq && neededVersion(keep, h, v, member[h]) {
			continue
		}
		batch = append(batch, del(e.Path))
	}
	return batch
}

// neededVersion: a member's chain is kept as far as its logs are, and one link more
// as its foot. Of a host that has left only the word about its own logs counts, as
// long as somebody needs them.
func neededVersion(keep map[logfile.Name]bool, host string, v symlinktree.Version, member bool) bool {
	known := keep[logfile.Name{Seq: v.Seq, Host: v.Origin}]
	if !member {
		return known && v.Origin == host
	}
	return known || v.Seq == 0 || keepsNext(keep, v.Seq)
}

func keepsNext(keep map[logfile.Name]bool, n int) bool {
	for k := range keep {
		if k.Seq == n+1 {
			return true
		}
	}
	return false
}

// reachable are the logs on the way forward and back from the position of every
// member, through the version links of all members.
func reachable(t macro.Tree, r symlinktree.Resource) map[logfile.Name]bool {
	prev := make(map[logfile.Name][]logfile.Name)
	next := make(map[logfile.Name][]logfile.Name)
	for _, e := range t.List(r.Dir()) {
		if _, _, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version"); !ok {
			continue
		}
		v, err := symlinktree.ParseVersion(e.Value)
		if err != nil {
			continue
		}
		here := logfile.Name{Seq: v.Seq, Host: v.Origin}
		if p, ok := v.Predecessor(); ok {
			before := logfile.Name{Seq: p.Seq, Host: p.Origin}
			prev[here] = append(prev[here], before)
			next[before] = append(next[before], here)
		}
	}
	keep := make(map[logfile.Name]bool)
	for _, m := range replayMembers(t, r) {
		v, _ := t.Get(r.ReplayPath(m))
		rep, err := symlinktree.ParseReplay(v)
		if err != nil {
			continue
		}
		for _, edges := range []map[logfile.Name][]logfile.Name{prev, next} {
			// Each walk has its own marks: it must not stop where another one, in the
			// other direction, has been.
			seen := make(map[logfile.Name]bool)
			for queue := []logfile.Name{{Seq: rep.Seq, Host: rep.Origin}}; len(queue) > 0; queue = queue[1:] {
				if n := queue[0]; !seen[n] {
					seen[n], keep[n] = true, true
					queue = append(queue, edges[n]...)
				}
			}
		}
	}
	return keep
}

func errPurge(_ context.Context, j *job) error {
	var batch []op
	for _, dir := range []string{symlinktree.ActualDir(j.host), j.r.ActualDir(j.host)} {
		for _, e := range j.tree.List(dir) {
			if m, _ := filepath.Match("msg-err-*", filepath.Base(e.Path)); m {
				batch = append(batch, del(e.Path))
			}
		}
	}
	return j.apply(batch)
}
