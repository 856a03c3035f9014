package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/internal/testutil"
)

// machine is a real systemd as process 1 of namespaces of its own, for the services
// of one node. The node's directory is all of the file system that it may write to.
type machine struct {
	n      *Node
	cmd    *exec.Cmd
	done   chan struct{}
	pid    int  // of systemd
	up     bool // it has come up
	cgroup string
}

// systemdPath is where Debian has it.
const systemdPath = "/lib/systemd/systemd"

// bootOwnCgroup runs outside: $1 is the group's name.
const bootOwnCgroup = `set -e
mount --make-rprivate /
mount -t tmpfs none /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/$1
echo $$ > /sys/fs/cgroup/$1/cgroup.procs
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child --mount-proc bash -c "$BOOT" boot
`

// bootSystemd runs in the namespaces: everything is read only, except the node's
// directory and what belongs to this boot.
const bootSystemd = `set -e
mount -t tmpfs none /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount --bind $DIR $DIR
mount --bind $DIR/hostname /etc/hostname
mount -o remount,bind,ro /
mount -t tmpfs none /run
mkdir -p /run/systemd/system /run/mars /run/lock
mount --bind $NBD /run/mars
mount -t tmpfs none /etc/systemd
printf '[Manager]\nDefaultEnvironment=ETC_MARSADM=%s MARS_PATH=%s\nDefaultStandardOutput=null\nDefaultTimeoutStopSec=10s\n' $DIR/etc $DIR/etc > /etc/systemd/system.conf
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind $DIR/console /dev/console
exec env -i PATH="$PATH" container=mars SYSTEMD_UNIT_PATH=/run/systemd/system:$DIR/base SYSTEMD_LOG_TARGET=console ` + systemdPath + ` --system --show-status=no
`

// needSystemd skips where this cannot be tried.
func needSystemd(t testing.TB) {
	t.Helper()
	needBlockLayer(t, "unshare", "nsenter", "systemctl", "fusermount3", "mkfs.ext4")
	if _, err := os.Stat(systemdPath); err != nil {
		skip(t, "systemd is not installed")
	}
}

// boot starts a machine; where the kernel or a container does not let systemd run,
// the test is skipped and says why.
func boot(n *Node) *machine {
	n.t.Helper()
	m := &machine{n: n, done: make(chan struct{}), cgroup: "m" + filepath.Base(n.c.dir) + "-" + n.Name}
	for _, target := range []string{"default", "basic", "sysinit", "shutdown", "umount", "final", "local-fs", "local-fs-pre"} {
		writeFile(n.t, n.Path("base/"+target+".target"), 0o644, "[Unit]\n")
	}
	writeFile(n.t, n.Path("hostname"), 0o644, n.Name+"\n")
	writeFile(n.t, n.Path("console"), 0o644, "")
	writeFile(n.t, n.Path("etc/empty"), 0o644, "")
	var said bytes.Buffer
	m.cmd = exec.Command("unshare", "--mount", "bash", "-c", bootOwnCgroup, "boot", m.cgroup)
	m.cmd.Env = append(os.Environ(), "BOOT="+bootSystemd, "DIR="+n.dir, "NBD="+n.nbdDir())
	m.cmd.Stdout, m.cmd.Stderr = &said, &said
	if err := start(m.cmd); err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = m.cmd.Wait(); close(m.done) }()
	n.t.Cleanup(m.off)
	ready := func() bool {
		if m.pid == 0 {
			m.pid = onlyChild(m.cmd.Process.Pid)
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.pid))
		if filepath.Base(exe) != "systemd" {
			return false
		}
		out, _ := m.run("systemctl", "is-system-running")
		return out == "running"
	}
	for end := time.Now().Add(60 * time.Second); !ready(); {
		select {
		case <-m.done:
			skip(n.t, "systemd cannot run in namespaces here: "+oneLine(said.String()))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			skip(n.t, "systemd does not come up in namespaces here: "+oneLine(m.console()))
		}
	}
	m.up = true
	// marsadm is called on that machine.
	n.Bin = n.Path("bin")
	writeFile(n.t, filepath.Join(n.Bin, "marsadm"), 0o755, "#!/bin/sh\nexec "+strings.Join(m.enter(), " ")+" "+filepath.Join(bin, "marsadm")+" \"$@\"\n")
	if err := os.Symlink(filepath.Join(bin, "marsd"), filepath.Join(n.Bin, "marsd")); err != nil && !errors.Is(err, fs.ErrExist) {
		n.t.Fatal(err)
	}
	n.Env = []string{"ETC_MARSADM=" + n.Path("etc"), "MARS_PATH=" + n.Path("etc")}
	return m
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// onlyChild is the child of a process, 0 without one.
func onlyChild(pid int) int {
	list, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range list {
		b, _ := os.ReadFile(name)
		_, rest, _ := strings.Cut(string(b), ") ") // behind the name: state, parent
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return child
		}
	}
	return 0
}

