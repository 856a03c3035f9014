package adm

import (
	_ "embed"
	"fmt"
	"strings"

	"mars/cmd/internal/macro"
	"mars/cmd/internal/roff"
)

// Differences is what is deliberately different from the original, in Markdown. It is
// part of marsadm(8) and of docs/decisions.md.
//
//go:embed differences.md
var Differences string

// Manual is the page marsadm(8).
func Manual() string {
	p := roff.New("marsadm", 8, "tell a MARS cluster what to do, and see what it does")
	p.Section("SYNOPSIS")
	p.Para("`marsadm` [options] COMMAND [RESOURCE | RESOURCE,RESOURCE | `all`] [ARGS]")
	p.Section("DESCRIPTION")
	p.Para("MARS replicates block devices asynchronously, over any distance. `marsadm` writes what an administrator wants into a tree of symlinks, usually /mars; marsd(8) on each node carries it out, exchanges the tree with the other nodes, and reports back through it. `marsadm` talks to no daemon directly, and needs none but for commands that wait for one.")
	p.Para("Options may stand before or after the command. Unknown options and surplus words are refused before anything is looked at. A command that is refused has changed nothing.")
	p.Section("OPTIONS")
	for _, o := range globalOptions {
		if !o.ignored {
			p.Item(optionText(o), upperFirst(o.help)+".")
		}
	}
	var ignored []string
	for _, o := range globalOptions {
		if o.ignored {
			ignored = append(ignored, "--"+o.name)
		}
	}
	p.Para("Accepted and ignored, for scripts of the original: " + strings.Join(ignored, ", ") + ".")
	p.Section("COMMANDS")
	for _, g := range groups() {
		p.Sub(g.title)
		for i := range g.verbs {
			manualVerb(p, &g.verbs[i])
		}
	}
	p.Section("VIEWS")
	p.Para("`marsadm view-NAME` [RES] [ARGS] prints one value or a few lines:")
	for _, m := range macro.All() {
		p.Item(strings.TrimSpace("view-"+m.Name+" "+m.Args), upperFirst(m.Help)+".")
	}
	manualEnd(p)
	return p.String()
}

func manualVerb(p *roff.Page, v *verb) {
	if strings.HasPrefix(v.help, "ignored") || v.name == "view-NAME" {
		return
	}
	p.Item(strings.TrimSpace(v.name+" "+v.args), upperFirst(strings.TrimSuffix(summary(v), "."))+".")
	if _, family := families[v.name]; family || strings.HasPrefix(v.help, "refused") {
		return
	}
	if d, ok := details[v.name]; ok && d.about != "" {
		p.More(d.about)
	}
}

func manualEnd(p *roff.Page) {
	p.Section("EXIT STATUS")
	for _, c := range []struct {
		code int
		text string
	}{
		{ExitDone, "Done."}, {ExitFailed, "Refused or failed. The error says why, the hint what to do."},
		{ExitUsage, "The command line says nothing sensible."},
		{ExitTimeout, "What was waited for did not come within --timeout. A timeout is never reported as success."},
	} {
		p.Item(fmt.Sprint(c.code), c.text)
	}
	p.Para("With several resources each is tried; one that fails does not keep the others from being done.")
	p.Section("ENVIRONMENT")
	for _, e := range [][2]string{
		{"MARS_ROOT", "Root of the tree, /mars if unset."}, {"MARS_NODE", "Name of this node, the host name if unset."},
		{"MARS_SECRET", "The file with the cluster secret, or the secret itself."},
		{"MARS_PATH", "Directories with hooks, macros and templates, separated by colons; else ~/.marsadm, /etc/marsadm, /usr/lib/marsadm and /usr/local/lib/marsadm."},
		{"ETC_MARSADM", "Instead of /etc/marsadm."},
		{"SYSTEMCTL, SYSTEMD_SUBDIR, SYSTEMD_SCRIPTS_SUBDIR, SYSTEMD_TARGET_DIR, SYSTEMD_ESCAPE, SYSTEMD_INCAPE, SYSTEMD_DEPENDENCIES",
			"Places and characters of the systemd templates, see mars(5)."},
		{"SYSTEMD_RECURSIVE_CALL", "Set for programs that units run: marsadm then leaves units alone."},
	} {
		p.Item(e[0], e[1])
	}
	p.Section("HOOKS")
	p.Para("In each directory of MARS_PATH the executables `hook-pre-COMMAND`, `hook-pre`, and those in `hook-pre-COMMAND.d` and `hook-pre.d`, run before a command that changes a resource, those with `post` after it, with the arguments COMMAND RESOURCE ARGS; `hook-all-pre` and `hook-all-post` run around a list of resources. MARS_ROOT, MARS_NODE and MARS_HOST are set. A hook that fails stops the command for that resource, unless it is forced.")
	p.Section("DIFFERENCES FROM THE ORIGINAL")
	p.Markdown(Differences)
	p.Section("SEE ALSO")
	p.Para("marsd(8), mars(5)")
}
