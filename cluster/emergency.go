package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"mars/logfile"
	"mars/symlinktree"
)

// Steps of a node whose file system fills; see DESIGN.md.
type (
	// Cease stops logging: Hole is the number after it. Requests go to the disk alone from then on.
	Cease struct{ Log logfile.Name }
	// Purge removes logs. Everywhere: no member needs them any more, so with a tombstone. Else: only
	// the copies here.
	Purge struct {
		Logs       []logfile.Name
		Everywhere bool
	}
	// Restart gives the progress of a sync up whose source has written around its log.
	Restart struct{}
)

func (a Cease) String() string { return "cease, next " + a.Log.String() }
func (a Purge) String() string {
	return fmt.Sprintf("purge %d logs up to %s everywhere=%v", len(a.Logs), a.Logs[len(a.Logs)-1], a.Everywhere)
}
func (Restart) String() string { return "restart sync" }

const (
	msgSpaceLow  = "wrn-space-low"
	msgSpaceErr  = "err-space-low"
	msgEmergency = "err-emergency"
	msgHole      = "err-log-not-contiguous"
)

// hole distances, the original's: the version link of the hole, and the log behind it (reference symlink-tree 4.20).
const holeDistance = 11

// spaceMessages says what the level means here.
func (d *decision) spaceMessages() {
	sp := d.f.Space
	switch {
	case sp.Level >= LevelPurge:
		d.say(msgSpaceErr, "the space for the logs of %s on %s is nearly used up (level %d of %d): less than %d bytes are free; free space or enlarge the file system",
			d.r, d.f.Node, sp.Level, LevelEmergency, sp.Below)
	case sp.Level >= LevelWarn:
		d.say(msgSpaceLow, "the space for the logs of %s on %s is low: less than %d bytes are free", d.r, d.f.Node, sp.Below)
	}
}

// mustCease: this primary cannot go on logging.
func (d *decision) mustCease() bool {
	if !d.f.Space.Allowed {
		return false
	}
	if d.f.LogFailed {
		// A log without space that could not even begin: another one cannot, either.
		return d.f.LogFull && (d.f.Space.Level > 0 || d.f.Space.Emergency || d.f.LogSize == 0)
	}
	return d.f.Space.Emergency
}

// emergency keeps a primary alive without a log. done: nothing else is to be done.
func (d *decision) emergency() (done bool) {
	must := d.mustCease()
	if must || d.f.Direct {
		d.say(msgEmergency, "%s on %s goes on without a log: %s; secondaries stay at an old state "+
			"until that is over and each has been told to copy everything: marsadm invalidate %s", d.r, d.f.Node, d.emergencyCause(must), d.r)
	}
	switch {
	case d.f.Direct && must:
		return false
	case d.f.Direct:
		d.move(Lead{d.f.Current}) // the log behind the hole
		return true
	case must:
		d.move(Cease{d.behindHole()})
		return true
	}
	return false
}

// emergencyCause is why nothing is logged.
func (d *decision) emergencyCause(must bool) string {
	sp := d.f.Space
	switch {
	case !must:
		return "this is about to end, there is space again"
	case sp.Level >= LevelEmergency:
		return fmt.Sprintf("the space for logs is used up (level %d of %d: less than %d bytes are free)", sp.Level, LevelEmergency, sp.Below)
	case sp.Emergency && sp.Limit > 0:
		return fmt.Sprintf("less than %d%% of the space for logs is free, its emergency limit (marsadm set-emergency-limit)", sp.Limit)
	case sp.Emergency && sp.Level > 0:
		return fmt.Sprintf("the space for logs was used up, and not enough is free yet (level %d, 0 ends it)", sp.Level)
	}
	return "its log got no space although the file system seems to have some (a quota?)"
}

// behindHole is the number of the log with which an emergency ends.
func (d *decision) behindHole() logfile.Name {
	n := max(d.unused().Seq-1, d.in.maxNr)
	for seq := range d.chain.bySeq {
		n = max(n, seq)
	}
	for _, l := range d.f.Logs {
		n = max(n, l.Name.Seq)
	}
	return logfile.Name{Seq: n + holeDistance, Host: d.f.Node}
}

// purge makes room: on the primary whatever no member needs goes, here and everywhere (P8); on a
// secondary copies that it has replayed, as long as who else may want them can get them from their writer.
func (d *decision) purge() {
	sp := d.f.Space
	primary := d.f.Mode == ModeLogging
	if sp.Level < LevelWarn && !sp.Near && !sp.Emergency || !primary && sp.Level < LevelPurge {
		return
	}
	needed, known := d.neededFrom()
	var list []logfile.Name
	for _, l := range d.f.Logs {
		unneeded := known && l.Name.Seq < needed
		if !primary {
			unneeded = l.Name.Seq < d.f.Current.Seq && l.Name.Seq < d.in.pos.Seq && l.Name.Host != d.f.Node &&
				(unneeded || d.f.Alive[l.Name.Host])
		}
		if unneeded && l.Name != d.f.Current {
			list = append(list, l.Name)
		}
	}
	if len(list) > 0 {
		d.do(Purge{list, primary})
	}
}

