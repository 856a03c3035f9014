package adm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// systemdRig is a rig with templates and a stand-in for systemctl, which notes its
// arguments and fails when there is a file "fail".
func systemdRig(t *testing.T, node string) *rig {
	r := newRig(t, node)
	for _, d := range []string{"units", "etc/systemd-templates"} {
		must(t, os.MkdirAll(filepath.Join(r.dir, d), 0o755))
	}
	r.script("systemctl", `echo "$@" >> `+r.dir+`/calls; [ ! -e `+r.dir+`/fail ]`)
	r.script("etc/systemd-templates/app-@{res}.service", "# DEFAULT_START\n# DEFAULT_STOP\n[Unit]\nRequires=fs-@{res}.mount\n[Service]\nExecStart=/bin/app @{dev} %%\n")
	r.script("etc/systemd-templates/fs-@{res}.mount", "[Mount]\nWhat=@{dev}\nWhere=/srv/@{res}\n# primary=@eval{%get-primary{}}\n")
	r.script("etc/systemd-templates/watch-@{res}.path", "# WATCH_START\n# ALWAYS_START\n[Path]\nPathModified=@{resdir}/systemd-trigger\n")
	r.vars["SYSTEMD_TARGET_DIR"] = filepath.Join(r.dir, "units")
	r.vars["SYSTEMCTL"] = filepath.Join(r.dir, "systemctl")
	r.vars["MARS_PATH"] = filepath.Join(r.dir, "etc")
	r.vars["ETC_MARSADM"] = filepath.Join(r.dir, "etc")
	r.use("pair")
	return r
}

