package adm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func mergeVerbs() []verb {
	return []verb{
		{name: "merge-cluster", args: "PEER [IP[:PORT]]", help: "make one cluster of this one and PEER's; both have the same secret", min: 1, max: 2, run: mergeCluster(false)},
		{name: "merge-cluster-check", args: "PEER [IP[:PORT]]", help: "tell whether that would work, and change nothing", min: 1, max: 2, run: mergeCluster(true)},
		{name: "merge-cluster-list", help: "list uuid, addresses and resources of this cluster", readOnly: true, run: mergeList},
		{name: "create-uuid", help: "give a tree without identity one", hidden: true, noCluster: true, mounted: true, run: createUUID},
		{name: "lowlevel-delete-host", args: "HOST", help: "forget the address of a host", min: 1, max: 1, hidden: true, run: deleteHost},
	}
}

// foreign is what a probe has found out about another cluster.
type foreign struct {
	uuid      string
	ips       map[string]string
	resources []string
}

// readProbe is pure: what marsd has written below probe-H.
func readProbe(t macro.Tree, host string) foreign {
	f := foreign{ips: map[string]string{}}
	for _, e := range t.List("probe-" + host) {
		name := filepath.Base(e.Path)
		if h, ok := symlinktree.HostOf(name, "ip"); ok {
			f.ips[h] = e.Value
		} else if r, ok := symlinktree.HostOf(name, "resource"); ok {
			f.resources = append(f.resources, r)
		} else if name == "uuid" {
			f.uuid = e.Value
		}
	}
	sortNatural(f.resources)
	return f
}

