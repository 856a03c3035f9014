package adm

import (
	"strings"
	"testing"
)

// Help for every command fits a screen, has the line of usage, and an example that
// is a command line of that command.
func TestHelpFitsAScreen(t *testing.T) {
	r := newRig(t, "hosta")
	for _, g := range groups() {
		for _, v := range g.verbs {
			if strings.HasPrefix(v.help, "ignored") || strings.HasPrefix(v.help, "refused") || v.name == "view" {
				continue
			}
			text := r.ok("help", v.name).out
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			if len(lines) > 23 {
				t.Errorf("help %s has %d lines", v.name, len(lines))
			}
			for _, l := range lines {
				if len(l) > 110 || len(l) > 80 && !strings.HasPrefix(l, "  marsadm") && !strings.HasPrefix(l, "marsadm [options]") {
					t.Errorf("help %s has a line of %d characters: %s", v.name, len(l), l)
				}
			}
			if !strings.HasPrefix(lines[0], "marsadm [options] "+v.name) || len(lines) < 3 || strings.TrimSpace(lines[2]) == "." {
				t.Errorf("help %s begins with %q", v.name, lines)
			}
			if d, ok := detailOf(v.name); !viewsOwn(v.name) && (!ok || d.example == "" || !strings.Contains(text, "\nExample:\n  ")) {
				t.Errorf("help %s has no example", v.name)
			}
		}
	}
	for name := range details {
		if name != "switch" && name != "flags" && findVerb(name) == nil {
			t.Errorf("there is a text about %s, which does not exist", name)
		}
	}
}

// viewsOwn are commands whose help is made elsewhere.
func viewsOwn(name string) bool {
	return hasAnyPrefix(name, "why", "check", "tree", "dump-", "prettyprint") && name != "check-resize"
}

// Every example is accepted by the parser of command lines, up to the state of the
// cluster: words and options are right.
func TestExamplesParse(t *testing.T) {
	for name, d := range details {
		for _, line := range strings.Split(d.example, "&&") {
			_, line, ok := strings.Cut(line, "marsadm ")
			if !ok || strings.ContainsAny(line, "'()") {
				continue
			}
			line, _, _ = strings.Cut(line, " | ")
			n, err := normalise(strings.Fields(line))
			if err != nil {
				t.Errorf("%s: %q: %v", name, line, err)
				continue
			}
			v := findVerb(n.command)
			if v == nil {
				t.Errorf("%s: no command %q", name, n.command)
				continue
			}
			words := len(n.words)
			if v.res == oneRes || v.res == optRes && words > 0 {
				words--
			}
			if words < v.min || v.max >= 0 && words > v.max {
				t.Errorf("%s: %q has a wrong number of words", name, line)
			}
		}
	}
}
