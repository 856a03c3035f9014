package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/testutil"
)

// watchTemplates are the pair of mars(5) that follows orders from elsewhere.
var watchTemplates = map[string]string{
	"mars-@{res}-trigger.path": `# WATCH_START
# ALWAYS_START
# ALSO=mars-@{res}-trigger.service
[Path]
PathModified=@{resdir}/systemd-trigger
`,
	"mars-@{res}-trigger.service": `[Service]
Type=oneshot
ExecStart=@{marsadm} --root=@{mars} --node=@{node} systemd-trigger-extern @{res}
`,
}

// serviceLimit is how long services may take to follow.
const serviceLimit = 60 * time.Second

func writeTemplates(n *Node, sets ...map[string]string) {
	n.t.Helper()
	for _, set := range sets {
		for name, text := range set {
			writeFile(n.t, n.Path("etc/systemd-templates/"+name), 0o644, text)
		}
	}
}

// TestSystemdStandIn: services follow the primary, driven by a .script, with a
// stand-in for systemd on each node that holds the device open like a program does.
func TestSystemdStandIn(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs("--alive-window", "5s"))
	a, b := c.Nodes[0], c.Nodes[1]
	d := &diary{}
	sys := map[*Node]*standIn{}
	for _, n := range c.Nodes {
		sys[n] = newStandIn(n, d)
		writeTemplates(n, watchTemplates, map[string]string{
			"stack-@{res}.script": "#!/bin/sh\n# DEFAULT_START\n# DEFAULT_STOP\n# ALSO=app-@{res}.service\nexec systemctl $1 app-@{res}.service\n",
			"app-@{res}.service":  "[Service]\nExecStart=hold @{dev}\n",
		})
	}
	a.CreateResource(a.Disk("disk", 8*mib))
	b.JoinResource(b.Disk("disk", 8*mib))

	seen := 0
	// happened waits until the services have done that since the last look, and no more.
	happened := func(what, want string) {
		t.Helper()
		var got string
		defer func() {
			if t.Failed() {
				t.Logf("%s: %q, want %q", what, got, want)
			}
		}()
		testutil.WaitFor(t, serviceLimit, what, func() bool {
			got, _ = d.since(seen)
			if got != want && len(got) >= len(want) {
				t.Fatalf("%s: the services did %q, want %q", what, got, want)
			}
			return got == want
		})
		_, seen = d.since(0)
	}
	runsOn := func(n *Node) {
		t.Helper()
		for _, o := range c.Nodes {
			if got := sys[o].isActive("app-r0.service"); got != (o == n) {
				t.Errorf("services run on %s: %v", o.Name, got)
			}
			want, name := "", "nobody"
			if n != nil {
				want, name = n.Name, n.Name
			}
			if w, p := o.Res("systemd-want"), o.Res("primary"); n != nil && (w != want || p != want) {
				t.Errorf("on %s services are wanted on %q, primary is %q, both should be %s", o.Name, w, p, name)
			}
		}
	}

	a.Adm("set-systemd-unit", "r0", "DEFAULT")
	happened("the services start where the primary is", "hosta starts life 1")
	a.WaitFor("the device is open", func() bool { return a.Res("actual-hosta/open-count") == "1" })

	b.Primary()
	happened("handover", "hosta stops; hostb starts life 2")
	runsOn(b)

	// The services there do not stop: the role stays, and so do they.
	sys[b].setStuck(true)
	_, said, code := a.Try("primary", "r0")
	if code != 1 || !strings.Contains(said, "services on hostb could not be stopped") || !strings.Contains(said, "wanted on hostb again") {
		t.Errorf("exit %d: %s", code, said)
	}
	sys[b].setStuck(false)
	b.WaitFor("the services are wanted here again", func() bool { return b.Res("systemd-want") == b.Name })
	happened("a refused handover", "")
	runsOn(b)
	if on := b.Res("actual-hostb/if-on") + b.Res("actual-hostb/is-primary"); on != "11" {
		t.Errorf("device and role of hostb: %q", on)
	}
	a.Primary()
	happened("handover after all", "hostb stops; hosta starts life 3")

	// The device goes with marsd, and its services are not told to stop; when it comes
	// back, they open it again.
	sys[a].setCalm(true)
	a.Kill()
	a.Start()
	happened("after kill -9", "hosta starts life 4")
	a.Stop()
	a.Start()
	happened("after a restart", "hosta starts life 5")
	sys[a].setCalm(false)
	runsOn(a)

	// Orders from elsewhere.
	b.Adm("set-systemd-want", "r0", "(none)")
	happened("the services are wanted nowhere", "hosta stops")
	b.Adm("set-systemd-want", "r0", "hosta")
	happened("the services are wanted again", "hosta starts life 6")
	a.Adm("secondary", "r0")
	happened("the primary leaves", "hosta stops")
	runsOn(nil)
	b.Primary()
	happened("from nobody", "hostb starts life 7")
	runsOn(b)

	b.Adm("set-systemd-unit", "r0", "")
	happened("without units", "hostb stops")
	if left, _ := filepath.Glob(filepath.Join(sys[b].dir, "*")); len(left) > 0 {
		t.Errorf("units are left: %q", left)
	}
	if _, err := os.Stat(b.Path("etc/systemd-generated-scripts/stack-r0.script")); err == nil {
		t.Error("the script is left")
	}
}
