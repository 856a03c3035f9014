package adm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

// minDisk is what a disk must exceed.
const minDisk = 65536

// renumber is how far the log numbers of a re-created resource are from those of
// its former life.
const renumber = 100000

func resourceVerbs() []verb {
	return []verb{
		{name: "create-resource", args: "RES DISK [DEVICE [SIZE]]", help: "make a new resource of a disk; this node becomes its primary",
			res: oneRes, min: 1, max: 3, single: true, newResource: true, mounted: true, each: createResource},
		{name: "join-resource", args: "RES DISK [DEVICE [SIZE]]", help: "make a disk of this node a replica; its content is lost",
			res: oneRes, min: 1, max: 3, single: true, newResource: true, mounted: true, each: joinResource},
		{name: "leave-resource", args: "RES", help: "give up the replica of this node; its disk stays as it is", res: oneRes, each: leaveResource},
		{name: "delete-resource", args: "RES", help: "remove what is left of a resource that nobody stores any more", res: oneRes,
			anyResource: true, each: deleteResource},
	}
}

// diskArgs are the words of create-resource and join-resource.
type diskArgs struct {
	disk, device string
	size         int64 // wanted, 0 = not given
}

func parseDiskArgs(res string, args []string) (diskArgs, error) {
	a := diskArgs{disk: args[0], device: res}
	if !filepath.IsAbs(a.disk) {
		return a, usage("disk %q is not an absolute path", a.disk)
	}
	if err := symlinktree.ValidValue(a.disk); err != nil {
		return a, usage("disk: %v", err)
	}
	if len(args) > 1 {
		a.device = args[1]
		if _, err := ParseSize(a.device); err == nil && len(args) == 2 && a.device != res {
			return a, &usageError{msg: fmt.Sprintf("%q is a size, but the third word is the name of the device", a.device),
				hint: fmt.Sprintf("the size is the fourth word: %s %s %s %s", res, a.disk, res, a.device)}
		}
	}
	if err := symlinktree.ValidName(a.device); err != nil {
		return a, usage("device name %q: %v", a.device, err)
	}
	if len(args) > 2 {
		size, err := ParseSize(args[2])
		if err != nil {
			return a, usage("%v", err)
		}
		if a.size = size; size == 0 {
			return a, usage("size 0 makes no sense")
		}
	}
	return a, nil
}

// measure opens the disk as marsd will, to see that it is there and free.
func (j *job) measure(disk string) (int64, error) {
	size, err := j.env.DiskSize(disk, !j.forced())
	if err != nil {
		return 0, refuse("name a block device or a regular file that nothing else uses", "disk %s cannot be used: %v", disk, err)
	}
	return size, nil
}

// createInput is what a plan for a new resource depends on, beside the tree.
type createInput struct {
	res  symlinktree.Resource
	host string
	diskArgs
	diskSize int64
	logs     []logfile.Info // in the resource's directory on this node
	force    bool
}

// createPlan is the outcome of planCreate.
type createPlan struct {
	size    int64
	first   int // number of the first log
	batches [][]op
}

