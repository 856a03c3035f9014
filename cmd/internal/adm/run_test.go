package adm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mars/internal/testutil"
	"mars/symlinktree"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// use puts a base tree into the rig.
func (r *rig) use(names ...string) {
	for _, n := range names {
		_, parts := readParts(r.t, "testdata/base/"+n+".txt")
		r.put(parts[0].body)
	}
}

// TestDryRunChangesNothing runs every command that could succeed on a healthy pair
// with --dry-run: neither links nor directories nor files may change, not even a
// stamp, and no request to the daemon may be left.
func TestDryRunChangesNothing(t *testing.T) {
	words := map[string][]string{
		"join-cluster": {"hostz", "10.9.0.9"}, "lowlevel-set-host-ip": {"hostb", "10.9.0.5"},
		"merge-cluster": {"hostz", "10.9.0.9"}, "merge-cluster-check": {"hostz", "10.9.0.9"}, "lowlevel-delete-host": {"hostb"},
		"set-replay": {"r0", "1"}, "set-sync-limit-value": {"1"}, "set-disabled-digests": {"r0", "CHKSUM_MD5"}, "set-connect-pref-list": {"r0", "hostb"},
		"set-global-disabled-log-digests": {"CHKSUM_SHA1"}, "set-systemd-unit": {"r0", "x.service"}, "set-systemd-want": {"r0", "hosta"},
		"create-resource": {"r1", "$DIR/new"}, "join-resource": {"r0", "$DIR/new"},
		"wait-resource": {"r0", "is-attach"}, "set-emergency-limit": {"r0", "80"}, "set-sync-mode": {"r0", "near"}, "set-traffic-limit": {"sync", "100"}, "set-resource-traffic-limit": {"r0", "log", "100"}, "set-replay-delay": {"r0", "60"}, "emergency-limit": {"r0", "80"},
		"set-global-sync-limit-value": {"1"}, "set-link": {"x", "userspace/a"}, "get-link": {"uuid"}, "delete-file": {"userspace/b"},
		"log-dump": {"$ROOT/resource-r0/log-000000001-hosta"}, "log-verify": {"$ROOT/resource-r0/log-000000001-hosta"},
	}
	ran := 0
	var rigs []*rig
	for _, node := range []string{"hosta", "hostb"} {
		r := newRig(t, node)
		r.use("pair")
		r.put("$DIR/new = 67108864\nuserspace/b -> 1\nresource-r0/log-000000002-hosta = 4096\nuserspace/old -> .deleted")
		rigs = append(rigs, r)
	}
	for _, g := range groups() {
		for _, v := range g.verbs {
			if v.noTree || strings.Contains(v.name, "NAME") {
				continue
			}
			for _, r := range rigs {
				for _, extra := range []string{"--verbose", "--force"} {
					args := append([]string{"--dry-run", extra, v.name}, words[v.name]...)
					if words[v.name] == nil && v.res != noRes {
						args = append(args, "r0")
					}
					before := r.state()
					res := r.run(args...)
					if got := changes(before, r.state()); got != "" {
						t.Fatalf("%s on %s with exit code %d has changed:\n%s", v.name, r.node, res.code, got)
					}
					if left, _ := filepath.Glob(r.root + "/local-*/*"); len(left) > 0 {
						t.Fatalf("%s on %s left %q", v.name, r.node, left)
					}
					if res.code == ExitTimeout || res.code == ExitUsage {
						t.Errorf("%s on %s: exit %d: %s", v.name, r.node, res.code, res.err)
					}
					if res.code == ExitDone && strings.Contains(res.out, "DRY_RUN") {
						ran++
					}
				}
			}
		}
	}
	if ran < 60 {
		t.Errorf("only %d commands have got far enough to prove anything", ran)
	}
}

// TestHandoverInterrupted: a signal in the middle of a handover gives the role back.
func TestHandoverInterrupted(t *testing.T) {
	r := newRig(t, "hostb")
	r.use("pair")
	r.startDaemon("") // the old primary never steps down
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan result)
	go func() { done <- r.runContext(ctx, "primary", "r0") }()
	link := filepath.Join(r.root, "resource-r0/primary")
	testutil.WaitFor(t, 5*time.Second, "the role is taken from hosta", func() bool {
		v, _ := os.Readlink(link)
		return v == symlinktree.NoHost
	})
	cancel(errors.New("interrupt"))
	res := <-done
	if res.code != ExitFailed || !strings.Contains(res.err, "interrupt") || !strings.Contains(res.err, "hosta is designated again") {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if v, _ := os.Readlink(link); v != "hosta" {
		t.Errorf("primary -> %s", v)
	}
}

