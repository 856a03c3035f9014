package adm

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func explainVerbs() []verb {
	return []verb{{name: "why", args: "RES", help: "why a resource is in its state, what it waits for, and what to type next",
		res: oneRes, readOnly: true, anyResource: true, each: whyVerb}}
}

func init() {
	details["why"] = detail{"Looks at the tree only. For each reason: the link that says so and since when, which host or process it waits for, and the next command to type. With --host=NAME for another member; --json for programs.",
		"marsadm why r0"}
	details["tree"] = detail{"With -v also what was deleted. BROKEN marks values that marsd ignores, pending orders that it has not carried out.", "marsadm tree r0"}
	details["check"] = detail{"A plugin for Nagios and its kin: one line of summary with performance data, then one line for each problem. Each of the --check options is WARN:CRIT. RES may be several words; all if left out.",
		"marsadm check --check-lag=60:600 --check-rest=1G:10G"}
}

// reason is one thing that keeps a resource from being as it should be, or that
// explains what it does.
type reason struct {
	Text     string   `json:"text"`
	Link     string   `json:"link"` // the link that says so, or empty
	Value    string   `json:"value"`
	Since    *float64 `json:"since_seconds"` // age of that link
	WaitsFor string   `json:"waits_for"`
	Next     string   `json:"next_command"`
}

// explainer finds the reasons, from the tree alone.
type explainer struct {
	c    *macro.Context
	r    *macro.Report
	node *macro.NodeReport
	now  symlinktree.Stamp
	out  []reason
}

// because adds a reason that a link vouches for.
func (x *explainer) because(link, waitsFor, next, format string, args ...any) {
	e := reason{Text: fmt.Sprintf(format, args...), Link: link, WaitsFor: waitsFor, Next: next}
	if v, ok := x.c.Tree.Get(link); ok && link != "" {
		e.Value = v
		if entry, ok := x.c.Tree.Entry(link); ok {
			age := max(0, time.Duration(x.now-entry.Stamp).Round(time.Millisecond).Seconds())
			e.Since = &age
		}
	}
	x.out = append(x.out, e)
}

func (x *explainer) res() symlinktree.Resource { return symlinktree.Resource(x.r.Resource) }
func (x *explainer) todo(name string) string   { return x.res().TodoPath(x.r.Host, name) }
func (x *explainer) actual(name string) string { return x.res().ActualPath(x.r.Host, name) }

// cmd is a marsadm command about the resource.
func (x *explainer) cmd(verb string) string { return "marsadm " + verb + " " + x.r.Resource }

// at names the host on which a command has to be typed, if it is another one.
func (x *explainer) at(host, cmd string) string {
	if host == x.c.Node {
		return cmd
	}
	return "on " + host + ": " + cmd
}

// explain is a pure function of the tree: the first reason is the one to mend
// first.
func explain(c *macro.Context, host string) (*macro.Report, []reason) {
	x := &explainer{c: c, r: c.Report(host), node: c.NodeReport(), now: c.Now}
	x.broken()
	for _, f := range []func() bool{x.membership, x.daemon, x.disk, x.split, x.hole, x.damage, x.misnamed, x.role, x.emergency} {
		if f() {
			return x.r, x.out
		}
	}
	x.sync()
	x.fetch()
	x.replay()
	x.device()
	x.peers()
	x.messages()
	if len(x.out) == 0 {
		x.fine()
	}
	return x.r, x.out
}

// path is where a link is.
func (x *explainer) path(rel string) string {
	if x.c.Root == "" {
		return rel
	}
	return x.c.Root + "/" + rel
}

// membership: without a disk here there is nothing else to say.
func (x *explainer) membership() bool {
	switch r := x.r; r.Kind {
	case "guest":
		x.because(x.res().DevicePath(r.Host), "", x.cmd("join-resource")+" DISK", "the host %s is a guest: it knows the resource but has no disk for it", r.Host)
		return true
	case "none":
		x.because("", "", x.cmd("join-resource")+" DISK", "the host %s has nothing to do with the resource; members are: %s", r.Host, words(r.Members))
		return true
	}
	return false
}

