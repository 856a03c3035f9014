package macro

import (
	"math"
	"strings"
	"time"

	"mars/symlinktree"
)

// Report is everything that views know about one resource as one host has it: what
// `marsadm view --json` prints, and what check and why judge by. docs/CLI-JSON.md
// explains the keys. What is not known is null.
type Report struct {
	Resource string `json:"resource"`
	Host     string `json:"host"`
	Kind     string `json:"kind"` // member, guest or none

	SizeBytes         int64    `json:"size_bytes"`
	Members           []string `json:"members"`
	Guests            []string `json:"guests"`
	DesignatedPrimary *string  `json:"designated_primary"`
	ActualPrimaries   []string `json:"actual_primaries"`
	PrimaryNewsAge    *float64 `json:"primary_news_age_seconds"`

	DiskState        string `json:"disk_state"`
	ReplicationState string `json:"replication_state"`
	Flags            string `json:"flags"`
	Role             string `json:"role"`
	WantedRole       string `json:"wanted_role"`
	Consistent       bool   `json:"consistent"`
	Orphan           bool   `json:"orphan"`
	// BehindHole is who has written without a log what comes behind this disk.
	BehindHole *string `json:"behind_hole"`
	Emergency  bool    `json:"emergency"`

	Disk     DiskReport       `json:"disk"`
	Device   DeviceReport     `json:"device"`
	Wanted   ActivityReport   `json:"wanted"`
	Active   ActivityReport   `json:"active"`
	Sync     ProgressReport   `json:"sync"`
	Fetch    ProgressReport   `json:"fetch"`
	Replay   ProgressReport   `json:"replay"`
	Log      LogReport        `json:"log"`
	Split    *SplitReport     `json:"split_brain"`
	Messages []MessageReport  `json:"messages"`
	Broken   []BrokenReport   `json:"broken_links"`
	Hints    map[string]int64 `json:"hints"`
}

// DiskReport is about the backing disk.
type DiskReport struct {
	Path      string `json:"path"`
	Present   *bool  `json:"present"`
	SizeBytes *int64 `json:"size_bytes"`
	Error     int64  `json:"error_errno"`
}

// DeviceReport is about the device that applications use.
type DeviceReport struct {
	Path          string   `json:"path"`
	Socket        *string  `json:"nbd_socket"`
	Present       bool     `json:"present"`
	OpenCount     int64    `json:"open_count"`
	InFlight      int64    `json:"in_flight"`
	Error         int64    `json:"error_errno"`
	Ops           int64    `json:"operations_per_second"`
	Rate          int64    `json:"rate_bytes_per_second"`
	MountPoint    string   `json:"mount_point"`
	CompletionAge *float64 `json:"last_completion_age_seconds"`
}

// ActivityReport says what is switched on, or going on.
type ActivityReport struct {
	Attach bool `json:"attach"`
	Sync   bool `json:"sync"`
	Fetch  bool `json:"fetch"`
	Replay bool `json:"replay"`
}

// ProgressReport is how far something is.
type ProgressReport struct {
	Pos       int64    `json:"position_bytes"`
	Size      int64    `json:"size_bytes"`
	Rest      int64    `json:"rest_bytes"`
	Rate      int64    `json:"rate_bytes_per_second"`
	Ops       int64    `json:"operations_per_second"`
	Remaining *float64 `json:"remaining_seconds"`
	Age       *float64 `json:"age_seconds"` // since the last progress
	Lag       *float64 `json:"lag_seconds"` // behind the designated primary
}

// LogReport is about transaction logs.
type LogReport struct {
	ReplayNumber int    `json:"replay_number"`
	FetchNumber  int    `json:"fetch_number"`
	KnownNumber  int    `json:"known_number"`
	Position     string `json:"replay_position"`
	DirtyBytes   int64  `json:"dirty_bytes"`
	ReplayCode   *int64 `json:"replay_code"`
	ReplayText   string `json:"replay_code_text"` // with what follows the number
	Damage       string `json:"damage"`           // POSITION,BYTES, or empty
	LocalBytes   int64  `json:"local_bytes"`
	FreeableSize int64  `json:"deletable_bytes"`
}

// SplitReport is a split brain.
type SplitReport struct {
	Hosts  [2]string `json:"hosts"`
	After  string    `json:"after_position"`
	Lost   [2]int64  `json:"diverging_bytes"`
	Reason string    `json:"reason"`
	Age    *float64  `json:"age_seconds"`
}

// BrokenReport is a link whose value nobody can read; it is ignored.
type BrokenReport struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

// MessageReport is one message of marsd.
type MessageReport struct {
	Key   string   `json:"key"`
	Level string   `json:"level"` // error, warning or info
	Text  string   `json:"text"`
	Age   *float64 `json:"age_seconds"`
}

