package adm

import (
	"context"
	"fmt"
	"strings"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func viewVerbs() []verb {
	return []verb{
		{name: "view", args: "[RES]", help: "status of resources", res: optRes, readOnly: true, anyResource: true, max: -1, run: viewVerb("default")},
		{name: "view-NAME", args: "[RES] [ARGS]", help: "one value or line: marsadm help view lists the names", hidden: true, readOnly: true, max: -1,
			run: func(context.Context, *session, []string) error {
				return usage("view-NAME stands for many commands: marsadm help view")
			}},
		{name: "role", args: "RES [HOST]", help: "what this host is and should be", res: oneRes, max: 1, readOnly: true, anyResource: true, each: roleVerb},
		{name: "state", args: "RES [HOST]", hidden: true, res: oneRes, max: 1, readOnly: true, anyResource: true, each: roleVerb},
	}
}

// macroVerb is the command view-NAME.
func macroVerb(name string) *verb {
	return &verb{name: name, args: "[RES] [ARGS]", res: noRes, max: -1, readOnly: true, anyResource: true,
		run: viewVerb(strings.TrimPrefix(name, "view-"))}
}

// viewVerb evaluates a macro for no resource, for one, or for a list.
func viewVerb(name string) func(context.Context, *session, []string) error {
	return func(_ context.Context, s *session, args []string) error {
		m, ok := macro.Lookup(name)
		if !ok {
			return unknownMacro(name)
		}
		if name == "default" && !s.context("").DaemonKnown() {
			s.warn("marsd is not running on %s", s.node)
		}
		if len(args) == 0 {
			if name != "default" {
				s.show(m, s.context(""), nil)
				return nil
			}
			args = []string{"all"}
		}
		res, rest := args[0], args[1:]
		list, err := s.resources(&verb{name: s.command, anyResource: true}, res)
		if err != nil {
			return err
		}
		if res != "all" && len(list) == 1 {
			s.settle(list[0])
			s.show(m, s.context(list[0]), rest)
			return nil
		}
		if header, ok := macro.Lookup(name + "-header"); ok {
			s.show(header, s.context(""), nil)
		}
		for _, r := range list {
			s.settle(r)
			c := s.context(r)
			s.print("%s", c.ResourceHeading())
			s.show(m, c, rest)
		}
		if footer, ok := macro.Lookup(name + "-footer"); ok {
			s.show(footer, s.context(""), nil)
		}
		return nil
	}
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

// show prints a value; an empty one prints nothing.
func (s *session) show(m *macro.Macro, c *macro.Context, args []string) {
	text := m.Eval(c, macro.Args(args))
	if text == "" {
		return
	}
	s.print("%s\n", strings.TrimSuffix(text, "\n"))
}

func unknownMacro(name string) error {
	e := &Refusal{Command: "view-" + name, Reason: "no such view", Hint: "marsadm help view lists them"}
	best, least := "", 4
	for _, m := range macro.All() {
		if d := distance(name, m.Name); d < least {
			best, least = m.Name, d
		}
	}
	if best != "" {
		e.Hint = "did you mean view-" + best + "?"
	}
	return e
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
