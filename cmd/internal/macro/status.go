package macro

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mars/symlinktree"
)

// devicePresent: the device of host has appeared. What a marsd of this machine has said that was
// killed since is not true any more.
func (c *Context) devicePresent(host string) bool {
	return c.on(c.actual(host, "if-on")) && !c.killed(host)
}

// killed: marsd of this machine serves sockets and gives no sign of life, although it has not said that it stops.
func (c *Context) killed(host string) bool {
	if host != c.Node || c.val(c.actual(host, symlinktree.NBDSocketLink)) == "" {
		return false
	}
	age, known := c.aliveAge(host)
	return !known || age > FreshAge
}

// FreshAge is a generous multiple of the second after which marsd renews its time link: older than this
// means that it does not run.
const FreshAge = 5 * time.Second

// diskPresent is 1, 0, or empty when host has no data link. What another machine
// has cannot be seen from here; its actsize link is its word that it is there.
func (c *Context) diskPresent(host string) string {
	disk, ok := c.Tree.Get(c.r().DataPath(host))
	switch {
	case !ok:
		return ""
	case host == c.Node && c.DiskPresent != nil:
		return flag(c.DiskPresent(disk))
	}
	return "1"
}

// Diskstate is the first word about the disk that applies.
func (c *Context) Diskstate(host string) string {
	prefix := ""
	if code := c.num(c.actual(host, "disk-error")); code != 0 {
		prefix = fmt.Sprintf("DISK_ERROR=%d%s ", code, ErrnoText(fmt.Sprint(code)))
	}
	return prefix + c.diskWord(host)
}

func (c *Context) diskWord(host string) string {
	attached, wanted := c.on(c.actual(host, "is-attached")), c.on(c.todo(host, "attach"))
	primary, designated := c.on(c.actual(host, "is-primary")), c.designated() == host
	a := c.amounts(host)
	behind := func() string {
		switch {
		case primary:
			return "WriteBack[" + HumanNumber(float64(a.workRest())) + "]"
		case designated:
			return "Recovery[" + HumanNumber(float64(a.workRest())) + "]"
		}
		return ""
	}
	switch c.diskPresent(host) {
	case "":
		return "NotJoined"
	case "0":
		return "NotPresent"
	}
	if !wanted {
		if attached {
			return "Detaching"
		}
		return "Detached"
	}
	if code := c.val(c.actual(host, "replay-code")); Number(code) < 0 {
		return damageWord(Number(code)) + "[" + code + "=" + ErrnoText(code) + "]"
	}
	if c.orphan(host) {
		return "Orphan"
	}
	if !attached {
		return "NoAttach"
	}
	if !c.consistent(host, true) {
		if w := behind(); w != "" && c.syncRest(host) == 0 {
			return w
		}
		return "InConsistent"
	}
	if a.workRest() > 0 {
		if w := behind(); w != "" {
			return w
		}
		return "OutDated" + c.outdated(host)
	}
	if c.behindHole(host) != "" {
		return "OutDated" + c.outdated(host)
	}
	if p := c.designated(); p != "" && c.on(c.actual(p, "has-emergency")) {
		return "EmergencyMode"
	}
	return "UpToDate"
}