// planCreate is pure: it refuses, or yields the batches that make a resource
// (reference symlink-tree 4.18).
func planCreate(t macro.Tree, in createInput) (createPlan, error) {
	r, h := in.res, in.host
	p := createPlan{size: in.size}
	if p.size == 0 {
		p.size = in.diskSize / pageSize * pageSize
	}
	if err := checkCreate(t, in, p.size); err != nil {
		return p, err
	}
	old, _ := t.Get(r.MaxNrPath())
	p.first = 1
	if n := macro.Number(old); n > 0 {
		if p.first = int(n) + renumber; p.first > 999_999_999 {
			return p, refuse("use another name", "its log numbers are used up (maxnr %d)", n)
		}
	}
	n := p.first
	before := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: n - 1, Origin: h}
	now := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: n, Origin: h, Prev: before.Head()}
	sizeText := strconv.FormatInt(p.size, 10)
	second := []op{
		mkdir(r.Path("userspace")), mkdir(r.Path("defaults")), mkdir(r.Path("defaults-" + h)), mkdir(r.Path("local-" + h)),
		mkdir(r.ActualDir(h)), mkdir(r.TodoDir(h)), mkdir("userspace"),
		set(r.DataPath(h), in.disk),
		set(r.DevicePath(h), in.device),
		set(r.ActualPath(h, "if-on"), "0"),
		set(r.TodoPath(h, symlinktree.SwitchAttach), "0"),
		set(r.TodoPath(h, symlinktree.SwitchConnect), "1"),
		set(r.TodoPath(h, symlinktree.SwitchSync), "1"),
		set(r.TodoPath(h, symlinktree.SwitchAllowReplay), "1"),
		set(r.PrimaryPath(), h),
		set(r.LastPrimaryPath(), h),
		set(r.SyncStatusPath(h), sizeText),
		set(r.ReplayPath(h), symlinktree.Replay{Seq: n, Origin: h}.String()),
		set(r.VersionPath(n-1, h), before.String()),
		set(r.VersionPath(n, h), now.String()),
	}
	if n > 1 {
		second = append(second, set(r.SkipCheckPath(h), strconv.Itoa(n)))
	}
	second = append(second, set(r.MaxNrPath(), strconv.Itoa(n)))
	p.batches = [][]op{
		// The log comes first: of two commands at the same time one fails there, before
		// it has changed anything.
		{createLog(r.LogPath(n, h)), set(r.SizePath(), sizeText)},
		second,
		{set(r.TodoPath(h, symlinktree.SwitchAttach), "1")},
	}
	return p, nil
}

func checkCreate(t macro.Tree, in createInput, size int64) error {
	r, h := in.res, in.host
	if err := checkDiskUse(t, r, h, in.diskArgs); err != nil {
		return err
	}
	switch {
	case size > in.diskSize:
		return refuse("enlarge the disk, or ask for less", "size %d is more than the %d bytes of %s", size, in.diskSize, in.disk)
	case size <= minDisk:
		return refuse("", "%d bytes are too few for a resource: more than %d are needed", size, minDisk)
	case in.force:
		return nil
	}
	if err := checkNew(t, r); err != nil {
		return err
	}
	return checkLeftovers(t, r, h, in.logs, 0)
}

// checkNew refuses to make a resource that has members.
func checkNew(t macro.Tree, r symlinktree.Resource) error {
	for _, m := range macro.Peers(t, string(r)) {
		if has(t, r.ReplayPath(m)) {
			return refuse(fmt.Sprintf("marsadm join-resource %s DISK makes this node a further member", r), "it exists already: members %s",
				words(macro.Members(t, string(r))))
		}
	}
	return nil
}

// checkDiskUse refuses a disk or a device name that another resource of the host has.
func checkDiskUse(t macro.Tree, r symlinktree.Resource, host string, a diskArgs) error {
	for _, name := range macro.Resources(t) {
		o := symlinktree.Resource(name)
		if o == r {
			continue
		}
		if d, ok := t.Get(o.DataPath(host)); ok && d == a.disk {
			return refuse("name another disk", "disk %s is used by resource %s", a.disk, o)
		}
		if d, ok := t.Get(o.DevicePath(host)); ok && d == a.device {
			return refuse("name another device", "device name %s is used by resource %s", a.device, o)
		}
	}
	return nil
}

// checkLeftovers refuses to start over logs and version links of a former life
// whose number is at least from.
func checkLeftovers(t macro.Tree, r symlinktree.Resource, host string, logs []logfile.Info, from int) error {
	var found []string
	for _, l := range logs {
		if l.Name.Host == host && l.Name.Seq >= from {
			found = append(found, l.Name.String())
		}
	}
	for _, e := range t.List(r.Dir()) {
		if n, h, ok := symlinktree.NumberedOf(filepath.Base(e.Path), "version"); ok && h == host && n >= from {
			found = append(found, filepath.Base(e.Path))
		}
	}
	if len(found) == 0 {
		return nil
	}
	if len(found) > 3 {
		found = append(found[:3], "...")
	}
	return refuse(fmt.Sprintf("marsadm log-purge-all %s, or --force", r), "there are leftovers of a former membership: %s", strings.Join(found, " "))
}

