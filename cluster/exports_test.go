package cluster

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mars/symlinktree"
)

// The socket that a killed marsd has left is removed at the start, before a device is there; one that
// somebody serves, and one of no resource of this tree, stay. The tree says where the socket is.
func TestStaleSockets(t *testing.T) {
	t.Parallel()
	n := newTestNodes(t, "a")["a"]
	n.makeDisk('A')
	n.create("r0")
	n.put("resource-r1/size", "4096", "resource-r0/primary", symlinktree.NoHost) // no device yet
	if err := os.MkdirAll(n.cfg.NBDDir, 0o700); err != nil {
		t.Fatal(err)
	}
	left := func(name string, alive bool) string {
		path := filepath.Join(n.cfg.NBDDir, name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if alive {
			t.Cleanup(func() { l.Close() })
			return path
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		return path
	}
	stale, foreign, served := left("r0.sock", false), left("other.sock", false), left("r1.sock", true)
	n.start()
	n.awaitLink("resource-r0/actual-a/"+symlinktree.NBDSocketLink, stale)
	if _, err := os.Lstat(stale); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", stale, err)
	}
	for _, path := range []string{foreign, served} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if text := n.logs.String(); !strings.Contains(text, "removed the socket") || !strings.Contains(text, "r1.sock") {
		t.Error("says nothing of them")
	}
	n.put("resource-r0/primary", "a")
	c := n.device("r0")
	defer c.Close()
	if _, err := os.Lstat(stale); err != nil {
		t.Errorf("no socket although the device is there: %v", err)
	}
}
