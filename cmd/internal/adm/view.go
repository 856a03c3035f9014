package adm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func viewVerbs() []verb {
	return []verb{
		{name: "view", args: "[RES]", help: "status of resources", res: optRes, readOnly: true, anyResource: true, view: true, max: -1, run: viewVerb("default")},
		{name: "view-NAME", args: "[RES] [ARGS]", help: "one value or line: marsadm help view lists the names", hidden: true, readOnly: true, max: -1,
			run: func(context.Context, *session, []string) error {
				return usage("view-NAME stands for many commands: marsadm help view")
			}},
		{name: "role", args: "RES [HOST]", help: "what this host is and should be", res: oneRes, max: 1, readOnly: true, anyResource: true, each: roleVerb},
		{name: "state", args: "RES [HOST]", hidden: true, res: oneRes, max: 1, readOnly: true, anyResource: true, each: roleVerb},
		{name: "dump-macros", help: "print the texts of the compiled-in views, to be copied to NAME.tpl files", hidden: true, noTree: true, run: dumpMacros(false)},
		{name: "dump-all-macros", help: "likewise, and the names of all primitives", hidden: true, noTree: true, run: dumpMacros(true)},
	}
}

// macroName is the NAME of a command view-NAME, also in the original's other
// spelling.
func macroName(command string) (string, bool) {
	for _, prefix := range []string{"view-", "prettyprint-", "pretty-"} {
		if name, ok := strings.CutPrefix(command, prefix); ok && name != "" {
			return name, true
		}
	}
	return "", false
}

func isMacroCommand(command string) bool { _, ok := macroName(command); return ok }

// macroVerb is the command view-NAME.
func macroVerb(command string) *verb {
	name, _ := macroName(command)
	return &verb{name: command, args: "[RES] [ARGS]", res: noRes, max: -1, readOnly: true, anyResource: true, view: true, run: viewVerb(name)}
}

// viewVerb evaluates a macro for no resource, for one, or for a list.
func viewVerb(name string) func(context.Context, *session, []string) error {
	return func(ctx context.Context, s *session, args []string) error {
		v, err := s.newViewer(name, args)
		if err != nil {
			return err
		}
		if s.opt.watch > 0 {
			return v.watch(ctx, s.opt.watch)
		}
		return v.once(ctx)
	}
}

// viewer shows one view, once or again and again.
type viewer struct {
	s       *session
	name    string
	lib     *macro.Library
	program *macro.Program // of --macro, replaces the view called name
	res     string         // RES word, or empty
	args    []string
	buf     strings.Builder
}

func (s *session) newViewer(name string, args []string) (*viewer, error) {
	lib, err := macro.NewLibrary(macroDirs(s.env.Getenv)...)
	if err != nil {
		return nil, err
	}
	lib.Notice = func(line string) { s.warn("%s", line) }
	v := &viewer{s: s, name: name, lib: lib}
	if s.opt.macro != "" {
		if v.program, err = macro.ParseFile("--macro", s.opt.macro); err != nil {
			return nil, usage("%v", err)
		}
	} else if !lib.Knows(name) {
		return nil, unknownMacro(name)
	}
	switch {
	case len(args) > 0:
		v.res, v.args = args[0], args[1:]
	case name == "default" && v.program == nil:
		v.res = "all"
	}
	return v, nil
}

// macroDirs are the directories with macros of the administrator, best first. The
// original also looks into the current directory, as root.
func macroDirs(getenv func(string) string) []string {
	if path := getenv("MARS_PATH"); path != "" {
		return filepath.SplitList(path)
	}
	var dirs []string
	if home := getenv("HOME"); home != "" {
		dirs = append(dirs, filepath.Join(home, ".marsadm"))
	}
	etc := getenv("ETC_MARSADM")
	if etc == "" {
		etc = "/etc/marsadm"
	}
	return append(dirs, etc, "/usr/lib/marsadm", "/usr/local/lib/marsadm")
}

