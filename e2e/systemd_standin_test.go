package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/nbdclient"
)

// standInSocket in the environment makes this binary a stand-in for systemctl: its
// arguments go to the test that listens there, which answers.
const standInSocket = "MARS_E2E_SYSTEMCTL"

func init() {
	name := os.Getenv(standInSocket)
	if name == "" {
		return
	}
	var answer struct {
		Code int
		Text string
	}
	c, err := net.Dial("unix", name)
	if err == nil {
		err = json.NewEncoder(c).Encode(os.Args[1:])
	}
	if err == nil {
		err = json.NewDecoder(c).Decode(&answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprint(os.Stderr, answer.Text)
	os.Exit(answer.Code)
}

// diary is what the services of all nodes did, in its order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// since are the lines from the first n on, and how many there are now.
func (d *diary) since(n int) (string, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines[n:], "; "), len(d.lines)
}

// standIn is the systemd of one node. It knows the units as they were at the last
// daemon-reload. A service with "ExecStart=hold" is a program that opens the device,
// counts its lives in the first block, and closes it; a path unit runs the program of
// its service when its file has been modified.
type standIn struct {
	n     *Node
	diary *diary
	dir   string // of the units

	mu     sync.Mutex
	loaded map[string]string
	active map[string]bool
	held   *nbdclient.Client
	stuck  bool                 // the service does not stop
	calm   bool                 // that there is no device is no surprise
	seen   map[string]time.Time // when the files of path units were modified

	wg   sync.WaitGroup
	stop chan struct{}
}

func newStandIn(n *Node, d *diary) *standIn {
	n.t.Helper()
	s := &standIn{n: n, diary: d, dir: n.Path("units"), loaded: map[string]string{}, active: map[string]bool{}, seen: map[string]time.Time{}, stop: make(chan struct{})}
	for _, dir := range []string{s.dir, n.Path("etc/systemd-templates")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	socket := n.Path("systemctl.sock")
	writeFile(n.t, n.Path("systemctl"), 0o755, "#!/bin/sh\n"+standInSocket+"="+socket+" exec "+self+" \"$@\"\n")
	n.Env = []string{"PATH=" + n.dir + ":" + os.Getenv("PATH"), "SYSTEMD_TARGET_DIR=" + s.dir, "ETC_MARSADM=" + n.Path("etc"), "MARS_PATH=" + n.Path("etc")}
	l, err := net.Listen("unix", socket)
	if err != nil {
		n.t.Fatal(err)
	}
	s.wg.Add(2)
	go s.serve(l)
	go s.watch()
	n.t.Cleanup(func() {
		close(s.stop)
		l.Close()
		s.wg.Wait()
		s.drop()
	})
	return s
}

func writeFile(t testing.TB, name string, mode os.FileMode, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *standIn) serve(l net.Listener) {
	defer s.wg.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer c.Close()
			var args []string
			if err := json.NewDecoder(bufio.NewReader(c)).Decode(&args); err != nil {
				return
			}
			code, text := s.systemctl(args)
			_ = json.NewEncoder(c).Encode(map[string]any{"Code": code, "Text": text})
		}()
	}
}

func (s *standIn) systemctl(args []string) (code int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	verb, unit := args[0], args[len(args)-1]
	if verb == "daemon-reload" {
		s.loaded = map[string]string{}
		list, _ := filepath.Glob(filepath.Join(s.dir, "*"))
		for _, f := range list {
			if b, err := os.ReadFile(f); err == nil {
				s.loaded[filepath.Base(f)] = string(b)
			}
		}
		return 0, ""
	}
	body, known := s.loaded[unit]
	if !known {
		return 5, "Unit " + unit + " not found.\n"
	}
	holds := strings.Contains(body, "ExecStart=hold")
	switch {
	case verb == "start" && holds:
		return s.hold(unit)
	case verb == "stop" && holds:
		return s.letGo(unit)
	case verb == "start" || verb == "stop":
		if verb == "start" && !s.active[unit] {
			s.seen[unit] = modified(body) // what comes from now on counts
		}
		s.active[unit] = verb == "start"
	}
	return 0, ""
}

// hold starts the service: the device must be there.
func (s *standIn) hold(unit string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var b [1]byte
	if s.held != nil {
		if err := s.held.Read(ctx, b[:], 0); err == nil {
			return 0, "" // it runs
		}
		s.held.Close()
		s.held = nil
	}
	c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: s.n.Socket("r0"), Export: "r0"})
	if err == nil {
		if err = c.Read(ctx, b[:], 0); err == nil {
			b[0]++
			err = c.Write(ctx, b[:], 0)
		}
		if err != nil {
			c.Close()
		}
	}
	if err != nil {
		if !s.calm {
			s.diary.note("%s has no device: %v", s.n.Name, err)
		}
		return 1, "Job for " + unit + " failed.\n"
	}
	s.held, s.active[unit] = c, true
	s.diary.note("%s starts life %d", s.n.Name, b[0])
	return 0, ""
}

// letGo stops the service: its last write must still get onto the device.
func (s *standIn) letGo(unit string) (int, string) {
	if s.held == nil {
		return 0, ""
	}
	if s.stuck {
		return 1, "Job for " + unit + " failed.\n"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.held.Write(ctx, []byte{1}, 1)
	if err == nil {
		err = s.held.Flush(ctx)
	}
	s.held.Close()
	s.held, s.active[unit] = nil, false
	if err != nil {
		s.diary.note("%s has lost the device before the end: %v", s.n.Name, err)
		return 1, err.Error() + "\n"
	}
	s.diary.note("%s stops", s.n.Name)
	return 0, ""
}

// drop is the service dying.
func (s *standIn) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		s.held.Close()
		s.held = nil
	}
}

func (s *standIn) isActive(unit string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[unit] && (s.held != nil || !strings.Contains(s.loaded[unit], "ExecStart=hold"))
}

func (s *standIn) setStuck(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = on
}

// setCalm is for a time in which marsd is killed: orders that it has passed on just
// before may still be on their way.
func (s *standIn) setCalm(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calm = on
}

// watch is what systemd does for path units: modified files run services.
func (s *standIn) watch() {
	defer s.wg.Done()
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		s.mu.Lock()
		run := map[string][]string{}
		for unit, body := range s.loaded {
			if !s.active[unit] || filepath.Ext(unit) != ".path" {
				continue
			}
			if m := modified(body); !m.Equal(s.seen[unit]) {
				s.seen[unit] = m
				run[unit] = strings.Fields(setting(s.loaded[strings.TrimSuffix(unit, ".path")+".service"], "ExecStart"))
			}
		}
		s.mu.Unlock()
		for unit, line := range run {
			if len(line) == 0 {
				s.diary.note("%s: %s has no service", s.n.Name, unit)
				continue
			}
			cmd := exec.Command(line[0], line[1:]...)
			cmd.Env = s.n.env()
			if out, err := cmd.CombinedOutput(); err != nil && !s.expected() {
				s.diary.note("%s: %s: %v: %s", s.n.Name, strings.Join(line, " "), err, out)
			}
		}
	}
}

// expected: marsadm may fail.
func (s *standIn) expected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck || s.calm
}

// modified is the time of the file that a path unit watches.
func modified(body string) time.Time {
	st, err := os.Stat(setting(body, "PathModified"))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// setting is the value of a directive.
func setting(body, key string) string {
	_, rest, _ := strings.Cut(body, "\n"+key+"=")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}