// TestHandoverLost: when somebody else is designated meanwhile, a failing handover
// does not take the role from him.
func TestHandoverLost(t *testing.T) {
	r := newRig(t, "hostb")
	r.use("three")
	r.startDaemon("resource-r0/primary=(none) => resource-r0/primary=hostc")
	res := r.run("--timeout=2", "primary", "r0")
	if res.code != ExitTimeout {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if v, _ := os.Readlink(filepath.Join(r.root, "resource-r0/primary")); v != "hostc" {
		t.Errorf("primary -> %s", v)
	}
}

// TestDeadline: no command takes much longer than --timeout.
func TestDeadline(t *testing.T) {
	r := newRig(t, "hostb")
	r.use("three")
	r.put("actual-hosta/time -> $NOW-20")
	r.startDaemon("dead hosta")
	for _, cmd := range [][]string{
		{"primary", "r0"}, {"wait-cluster"}, {"invalidate", "r0"}, {"wait-resource", "r0", "is-fetch"}, {"detach", "r0"}, {"join-resource", "r1", "$DIR/disk-b"},
	} {
		begin := time.Now()
		res := r.run(append([]string{"--timeout=0.1"}, cmd...)...)
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%v took %v", cmd, took)
		}
		if res.code == ExitDone {
			t.Errorf("%v: exit 0\n%s", cmd, res.out)
		}
	}
}

// TestParallel: one slow resource delays only itself.
func TestParallel(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("two")
	rules := ""
	var list []string
	for i := range 8 {
		res := fmt.Sprintf("r%d", i)
		list = append(list, res)
		r.put(strings.ReplaceAll(`resource-R/size -> 4096000
			resource-R/data-hosta -> /d-R
			resource-R/device-hosta -> R
			resource-R/primary -> hosta
			resource-R/syncstatus-hosta -> 4096000
			resource-R/todo-hosta/attach -> 0`, "R", res))
		if i != 3 {
			rules += strings.ReplaceAll("resource-R/todo-hosta/attach=1 => resource-R/actual-hosta/is-attached=1\n", "R", res)
		}
	}
	r.startDaemon(rules)
	res := r.run("--timeout=1", "--parallel", "attach", strings.Join(list, ","))
	if res.code != ExitTimeout || strings.Count(res.err, "ERROR") != 1 || !strings.Contains(res.err, "attach r3 on hosta") {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
}

func TestEnvironment(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	run := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := Run(context.Background(), args, &out, &errs, r.env)
		return code, out.String() + errs.String()
	}
	r.vars["MARS_ROOT"], r.vars["MARS_NODE"] = r.root, "hostb"
	if code, text := run("view-role", "r0"); code != 0 || text != "Secondary\n" {
		t.Errorf("by environment: %d %s", code, text)
	}
	if code, text := run("view-role", "r0", "--node=hosta"); code != 0 || text != "Primary\n" {
		t.Errorf("an option beats the environment: %d %s", code, text)
	}
	r.vars["MARS_NODE"] = ""
	r.env.Hostname = func() (string, error) { return "hosta.example.org", nil }
	if code, text := run("view-role", "r0"); code != 0 || text != "Primary\n" {
		t.Errorf("by host name without the domain: %d %s", code, text)
	}
	r.env.Hostname = func() (string, error) { return "local", nil }
	if code, text := run("view-role", "r0"); code != ExitFailed || !strings.Contains(text, "--node") {
		t.Errorf("bad host name: %d %s", code, text)
	}
}

