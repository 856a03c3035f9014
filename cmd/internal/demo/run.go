package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"mars/internal/nbdclient"
)

const (
	defaultSize = 128 << 20
	resource    = "r0"
	// limit of each wait; a machine that is this slow is broken.
	waitLimit = 60 * time.Second
	poll      = 20 * time.Millisecond
)

// scenario is one run of the demo.
type scenario struct {
	opt   Options
	ui    *ui
	dir   string
	nodes []*node
	app   *application
}

func (s *scenario) alpha() *node { return s.nodes[0] }
func (s *scenario) beta() *node  { return s.nodes[1] }
func (s *scenario) gamma() *node { return s.nodes[2] }

// Run plays the demo and prints it to out. It returns nil if everything was as it
// should be.
func Run(ctx context.Context, o Options, out io.Writer) (err error) {
	if o.Size == 0 {
		o.Size = defaultSize
	}
	if err := checkSize(o.Size); err != nil {
		return err
	}
	// The kernel kills the daemons when the thread that started them ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := &scenario{opt: o, ui: newUI(out, o.Terminal, o.Terminal && !o.NoColor)}
	if err := s.prepare(); err != nil {
		return errors.Join(err, s.cleanup())
	}
	s.introduce()
	err = s.play(ctx)
	s.ui.end()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return errors.Join(err, s.cleanup())
	default:
		s.ui.fail(err)
		s.showLogs()
	}
	text := "what was written on alpha was read on beta, and three disks are equal"
	if err != nil {
		text = err.Error()
	}
	s.ui.verdict(err == nil, text)
	if o.Keep {
		s.farewell()
		return err
	}
	return errors.Join(err, s.cleanup())
}

// steps of the play.
func (s *scenario) play(ctx context.Context) error {
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Three machines, each with a tree, a disk and the daemon, become a cluster", s.formCluster},
		{"alpha makes a resource of its disk, and a device appears", s.createResource},
		{"An ext4 filesystem is written onto the device, through NBD", s.writeImage},
		{"beta and gamma become replicas, while an application keeps writing", s.joinResource},
		{"gamma is killed, the application does not notice, gamma comes back", s.killAndRecover},
		{"Planned handover: beta becomes primary, alpha is its secondary", s.handover},
		{"Everything is read back on beta and compared", s.readBack},
		{"The three disks are compared, byte by byte", s.compareDisks},
	} {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		s.ui.begin(step.title)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *scenario) prepare() error {
	exe := s.opt.Exe
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return fmt.Errorf("find the marsd binary: %w", err)
		}
	}
	if err := s.makeDir(); err != nil {
		return err
	}
	if s.opt.Keep {
		// `go run` removes its binary at the end; the person goes on with a copy.
		var err error
		if exe, err = s.install(exe); err != nil {
			return err
		}
	}
	names := []string{"alpha", "beta", "gamma"}
	addrs, err := addresses(len(names))
	if err != nil {
		return err
	}
	for i, name := range names {
		n := &node{name: name, addr: addrs[i], dir: filepath.Join(s.dir, name), exe: exe}
		s.nodes = append(s.nodes, n)
		if err := n.prepare(s.opt.Size); err != nil {
			return err
		}
	}
	return s.fillDisk()
}

// maxSocketPath is what the kernel accepts for the path of a unix socket.
const maxSocketPath = 107