// daemon: nothing happens without it.
func (x *explainer) daemon() bool {
	age := x.node.NewsAge
	link := symlinktree.ActualPath(x.r.Host, "time")
	switch {
	case age == nil:
		x.because(link, "marsd on "+x.r.Host, x.at(x.r.Host, "systemctl start marsd"), "there has never been a marsd on %s", x.r.Host)
	case !x.node.Running && x.r.Host == x.c.Node:
		x.because(symlinktree.ActualPath(x.r.Host, "alive"), "marsd on "+x.r.Host, x.at(x.r.Host, "systemctl start marsd"),
			"the marsd of %s was stopped: nothing happens until it runs again", x.r.Host)
	case *age >= x.c.Window.Seconds():
		x.because(link, "marsd on "+x.r.Host, x.at(x.r.Host, "systemctl status marsd"),
			"nothing was heard of marsd on %s for %s", x.r.Host, macro.HumanSeconds(*age))
	default:
		return false
	}
	x.diskGone()
	return true
}

// diskGone: what marsd is to work on is missing.
func (x *explainer) diskGone() bool {
	r := x.r
	if r.Disk.Present == nil || *r.Disk.Present {
		return false
	}
	x.because(x.res().DataPath(r.Host), "the disk "+r.Disk.Path, x.at(r.Host, "ls -l "+r.Disk.Path), "the disk %s is not there, or is neither a block device nor a regular file", r.Disk.Path)
	return true
}

// disk: it is not there, cannot be read, or is not to be used.
func (x *explainer) disk() bool {
	r := x.r
	attach := x.todo(symlinktree.SwitchAttach)
	switch {
	case x.diskGone():
	case r.Disk.Error != 0:
		x.because(x.actual("disk-error"), "", x.at(r.Host, "dmesg | tail"), "the disk %s failed: %s. Replace it, then leave-resource and join-resource with the new one",
			r.Disk.Path, macro.ErrnoText(fmt.Sprint(r.Disk.Error)))
	case !r.Wanted.Attach && r.Active.Attach:
		x.because(attach, "marsd to write back and to close the disk", x.cmd("wait-resource")+" is-attach-off", "it is being detached")
	case !r.Wanted.Attach:
		x.because(attach, "", x.cmd("up"), "it is detached: the switch attach is off")
	case !r.Active.Attach && r.Log.Damage == "" && (r.Log.ReplayCode == nil || *r.Log.ReplayCode >= 0):
		x.because(x.actual("is-attached"), "marsd to open the disk "+r.Disk.Path, x.at(r.Host, "journalctl -u marsd -n 20"),
			"the disk is to be attached, and is not yet%s", x.said("err-disk"))
	default:
		return false
	}
	return true
}

// said quotes a message of marsd.
func (x *explainer) said(key string) string {
	for _, m := range x.r.Messages {
		if m.Key == key {
			return ": " + m.Text
		}
	}
	return ""
}

// split brain: a person has to choose.
func (x *explainer) split() bool {
	s := x.r.Split
	if s == nil {
		return false
	}
	keep, lose, lost := s.Hosts[0], s.Hosts[1], s.Lost[1]
	if p := x.r.DesignatedPrimary; p != nil && *p == s.Hosts[1] {
		keep, lose, lost = s.Hosts[1], s.Hosts[0], s.Lost[0]
	}
	link := x.res().ReplayPath(lose)
	x.because(link, "a decision which of the two versions shall live", x.at(lose, x.cmd("invalidate")),
		"split brain: %s. %s has %s and %s has %s of their own after %s. If %s shall live, invalidate throws away the %s of %s",
		s.Reason, s.Hosts[0], macro.HumanNumber(float64(s.Lost[0])), s.Hosts[1], macro.HumanNumber(float64(s.Lost[1])), orMissing(s.After),
		keep, macro.HumanNumber(float64(lost)), lose)
	return true
}