// checkMerge is pure: names must be unique in the whole. The original refuses
// disjoint names instead and accepts common ones.
func checkMerge(t macro.Tree, f foreign) error {
	for _, h := range macro.Hosts(t) {
		if ip, ok := t.Get(symlinktree.IPPath(h)); ok && f.ips[h] != "" && f.ips[h] != ip {
			return refuse("rename one of them", "both clusters have a host %s: %s here, %s there", h, ip, f.ips[h])
		}
	}
	var both []string
	for _, r := range f.resources {
		if has(t, symlinktree.Resource(r).SizePath()) {
			both = append(both, r)
		}
	}
	if len(both) > 0 {
		return refuse("leave and create one of each pair under another name", "both clusters have resources named: %s", words(both))
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func mergeCluster(onlyCheck bool) func(context.Context, *session, []string) error {
	return func(ctx context.Context, s *session, args []string) error {
		peer := args[0]
		if err := symlinktree.ValidName(peer); err != nil {
			return usage("PEER %q: %v", peer, err)
		}
		if peer == s.host {
			return refuse("name a node of the other cluster", "a cluster cannot be merged with itself")
		}
		addr, err := s.peerAddress(ctx, peer, args[1:])
		if err != nil {
			return err
		}
		if err := s.checkSecret(); err != nil {
			return err
		}
		if err := s.needDaemon(); err != nil {
			return err
		}
		if s.opt.dryRun {
			s.print("DRY_RUN: would look at the cluster of %s at %s, and go on if it can be merged\n", peer, addr)
			return nil
		}
		f, err := s.probe(ctx, peer, addr)
		if err != nil {
			return err
		}
		uuid, _ := s.tree.Get(symlinktree.UUIDPath)
		if f.uuid == uuid {
			s.print("%s is a member of this cluster already: uuid %s\n", peer, uuid)
			return nil
		}
		if err := checkMerge(s.tree.Snapshot(), f); err != nil {
			return err
		}
		s.print("cluster of %s: uuid %s, hosts %s, resources %s\n", peer, f.uuid, words(sortedKeys(f.ips)), words(f.resources))
		if onlyCheck {
			s.print("it can be merged with this one\n")
			return nil
		}
		if err := s.backup(); err != nil {
			return err
		}
		return s.merge(ctx, peer, addr, uuid, f)
	}
}

// peerAddress is the address of another node: given, known, or looked up.
func (s *session) peerAddress(ctx context.Context, peer string, args []string) (string, error) {
	ip := s.opt.peerIPs[peer]
	if len(args) > 0 {
		ip = args[0]
	}
	if ip == "" {
		ip, _ = s.tree.Get(symlinktree.IPPath(peer))
	}
	if ip == "" {
		return s.lookup(ctx, peer)
	}
	return ip, checkAddress(ip)
}

// probe lets marsd look at another cluster.
func (s *session) probe(ctx context.Context, peer, addr string) (foreign, error) {
	dir := "probe-" + s.node
	got, failed := symlinktree.ProbePath(s.node, "got-"+peer), symlinktree.ProbePath(s.node, "error-"+peer)
	for _, e := range s.tree.List(dir) {
		if err := s.tree.Unlink(e.Path); err != nil {
			return foreign{}, err
		}
	}
	// The answer repeats the token: it is not that to an older question.
	token := s.tree.Clock().Now().String()
	if err := s.tree.Touch(symlinktree.LocalPath(s.node, "probe"), strings.Join([]string{peer, addr, token}, " ")); err != nil {
		return foreign{}, err
	}
	where := s.command + " " + peer + " on " + s.node
	err := s.await(ctx, where, peer+" has told what its cluster has", []string{dir}, func(t *symlinktree.Snapshot) (bool, string) {
		v, _ := t.Get(got)
		return v == token || has(t, failed), "marsd has no answer yet"
	})
	if err != nil {
		return foreign{}, err
	}
	if why, ok := s.tree.Get(failed); ok {
		return foreign{}, refuse("address, firewall, and the secret, which must be the same in both clusters", "%s at %s cannot be asked: %s", peer, addr, why)
	}
	f := readProbe(s.tree.Snapshot(), s.node)
	if f.uuid == "" || f.uuid == symlinktree.AnyUUID {
		return f, refuse("wait until it has joined one", "%s at %s belongs to no cluster itself", peer, addr)
	}
	return f, nil
}

// mergeRequest is the link that lets marsd talk to a node of another cluster.
func mergeRequest(node string) string { return symlinktree.LocalPath(node, "merge") }

// planMerge: nodes that are down now keep their old uuid; the links with the uuids
// admit them later.
func planMerge(t macro.Tree, node, peer, addr, uuid string, f foreign) []op {
	batch := []op{
		set(symlinktree.TodoGlobalPath("uuid-"+uuid), "1"),
		set(symlinktree.TodoGlobalPath("uuid-"+f.uuid), "1"),
		set(mergeRequest(node), peer),
	}
	if !has(t, symlinktree.IPPath(peer)) {
		batch = append(batch, setAt(symlinktree.IPPath(peer), addr, preliminary))
	}
	return batch
}

func (s *session) merge(ctx context.Context, peer, addr, uuid string, f foreign) error {
	if err := s.apply(planMerge(s.tree.Snapshot(), s.node, peer, addr, uuid, f)); err != nil {
		return err
	}
	err := s.awaitMerge(ctx, peer, addr, f)
	// Whatever has come of it: nobody else is let in.
	return errors.Join(err, s.apply([]op{unlink(mergeRequest(s.node))}))
}

// awaitMerge waits until each side knows the hosts of the other.
func (s *session) awaitMerge(ctx context.Context, peer, addr string, f foreign) error {
	where := s.command + " " + peer + " on " + s.node
	err := s.await(ctx, where, "the tree of "+peer+" has arrived", []string{"", "ips"}, func(t *symlinktree.Snapshot) (bool, string) {
		for _, h := range sortedKeys(f.ips) {
			if !has(t, symlinktree.IPPath(h)) {
				return false, h + " is not known here yet"
			}
		}
		return true, ""
	})
	if err != nil {
		return err
	}
	for {
		theirs, err := s.probe(ctx, peer, addr)
		if err != nil {
			return err
		}
		if _, err := s.tree.Rescan("", "ips"); err != nil {
			return err
		}
		mine, _ := s.tree.Get(symlinktree.UUIDPath)
		missing := ""
		for _, h := range symlinktree.Hosts(s.tree) {
			if theirs.ips[h] == "" {
				missing = h
			}
		}
		if missing == "" && theirs.uuid == mine {
			s.done("one cluster: uuid %s, hosts %s\n", mine, words(symlinktree.Hosts(s.tree)))
			return nil
		}
		if err := pause(ctx, 5*s.env.Poll); err != nil {
			if !errors.Is(err, errDeadline) {
				return err
			}
			return &timeoutError{where: where, what: peer + " knows this cluster", last: "it does not know " + orMissing(missing), after: s.opt.timeout}
		}
	}
}

// backup writes all links into a file, one a line, for the case that a merge turns
// out to be a mistake.
func (s *session) backup() error {
	if s.opt.backupDir == "" {
		return nil
	}
	var b strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		for _, e := range s.tree.List(dir) {
			fmt.Fprintf(&b, "%s -> %s @%s\n", e.Path, e.Value, e.Stamp)
		}
		for _, d := range s.tree.Dirs(dir) {
			walk(filepath.Join(dir, filepath.Base(d)))
		}
	}
	walk("")
	name := filepath.Join(s.opt.backupDir, fmt.Sprintf("mars-tree-%s-%s.txt", s.node, s.env.Now().UTC().Format("20060102T150405")))
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	s.print("all links of this node are in %s\n", name)
	return nil
}

// mergeList prints what the original prints.
func mergeList(_ context.Context, s *session, _ []string) error {
	abs := func(rel string) string { return filepath.Join(s.tree.Root(), rel) }
	uuid, _ := s.tree.Get(symlinktree.UUIDPath)
	s.print("UUID: %s -> %s\nIPs:\n", abs(symlinktree.UUIDPath), uuid)
	for _, h := range symlinktree.Hosts(s.tree) {
		ip, _ := s.tree.Get(symlinktree.IPPath(h))
		s.print("%s -> %s\n", abs(symlinktree.IPPath(h)), ip)
	}
	s.print("RESOURCEs:\n")
	for _, r := range s.known() {
		s.print("%s\n", abs(symlinktree.Resource(r).Dir()))
	}
	return nil
}

func createUUID(_ context.Context, s *session, _ []string) error {
	if uuid, ok := s.tree.Get(symlinktree.UUIDPath); ok {
		return refuse("a cluster keeps its identity for ever", "there is a uuid already: %s", uuid)
	}
	return s.apply([]op{set(symlinktree.UUIDPath, s.host+"_"+s.tree.Clock().Now().String())})
}

func deleteHost(_ context.Context, s *session, args []string) error {
	h := args[0]
	if err := symlinktree.ValidName(h); err != nil {
		return usage("HOST %q: %v", h, err)
	}
	if !has(s.tree, symlinktree.IPPath(h)) {
		return refuse("hosts of this cluster: "+words(symlinktree.Hosts(s.tree)), "no host %s in the cluster", h)
	}
	var stores []string
	for _, r := range macro.Resources(s.tree) {
		if has(s.tree, symlinktree.Resource(r).DataPath(h)) {
			stores = append(stores, r)
		}
	}
	if len(stores) > 0 && !s.forced() {
		return refuse(fmt.Sprintf("marsadm leave-resource --host=%s --force for each, or --force", h), "%s is a member of resources: %s", h, words(stores))
	}
	return s.apply([]op{del(symlinktree.IPPath(h))})
}