func (s *scenario) makeDir() error {
	longest := len("/alpha/run/" + resource + ".sock")
	if s.opt.Dir != "" {
		dir, err := filepath.Abs(s.opt.Dir)
		if err != nil {
			return err
		}
		if len(dir)+longest > maxSocketPath {
			return fmt.Errorf("directory %s: its name is too long for the unix sockets inside it", dir)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		s.dir = dir
		return nil
	}
	parent := os.TempDir()
	if len(parent)+longest+len("/mars-demo-0123456789") > maxSocketPath {
		parent = "/tmp"
	}
	var err error
	s.dir, err = os.MkdirTemp(parent, "mars-demo-")
	return err
}

// install copies the binary and puts a marsadm beside it.
func (s *scenario) install(exe string) (string, error) {
	bin := filepath.Join(s.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return "", err
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	to := filepath.Join(bin, "marsd")
	script := fmt.Sprintf("#!/bin/sh\nexec %s demo marsadm \"$@\"\n", shellWord(to))
	return to, errors.Join(os.WriteFile(to, b, 0o700), os.WriteFile(filepath.Join(bin, "marsadm"), []byte(script), 0o700))
}

// fillDisk gives alpha's disk a content, so that a full sync has something to copy.
func (s *scenario) fillDisk() error {
	var seed [32]byte
	copy(seed[:], "a disk that has been in use")
	s.app = &application{image: make([]byte, s.opt.Size), rnd: rand.NewChaCha8(seed)}
	if _, err := s.app.rnd.Read(s.app.image); err != nil {
		return err
	}
	// Every disk has free space: three quarters of each MiB behind the filesystem
	// are left empty here. Full sync sees that and does not send it.
	const mib = 1 << 20
	for off := imageSize + mib/4; off < len(s.app.image); off += mib {
		clear(s.app.image[off : off+3*mib/4])
	}
	f, err := os.OpenFile(s.alpha().disk(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(s.app.image)
	return errors.Join(err, f.Close())
}

func (s *scenario) introduce() {
	u := s.ui
	u.line("%s  three nodes on this machine, one replicated block device", u.paint(bold, "marsd demo"))
	u.line("")
	for _, n := range s.nodes {
		u.line("   %s %s  %s", u.paint(green, n.name+"#"), strings.Repeat(" ", 5-len(n.name)),
			u.paint(dim, fmt.Sprintf("MARS_ROOT=%s MARS_NODE=%s MARS_SECRET=%s", n.root(), n.name, n.secret())))
	}
	u.line("")
	u.say("%s", u.paint(dim, "In what follows the prompt says on which node a command is typed, /mars stands for its MARS_ROOT."))
}

// marsadm shows and runs a command; it must succeed.
func (s *scenario) marsadm(ctx context.Context, n *node, args ...string) error {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = shellWord(a)
	}
	s.ui.command(n.name, "marsadm "+strings.Join(words, " "))
	return s.quiet(ctx, n, true, args...)
}

// quiet runs a command without showing it; its output appears if show is set.
func (s *scenario) quiet(ctx context.Context, n *node, show bool, args ...string) error {
	stdout, stderr, code := n.marsadm(ctx, args...)
	if show || code != 0 {
		s.ui.output(withoutDigests(stdout), 40)
		s.ui.output(stderr, 20)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if code != 0 {
		return fmt.Errorf("marsadm %s on %s ended with exit code %d", strings.Join(args, " "), n.name, code)
	}
	return nil
}

// withoutDigests leaves out the lines of a view that tell the same on every node.
func withoutDigests(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("used-")) {
			out = append(out, line...)
		}
	}
	return out
}

// view is a number that marsadm shows.
func (s *scenario) view(ctx context.Context, n *node, macro string) int64 {
	stdout, _, code := n.marsadm(ctx, "view-"+macro, resource)
	v, err := strconv.ParseInt(strings.TrimSpace(string(stdout)), 10, 64)
	if code != 0 || err != nil {
		return -1
	}
	return v
}

// until waits for a condition; look also tells what it sees.
func (s *scenario) until(ctx context.Context, what string, look func() (done bool, seen string)) error {
	deadline := time.Now().Add(waitLimit)
	for {
		done, seen := look()
		if done {
			return nil
		}
		if err := s.app.failed(); err != nil {
			return fmt.Errorf("the application's I/O failed: %w", err)
		}
		for _, n := range s.nodes {
			if n.cmd != nil && !n.running() {
				return fmt.Errorf("marsd of %s has ended while waiting until %s", n.name, what)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not reached within %v: %s (%s)", waitLimit, what, seen)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

func (s *scenario) startDaemon(n *node) error {
	s.ui.command(n.name, "marsd "+strings.Join(n.daemonArgs(), " ")+" &")
	if err := n.start(s.opt.Keep); err != nil {
		return err
	}
	s.ui.output([]byte(fmt.Sprintf("pid %d", n.pid())), 1)
	return nil
}

func (s *scenario) export(n *node) nbdclient.Options {
	return nbdclient.Options{Network: "unix", Address: n.socket(resource), Export: resource}
}

// showLogs helps to find out what went wrong.
func (s *scenario) showLogs() {
	for _, n := range s.nodes {
		if tail := n.logTail(15); tail != "" {
			s.ui.say("the end of %s:", n.logFile())
			s.ui.output([]byte(tail), 15)
		}
	}
}

// cleanup ends all daemons and removes the directory.
func (s *scenario) cleanup() error {
	if s.app != nil && s.app.stop != nil {
		_ = s.app.finish()
	}
	done := make(chan struct{})
	for _, n := range s.nodes {
		go func() { n.stop(5 * time.Second); done <- struct{}{} }()
	}
	for range s.nodes {
		<-done
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// farewell tells how to play with a cluster that was kept.
func (s *scenario) farewell() {
	u := s.ui
	u.line("")
	u.say("The cluster is still running. To play with it:")
	u.line("")
	u.line("     export PATH=%s:$PATH", shellWord(filepath.Join(s.dir, "bin")))
	u.line("     . %s      %s", shellWord(filepath.Join(s.beta().dir, "env")), u.paint(dim, "# be beta; alpha and gamma have such a file, too"))
	u.line("     marsadm view all")
	u.line("     ls -l $MARS_ROOT/resource-%s", resource)
	u.line("     tail -f %s", shellWord(s.beta().logFile()))
	u.line("     qemu-img info 'nbd+unix:///%s?socket=%s'", resource, s.beta().socket(resource))
	u.line("")
	u.say("To end it:")
	u.line("")
	var pids []string
	for _, n := range s.nodes {
		if n.running() {
			pids = append(pids, strconv.Itoa(n.pid()))
		}
	}
	u.line("     kill %s; rm -r %s", strings.Join(pids, " "), shellWord(s.dir))
}