// role: the designated primary is not primary, or one that is not designated is.
func (x *explainer) role() bool {
	r := x.r
	primary := x.res().PrimaryPath()
	switch r.Role {
	case "ForcedPrimary":
		others := without(r.ActualPrimaries, r.Host)
		x.because(primary, "the others to give up the device", x.at(others[0], x.cmd("secondary")), "there is another primary, %s: somebody used --force", words(others))
	case "RemainsPrimary":
		x.because(x.actual("open-count"), "the device to be closed", x.at(r.Host, closing(r.Device)),
			"it shall not be primary any more (designated is %s), but its device is open %d times", designatedOf(r), r.Device.OpenCount)
	case "NotYetPrimary":
		switch others := without(r.ActualPrimaries, r.Host); {
		case len(others) > 0:
			x.stillPrimary(others[0])
		case r.Sync.Rest > 0:
			x.because(x.res().SyncStatusPath(r.Host), "the sync", "marsadm view "+r.Resource, "it shall be primary, but its disk is not synced: %s left", macro.HumanNumber(float64(r.Sync.Rest)))
		default:
			x.because(x.actual("is-primary"), "recovery: "+macro.HumanNumber(float64(r.Fetch.Rest+r.Replay.Rest))+" of log to go", x.cmd("wait-resource")+" is-device",
				"it shall be primary and is on its way")
		}
	default:
		if r.DesignatedPrimary == nil {
			x.because(primary, "somebody to be designated", x.cmd("primary"), "no host is designated to be primary, so nothing is written or fetched")
		}
	}
	return false
}

// stillPrimary: the role cannot move before the old primary has let go.
func (x *explainer) stillPrimary(other string) {
	link := x.res().ActualPath(other, "open-count")
	open, _ := x.c.Tree.Get(link)
	if !symlinktree.Switch(open) {
		x.because(x.res().ActualPath(other, "is-primary"), "marsd on "+other+" to write back and to take its device away", x.at(other, "systemctl status marsd"),
			"it shall be primary, but %s still is", other)
		return
	}
	x.because(link, other+" to close its device", x.at(other, closing(x.c.Report(other).Device)), "it shall be primary, but the device is still in use on %s", other)
}

func (x *explainer) emergency() bool {
	p := x.r.Host
	if x.r.DesignatedPrimary != nil {
		p = *x.r.DesignatedPrimary
	}
	link := x.res().ActualPath(p, "has-emergency")
	if v, _ := x.c.Tree.Get(link); symlinktree.Switch(v) {
		why, next := x.emergencyOf(p)
		x.because(link, "space for logs on "+p, next, "the host %s is in emergency mode: %s. It does not log, so secondaries get nothing new; afterwards they need invalidate", p, why)
	}
	return false
}

func (x *explainer) sync() {
	r := x.r
	if r.Sync.Rest == 0 || r.Role == "Primary" {
		return
	}
	left := macro.HumanNumber(float64(r.Sync.Rest))
	link := x.res().SyncStatusPath(r.Host)
	switch {
	case !r.Wanted.Sync:
		x.because(x.todo(symlinktree.SwitchSync), "", x.cmd("resume-sync"), "the full sync is switched off with %s left; until it is done, the disk is inconsistent", left)
	case r.Active.Sync && r.Sync.Remaining != nil:
		x.because(link, "the sync: about "+macro.HumanSeconds(*r.Sync.Remaining), "marsadm view --watch "+r.Resource, "the full sync is running, %s left; until it is done, the disk is inconsistent", left)
	case r.Active.Sync:
		x.because(link, "data from "+designatedOf(r), "marsadm view --watch "+r.Resource, "the full sync is running but makes no progress, %s left", left)
	default:
		x.because(x.actual("is-syncing"), "its turn (sync-limit), or "+designatedOf(r), "marsadm get-global-sync-limit-value", "the full sync is to run and does not, %s left%s", left, x.said("inf-sync"))
	}
}

// misnamed: the primary link names nobody who could be primary.
func (x *explainer) misnamed() bool {
	r := x.r
	if r.DesignatedPrimary == nil || slices.Contains(r.Members, *r.DesignatedPrimary) {
		return false
	}
	next := x.cmd("primary")
	if v, _ := x.c.Tree.Get(x.res().LastPrimaryPath()); slices.Contains(r.Members, v) {
		next = x.at(v, next)
	}
	x.because(x.res().PrimaryPath(), "a member to be designated", next, "the designated primary %s is no member of the resource, so that nobody is primary; members are: %s",
		*r.DesignatedPrimary, words(r.Members))
	return true
}

// ping is a command that tells whether a host can be reached.
func (x *explainer) ping(host string) string {
	addr, _ := x.c.Tree.Get(symlinktree.IPPath(host))
	if symlinktree.CheckValue(symlinktree.IPPath(host), addr) != nil || addr == "" {
		return "marsadm lowlevel-set-host-ip " + host + " ADDR"
	}
	if h, _, err := net.SplitHostPort(addr); err == nil {
		addr = h
	}
	return "ping " + strings.Trim(addr, "[]")
}

