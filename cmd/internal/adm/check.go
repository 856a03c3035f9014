package adm

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"mars/cmd/internal/macro"
)

// severity is a result in the sense of Nagios plugins; its number is the exit code.
type severity int

const (
	sevOK severity = iota
	sevWarning
	sevCritical
	sevUnknown
)

func (v severity) String() string { return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[v] }

// verdict ends `marsadm check`: the output has been written, only the exit code is
// left.
type verdict severity

func (v verdict) Error() string { return severity(v).String() }

func checkVerbs() []verb {
	return []verb{{name: "check", args: "[RES...]", help: "monitoring plugin: exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, with performance data",
		readOnly: true, anyResource: true, max: -1, run: checkVerb}}
}

// limits are the thresholds of one number: from warn (crit) on it is one.
type limits struct{ warn, crit float64 }

// checkLimits are the thresholds of `marsadm check`.
type checkLimits struct {
	lag    limits // seconds that a secondary is behind
	rest   limits // bytes of log not yet replayed
	silent limits // seconds without news of a host
	used   limits // percent of the tree's filesystem
	free   limits // bytes left there; from warn (crit) down
	// freePart bounds the default of free: percent of the filesystem. A small one is not
	// in danger because it is small.
	freePart limits
}

func defaultLimits() checkLimits {
	return checkLimits{lag: limits{300, 3600}, rest: limits{1 << 30, 10 << 30}, silent: limits{60, 300},
		used: limits{70, 85}, free: limits{8 << 30, 4 << 30}, freePart: limits{10, 5}}
}

// freeOf is the limit of what is left of total bytes: what was asked for, by default the
// smaller one of bytes and percent.
func (l checkLimits) freeOf(total float64) limits {
	if l.free != defaultLimits().free {
		return l.free
	}
	part := func(percent float64) float64 { return math.Floor(percent / 100 * total) }
	return limits{min(l.free.warn, part(l.freePart.warn)), min(l.free.crit, part(l.freePart.crit))}
}

// limitsFlag is an option WARN:CRIT.
type limitsFlag struct {
	to      *limits
	bytes   bool
	falling bool // small numbers are bad
}

func (f *limitsFlag) Set(v string) error {
	w, c, ok := strings.Cut(v, ":")
	warn, err1 := f.number(w)
	crit, err2 := f.number(c)
	if !ok || err1 != nil || err2 != nil || (f.falling && warn < crit) || (!f.falling && warn > crit) {
		return fmt.Errorf("%q is not WARN:CRIT, two numbers of which CRIT is the worse one", v)
	}
	*f.to = limits{warn, crit}
	return nil
}

