package adm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"mars/cmd/internal/macro"
	"mars/internal/vfs"
	"mars/logfile"
)

func toolVerbs() []verb {
	return []verb{
		{name: "log-dump", args: "FILE [--json]", help: "print the records of a logfile", min: 1, max: 1, noTree: true, run: logDump},
		{name: "log-verify", args: "FILE", help: "check a logfile: exit 0 sound, 1 damaged", min: 1, max: 1, noTree: true, run: logVerify},
		{name: "version", help: "version of this program", max: -1, noTree: true, run: version},
		{name: "help", args: "[COMMAND]", help: "this text, or help for one command", max: 1, noTree: true, run: help},
	}
}

// openLog opens a logfile by its path. A copy under another name is read as well.
func openLog(path string) (f vfs.File, size int64, name logfile.Name, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, 0, name, err
	}
	if name, err = logfile.ParseName(filepath.Base(abs)); err != nil {
		name = logfile.Name{Seq: 1, Host: "unknown"}
	}
	if st, err := os.Stat(abs); err != nil {
		return nil, 0, name, usage("%v", err)
	} else if !st.Mode().IsRegular() {
		return nil, 0, name, usage("%s is not a regular file", path)
	}
	if f, err = vfs.OS.OpenFile(abs, os.O_RDONLY, 0); err != nil {
		return nil, 0, name, err
	}
	if size, err = f.Size(); err != nil {
		f.Close()
		return nil, 0, name, err
	}
	return f, size, name, nil
}

func logDump(_ context.Context, s *session, args []string) error {
	f, size, name, err := openLog(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return logfile.Dump(s.out.w, f, size, name, s.opt.json)
}

func logVerify(_ context.Context, s *session, args []string) error {
	f, size, name, err := openLog(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	res, err := logfile.Verify(f, size, name, logfile.Compat)
	if err != nil {
		return err
	}
	if res.Err != nil {
		s.print("%s: damaged: %d good records up to offset %d of %d bytes\n", args[0], res.Records, res.End, size)
		return refuse("", "%v", res.Err)
	}
	s.print("%s: sound: %d records, %d bytes\n", args[0], res.Records, res.End)
	return nil
}

func version(_ context.Context, s *session, _ []string) error {
	build := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		build = info.Main.Version
	}
	s.print("marsadm Version: %s %s\n", admVersion, build)
	return nil
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
		return usage("no help for %q: no such command", name)
	}
	s.print("marsadm [options] %s\n  %s\n", strings.TrimSpace(v.name+" "+v.args), v.help)
	return nil
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
		if o.ignored {
			continue
		}
		name := "--" + o.name
		switch o.arity {
		case oneValue:
			name += "=" + o.value
		case optionalValue:
			name += "[=" + o.value + "]"
		}
		fmt.Fprintf(&b, "  %-34s %s\n", name, o.help)
	}
	b.WriteString("\nExit codes: 0 done, 1 refused or failed, 2 usage, 3 timed out\n")
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