// Report collects it for the resource of the context.
func (c *Context) Report(host string) *Report {
	a := c.amounts(host)
	r := &Report{
		Resource: c.Res, Host: host, Kind: "none",
		SizeBytes: c.num(c.r().SizePath()), Members: some(Members(c.Tree, c.Res)), Guests: some(guests(c.Tree, c.Res)),
		ActualPrimaries: []string{},
		DiskState:       c.Diskstate(host), ReplicationState: c.Replstate(host), Flags: c.Flags(host),
		Role: c.Role(host), WantedRole: c.todoRole(host),
		Consistent: c.consistent(host, true), Orphan: c.orphan(host), Emergency: c.on(c.actual(host, "has-emergency")),
		Wanted: ActivityReport{c.on(c.todo(host, symlinktree.SwitchAttach)), c.on(c.todo(host, symlinktree.SwitchSync)),
			c.on(c.todo(host, symlinktree.SwitchConnect)), c.on(c.todo(host, symlinktree.SwitchAllowReplay))},
		Active: ActivityReport{c.on(c.actual(host, "is-attached")), c.on(c.actual(host, "is-syncing")),
			c.on(c.actual(host, "is-copying")), c.on(c.actual(host, "is-replaying"))},
		Hints: map[string]int64{},
	}
	switch {
	case IsMember(c.Tree, c.Res, host):
		r.Kind = "member"
	case contains(r.Guests, host):
		r.Kind = "guest"
	}
	if p := c.designated(); p != "" {
		r.DesignatedPrimary = &p
		if age, known := c.aliveAge(p); known {
			r.PrimaryNewsAge = secondsOf(age)
		}
	}
	for _, h := range r.Members {
		if c.on(c.actual(h, "is-primary")) {
			r.ActualPrimaries = append(r.ActualPrimaries, h)
		}
	}
	if h := c.behindHole(host); h != "" {
		r.BehindHole = &h
	}
	c.reportIO(r, host)
	pos, size := c.syncAmounts(host)
	r.Sync = c.progress(host, "sync", "sync", pos, size, c.syncRest(host))
	r.Fetch = c.progress(host, "fetch", "file", a.fetchPos, a.workSize, a.fetchRest())
	r.Replay = c.progress(host, "replay", "replay", a.replayPos, a.fetchPos, a.replayRest())
	r.Log = LogReport{ReplayNumber: a.replayNr, FetchNumber: a.fetchNr, KnownNumber: a.workNr, ReplayText: c.val(c.actual(host, "replay-code"))}
	if r.Log.ReplayText != "" {
		code := Number(r.Log.ReplayText)
		r.Log.ReplayCode = &code
	}
	if rep, err := symlinktree.ParseReplay(c.val(c.r().ReplayPath(host))); err == nil {
		r.Log.Position, r.Log.DirtyBytes = rep.String(), rep.Len
	}
	if d := c.val(c.actual(host, symlinktree.LogDamage)); d != "0" {
		r.Log.Damage = d
	}
	if host == c.Node {
		r.Log.LocalBytes, r.Log.FreeableSize = c.logBytes(false), c.logBytes(true)
	}
	c.reportSplit(r)
	r.Messages = c.reportMessages(c.r().ActualDir(host))
	r.Broken = c.broken(c.r().Dir(), c.r().ActualDir(host), c.r().TodoDir(host))
	if waste := c.num(c.r().ActSizePath(host)) - r.SizeBytes; r.SizeBytes > 0 && waste > c.Threshold {
		r.Hints["unused_disk_bytes"] = waste
	}
	if more := PossibleSize(c.Tree, c.Res) - r.SizeBytes; r.SizeBytes > 0 && more > c.Threshold {
		r.Hints["resize_possible_bytes"] = more
	}
	return r
}

// broken lists the links of directories that nobody can read.
func (c *Context) broken(dirs ...string) []BrokenReport {
	out := []BrokenReport{}
	for _, dir := range dirs {
		for _, e := range c.Tree.List(dir) {
			if err := symlinktree.CheckValue(e.Path, e.Value); err != nil {
				out = append(out, BrokenReport{e.Path, err.Error()})
			}
		}
	}
	return out
}

