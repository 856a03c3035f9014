package cluster

import (
	"os"
	"path/filepath"
	"strings"

	"mars/symlinktree"
)

// touchTrigger rewrites the regular file resource-R/systemd-trigger when the intent
// about a resource's services has changed: the designated primary, or a systemd
// link; and when the device, without which they cannot run, has come. A systemd .path unit that watches the file then runs `marsadm
// systemd-trigger-extern R`, so that services move on every node, whoever gave the
// order (reference marsadm.md 11).
func (n *Node) touchTrigger(r symlinktree.Resource) {
	name := filepath.Join(n.cfg.Root, r.SystemdTriggerPath())
	if st, err := os.Lstat(name); err == nil && !st.Mode().IsRegular() {
		return // a link or a directory of that name is not ours
	}
	text := n.tree.Clock().Now().String() + "\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		n.log.Warn("cannot tell systemd of a change", keyResource, r, keyPath, name, keyErr, err)
	}
}

// wakesServices reports whether a change of a link concerns the services of a
// resource on node.
func wakesServices(e symlinktree.Entry, node string) (symlinktree.Resource, bool) {
	dir, name, _ := strings.Cut(e.Path, "/")
	r, ok := strings.CutPrefix(dir, "resource-")
	switch {
	case !ok:
		return "", false
	case name == "actual-"+node+"/if-on":
		// After a restart of the machine or of marsd, too.
		return symlinktree.Resource(r), symlinktree.Switch(e.Value)
	}
	// data-H too: a node that joins may hear of its own membership after the units.
	return symlinktree.Resource(r), name == "primary" || strings.HasPrefix(name, "data-") || strings.HasPrefix(name, "systemd-") && name != "systemd-trigger"
}

// usesSystemd: the resource is stored here and has units. Nobody waits for a
// trigger of other resources.
func (n *Node) usesSystemd(r symlinktree.Resource) bool {
	_, units := n.tree.Get(r.SystemdStartPath())
	_, here := n.tree.Get(r.DataPath(n.cfg.Node))
	return units && here
}
