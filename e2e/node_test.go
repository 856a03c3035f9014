package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/testutil"
)

// Node is one machine: directories and a daemon.
type Node struct {
	t    testing.TB
	c    *Cluster
	i    int
	Name string
	Addr string
	dir  string

	Args []string // arguments of marsd beside the standard ones
	Bin  string   // directory of marsd and marsadm
	Env  []string // of both, beside the standard ones

	cmd     *exec.Cmd
	done    chan struct{}
	exit    error
	stopped bool // SIGSTOP
}

func newNode(c *Cluster, i int, addr string) *Node {
	name := "host" + string(rune('a'+i))
	n := &Node{t: c.t, c: c, i: i, Name: name, Addr: addr, dir: filepath.Join(c.dir, name), Args: c.opt.args, Bin: bin}
	for _, d := range []string{n.Root(), n.nbdDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			c.t.Fatal(err)
		}
	}
	return n
}

// Root is the node's /mars.
func (n *Node) Root() string    { return filepath.Join(n.dir, "mars") }
func (n *Node) nbdDir() string  { return filepath.Join(n.dir, "run") }
func (n *Node) secret() string  { return filepath.Join(n.dir, "secret") }
func (n *Node) logFile() string { return filepath.Join(n.dir, "marsd.log") }

// Path is a file of this node.
func (n *Node) Path(name string) string { return filepath.Join(n.dir, name) }

// Socket is where a resource's device is served.
func (n *Node) Socket(res string) string { return filepath.Join(n.nbdDir(), res+".sock") }

// URI is the same for libnbd and qemu.
func (n *Node) URI(res string) string {
	return "nbd+unix:///" + res + "?socket=" + n.Socket(res)
}

func (n *Node) copySecret(from *Node) {
	n.t.Helper()
	b, err := os.ReadFile(from.secret())
	if err == nil {
		err = os.WriteFile(n.secret(), b, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// Disk makes a sparse file to be a backing disk.
func (n *Node) Disk(name string, size int64) string {
	n.t.Helper()
	path := n.Path(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *Node) env() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "MARS_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			env = append(env, e)
		}
	}
	env = append(env, "MARS_ROOT="+n.Root(), "MARS_NODE="+n.Name, "MARS_SECRET="+n.secret(), "GORACE=atexit_sleep_ms=0")
	return append(env, n.Env...)
}

// daemon prepares a marsd of this node with further arguments.
func (n *Node) daemon(args ...string) *exec.Cmd {
	line := append([]string{filepath.Join(n.Bin, "marsd"), "--bind", n.Addr, "--nbd-dir", n.nbdDir()}, n.Args...)
	line = append(line, args...)
	if n.c.net != nil {
		line = n.c.net.enter(n.i, line)
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = n.env()
	return cmd
}

// Start starts marsd and returns when it has given a sign of life.
func (n *Node) Start() {
	n.t.Helper()
	before := n.Link("actual-" + n.Name + "/time")
	n.StartNoWait()
	n.WaitFor("marsd runs", func() bool { return n.Link("actual-"+n.Name+"/time") != before })
}

// StartNoWait starts marsd.
func (n *Node) StartNoWait() {
	n.t.Helper()
	out, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	cmd := n.daemon()
	cmd.Stdout, cmd.Stderr = out, out
	if err := start(cmd); err != nil {
		n.t.Fatalf("start marsd of %s: %v", n.Name, err)
	}
	done := make(chan struct{})
	n.cmd, n.done, n.exit, n.stopped = cmd, done, nil, false
	go func() { n.exit = cmd.Wait(); close(done) }()
}

// start starts a process that dies with this one, whichever way that ends: the
// kernel's parent-death signal belongs to the thread, so one thread starts all.
func start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	starterOnce.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range starter {
				f()
			}
		}()
	})
	res := make(chan error)
	starter <- func() { res <- cmd.Start() }
	return <-res
}

var (
	starterOnce sync.Once
	starter     = make(chan func())
)

// Running tells whether the daemon's process exists.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

func (n *Node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("%v to marsd of %s: %v", s, n.Name, err)
	}
}

// Kill is kill -9.
func (n *Node) Kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.done
}

// Freeze and Thaw are SIGSTOP and SIGCONT.
func (n *Node) Freeze() { n.t.Helper(); n.signal(syscall.SIGSTOP); n.stopped = true }
func (n *Node) Thaw()   { n.t.Helper(); n.signal(syscall.SIGCONT); n.stopped = false }

// stopLimit is how long a clean stop may take.
const stopLimit = 30 * time.Second

// Stop is SIGTERM; marsd must end by itself, without an error.
func (n *Node) Stop() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	select {
	case <-n.done:
		if n.exit != nil {
			n.t.Errorf("marsd of %s ended with %v after SIGTERM\n%s", n.Name, n.exit, n.logTail(30))
		}
	case <-time.After(stopLimit):
		n.signal(syscall.SIGQUIT) // prints the stacks
		<-n.done
		n.t.Errorf("marsd of %s did not stop within %v\n%s", n.Name, stopLimit, n.logTail(200))
	}
}

func (n *Node) end() {
	if n.cmd == nil {
		return
	}
	if !n.Running() {
		return
	}
	if n.stopped {
		n.Thaw()
	}
	n.Stop()
}

