package adm

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/cmd/internal/macro"
)

// pairRig is a node of the healthy pair, with further links.
func pairRig(t *testing.T, node, more string) *rig {
	r := newRig(t, node)
	_, parts := readParts(t, "testdata/base/pair.txt")
	r.put(parts[0].body)
	r.put(more)
	return r
}

// TestUserMacros: NAME.tpl files of the directories in MARS_PATH, or of the
// standard ones, are views, and replace parts of the compiled-in ones.
func TestUserMacros(t *testing.T) {
	r := pairRig(t, "hosta", "")
	first, second := filepath.Join(r.dir, "one"), filepath.Join(r.dir, "two")
	for path, text := range map[string]string{
		first + "/mine.tpl":         "%{res} is %role{}",
		second + "/mine.tpl":        "hidden by the first",
		second + "/flags.tpl":       "<%primitive-flags{}>\n",
		second + "/mine-header.tpl": "HEAD",
		second + "/mine-footer.tpl": "FOOT",
		second + "/bad.tpl":         "one\n%if{",
	} {
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(text), 0o600))
	}
	r.vars["MARS_PATH"] = first + ":" + second + ":" + r.dir + "/none"
	for _, c := range []struct{ cmd, out, err string }{
		{"view-mine r0", "r0 is Primary\n", ""},
		{"view-mine all", "HEAD\n--------- resource r0 64.000 MiB [2/2]\nr0 is Primary\nFOOT\n", ""},
		{"view-flags r0", "<DCASFR>\n", "WARNING: using macro file $DIR/two/flags.tpl\n"},
		{"view r0", "  LocalDevice /dev/mars/r0 [Closed]\n  r0 [2/2] UpToDate Replicating <DCASFR> Primary hosta \n", "WARNING: using macro file $DIR/two/flags.tpl\n"},
		{"view-bad r0", "", "ERROR: view-bad on hosta: $DIR/two/bad.tpl: macro bad, line 2, column 4: argument 1 of %if is not closed; expected a closing brace }\n"},
	} {
		if got := r.run(strings.Fields(c.cmd)...); got.out != c.out || got.err != c.err {
			t.Errorf("%s: %q, %q\nwant %q, %q", c.cmd, got.out, got.err, c.out, c.err)
		}
	}
	delete(r.vars, "MARS_PATH")
	home := filepath.Join(r.dir, "home")
	must(t, os.MkdirAll(filepath.Join(home, ".marsadm"), 0o700))
	must(t, os.Rename(first+"/mine.tpl", filepath.Join(home, ".marsadm/mine.tpl")))
	r.vars["HOME"] = home
	if got := r.run("view-mine", "r0"); got.out != "r0 is Primary\n" {
		t.Errorf("%+v", got)
	}
}

// TestColour: on a terminal only, and not against the will of its user.
func TestColour(t *testing.T) {
	r := pairRig(t, "hostb", "resource-r0/syncstatus-hostb -> 25165824\nresource-r0/actual-hostb/is-syncing -> 1\nresource-r0/actual-hostb/msg-err-x -> $NOW-9 $NOW-9 bad")
	dull := r.run("view", "all").out
	if strings.Contains(dull, "\x1b") {
		t.Fatalf("escape sequences in a pipe: %q", dull)
	}
	r.env.OutTerminal = true
	bright := r.run("view", "all").out
	for _, want := range []string{
		bold + "--------- resource r0 64.000 MiB [2/2]" + plain + "\n",
		"  r0 [2/2] " + red + "InConsistent" + plain + " " + yellow + "Syncing" + plain + " dcAsFR " + green + "Secondary" + plain,
		cyan + "[======>............]" + plain,
		red + "ERRORS   LNK  (1):" + plain,
	} {
		if !strings.Contains(bright, want) {
			t.Errorf("no %q in\n%q", want, bright)
		}
	}
	if strip(bright) != dull {
		t.Errorf("without colours it is\n%q, want\n%q", strip(bright), dull)
	}
	for k, v := range map[string]string{"NO_COLOR": "1", "TERM": "dumb"} {
		r.vars = map[string]string{k: v}
		if got := r.run("view", "all").out; got != dull {
			t.Errorf("%s=%s: %q", k, v, got)
		}
	}
	r.vars = map[string]string{}
	if got := r.run("view", "all", "--json").out; strings.Contains(got, "\x1b") {
		t.Errorf("colours in JSON: %q", got)
	}
	// The name of a resource is no state.
	if got := colourise("  Orphan [1/1] UpToDate\n"); got != "  Orphan [1/1] "+green+"UpToDate"+plain+"\n" {
		t.Errorf("%q", got)
	}
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

func strip(s string) string { return escape.ReplaceAllString(s, "") }

// frames collects what --watch shows until there were enough.
type frames struct {
	mu   sync.Mutex
	list []string
	end  func()
	then func(n int)
}

func (f *frames) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, string(p))
	if f.then != nil {
		f.then(len(f.list))
	}
	if len(f.list) >= 3 {
		f.end()
	}
	return len(p), nil
}

