package adm

import (
	"context"
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func treeVerbs() []verb {
	return []verb{{name: "tree", args: "[RES]", help: "the links with their ages, writers and what is pending", res: optRes, readOnly: true, anyResource: true, run: treeVerb}}
}

// treeLink is one link as `marsadm tree` shows it.
type treeLink struct {
	Path    string  `json:"path"`
	Value   string  `json:"value"`
	Age     float64 `json:"age_seconds"` // by this machine's clock; negative: from its future
	Writer  string  `json:"writer"`      // who writes such links
	Meaning string  `json:"meaning"`     // the value for people, or empty
	Pending string  `json:"pending"`     // what has not yet come of it
	Broken  string  `json:"broken"`      // what is wrong with the value
	Deleted bool    `json:"deleted"`
}

// treeDocument is `tree --json`.
type treeDocument struct {
	jsonHead
	Root  string     `json:"root"`
	Links []treeLink `json:"links"`
}

func treeVerb(_ context.Context, s *session, args []string) error {
	word := "all"
	if len(args) > 0 {
		word = args[0]
	}
	var dirs []string
	if word == "all" {
		dirs = allDirs(s.tree.Snapshot(), "")
	} else {
		list, err := s.resources(&verb{name: "tree", anyResource: true}, word)
		if err != nil {
			return err
		}
		for _, r := range list {
			dirs = append(dirs, allDirs(s.tree.Snapshot(), symlinktree.Resource(r).Dir())...)
		}
	}
	b := treeBuilder{c: s.context("")}
	for _, d := range dirs {
		b.dir(d, s.entries(d))
	}
	if s.opt.json {
		return s.printJSON(s.out.write, treeDocument{s.jsonHead(), s.tree.Root(), append([]treeLink{}, b.links...)})
	}
	s.print("%s", b.text(s.tree.Root()))
	return nil
}

// allDirs are dir and everything below it.
func allDirs(t macro.Tree, dir string) []string {
	out := []string{dir}
	for _, d := range t.Dirs(dir) {
		out = append(out, allDirs(t, filepath.Join(dir, d))...)
	}
	return out
}

// entries of a directory: live ones, and tombstones if asked for details.
func (s *session) entries(dir string) []symlinktree.Entry {
	out := append([]symlinktree.Entry(nil), s.tree.List(dir)...)
	if s.opt.verbose > 0 {
		for _, e := range s.tree.Dir(dir) {
			if e.IsDeleted() {
				out = append(out, e)
			}
		}
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Path < out[k].Path })
	return out
}

// treeBuilder describes links; it looks at nothing but the tree.
type treeBuilder struct {
	c     *macro.Context
	links []treeLink
}

func (b *treeBuilder) dir(dir string, list []symlinktree.Entry) {
	for _, e := range list {
		l := treeLink{Path: e.Path, Value: e.Value, Age: b.c.Real.Sub(e.Stamp.Time()).Round(time.Millisecond).Seconds(), Writer: writerOf(e.Path), Deleted: e.IsDeleted()}
		if !l.Deleted {
			if err := symlinktree.CheckValue(e.Path, e.Value); err != nil {
				l.Broken = err.Error()
			}
			l.Meaning = b.meaning(e)
			l.Pending = b.pending(e)
		}
		b.links = append(b.links, l)
	}
}

// splitResource takes a path of a resource apart: "resource-r/actual-h/x" is r, h and
// "actual/x"; links directly in the resource's directory have no host.
func splitResource(path string) (res symlinktree.Resource, host, name string, ok bool) {
	f := strings.Split(path, "/")
	r, ok := symlinktree.HostOf(f[0], "resource")
	if !ok || len(f) < 2 {
		return "", "", "", false
	}
	if len(f) == 2 {
		return symlinktree.Resource(r), "", f[1], true
	}
	for _, class := range []string{"actual", "todo", "defaults", "local"} {
		if h, ok := symlinktree.HostOf(f[1], class); ok {
			return symlinktree.Resource(r), h, class + "/" + f[2], true
		}
	}
	return symlinktree.Resource(r), "", strings.Join(f[1:], "/"), true
}

// writerOf is who writes links of that kind. Stamps do not carry a name, but every
// path has one kind of writer (docs/TREE-SCHEMA.md).
func writerOf(path string) string {
	if h, ok := symlinktree.HostOf(strings.Split(path, "/")[0], "actual"); ok {
		if filepath.Base(path) == "marsadm-version" {
			return "marsadm on " + h
		}
		return "marsd on " + h
	}
	if h, ok := symlinktree.HostOf(strings.Split(path, "/")[0], "local"); ok {
		return "marsadm on " + h
	}
	_, host, name, ok := splitResource(path)
	if !ok {
		return "marsadm"
	}
	switch class, _, _ := strings.Cut(name, "/"); class {
	case "actual", "local":
		return "marsd on " + host
	case "todo", "defaults":
		return "marsadm for " + host
	}
	for _, p := range []string{"actsize", "syncstatus", "syncpos", "verifystatus", "replay", "syncsource"} {
		if h, ok := symlinktree.HostOf(name, p); ok {
			return "marsd on " + h
		}
	}
	if _, h, ok := symlinktree.NumberedOf(name, "version"); ok {
		return "marsd on " + h
	}
	for _, p := range []string{"data", "device", "skip-check"} {
		if h, ok := symlinktree.HostOf(name, p); ok {
			return "marsadm for " + h
		}
	}
	return "marsadm"
}

