package adm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBadWords: whatever is wrong with the words of a command line is found before
// anything is done, in front of the command and behind it (V25).
func TestBadWords(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	before := r.state()
	commands := []string{"down", "detach", "secondary", "primary", "invalidate", "leave-resource", "delete-resource", "log-purge-all", "pause-fetch", "fake-sync"}
	for _, c := range commands {
		for _, line := range [][]string{
			{"--frce", c, "r0"}, {c, "--frce", "r0"}, {c, "r0", "--frce"}, {c, "r0", "-x"}, {c, "r0", "--host"},
			{"--hots=hostb", c, "r0"}, {c, "r0", "--timeout=soon"}, {c, "r0", "--timeout=-1"},
			{c}, {c, "r0", "r1"}, {c, "r0", "force"}, {c, ""}, {c, "a/b"}, {c, "../r0"}, {c, ".."}, {c, "r0\n"}, {c, "r0,"}, {c, ",r0"}, {c, "r0,../x"}, {c, "(none)"},
			{c, "r0", ""}, {c, strings.Repeat("x", 300)}, {c, "--", "r0", "--force"},
		} {
			res := r.run(line...)
			if res.code != ExitUsage || !strings.HasPrefix(res.err, "ERROR: ") {
				t.Errorf("%q: exit %d: %s", line, res.code, res.err)
			}
		}
		for _, line := range [][]string{{"--host=hostz", c, "r0"}, {c, "r9"}, {c, "r9", "--force"}, {c, "force-r0"}, {c, "ALL"}, {c, "r0,r9"}} {
			if res := r.run(line...); res.code != ExitFailed || !strings.Contains(res.err, "HINT: ") {
				t.Errorf("%q: exit %d: %s", line, res.code, res.err)
			}
		}
	}
	if got := changes(before, r.state()); got != "" {
		t.Errorf("changed:\n%s", got)
	}
}

// TestForceNeverLies: no force makes a primary of a disk that is not a version of the
// data, nor a member of a primary, nor starts over without a source.
func TestForceNeverLies(t *testing.T) {
	r := newRig(t, "hostb")
	r.use("pair")
	r.put("resource-r0/syncstatus-hostb -> 4096\nresource-r0/todo-hostb/connect -> 0")
	r.startDaemon(obedient)
	before := r.state()
	for _, line := range []string{
		"primary r0 --force", "--force --force primary r0 --ignore-sync", "force-primary r0", "set-replay r0 9 --force",
	} {
		if res := r.run(strings.Fields(line)...); res.code != ExitFailed {
			t.Errorf("%s: exit %d: %s", line, res.code, res.err)
		}
	}
	if got := withoutBeacons(before, r.state()); got != "" {
		t.Errorf("changed:\n%s", got)
	}
}

// testSlack is what a loaded machine may add to --timeout; that no command runs for
// ever is what matters, and the default is 600 s.
const testSlack = 20 * time.Second

// TestTimeouts: with a peer that was there lately and is silent now every command ends
// in time, whatever the budget.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args  string
		limit time.Duration
	}{{"--timeout=0", time.Second}, {"--timeout=0.3", 2 * time.Second}} {
		for _, command := range []string{"primary r0", "wait-cluster", "invalidate r0", "leave-resource r0", "join-resource r9 $DIR/new", "activate-guest r9", "up r0", "resize r0", "wait-resource r0 is-primary", "cron"} {
			r := newRig(t, "hostb")
			r.use("pair")
			r.put(switchedOff + "$DIR/new = 67108864\nactual-hosta/time -> $NOW-1 @-1")
			d := r.startDaemon("dead hosta")
			begin := time.Now()
			res := r.run(append([]string{c.args}, strings.Fields(command)...)...)
			if took := time.Since(begin); took > c.limit+testSlack {
				t.Errorf("%s %s took %s", c.args, command, took)
			}
			if res.code == ExitDone && command != "cron" && command != "wait-cluster" || res.code == ExitUsage {
				t.Errorf("%s %s: exit %d: %s", c.args, command, res.code, res.err)
			}
			d.stop()
		}
	}
}

