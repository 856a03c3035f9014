package treeschema

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"mars/symlinktree"
)

func TestDocument(t *testing.T) {
	s, err := Load(Document())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"uuid", "ips/ip-a-b", "ips/", "resource-r/", "resource-r/size", "resource-r/version-000000001-a", "resource-r/log-1000000000-a",
		"resource-r/todo-a/attach", "resource-r/actual-a/is-primary", "actual-a/used-net-digest", "todo-global/uuid-a_1.000000000", ".marsd.lock",
		"resource-r/userspace/last-primary", "resource-r/actual-a/ops-if_rate", "resource-r/given-up-log-000000001-a"} {
		if !s.Knows(p) {
			t.Errorf("%s is not known", p)
		}
	}
	for _, p := range []string{"resource-r", "size", "resource-r/version-1-a", "resource-r/todo-a/attach/x", "resource-r/is-primary", "actual-a/is-primary",
		"resource-r/actual-a/is-what", "ips/ip-", "ips/ip-a.b", "x/uuid", "resource-r/todo-a/new-switch", "actual-a/news"} {
		if s.Knows(p) {
			t.Errorf("%s is known", p)
		}
	}
	// A row that is said twice is a mistake of the document.
	seen := map[string]bool{}
	for _, r := range s.rows {
		if seen[r.text] {
			t.Errorf("two rows for %s", r.text)
		}
		seen[r.text] = true
	}
}

// TestKernelListings: also what a kernel MARS writes is listed.
func TestKernelListings(t *testing.T) {
	s, err := Load(Document())
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("../../symlinktree/testdata/kernel/*.list")
	if len(files) != 7 {
		t.Fatalf("%d listings", len(files))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			left, _, _ := strings.Cut(line, " -> ")
			f := strings.Fields(left)
			p := strings.TrimPrefix(f[4], "./")
			if f[0] == "d" {
				p += "/"
			}
			if f[4] != "." && !s.Knows(p) {
				t.Errorf("%s: %s", filepath.Base(file), p)
			}
		}
	}
}

func TestUnknown(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"ips", "resource-r/todo-a", "other/dir"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for path, v := range map[string]string{"uuid": "a_1", "ips/ip-a": "1", "resource-r/todo-a/attach": "1", "resource-r/todo-a/typo": "1", "other/x": "1",
		"other/dir/y": "1", ".tmp.1-1.x": "1", "resource-r/defaults-a": ".deleted", "resource-r/defaults-b": "x", "resource-r/gone": ".deleted"} {
		if err := os.Symlink(v, filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Load(Document())
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Unknown(root)
	want := []string{"other/", "resource-r/defaults-b", "resource-r/gone", "resource-r/todo-a/typo"}
	if slices.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no table":     "words\n",
		"unknown word": "| path | x |\n|---|---|\n| `actual-WHO/time` | y |\n",
		"other tables": "| what | x |\n|---|---|\n| `uuid` | y |\n",
	} {
		file := filepath.Join(t.TempDir(), "doc.md")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent document is accepted")
	}
}

// TestPathFunctions: whatever path the program can build, the document has it.
func TestPathFunctions(t *testing.T) {
	s, err := Load(Document())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{ // the last argument where it is not a host
		"Path": "size", "TodoPath": "attach", "ActualPath": "is-primary", "LocalPath": "x", "UserspacePath": "x", "DefaultsPath": "x", "HostDefaultsPath": "x",
		"LogPath": "a", "VersionPath": "a",
	}
	r := reflect.ValueOf(symlinktree.Resource("r"))
	checked := 0
	for i := range r.NumMethod() {
		m, name := r.Method(i), r.Type().Method(i).Name
		var args []reflect.Value
		for j := range m.Type().NumIn() {
			switch in := m.Type().In(j); {
			case in.Kind() == reflect.Int:
				args = append(args, reflect.ValueOf(7))
			case name == "SystemdStatusPath" && j == 0:
				args = append(args, reflect.ValueOf("start"))
			case j == m.Type().NumIn()-1 && names[name] != "":
				args = append(args, reflect.ValueOf(names[name]))
			default:
				args = append(args, reflect.ValueOf("a"))
			}
		}
		p := m.Call(args)[0].String()
		if strings.HasSuffix(name, "Dir") {
			p += "/"
		}
		if checked++; !s.Knows(p) {
			t.Errorf("%s makes %s", name, p)
		}
	}
	if checked < 25 {
		t.Errorf("only %d functions", checked)
	}
	for _, p := range []string{symlinktree.UUIDPath, symlinktree.IPPath("a"), symlinktree.ActualDir("a") + "/", symlinktree.ActualPath("a", "time"),
		symlinktree.DefaultsPath("x"), symlinktree.HostDefaultsPath("a", "sync-limit"), symlinktree.TodoGlobalPath("uuid-x"), symlinktree.UserspacePath("x"),
		symlinktree.LocalPath("a", "trigger"), symlinktree.CachePath("a", "x"), symlinktree.ProbePath("a", "uuid")} {
		if !s.Knows(p) {
			t.Errorf("%s is not known", p)
		}
	}
}
