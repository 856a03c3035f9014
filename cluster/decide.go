package cluster

import (
	"fmt"
	"slices"

	"mars/logfile"
	"mars/symlinktree"
)

// decide compares the intent in the tree with the facts of this node and returns
// the steps to take now. It is pure: no I/O, no clock. Called again after every
// change, it converges; two calls with the same arguments return the same steps.
//
// At most one step that moves the engine (attach, recover, lead, ...) is returned
// per call, because the facts change with it.
func decide(s *symlinktree.Snapshot, r symlinktree.Resource, f Facts) []Action {
	d := &decision{s: s, r: r, f: f, in: readIntent(s, r, f.Node), chain: readVersions(s, r)}
	d.run()
	return d.out
}

type decision struct {
	s     *symlinktree.Snapshot
	r     symlinktree.Resource
	f     Facts
	in    intent
	chain versions
	out   []Action

	stopped bool // StopFetch is in out
}

func (d *decision) do(a Action) { d.out = append(d.out, a) }

func (d *decision) say(key, format string, args ...any) {
	d.do(Say{key, fmt.Sprintf(format, args...)})
}

func (d *decision) run() {
	if d.f.Holdoff != "" && d.f.Damage == nil {
		d.say(msgTransition, "%s", d.f.Holdoff)
	}
	if d.in.member {
		d.spaceMessages()
	}
	wanted := d.in.member && d.in.attach && !d.f.Closing
	designated := wanted && d.in.primary == d.f.Node

	if !wanted || d.f.Mode == ModeLogging {
		d.stopFetch()
		d.stopSync()
	}
	if wanted && d.f.Mode != ModeDetached && d.in.size > d.f.Size {
		if d.f.ResizeFailed == "" {
			d.move(Resize{d.in.size})
			return
		}
		d.say(msgResize, "%s", d.f.ResizeFailed)
	}
	switch {
	case d.f.Mode == ModeLogging && !designated:
		d.stepDown()
	case !wanted:
		if d.f.Mode != ModeDetached {
			d.move(Detach{})
		}
	case d.f.Mode == ModeDetached:
		d.attach()
	case d.f.Mode == ModeLogging:
		d.serve()
	case d.f.Current.Host == d.f.Node && !d.f.Recovered:
		// Own log, perhaps after a crash: find its real end before anything else.
		d.recover()
	case designated:
		d.becomePrimary()
	default:
		d.follow()
	}
}

// move emits a step of the engine unless another one is still under way.
func (d *decision) move(a Action) {
	if d.f.Busy == "" && d.f.Holdoff == "" {
		d.do(a)
	}
}

func (d *decision) stopFetch() {
	if d.f.Fetch != nil && !d.stopped {
		d.stopped = true
		d.do(StopFetch{})
	}
}

func (d *decision) stopSync() {
	if d.f.Syncing != "" {
		d.do(StopSync{})
	}
}

// stepDown: no longer the designated primary (or told to detach). The device
// stays while somebody has it open (RemainsPrimary); a stopping daemon does not
// wait for its clients, the log has all they were promised.
func (d *decision) stepDown() {
	if d.f.OpenCount > 0 && !d.f.Closing {
		d.say(msgPrimary, "%s remains primary of %s: its device has %d open connection(s); close them (umount, disconnect) to let it go",
			d.f.Node, d.r, d.f.OpenCount)
		return
	}
	if !d.in.member {
		d.move(Detach{}) // nothing may be published any more, so nothing can be concluded
		return
	}
	d.move(Yield{})
}

func (d *decision) attach() {
	switch {
	case d.in.size <= 0:
		d.say(msgAttach, "%s has no size link yet", d.r)
	case !d.in.posOK:
		v, _ := d.s.Get(d.r.ReplayPath(d.f.Node))
		d.say(msgReplayLink, "%s=%q is not a log position; marsadm invalidate %s sets a new one", d.r.ReplayPath(d.f.Node), v, d.r)
	default:
		d.move(Attach{})
	}
}

