package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoCommand prepares `marsd demo` of the binary under test.
func demoCommand(t *testing.T, args ...string) (cmd *exec.Cmd, dir string, out *bytes.Buffer) {
	t.Helper()
	dir = filepath.Join(workDir(t), "demo")
	cmd = exec.Command(filepath.Join(bin, "marsd"), append([]string{"demo", "--dir", dir}, args...)...)
	out = &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, dir, out
}

// daemonsIn are the pids of daemons whose root is below dir.
func daemonsIn(t testing.TB, dir string) []int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte("MARS_ROOT="+dir+"/")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for len(daemonsIn(t, dir)) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if pids := daemonsIn(t, dir); len(pids) > 0 {
		t.Errorf("daemons are left behind: %v", pids)
	}
}

// TestDemo plays the demo, keeps it, plays with it as it says, and ends it.
func TestDemo(t *testing.T) {
	t.Parallel()
	cmd, dir, out := demoCommand(t, "--keep", "--size", "64")
	err := cmd.Run()
	defer func() {
		for _, pid := range daemonsIn(t, dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		nothingLeft(t, dir)
	}()
	text := out.String()
	if err != nil || !strings.Contains(text, "PASSED") {
		t.Fatalf("marsd demo: %v\n%s", err, text)
	}
	for _, want := range []string{"beta is primary", "e2fsck -fn: the filesystem on beta is clean", "all 64.0 MiB are equal", "100 %"} {
		if !strings.Contains(text, want) {
			t.Errorf("the demo does not say %q\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("escape sequences in a pipe")
	}
	view := exec.Command("sh", "-c", ". "+dir+"/beta/env; export PATH="+dir+"/bin:$PATH; marsadm view all && marsadm primary --no-wait r0; marsadm no-such-thing")
	played, err := view.CombinedOutput()
	if !strings.Contains(string(played), "Primary beta") {
		t.Errorf("playing with the kept demo: %s", played)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("a wrong command ends with %v, want exit code 2", err)
	}
	kill := regexp.MustCompile(`(?m)^\s+kill ([0-9 ]+); rm -r (.*)$`).FindStringSubmatch(text)
	if kill == nil || kill[2] != dir {
		t.Fatalf("the demo does not say how to end it\n%s", text)
	}
	if got, want := len(strings.Fields(kill[1])), len(daemonsIn(t, dir)); got != 3 || want != 3 {
		t.Errorf("%d pids are named, %d daemons run, want 3", got, want)
	}
	if b, err := exec.Command("sh", "-c", "kill "+kill[1]).CombinedOutput(); err != nil {
		t.Errorf("kill: %v %s", err, b)
	}
	nothingLeft(t, dir)
}

// TestDemoInterrupted: Ctrl-C, and even kill -9 of the demo, leave no daemons.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		cmd, dir, out := demoCommand(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(waitLimit)
		for len(daemonsIn(t, dir)) < 3 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if err == nil {
			t.Errorf("%v: the demo ends without an error\n%s", sig, out)
		}
		nothingLeft(t, dir)
		if _, err := os.Stat(dir); sig == syscall.SIGINT && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: %s is left behind: %v", sig, dir, err)
		}
	}
}
