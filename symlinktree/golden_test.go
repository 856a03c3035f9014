package symlinktree

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/internal/vfs"
)

func osSymlink(value, name string, s Stamp) error { return vfs.OS.Symlink(value, name, s.Time()) }

// listed is one line of a .list file.
type listed struct {
	kind  string
	path  string
	value string
	stamp Stamp
}

func readList(t *testing.T, name string) []listed {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []listed
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		left, value, ok := strings.Cut(line, " ->")
		f := strings.Fields(left)
		if !ok || len(f) == 1 && strings.HasSuffix(name, ".list") {
			t.Fatalf("%s: bad line %q", name, line)
		}
		l := listed{kind: "l", path: f[len(f)-1], value: strings.TrimPrefix(value, " "), stamp: testNow}
		if len(f) == 5 {
			l.kind = f[0]
			sec, frac, _ := strings.Cut(f[3], ".")
			if l.stamp, err = ParseStamp(sec + "." + frac[:9]); err != nil {
				t.Fatal(err)
			}
			if size, _ := strconv.Atoi(f[2]); l.kind == "l" && size != len(l.value) {
				t.Fatalf("%s: %q: %d bytes listed", name, line, size)
			}
		}
		l.path = strings.TrimPrefix(strings.TrimPrefix(l.path, "."), "/")
		out = append(out, l)
	}
	return out
}

// Every link that a kernel MARS has left parses, its version chain adds up, and a
// tree made of it opens without complaint and reads back the same.
func TestKernelTrees(t *testing.T) {
	files, _ := filepath.Glob("testdata/kernel/*.li*")
	if len(files) != 8 {
		t.Fatalf("%d lists", len(files))
	}
	chains := 0
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			list := readList(t, name)
			root := t.TempDir()
			os.Chmod(root, 0o700)
			links := make(map[string]string)
			for _, l := range list {
				full := filepath.Join(root, l.path)
				os.MkdirAll(filepath.Dir(full), 0o700)
				switch l.kind {
				case "d":
					os.MkdirAll(full, 0o700)
				case "f":
					if err := os.WriteFile(full, nil, 0o600); err != nil {
						t.Fatal(err)
					}
				case "l":
					if err := osSymlink(l.value, full, l.stamp); err != nil {
						t.Fatal(err)
					}
					links[l.path] = l.value
					if err := CheckValue(l.path, l.value); err != nil {
						t.Error(err)
					}
				}
			}
			chains += checkChain(t, links)
			before := disk(t, root)
			var log strings.Builder
			newest := Stamp(0)
			for _, l := range list {
				if l.kind == "l" {
					newest = max(newest, l.stamp)
				}
			}
			real := &fakeReal{at: newest - Stamp(time.Hour)}
			tr := open(t, root, Options{Node: "nodea", Clock: NewClock(real.now), Log: textLog(&log)})
			for _, l := range list {
				e, ok := tr.Entry(l.path)
				if want := l.kind == "l"; ok != want || ok && (e.Value != l.value || e.Stamp != l.stamp) {
					t.Errorf("%s: read as %+v, %v; want %q at %v", l.path, e, ok, l.value, l.stamp)
				}
			}
			if changed, err := tr.Rescan(); err != nil || len(changed) > 0 {
				t.Errorf("rescan: %v, %v", changed, err)
			}
			if d := diff(before, disk(t, root)); d != "" {
				t.Errorf("opening has changed the tree:\n%s", d)
			}
			if log.Len() > 0 {
				t.Errorf("complaints:\n%s", log.String())
			}
			if tr.Clock().Now() <= newest {
				t.Error("the clock has not seen the tree")
			}
			// Another node takes it all, with the same stamps.
			other := open(t, t.TempDir(), Options{Node: "nodeb", Clock: NewClock(real.now)})
			if _, err := other.Merge("nodea", all(tr)); err != nil {
				t.Error(err)
			}
			if other.RootDigest() != tr.RootDigest() {
				t.Error("digests differ after a merge")
			}
		})
	}
	if chains == 0 {
		t.Error("no version chain was checked")
	}
}

// checkChain recomputes every version link that has a predecessor on the same
// host, and every one that started a history.
func checkChain(t *testing.T, links map[string]string) (n int) {
	for path, value := range links {
		dir, name := splitPath(path)
		num, host, ok := NumberedOf(name, "version")
		if !ok {
			continue
		}
		v, err := ParseVersion(value)
		if err != nil {
			t.Error(err)
			continue
		}
		if v.Digest == ZeroDigest {
			continue
		}
		prev := links[dir+"/"+strings.TrimPrefix(Resource("x").VersionPath(num-1, host), Resource("x").Dir()+"/")]
		if want := NewVersion(v.Seq, v.Origin, v.Pos, prev); v != want {
			t.Errorf("%s: the kernel computed %s, we %s", path, v, want)
		}
		n++
	}
	return n
}
