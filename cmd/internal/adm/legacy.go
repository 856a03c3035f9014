package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// legacyVerbs are commands that the original knows for the sake of DRBD's and its
// own former users (reference marsadm.md 5, 6.8).
func legacyVerbs() []verb {
	out := []verb{
		{name: "show", args: "[RES]", help: "links of a resource as PATH=VALUE lines", res: optRes, readOnly: true, anyResource: true, each: showVerb},
		{name: "show-errors", args: "RES", help: "its error messages; exit 1 if there are any", res: oneRes, readOnly: true, anyResource: true, each: showErrors},
		{name: "cat", args: "PATH...", help: "print files or links of the tree with readable times and errors", min: 1, max: -1, noTree: true, run: catVerb},
	}
	for _, n := range []string{"show-state", "mars-state"} {
		out = append(out, verb{name: n, args: "RES", help: "the state of a resource in words", hidden: true, res: oneRes, readOnly: true, anyResource: true, each: showState})
	}
	for _, n := range []string{"show-info", "mars-info"} {
		out = append(out, verb{name: n, args: "[RES]", help: "= view", hidden: true, res: optRes, readOnly: true, anyResource: true, run: viewVerb("default")})
	}
	for _, r := range retired {
		out = append(out, r.verb())
	}
	return out
}

// retirement is a command that exists in the original's table but has no work to do.
type retirement struct {
	name string
	done bool   // the original ignores it with success
	why  string // what is said
	hint string
}

// retired: the first group is ignored by the original as well, with success, so
// that scripts made for DRBD go on; the others are refused.
var retired = []retirement{
	{"syncer", true, "", ""}, {"check-resize", true, "", ""}, {"get-gi", true, "", ""}, {"show-gi", true, "", ""},
	{"outdate", true, "", ""}, {"adjust", true, "", ""}, {"hidden-commands", true, "", ""},
	{"create-md", true, "there are no metadata on the disk", ""}, {"dump-md", true, "there are no metadata on the disk", ""},
	{"dump", true, "there is nothing to dump", ""}, {"new-current-uuid", true, "a resource has no uuid", ""},
	{"verify", false, "there is no online verify", "marsadm invalidate RES copies what differs"},
	{"invalidate-remote", false, "a host can only give up its own replica", "marsadm invalidate RES on the other host"},
	{"cstate", false, "it is a word of DRBD", "marsadm view-replstate RES"},
	{"dstate", false, "it is a word of DRBD", "marsadm view-diskstate RES"},
	{"status", false, "it is a word of DRBD", "marsadm view RES"},
	{"split-cluster", false, "it is not needed: a node gets the progress of its own resources only, so a big cluster costs no more than small ones",
		"to take a node out: marsadm leave-resource, marsadm leave-cluster, and join another cluster with an empty root"},
}

func (r retirement) verb() verb {
	run := func(_ context.Context, s *session, _ []string) error {
		if !r.done {
			return refuse(r.hint, "%s", r.why)
		}
		text := "ignoring command " + r.name
		if r.why != "" {
			text = r.name + " makes no sense here: " + r.why
		}
		s.print("%s\n", text)
		return nil
	}
	help := "ignored"
	if !r.done {
		help = "refused: " + r.why
	}
	return verb{name: r.name, args: "[RES]", help: help, hidden: true, noTree: true, max: 2, run: run}
}

// showVerb prints what scripts of the original grep for. Paths are relative to the root.
func showVerb(_ context.Context, j *job) error {
	line := func(path string) {
		if v, ok := j.tree.Get(path); ok {
			j.print("%s=%s\n", path, v)
		}
	}
	for _, p := range []string{symlinktree.IPPath(j.host), j.r.DevicePath(j.host), j.r.PrimaryPath(), j.r.SizePath(),
		j.r.ActSizePath(j.host), j.r.SyncStatusPath(j.host), j.r.ReplayPath(j.host)} {
		line(p)
	}
	for _, dir := range []string{j.r.ActualDir(j.host), j.r.TodoDir(j.host)} {
		for _, e := range j.tree.List(dir) {
			line(e.Path)
		}
	}
	return nil
}

// showErrors prints the error messages of marsd about a resource.
func showErrors(_ context.Context, j *job) error {
	n := 0
	for _, e := range j.tree.List(j.r.ActualDir(j.host)) {
		name := filepath.Base(e.Path)
		if v, ok := j.tree.Get(e.Path); ok && strings.HasPrefix(name, "msg-err-") && !strings.HasPrefix(v, "OK") {
			j.print("%s: %s\n", strings.TrimPrefix(name, "msg-"), pretty(v))
			n++
		}
	}
	if n > 0 {
		return refuse(fmt.Sprintf("marsadm view %s", j.r), "%d error messages", n)
	}
	return nil
}

// showState says in the original's words what the replica of this host is.
func showState(_ context.Context, j *job) error {
	c := j.context(string(j.r))
	value := func(m string) string { v, _ := c.Eval(m); return v }
	primary, _ := j.tree.Get(j.r.PrimaryPath())
	pos, size := value("sync-pos"), value("sync-size")
	switch {
	case value("is-primary") == "1":
		j.print("is_primary\n")
	case primary == j.host:
		j.print("becoming_primary\n")
	case needsSync(j.tree, j.r, j.host):
		j.print("secondary inconsistent (%s bytes of %s)\n", orMissing(pos), orMissing(size))
	case macro.Number(value("work-rest")) > 0:
		j.print("secondary outdated (%s instead of %s)\n", value("work-pos"), value("work-size"))
	default:
		j.print("secondary uptodate\n")
	}
	return nil
}

var (
	stampText = regexp.MustCompile(`\b[0-9]{9,}\.[0-9]{9}\b`)
	errorText = regexp.MustCompile(`\b(error|status)( = | =|= |=| )-([0-9]+)\b`)
)

// pretty replaces stamps by local times and error numbers by their names.
func pretty(text string) string {
	text = stampText.ReplaceAllStringFunc(text, func(w string) string {
		sec, frac, _ := strings.Cut(w, ".")
		return time.Unix(macro.Number(sec), 0).Format("2006-01-02 15:04:05") + "." + frac
	})
	return errorText.ReplaceAllStringFunc(text, func(w string) string {
		i := strings.LastIndexByte(w, '-')
		return w[:i] + "-" + strings.ReplaceAll(macro.ErrnoText(w[i:]), "_", " ")
	})
}

// catVerb prints files, or the values of links.
func catVerb(_ context.Context, s *session, args []string) error {
	var errs failures
	root, _ := rootDir(s.env, s.opt)
	for _, path := range args {
		if !filepath.IsAbs(path) {
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				path = filepath.Join(root, path)
			}
		}
		text, err := os.Readlink(path)
		if err == nil {
			text += "\n"
		} else {
			var data []byte
			if data, err = os.ReadFile(path); err != nil {
				errs = append(errs, named(refuse("", "%v", err), "cat", "", ""))
				continue
			}
			text = string(data)
		}
		s.out.write(pretty(text))
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}
