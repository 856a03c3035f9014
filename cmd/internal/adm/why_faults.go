package adm

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// broken links are ignored: what they were to order does not happen.
func (x *explainer) broken() {
	for _, b := range append(x.node.Broken, x.r.Broken...) {
		x.because(b.Path, "a value that can be read", x.mend(b.Path), "a link has a value that cannot be read and is ignored: %s. What it said before stays in force%s", b.Error,
			x.inForce(b.Path))
	}
}

// inForce is what marsd says about a broken link.
func (x *explainer) inForce(path string) string {
	for _, list := range [][]macro.MessageReport{x.r.Messages, x.node.Messages} {
		for _, m := range list {
			if m.Key != brokenMessage {
				continue
			}
			for _, part := range strings.Split(m.Text, "; ") {
				if v, ok := strings.CutSuffix(part, " stays in force"); ok && strings.Contains(m.Text, path+":") && len(x.node.Broken)+len(x.r.Broken) == 1 {
					return ": " + v
				}
			}
		}
	}
	return ""
}

// brokenMessage is the message of marsd that lists them.
const brokenMessage = "err-broken-link"

// mend is the command that sets a broken link anew.
func (x *explainer) mend(path string) string {
	switch path {
	case x.res().PrimaryPath():
		if len(x.r.ActualPrimaries) == 1 {
			return x.at(x.r.ActualPrimaries[0], x.cmd("primary"))
		}
		return x.cmd("primary")
	case x.todo(symlinktree.SwitchAttach):
		return x.cmd("attach")
	case x.todo(symlinktree.SwitchConnect):
		return x.cmd("resume-fetch")
	case x.todo(symlinktree.SwitchAllowReplay):
		return x.cmd("resume-replay")
	case x.todo(symlinktree.SwitchSync):
		return x.cmd("resume-sync")
	}
	value := "VALUE"
	if v, err := strconv.Unquote(strings.TrimPrefix(x.inForce(path), ": ")); err == nil {
		value = v
	}
	return "ln -sfn " + value + " " + x.path(path)
}

// hole: the disk is a version of the data, but what comes next was never logged.
func (x *explainer) hole() bool {
	r := x.r
	if r.BehindHole == nil {
		return false
	}
	w := *r.BehindHole
	link := x.res().ActualPath(w, "has-emergency")
	if v, _ := x.c.Tree.Get(link); symlinktree.Switch(v) {
		why, next := x.emergencyOf(w)
		x.because(link, "the end of the emergency mode of "+w, next,
			"its disk is consistent but old: it ends at %s, and %s goes on without a log (%s), so that nothing more can be fetched. When that is over, the disk has to be copied anew: marsadm invalidate %s",
			r.Log.Position, w, why, r.Resource)
		return true
	}
	x.because(x.res().ReplayPath(r.Host), "the disk to be copied anew", x.at(r.Host, x.cmd("invalidate")),
		"its disk is consistent but old: it ends at %s, and behind that %s has gone on for a while without a log (emergency mode). This is no split brain: only a new copy brings it up to date",
		r.Log.Position, w)
	return true
}

// emergencyOf is why a host does not log, and the command to end that.
func (x *explainer) emergencyOf(host string) (why, next string) {
	level, _ := x.c.Tree.Get(symlinktree.ActualPath(host, "emergency"))
	limit, _ := x.c.Tree.Get(x.res().TodoPath(host, symlinktree.SwitchEmergencyLimit))
	if macro.Number(level) < emergencyLevel && macro.Number(limit) > 0 {
		return fmt.Sprintf("less than its emergency limit of %d%% of the space for logs is free; free space, or lower the limit", macro.Number(limit)),
			x.at(host, fmt.Sprintf("marsadm set-emergency-limit %s 0", x.r.Resource))
	}
	if host == x.c.Node && x.c.Root != "" {
		return "its filesystem of the logs is full", "df -h " + x.c.Root
	}
	return "its filesystem of the logs is full", x.at(host, "df -h")
}

// emergencyLevel is the level of actual-H/emergency at which primaries stop logging.
const emergencyLevel = 4

// damage: a log that cannot be used. The advice is that of marsd.
func (x *explainer) damage() bool {
	r := x.r
	switch {
	case r.Log.Damage != "":
		x.ownDamage()
		return true
	case r.Log.ReplayCode != nil && *r.Log.ReplayCode < 0:
		x.copyDamage()
		return true
	case r.Orphan:
		x.because(x.res().ReplayPath(r.Host), "the log to be fetched, if a peer still has it", x.cmd("invalidate"),
			"the log that replay stands in, %s, is not here", r.Log.Position)
	}
	return false
}

// ownDamage: the log that this host wrote is damaged.
func (x *explainer) ownDamage() {
	r := x.r
	at, lost := ownDamage(x.c.Tree, x.res(), r.Host)
	link := x.actual(symlinktree.LogDamage)
	if p := r.DesignatedPrimary; p != nil && *p != r.Host {
		x.because(link, "a new copy of the disk of "+*p, x.at(r.Host, x.cmd("invalidate")),
			"the own log of %s is damaged at %s, with %d bytes of log behind that. The primary is %s now: only a copy of its disk helps", r.Host, at, lost, *p)
		return
	}
	x.because(link, "a decision to give up what is behind the damage", x.at(r.Host, x.cmd("primary --force")),
		"the own log of %s is damaged at %s: %d bytes of log behind that would be lost. If another member has them, make that one primary instead", r.Host, at, lost)
}

// copyDamage: replay has met something in a copy of a log that it cannot use.
func (x *explainer) copyDamage() {
	r := x.r
	code := x.actual("replay-code")
	what := fmt.Sprintf("replay stopped at %s: %s", r.Log.Position, macro.ErrnoText(r.Log.ReplayText))
	where := "It is damaged where it comes from, too"
	number := *r.Log.ReplayCode
	switch {
	case x.said("wrn-log-refetch") != "":
	case number == -int64(syscall.ENOENT):
		where = "It is not here"
	case number == -int64(syscall.EIO):
		where = "It cannot be read here"
	default:
		where = ""
	}
	switch designated := designatedOf(r) == r.Host; {
	case !r.Wanted.Fetch && !designated:
		x.because(code, "a sound copy of the log", x.at(r.Host, x.cmd("resume-fetch")), "%s. Fetch is switched off, so that no sound copy can come", what)
	case where == "":
		x.because(code, "a sound copy of the log", "marsadm view --watch "+r.Resource, "%s. The log is fetched again from there, which mends a copy that is damaged only here", what)
	case designated:
		x.because(code, "a decision to give up what is behind the damage", x.at(r.Host, x.cmd("pause-fetch")+"; "+x.cmd("primary --force")),
			"%s. %s; what is behind that can only be given up", what, where)
	default:
		x.because(code, "a sound log; it is tried again now and then, and when it changes where it comes from", x.at(r.Host, x.cmd("invalidate")),
			"%s. %s: a new copy of the disk of the primary %s does without it", what, where, designatedOf(r))
	}
}
