package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// rig is an engine with a stand-in for systemctl that notes its arguments, and fails
// as often as a file says.
type rig struct {
	t   *testing.T
	dir string
	cfg Config
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{t: t, dir: dir}
	for _, d := range []string{"units", "first", "second"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.file("systemctl", `#!/bin/sh
echo "$@" >> `+dir+`/calls
if [ -s `+dir+`/fail ]; then
	n=$(cat `+dir+`/fail); n=$((n-1)); if [ $n -gt 0 ]; then echo $n > `+dir+`/fail; else rm `+dir+`/fail; fi
	echo "Job is conflicting" >&2; exit 3
fi
`)
	r.cfg = Config{
		TemplateDirs: []string{filepath.Join(dir, "first"), filepath.Join(dir, "second"), filepath.Join(dir, "missing")},
		UnitDir:      filepath.Join(dir, "units"), ScriptDir: filepath.Join(dir, "scripts"), Systemctl: filepath.Join(dir, "systemctl"),
		Retry: time.Millisecond, Tries: 3,
		Eval: func(text string, vars Vars) (string, error) {
			vars["set"] = "by-eval"
			return strings.ToUpper(text), nil
		},
	}
	return r
}

func (r *rig) file(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(name string) string {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(data)
}

// calls are the arguments of systemctl since the last look.
func (r *rig) calls() string {
	data, _ := os.ReadFile(filepath.Join(r.dir, "calls"))
	_ = os.Remove(filepath.Join(r.dir, "calls"))
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", "; ")
}

func TestEscapePath(t *testing.T) {
	for in, want := range map[string]string{
		"/": "-", "": "-", "/mnt/x": "mnt-x", "//a///b/": "a-b", "/srv/my-data": `srv-my\x2ddata`, "/.hidden": `\x2ehidden`,
		"r0": "r0", "a b": `a\x20b`, "/dev/mars/lv_1.x:y": "dev-mars-lv_1.x:y", "ä": `\xc3\xa4`,
	} {
		if got := EscapePath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestExpand(t *testing.T) {
	vars := Vars{"res": "r0", "mnt": "/srv/a-b", "empty": "", "which": "res"}
	for in, want := range map[string]string{
		"plain": "plain", "@{res}": "r0", "x@{res}y@{empty}z": "xr0yz", "@escvar{mnt}.mount": `srv-a\x2db.mount`,
		"@esc{/x/@{res}}": "x-r0", "@verbatim{@{res}}": "@{res}", "@eval{abc}": "ABC", "@eval{a}@{set}": "Aby-eval",
		"getty@tty1.service": "getty@tty1.service", "me@host": "me@host", "@": "@", "@@{res}": "@r0", "@{@{which}}": "r0", "@escx{res}": "@escx{res}",
	} {
		r := newRig(t)
		got, err := New(r.cfg).expander(vars).expand(in)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"@{unknown}", "@{res", "@eval{a{b}", "@esc{@{unknown}}", strings.Repeat("@esc{", 30) + strings.Repeat("}", 30)} {
		if got, err := New(newRig(t).cfg).expander(vars).expand(in); err == nil {
			t.Errorf("%q became %q", in, got)
		}
	}
	if vars["set"] != "" {
		t.Error("a template has changed the caller's variables")
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"@{res}", "@escvar{x}@{", "@eval{@{res}}", "@esc{@esc{@verbatim{}}}", "^{a}", "@@{{}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		x := New(Config{}).expander(Vars{"res": "r0", "x": "/a"})
		got, err := x.expand(text)
		if err == nil && !strings.Contains(text, "@") && got != text {
			t.Errorf("%q became %q", text, got)
		}
		for _, c := range EscapePath(text) {
			if c == '/' || c < 0x20 {
				t.Errorf("%q escaped has %q", text, c)
			}
		}
	})
}

func TestMatch(t *testing.T) {
	vars := Vars{"res": "r0"}
	for _, c := range []struct {
		template, unit string
		want           string // vars, or "no"
	}{
		{"mars-@{res}.service", "mars-r0.service", "map[]"},
		{"mars-@{res}.service", "mars-r1.service", "no"},
		{"mars-@{res}.service", "mars-r0.mount", "no"},
		{"^{mnt}-@{res}.mount", "srv-x-r0.mount", "map[mnt:srv-x]"},
		{"^{a}-^{b}.path", "x-y.path", "map[a:x b:y]"},
		{"^{a}-^{a}.path", "x-y.path", "no"},
		{"^{a}-^{a}.path", "x-x.path", "map[a:x]"},
		{"@{gone}.path", "x.path", "no"},
		{"^{a}.path", ".path", "no"},
		{"a.b+c.path", "a.b+c.path", "map[]"},
		{"a.b+c.path", "axbbc.path", "no"},
	} {
		e := New(Config{})
		got, ok, err := Template{Name: c.template}.match(c.unit, e.expander(vars))
		text := fmt.Sprint(map[string]string(got))
		if !ok {
			text = "no"
		}
		if err != nil || text != c.want {
			t.Errorf("%s for %s: %s, %v; want %s", c.template, c.unit, text, err, c.want)
		}
	}
	if _, _, err := (Template{Name: "x^{a.path"}).match("xy.path", New(Config{}).expander(nil)); err == nil {
		t.Error("a pattern without its end is accepted")
	}
}

func TestResolve(t *testing.T) {
	r := newRig(t)
	r.file("first/app-@{res}.service", "# DEFAULT_START\n")
	r.file("second/app-@{res}.service", "# OTHER_START\n")
	r.file("second/stop-@{res}.target", "[Unit]\n#   DEFAULT_STOP\n")
	r.file("second/^{x}.mount", "# WILD_START\n")
	r.file("second/notes.txt", "# OTHER_START\n")
	e := New(r.cfg)
	vars := Vars{"res": "r0"}
	for _, c := range []struct{ word, phase, want string }{
		{"DEFAULT", "START", "app-r0.service"}, {"DEFAULT", "STOP", "stop-r0.target"}, {"x@{res}.service", "START", "xr0.service"},
		{"OTHER", "START", ""}, {"WILD", "START", ""}, {"", "START", ""}, {"nosuffix", "START", ""}, {"../x.service", "STOP", ""}, {"@{gone}.service", "STOP", ""},
	} {
		got, err := e.Resolve(c.word, c.phase, vars)
		if got != c.want && c.want != "" || (err == nil) != (c.want != "") {
			t.Errorf("%s %s: %q, %v; want %q", c.word, c.phase, got, err, c.want)
		}
	}
	if _, err := e.Resolve("OTHER", "START", vars); !errors.Is(err, ErrNoTemplate) {
		t.Errorf("a template that is hidden by one of the first directory counts: %v", err)
	}
}

// A unit, what it refers to, and a script are written, complete with their
// description; a second time nothing happens; a change is seen.
func TestGenerate(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	r.file("first/app-@{res}.service", "[Unit]\nRequires=@escvar{mnt}-@{res}.mount foreign.service\n# ALSO=extra-@{res}.script\n[Service]\nExecStart=/bin/app @{dev}\n[Install]\nWantedBy=multi-user.target\n")
	r.file("first/^{m}-@{res}.mount", "[Mount]\nWhat=@{dev}\nWhere=/@{m}\n# KEEP_RUNNING\n[Install]\n# ALWAYS_DISABLED\n")
	r.file("second/extra-^{r}.script", "#!/bin/sh\necho \"$1 @{r}\" >> "+r.dir+"/calls\n")
	r.file("second/trigger.path", "[Path]\nPathModified=@{resdir}/systemd-trigger\n# ALWAYS_START\n[Install]\n")
	e := New(r.cfg)
	vars := Vars{"res": "r0", "mnt": "/srv", "dev": "/dev/mars/r0", "resdir": "/mars/resource-r0"}
	rep, err := e.Generate(ctx, []string{"app-r0.service", "trigger.path", ""}, vars)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"app-r0.service", "trigger.path", "srv-r0.mount", "extra-r0.script"}; !slices.Equal(rep.Written, want) {
		t.Errorf("written %q, want %q", rep.Written, want)
	}
	if got, want := r.calls(), "daemon-reload; enable app-r0.service; enable trigger.path; start --job-mode=fail trigger.path"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	for name, parts := range map[string][]string{
		"units/app-r0.service":     {"### GENERATED FROM " + r.dir + "/first/app-@{res}.service\n", "### GENERATED NAME app-r0.service\n", "###   REF: srv-r0.mount\n", "ExecStart=/bin/app /dev/mars/r0\n"},
		"units/srv-r0.mount":       {"What=/dev/mars/r0\nWhere=/srv\n", "### KEEP_RUNNING\n", "### TEMPLATE MTIME 20"},
		"scripts/extra-r0.script":  {"#!/bin/sh\n### GENERATED FROM", "$1 r0"},
		"units/foreign.service":    {"no such file"},
		"units/multi-user.target":  {"no such file"},
		"units/.tmp.trigger.path":  {"no such file"},
		"units/trigger.path":       {"PathModified=/mars/resource-r0/systemd-trigger\n"},
		"scripts/.tmp.extra-r0.sc": {"no such file"},
	} {
		for _, p := range parts {
			if text := r.read(name); !strings.Contains(text, p) {
				t.Errorf("%s has no %q:\n%s", name, p, text)
			}
		}
	}
	if st, err := os.Stat(filepath.Join(r.dir, "units/app-r0.service")); err != nil || st.Mode().Perm() != 0o444 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	rep, err = e.Generate(ctx, []string{"app-r0.service"}, vars)
	if err != nil || len(rep.Written) != 0 || len(rep.Same) != 3 || r.calls() != "" {
		t.Errorf("a second time: %+v, %v", rep, err)
	}
	vars["dev"] = "/dev/nbd7"
	rep, err = e.Generate(ctx, []string{"app-r0.service"}, vars)
	if err != nil || !slices.Equal(rep.Written, []string{"app-r0.service", "srv-r0.mount"}) {
		t.Errorf("another device: %+v, %v", rep, err)
	}
	r.calls()

	if err := e.Start(ctx, "extra-r0.script"); err != nil || r.calls() != "start r0" {
		t.Errorf("script: %v", err)
	}
	removed, err := e.Remove(ctx, "", "r0")
	if err != nil || len(removed) != 4 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if got, want := r.calls(), "stop --job-mode=fail app-r0.service; disable app-r0.service; stop --job-mode=fail trigger.path; disable trigger.path; daemon-reload"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// Only what is not to be kept goes, of that resource and of that tree.
func TestRemoveSome(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	for _, n := range []string{"app", "old"} {
		r.file("first/"+n+"-@{res}.service", "[Service]\nExecStart=/bin/true\n")
	}
	e := New(r.cfg)
	for _, v := range []Vars{{"mars": "/mars", "res": "r0"}, {"mars": "/mars", "res": "r1"}, {"mars": "/other", "res": "r2"}} {
		if _, err := e.Generate(ctx, []string{"app-" + v["res"] + ".service", "old-" + v["res"] + ".service"}, v); err != nil {
			t.Fatal(err)
		}
	}
	r.file("units/notes.conf", generated+"FROM x\n"+generated+"ROOT /mars\n"+generated+"RESOURCE r0\n")
	r.calls()
	if got := e.Resources("/mars"); !slices.Equal(got, []string{"r0", "r1"}) {
		t.Errorf("resources of /mars: %q", got)
	}
	for _, c := range []struct {
		root, res, want, calls string
		keep                   []string
	}{
		{"/mars", "r2", "", "", nil},
		{"/other", "r0", "", "", nil},
		{"/mars", "r0", "old-r0.service", "stop --job-mode=fail old-r0.service; disable old-r0.service; daemon-reload", []string{"app-r0.service", "none.mount"}},
		{"/mars", "r0", "", "", []string{"app-r0.service"}},
		{"/mars", "r0", "app-r0.service", "stop --job-mode=fail app-r0.service; disable app-r0.service; daemon-reload", nil},
	} {
		removed, err := e.Remove(ctx, c.root, c.res, c.keep...)
		if got := strings.Join(removed, " "); err != nil || got != c.want {
			t.Errorf("%+v: removed %q, %v", c, got, err)
		}
		if got := r.calls(); got != c.calls {
			t.Errorf("%+v: systemctl %q", c, got)
		}
	}
	if got := e.Resources("/mars"); !slices.Equal(got, []string{"r1"}) {
		t.Errorf("resources of /mars: %q", got)
	}
	r.file("fail", "99\n")
	if removed, err := e.Remove(ctx, "/mars", "r1"); err == nil || len(removed) != 0 {
		t.Errorf("what cannot be stopped stays: removed %q, %v", removed, err)
	}
}

func TestGenerateRefuses(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	r.file("first/bad-@{res}.service", "x @{nothing}\n")
	r.file("first/mine.service", "x\n")
	r.file("units/mine.service", "[Service]\nExecStart=/bin/true\n")
	e := New(r.cfg)
	vars := Vars{"res": "r0"}
	r.file("first/open.service", "x\n")
	open := filepath.Join(r.dir, "first/open.service")
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Generate(ctx, []string{"open.service"}, vars); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("a template of anybody: %v", err)
	}
	if err := os.Remove(open); err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]string{
		"bad-r0.service": `unknown variable "nothing"`, "mine.service": "has not been generated", "../x.service": "not the name of a unit", "x.conf": "ends in none",
	} {
		if _, err := e.Generate(ctx, []string{unit}, vars); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", unit, err, want)
		}
	}
	if got := r.read("units/mine.service"); got != "[Service]\nExecStart=/bin/true\n" {
		t.Errorf("a foreign unit became %q", got)
	}
	if removed, err := e.Remove(ctx, "", "r0"); err != nil || len(removed) != 0 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if got := r.calls(); got != "" {
		t.Errorf("calls %q", got)
	}
}