// TestTwice: a command that has been done can be said again: it is done, or refused,
// and the state stays the same.
func TestTwice(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"pause-fetch r0", "resume-fetch r0", "pause-replay r0", "pause-sync-global r0", "up r0", "down r0", "detach r0", "attach r0", "secondary r0", "primary r0",
		"set-emergency-limit r0 80", "set-global-sync-limit-value 2", "set-link x userspace/a", "leave-resource r0 --force", "delete-resource r0 --force",
		"set-connect-pref-list r0 hosta", "set-connect-pref-list r0", "set-systemd-unit r0 x.service", "set-global-disabled-log-digests CHKSUM_MD5",
		"log-delete-all r0", "log-purge-all r0 --force", "err-purge-all r0", "link-purge-all r0", "cron", "wait-cluster", "deactivate-guest r0", "lowlevel-delete-host hosta --force",
	} {
		r := newRig(t, "hostb")
		r.use("pair")
		d := r.startDaemon(obedient)
		r.run(strings.Fields(line)...)
		r.settle()
		values := func() map[string]entry {
			out := r.state()
			for p, e := range out {
				e.stamp = 0
				out[p] = e
			}
			return out
		}
		before := values()
		res := r.run(strings.Fields(line)...)
		r.settle()
		if res.code != ExitDone && res.code != ExitFailed {
			t.Errorf("%s, a second time: exit %d: %s", line, res.code, res.err)
		}
		if got := withoutBeacons(before, values()); got != "" {
			t.Errorf("%s, a second time, has changed:\n%s", line, got)
		}
		d.stop()
	}
}

// TestTwoAtOnce: commands of two administrators at the same moment leave a tree of
// which every link is one of theirs.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, "hostb")
	r.use("pair")
	r.startDaemon(obedient)
	var wg sync.WaitGroup
	for _, line := range []string{"up r0", "down r0", "pause-fetch r0", "resume-fetch r0", "set-emergency-limit r0 70", "set-emergency-limit r0 80"} {
		wg.Go(func() {
			for range 5 {
				var out, errs bytes.Buffer
				args := append([]string{"--root=" + r.root, "--node=" + r.node, "--timeout=5"}, strings.Fields(line)...)
				if code := Run(context.Background(), args, &out, &errs, r.env); code == ExitUsage {
					t.Errorf("%s: exit %d: %s", line, code, errs.String())
				}
			}
		})
	}
	wg.Wait()
	r.settle()
	if left, _ := filepath.Glob(r.root + "/*/*/.tmp*"); len(left) > 0 {
		t.Errorf("temporary links are left: %q", left)
	}
	for path, want := range map[string]string{"attach": "01", "connect": "01", "sync": "01", "allow-replay": "01"} {
		if v := r.link("resource-r0/todo-hostb/" + path); len(v) != 1 || !strings.Contains(want, v) {
			t.Errorf("%s -> %q", path, v)
		}
	}
	if v := r.link("resource-r0/todo-hostb/emergency-limit"); v != "70" && v != "80" {
		t.Errorf("emergency-limit -> %q", v)
	}
}

// TestSingleStep: nothing is written before the administrator has agreed to it.
func TestSingleStep(t *testing.T) {
	r := newRig(t, "hostb")
	r.use("pair")
	before := r.state()
	r.env.Stdin = strings.NewReader("")
	res := r.run("--singlestep", "pause-fetch", "r0")
	if res.code != ExitFailed || !strings.Contains(res.out, "todo-hostb/connect' -> '0'") || changes(before, r.state()) != "" {
		t.Errorf("without consent: exit %d: %s%s", res.code, res.out, changes(before, r.state()))
	}
	r.env.Stdin = strings.NewReader("\n")
	r.ok("--singlestep", "pause-fetch", "r0")
	if v := r.link("resource-r0/todo-hostb/connect"); v != "0" {
		t.Errorf("connect -> %q", v)
	}
}