func (d *decision) recover() {
	cur := d.f.Current
	known := d.chain.own(d.f.Node)
	last := len(known) == 0 || known[len(known)-1].Log.Seq <= cur.Seq
	if l, ok := d.f.log(cur); d.in.pos.Min == 0 && (!ok || l.Size == 0) && d.chain.published(cur) == 0 && last {
		// Nothing was ever written to it: nothing to recover.
		if d.in.primary == d.f.Node {
			d.becomePrimary()
		} else {
			d.follow()
		}
		return
	}
	dm := d.f.Damage
	if dm == nil {
		d.move(Recover{known, false})
		return
	}
	accepted := d.in.giveUp == dm.At.String()
	if accepted && !dm.Forced && d.f.Busy == "" {
		d.do(Recover{known, true}) // a person waits: no holdoff
		return
	}
	next := fmt.Sprintf("marsadm primary --force %s gives them up", d.r)
	if d.in.primary != d.f.Node {
		next = fmt.Sprintf("marsadm invalidate %s copies everything from the primary", d.r)
	}
	d.say(msgReplayStop, "own log of %s is damaged at %s: %s; %d bytes of log behind it may have been acknowledged; "+
		"make a member primary that has them, or: %s", d.r, dm.At, dm.Reason, dm.Lost, next)
	d.move(Recover{known, accepted}) // the file may have been repaired
}

// forced is the administrator's word that what cannot be had shall be given up:
// designated, but told not to fetch (reference symlink-tree 4.22), or told to go on
// from the very place where it stands now.
func (d *decision) forced() bool {
	here := logfile.Position{Log: d.f.Current, Offset: d.f.Ingested}
	return d.in.primary == d.f.Node && (!d.in.connect || d.in.giveUp == here.String())
}

// serve: actual and designated primary.
func (d *decision) serve() {
	if d.emergency() {
		return
	}
	d.purge()
	if !d.f.Exported {
		d.move(Export{})
		return
	}
	if d.f.Direct {
		return
	}
	cur := d.f.Current
	next := logfile.Name{Seq: cur.Seq + 1, Host: d.f.Node}
	if d.f.LogFailed {
		d.move(Lead{next}) // what was acknowledged and is not durable is logged again there
		return
	}
	_, asked := d.f.log(next) // marsadm log-rotate asks with an empty file
	if asked || (d.f.RotateSize > 0 && d.f.LogSize >= d.f.RotateSize) || d.makeRoom() {
		d.move(Rotate{next})
	}
}

// becomePrimary: designated, not yet primary. Every reason to wait is said.
func (d *decision) becomePrimary() {
	cur := d.f.Current
	own := cur.Host == d.f.Node
	if !d.f.Heard {
		d.say(msgPrimary, "waiting to hear from the other members before %s becomes primary of %s", d.f.Node, d.r)
		return
	}
	d.stopSync()
	if !d.in.consistent() {
		if d.in.synced < d.in.size {
			d.say(msgInconsistent, "%s cannot become primary of %s: its full sync stands at %d of %d bytes; designate another member",
				d.f.Node, d.r, d.in.synced, d.in.size)
			d.catchUp()
			return
		}
		if d.catchUp(); !d.caughtUp() {
			return
		}
		d.say(msgInconsistent, "%s cannot become primary of %s: its replay stands at %s but its full sync needs %s",
			d.f.Node, d.r, d.in.pos, d.in.syncPos)
		return
	}
	if p := d.otherPrimary(); p != "" && d.in.connect {
		d.say(msgPrimary, "%s waits: %s is still actual primary of %s", d.f.Node, p, d.r)
		d.catchUp()
		return
	}
	if !own && !d.in.connect && d.f.size(cur) > d.f.Ingested && (d.f.Torn || d.f.Damaged != "" && d.f.DamagedAt >= 0) {
		d.stopFetch()
		d.move(Cut{cur, d.f.Ingested}) // forced: the readable prefix is all there is
		return
	}
	if !d.caughtUp() {
		d.catchUp()
		return
	}
	if !d.atEndOfHistory() {
		return
	}
	d.stopFetch()
	if d.f.Mode == ModeReplaying {
		d.move(Replay{On: false})
		return
	}
	if own && d.f.size(cur) == 0 && d.chain.published(cur) == 0 {
		d.move(Lead{cur}) // handed out, never written
		return
	}
	d.move(Lead{d.unused()})
}