func (c *Context) reportIO(r *Report, host string) {
	r.Disk = DiskReport{Path: c.val(c.r().DataPath(host)), Error: c.num(c.actual(host, "disk-error"))}
	if p := c.diskPresent(host); p != "" {
		there := p == "1"
		r.Disk.Present = &there
	}
	if v, ok := c.Tree.Get(c.r().ActSizePath(host)); ok {
		n := Number(v)
		r.Disk.SizeBytes = &n
	}
	r.Device = DeviceReport{Path: c.device(host), Present: c.devicePresent(host),
		OpenCount: c.num(c.actual(host, "open-count")), InFlight: c.num(c.actual(host, "if-flying")),
		Error: c.num(c.actual(host, "if-state")), Ops: c.opsRate(host, "if"), Rate: c.rate(host, "if")}
	if s := c.val(c.actual(host, symlinktree.NBDSocketLink)); s != "" {
		r.Device.Socket = &s
	}
	if m, ok := c.mount(host); ok {
		r.Device.MountPoint = m.Point
	}
	if done, err := symlinktree.ParseStamp(c.val(c.actual(host, "if-completion-stamp"))); err == nil {
		r.Device.CompletionAge = secondsOf(c.Real.Sub(done.Time()))
	}
}

func (c *Context) progress(host, what, kind string, pos, size, rest int64) ProgressReport {
	p := ProgressReport{Pos: pos, Size: size, Rest: rest, Rate: c.rate(host, kind),
		Ops: c.opsRate(host, kind)}
	if left := remain(rest, p.Rate); left >= 0 {
		p.Remaining = &left
	}
	if what != "sync" {
		if s := c.stampOf(host, what); s != 0 {
			p.Age = secondsOf(c.age(s))
		}
		if lag, known := c.lag(host, what); known {
			p.Lag = &lag
		}
	}
	return p
}

func (c *Context) reportSplit(r *Report) {
	s := DetectSplit(c.Tree, c.Res)
	if !s.Found {
		return
	}
	r.Split = &SplitReport{Hosts: [2]string{s.Host1, s.Host2}, After: s.After, Lost: [2]int64{s.Amount1, s.Amount2}, Reason: s.Reason}
	if rep, err := symlinktree.ParseReplay(s.After + ",0"); err == nil {
		if st := c.forkStamp(rep); st > 0 {
			r.Split.Age = secondsOf(c.age(st))
		}
	}
}

// reportMessages lists what marsd has to say in a directory.
func (c *Context) reportMessages(dir string) []MessageReport {
	out := []MessageReport{}
	for _, e := range c.Tree.List(dir) {
		key, ok := strings.CutPrefix(base(e.Path), "msg-")
		if !ok || !says(key, e.Value, e.Stamp) {
			continue
		}
		m := MessageReport{Key: key, Level: "info", Text: e.Value}
		switch {
		case strings.HasPrefix(key, "err-"):
			m.Level = "error"
		case strings.HasPrefix(key, "wrn-"):
			m.Level = "warning"
		}
		if parsed, err := symlinktree.ParseMessage(e.Value); err == nil {
			m.Text, m.Age = parsed.Text, secondsOf(c.Real.Sub(parsed.Real.Time()))
		}
		out = append(out, m)
	}
	return out
}

// NodeReport is what views know about the looked-at host as a whole.
type NodeReport struct {
	Node        string          `json:"node"`
	Host        string          `json:"host"`
	UUID        string          `json:"cluster_uuid"`
	Hosts       []string        `json:"cluster_hosts"`
	Running     bool            `json:"marsd_running"`
	NewsAge     *float64        `json:"news_age_seconds"`
	Emergency   int64           `json:"emergency_level"`
	RestSpace   *int64          `json:"rest_space_bytes"`
	TotalSpace  *int64          `json:"total_space_bytes"`
	LamportSlip float64         `json:"lamport_slip_seconds"`
	Messages    []MessageReport `json:"messages"`
	Broken      []BrokenReport  `json:"broken_links"`
}

// NodeReport collects it.
func (c *Context) NodeReport() *NodeReport {
	r := &NodeReport{Node: c.Node, Host: c.Host, UUID: c.val(symlinktree.UUIDPath), Hosts: some(Hosts(c.Tree)),
		Running: c.moduleLoaded(), Emergency: c.num(c.global(c.Host, "emergency")),
		LamportSlip: *secondsOf(c.Now.Time().Sub(c.Real)), Messages: c.reportMessages(symlinktree.ActualDir(c.Host)),
		Broken: c.broken("", "ips", "todo-global", "defaults", "defaults-"+c.Host, symlinktree.ActualDir(c.Host))}
	if age, known := c.aliveAge(c.Host); known {
		r.NewsAge = secondsOf(age)
	}
	for _, s := range []struct {
		link string
		to   **int64
	}{{"rest-space", &r.RestSpace}, {"total-space", &r.TotalSpace}} {
		if v, ok := c.Tree.Get(c.global(c.Host, s.link)); ok {
			n := Number(v) << 30
			*s.to = &n
		}
	}
	return r
}

func secondsOf(d time.Duration) *float64 {
	s := max(0, math.Round(d.Seconds()*1000)/1000)
	return &s
}

// some makes an empty list of none, which JSON shows as [].
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
