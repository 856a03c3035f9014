package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mars/symlinktree"
)

func TestWakesServices(t *testing.T) {
	for link, want := range map[string]bool{
		"resource-r0/actual-a/if-on=1": true, "resource-r0/actual-a/if-on=0": false, "resource-r0/actual-b/if-on=1": false, "resource-r0/actual-a/is-primary=1": false,
		"resource-r0/primary": true, "resource-r0/data-a": true, "resource-r0/systemd-want": true, "resource-r0/systemd-start-unit": true,
		"resource-r0/systemd-trigger": false, "resource-r0/userspace/primary": false, "resource-r0/size": false, "ips/primary": false,
	} {
		path, value, _ := strings.Cut(link, "=")
		if r, got := wakesServices(symlinktree.Entry{Path: path, Value: value}, "a"); got != want || got && r != "r0" {
			t.Errorf("%s: %v %q", link, got, r)
		}
	}
}

// An order about services, given as a link, rewrites the file that systemd watches:
// for resources with units that are stored here, not for others.
func TestSystemdTrigger(t *testing.T) {
	a := newTestNodes(t, "a")["a"]
	a.start()
	read := func(r string) string {
		data, _ := os.ReadFile(filepath.Join(a.cfg.Root, "resource-"+r, "systemd-trigger"))
		return string(data)
	}
	a.put("resource-r0/data-a", "/nowhere", "resource-r0/systemd-start-unit", "x.service", "resource-other/systemd-start-unit", "x.service")
	a.await("a trigger", func() bool { return read("r0") != "" })
	before := read("r0")
	a.put("resource-other/systemd-want", "a", "resource-r0/systemd-want", "b")
	a.await("another trigger", func() bool { return read("r0") != before })
	if read("other") != "" {
		t.Error("a trigger for a resource that is not here")
	}
}
