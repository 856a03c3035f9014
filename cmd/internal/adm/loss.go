package adm

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

// loss is what an order would throw away, as far as it is known here.
type loss struct {
	bytes   int64
	seconds float64 // in which they were written; < 1: not known
	logs    []string
}

func (l loss) String() string {
	text := fmt.Sprintf("%d bytes of log (%s", l.bytes, macro.HumanNumber(float64(l.bytes)))
	if l.seconds >= 1 {
		text += ", written in about " + macro.HumanSeconds(l.seconds)
	}
	return text + ")"
}

// onlyAt is what no other member has of the log that host has, by their version
// links. It is pure.
func onlyAt(t macro.Tree, r symlinktree.Resource, host string) loss {
	type key struct {
		n      int
		origin string
	}
	have := make(map[key]int64)
	var mine []key
	var newest, known symlinktree.Stamp
	size := make(map[key]int64)
	for _, e := range t.List(r.Dir()) {
		n, h, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version")
		v, err := symlinktree.ParseVersion(e.Value)
		if !ok || err != nil || n == 0 || v.Seq != n {
			continue
		}
		k := key{n, v.Origin}
		if h == host {
			mine, size[k], newest = append(mine, k), v.Pos, max(newest, e.Stamp)
		} else if has(t, r.ReplayPath(h)) {
			have[k], known = max(have[k], v.Pos), max(known, e.Stamp)
		}
	}
	l := loss{seconds: -1}
	for _, k := range mine {
		if rest := size[k] - have[k]; rest > 0 {
			l.bytes += rest
			l.logs = append(l.logs, filepath.Base(r.LogPath(k.n, k.origin)))
		}
	}
	if l.bytes > 0 && known > 0 && newest > known {
		l.seconds = time.Duration(newest - known).Seconds()
	}
	return l
}

// warnOnlyHere tells what is lost when the replica of the job's host is given up.
func (j *job) warnOnlyHere(others string) {
	l := onlyAt(j.tree.Snapshot(), j.r, j.host)
	switch {
	case l.bytes > 0:
		j.warn("%s that only %s has will be lost: %s", l, j.host, strings.Join(l.logs, " "))
	case others == "":
		size, _ := j.tree.Get(j.r.SizePath())
		j.warn("%s is the last member: all %d bytes of the resource are given up (its disk stays as it is)", j.host, macro.Number(size))
	default:
		j.detail("nothing is lost: all that is known of the log of %s is at %s, too", j.host, others)
	}
}

// warnForced tells what a forced handover gives up, and how old that knowledge is.
func (j *job) warnForced(old string) {
	c := j.context(string(j.r))
	if old == "" || old == j.host {
		return
	}
	v, _ := j.tree.Get(symlinktree.ActualPath(old, "time"))
	age := ""
	if s, err := symlinktree.ParseStamp(v); err == nil {
		age = fmt.Sprintf("; the latest news of it are %s old", time.Duration(max(0, j.tree.Clock().Now()-s)).Round(time.Second))
	}
	if lost, seconds := c.Unfetched(j.host); lost > 0 {
		j.warn("%s that %s has are not here: they will be lost on this side%s", loss{bytes: lost, seconds: seconds}, old, age)
		return
	}
	j.warn("nothing is known that %s has and %s has not; what it has written since is not known here%s", old, j.host, age)
}

// warnPurge tells which logs a purge deletes.
func (j *job) warnPurge(batch []op, logs []logfile.Info) {
	l := loss{seconds: -1}
	size := make(map[string]logfile.Info)
	for _, i := range logs {
		size[j.r.Path(i.Name.String())] = i
	}
	var oldest, newest time.Time
	for _, o := range batch {
		i, ok := size[o.path]
		if !ok {
			continue
		}
		l.bytes += i.Size
		l.logs = append(l.logs, i.Name.String())
		if oldest.IsZero() || i.ModTime.Before(oldest) {
			oldest = i.ModTime
		}
		if i.ModTime.After(newest) {
			newest = i.ModTime
		}
	}
	if l.bytes == 0 {
		return
	}
	ago := func(t time.Time) time.Duration { return j.env.Now().Sub(t).Round(time.Second) }
	when := fmt.Sprintf("%s ago", ago(newest))
	if ago(oldest) != ago(newest) {
		when = fmt.Sprintf("between %s and %s ago", ago(oldest), ago(newest))
	}
	j.warn("%s of no member's history are deleted, last written %s: %s", l, when, strings.Join(l.logs, " "))
}