// A refused job is tried again, not for ever; what the program said is kept.
// What systemd could not be told of is told again, although the files are the same by then.
func TestGenerateAgain(t *testing.T) {
	r := newRig(t)
	r.file("first/a.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=x.target\n")
	e, ctx, vars := New(r.cfg), context.Background(), Vars{"res": "r0"}
	r.file("fail", "1\n")
	if _, err := e.Generate(ctx, []string{"a.service"}, vars); err == nil {
		t.Fatal("systemctl has failed, Generate has not")
	}
	r.calls()
	for _, want := range []string{"daemon-reload; enable a.service", ""} {
		if _, err := e.Generate(ctx, []string{"a.service"}, vars); err != nil {
			t.Fatal(err)
		}
		if got := r.calls(); got != want {
			t.Errorf("systemctl %q, want %q", got, want)
		}
	}
}

func TestRetry(t *testing.T) {
	r := newRig(t)
	e := New(r.cfg)
	r.file("fail", "2\n")
	if err := e.Start(context.Background(), "a.service"); err != nil {
		t.Errorf("third try: %v", err)
	}
	if n := strings.Count(r.calls(), "start --job-mode=fail a.service"); n != 3 {
		t.Errorf("%d tries", n)
	}
	r.file("fail", "9\n")
	err := e.Stop(context.Background(), "a.service")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || !strings.Contains(err.Error(), "Job is conflicting") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("stopped by the test"))
	r.calls()
	if err := e.Start(ctx, "a.service"); err == nil || len(r.calls()) > 40 {
		t.Errorf("after the end of its context: %v", err)
	}
	if err := New(Config{Systemctl: "/does/not/exist", Tries: 1}).Start(context.Background(), "a.service"); !errors.As(err, &exit) || exit.Code != -1 {
		t.Errorf("%v", err)
	}
}

// One holder at a time; waiting ends with the context and says for what.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, errors.New("time is up"))
	defer cancel()
	if _, err := Lock(ctx, dir); err == nil || !strings.Contains(err.Error(), "another marsadm") || !strings.Contains(err.Error(), "time is up") {
		t.Errorf("the second holder: %v", err)
	}
	got := make(chan error)
	go func() {
		second, err := Lock(context.Background(), dir)
		if err == nil {
			second()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("after the first one: %v", err)
	}
	if _, err := Lock(context.Background(), filepath.Join(dir, "missing")); err == nil {
		t.Error("a directory that is not there can be locked")
	}
}