func (m *machine) enter() []string {
	return []string{"nsenter", "-t", strconv.Itoa(m.pid), "-m", "-p", "-u", "-i", "-C"}
}

// run runs a program on the machine.
func (m *machine) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	line := append(m.enter(), args...)
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// active is the state of a unit.
func (m *machine) active(unit string) string {
	out, _ := m.run("systemctl", "is-active", unit)
	return out
}

// cutFuse aborts what is still mounted by nbdfuse, on this machine only.
const cutFuse = `list=$(awk '$5 ~ "^/run/nbd-" { split($3, a, ":"); print a[2] }' /proc/self/mountinfo)
[ -n "$list" ] || exit 0
mkdir -p /run/fusectl && mount -t fusectl none /run/fusectl || exit 1
for c in $list; do [ ! -e /run/fusectl/$c ] || echo 1 > /run/fusectl/$c/abort; done`

func (m *machine) console() string {
	b, _ := os.ReadFile(m.n.Path("console"))
	return string(b)
}

// off ends the machine: all its processes and mounts are gone. What has not stopped
// by then is cut off from its device: a nbdfuse that is killed under a mounted file
// system would wait for itself for ever.
func (m *machine) off() {
	select {
	case <-m.done:
	default:
		if m.up {
			if out, err := m.run("sh", "-c", cutFuse); err != nil {
				m.n.t.Errorf("%s: fuse: %v: %s", m.n.Name, err, out)
			}
		}
		_ = m.cmd.Process.Kill() // --kill-child
		<-m.done
	}
	if m.n.t.Failed() && m.pid != 0 {
		m.n.t.Logf("--- console of %s\n%s", m.n.Name, m.console())
	}
	m.pid = 0
	script := `mount --make-rprivate / && mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 0
for i in $(seq 100); do
	[ -d /sys/fs/cgroup/$1 ] || exit 0
	find /sys/fs/cgroup/$1 -depth -type d -exec rmdir {} + 2>/dev/null
	sleep 0.05
done
exit 1`
	if out, err := exec.Command("unshare", "--mount", "bash", "-c", script, "off", m.cgroup).CombinedOutput(); err != nil {
		m.n.t.Errorf("the control group of %s is left: %v %s", m.n.Name, err, out)
	}
}

// stackTemplates are the services of docs/OPERATIONS.md: the device as a file, a file
// system on it, a program that uses that.
var stackTemplates = map[string]string{
	"nbd-@{res}.service": `[Unit]
StopWhenUnneeded=yes
[Service]
RuntimeDirectory=nbd-@{res}
ExecStart=nbdfuse /run/nbd-@{res}/disk nbd+unix:///@{res}?socket=@{socket}
ExecStartPost=sh -c 'until [ -s /run/nbd-@{res}/disk ]; do sleep 0.05; done'
ExecStop=fusermount3 -u /run/nbd-@{res}
TimeoutStartSec=20
`,
	"run-srv-@{res}.mount": `# DEFAULT_STOP
[Unit]
Requires=nbd-@{res}.service
After=nbd-@{res}.service
[Mount]
What=/run/nbd-@{res}/disk
Where=/run/srv/@{res}
Type=ext4
Options=loop
`,
	"app-@{res}.service": `# DEFAULT_START
[Unit]
Requires=run-srv-@{res}.mount
After=run-srv-@{res}.mount
[Service]
ExecStart=sh -c 'echo up @{host} >> /run/srv/@{res}/diary; exec sleep infinity'
ExecStop=sh -c 'echo down @{host} >> /run/srv/@{res}/diary'
`,
}