// TestDefaultRoot: the default root must be a filesystem of its own for the
// commands that make it grow; others only need it to exist.
func TestDefaultRoot(t *testing.T) {
	env := Env{}.withDefaults()
	dir := t.TempDir()
	var r *Refusal
	if err := checkRoot(env, dir, true, true); !errors.As(err, &r) || !strings.Contains(r.Reason, "mount point") {
		t.Errorf("plain directory: %v", err)
	}
	for name, err := range map[string]error{
		"view":         checkRoot(env, dir, true, false),
		"--root":       checkRoot(env, dir, false, true),
		"a real mount": checkRoot(env, "/proc", true, true),
		"/":            checkRoot(env, "/", true, true),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{filepath.Join(dir, "missing"), file} {
		if err := checkRoot(env, path, false, false); err == nil {
			t.Errorf("%s is taken for a root", path)
		}
	}
}

func TestSecretFromEnvironment(t *testing.T) {
	r := newRig(t, "hosta")
	run := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := Run(context.Background(), append(args, "--root="+r.root, "--node=hosta"), &out, &errs, r.env)
		return code, out.String() + errs.String()
	}
	r.vars["MARS_SECRET"] = "too short"
	if code, text := run("create-cluster", "--ip=10.0.0.1"); code != ExitFailed || !strings.Contains(text, "MARS_SECRET") {
		t.Errorf("bad content: %d %s", code, text)
	}
	if len(r.state()) != 0 {
		t.Errorf("refused, but: %v", r.state())
	}
	r.vars["MARS_SECRET"] = filepath.Join(r.root, "secret")
	if code, text := run("create-cluster", "--ip=10.0.0.1"); code != ExitFailed || !strings.Contains(text, "inside the tree") {
		t.Errorf("inside the tree: %d %s", code, text)
	}
	r.vars["MARS_SECRET"] = strings.Repeat("0123456789abcdef", 4)
	if code, text := run("create-cluster", "--ip=10.0.0.1"); code != ExitDone {
		t.Errorf("content: %d %s", code, text)
	}
	st, err := os.Stat(filepath.Join(r.dir, "secret"))
	if err == nil {
		t.Errorf("a secret file was made although the environment has it: %v", st.Name())
	}
}

// TestDiskInUse: the disk is opened as marsd will open it, and released at once.
func TestDiskInUse(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("two")
	r.put("$DIR/disk = 67108864")
	d := r.holdDisk(filepath.Join(r.dir, "disk"))
	before := r.state()
	res := r.run("create-resource", "r0", "$DIR/disk")
	if res.code != ExitFailed || !strings.Contains(res.err, "in use by another process") || changes(before, r.state()) != "" {
		t.Errorf("exit %d: %s\n%s", res.code, res.err, changes(before, r.state()))
	}
	must(t, d.Close())
	if res = r.run("create-resource", "r0", "$DIR/disk"); res.code != ExitDone {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	must(t, r.holdDisk(filepath.Join(r.dir, "disk")).Close())
}

// TestTombstonedDirectory: the original leaves symlinks where directories were; a
// later join makes directories of them again (weakness 16).
func TestTombstonedDirectory(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("two")
	r.put("$DIR/disk = 67108864\nresource-r0/")
	must(t, os.Symlink(symlinktree.Deleted, filepath.Join(r.root, "resource-r0/defaults-hosta")))
	if res := r.run("create-resource", "r0", "$DIR/disk"); res.code != ExitDone {
		t.Errorf("exit %d: %s", res.code, res.err)
	}
	if st, err := os.Lstat(filepath.Join(r.root, "resource-r0/defaults-hosta")); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
}

// TestDurable: when a command says that it is done, its links have been synced.
func TestDurable(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("two")
	r.put("$DIR/disk = 67108864")
	clear(r.fs.synced)
	if res := r.run("create-resource", "r0", "$DIR/disk"); res.code != ExitDone {
		t.Fatalf("%+v", res)
	}
	for _, dir := range []string{"", "resource-r0", "resource-r0/todo-hosta", "resource-r0/actual-hosta", "resource-r0/userspace"} {
		if r.fs.synced[filepath.Join(r.root, dir)] == 0 {
			t.Errorf("%q was not synced", dir)
		}
	}
	if n := r.fs.synced[filepath.Join(r.root, "resource-r0")]; n < 2 {
		t.Errorf("two batches, but resource-r0 was synced %d times", n)
	}
}

// TestLinksByHand: what a person makes with ln -s counts like a command's.
func TestLinksByHand(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	link := filepath.Join(r.root, "resource-r0/todo-hosta/sync")
	must(t, os.Remove(link))
	must(t, os.Symlink("0", link))
	if res := r.run("view-todo-sync", "r0"); res.out != "0\n" {
		t.Errorf("%+v", res)
	}
	if res := r.run("resume-sync", "r0"); res.code != 0 {
		t.Errorf("%+v", res)
	}
	if v, _ := os.Readlink(link); v != "1" {
		t.Errorf("sync -> %s", v)
	}
}