// damageWord classes a negative replay-code (an errno).
func damageWord(code int64) string {
	switch code {
	case -int64(unix.ERESTART):
		return "IncompleteLog"
	case -int64(unix.EBADRQC):
		return "UnInitializedLogRecord"
	case -int64(unix.ENOENT):
		return "MissingLog"
	}
	return "DefectiveLog"
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// moduleLoaded: marsd runs on this machine, as far as the tree knows: it was not
// stopped, and has published something.
func (c *Context) moduleLoaded() bool {
	_, known := c.Tree.Get(c.global(c.Node, "time"))
	alive, said := c.Tree.Get(c.global(c.Node, "alive"))
	return known && (!said || alive != "0")
}

// DaemonKnown reports whether marsd runs on this machine as far as the tree tells.
func (c *Context) DaemonKnown() bool { return c.moduleLoaded() }

// alive: the latest news of host are within the window.
func (c *Context) alive(host string) bool {
	age, known := c.aliveAge(host)
	return known && age < c.Window
}

// Replstate is the first word about replication that applies.
func (c *Context) Replstate(host string) string {
	designated := c.designated()
	switch {
	case !c.moduleLoaded():
		return "ModuleNotLoaded"
	case !c.alive(host):
		return "UnResponsive"
	case c.diskPresent(host) == "":
		return "NotJoined"
	case !c.on(c.todo(host, "attach")):
		return "NotStarted"
	case designated == host:
		switch {
		case c.on(c.actual(host, "has-emergency")):
			return "EmergencyMode"
		case c.on(c.actual(host, "is-primary")):
			return "Replicating"
		}
		return "NotYetPrimary"
	case c.syncRest(host) > 0 && !c.on(c.todo(host, "sync")):
		return "PausedSync"
	case c.on(c.actual(host, "is-syncing")):
		return "Syncing"
	case !c.on(c.todo(host, "connect")):
		return "PausedFetch"
	case !c.on(c.todo(host, "allow-replay")):
		return "PausedReplay"
	case designated == "":
		return "NoPrimaryDesignated"
	case !IsMember(c.Tree, c.Res, designated):
		return "NoSuchPrimary"
	case !c.alive(designated):
		return "PrimaryUnreachable"
	case c.orphan(host):
		return "Orphan"
	case c.behindHole(host) != "" && c.amounts(host).workRest() == 0:
		return "BehindHole"
	}
	return "Replaying"
}

// Flags are six letters: device/disk, consistent, attached, synced, fetched,
// replayed; a capital is reached, a small one is under way, a dash is off.
func (c *Context) Flags(host string) string {
	letter := func(reached, wanted bool, capital string) string {
		switch {
		case reached:
			return capital
		case wanted:
			return strings.ToLower(capital)
		}
		return "-"
	}
	disk := c.diskPresent(host)
	if disk != "1" {
		return letter(c.devicePresent(host), false, "D") + "-----"
	}
	attached, wanted := c.on(c.actual(host, "is-attached")), c.on(c.todo(host, "attach"))
	a := c.amounts(host)
	return letter(c.devicePresent(host), true, "D") +
		letter(c.consistent(host, true), true, "C") +
		letter(attached && wanted, attached || wanted, "A") +
		letter(c.syncRest(host) == 0, c.on(c.todo(host, "sync")), "S") +
		letter(a.ok && a.fetchRest() == 0 && c.behindHole(host) == "", c.on(c.todo(host, "connect")), "F") +
		letter(a.ok && a.replayRest() == 0 && !c.orphan(host), c.on(c.todo(host, "allow-replay")), "R")
}

// Role compares what host is with what it should be.
func (c *Context) Role(host string) string {
	is, should := c.on(c.actual(host, "is-primary")), c.designated() == host
	switch {
	case !IsMember(c.Tree, c.Res, host):
		return "None"
	case is && !should:
		return "RemainsPrimary"
	case is && c.count("is-primary") > 1:
		return "ForcedPrimary"
	case is:
		return "Primary"
	case should:
		return "NotYetPrimary"
	}
	return "Secondary"
}

func (c *Context) todoRole(host string) string {
	switch {
	case !IsMember(c.Tree, c.Res, host):
		return "None"
	case c.designated() == host:
		return "Primary"
	}
	return "Secondary"
}

// count counts the members whose state link name is true.
func (c *Context) count(name string) int {
	n := 0
	for _, h := range Members(c.Tree, c.Res) {
		n += b2i(c.on(c.actual(h, name)))
	}
	return n
}

// commstate is how long nothing was heard of the designated primary, if it
// matters.
func (c *Context) commstate() string {
	p := c.designated()
	if p == "" {
		return ""
	}
	if age, known := c.aliveAge(p); known && age >= c.Window {
		return HumanSeconds(age.Seconds())
	}
	return ""
}

func (c *Context) counts() string {
	return fmt.Sprintf("[%d/%d]", len(Members(c.Tree, c.Res)), len(Hosts(c.Tree)))
}

// device is the path at which applications find the device: the NBD socket, as marsd says, or
// what the kernel module makes.
func (c *Context) device(host string) string {
	if s := c.val(c.actual(host, symlinktree.NBDSocketLink)); s != "" {
		return s
	}
	if d := c.val(c.r().DevicePath(host)); d != "" {
		return "/dev/mars/" + d
	}
	return ""
}

func (c *Context) deviceStats(host string) string {
	if c.num(c.actual(host, "open-count")) == 0 {
		return "Closed"
	}
	parts := []string{"Opened"}
	if m, ok := c.mount(host); ok {
		parts = append(parts, m.Point)
	}
	if code := c.num(c.actual(host, "if-state")); code != 0 {
		parts = append(parts, fmt.Sprintf("DEVICE_ERROR=%d%s", code, ErrnoText(fmt.Sprint(code))))
	}
	parts = append(parts, fmt.Sprintf("%d IOPS", c.opsRate(host, "if")))
	if n := c.num(c.actual(host, "if-flying")); n > 0 {
		parts = append(parts, fmt.Sprintf("%d Flying", n))
		if done, err := symlinktree.ParseStamp(c.val(c.actual(host, "if-completion-stamp"))); err == nil {
			if age := c.Real.Sub(done.Time()); age >= c.Window {
				parts = append(parts, "HANGING age: "+HumanSeconds(age.Seconds()))
			}
		}
	}
	return strings.Join(parts, ", ")
}

func (c *Context) mount(host string) (Mount, bool) {
	if host != c.Node || c.Mounts == nil {
		return Mount{}, false
	}
	for _, m := range c.Mounts() {
		if m.Device == c.device(host) {
			return m, true
		}
	}
	return Mount{}, false
}

// hints tell about space that is not used.
func (c *Context) hints(host string) string {
	var b strings.Builder
	size := c.num(c.r().SizePath())
	if waste := c.num(c.r().ActSizePath(host)) - size; size > 0 && waste > c.Threshold {
		fmt.Fprintf(&b, "     Hint: you are wasting %s on disk %s\n", HumanNumber(float64(waste)), c.val(c.r().DataPath(host)))
	}
	if more := PossibleSize(c.Tree, c.Res) - size; size > 0 && more > c.Threshold {
		fmt.Fprintf(&b, "     Hint: marsadm resize would increase resource %s by %s\n", c.Res, HumanNumber(float64(more)))
	}
	return b.String()
}

// PossibleSize is the size that every member's disk could hold, 0 if unknown.
func PossibleSize(t Tree, res string) int64 {
	r := symlinktree.Resource(res)
	least := int64(0)
	for _, h := range hostsWith(t, r.Dir(), "data") {
		v, _ := t.Get(r.ActSizePath(h))
		if n := Number(v); least == 0 || n < least {
			least = n
		}
		if least == 0 {
			return 0
		}
	}
	return least
}

// lag is how many seconds host's progress is behind the designated primary's.
func (c *Context) lag(host, what string) (seconds float64, known bool) {
	p := c.designated()
	if p == "" || c.stampOf(p, what) == 0 || c.stampOf(host, what) == 0 {
		return -1, false
	}
	return max(0, (c.stampOf(p, what) - c.stampOf(host, what)).Time().Sub(symlinktree.Stamp(0).Time()).Seconds()), true
}

// messages collects the msg links of a directory whose keys start with kind and
// that say something.
func (c *Context) messages(dir, kind string, keep func(key, value string, stamp symlinktree.Stamp) bool) []string {
	var out []string
	for _, e := range c.Tree.List(dir) {
		key, ok := strings.CutPrefix(base(e.Path), "msg-")
		if ok && strings.HasPrefix(key, kind) && keep(key, e.Value, e.Stamp) {
			out = append(out, key+": "+e.Value)
		}
	}
	return out
}

func says(_, value string, _ symlinktree.Stamp) bool { return !strings.HasPrefix(value, "OK") }

func (c *Context) messageBlock(host string) string {
	var b strings.Builder
	for _, k := range []struct{ kind, title string }{{"err-", "ERRORS  "}, {"wrn-", "WARNINGS"}} {
		if list := c.messages(c.r().ActualDir(host), k.kind, says); len(list) > 0 {
			fmt.Fprintf(&b, "%s LNK  (%d):\n", k.title, len(list))
			for _, m := range list {
				b.WriteString(prettyStamps(m, c.Real.Location()) + "\n")
			}
		}
	}
	return b.String()
}

// ResourceHeading precedes each block of a list.
func (c *Context) ResourceHeading() string {
	if !IsMember(c.Tree, c.Res, c.Host) {
		return fmt.Sprintf("--------- guest %s %s\n", c.Res, c.counts())
	}
	return fmt.Sprintf("--------- resource %s %s %s\n", c.Res, HumanNumber(float64(c.num(c.r().SizePath()))), c.counts())
}

// features splits "F,S,0xMASK".
func features(v string) (version, strategy, mask int64) {
	f := strings.SplitN(v, ",", 3)
	for len(f) < 3 {
		f = append(f, "")
	}
	_, _ = fmt.Sscanf(strings.TrimSpace(f[2]), "0x%x", &mask)
	return Number(f[0]), Number(f[1]), mask
}