// once shows the view as the tree is now.
func (v *viewer) once(ctx context.Context) error {
	v.buf.Reset()
	render := v.render
	if v.s.opt.json {
		render = v.renderJSON
	}
	err := render(ctx)
	text := v.buf.String()
	if v.s.colour() && !v.s.opt.json {
		text = colourise(text)
	}
	if text != "" {
		v.s.out.write(text)
	}
	return err
}

// list expands the RES word.
func (v *viewer) list() ([]string, error) {
	if v.res == "" {
		return nil, nil
	}
	list, err := v.s.resources(&verb{name: v.s.command, anyResource: true}, v.res)
	for _, r := range list {
		v.s.settle(r)
	}
	return list, err
}

// render writes the view to the buffer.
func (v *viewer) render(ctx context.Context) error {
	if v.name == "default" && v.program == nil {
		v.remarks()
	}
	list, err := v.list()
	switch {
	case err != nil:
		return err
	case v.res == "":
		return v.show(ctx, v.name, "")
	case v.res != "all" && len(list) == 1:
		return v.show(ctx, v.name, list[0])
	}
	if err := v.around(ctx, "-header"); err != nil {
		return err
	}
	var failed failures
	for _, r := range list {
		v.buf.WriteString(v.context(r).ResourceHeading())
		if err := v.show(ctx, v.name, r); err != nil {
			failed = append(failed, named(err, v.s.command, r, v.s.host))
		}
	}
	if err := errors.Join(v.around(ctx, "-global"), v.around(ctx, "-footer")); err != nil {
		failed = append(failed, err)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// around shows what belongs before or behind a list, if there is such a macro.
func (v *viewer) around(ctx context.Context, suffix string) error {
	if v.program != nil || !v.lib.Knows(v.name+suffix) {
		return nil
	}
	return v.showMacro(ctx, v.name+suffix, "", nil)
}

// show shows the view for a resource.
func (v *viewer) show(ctx context.Context, name, res string) error {
	if v.program == nil {
		return v.showMacro(ctx, name, res, v.args)
	}
	text, err := v.context(res).Run(ctx, v.program, v.args...)
	v.print(text)
	return err
}

func (v *viewer) showMacro(ctx context.Context, name, res string, args []string) error {
	text, err := v.context(res).EvalContext(ctx, name, args...)
	v.print(text)
	return err
}

// print adds the missing line end; what is empty prints nothing.
func (v *viewer) print(text string) {
	if text != "" {
		v.buf.WriteString(strings.TrimSuffix(text, "\n") + "\n")
	}
}

// remarks are about the whole node, and not part of the view.
func (v *viewer) remarks() {
	s := v.s
	if !s.context("").DaemonKnown() {
		s.warn("marsd is not running on %s", s.node)
	}
	for _, b := range s.context("").NodeReport().Broken {
		s.warn("broken link is ignored: %s; set it anew", b.Error)
	}
	for _, e := range s.tree.Dir("ips") {
		host, ok := symlinktree.HostOf(filepath.Base(e.Path), "ip")
		_, heard := s.tree.Get(symlinktree.ActualPath(host, "time"))
		if ok && e.IsDeleted() && heard {
			s.err.write(fmt.Sprintf("HINT: Peer '%s' looks like decommissioned (or we are in split-cluster).\n", host))
		}
	}
}

// context is what texts of the macro language are evaluated in.
func (v *viewer) context(res string) *macro.Context {
	s := v.s
	c := s.context(res)
	c.Lib, c.Root = v.lib, s.tree.Root()
	c.Vars = s.macroVars()
	c.StatusText = func(res, pattern string) string {
		return readMatching(filepath.Join(s.tree.Root(), symlinktree.Resource(res).Dir(), pattern))
	}
	refresh := func() {
		if _, err := s.tree.Rescan(); err != nil {
			s.detail("look at the tree: %v", err)
		}
		c.Tree, c.Now, c.Real, c.Logs = s.tree.Snapshot(), s.tree.Clock().Now(), s.env.Now(), s.logsOnce()
	}
	c.Sleep = func(ctx context.Context, d time.Duration) error {
		err := pause(ctx, d)
		refresh()
		return err
	}
	c.SetLink = func(path, value string) error { return s.setLinkFromView(path, value) }
	c.Wait = func(ctx context.Context, res, cond string, limit time.Duration) error {
		defer refresh()
		ctx, cancel := s.within(ctx, limit)
		defer cancel()
		return waitResource(ctx, &job{session: s, r: symlinktree.Resource(res), args: []string{cond}})
	}
	return c
}

// macroVars are the options that texts may ask for.
func (s *session) macroVars() map[string]string {
	count := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	dry := ""
	if s.opt.dryRun {
		dry = "1"
	}
	return map[string]string{
		"cmd": s.command, "force": count(s.opt.force), "dry-run": dry, "verbose": count(s.opt.verbose),
		"keep-backup-hours":   fmt.Sprint(int64(s.opt.keepBackups / time.Hour)),
		"keep-backup-seconds": fmt.Sprint(int64(s.opt.keepBackups / time.Second)),
	}
}

// setLinkFromView is %setlink: the rules of `marsadm set-link` hold. A view has its
// tree open for reading only.
func (s *session) setLinkFromView(path, value string) error {
	w := &session{env: s.env, opt: s.opt, command: "set-link", out: s.out, err: s.err}
	if err := w.open(&verb{name: "set-link"}); err != nil {
		return err
	}
	return named(setLink(context.Background(), w, []string{value, path}), "set-link", "", s.host)
}

// maxStatusText bounds what is read of status files.
const maxStatusText = 64 << 10

// readMatching concatenates the regular files that match a pattern.
func readMatching(pattern string) string {
	list, err := filepath.Glob(pattern)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, f := range list {
		st, err := os.Lstat(f)
		if err != nil || !st.Mode().IsRegular() || st.Size() > maxStatusText {
			continue
		}
		if data, err := os.ReadFile(f); err == nil && b.Len() < maxStatusText {
			b.Write(data)
		}
	}
	return b.String()
}

// settle looks twice before it believes in a split brain: links are read one by one
// while marsd writes them.
func (s *session) settle(res string) {
	if !macro.DetectSplit(s.tree.Snapshot(), res).Found {
		return
	}
	if _, err := s.tree.Rescan(symlinktree.Resource(res).Dir()); err != nil {
		s.detail("look again at %s: %v", res, err)
	}
}

func unknownMacro(name string) error {
	e := &Refusal{Command: "view-" + name, Reason: "no such view", Hint: "marsadm help view lists them"}
	if near := macro.Nearest(name); near != "" {
		e.Hint = "did you mean view-" + near + "?"
	}
	return e
}

// dumpMacros prints the texts of the complex macros, each behind a line that names
// its file.
func dumpMacros(all bool) func(context.Context, *session, []string) error {
	return func(_ context.Context, s *session, _ []string) error {
		for _, m := range macro.All() {
			switch {
			case m.Text != nil:
				s.print("==== %s.tpl\n%s\n", m.Name, strings.TrimSuffix(m.Text.Text(), "\n"))
			case all:
				s.print("==== %s.tpl\n# %s: %s\n%%primitive-%s{%%{1}}\n", m.Name, m.Args, m.Help, m.Name)
			}
		}
		return nil
	}
}

func roleVerb(_ context.Context, j *job) error {
	host := j.host
	if len(j.args) > 0 {
		host = j.args[0]
	}
	is, _ := j.tree.Get(j.r.ActualPath(host, "is-primary"))
	should, _ := j.tree.Get(j.r.PrimaryPath())
	role := "secondary"
	if symlinktree.Switch(is) {
		role = "primary"
	}
	text := "I am actually " + role
	if symlinktree.Switch(is) != (should == host) {
		text += fmt.Sprintf(" and %s should be primary", orMissing(should))
	}
	j.print("%s\n", text)
	return nil
}
