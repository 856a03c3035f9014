package symlinktree

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, s := range []string{"a", "hostA", "_x", "a-b", "9", "global", strings.Repeat("x", 63)} {
		if err := ValidName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "-a", "a.b", "a/b", "..", "a b", "ä", "a\n", "none", "(none)", "all", "any", "localhost", "local", strings.Repeat("x", 64)} {
		if ValidName(s) == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestValidPath(t *testing.T) {
	r := Resource("r-1")
	for _, p := range []string{
		UUIDPath, IPPath("h"), ActualPath("h", "time"), DefaultsPath("k"), HostDefaultsPath("h", "sync-limit"), TodoGlobalPath("x"),
		UserspacePath("x"), LocalPath("h", "trigger"), CachePath("h", "invalid"), ProbePath("h", "got-p"), r.SizePath(), r.DataPath("a-b"),
		r.VersionPath(1, "h"), r.LogPath(1, "h"), r.TodoPath("h", "attach"), r.ActualPath("h", "is-primary"), r.LocalPath("h", "connection-x"),
		r.LastPrimaryPath(), r.SystemdStatusPath("start", "h"), r.DefaultsPath("x"), r.HostDefaultsPath("h", "x"), r.Path("anything else"),
		"backups-12/x",
	} {
		if err := ValidPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{
		"", "/", "/uuid", "uuid/", "a//b", "..", ".", "../x", "ips/../x", "ips/..", "ips/.", "ips/.tmp.1.x", ".deleted-x", "ips/\nx", "ips/\x00", "ips/a\x7f",
		"other/x", "ips/sub/x", "resource-r/other/x", "resource-r/actual-h/sub/x", "resource-r/ips/x", "resource-/size", "resource-../size",
		"resource-none/size", "actual-/x", "actual-h.x/y", "resource-r/resource-q/size", "resource-r/cache-h/x", "cache-h/sub/x",
		"ips", "resource-r", "resource-r/actual-h", "defaults", "userspace", "todo-global", "local-h", "resource-r/userspace", // directories
		"lost+found/x", "a/b/c/d/e", strings.Repeat("x", MaxPath+1), strings.Repeat("x", 201), "ips/\xff",
	} {
		if ValidPath(p) == nil {
			t.Errorf("%q is accepted", p)
		}
	}
}

func TestReplicated(t *testing.T) {
	for p, want := range map[string]bool{
		"uuid": true, "ips/ip-a": true, "actual-a/time": true, "actual-a/read-stamp": false, "resource-r/size": true,
		"resource-r/actual-a/x": true, "resource-r/local-a/x": false, "local-a/trigger": false, "cache-a/invalid": false, "probe-a/x": false,
		"backups-1/x": false, "ips/.tmp.1.x": false, ".x": false, "lost+found": false, "ignore-me": false, "ips/ignored": false,
		"resource-r": false, "defaults": false, "resource-r/log-000000001-a": true, "other/x": false, "resource-r/userspace/x": true, "": false,
	} {
		if got := Replicated(p); got != want {
			t.Errorf("Replicated(%q) = %v", p, got)
		}
	}
}

// A host "b" must not be taken for the owner of what belongs to "a-b"
// (reference symlink-tree 9.7).
func TestExactHostFields(t *testing.T) {
	for _, tc := range []struct {
		name, prefix, host string
		ok                 bool
	}{
		{"data-b", "data", "b", true},
		{"data-a-b", "data", "a-b", true},
		{"data-", "data", "", false},
		{"data", "data", "", false},
		{"xdata-b", "data", "", false},
		{"skip-check-a-b", "skip-check", "a-b", true},
		{"data--b", "data", "", false},
		{"data-none", "data", "", false},
	} {
		if host, ok := HostOf(tc.name, tc.prefix); host != tc.host || ok != tc.ok {
			t.Errorf("HostOf(%q, %q) = %q, %v", tc.name, tc.prefix, host, ok)
		}
	}
	for _, tc := range []struct {
		name, prefix string
		n            int
		host         string
		ok           bool
	}{
		{"log-000000007-a-b", "log", 7, "a-b", true},
		{"version-000000000-b", "version", 0, "b", true},
		{"log-7-b", "log", 0, "", false},
		{"log-000000007", "log", 0, "", false},
		{"log-000000007-", "log", 0, "", false},
		{"log-0000000x7-b", "log", 0, "", false},
	} {
		if n, host, ok := NumberedOf(tc.name, tc.prefix); n != tc.n || host != tc.host || ok != tc.ok {
			t.Errorf("NumberedOf(%q, %q) = %d, %q, %v", tc.name, tc.prefix, n, host, ok)
		}
	}
}

func TestHelpersReadExactFields(t *testing.T) {
	tr := open(t, t.TempDir(), Options{})
	r, q := Resource("r"), Resource("q")
	set(t, tr, IPPath("b"), "10.0.0.2", IPPath("a-b"), "10.0.0.1", "ips/ip-bad.name", "x", "ips/other", "y",
		r.DataPath("a-b"), "/dev/x", r.DataPath("c"), "/dev/x", r.DevicePath("a-b"), "r", r.DevicePath("g-b"), "r", q.SizePath(), "1")
	if err := tr.Delete(r.DataPath("c")); err != nil {
		t.Fatal(err)
	}
	if got := Hosts(tr); !slices.Equal(got, []string{"a-b", "b"}) {
		t.Errorf("hosts %v", got)
	}
	if got := Members(tr, r); !slices.Equal(got, []string{"a-b"}) {
		t.Errorf("members %v", got)
	}
	if got := Guests(tr.Snapshot(), r); !slices.Equal(got, []string{"g-b"}) {
		t.Errorf("guests %v", got)
	}
	if got := Resources(tr); !slices.Equal(got, []Resource{"q", "r"}) {
		t.Errorf("resources %v", got)
	}
}

func FuzzValidPath(f *testing.F) {
	for _, s := range []string{"uuid", "resource-r/actual-h/x", "../x", "ips/../../x", "a//b", "resource-r/./x", "ips/.tmp", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		err := ValidPath(p)
		if err != nil {
			if Replicated(p) && checkPathText(p) == nil {
				t.Fatalf("%q is replicated but not valid: %v", p, err)
			}
			return
		}
		const root = "/mars/root"
		abs := filepath.Join(root, p)
		if abs != root+"/"+p || !strings.HasPrefix(abs, root+"/") {
			t.Fatalf("%q leads to %q", p, abs)
		}
		dir, name := splitPath(p)
		if strings.ContainsAny(p, "\x00\n") || name[0] == '.' || dirClass(dir) == classUnknown || strings.Count(p, "/") >= MaxDepth {
			t.Fatalf("%q is accepted", p)
		}
		if len(p) > MaxPath || len(tempPrefix)+40+len(name) > 255 {
			t.Fatalf("%q is too long", p)
		}
	})
}
