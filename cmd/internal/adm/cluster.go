package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
	"mars/transport"
)

// admVersion is what the original calls the version of marsadm; it is also a link
// in the tree.
const admVersion = "2.9"

// preliminary is the stamp of links that any real one shall replace.
const preliminary = symlinktree.Stamp(1_000_000_000)

func clusterVerbs() []verb {
	return []verb{
		{name: "create-cluster", help: "make a new cluster of this one node", noCluster: true, mounted: true, run: createCluster},
		{name: "join-cluster", args: "PEER [IP[:PORT]]", help: "make this node a member of PEER's cluster", min: 1, max: 2,
			noCluster: true, mounted: true, run: joinCluster},
		{name: "leave-cluster", help: "take this node out of its cluster, or a join-cluster back that has not come about", joining: true, run: leaveCluster},
		{name: "lowlevel-ls-host-ips", help: "list hosts and addresses", readOnly: true, hidden: true, run: listHostIPs},
		{name: "lowlevel-set-host-ip", args: "HOST [IP[:PORT]]", help: "change the address of a host", min: 1, max: 2, hidden: true, run: setHostIP},
	}
}

// clusterDirs are the directories of a node without resources.
func clusterDirs(host string) []op {
	return []op{mkdir("ips"), mkdir("userspace"), mkdir("defaults"), mkdir("defaults-" + host), mkdir("todo-global"), mkdir("actual-" + host)}
}

func hostDefaults(host string) []op {
	return []op{
		set(symlinktree.HostDefaultsPath(host, "sync-limit"), "0"),
		set(symlinktree.HostDefaultsPath(host, "sync-pref-list"), symlinktree.NoHost),
	}
}

func createCluster(ctx context.Context, s *session, _ []string) error {
	if hosts := symlinktree.Hosts(s.tree); len(hosts) > 0 && !s.forced() {
		return refuse("this node is part of a cluster already; to start anew use an empty root", "%s/ips has hosts: %s", s.tree.Root(), words(hosts))
	}
	if uuid, ok := s.tree.Get(symlinktree.UUIDPath); ok {
		return refuse("a cluster keeps its identity for ever; to start anew use an empty root", "there is a cluster already: uuid %s", uuid)
	}
	if err := symlinktree.ValidName(s.host); err != nil {
		return usage("host name: %v", err)
	}
	ip, err := s.ownAddress(ctx, s.host)
	if err != nil {
		return err
	}
	if err := s.ensureSecret(); err != nil {
		return err
	}
	if err := s.apply(planCreateCluster(s.host, ip, s.tree.Clock().Now())); err != nil {
		return err
	}
	s.done("cluster created: %s at %s. Next: start marsd here; on other nodes, with a copy of the secret: marsadm join-cluster %s %s\n",
		s.host, ip, s.host, ip)
	return nil
}

func planCreateCluster(host, ip string, now symlinktree.Stamp) []op {
	batch := append(clusterDirs(host),
		set(symlinktree.ActualPath(host, "marsadm-version"), admVersion),
		set(symlinktree.UUIDPath, host+"_"+now.String()))
	batch = append(batch, hostDefaults(host)...)
	return append(batch, set(symlinktree.IPPath(host), ip))
}

// secretPlace is the file of the cluster secret; or inline is true when its
// content is in the environment.
func (s *session) secretPlace() (file string, inline bool) {
	file, text := transport.SecretFromEnv(s.env.Getenv("MARS_SECRET"))
	switch {
	case s.opt.secret != "":
		return s.opt.secret, false
	case file != "":
		return file, false
	case text != "":
		return "", true
	}
	return defaultSecret, false
}

// ensureSecret makes the secret if there is none.
func (s *session) ensureSecret() error {
	file, inline := s.secretPlace()
	if inline {
		return s.checkSecret()
	}
	if err := transport.CheckOutside(s.tree.Root(), file); err != nil {
		return refuse("keep it elsewhere: --secret=FILE", "the secret would be inside the tree: %v", err)
	}
	switch _, err := os.Lstat(file); {
	case err == nil:
		return s.checkSecret()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case s.opt.dryRun:
		s.print("DRY_RUN: would create secret '%s'\n", file)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if err := transport.WriteSecret(file, transport.NewSecret()); err != nil {
		return err
	}
	s.print("made the cluster secret %s: copy it to every node that shall join\n", file)
	return nil
}

// checkSecret makes sure that this node has a usable secret.
func (s *session) checkSecret() error {
	file, inline := s.secretPlace()
	if inline {
		if _, err := transport.ParseSecret(s.env.Getenv("MARS_SECRET")); err != nil {
			return refuse("", "MARS_SECRET: %v", err)
		}
		return nil
	}
	if err := transport.CheckOutside(s.tree.Root(), file); err != nil {
		return refuse("keep it elsewhere: --secret=FILE", "the secret is inside the tree: %v", err)
	}
	_, err := transport.LoadSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse("copy it from a node of the cluster (mode 0600), or give its content in MARS_SECRET", "there is no cluster secret %s", file)
	}
	if err != nil {
		return refuse("copy it again from a node of the cluster (mode 0600)", "%v", err)
	}
	return nil
}

