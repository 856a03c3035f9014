package adm

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mars/cmd/internal/macro"
	"mars/cmd/internal/systemd"
	"mars/symlinktree"
)

// completionVerb prints the script for a shell. It calls marsadm itself to learn
// what fits.
func completionVerb(_ context.Context, s *session, args []string) error {
	text, err := CompletionScript(args[0])
	if err != nil {
		return err
	}
	s.out.write(text)
	return nil
}

// CompletionScript is the script that completes command lines in a shell.
func CompletionScript(shell string) (string, error) {
	root, _ := newRoot(nil)
	var b bytes.Buffer
	var err error
	switch shell {
	case "bash":
		err = root.GenBashCompletionV2(&b, true)
	case "zsh":
		err = root.GenZshCompletion(&b)
	case "fish":
		err = root.GenFishCompletion(&b, true)
	default:
		return "", usage("no completion for %q: bash, zsh or fish", shell)
	}
	return b.String(), err
}

// isCompletion recognises the calls of the completion scripts.
func isCompletion(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// runCompletion answers a completion script. It never fails: without a tree there is
// just less to offer.
func runCompletion(ctx context.Context, args []string, out io.Writer, env Env) int {
	list := []string{args[0]}
	for i, w := range args[1:] {
		// The word under the cursor stays as it is; others have one spelling.
		if long, short := shortOptions[strings.TrimPrefix(w, "-")]; short && strings.HasPrefix(w, "-") && i < len(args)-2 {
			w = "--" + long
		}
		list = append(list, w)
	}
	root, opt := newRoot(nil)
	c := &completer{env: env, opt: opt}
	c.attach(root)
	// --ip-PEER is one option for each host; the words before tell which tree.
	for _, h := range c.peek(list) {
		if root.PersistentFlags().Lookup("ip-"+h) == nil {
			root.PersistentFlags().String("ip-"+h, "", "address of "+h)
		}
	}
	root.SetArgs(list)
	root.SetOut(out)
	root.SetErr(io.Discard)
	if err := root.ExecuteContext(ctx); err != nil {
		return ExitFailed
	}
	return ExitDone
}

// completer knows what may stand at which place.
type completer struct {
	env Env
	opt *options
	s   *session // nil until the tree is needed
}

// peek finds the hosts of the tree that the options in args name.
func (c *completer) peek(args []string) []string {
	opt := &options{}
	for i, w := range args {
		if v, ok := strings.CutPrefix(w, "--root="); ok {
			opt.root = v
		} else if w == "--root" && i+1 < len(args) {
			opt.root = args[i+1]
		}
	}
	other := &completer{env: c.env, opt: opt}
	return other.hosts()
}

// tree opens the tree that the options name; without one there is nothing to offer.
func (c *completer) tree() (*session, bool) {
	if c.s == nil {
		s := &session{env: c.env, opt: c.opt, out: newLineWriter(io.Discard), err: newLineWriter(io.Discard)}
		if err := s.open(&verb{readOnly: true}); err != nil {
			return nil, false
		}
		c.s = s
	}
	return c.s, true
}

func (c *completer) hosts() []string {
	s, ok := c.tree()
	if !ok {
		return nil
	}
	return symlinktree.Hosts(s.tree)
}

// resources offers those that a command can be meant for.
func (c *completer) resources(v *verb) []string {
	s, ok := c.tree()
	if !ok {
		return nil
	}
	var out []string
	for _, r := range s.known() {
		member := macro.IsMember(s.tree, r, s.host)
		if v.name == "join-resource" || v.name == "activate-guest" {
			member = !member
		}
		if member || v.anyResource || s.opt.host != "" {
			out = append(out, r)
		}
	}
	return out
}

// templateUnits are the names that set-systemd-unit can begin with.
func (c *completer) templateUnits() []string {
	var dirs []string
	for _, d := range searchPath(c.env) {
		dirs = append(dirs, filepath.Join(d, "systemd-templates"))
	}
	list, err := systemd.LoadTemplates(dirs)
	out := []string{"DEFAULT"}
	if err == nil {
		for _, t := range list {
			if !strings.ContainsAny(t.Name, "@^") {
				out = append(out, t.Name)
			}
		}
	}
	return out
}

// values are the words that fit at a place behind the resource, by command.
func (c *completer) values(v *verb, place int) ([]string, cobra.ShellCompDirective) {
	files := cobra.ShellCompDirectiveDefault
	words := cobra.ShellCompDirectiveNoFileComp
	flagNames := func(list []flagName) (out []string) {
		for _, f := range list {
			out = append(out, f.name)
		}
		return out
	}
	switch name := v.name; {
	case (name == "create-resource" || name == "join-resource") && place == 0, hasAnyPrefix(name, "log-dump", "log-verify", "cat"):
		return nil, files
	case name == "wait-resource" && place == 0:
		return conditions(), words
	case place == 0 && (hasAnyPrefix(name, "lowlevel-", "join-cluster", "merge-cluster") || name == "set-connect-pref-list" || name == "role" || name == "state"):
		return c.hosts(), words
	case name == "set-systemd-want" && place == 0:
		return append(c.hosts(), symlinktree.NoHost), words
	case name == "set-systemd-unit":
		return c.templateUnits(), words
	case strings.Contains(name, "digests") && strings.HasPrefix(name, "set-"):
		return flagNames(digestFlags), words
	case strings.Contains(name, "compressions") && strings.HasPrefix(name, "set-"):
		return flagNames(compressionFlags), words
	case strings.HasPrefix(name, "set-emergency-limit") && place == 0:
		return []string{"0", "5", "10", "20", "30", "50"}, words
	case name == "completion" && place == 0:
		return []string{"bash", "zsh", "fish"}, words
	case name == "help" && place == 0:
		return append(commandNames(), "view"), words
	case name == "set-link" || name == "get-link" || name == "delete-file":
		return nil, words
	}
	return nil, words
}

func conditions() []string {
	var out []string
	for _, w := range []string{"attach", "fetch", "replay", "sync", "primary", "secondary"} {
		out = append(out, "is-"+w, "is-"+w+"-off", w+"-on", w+"-off")
	}
	return append(out, "is-device", "is-device-off")
}

// commandNames are those of the short help.
func commandNames() []string {
	var out []string
	for _, g := range groups() {
		for _, v := range g.verbs {
			if !v.hidden {
				out = append(out, v.name)
			}
		}
	}
	return out
}

// words completes word number len(args) of a command.
func (c *completer) words(v *verb, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	place := len(args)
	if v.res != noRes {
		place--
	}
	if place >= 0 {
		if v.max >= 0 && place >= v.max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, directive := c.values(v, place)
		return matching(list, begun), directive
	}
	if v.newResource && v.name == "create-resource" {
		return nil, cobra.ShellCompDirectiveNoFileComp // a new name
	}
	list := c.resources(v)
	if v.single || v.newResource {
		return matching(list, begun), cobra.ShellCompDirectiveNoFileComp
	}
	// A comma list goes on with what is not yet in it.
	i := strings.LastIndexByte(begun, ',') + 1
	before, last := begun[:i], begun[i:]
	had := strings.Split(before, ",")
	var out []string
	for _, r := range list {
		if !slices.Contains(had, r) {
			out = append(out, before+r)
		}
	}
	if before == "" && len(list) > 0 {
		out = append(out, "all")
	}
	return matching(out, before+last), cobra.ShellCompDirectiveNoFileComp
}

func matching(list []string, begun string) []string {
	var out []string
	for _, w := range list {
		if strings.HasPrefix(w, begun) {
			out = append(out, w)
		}
	}
	return out
}

// attach hangs the completions onto the commands and options.
func (c *completer) attach(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if v := findVerb(cmd.Name()); v != nil {
			cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
				return c.words(v, args, begun)
			}
		}
	}
	root.ValidArgsFunction = func(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			if !strings.HasPrefix(args[0], "view-") {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.words(&verb{res: optRes, max: -1, anyResource: true}, args[1:], begun)
		}
		var out []string
		if strings.HasPrefix(begun, "view-") {
			for _, m := range macro.All() {
				out = append(out, "view-"+m.Name+"\t"+m.Help)
			}
		}
		return matching(out, begun), cobra.ShellCompDirectiveNoFileComp
	}
	fixed := map[string][]string{
		"timeout": {"10", "60", "600"}, "window": {"10", "60"}, "parallel": {"0", "2", "4"}, "verbose": {"0", "1", "2"}, "systemd-enable": {"0", "1"},
		"threshold": {"4096", "1M", "10M"}, "keep-backup-hours": {"24", "168"}, "thresh-logfiles": {"10"}, "thresh-logsize": {"5"}, "stuck-seconds": {"3600"},
	}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) {
		name := f.Name
		complete := func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
			switch {
			case name == "host" || name == "node":
				return matching(c.hosts(), begun), cobra.ShellCompDirectiveNoFileComp
			case name == "root" || name == "backup-dir":
				return nil, cobra.ShellCompDirectiveFilterDirs
			case name == "secret":
				return nil, cobra.ShellCompDirectiveDefault
			}
			return matching(fixed[name], begun), cobra.ShellCompDirectiveNoFileComp
		}
		// Only a second function for the same option would be an error.
		_ = root.RegisterFlagCompletionFunc(name, complete)
	})
}