// TestHooks: they run around a command with its words, in order; a failing one before
// it stops it, and one that others can write is not run.
func TestHooks(t *testing.T) {
	t.Parallel()
	r := newRig(t, "hostb")
	r.use("pair")
	r.put("resource-r2/size -> 4096\nresource-r2/data-hostb -> /dev/y\nresource-r2/device-hostb -> r2\nresource-r2/todo-hostb/connect -> 1")
	r.vars["MARS_PATH"] = filepath.Join(r.dir, "one") + ":" + filepath.Join(r.dir, "two")
	note := `echo "$(basename $0) $@ $MARS_HOST" >> ` + r.dir + "/calls"
	for _, h := range []string{"one/hook-pre", "one/hook-post-pause-fetch", "two/hook-pre-pause-fetch", "two/hook-pre-pause-fetch.d/10-b", "two/hook-pre-pause-fetch.d/05-a", "two/hook-all-pre", "two/hook-pre-up"} {
		r.script(h, note)
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "two/hook-post"), []byte("#!/bin/sh\n"+note), 0o644)) // not executable
	r.ok("pause-fetch", "r0")
	if got, want := r.noted("calls"), "hook-pre pause-fetch r0 hostb; hook-pre-pause-fetch pause-fetch r0 hostb; 05-a pause-fetch r0 hostb; 10-b pause-fetch r0 hostb; hook-post-pause-fetch pause-fetch r0 hostb"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.ok("pause-replay", "r0,r2")
	if got, want := r.noted("calls"), "hook-all-pre pause-replay r0,r2 hostb; hook-pre pause-replay r0 hostb; hook-pre pause-replay r2 hostb"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.ok("view", "r0")
	r.ok("--dry-run", "resume-fetch", "r0")
	if got := r.noted("calls"); got != "" {
		t.Errorf("hooks of a view or a dry run: %q", got)
	}
	r.script("one/hook-pre", "echo not now; exit 7")
	before := r.state()
	res := r.run("resume-fetch", "r0,r2")
	if res.code != ExitFailed || strings.Count(res.err, "exit code 7") != 2 || !strings.Contains(res.out, "not now") || changes(before, r.state()) != "" {
		t.Errorf("exit %d: %s%s%s", res.code, res.out, res.err, changes(before, r.state()))
	}
	if res := r.run("--force", "resume-fetch", "r0"); res.code != ExitDone || !strings.Contains(res.err, "WARNING: hook") || r.link("resource-r0/todo-hostb/connect") != "1" {
		t.Errorf("forced: exit %d: %s", res.code, res.err)
	}
	must(t, os.Chmod(filepath.Join(r.dir, "one/hook-pre"), 0o777))
	if res := r.run("pause-fetch", "r0"); res.code != ExitFailed || !strings.Contains(res.err, "can be written by others") {
		t.Errorf("a hook of anybody: exit %d: %s", res.code, res.err)
	}
}

// TestBackup: what a merge may spoil is in a file before.
func TestBackup(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	res := r.run("--backup-dir="+r.dir, "wait-cluster", "--dry-run")
	if res.code != ExitDone {
		t.Fatalf("%+v", res)
	}
	s := &session{env: r.env, opt: &options{backupDir: r.dir}, node: "hosta", out: newLineWriter(&bytes.Buffer{}), tree: r.tree()}
	must(t, s.backup())
	list, err := filepath.Glob(filepath.Join(r.dir, "mars-tree-hosta-*.txt"))
	if err != nil || len(list) != 1 {
		t.Fatalf("%q %v", list, err)
	}
	data, err := os.ReadFile(list[0])
	if err != nil || !strings.Contains(string(data), "resource-r0/todo-hosta/attach -> 1 @") || !strings.Contains(string(data), "ips/ip-hostb -> 10.9.0.2 @") {
		t.Errorf("%v\n%s", err, data)
	}
	s.opt.backupDir = filepath.Join(r.dir, "missing")
	if s.backup() == nil {
		t.Error("a backup that cannot be written is no error")
	}
}