func (f *limitsFlag) number(s string) (float64, error) {
	factor := 1.0
	if f.bytes && s != "" {
		if i := strings.IndexByte("kmgtp", s[len(s)-1]); i >= 0 {
			for factor = 1e3; i > 0; i-- {
				factor *= 1e3
			}
		} else if i := strings.IndexByte("KMGTP", s[len(s)-1]); i >= 0 {
			factor = float64(int64(1) << (10 * (i + 1)))
		}
		if factor > 1 {
			s = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err == nil && !(n >= 0 && n < 1e15) {
		err = strconv.ErrRange
	}
	return n * factor, err
}

func (f *limitsFlag) String() string { return "" }
func (f *limitsFlag) Type() string   { return "limits" }

// problem is something that monitoring shall tell.
type problem struct {
	Level    string `json:"level"`
	Resource string `json:"resource"`
	Text     string `json:"text"`
	sev      severity
}

// measure is one number of the performance data.
type measure struct {
	Label string   `json:"label"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit"` // B, s, % or nothing
	Warn  *float64 `json:"warn"`
	Crit  *float64 `json:"crit"`
}

// checker collects problems and numbers. It judges reports only: a pure function of
// the tree.
type checker struct {
	limits   checkLimits
	problems []problem
	measures []measure
}

func (k *checker) add(sev severity, res, format string, args ...any) {
	if sev > sevOK {
		k.problems = append(k.problems, problem{sev.String(), res, fmt.Sprintf(format, args...), sev})
	}
}

// rising judges a number of which more is worse.
func (l limits) rising(n float64) severity {
	switch {
	case n >= l.crit:
		return sevCritical
	case n >= l.warn:
		return sevWarning
	}
	return sevOK
}

// falling judges a number of which less is worse.
func (l limits) falling(n float64) severity {
	switch {
	case n <= l.crit:
		return sevCritical
	case n <= l.warn:
		return sevWarning
	}
	return sevOK
}

func (k *checker) measure(label string, value float64, unit string, l *limits) {
	m := measure{Label: label, Value: value, Unit: unit}
	if l != nil {
		m.Warn, m.Crit = &l.warn, &l.crit
	}
	k.measures = append(k.measures, m)
}

// node judges what concerns all resources of a host.
func (k *checker) node(n *macro.NodeReport) {
	switch {
	case !n.Running || n.NewsAge == nil:
		k.add(sevCritical, "", "marsd does not run on %s", n.Node)
	default:
		k.add(k.limits.silent.rising(*n.NewsAge), "", "no sign of life of marsd on %s for %s", n.Host, macro.HumanSeconds(*n.NewsAge))
		k.measure("news_age", *n.NewsAge, "s", &k.limits.silent)
	}
	if n.Emergency > 0 {
		k.add(min(sevCritical, severity(n.Emergency)), "", "emergency level %d: the filesystem of the tree is filling up", n.Emergency)
	}
	if n.RestSpace != nil && n.TotalSpace != nil && *n.TotalSpace > 0 {
		k.space(float64(*n.RestSpace), float64(*n.TotalSpace))
	}
	for _, m := range n.Messages {
		k.message("", m)
	}
	for _, b := range n.Broken {
		k.add(sevWarning, "", "broken link %s", b.Error)
	}
}

// space judges what is left of the filesystem of the tree. The links count whole GiB: what is
// lost by that may be there, which matters where there are few. How full a small one is
// tells the emergency level.
func (k *checker) space(rest, total float64) {
	const unit, coarse = 1 << 30, 20 << 30
	likely := rest
	if total < coarse {
		likely = min(total, rest+unit)
	}
	used := 100 * (1 - likely/total)
	free := k.limits.freeOf(total)
	k.add(k.limits.used.rising(used), "", "the filesystem of the tree is %.0f %% full", used)
	k.add(free.falling(likely), "", "%s left in the filesystem of the tree", macro.HumanNumber(likely))
	k.measure("space_used", used, "%", &k.limits.used)
	k.measure("space_free", likely, "B", &free)
}

func (k *checker) message(res string, m macro.MessageReport) {
	switch m.Level {
	case "error":
		k.add(sevCritical, res, "%s: %s", m.Key, m.Text)
	case "warning":
		k.add(sevWarning, res, "%s: %s", m.Key, m.Text)
	}
}

// diskLevels and replicationLevels judge state words; what is not in them is fine,
// or judged by its numbers.
var diskLevels = map[string]severity{
	"NotJoined": sevWarning, "NotPresent": sevCritical, "Detaching": sevWarning, "Detached": sevWarning, "NoAttach": sevCritical,
	"IncompleteLog": sevCritical, "UnInitializedLogRecord": sevCritical, "DefectiveLog": sevCritical, "MissingLog": sevCritical,
	"Orphan": sevCritical, "InConsistent": sevCritical, "EmergencyMode": sevCritical, "Recovery": sevWarning,
}

var replicationLevels = map[string]severity{
	"EmergencyMode": sevCritical, "NotYetPrimary": sevWarning, "PausedSync": sevWarning, "PausedFetch": sevWarning,
	"PausedReplay": sevWarning, "NoPrimaryDesignated": sevWarning, "Orphan": sevCritical, "BehindHole": sevCritical,
	"NoSuchPrimary": sevCritical,
}

// resource judges one resource.
func (k *checker) resource(r *macro.Report) {
	if r.Kind != "member" {
		return
	}
	words := strings.Fields(r.DiskState)
	disk, _, _ := strings.Cut(words[len(words)-1], "[")
	sev := diskLevels[disk]
	if disk == "InConsistent" && r.Active.Sync {
		sev = sevWarning // on its way
	}
	k.add(sev, r.Resource, "disk %s", r.DiskState)
	if r.Disk.Error != 0 {
		k.add(sevCritical, r.Resource, "disk %s: error %s", r.Disk.Path, macro.ErrnoText(strconv.FormatInt(r.Disk.Error, 10)))
	}
	k.add(replicationLevels[r.ReplicationState], r.Resource, "replication %s", r.ReplicationState)
	switch r.Role {
	case "ForcedPrimary":
		k.add(sevCritical, r.Resource, "several hosts are primary: %s", strings.Join(r.ActualPrimaries, " "))
	case "RemainsPrimary":
		k.add(sevWarning, r.Resource, "%s is no longer designated, but its device is still there", r.Host)
	}
	if s := r.Split; s != nil {
		k.add(sevCritical, r.Resource, "split brain: %s", s.Reason)
	}
	if r.BehindHole != nil {
		k.add(sevCritical, r.Resource, "old version: %s went on without a log (emergency mode)", *r.BehindHole)
	}
	if r.Emergency {
		k.add(sevCritical, r.Resource, "emergency mode: nothing is logged")
	}
	if r.Log.Damage != "" {
		k.add(sevCritical, r.Resource, "own log damaged at %s", r.Log.Damage)
	}
	if p := r.DesignatedPrimary; p != nil && *p != r.Host && r.PrimaryNewsAge != nil {
		k.add(k.limits.silent.rising(*r.PrimaryNewsAge), r.Resource, "no news of primary %s for %s", *p, macro.HumanSeconds(*r.PrimaryNewsAge))
		k.measure(r.Resource+"_primary_age", *r.PrimaryNewsAge, "s", &k.limits.silent)
	}
	if d := r.Device; d.InFlight > 0 && d.CompletionAge != nil {
		k.add(k.limits.silent.rising(*d.CompletionAge), r.Resource, "%d requests on %s hang for %s", d.InFlight, d.Path, macro.HumanSeconds(*d.CompletionAge))
	}
	for _, m := range r.Messages {
		k.message(r.Resource, m)
	}
	for _, b := range r.Broken {
		k.add(sevWarning, r.Resource, "broken link %s", b.Error)
	}
	k.amounts(r)
}

// amounts judges what is left to do.
func (k *checker) amounts(r *macro.Report) {
	behind := r.Fetch.Rest + r.Replay.Rest
	if r.Role == "Secondary" {
		k.add(k.limits.rest.rising(float64(behind)), r.Resource, "%s of log not replayed", macro.HumanNumber(float64(behind)))
		lag := 0.0
		if behind > 0 && r.Replay.Lag != nil {
			lag = *r.Replay.Lag
		}
		k.add(k.limits.lag.rising(lag), r.Resource, "%s behind the primary", macro.HumanSeconds(lag))
		k.measure(r.Resource+"_lag", lag, "s", &k.limits.lag)
	}
	k.measure(r.Resource+"_sync_rest", float64(r.Sync.Rest), "B", nil)
	k.measure(r.Resource+"_fetch_rest", float64(r.Fetch.Rest), "B", &k.limits.rest)
	k.measure(r.Resource+"_replay_rest", float64(r.Replay.Rest), "B", &k.limits.rest)
	k.measure(r.Resource+"_log_size", float64(r.Log.LocalBytes), "B", nil)
}

func (k *checker) worst() severity {
	worst := sevOK
	for _, p := range k.problems {
		worst = max(worst, p.sev)
	}
	return worst
}

// perfdata is 'label'=value[unit];[warn];[crit] for each number.
func (k *checker) perfdata() string {
	parts := make([]string, len(k.measures))
	for i, m := range k.measures {
		num := func(f *float64) string {
			if f == nil {
				return ""
			}
			return strconv.FormatFloat(*f, 'f', -1, 64)
		}
		value := strconv.FormatFloat(float64(int64(m.Value*1000+0.5))/1000, 'f', -1, 64)
		parts[i] = fmt.Sprintf("'%s'=%s%s;%s;%s", m.Label, value, m.Unit, num(m.Warn), num(m.Crit))
	}
	return strings.Join(parts, " ")
}

// checkDocument is `check --json`.
type checkDocument struct {
	jsonHead
	Status    string    `json:"status"`
	ExitCode  int       `json:"exit_code"`
	Host      string    `json:"host"`
	Resources []string  `json:"resources"`
	Problems  []problem `json:"problems"`
	Measures  []measure `json:"measures"`
}

func checkVerb(_ context.Context, s *session, args []string) error {
	word := strings.Join(args, ",")
	if word == "" {
		word = "all"
	}
	var list []string
	if word == "all" {
		list = macro.ResourcesOf(s.tree, s.host)
	} else {
		var err error
		if list, err = s.resources(&verb{name: "check", anyResource: true}, word); err != nil {
			return err
		}
	}
	k := &checker{limits: s.opt.check, problems: []problem{}, measures: []measure{}}
	if _, ok := s.tree.Get("uuid"); !ok {
		return refuse("marsadm create-cluster or marsadm join-cluster", "%s belongs to no cluster", s.node)
	}
	k.node(s.context("").NodeReport())
	for _, r := range list {
		s.settle(r)
		k.resource(s.context(r).Report(s.host))
	}
	worst := k.worst()
	if s.opt.json {
		doc := checkDocument{s.jsonHead(), worst.String(), int(worst), s.host, append([]string{}, list...), k.problems, k.measures}
		if err := s.printJSON(s.out.write, doc); err != nil {
			return err
		}
		return verdict(worst)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "MARS %s - ", worst)
	if len(k.problems) == 0 {
		fmt.Fprintf(&b, "%d resources on %s", len(list), s.host)
	} else {
		first := k.problems[0]
		for _, p := range k.problems {
			if p.sev == worst {
				first = p
				break
			}
		}
		b.WriteString(first.line())
		if n := len(k.problems) - 1; n > 0 {
			fmt.Fprintf(&b, " (and %d more)", n)
		}
	}
	fmt.Fprintf(&b, " | %s\n", k.perfdata())
	for _, p := range k.problems {
		fmt.Fprintf(&b, "%s: %s\n", p.Level, p.line())
	}
	s.print("%s", b.String())
	return verdict(worst)
}

// line is a problem in one line, without the character that begins the performance
// data.
func (p problem) line() string {
	text := strings.NewReplacer("|", "/", "\n", " ").Replace(p.Text)
	if p.Resource != "" {
		return p.Resource + ": " + text
	}
	return text
}

// checkFailed is what a monitoring system gets to see when the check itself does
// not work.
func checkFailed(out *lineWriter, err error) int {
	text := strings.NewReplacer("|", "/", "\n", " ").Replace(err.Error())
	if hint := hintOf(err); hint != "" {
		text += " (" + hint + ")"
	}
	out.write("MARS UNKNOWN - " + text + "\n")
	return int(sevUnknown)
}

// isCheck tells whether a command line is a check; one that could not be read may
// be meant as such.
func isCheck(n normalised, args []string) bool {
	return n.command == "check" || n.command == "" && slices.Contains(args, "check")
}
