package cluster

import (
	"os"
	"path/filepath"
	"strings"

	"mars/symlinktree"
)

// touchTrigger rewrites the regular file resource-R/systemd-trigger when the intent
// about a resource's services has changed: the designated primary, or a systemd
// link. A systemd .path unit that watches the file then runs `marsadm
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

// wakesServices reports whether a change of path, below the root, concerns the
// services of a resource.
func wakesServices(path string) (symlinktree.Resource, bool) {
	dir, name, _ := strings.Cut(path, "/")
	r, ok := strings.CutPrefix(dir, "resource-")
	// data-H too: a node that joins may hear of its own membership after the units.
	return symlinktree.Resource(r), ok && (name == "primary" || strings.HasPrefix(name, "data-") || strings.HasPrefix(name, "systemd-") && name != "systemd-trigger")
}

// usesSystemd: the resource is stored here and has units. Nobody waits for a
// trigger of other resources.
func (n *Node) usesSystemd(r symlinktree.Resource) bool {
	_, units := n.tree.Get(r.SystemdStartPath())
	_, here := n.tree.Get(r.DataPath(n.cfg.Node))
	return units && here
}