// meaning is a value in the words of people, where that says more.
func (b *treeBuilder) meaning(e symlinktree.Entry) string {
	name := filepath.Base(e.Path)
	if s, err := symlinktree.ParseStamp(e.Value); err == nil && strings.Contains(e.Value, ".") && name != "tree" {
		return s.Time().In(b.c.Real.Location()).Format("2006-01-02 15:04:05") + ", " + age(max(0, b.c.Real.Sub(s.Time()))) + " ago"
	}
	_, _, full, ok := splitResource(e.Path)
	n, err := strconv.ParseInt(e.Value, 10, 64)
	switch {
	case !ok:
		return ""
	case err == nil && (name == "size" || name == "device-size" || strings.HasPrefix(full, "actsize-") || strings.HasPrefix(full, "syncstatus-")):
		return macro.HumanNumber(float64(n))
	case err == nil && n > 0 && strings.HasPrefix(name, "amount-"):
		return macro.HumanNumber(float64(n*1024)) + "/s"
	case name == "replay-code" && strings.HasPrefix(e.Value, "-"), name == "disk-error" && err == nil && n != 0:
		return macro.ErrnoText(e.Value)
	}
	if r, err := symlinktree.ParseReplay(e.Value); err == nil {
		text := "log " + strconv.Itoa(r.Seq) + " of " + r.Origin + " up to " + macro.HumanNumber(float64(r.Min))
		if r.Len > 0 {
			text += ", " + macro.HumanNumber(float64(r.Len)) + " dirty"
		}
		return text
	}
	if v, err := symlinktree.ParseVersion(e.Value); err == nil {
		return "log " + strconv.Itoa(v.Seq) + " of " + v.Origin + " has " + macro.HumanNumber(float64(v.Pos))
	}
	return ""
}

// answers are the links that show that marsd has carried a switch out.
var answers = map[string]string{
	"todo/" + symlinktree.SwitchAttach:      "is-attached",
	"todo/" + symlinktree.SwitchConnect:     "is-copying",
	"todo/" + symlinktree.SwitchAllowReplay: "is-replaying",
	"todo/" + symlinktree.SwitchSync:        "is-syncing",
}

// pending is what an order waits for: nothing if it has been carried out, or if
// there is nothing to do.
func (b *treeBuilder) pending(e symlinktree.Entry) string {
	if strings.HasPrefix(e.Path, "local-") {
		return "marsd has not yet carried this request out"
	}
	res, host, name, ok := splitResource(e.Path)
	if !ok {
		return ""
	}
	t := b.c.Tree
	on := func(path string) bool { v, _ := t.Get(path); return symlinktree.Switch(v) }
	if name == "primary" {
		for _, h := range macro.Members(t, string(res)) {
			switch is := on(res.ActualPath(h, "is-primary")); {
			case is && h != e.Value:
				return h + " still is primary"
			case !is && h == e.Value:
				return h + " is not yet primary"
			}
		}
		return ""
	}
	answer, ok := answers[name]
	if !ok {
		return ""
	}
	is := on(res.ActualPath(host, answer))
	switch wanted := symlinktree.Switch(e.Value); {
	case !wanted && is:
		return answer + " is still 1"
	case wanted && !is && name == "todo/"+symlinktree.SwitchAttach:
		return answer + " is still 0"
	}
	return ""
}

// age is a span in at most two units.
func age(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	s := int64(d / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%s%ds", sign, s)
	case s < 3600:
		return fmt.Sprintf("%s%dm%02ds", sign, s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%s%dh%02dm", sign, s/3600, s/60%60)
	}
	return fmt.Sprintf("%s%dd%02dh", sign, s/86400, s/3600%24)
}

// text prints the links, a block for each directory.
func (b *treeBuilder) text(root string) string {
	var out strings.Builder
	width, last := 0, "?"
	for _, l := range b.links {
		width = max(width, min(32, len(filepath.Base(l.Path))))
	}
	for _, l := range b.links {
		dir := filepath.Dir(l.Path)
		if dir != last {
			last = dir
			fmt.Fprintf(&out, "%s\n", strings.TrimSuffix(filepath.Join(root, dir), "/."))
		}
		value := l.Value
		if l.Meaning != "" {
			value += "  (" + l.Meaning + ")"
		}
		when := age(time.Duration(l.Age*float64(time.Second))) + " ago"
		if l.Age < 0 {
			when = age(time.Duration(-l.Age*float64(time.Second))) + " AHEAD of the clock"
		}
		fmt.Fprintf(&out, "  %-*s  %s  [%s, %s]\n", width, filepath.Base(l.Path), value, l.Writer, when)
		for _, note := range []struct{ what, text string }{{"pending", l.Pending}, {"BROKEN, ignored", l.Broken}} {
			if note.text != "" {
				fmt.Fprintf(&out, "  %-*s  ^ %s: %s\n", width, "", note.what, note.text)
			}
		}
	}
	return out.String()
}