// Log is everything that the daemon has said.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.logFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *Node) logTail(lines int) string {
	list := strings.Split(strings.TrimRight(n.Log(), "\n"), "\n")
	return "--- log of " + n.Name + "\n" + strings.Join(list[max(0, len(list)-lines):], "\n")
}

// judgeLog fails the test for what must never be in a log, and prints the log of a
// failed test.
func (n *Node) judgeLog() {
	log := n.Log()
	for _, bad := range []string{"panic:", "DATA RACE", "fatal error:", "SIGSEGV"} {
		if i := strings.Index(log, bad); i >= 0 {
			n.t.Errorf("%q in the log of %s:\n%s", bad, n.Name, log[max(0, i-500):min(len(log), i+6000)])
		}
	}
	if n.t.Failed() {
		n.t.Logf("%s", n.logTail(60))
	}
}

// admLimit bounds one command.
const admLimit = 90 * time.Second

// Try runs marsadm and returns what it printed and its exit code.
func (n *Node) Try(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), admLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.Bin, "marsadm"), args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = n.env(), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		n.t.Fatalf("marsadm %s on %s does not end within %v\n%s%s", strings.Join(args, " "), n.Name, admLimit, out.String(), errs.String())
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		n.t.Fatalf("marsadm on %s: %v", n.Name, err)
	}
	if strings.Contains(errs.String(), "DATA RACE") || strings.Contains(errs.String(), "panic:") {
		n.t.Errorf("marsadm %s on %s:\n%s", strings.Join(args, " "), n.Name, errs.String())
	}
	return out.String(), errs.String(), code
}

// Adm runs marsadm, which must succeed, and returns what it printed.
func (n *Node) Adm(args ...string) string {
	n.t.Helper()
	stdout, stderr, code := n.Try(args...)
	if code != 0 {
		n.t.Fatalf("marsadm %s on %s: exit code %d\n%s%s", strings.Join(args, " "), n.Name, code, stdout, stderr)
	}
	return stdout
}

// View is the value of a macro.
func (n *Node) View(macro, res string) string {
	n.t.Helper()
	return strings.TrimSpace(n.Adm("view-"+macro, res))
}

// Link reads a link; a missing or deleted one is empty.
func (n *Node) Link(path string) string {
	v, err := os.Readlink(filepath.Join(n.Root(), path))
	if err != nil || v == ".deleted" {
		return ""
	}
	return v
}

// Res is a link of resource r0.
func (n *Node) Res(name string) string { return n.Link("resource-r0/" + name) }

// waitLimit is the deadline of all waits; only a hang reaches it.
const waitLimit = 180 * time.Second

// WaitFor waits for a predicate; if the daemon ends meanwhile there is nothing to
// wait for.
func (n *Node) WaitFor(what string, cond func() bool) {
	n.t.Helper()
	testutil.WaitFor(n.t, waitLimit, n.Name+": "+what, func() bool {
		if cond() {
			return true
		}
		if n.cmd != nil && !n.Running() {
			n.t.Fatalf("marsd of %s ended (%v) while waiting for: %s\n%s", n.Name, n.exit, what, n.logTail(30))
		}
		return false
	})
}

// WaitView waits until a macro of r0 has a value.
func (n *Node) WaitView(macro, want string) {
	n.t.Helper()
	var last string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("%s: view-%s is %q, want %q\n%s", n.Name, macro, last, want, n.Adm("view", "all"))
		}
	}()
	n.WaitFor("view-"+macro+" is "+want, func() bool {
		last = n.View(macro, "r0")
		return last == want
	})
}

// CreateResource makes r0 on a disk and waits for the device.
func (n *Node) CreateResource(disk string) {
	n.t.Helper()
	n.Adm("create-resource", "r0", disk)
	n.Adm("wait-resource", "r0", "is-device")
}

// JoinResource makes a further replica and waits until it is consistent.
func (n *Node) JoinResource(disk string) {
	n.t.Helper()
	n.Adm("join-resource", "r0", disk)
	n.WaitView("is-consistent", "1")
}

// Primary hands over to this node.
func (n *Node) Primary() {
	n.t.Helper()
	n.Adm("primary", "r0")
}

// Settle waits until b stands exactly where a has written to; a must be idle.
func Settle(a, b *Node) {
	a.t.Helper()
	b.WaitFor("stands where "+a.Name+" does", func() bool {
		va := highestVersion(a, a.Name)
		vb := highestVersion(b, b.Name)
		r := strings.Split(b.Res("replay-"+b.Name), ",")
		pos := strings.Split(va, ",")
		return va != "" && va == vb && len(r) == 3 && len(pos) >= 3 &&
			r[0] == pos[1] && r[1] == strings.SplitN(pos[2], ":", 2)[0] && r[2] == "0"
	})
}

// highestVersion is the version link with the highest number that host has
// written, as seen on n.
func highestVersion(n *Node, host string) string {
	links, _ := filepath.Glob(filepath.Join(n.Root(), "resource-r0", "version-*-"+host))
	best := ""
	for _, l := range links {
		if n.Res(filepath.Base(l)) != "" {
			best = filepath.Base(l) // sorted, and of the same width
		}
	}
	if best == "" {
		return ""
	}
	return n.Res(best)
}

// Client connects our own client to the device.
func (n *Node) Client() *nbdclient.Client { n.t.Helper(); return n.dial("r0") }

func (n *Node) dial(res string) *nbdclient.Client {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: n.Socket(res), Export: res})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}