// ownAddress finds the address of a host of this machine.
func (s *session) ownAddress(ctx context.Context, host string) (string, error) {
	if s.opt.ip != "" {
		return s.opt.ip, checkAddress(s.opt.ip)
	}
	if ip := s.opt.peerIPs[host]; ip != "" {
		return ip, checkAddress(ip)
	}
	if ip, ok := s.tree.Get(symlinktree.IPPath(host)); ok {
		return ip, nil
	}
	if host == s.node {
		list, err := s.env.Addresses()
		if err == nil && len(list) > 0 {
			return list[0], nil
		}
	}
	return s.lookup(ctx, host)
}

func (s *session) lookup(ctx context.Context, host string) (string, error) {
	list, err := s.env.Lookup(ctx, host)
	for _, ip := range list {
		if checkAddress(ip) == nil {
			return ip, nil
		}
	}
	if err == nil {
		err = errors.New("no address")
	}
	return "", refuse(fmt.Sprintf("give it: --ip-%s=ADDR[:PORT]", host), "the address of %s is not known: %v", host, err)
}

// checkAddress accepts ADDR, ADDR:PORT and [ADDR6]:PORT.
func checkAddress(v string) error {
	if net.ParseIP(v) != nil {
		return nil
	}
	host, port, err := net.SplitHostPort(v)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || net.ParseIP(host) == nil {
		return usage("%q is not an address: ADDR, ADDR:PORT or [ADDR6]:PORT", v)
	}
	return nil
}

// joinInput is what a plan for joining a cluster depends on, beside the tree.
type joinInput struct {
	host, ip     string
	peer, peerIP string // peerIP is empty if it must be known already
	force        bool
}

// checkJoinCluster is pure.
func checkJoinCluster(t macro.Tree, in joinInput) error {
	switch uuid, ok := t.Get(symlinktree.UUIDPath); {
	case in.peer == in.host:
		return refuse("name a node of the cluster that this one shall join", "a node cannot join itself")
	case ok && uuid != symlinktree.AnyUUID:
		return refuse("leave it first (marsadm leave-cluster) and use an empty root", "%s is a member of a cluster already: uuid %s", in.host, uuid)
	}
	if list := macro.Resources(t); len(list) > 0 && !in.force {
		return refuse("use an empty root, or --force to keep them", "there are resources here: %s", words(list))
	}
	known, ok := t.Get(symlinktree.IPPath(in.peer))
	if ok && in.peerIP != "" && known != in.peerIP && !asked(t) {
		return refuse("give the right one, or none", "%s is known at %s, not %s", in.peer, known, in.peerIP)
	}
	return nil
}

// asked: this node has asked to join a cluster, and that has not come about. What it was
// told then may be wrong.
func asked(t macro.Tree) bool {
	uuid, _ := t.Get(symlinktree.UUIDPath)
	return uuid == symlinktree.AnyUUID
}

// planTakeBack takes back what a join-cluster has written that has not come about, but
// for the hosts in keep. The tombstones are as weak as the links were: a real one, of the
// cluster that is joined later, wins.
func planTakeBack(t macro.Tree, paths []string, keep ...string) []op {
	var batch []op
	for _, p := range paths {
		e, ok := t.Entry(p)
		if _, live := t.Get(p); ok && live && !slices.Contains(keep, p) {
			batch = append(batch, setAt(p, symlinktree.Deleted, e.Stamp+1))
		}
	}
	return batch
}

// addresses are the links of the hosts.
func addresses(t macro.Tree) (paths []string) {
	for _, h := range macro.Hosts(t) {
		paths = append(paths, symlinktree.IPPath(h))
	}
	return paths
}