// TestSystemdReal: a file system and a program on it follow the primary, driven by
// real systemds, with nothing but what the documentation says.
func TestSystemdReal(t *testing.T) {
	t.Parallel()
	needSystemd(t)
	c := NewCluster(t, 2, WithArgs("--alive-window", "5s"))
	a, b := c.Nodes[0], c.Nodes[1]
	on := map[*Node]*machine{}
	for _, n := range c.Nodes {
		on[n] = boot(n)
		writeTemplates(n, watchTemplates, stackTemplates)
	}
	disk := a.Disk("disk", 16*mib)
	tool(t, "mkfs.ext4", "-q", disk)
	a.CreateResource(disk)
	b.JoinResource(b.Disk("disk", 16*mib))

	stack := []string{"app-r0.service", "run-srv-r0.mount", "nbd-r0.service"}
	// runsOn waits until the whole stack runs there and nowhere else.
	runsOn := func(n *Node) {
		t.Helper()
		var state string
		defer func() {
			if t.Failed() {
				t.Logf("services: %s", state)
			}
		}()
		testutil.WaitFor(t, serviceLimit, "services run on "+n.Name+" only", func() bool {
			state = ""
			good := true
			for _, o := range c.Nodes {
				for _, u := range stack {
					s := on[o].active(u)
					good = good && (s == "active") == (o == n)
					state += o.Name + " " + u + " " + s + "; "
				}
			}
			return good && n.Res("systemd-want") == n.Name && n.Res("primary") == n.Name
		})
	}
	diaryIs := func(n *Node, want string) {
		t.Helper()
		var got string
		defer func() {
			if t.Failed() {
				t.Logf("diary %q, want %q", got, want)
			}
		}()
		testutil.WaitFor(t, serviceLimit, "diary of the program", func() bool {
			got, _ = on[n].run("cat", "/run/srv/r0/diary")
			got = strings.ReplaceAll(got, "\n", ", ")
			return got == want
		})
	}

	a.Adm("set-systemd-unit", "r0", "DEFAULT")
	runsOn(a)
	b.Primary()
	runsOn(b)
	diaryIs(b, "up hosta, down hosta, up hostb")

	// Somebody sits in the file system: it cannot be unmounted, the role stays, and
	// the program goes on.
	line := append(on[b].enter(), "sh", "-c", "cd /run/srv/r0 && echo sits && exec sleep infinity")
	sitter := exec.Command(line[0], line[1:]...)
	out, err := sitter.StdoutPipe()
	if err == nil {
		err = start(sitter)
	}
	if err != nil {
		t.Fatal(err)
	}
	var word [5]byte
	if _, err := out.Read(word[:]); err != nil {
		t.Fatal(err)
	}
	_, said, code := a.Try("primary", "r0")
	if code != 1 || !strings.Contains(said, "services on hostb could not be stopped") || !strings.Contains(said, "wanted on hostb again") {
		t.Errorf("exit %d: %s", code, said)
	}
	runsOn(b)
	diaryIs(b, "up hosta, down hosta, up hostb, down hostb, up hostb")
	if _, err := on[b].run("pkill", "-9", "-P", "0", "-x", "sleep"); err != nil {
		t.Logf("end of who sits in the file system: %v", err)
	}
	_ = sitter.Process.Kill()
	_ = sitter.Wait()
	a.Primary()
	runsOn(a)

	// The machine of the primary starts anew: systemd stops the services, then all ends.
	// The units are gone with /run; the recipe for marsd's unit has them made again.
	if out, err := on[a].run("systemctl", "stop", "run-srv-r0.mount"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	testutil.WaitFor(t, serviceLimit, "the device is not needed any more", func() bool {
		return on[a].active("nbd-r0.service") != "active" && on[a].active("nbd-r0.service") != "deactivating"
	})
	on[a].off()
	a.Kill()
	on[a] = boot(a)
	a.Adm("systemd-trigger", "all")
	if s := on[a].active("app-r0.service"); s == "active" {
		t.Errorf("the program runs without a device: %s", s)
	}
	a.Start()
	runsOn(a)

	a.Adm("secondary", "r0")
	for _, u := range stack {
		if s := on[a].active(u); s == "active" {
			t.Errorf("%s is %s on a secondary", u, s)
		}
	}
	a.Adm("set-systemd-unit", "r0", "")
	if left, err := on[a].run("find", "/run/systemd/system", "-name", "*r0*"); left != "" || err != nil {
		t.Errorf("units are left: %q %v", left, err)
	}
}
