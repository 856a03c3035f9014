package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../../.."

// TestCurrent: what is checked in is what the code says now.
func TestCurrent(t *testing.T) {
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 7 {
		t.Errorf("%d files", len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is not current (%v): make man", name, err)
		}
	}
}

// TestManualsRender: man accepts the pages without a warning, and shows what they are
// about.
func TestManualsRender(t *testing.T) {
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, words := range map[string][]string{
		"docs/man/marsadm.8": {"create-resource RES DISK [DEVICE [SIZE]]", "--ignore-sync", "Q2 ", "EXIT STATUS", "merge-cluster PEER"},
		"docs/man/marsd.8":   {"--durability", "SIGHUP", "--nbd-dir"},
		"docs/man/mars.5":    {"version-N-H", "@escvar{VAR}", "^{VAR}", "PathModified=@{resdir}/systemd-trigger"},
	} {
		page := files[name]
		for _, w := range words {
			if !strings.Contains(strings.ReplaceAll(page, `\-`, "-"), w) {
				t.Errorf("%s does not have %q", name, w)
			}
		}
		path, err := exec.LookPath("groff")
		if err != nil {
			continue // no formatter here
		}
		cmd := exec.Command(path, "-man", "-Tutf8", "-ww", "-z")
		cmd.Stdin = strings.NewReader(page)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestSplice(t *testing.T) {
	doc := "a\n" + begin + " x -->\nold\n" + end + "\nb\n"
	got, err := splice(doc, "new\n")
	if want := "a\n" + begin + " x -->\n\nnew\n\n" + end + "\nb\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if again, err := splice(got, "new\n"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", begin, begin + " -->\n", end + "\n" + begin + "\n"} {
		if _, err := splice(bad, "x"); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