// silent tells whether the designated primary gives no sign of life.
func (x *explainer) silent() bool {
	r := x.r
	return r.DesignatedPrimary != nil && *r.DesignatedPrimary != r.Host && (r.PrimaryNewsAge == nil || *r.PrimaryNewsAge >= x.c.Window.Seconds())
}

func (x *explainer) fetch() {
	r := x.r
	if r.Role == "Primary" || r.DesignatedPrimary != nil && *r.DesignatedPrimary == r.Host {
		return
	}
	left := macro.HumanNumber(float64(r.Fetch.Rest))
	switch {
	case x.silent():
		p := *r.DesignatedPrimary
		addr, _ := x.c.Tree.Get(symlinktree.IPPath(p))
		heard := "it was never heard"
		if r.PrimaryNewsAge != nil {
			heard = "last news " + macro.HumanSeconds(*r.PrimaryNewsAge) + " ago"
		}
		x.because(symlinktree.ActualPath(p, "time"), p+" ("+orMissing(addr)+")", x.ping(p), "the primary %s does not answer (%s): what it has written since is not known here", p, heard)
	case !r.Wanted.Fetch:
		x.because(x.todo(symlinktree.SwitchConnect), "", x.cmd("resume-fetch"), "fetching of logs is switched off, %s are known to be missing", left)
	case r.Fetch.Rest > 0 && !r.Active.Fetch:
		x.because(x.actual("is-copying"), designatedOf(r), "marsadm wait-cluster "+r.Resource, "%s of log are to be fetched, but nothing is being fetched%s", left, x.said("inf-fetch"))
	case r.Fetch.Rest > 0:
		x.because(x.actual("is-copying"), "the network: "+remaining(r.Fetch), "marsadm view --watch "+r.Resource, "%s of log are being fetched", left)
	}
}

func (x *explainer) replay() {
	r := x.r
	if r.Role == "Primary" || r.DesignatedPrimary != nil && *r.DesignatedPrimary == r.Host {
		return
	}
	left := macro.HumanNumber(float64(r.Replay.Rest))
	switch {
	case !r.Wanted.Replay:
		x.because(x.todo(symlinktree.SwitchAllowReplay), "", x.cmd("resume-replay"), "replay is switched off, %s of fetched log wait", left)
	case r.Replay.Rest > 0 && !r.Active.Replay:
		x.because(x.actual("is-replaying"), "marsd", x.at(r.Host, "journalctl -u marsd -n 20"), "%s of log are to be replayed, but nothing is being replayed", left)
	case r.Replay.Rest > 0:
		x.because(x.res().ReplayPath(r.Host), "the disk: "+remaining(r.Replay), "marsadm view --watch "+r.Resource, "%s of log are being replayed", left)
	case r.Sync.Rest == 0 && !r.Consistent:
		x.because(x.res().SyncPosPath(r.Host), "replay to pass the end of the sync", "marsadm view --watch "+r.Resource, "the disk is not yet consistent")
	}
}

func remaining(p macro.ProgressReport) string {
	if p.Remaining == nil {
		return "no progress at the moment"
	}
	return "about " + macro.HumanSeconds(*p.Remaining) + " at " + macro.HumanNumber(float64(p.Rate)) + "/s"
}

func (x *explainer) device() {
	d := x.r.Device
	if d.Error != 0 {
		x.because(x.actual("if-state"), "", x.at(x.r.Host, "journalctl -u marsd -n 20"), "the device %s failed: %s", d.Path, macro.ErrnoText(fmt.Sprint(d.Error)))
	}
	if d.InFlight > 0 && d.CompletionAge != nil && *d.CompletionAge >= x.c.Window.Seconds() {
		x.because(x.actual("if-completion-stamp"), "the disk or the filesystem of the tree", "iostat -x 1 3", "%d requests hang for %s", d.InFlight, macro.HumanSeconds(*d.CompletionAge))
	}
}

