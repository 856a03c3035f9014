package adm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"mars/cmd/internal/macro"
)

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

func help(_ context.Context, s *session, args []string) error {
	if len(args) == 0 {
		s.out.write(helpText(s.opt.verbose > 0))
		return nil
	}
	name := args[0]
	if name == "view" {
		s.out.write(viewHelp())
		return nil
	}
	if m, ok := macro.Lookup(strings.TrimPrefix(name, "view-")); ok && strings.HasPrefix(name, "view-") {
		s.print("marsadm %s [RES] %s\n  %s\n", name, m.Args, m.Help)
		return nil
	}
	v := findVerb(name)
	if v == nil {
		root, _ := newRoot(nil)
		var e *usageError
		errors.As(unknownCommand(root, name), &e)
		return &usageError{msg: fmt.Sprintf("no help for %q: no such command", name), hint: e.hint}
	}
	s.out.write(commandHelp(v))
	return nil
}

// helpWidth is how wide help texts are.
const helpWidth = 78

// commandHelp is the help for one command; it fits a screen of 24 lines.
func commandHelp(v *verb) string {
	var b strings.Builder
	fmt.Fprintf(&b, "marsadm [options] %s\n\n", strings.TrimSpace(v.name+" "+v.args))
	b.WriteString(wrap("  ", upperFirst(strings.TrimSuffix(summary(v), "."))+"."))
	d, _ := detailOf(v.name)
	if d.about != "" {
		b.WriteString("\n" + wrap("  ", d.about))
	}
	if needs := needsOf(v); needs != "" {
		b.WriteString("\n" + wrap("  ", needs))
	}
	if d.example != "" {
		b.WriteString("\nExample:\n  " + d.example + "\n")
	}
	return b.String()
}

// summary is the one line about a command; rare names may only point to others.
func summary(v *verb) string {
	if v.help != "" {
		return v.help
	}
	other := families[v.name]
	if base := strings.TrimSuffix(strings.TrimSuffix(v.name, "-local"), "-global"); other == "" || base != v.name {
		other = base
	}
	text := "= " + other
	if strings.HasSuffix(v.name, "-global") {
		text += ", on all hosts"
	}
	return text
}

func upperFirst(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// needsOf says what words and what circumstances a command wants.
func needsOf(v *verb) string {
	var out []string
	switch {
	case v.res == oneRes && (v.single || v.newResource):
		out = append(out, "RES is the name of one resource.")
	case v.res == oneRes:
		out = append(out, "RES is a resource, a comma list, or all; --parallel does several at once.")
	case v.res == optRes:
		out = append(out, "Without RES it is done for all.")
	}
	if v.readOnly || v.noTree {
		out = append(out, "Changes nothing.")
	}
	return strings.Join(out, " ")
}

// wrap breaks a text into lines.
func wrap(indent, text string) string {
	var b strings.Builder
	line := indent
	for _, w := range strings.Fields(text) {
		if len(line) > len(indent) && len(line)+1+len(w) > helpWidth {
			b.WriteString(line + "\n")
			line = indent
		}
		if len(line) > len(indent) {
			line += " "
		}
		line += w
	}
	return b.String() + line + "\n"
}

// optionText is an option as the help shows it.
func optionText(o option) string {
	switch o.arity {
	case oneValue:
		return "--" + o.name + "=" + o.value
	case optionalValue:
		return "--" + o.name + "[=" + o.value + "]"
	}
	return "--" + o.name
}

func helpText(all bool) string {
	var b strings.Builder
	b.WriteString("marsadm [options] COMMAND [RESOURCE | RESOURCE,RESOURCE | all] [ARGS]\n")
	for _, g := range groups() {
		fmt.Fprintf(&b, "\n%s\n", g.title)
		for _, v := range g.verbs {
			if !v.hidden || all {
				fmt.Fprintf(&b, "  %-34s %s\n", strings.TrimSpace(v.name+" "+v.args), v.help)
			}
		}
	}
	b.WriteString("\nOptions, before or after the command\n")
	for _, o := range globalOptions {
		if !o.ignored {
			fmt.Fprintf(&b, "  %-34s %s\n", optionText(o), o.help)
		}
	}
	b.WriteString("\nExit codes: 0 done, 1 refused or failed, 2 usage, 3 timed out\nmarsadm help COMMAND says more; --verbose lists the rare commands, too\n")
	return b.String()
}

func viewHelp() string {
	var b strings.Builder
	b.WriteString("marsadm view [RES]          status of resources\nmarsadm view-NAME [RES] [ARGS]\n\n")
	for _, m := range macro.All() {
		fmt.Fprintf(&b, "  %-34s %s\n", strings.TrimSpace("view-"+m.Name+" "+m.Args), m.Help)
	}
	return b.String()
}