func createResource(_ context.Context, j *job) error {
	a, err := parseDiskArgs(string(j.r), j.args)
	if err != nil {
		return err
	}
	in := createInput{res: j.r, host: j.host, diskArgs: a, logs: j.logs(j.r), force: j.forced()}
	// What can be refused without touching the disk comes first; an existing resource uses its disk.
	if !j.forced() {
		if err := checkNew(j.tree, j.r); err != nil {
			return err
		}
	}
	if err := checkDiskUse(j.tree, j.r, j.host, a); err != nil {
		return err
	}
	if in.diskSize, err = j.measure(a.disk); err != nil {
		return err
	}
	p, err := planCreate(j.tree.Snapshot(), in)
	if err != nil {
		return err
	}
	for _, b := range p.batches {
		if err := j.apply(b); err != nil {
			return err
		}
	}
	if err := j.trigger(3); err != nil {
		return err
	}
	if rest := in.diskSize % pageSize; a.size == 0 && rest != 0 {
		j.done("the last %d bytes of %s are not used: sizes are multiples of %d\n", rest, a.disk, pageSize)
	}
	j.done("created resource %s: %d bytes on %s, primary %s\n", j.r, p.size, a.disk, j.host)
	if !j.opt.dryRun && !j.daemonRuns() {
		j.warn("marsd is not running on %s: the device will appear when it is started", j.node)
	}
	return nil
}

// checkDelete is pure: nobody may store the resource any more.
func checkDelete(t macro.Tree, r symlinktree.Resource, force bool) error {
	if peers := macro.Peers(t, string(r)); len(peers) > 0 && !force {
		return refuse(fmt.Sprintf("marsadm leave-resource %s on each of them (deactivate guests), or --force", r), "it is still in use by: %s", words(peers))
	}
	return nil
}

// planDelete puts a tombstone over everything below the resource but maxnr, which
// keeps the log numbers of a second life apart from those of the first. The members
// come first: what is no member any more does not write its status again.
func planDelete(t macro.Tree, r symlinktree.Resource, logs []logfile.Info) []op {
	var first, batch []op
	for _, dir := range t.Dirs(r.Dir()) {
		for _, e := range t.List(r.Path(filepath.Base(dir))) {
			if symlinktree.Replicated(e.Path) {
				batch = append(batch, del(e.Path))
			}
		}
	}
	for _, l := range logs {
		batch = append(batch, del(r.Path(l.Name.String())))
	}
	for _, e := range t.List(r.Dir()) {
		if _, member := symlinktree.HostOf(filepath.Base(e.Path), "data"); member {
			first = append(first, del(e.Path))
		} else if e.Path != r.MaxNrPath() {
			batch = append(batch, del(e.Path))
		}
	}
	return append(first, batch...)
}

func deleteResource(_ context.Context, j *job) error {
	if err := checkDelete(j.tree, j.r, j.forced()); err != nil {
		return err
	}
	return j.apply(planDelete(j.tree.Snapshot(), j.r, j.logs(j.r)))
}