// peers: what other members lack concerns the primary.
func (x *explainer) peers() {
	if x.r.Role != "Primary" {
		return
	}
	for _, h := range without(x.r.Members, x.r.Host) {
		if !x.r.Emergency && macro.BehindHole(x.c.Tree, x.r.Resource, h) != "" {
			x.because(x.res().ReplayPath(h), "a new copy on "+h, x.at(h, x.cmd("invalidate")), "the member %s stays at an old version: it needs what was written here without a log (emergency mode)", h)
		}
		link := symlinktree.ActualPath(h, "time")
		v, ok := x.c.Tree.Get(link)
		s, err := symlinktree.ParseStamp(v)
		age := time.Duration(x.now - s)
		if !ok || err != nil || age >= x.c.Window {
			addr, _ := x.c.Tree.Get(symlinktree.IPPath(h))
			x.because(link, h, x.ping(h), "the member %s (%s) is silent: it gets nothing, and logs are kept for it", h, orMissing(addr))
		}
	}
}

func (x *explainer) messages() {
	for _, m := range x.r.Messages {
		if m.Level != "info" && !x.mentioned(m.Text) && !(m.Key == brokenMessage && len(x.r.Broken) > 0) {
			x.because(x.actual("msg-"+m.Key), "", "", "a message of marsd (%s): %s", m.Level, m.Text)
		}
	}
}

func (x *explainer) mentioned(text string) bool {
	for _, e := range x.out {
		if strings.Contains(e.Text, text) {
			return true
		}
	}
	return false
}

func (x *explainer) fine() {
	r := x.r
	switch r.Role {
	case "Primary":
		use := "nobody uses it"
		if r.Device.OpenCount > 0 {
			use = fmt.Sprintf("it is open %d times", r.Device.OpenCount)
		}
		x.because(x.actual("is-primary"), "", "", "all is as it should be: it is primary, %s is there, %s", orDevice(r.Device), use)
	default:
		x.because(x.res().ReplayPath(r.Host), "", "", "all is as it should be: everything that %s is known to have written is on the disk", designatedOf(r))
	}
}

func designatedOf(r *macro.Report) string {
	if r.DesignatedPrimary == nil {
		return symlinktree.NoHost
	}
	return *r.DesignatedPrimary
}

// closing is the command to end the use of a device, or to see who uses it.
func closing(d macro.DeviceReport) string {
	if d.MountPoint == "" && d.Socket != nil {
		return "ss -xp src " + *d.Socket
	}
	return "umount " + orDevice(d)
}

func orDevice(d macro.DeviceReport) string {
	if d.MountPoint != "" {
		return d.MountPoint
	}
	return d.Path
}

func without(list []string, host string) []string {
	var out []string
	for _, h := range list {
		if h != host {
			out = append(out, h)
		}
	}
	return out
}

// whyDocument is `why --json`.
type whyDocument struct {
	jsonHead
	Resource         string   `json:"resource"`
	Host             string   `json:"host"`
	Role             string   `json:"role"`
	DiskState        string   `json:"disk_state"`
	ReplicationState string   `json:"replication_state"`
	Reasons          []reason `json:"reasons"`
}

func whyVerb(_ context.Context, j *job) error {
	j.settle(string(j.r))
	c := j.context(string(j.r))
	c.Root = j.tree.Root()
	r, reasons := explain(c, j.host)
	if j.opt.json {
		return j.printJSON(j.out.write, whyDocument{j.jsonHead(), r.Resource, r.Host, r.Role, r.DiskState, r.ReplicationState, reasons})
	}
	j.print("%s", whyText(r, reasons))
	return nil
}

// whyText is the explanation for people.
func whyText(r *macro.Report, reasons []reason) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s is %s: disk %s, replication %s\n", r.Resource, r.Host, r.Role, r.DiskState, r.ReplicationState)
	for i, e := range reasons {
		if len(reasons) > 1 {
			fmt.Fprintf(&b, "%d. ", i+1)
		}
		fmt.Fprintf(&b, "%s.\n", upperFirst(strings.TrimSuffix(e.Text, ".")))
		if e.Link != "" && e.Value != "" {
			fmt.Fprintf(&b, "     says:      %s = %s", e.Link, e.Value)
			if e.Since != nil {
				fmt.Fprintf(&b, ", since %s", macro.HumanSeconds(*e.Since))
			}
			b.WriteString("\n")
		}
		if e.WaitsFor != "" {
			fmt.Fprintf(&b, "     waits for: %s\n", e.WaitsFor)
		}
		if e.Next != "" {
			fmt.Fprintf(&b, "     next:      %s\n", e.Next)
		}
	}
	return b.String()
}