// neededFrom is the lowest log number that a member still needs. It is not known while anybody
// is about to join.
func (d *decision) neededFrom() (seq int, known bool) {
	seq = d.f.Current.Seq
	for _, m := range d.in.members {
		v, _ := d.s.Get(d.r.ReplayPath(m))
		pos, err := symlinktree.ParseReplay(v)
		if err != nil {
			return 0, false
		}
		seq = min(seq, pos.Seq)
	}
	return seq, true
}

// makeRoom reports whether the log shall be rotated, so that what is in it can be
// removed: only where everybody is in it, and for an amount that counts.
func (d *decision) makeRoom() bool {
	sp := d.f.Space
	if sp.Level < LevelWarn && !sp.Near || d.f.LogSize < max(minRotate, sp.Free/8) {
		return false
	}
	needed, known := d.neededFrom()
	return known && needed == d.f.Current.Seq
}

const minRotate = 1 << 20

// holed reports whether this node's own history has a hole just before its current log.
func (d *decision) holed() bool {
	l, ok := d.chain.bySeq[d.f.Current.Seq-1][d.f.Node]
	return ok && d.f.Current.Host == d.f.Node && l.IsHole()
}

// hole is the gap in front of which this node stands: the log behind the current one was never written.
func (d *decision) hole() (host string, found bool) {
	for seq, hosts := range d.chain.bySeq {
		for h, l := range hosts {
			if seq > d.f.Current.Seq && h != d.f.Node && l.Origin == h && l.IsHole() {
				if host == "" || h < host {
					host, found = h, true
				}
			}
		}
	}
	return host, found
}

// atHole is said instead of going on. A member that has given data to its disk alone can
// only be copied as a whole.
func (d *decision) atHole() {
	cur := d.f.Current
	if h, ok := d.hole(); ok {
		next := fmt.Sprintf("marsadm invalidate %s copies everything anew", d.r)
		if v, _ := d.s.Get(d.r.ActualPath(h, "has-emergency")); symlinktree.Switch(v) {
			next = "when that is over, " + next
		}
		d.say(msgHole, "%s on %s ends with %s and is old: behind it %s went on without a log (emergency mode); %s", d.r, d.f.Node, cur, h, next)
		return
	}
	p := d.in.primary
	v, _ := d.s.Get(d.r.ReplayPath(p))
	pos, err := symlinktree.ParseReplay(v)
	if d.holed() && p != d.f.Node && err == nil && pos.Seq < cur.Seq {
		d.say(msgSplitBrain, "%s has written to %s without a log before %s, and %s went on from before that; decide for one side, then marsadm invalidate %s on the other",
			d.f.Node, d.r, cur, p, d.r)
	}
}

// cease lets the engine go on without a log. The hole is durable in the tree before the first byte
// goes around the log.
func (w *worker) cease(ctx context.Context, next logfile.Name) error {
	chain, eng := w.shared.get()
	ctx, cancel := context.WithTimeout(ctx, w.n.cfg.DiskPatience)
	defer cancel()
	w.jammed.Store(time.Now().Add(w.n.cfg.EmergencyHold).UnixNano())
	w.emergency.Store(true)
	if err := eng.StartDirect(ctx, next, func() error { return w.announceHole(next) }); err != nil {
		return err
	}
	if err := chain.AppendRaw(next, 0, nil); err != nil {
		w.log.Warn("cannot create the log with which the emergency will end", keyLog, next.String(), keyErr, err)
	}
	return nil
}

// announceHole makes the history of this node end, and begin anew with next.
func (w *worker) announceHole(next logfile.Name) error {
	_, eng := w.shared.get()
	node := w.n.cfg.Node
	if st := eng.Status(); st.IngestEnd.Offset > 0 {
		if err := w.publishVersion(st.Current, st.IngestEnd.Offset); err != nil {
			return err
		}
	}
	if err := w.forgetLogs(logfile.Name{Seq: eng.Status().Current.Seq, Host: node}); err != nil {
		return err
	}
	hole := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: next.Seq - 1, Origin: node}
	err := errors.Join(w.n.tree.Set(w.r.VersionPath(hole.Seq, node), hole.String()),
		w.n.tree.Set(w.r.MaxNrPath(), fmt.Sprint(next.Seq)))
	return errors.Join(err, w.n.tree.SyncDir(w.r.Dir()))
}

// purge removes logs that are not needed.
func (w *worker) purge(a Purge) error {
	chain, _ := w.shared.get()
	var errs []error
	for _, l := range a.Logs {
		if a.Everywhere {
			if err := w.n.tree.Delete(w.r.Path(l.String())); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if err := chain.Remove(l); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	w.log.Info("removed logfiles that are not needed, because space is low", "count", len(a.Logs)-len(errs), "everywhere", a.Everywhere)
	return errors.Join(errs...)
}

// restartSync forgets how far a sync was.
func (w *worker) restartSync() error {
	w.log.Warn("the sync starts from 0: its source has written around its log")
	return w.n.tree.Set(w.r.SyncStatusPath(w.n.cfg.Node), "0")
}

// inheritSpace gives a new worker the state of the node, before it decides anything.
func (w *worker) inheritSpace() {
	level, _, _ := w.n.space.get()
	w.emergency.Store(level >= LevelEmergency)
}

// directPatience is how long clients wait for the way around a log without space.
func (n *Node) directPatience() time.Duration {
	if !n.cfg.Emergency {
		return 0
	}
	return 2 * n.cfg.DiskPatience
}