func planJoinCluster(t macro.Tree, in joinInput) []op {
	batch := clusterDirs(in.host)
	if asked(t) { // with another peer
		batch = append(batch, planTakeBack(t, addresses(t), symlinktree.IPPath(in.host), symlinktree.IPPath(in.peer))...)
	}
	if e, _ := t.Entry(symlinktree.UUIDPath); e.Value == "" || e.IsDeleted() {
		batch = append(batch, setAt(symlinktree.UUIDPath, symlinktree.AnyUUID, max(preliminary, e.Stamp+1)))
	}
	for _, o := range []op{
		setAt(symlinktree.IPPath(in.host), in.ip, preliminary),
		setAt(symlinktree.IPPath(in.peer), in.peerIP, preliminary),
		setAt(symlinktree.ActualPath(in.host, "marsadm-version"), admVersion, preliminary),
	} {
		old, known := t.Get(o.path)
		if o.value == "" || known && (old == o.value || !asked(t)) {
			continue
		}
		if e, was := t.Entry(o.path); was {
			o.stamp = max(o.stamp, e.Stamp+1)
		}
		batch = append(batch, o)
	}
	return batch
}

func joinCluster(ctx context.Context, s *session, args []string) error {
	in := joinInput{host: s.host, peer: args[0], force: s.forced()}
	if err := symlinktree.ValidName(in.peer); err != nil {
		return usage("PEER %q: %v", in.peer, err)
	}
	if len(args) > 1 {
		in.peerIP = args[1]
	} else {
		in.peerIP = s.opt.peerIPs[in.peer]
	}
	if in.peerIP != "" {
		if err := checkAddress(in.peerIP); err != nil {
			return err
		}
	}
	if err := checkJoinCluster(s.tree, in); err != nil {
		return err
	}
	var err error
	if _, known := s.tree.Get(symlinktree.IPPath(in.peer)); !known && in.peerIP == "" {
		if in.peerIP, err = s.lookup(ctx, in.peer); err != nil {
			return err
		}
	}
	if in.ip, err = s.ownAddress(ctx, in.host); err != nil {
		return err
	}
	if err := s.checkSecret(); err != nil {
		return err
	}
	if !s.opt.noWait {
		if err := s.needDaemon(); err != nil {
			var r *Refusal
			if errors.As(err, &r) {
				r.Hint += "; or write the request now with --no-wait and start marsd afterwards"
			}
			return err
		}
	}
	if err := s.apply(planJoinCluster(s.tree.Snapshot(), in)); err != nil {
		return err
	}
	if s.opt.noWait {
		// Nobody will be here to do it later.
		if err := s.apply(append([]op{set(symlinktree.IPPath(in.host), in.ip)}, hostDefaults(in.host)...)); err != nil {
			return err
		}
		s.done("request written. Next: start marsd; it joins the cluster of %s\n", in.peer)
		return nil
	}
	return s.finishJoin(ctx, in)
}

// finishJoin waits until marsd has fetched the peer's tree, and then writes the
// own address with a real stamp, so that it wins over an older membership.
func (s *session) finishJoin(ctx context.Context, in joinInput) error {
	var again time.Time
	where := s.command + " " + in.peer + " on " + in.host
	err := s.await(ctx, where, "the tree of "+in.peer+" has arrived", []string{"", "ips"}, func(t *symlinktree.Snapshot) (bool, string) {
		if now := time.Now(); now.After(again) {
			again = now.Add(time.Second)
			// What fails now is asked for again in a second.
			_, _ = s.pull(in.peer), s.trigger(3)
		}
		uuid, ok := t.Get(symlinktree.UUIDPath)
		return ok && uuid != symlinktree.AnyUUID, s.joinTrouble(t, in)
	})
	var late *timeoutError
	if errors.As(err, &late) {
		return &joinError{late, fmt.Sprintf("with the right address: marsadm join-cluster %s ADDR; to give up: marsadm leave-cluster", in.peer)}
	}
	if err != nil {
		return err
	}
	batch := append([]op{set(symlinktree.IPPath(in.host), in.ip)}, hostDefaults(in.host)...)
	if err := s.apply(batch); err != nil {
		return err
	}
	if err := s.trigger(3); err != nil {
		return err
	}
	uuid, _ := s.tree.Get(symlinktree.UUIDPath)
	s.done("joined the cluster %s\n", uuid)
	return nil
}

