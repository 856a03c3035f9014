package adm

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// complete asks for what fits; the last word is the one under the cursor. The result
// has the directive of cobra as its last word.
func (r *rig) complete(args ...string) string {
	r.t.Helper()
	var out, errs bytes.Buffer
	all := append([]string{"__completeNoDesc", "--root=" + r.root, "--node=" + r.node}, args...)
	if code := Run(context.Background(), all, &out, &errs, r.env); code != ExitDone {
		r.t.Fatalf("%q: exit %d: %s", args, code, errs.String())
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

// TestComplete: what is offered depends on the tree.
func TestComplete(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	r.put("resource-r10/size -> 4096\nresource-r10/data-hostb -> /dev/x\nresource-r2/size -> 4096\nresource-r2/data-hosta -> /dev/y\nresource-r2/device-hosta -> r2")
	for _, c := range []struct{ words, want string }{
		{"primary |", "r0 r2 all :4"},
		{"primary r0,|", "r0,r2 :4"},
		{"primary r0 |", ":4"},
		{"-f primary r|", "r0 r2 :4"},
		{"join-resource |", "r10 :4"},
		{"join-resource r10 |", ":0"},
		{"create-resource |", ":4"},
		{"create-resource r9 /d|", ":0"},
		{"view |", "r0 r2 r10 all :4"},
		{"view-is-primary r1|", "r10 :4"},
		{"view-is-prim|", "view-is-primary :4"},
		{"wait-resource r0 is-dev|", "is-device is-device-off :4"},
		{"join-cluster |", "hosta hostb :4"},
		{"lowlevel-delete-host hostb |", ":4"},
		{"set-systemd-want r0 |", "hosta hostb (none) :4"},
		{"set-systemd-unit r0 D|", "DEFAULT :4"},
		{"set-global-disabled-log-digests CHKSUM_S|", "CHKSUM_SHA1 :4"},
		{"--host=|", "hosta hostb :4"},
		{"--host |", "hosta hostb :4"},
		{"--host=hostb primary |", "r0 r2 r10 all :4"},
		{"primary r0 --ignore-s|", "--ignore-sync :4"},
		{"--ip-host|", "--ip-hosta --ip-hostb :4"},
		{"--timeout=|", "10 60 600 :4"},
		{"completion z|", "zsh :4"},
		{"help prim|", "primary :4"},
		{"prim|", "primary :4"},
		{"nonsense |", ":4"},
	} {
		got := r.complete(strings.Split(strings.TrimSuffix(c.words, "|"), " ")...)
		got = strings.ReplaceAll(strings.ReplaceAll(got, "--ip-hosta= ", "--ip-hosta "), "--ip-hostb= ", "--ip-hostb ")
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.words, got, c.want)
		}
	}
	empty := newRig(t, "hosta")
	if got := empty.complete("primary", ""); got != ":4" {
		t.Errorf("without a tree: %s", got)
	}
	empty.root = filepath.Join(empty.dir, "missing")
	if got := empty.complete("primary", ""); got != ":4" {
		t.Errorf("without a root: %s", got)
	}
}

// The scripts are what their shells accept.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := newRig(t, "hosta")
		script := r.ok("completion", shell).out
		if !strings.Contains(script, "__complete") || len(script) < 1000 {
			t.Errorf("%s: %d bytes", shell, len(script))
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // the shell is not here
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v: %s", shell, err, out)
		}
	}
	if res := newRig(t, "hosta").run("completion", "tcsh"); res.code != ExitUsage {
		t.Errorf("tcsh: exit %d", res.code)
	}
}