// watch runs a command with --watch for three pictures.
func (r *rig) watch(then func(n int), args ...string) []string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	f := &frames{end: cancel, then: then}
	var errs bytes.Buffer
	args = append([]string{"--root=" + r.root, "--node=" + r.node, "--watch=0.05"}, args...)
	if code := Run(ctx, args, f, &errs, r.env); code != 0 || len(f.list) < 3 {
		r.t.Fatalf("exit %d, %d pictures, %s", code, len(f.list), errs.String())
	}
	return f.list
}

// TestWatch: each picture shows the tree as it is then; in a pipe it is plain text.
func TestWatch(t *testing.T) {
	r := pairRig(t, "hosta", "")
	change := func(n int) {
		if n == 1 {
			r.put("resource-r0/actual-hosta/open-count -> 1")
		}
	}
	list := r.watch(change, "view", "r0")
	if !strings.Contains(list[0], "[Closed]") || !strings.Contains(list[2], "[Opened, 0 IOPS]") || strings.Contains(list[0], "\x1b") || !strings.HasPrefix(list[0], "---- 2026-11-23 12:00:00\n") {
		t.Errorf("%q", list)
	}
	r.env.OutTerminal = true
	list = r.watch(nil, "view", "r0")
	if !strings.HasPrefix(list[0], "\x1b[2J\x1b[H") || !strings.HasPrefix(list[1], "\x1b[H") || !strings.HasSuffix(list[1], "\x1b[J") || strings.Contains(strings.ReplaceAll(list[1], "\x1b[K\n", ""), "\n") {
		t.Errorf("%q", list[:2])
	}
	for _, line := range r.watch(nil, "view", "r0", "--json") {
		var doc viewDocument
		if err := json.Unmarshal([]byte(line), &doc); err != nil || strings.Count(line, "\n") != 1 || len(doc.Resources) != 1 {
			t.Errorf("%v: %q", err, line)
		}
	}
}

// TestSleepingText: a text that waits sees what has changed meanwhile.
func TestSleepingText(t *testing.T) {
	r := pairRig(t, "hosta", "")
	d := r.startDaemon("resource-r0/todo-hosta/connect=0 => resource-r0/actual-hosta/open-count=7")
	defer d.stop()
	r.put("resource-r0/todo-hosta/connect -> 0")
	got := r.run("view", "r0", "--macro=%until{%device-opened{}}{%sleep{0.01}}%device-opened{}")
	if got.out != "7\n" {
		t.Errorf("%+v", got)
	}
	if got := r.run("view", "r0", "--timeout=0.05", "--macro=%wait-is-primary-off{}"); got.code != ExitFailed && got.code != ExitTimeout {
		t.Errorf("%+v", got)
	}
}

// TestJSONDocument: every key of the JSON output is explained in docs/CLI-JSON.md.
func TestJSONDocument(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/CLI-JSON.md")
	must(t, err)
	var keys func(typ reflect.Type)
	seen := map[reflect.Type]bool{}
	keys = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Array {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || seen[typ] {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Anonymous || f.IsExported() {
				keys(f.Type)
			}
			if tag := f.Tag.Get("json"); tag != "" && !strings.Contains(string(doc), "`"+tag+"`") {
				t.Errorf("%s: key %q is not explained", typ, tag)
			}
		}
	}
	for _, d := range []any{viewDocument{}, checkDocument{}, whyDocument{}, treeDocument{}} {
		keys(reflect.TypeOf(d))
	}
	for k := macro.KindText; k <= macro.KindList; k++ {
		if !strings.Contains(string(doc), "`"+k.Key()+"`") {
			t.Errorf("key %q is not explained", k.Key())
		}
	}
}

// TestDumpMacros: what is dumped can be used as it is.
func TestDumpMacros(t *testing.T) {
	r := pairRig(t, "hosta", "")
	want := r.run("view", "all").out
	dir := filepath.Join(r.dir, "macros")
	must(t, os.Mkdir(dir, 0o700))
	dump := r.run("dump-all-macros").out
	for _, part := range strings.Split(dump, "==== ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	r.vars["MARS_PATH"] = dir
	if got := r.run("view", "all"); got.out != want {
		t.Errorf("%s\n%s\nwant\n%s", got.err, got.out, want)
	}
	if n := strings.Count(r.run("dump-macros").out, "==== "); n < 20 || n >= strings.Count(dump, "==== ") {
		t.Errorf("%d texts", n)
	}
}
