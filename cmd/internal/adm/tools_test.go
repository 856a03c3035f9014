package adm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/logfile"
)

// writeLog makes a logfile of a few records.
func writeLog(t testing.TB, path string, records int) {
	t.Helper()
	name, err := logfile.ParseName(filepath.Base(path))
	must(t, err)
	w, err := logfile.Create(filepath.Dir(path), name, logfile.WriterOptions{Now: func() time.Time { return base }})
	must(t, err)
	for i := range int64(records) {
		_, err = w.Append([]logfile.Entry{{Pos: i * 4096, Code: logfile.CodeWrite, Data: []byte(strings.Repeat("x", 4096))}})
		must(t, err)
	}
	must(t, w.Close())
}

func TestLogTools(t *testing.T) {
	r := newRig(t, "hosta")
	path := filepath.Join(r.dir, "log-000000001-hosta")
	writeLog(t, path, 3)

	if res := r.run("log-verify", path); res.code != ExitDone || !strings.Contains(res.out, "sound: 3 records") {
		t.Errorf("%+v", res)
	}
	res := r.run("log-dump", path)
	if res.code != ExitDone || strings.Count(res.out, " write ") != 3 {
		t.Errorf("%+v", res)
	}
	for _, args := range [][]string{{"log-dump", path, "--json"}, {"--json", "log-dump", path}} {
		res = r.run(args...)
		lines := strings.Split(strings.TrimSpace(res.out), "\n")
		for _, l := range lines {
			if !json.Valid([]byte(l)) {
				t.Errorf("not JSON: %s", l)
			}
		}
		if res.code != ExitDone || len(lines) < 3 {
			t.Errorf("%+v", res)
		}
	}

	data, err := os.ReadFile(path)
	must(t, err)
	data[6000] ^= 1
	copied := filepath.Join(r.dir, "copy")
	must(t, os.WriteFile(copied, data, 0o600))
	if res = r.run("log-verify", copied); res.code != ExitFailed || !strings.Contains(res.out, "1 good records up to offset 4180") {
		t.Errorf("damaged: %+v", res)
	}
	for _, args := range [][]string{{"log-verify"}, {"log-verify", path, path}, {"log-verify", r.dir}, {"log-verify", path + "x"}, {"log-dump"}, {"log-dump", path + "x"}} {
		if res = r.run(args...); res.code != ExitUsage || res.err == "" {
			t.Errorf("%v: %+v", args, res)
		}
	}
}

// TestHelp: every command that is not hidden is in the help, and has a text of its own.
func TestHelp(t *testing.T) {
	r := newRig(t, "hosta")
	text := r.run("help").out
	all := r.run("help", "--verbose").out
	for _, g := range groups() {
		for _, v := range g.verbs {
			if strings.Contains(text, "\n  "+v.name+" ") == v.hidden || !strings.Contains(all, "\n  "+v.name+" ") {
				t.Errorf("%s: hidden %v", v.name, v.hidden)
			}
			if v.help == "" && !v.hidden {
				t.Errorf("%s has no help", v.name)
			}
			if res := r.run("help", v.name); res.code != ExitDone {
				t.Errorf("help %s: %+v", v.name, res)
			}
			if (v.run == nil) == (v.each == nil) {
				t.Errorf("%s has no function, or two", v.name)
			}
		}
	}
	for _, o := range globalOptions {
		if o.help == "" && !o.ignored {
			t.Errorf("--%s has no help", o.name)
		}
	}
	if res := r.run("help", "view"); !strings.Contains(res.out, "view-is-split-brain") {
		t.Error(res.out)
	}
	if res := r.run("--version"); res.code != ExitDone || !strings.Contains(res.out, "Version: 2.9 ") {
		t.Errorf("%+v", res)
	}
}