// unused is a number that this node has never given to a log with data, as far as
// anybody knows: what others may have under that name must not mix with what comes.
// It follows the current one unless logs behind it have been given up.
func (d *decision) unused() logfile.Name {
	n := max(d.f.Current.Seq, d.f.GivenUp)
	for _, l := range d.f.Logs {
		if l.Name.Host == d.f.Node && l.Size > 0 {
			n = max(n, l.Name.Seq)
		}
	}
	for seq, hosts := range d.chain.bySeq {
		for _, v := range hosts {
			if v.Origin == d.f.Node && v.Pos > 0 {
				n = max(n, seq)
			}
		}
	}
	return logfile.Name{Seq: n + 1, Host: d.f.Node}
}

// otherPrimary is a member that says that it is actual primary and is alive to say so.
func (d *decision) otherPrimary() string {
	for _, m := range d.in.members {
		if m != d.f.Node && d.f.Alive[m] && d.isPrimary(m) {
			return m
		}
	}
	return ""
}

// atEndOfHistory: no log that is known follows the current one. Otherwise it is
// followed first; only who is forced gives up what is not here.
func (d *decision) atEndOfHistory() bool {
	cur := d.f.Current
	next, state := d.chain.next(cur, d.f.Node, d.f.Ingested)
	_, here := d.f.log(next)
	switch state {
	case nextNone:
		return true
	case nextSplit:
		if d.forced() {
			return true
		}
		d.split()
	default:
		if d.forced() && !here {
			return true
		}
		if state == nextBehind {
			d.say(msgPrimary, "%s has %s up to %d and waits for the rest, up to %d, before it becomes primary of %s", d.f.Node, cur, d.f.Ingested, d.chain.final(cur), d.r)
		} else {
			d.say(msgPrimary, "%s follows %s, which comes after %s, before it becomes primary of %s", d.f.Node, next, cur, d.r)
		}
		d.catchUp()
	}
	return false
}

func (d *decision) split() {
	cur := d.f.Current
	d.say(msgSplitBrain, "%s stops after %s: %s; decide for one side, then marsadm invalidate %s on the other", d.r, cur,
		d.chain.describe(cur), d.r)
}

// caughtUp: all of the current log that exists (or, forced, that is here) has
// been taken in.
func (d *decision) caughtUp() bool {
	cur := d.f.Current
	if cur.Host == d.f.Node && d.f.Recovered {
		return true
	}
	local := d.f.size(cur)
	if d.f.Ingested < local && !d.f.Torn {
		return false
	}
	return !d.in.connect || d.f.Ingested >= d.chain.published(cur)
}

// catchUp keeps fetch and replay going on the way to becoming primary.
func (d *decision) catchUp() {
	d.fetch()
	d.replay(true)
}

// follow: attached and not designated.
func (d *decision) follow() {
	d.purge()
	d.fetch()
	if d.in.primary != "" && d.in.primary != symlinktree.NoHost || d.f.Syncing != "" {
		d.sync()
	}
	d.replay(d.in.replay)
}

// replay drives ingestion in the current log and over to the next one.
func (d *decision) replay(on bool) {
	cur := d.f.Current
	if d.f.Damaged != "" {
		d.damaged()
		return
	}
	if !on {
		if d.f.Mode == ModeReplaying {
			d.move(Replay{On: false})
		}
		return
	}
	if d.f.Mode != ModeReplaying {
		d.move(Replay{On: true})
		return
	}
	if final := d.chain.final(cur); d.f.Torn && final >= 0 && d.f.size(cur) > final && cur.Host != d.f.Node {
		d.stopFetch()
		d.move(Refetch{cur, final}) // its writer cut what it had not finished
		return
	}
	if d.f.Torn && d.chain.final(cur) >= 0 && d.f.size(cur) >= d.chain.final(cur) {
		d.say(msgReplayStop, "%s ends inside a record at %d although its writer has left it: marsadm invalidate %s gets a new copy", cur, d.f.Ingested, d.r)
		return
	}
	if d.f.Ingested < d.f.size(cur) || d.f.Torn {
		return // more to take in
	}
	next, state := d.chain.next(cur, d.f.Node, d.f.Ingested)
	switch state {
	case nextFound:
		if _, ok := d.f.log(next); ok {
			d.move(Next{next})
		}
	case nextNone:
		d.atHole()
	case nextSplit:
		d.split()
	case nextBehind:
		d.say(msgNotEqual, "%s has %d bytes of %s, its writer says %d", d.f.Node, d.f.Ingested, cur, d.chain.final(cur))
	}
}