// checkLeave is pure: only a member that is neither primary nor busy may go.
func checkLeave(t macro.Tree, r symlinktree.Resource, host string, force bool) error {
	if !has(t, r.DataPath(host)) && !has(t, r.ReplayPath(host)) && !force {
		return refuse("", "%s does not store it", host)
	}
	if err := checkNotPrimary(t, r, host, force); err != nil {
		return err
	}
	if force {
		return nil
	}
	gone := "; if " + host + " is gone for good: --force"
	for _, e := range t.List(r.TodoDir(host)) {
		if symlinktree.Switch(e.Value) && filepath.Base(e.Path) != symlinktree.SwitchEmergencyLimit {
			return refuse(fmt.Sprintf("marsadm down %s", r)+gone, "switch %s is not off", e.Path)
		}
	}
	for _, e := range t.List(r.ActualDir(host)) {
		if strings.HasPrefix(filepath.Base(e.Path), "is-") && symlinktree.Switch(e.Value) {
			return refuse(fmt.Sprintf("marsadm down %s, and wait until it is", r)+gone, "%s says that it is still at work (%s)", e.Path, e.Value)
		}
	}
	return nil
}

// checkNotPrimary refuses what a primary must not do. The original lets the status
// links age for half a minute instead; here the caller has asked for fresh news.
func checkNotPrimary(t macro.Tree, r symlinktree.Resource, host string, force bool) error {
	if v, _ := t.Get(r.ActualPath(host, "is-primary")); symlinktree.Switch(v) && !force {
		return refuse(fmt.Sprintf("close the device and run marsadm secondary %s, or hand over with marsadm primary %s elsewhere", r, r), "%s is its actual primary", host)
	}
	if p, _ := t.Get(r.PrimaryPath()); p == host && !force {
		return refuse(fmt.Sprintf("marsadm secondary %s, or hand over with marsadm primary %s elsewhere", r, r), "%s is its designated primary", host)
	}
	return nil
}

// planLeave takes a member out. Unlike the original it leaves the directories
// alone: they are emptied, and a later join uses them again.
func planLeave(t macro.Tree, r symlinktree.Resource, host string) []op {
	var batch []op
	for _, p := range []string{
		r.ReplayPath(host), r.DataPath(host), r.SyncStatusPath(host), r.SyncPosPath(host), r.SkipCheckPath(host),
		r.VerifyStatusPath(host), r.Path("syncsource-" + host), r.SyncFromPath(host), r.ConnectPath(host), r.DevicePath(host), r.ActSizePath(host),
	} {
		if has(t, p) {
			batch = append(batch, del(p))
		}
	}
	for _, dir := range []string{r.ActualDir(host), r.Path("defaults-" + host), r.TodoDir(host)} {
		for _, e := range t.List(dir) {
			batch = append(batch, del(e.Path))
		}
	}
	return batch
}

// othersOf lists the members beside host.
func othersOf(t macro.Tree, r symlinktree.Resource, host string) string {
	var out []string
	for _, m := range replayMembers(t, r) {
		if m != host {
			out = append(out, m)
		}
	}
	return strings.Join(out, " ")
}

func leaveResource(ctx context.Context, j *job) error {
	if err := checkLeave(j.tree, j.r, j.host, j.forced()); err != nil {
		return err
	}
	if _, err := j.waitCluster(ctx, string(j.r), 3); err != nil && !j.forced() {
		return err
	}
	if err := checkLeave(j.tree, j.r, j.host, j.forced()); err != nil {
		return err
	}
	j.warnOnlyHere(othersOf(j.tree, j.r, j.host))
	if err := j.apply(planLeave(j.tree.Snapshot(), j.r, j.host)); err != nil {
		return err
	}
	if err := j.purge(false); err != nil {
		return err
	}
	j.removeUnits(ctx)
	if len(macro.Members(j.tree, string(j.r))) == 0 || j.opt.dryRun {
		return nil
	}
	// Others go on: make sure that they know, and clean up after what was under way.
	ctx, cancel := j.within(ctx, leaveGrace)
	defer cancel()
	if _, err := j.waitCluster(ctx, string(j.r), 3); err != nil {
		j.warn("%s has left %s, but not every peer has confirmed it yet: %v", j.host, j.r, err)
	}
	return j.purge(false)
}

// errRace: what a join was planned on has changed meanwhile.
var errRace = errors.New("the primary went on to another log meanwhile")