// joinTrouble is what marsd knows about a join that does not come about.
func (s *session) joinTrouble(t *symlinktree.Snapshot, in joinInput) string {
	said := func(key string) string {
		v, _ := t.Get(symlinktree.ActualPath(in.host, "msg-"+key))
		if m, err := symlinktree.ParseMessage(v); err == nil && v != symlinktree.MessageOK {
			return m.Text
		}
		return ""
	}
	addr, _ := t.Get(symlinktree.IPPath(in.peer))
	switch why, secret := said("needed-connection-with-"+in.peer), said("err-secret"); {
	case secret != "":
		return "marsd says: " + secret
	case !daemonRuns(t, s.node, s.tree.Clock().Now()):
		return "marsd has stopped: its last log lines tell why"
	case why != "":
		return "marsd says: " + why
	}
	return fmt.Sprintf("marsd has not reached %s at %s yet; check address, secret and firewall", in.peer, addr)
}

// joinError is a join that has not come about in time.
type joinError struct {
	*timeoutError
	hint string
}

func (e *joinError) Unwrap() error { return e.timeoutError }

// checkLeaveCluster is pure: a host leaves without resources, or by force.
func checkLeaveCluster(t macro.Tree, host string, force bool) error {
	var mine []string
	for _, r := range macro.Resources(t) {
		if _, ok := t.Get(symlinktree.Resource(r).DataPath(host)); ok {
			mine = append(mine, r)
		}
	}
	if len(mine) > 0 && !force {
		return refuse("marsadm leave-resource first, or --force", "%s is a member of resources: %s", host, words(mine))
	}
	if _, ok := t.Get(symlinktree.IPPath(host)); !ok && !force {
		return refuse("", "%s is not a member of the cluster", host)
	}
	return nil
}

func planLeaveCluster(t macro.Tree, host, node string) []op {
	var batch []op
	for _, h := range macro.Hosts(t) {
		if p := symlinktree.ActualPath(h, "msg-needed-connection-with-"+host); h != host && has(t, p) {
			batch = append(batch, del(p))
		}
	}
	if host != node {
		// A dead host cannot take back what it said.
		for _, e := range t.List(symlinktree.ActualDir(host)) {
			batch = append(batch, del(e.Path))
		}
	}
	return append(batch, del(symlinktree.IPPath(host)))
}

func has(t macro.Tree, path string) bool { _, ok := t.Get(path); return ok }

func leaveCluster(ctx context.Context, s *session, _ []string) error {
	if asked(s.tree) {
		if err := s.apply(planTakeBack(s.tree.Snapshot(), append(addresses(s.tree), symlinktree.UUIDPath))); err != nil {
			return err
		}
		s.done("the request to join a cluster is taken back\n")
		return nil
	}
	if err := checkLeaveCluster(s.tree, s.host, s.forced()); err != nil {
		return err
	}
	if _, err := s.waitCluster(ctx, "", 3); err != nil && !s.forced() {
		return err
	}
	if err := checkLeaveCluster(s.tree, s.host, s.forced()); err != nil {
		return err
	}
	if err := s.apply(planLeaveCluster(s.tree.Snapshot(), s.host, s.node)); err != nil {
		return err
	}
	if err := s.apply([]op{del(symlinktree.TodoGlobalPath("deleted-" + s.host))}); err != nil {
		return err
	}
	ctx, cancel := s.within(ctx, leaveGrace)
	defer cancel()
	if _, err := s.waitCluster(ctx, "", 3); err != nil {
		s.warn("%s has left, but not every peer has confirmed it yet: %v", s.host, err)
	}
	s.done("%s has left the cluster\n", s.host)
	return nil
}

// leaveGrace is how long a node that has left waits to see that the others know.
const leaveGrace = 10 * time.Second

func listHostIPs(_ context.Context, s *session, _ []string) error {
	for _, h := range symlinktree.Hosts(s.tree) {
		ip, _ := s.tree.Get(symlinktree.IPPath(h))
		s.print("%s %s\n", h, ip)
	}
	return nil
}

func setHostIP(ctx context.Context, s *session, args []string) error {
	if err := symlinktree.ValidName(args[0]); err != nil {
		return usage("HOST %q: %v", args[0], err)
	}
	ip := s.opt.peerIPs[args[0]]
	if len(args) > 1 {
		ip = args[1]
	}
	if ip == "" {
		var err error
		if ip, err = s.lookup(ctx, args[0]); err != nil {
			return err
		}
	}
	if err := checkAddress(ip); err != nil {
		return err
	}
	return s.apply([]op{set(symlinktree.IPPath(args[0]), ip)})
}