// damaged: the local copy has a bad record. A peer's copy heals it.
func (d *decision) damaged() {
	cur := d.f.Current
	d.say(msgReplayStop, "replay of %s stopped in %s at %d: %s; %s", d.r, cur, d.f.Ingested, d.f.Damaged, d.damageAdvice())
	if cur.Host == d.f.Node {
		return
	}
	if final := d.chain.final(cur); final >= 0 && final <= d.f.DamagedAt && d.f.size(cur) > final {
		d.stopFetch()
		d.move(Refetch{cur, final}) // its writer has given that part up
		return
	}
	if !d.in.connect {
		return
	}
	if d.f.DamagedAt < 0 {
		return // not a defect of the log, but of the reading
	}
	if d.f.Refetches >= maxRefetches {
		d.say(msgRefetch, "%s was fetched again %d times and is still damaged at %d: the damage is where it comes from; it is tried again now and then, and when it changes there",
			cur, d.f.Refetches, d.f.DamagedAt)
		return
	}
	if d.source(cur, d.f.DamagedAt) != "" {
		d.stopFetch()
		d.move(Refetch{cur, d.f.DamagedAt})
	}
}

// damageAdvice is the one thing to do about a copy that is damaged.
func (d *decision) damageAdvice() string {
	cur := d.f.Current
	switch {
	case d.f.DamagedAt >= 0 && cur.Host != d.f.Node && !d.in.connect && d.in.primary != d.f.Node:
		return fmt.Sprintf("fetch is off: marsadm resume-fetch %s gets a sound copy", d.r)
	case d.f.DamagedAt >= 0 && cur.Host != d.f.Node && d.in.connect && d.f.Refetches < maxRefetches:
		return "it is fetched again"
	case d.in.primary == d.f.Node:
		return fmt.Sprintf("marsadm pause-fetch %s; marsadm primary --force %s gives up what is behind it", d.r, d.r)
	}
	return fmt.Sprintf("marsadm invalidate %s copies everything from the disk of the primary", d.r)
}

// maxRefetches bounds quick self-repair of one damaged place; see refetches.
const maxRefetches = 3

// fetch chooses which log to subscribe to, and at whom.
func (d *decision) fetch() {
	if !d.in.connect || d.f.Damaged != "" {
		d.stopFetch()
		return
	}
	want := d.fetchTarget()
	if why := d.f.Space.crowded(d.in.primary == d.f.Node); why != "" {
		if want != nil {
			d.say(msgFetch, "%s does not fetch %s: %s in its file system of the logs; free space there", d.f.Node, want.Log, why)
		}
		d.stopFetch()
		return
	}
	switch {
	case want == nil:
		d.stopFetch()
	case d.f.Fetch == nil:
		// A subscription goes on at the local length, which a refetch is about to cut.
		d.move(Fetch(*want))
	case d.f.Fetch.Log != want.Log, d.f.Fetch.Limit != want.Limit, d.f.Fetch.Peer != want.Peer && (!d.f.Alive[d.f.Fetch.Peer] || d.preferred(want.Peer)):
		// A running subscription keeps its source while that is alive.
		d.do(StopFetch{})
	case d.f.FetchStalled:
		d.say(msgFetchStalled, "fetch of %s from %s stands at %d, although %d bytes of it are known to exist", want.Log, d.f.Fetch.Peer, d.f.size(want.Log), d.chain.published(want.Log))
	}
}