// script writes an executable file.
func (r *rig) script(name, text string) {
	r.t.Helper()
	must(r.t, os.MkdirAll(filepath.Dir(filepath.Join(r.dir, name)), 0o755))
	must(r.t, os.WriteFile(filepath.Join(r.dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// noted are the lines of a file that scripts write, and forgets them.
func (r *rig) noted(name string) string {
	data, _ := os.ReadFile(filepath.Join(r.dir, name))
	_ = os.Remove(filepath.Join(r.dir, name))
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", "; ")
}

func (r *rig) link(path string) string {
	v, _ := r.tree().Get(path)
	return v
}

// ok runs a command that must succeed.
func (r *rig) ok(args ...string) result {
	r.t.Helper()
	res := r.run(args...)
	if res.code != ExitDone {
		r.t.Fatalf("marsadm %s: exit %d: %s", strings.Join(args, " "), res.code, res.err)
	}
	return res
}

// The units of DEFAULT are found and generated, and with them what they need and what
// watches the resource.
func TestSystemdUnit(t *testing.T) {
	r := systemdRig(t, "hosta")
	r.ok("set-systemd-unit", "r0", "DEFAULT")
	if got := r.ok("get-systemd-unit", "r0").out; got != "app-r0.service app-r0.service\n" {
		t.Errorf("%q", got)
	}
	if got := r.ok("get-systemd-want", "all").out; got != "hosta\n" {
		t.Errorf("wanted on %q", got)
	}
	if got, want := r.noted("calls"), "daemon-reload; start --job-mode=fail watch-r0.path"; got != want {
		t.Errorf("systemctl %q, want %q", got, want)
	}
	for name, want := range map[string]string{"app-r0.service": "/bin/app /dev/mars/r0 %%", "fs-r0.mount": "# primary=hosta", "watch-r0.path": "/mars/resource-r0/systemd-trigger"} {
		if data, err := os.ReadFile(filepath.Join(r.dir, "units", name)); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %v\n%s", name, err, data)
		}
	}
	r.ok("systemd-trigger", "r0")
	if data, err := os.ReadFile(filepath.Join(r.root, "resource-r0/systemd-trigger")); err != nil || len(data) < 10 {
		t.Errorf("trigger: %q %v", data, err)
	}
	r.ok("systemd-trigger-extern", "r0")
	if got := r.noted("calls"); got != "start --job-mode=fail app-r0.service" {
		t.Errorf("systemctl %q", got)
	}
	if got := r.link("resource-r0/userspace/systemd-status-start-hosta"); got != "0" {
		t.Errorf("status %q", got)
	}
	r.ok("--dry-run", "systemd-trigger-extern", "r0")
	r.ok("--systemd-enable=0", "systemd-trigger-extern", "r0")
	r.vars["SYSTEMD_RECURSIVE_CALL"] = "1"
	r.ok("systemd-trigger-extern", "r0")
	if got := r.noted("calls"); got != "" {
		t.Errorf("nothing should have been called: %q", got)
	}
	r.ok("set-systemd-unit", "r0", "")
	if r.link("resource-r0/systemd-want") != "" || r.ok("get-systemd-unit", "r0").out != "" {
		t.Error("the units are still there")
	}
}

// unitFiles are the names of the generated units.
func (r *rig) unitFiles() string {
	list, err := os.ReadDir(filepath.Join(r.dir, "units"))
	must(r.t, err)
	var names []string
	for _, e := range list {
		if e.Name()[0] != '.' { // locks and the like
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

// Units that are renamed or taken away leave no files behind, here at once and
// elsewhere with the next cron; a stop unit goes with its start unit.
func TestSystemdUnitGoes(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hosta")
	r.script("etc/systemd-templates/new-@{res}.service", "[Service]\nExecStart=/bin/new\n")
	r.ok("set-systemd-unit", "r0", "DEFAULT")
	r.put("resource-r0/actual-hosta/if-on -> 1")
	if got := r.unitFiles(); got != "app-r0.service fs-r0.mount watch-r0.path" {
		t.Errorf("units %q", got)
	}
	r.noted("calls")
	r.ok("set-systemd-unit", "r0", "new-r0.service", "app-r0.service")
	if got := r.unitFiles(); got != "app-r0.service fs-r0.mount new-r0.service watch-r0.path" {
		t.Errorf("units %q", got)
	}
	r.noted("calls")
	r.ok("set-systemd-unit", "r0", "new-r0.service", "")
	if got := r.unitFiles(); got != "new-r0.service watch-r0.path" {
		t.Errorf("units after a rename %q", got)
	}
	want := "stop --job-mode=fail app-r0.service; disable app-r0.service; stop --job-mode=fail fs-r0.mount; disable fs-r0.mount; daemon-reload; start --job-mode=fail new-r0.service"
	if got := r.noted("calls"); got != want {
		t.Errorf("systemctl %q, want %q", got, want)
	}
	if got := r.ok("get-systemd-unit", "r0").out; got != "new-r0.service new-r0.service\n" || r.link("resource-r0/systemd-stop-unit") != "" {
		t.Errorf("an empty stop unit: %q", got)
	}

	before := r.state()
	if res := r.run("set-systemd-unit", "r0", "", "app-r0.service"); res.code != ExitFailed || !strings.Contains(res.err, "app-r0.service) without a start unit") {
		t.Errorf("a stop unit alone: exit %d: %s", res.code, res.err)
	}
	if got := changes(before, r.state()); got != "" {
		t.Errorf("changed:\n%s", got)
	}
	r.ok("--dry-run", "set-systemd-unit", "r0", "")
	if got := r.unitFiles(); got != "new-r0.service watch-r0.path" {
		t.Errorf("units after a dry run %q", got)
	}
	r.ok("set-systemd-unit", "r0", "", "")
	if got := r.unitFiles(); got != "" {
		t.Errorf("units that were taken away %q", got)
	}

	// Somebody else takes them away: links only.
	r.startDaemon("")
	for _, command := range []string{"cron", "systemd-trigger r0"} {
		r.ok("set-systemd-unit", "r0", "DEFAULT")
		for _, l := range []string{"start-unit", "stop-unit", "want"} {
			must(t, r.tree().Delete("resource-r0/systemd-"+l))
		}
		must(t, os.WriteFile(filepath.Join(r.dir, "units/mine.service"), []byte("[Service]\n"), 0o600))
		r.ok(strings.Fields(command)...)
		if got := r.unitFiles(); got != "mine.service" {
			t.Errorf("%s leaves %q", command, got)
		}
	}
	// What does not stop stays, and is said.
	r.ok("set-systemd-unit", "r0", "DEFAULT")
	r.put("$DIR/fail = 0")
	if res := r.ok("set-systemd-unit", "r0", ""); !strings.Contains(res.err, "cron tries again") {
		t.Errorf("%s", res.err)
	}
}

// The whole stack moves: services leave the device there, the role comes, services
// start here.
func TestSystemdHandover(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hostb")
	r.put("resource-r0/systemd-start-unit -> app-r0.service\nresource-r0/systemd-stop-unit -> app-r0.service\nresource-r0/systemd-want -> hosta\nresource-r0/actual-hosta/open-count -> 1")
	r.startDaemon(`resource-r0/systemd-want=hostb => resource-r0/actual-hosta/open-count=0
resource-r0/primary=(none) => resource-r0/actual-hosta/is-primary=0
resource-r0/primary=hostb => resource-r0/actual-hostb/if-on=1
resource-r0/primary=hostb => resource-r0/actual-hostb/is-primary=1
resource-r0/userspace/systemd-status-start-hostb=0 => resource-r0/actual-hostb/open-count=1`)
	r.ok("primary", "r0")
	if got, want := r.noted("calls"), "daemon-reload; start --job-mode=fail watch-r0.path; start --job-mode=fail app-r0.service"; got != want {
		t.Errorf("systemctl %q, want %q", got, want)
	}
	if got := r.link("resource-r0/systemd-want"); got != "hostb" {
		t.Errorf("wanted on %q", got)
	}
}

// Services that do not stop keep the role where it is, and are wanted there again.
func TestSystemdHandoverFails(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hostb")
	r.put("resource-r0/systemd-start-unit -> app-r0.service\nresource-r0/systemd-want -> hosta\nresource-r0/actual-hosta/open-count -> 1")
	r.startDaemon("")
	res := r.run("--timeout=2", "primary", "r0")
	if res.code != ExitTimeout || !strings.Contains(res.err, "services of r0 are wanted on hosta again") {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if p, w := r.link("resource-r0/primary"), r.link("resource-r0/systemd-want"); p != "hosta" || w != "hosta" {
		t.Errorf("primary %q, services wanted on %q", p, w)
	}
}

// obedientApp: services leave the device when they are stopped, and take it when they
// are started; the rest is done as told.
const obedientApp = `resource-r0/userspace/systemd-status-stop-hosta=0 => resource-r0/actual-hosta/open-count=0
resource-r0/primary=(none) => resource-r0/actual-hosta/if-on=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/if-on=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/is-attached=0`

// withApp gives r0 of a rig a service that runs.
func (r *rig) withApp() {
	r.put("resource-r0/systemd-start-unit -> app-r0.service\nresource-r0/systemd-want -> hosta\nresource-r0/actual-hosta/open-count -> 1\nresource-r0/actual-hosta/if-on -> 1")
}

// secondary, detach and down stop the services first.
func TestSystemdStops(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"secondary", "detach", "down"} {
		r := systemdRig(t, "hosta")
		r.withApp()
		r.startDaemon(obedientApp)
		r.ok(command, "r0")
		if got := r.noted("calls"); !strings.Contains(got, "stop --job-mode=fail app-r0.service") {
			t.Errorf("%s: systemctl %q", command, got)
		}
		if got := r.link("resource-r0/systemd-want"); got != "(none)" {
			t.Errorf("wanted on %q", got)
		}
	}
}

// What fails to take the device away from its services leaves them where they were,
// running.
func TestSystemdStopsFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, daemon, stop string // stop: what systemctl does
		node               string
		args               []string
		code               int
		want               string // in the error output
		calls              string
	}{
		{name: "stop fails", stop: "exit 4", code: ExitFailed, want: "stop --job-mode=fail app-r0.service", calls: "start --job-mode=fail app-r0.service"},
		{name: "device stays open", stop: "exit 0", code: ExitTimeout, want: "open-count is 1", calls: "start --job-mode=fail app-r0.service"},
		{name: "marsd goes", stop: "exit 0", daemon: "-", code: ExitFailed, want: "marsd is not running", calls: "start --job-mode=fail app-r0.service"},
		{name: "opened by others", stop: "exit 0", args: []string{"--no-wait"}, code: ExitFailed, want: "in use on hosta", calls: "start --job-mode=fail app-r0.service"},
	} {
		for _, command := range []string{"secondary", "detach", "down"} {
			t.Run(command+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				r := systemdRig(t, "hosta")
				r.withApp()
				r.script("systemctl", `echo "$@" >> `+r.dir+`/calls; case "$1" in stop) `+c.stop+`;; esac`)
				if c.daemon == "-" {
					r.put("actual-hosta/time -> $NOW-300")
				} else {
					r.startDaemon(c.daemon)
				}
				before := r.state()
				res := r.run(append([]string{"--timeout=0.3", command, "r0"}, c.args...)...)
				if res.code != c.code || !strings.Contains(res.err, c.want) || !strings.Contains(res.err, "services of r0 are wanted on hosta again") {
					t.Errorf("exit %d: %s", res.code, res.err)
				}
				if calls := r.noted("calls"); !strings.HasSuffix(calls, c.calls) {
					t.Errorf("systemctl %q, want %q last", calls, c.calls)
				}
				for _, p := range []string{"resource-r0/primary", "resource-r0/systemd-want", "resource-r0/todo-hosta/attach"} {
					if got, was := " -> "+r.link(p), before[p].value; got != was {
						t.Errorf("%s%s, was%s", p, got, was)
					}
				}
			})
		}
	}
}

// A service on another host is wanted there again; marsd there starts it.
func TestSystemdStopsElsewhere(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hostb")
	r.withApp()
	r.startDaemon("")
	res := r.run("--timeout=0.3", "secondary", "r0")
	if res.code != ExitTimeout || !strings.Contains(res.err, "services of r0 are wanted on hosta again") {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if p, w, calls := r.link("resource-r0/primary"), r.link("resource-r0/systemd-want"), r.noted("calls"); p != "hosta" || w != "hosta" || calls != "" {
		t.Errorf("primary %q, wanted on %q, systemctl %q", p, w, calls)
	}
}

// Nobody is put back who has been overtaken by another decision, and a step that has
// been done keeps its services stopped.
func TestSystemdStopsOvertaken(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hosta")
	r.withApp()
	r.startDaemon("resource-r0/systemd-want=(none) => resource-r0/systemd-want=hostb")
	if res := r.run("--timeout=2", "detach", "r0"); res.code != ExitTimeout {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if got := r.link("resource-r0/systemd-want"); got != "hostb" {
		t.Errorf("wanted on %q", got)
	}
	for _, command := range []string{"secondary", "detach", "down"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			r := systemdRig(t, "hosta")
			r.withApp()
			r.startDaemon("resource-r0/userspace/systemd-status-stop-hosta=0 => resource-r0/actual-hosta/open-count=0")
			res := r.run("--timeout=2", command, "r0")
			if res.code != ExitTimeout || !strings.Contains(res.err, "services stay stopped") {
				t.Errorf("exit %d: %s", res.code, res.err)
			}
			if got := r.link("resource-r0/systemd-want"); got != "(none)" {
				t.Errorf("wanted on %q", got)
			}
		})
	}
}

// A step that nobody consents to is none: the services come back, without a question.
func TestSystemdStopsSinglestep(t *testing.T) {
	t.Parallel()
	r := systemdRig(t, "hosta")
	r.withApp()
	r.startDaemon("resource-r0/userspace/systemd-status-stop-hosta=0 => resource-r0/actual-hosta/open-count=0")
	r.env.Stdin = strings.NewReader("\n\n") // the want, the status; not the role
	res := r.run("--singlestep", "secondary", "r0")
	if res.code != ExitFailed || !strings.Contains(res.err, "no consent") {
		t.Errorf("exit %d: %s%s", res.code, res.out, res.err)
	}
	if p, w := r.link("resource-r0/primary"), r.link("resource-r0/systemd-want"); p != "hosta" || w != "hosta" {
		t.Errorf("primary %q, wanted on %q", p, w)
	}
}

func TestSystemdRefuses(t *testing.T) {
	r := systemdRig(t, "hosta")
	for _, c := range []struct{ args, want string }{
		{"set-systemd-unit r0 SPECIAL", "no template has that marker"}, {"set-systemd-unit r0 nounit", "not the name of a unit"},
		{"set-systemd-want r0 hosta", "has no units"}, {"set-systemd-unit r0", "too few words"}, {"set-systemd-unit r0 a b c", "surplus word"},
	} {
		before := r.state()
		res := r.run(strings.Fields(c.args)...)
		if res.code == ExitDone || !strings.Contains(res.err, c.want) {
			t.Errorf("%s: exit %d: %s", c.args, res.code, res.err)
		}
		if got := changes(before, r.state()); got != "" {
			t.Errorf("%s has changed:\n%s", c.args, got)
		}
	}
	r.ok("set-systemd-unit", "r0", "x.service", "y.target")
	for _, c := range []struct{ args, want string }{
		{"set-systemd-want r0 hostz", "no host hostz"}, {"set-systemd-want r0 hostb", "designated primary is hosta"},
	} {
		if res := r.run(strings.Fields(c.args)...); res.code != ExitFailed || !strings.Contains(res.err, c.want) {
			t.Errorf("%s: exit %d: %s", c.args, res.code, res.err)
		}
	}
}
