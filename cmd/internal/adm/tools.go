package adm

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"

	"mars/internal/vfs"
	"mars/logfile"
)

func toolVerbs() []verb {
	return []verb{
		{name: "log-dump", args: "FILE [--json]", help: "print the records of a logfile", min: 1, max: 1, noTree: true, run: logDump},
		{name: "log-verify", args: "FILE", help: "check a logfile: exit 0 sound, 1 damaged", min: 1, max: 1, noTree: true, run: logVerify},
		{name: "version", help: "version of this program", max: -1, noTree: true, run: version},
		{name: "help", args: "[COMMAND]", help: "this text, or help for one command", max: 1, noTree: true, run: help},
		{name: "completion", args: "bash|zsh|fish", help: "print a script that completes the words of command lines", min: 1, max: 1, noTree: true, run: completionVerb},
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
	s.print("marsadm Version: %s %s\n", admVersion, buildVersion())
	return nil
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
