package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// resMode says which RES word a command takes.
type resMode int

const (
	noRes  resMode = iota
	oneRes         // required
	optRes         // optional, default all
)

// verb is one command.
type verb struct {
	name, args, help string
	res              resMode
	min, max         int // number of further words

	hidden      bool // not in the short help
	readOnly    bool // never writes
	noTree      bool // needs no tree at all
	noCluster   bool // works before there is a cluster
	joining     bool // works while the node is joining
	mounted     bool // the default root must be a mount point
	single      bool // refuses lists of resources
	newResource bool // the resource need not exist
	anyResource bool // the host need not be a member
	view        bool // shows a macro: knows --macro and --watch

	run  func(ctx context.Context, s *session, args []string) error
	each func(ctx context.Context, j *job) error
}

// group is a heading of the help with its commands.
type group struct {
	title string
	verbs []verb
}

func groups() []group {
	return []group{
		{"Cluster", append(clusterVerbs(), mergeVerbs()...)},
		{"Resources", append(resourceVerbs(), guestVerbs()...)},
		{"Switches", switchVerbs()},
		{"Roles", roleVerbs()},
		{"Consistency and size", dataVerbs()},
		{"Waiting", waitVerbs()},
		{"Logs and housekeeping", houseVerbs()},
		{"Services", systemdVerbs()},
		{"Parameters and links", slices.Concat(paramVerbs(), trafficVerbs(), linkVerbs())},
		{"Views", slices.Concat(viewVerbs(), explainVerbs(), checkVerbs(), treeVerbs(), legacyVerbs())},
		{"Tools", toolVerbs()},
	}
}

func findVerb(name string) *verb {
	for _, g := range groups() {
		for i := range g.verbs {
			if g.verbs[i].name == name {
				return &g.verbs[i]
			}
		}
	}
	return nil
}

// Run is marsadm: it carries out one command line (without the program's name) and
// returns the exit code.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer, env Env) int {
	env = env.withDefaults()
	errOut := newLineWriter(stderr)
	if isCompletion(args) {
		return runCompletion(ctx, args, stdout, env)
	}
	n, err := normalise(args)
	if err == nil {
		err = execute(ctx, n, newLineWriter(stdout), errOut, env)
	}
	var v verdict
	switch {
	case errors.As(err, &v):
		return int(v)
	case err != nil && isCheck(n, args):
		return checkFailed(newLineWriter(stdout), err)
	case err != nil:
		report(errOut, err)
	}
	return exitCode(err)
}

// report prints an error and what to do about it.
func report(w *lineWriter, err error) {
	var list failures
	if errors.As(err, &list) {
		for _, e := range list {
			report(w, e)
		}
		return
	}
	w.write("ERROR: " + err.Error() + "\n")
	if hint := hintOf(err); hint != "" {
		w.write("   HINT: " + hint + "\n")
	}
}

// execute hands a canonical command line to the flag parser and runs its command.
func execute(ctx context.Context, n normalised, out, errOut *lineWriter, env Env) error {
	root, opt := newRoot(func(cmd *cobra.Command, opt *options, v *verb, name string, args []string) error {
		s := &session{env: env, opt: opt, command: name, out: out, err: errOut}
		return s.start(cmd.Context(), v, args)
	})
	opt.peerIPs = n.peerIPs
	root.SetArgs(n.args)
	return root.ExecuteContext(ctx)
}

// newRoot declares all commands and options; run carries a command out.
func newRoot(run func(cmd *cobra.Command, opt *options, v *verb, name string, args []string) error) (*cobra.Command, *options) {
	root := &cobra.Command{
		Use:           "marsadm [options] COMMAND [RESOURCE] [ARGS]",
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	opt := bind(root.PersistentFlags())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%v", err) })
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	for _, g := range groups() {
		for i := range g.verbs {
			v := &g.verbs[i]
			root.AddCommand(&cobra.Command{Use: v.name, Short: v.help, Hidden: v.hidden, Args: cobra.ArbitraryArgs,
				RunE: func(cmd *cobra.Command, args []string) error { return run(cmd, opt, v, v.name, args) }})
		}
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return &usageError{msg: "no command given", hint: "marsadm help lists the commands"}
		case isMacroCommand(args[0]):
			return run(cmd, opt, macroVerb(args[0]), args[0], args[1:])
		}
		return unknownCommand(root, args[0])
	}
	return root, opt
}

func unknownCommand(root *cobra.Command, name string) error {
	root.SuggestionsMinimumDistance = 3
	e := &usageError{msg: fmt.Sprintf("unknown command %q", name), hint: "marsadm help lists the commands"}
	if list := root.SuggestionsFor(name); name != "" && len(list) > 0 {
		e.hint = "did you mean " + strings.Join(list, " or ") + "?"
	}
	return e
}

// start checks the words of a command before anything else happens, and runs it.
func (s *session) start(ctx context.Context, v *verb, args []string) error {
	res, rest := "", args
	if v.res != noRes {
		switch {
		case len(args) > 0:
			res, rest = args[0], args[1:]
			if res == "" {
				return usage("%s: the resource name is empty", s.command)
			}
		case v.res == oneRes:
			return &usageError{msg: fmt.Sprintf("%s needs a resource: marsadm %s %s", s.command, s.command, v.args), hint: "a name, a comma list, or all"}
		default:
			res = "all"
		}
	}
	switch {
	case len(rest) < v.min:
		return usage("%s: too few words; usage: marsadm %s", s.command, strings.TrimSpace(s.command+" "+v.args))
	case (s.opt.watch > 0 || s.opt.macro != "") && !v.view:
		return usage("%s: --watch and --macro are for views only", s.command)
	case v.max >= 0 && len(rest) > v.max:
		return usage("%s: surplus word %q; usage: marsadm %s", s.command, rest[v.max], strings.TrimSpace(s.command+" "+v.args))
	}
	if v.noTree {
		return named(v.run(ctx, s, rest), s.command, "", "")
	}
	if (v.single || v.newResource) && res == "all" {
		return usage("%s works on one resource at a time", s.command)
	}
	if err := s.open(v); err != nil {
		return named(err, s.command, res, s.node)
	}
	if v.run != nil {
		ctx, cancel := s.deadline(ctx)
		defer cancel()
		if v.res != noRes {
			rest = args
		}
		return named(v.run(ctx, s, rest), s.command, "", s.host)
	}
	list, err := s.resources(v, res)
	if err != nil {
		return err
	}
	return s.each(ctx, v, list, rest)
}
