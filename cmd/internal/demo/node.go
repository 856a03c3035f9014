package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mars/cmd/internal/adm"
	"mars/symlinktree"
)

// node is one machine of the demo: a directory with everything that it owns, and
// the daemon's process while it runs.
type node struct {
	name string
	addr string // ADDR or ADDR:PORT, as in its ips link
	dir  string
	exe  string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
}

func (n *node) root() string   { return filepath.Join(n.dir, "mars") }
func (n *node) secret() string { return filepath.Join(n.dir, "secret") }
func (n *node) nbdDir() string { return filepath.Join(n.dir, "run") }
func (n *node) disk() string   { return filepath.Join(n.dir, "disk") }
func (n *node) socket(res string) string {
	return filepath.Join(n.nbdDir(), res+".sock")
}
func (n *node) logFile() string { return filepath.Join(n.dir, "marsd.log") }

// env is what tells marsd and marsadm which machine they are on.
func (n *node) env() []string {
	return []string{"MARS_ROOT=" + n.root(), "MARS_NODE=" + n.name, "MARS_SECRET=" + n.secret()}
}

// prepare makes the directories, the disk, and a file for a shell to play with.
func (n *node) prepare(size int64) error {
	for _, d := range []string{n.root(), n.nbdDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(n.disk(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	var b strings.Builder
	for _, e := range n.env() {
		fmt.Fprintf(&b, "export %s\n", shellWord(e))
	}
	return os.WriteFile(filepath.Join(n.dir, "env"), []byte(b.String()), 0o600)
}

// daemonArgs are the arguments of marsd beside what the environment says.
func (n *node) daemonArgs() []string {
	return []string{"--bind", n.addr, "--nbd-dir", n.nbdDir()}
}

// start starts the daemon. Unless keep is set it dies with the demo, even if that
// is killed; Run stays on one thread for that.
func (n *node) start(keep bool) error {
	out, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(n.exe, n.daemonArgs()...)
	cmd.Env = append(append(environ(), n.env()...), "NO_COLOR=1")
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own: Ctrl-C is for the demo, which then stops the daemons.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start marsd of %s: %w", n.name, err)
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // its end is what matters; the log tells the reason
	}(n.done)
	return nil
}

// environ is our environment without what would lead the daemons astray.
func environ() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "MARS_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			env = append(env, e)
		}
	}
	return env
}

func (n *node) running() bool {
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

func (n *node) pid() int { return n.cmd.Process.Pid }

// kill ends the daemon the hard way.
func (n *node) kill() {
	if n.running() {
		_ = n.cmd.Process.Kill()
		<-n.done
	}
}

// stop ends it the polite way, or the hard way if that takes longer than timeout.
func (n *node) stop(timeout time.Duration) {
	if !n.running() {
		return
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(timeout):
		n.kill()
	}
}

// marsadm runs a command of marsadm as on that machine.
func (n *node) marsadm(ctx context.Context, args ...string) (stdout, stderr []byte, code int) {
	var out, errs bytes.Buffer
	code = adm.Run(ctx, args, &out, &errs, adm.Env{
		Getenv: func(key string) string {
			for _, e := range n.env() {
				if v, ok := strings.CutPrefix(e, key+"="); ok {
					return v
				}
			}
			if strings.HasPrefix(key, "MARS_") {
				return ""
			}
			return os.Getenv(key)
		},
		SyncAll: func() {}, // the other filesystems of this machine are none of our business
	})
	return out.Bytes(), errs.Bytes(), code
}

// get reads a link of the node's tree, as `readlink` does.
func (n *node) get(path string) string {
	v, err := os.Readlink(filepath.Join(n.root(), path))
	if err != nil || v == symlinktree.Deleted {
		return ""
	}
	return v
}

// links are lines of `ls -l` of the node's tree.
func (n *node) links(paths ...string) []link {
	list := make([]link, 0, len(paths))
	for _, p := range paths {
		v := n.get(p)
		if v == "" {
			v = "(no such link)"
		}
		list = append(list, link{n.name + ":/mars/" + p, v})
	}
	return list
}

// logTail is the end of the daemon's log, for the report of a failure.
func (n *node) logTail(lines int) string {
	f, err := os.Open(n.logFile())
	if err != nil {
		return ""
	}
	defer f.Close()
	all, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	list := strings.Split(strings.TrimRight(string(all), "\n"), "\n")
	return strings.Join(list[max(0, len(list)-lines):], "\n")
}

// Where the demo's nodes live.
const (
	firstHost   = 11 // 127.0.0.11
	defaultPort = 7777
)

// addresses chooses one address for each node: the standard port, so that the
// commands are short, or another one if somebody uses that.
func addresses(count int) ([]string, error) {
	hosts := make([]string, count)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("127.0.0.%d", firstHost+i)
	}
	if portsFree(hosts, defaultPort) {
		return hosts, nil
	}
	for port := 17777; port < 32768; port += 2 {
		if portsFree(hosts, port) {
			for i := range hosts {
				hosts[i] = net.JoinHostPort(hosts[i], strconv.Itoa(port))
			}
			return hosts, nil
		}
	}
	return nil, errors.New("no free ports on 127.0.0.11 and the following addresses")
}

// portsFree tells whether gossip and data ports can be bound on all hosts.
func portsFree(hosts []string, port int) bool {
	for _, h := range hosts {
		for _, p := range []int{port, port + 1} {
			addr := net.JoinHostPort(h, strconv.Itoa(p))
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return false
			}
			l.Close()
			if p != port {
				continue
			}
			u, err := net.ListenPacket("udp", addr)
			if err != nil {
				return false
			}
			u.Close()
		}
	}
	return true
}