// fetchTarget walks the chain from the current log to the first one of which
// bytes are missing here, or to the one that still grows.
func (d *decision) fetchTarget() *FetchFact {
	log := d.f.Current
	for range maxPrefetch {
		l, ok := d.f.log(log)
		here, final := l.Size, d.chain.final(log)
		if final < 0 || here < final || !ok { // still growing, or incomplete here
			if log.Host == d.f.Node {
				return nil
			}
			peer := d.source(log, here)
			if peer == "" {
				if d.chain.published(log) > here {
					d.say(msgFetch, "no live member has %s beyond %d", log, here)
				}
				return nil
			}
			return &FetchFact{log, peer, final}
		}
		next, state := d.chain.next(log, d.f.Node, final)
		if state != nextFound && state != nextWait || here > final {
			return nil
		}
		log = next
	}
	return nil
}

// maxPrefetch bounds how many logs are fetched ahead of replay.
const maxPrefetch = 100

// source picks the peer to copy a log from: the first preferred one that has as much as we have, else its
// writer if it has more, else the live member whose version link shows most. Whoever failed lately is left out, who
// sent damage or fell behind is asked last, and nobody is asked whose log belongs to another history.
func (d *decision) source(log logfile.Name, have int64) string {
	for _, distrusted := range []bool{false, true} {
		if p := d.sourceOf(log, have, distrusted); p != "" {
			return p
		}
	}
	return ""
}

func (d *decision) sourceOf(log logfile.Name, have int64, distrusted bool) string {
	usable := func(p string) bool {
		return p != d.f.Node && d.f.Alive[p] && !d.f.Avoid[p] && d.f.Distrust[p] == distrusted && d.chain.agree(p, log)
	}
	for _, p := range d.in.prefer {
		if pos, ok := d.chain.holds(p, log); ok && pos >= have && usable(p) {
			return p
		}
	}
	if pos, ok := d.chain.holds(log.Host, log); ok && pos > have && usable(log.Host) {
		return log.Host
	}
	best, most := "", have
	for _, m := range d.in.members {
		if pos, ok := d.chain.holds(m, log); ok && usable(m) && pos > most {
			best, most = m, pos
		}
	}
	if best == "" && usable(log.Host) {
		return log.Host // nobody has more now; it will have
	}
	return best
}

// preferred says whether the subscription is to go over to a source that the administrator prefers.
func (d *decision) preferred(peer string) bool {
	at := slices.Index(d.in.prefer, peer)
	now := slices.Index(d.in.prefer, d.f.Fetch.Peer)
	return at >= 0 && (now < 0 || at < now)
}

// sync starts or stops the full sync.
func (d *decision) sync() {
	src := d.in.primary
	if d.in.synced >= d.in.size {
		d.stopSync()
		return
	}
	if h, ok := d.hole(); ok && h == src {
		// What went around its log is in no position that this replica could reach.
		d.stopSync()
		if d.in.synced > 0 && d.f.Syncing == "" {
			d.do(Restart{})
		}
		d.atHole()
		return
	}
	why := syncObstacle(d.s, d.r, d.in, d.f.Node, d.f.Alive)
	switch {
	case why != "":
		d.stopSync()
		if d.in.sync {
			d.say(msgSyncStart, "full sync of %s waits: %s", d.r, why)
		}
	case d.f.SyncQueued:
		d.stopSync()
		d.say(msgSyncStart, "full sync of %s waits for its turn: as many run on %s as its sync-limit allows", d.r, d.f.Node)
	case d.f.Syncing == "":
		if d.f.Busy == "" {
			// A sync that was begun from somebody else holds another history.
			d.do(Sync{Peer: src, Restart: d.in.syncSource != "" && d.in.syncSource != src})
		}
	case d.f.Syncing != src:
		d.do(StopSync{})
	case d.f.SyncStalled:
		d.say(msgSyncStalled, "full sync of %s from %s makes no progress at %d of %d bytes", d.r, src, d.in.synced, d.in.size)
	}
}

func (d *decision) isPrimary(peer string) bool {
	v, _ := d.s.Get(d.r.ActualPath(peer, "is-primary"))
	return symlinktree.Switch(v)
}
