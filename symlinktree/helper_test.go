package symlinktree

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testNow is the real clock of most tests.
const testNow = Stamp(1_800_000_000_000_000_000)

// fakeReal is a real clock that stands still unless moved.
type fakeReal struct{ at Stamp }

func (f *fakeReal) now() time.Time { return f.at.Time() }

func open(t testing.TB, root string, opt Options) *Tree {
	t.Helper()
	if opt.Node == "" {
		opt.Node = "me"
	}
	if err := os.Chmod(root, 0o700); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	tr, err := Open(root, opt)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// set writes path, value, path, value...
func set(t testing.TB, tr *Tree, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if err := tr.Set(pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
}

// disk returns what lies under root: path -> "value@stamp", files and
// directories as "file" and "dir".
func disk(t testing.TB, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.Walk(root, func(name string, st os.FileInfo, err error) error {
		if err != nil || name == root {
			return err
		}
		rel := strings.TrimPrefix(name, root+"/")
		switch {
		case st.IsDir():
			out[rel] = "dir"
		case st.Mode()&os.ModeSymlink != 0:
			v, err := os.Readlink(name)
			if err != nil {
				return err
			}
			out[rel] = v + "@" + stampOf(st.ModTime()).String()
		default:
			out[rel] = "file"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// memory returns the same from the memory of a tree.
func memory(tr *Tree) map[string]string {
	out := make(map[string]string)
	tr.top.Load().walk(func(n *node) {
		if n.path != "" {
			out[n.path] = "dir"
		}
		for _, e := range n.links {
			out[e.Path] = e.Value + "@" + e.Stamp.String()
		}
	})
	return out
}

// diff lists where two of the above differ.
func diff(a, b map[string]string) string {
	var out []string
	for p, v := range a {
		if b[p] != v {
			out = append(out, fmt.Sprintf("%s: %q, %q", p, v, b[p]))
		}
	}
	for p, v := range b {
		if _, ok := a[p]; !ok {
			out = append(out, fmt.Sprintf("%s: none, %q", p, v))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// agree fails if disk and memory differ.
func agree(t testing.TB, tr *Tree) {
	t.Helper()
	if d := diff(disk(t, tr.root), memory(tr)); d != "" {
		t.Errorf("disk and memory differ:\n%s", d)
	}
}

// all returns every replicated entry of a tree.
func all(tr *Tree) []Entry {
	var out []Entry
	s := tr.Snapshot()
	for _, d := range s.AllDirs() {
		out = append(out, s.Dir(d)...)
	}
	return out
}

// byHand makes a link as an administrator would, with a given mtime.
func byHand(t testing.TB, name, value string, s Stamp) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(name), ".by-hand")
	if err := osSymlink(value, tmp, s); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, name); err != nil {
		t.Fatal(err)
	}
}

// textLog logs warnings and errors into w.
func textLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
