package cluster

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"mars/device"
	"mars/logfile"
	"mars/symlinktree"
)

// act executes one step. Steps that wait for the disk or the log run in the
// background (begin); the others are immediate.
func (w *worker) act(a Action) {
	switch a := a.(type) {
	case Attach:
		w.begin("attach", w.attach)
	case Detach:
		w.begin("detach", w.detach)
	case Recover:
		w.begin("recover", func(ctx context.Context) (func(), error) { return w.recoverLog(ctx, a) })
	case Replay:
		w.begin(a.String(), func(ctx context.Context) (func(), error) { return nil, w.setReplay(ctx, a.On) })
	case Next:
		w.begin(a.String(), func(context.Context) (func(), error) { return nil, w.nextLog(a.Log) })
	case Lead:
		w.begin(a.String(), func(context.Context) (func(), error) {
			if err := w.lead(a.Log); err != nil {
				return nil, err
			}
			return w.setRecovered, nil
		})
	case Yield:
		x := w.export
		w.begin("yield", func(ctx context.Context) (func(), error) { return w.yield(ctx, x) })
	case Rotate:
		w.begin(a.String(), func(context.Context) (func(), error) { return nil, w.rotate(a.Log) })
	case Cease:
		w.begin(a.String(), func(ctx context.Context) (func(), error) { return nil, w.cease(ctx, a.Log) })
	case Purge:
		if err := w.purge(a); err != nil {
			w.log.Error("cannot remove logfiles", keyErr, err)
		}
	case Restart:
		if err := w.restartSync(); err != nil {
			w.log.Error("cannot restart the sync", keyErr, err)
		}
	case Refetch:
		source := readVersions(w.tree(), w.r).sourceState(a.Log, w.n.cfg.Node)
		w.begin(a.String(), func(ctx context.Context) (func(), error) {
			return func() { w.refetches.add(a.Log, a.At, source, time.Now()); w.blame(a.Log, a.At) }, w.refetch(ctx, a)
		})
	case Cut:
		w.begin(a.String(), func(ctx context.Context) (func(), error) { return nil, w.refetch(ctx, Refetch(a)) })
	case Resize:
		w.begin(a.String(), func(context.Context) (func(), error) { return w.resize(a.Size), nil })
	case Export:
		w.openExport()
	case Fetch:
		w.startFetch(FetchFact(a))
	case StopFetch:
		w.stopFetch()
	case Sync:
		w.startSync(a)
	case StopSync:
		w.stopSync()
	default:
		panic(fmt.Sprintf("no executor for %T", a))
	}
}

// minIndex is the smallest index that lets a resource work, in extents.
const minIndex = 1024

// attach opens disk and engine at the position of the replay link. The chain is
// opened anew: an administrator may have changed logfiles while detached.
func (w *worker) attach(ctx context.Context) (func(), error) {
	s := w.tree()
	in := readIntent(s, w.r, w.n.cfg.Node)
	disk, err := device.OpenDisk(w.n.cfg.FS, in.disk)
	if err != nil {
		return nil, err
	}
	w.n.put(w.r.ActSizePath(w.n.cfg.Node), fmt.Sprint(disk.Size()))
	w.sayWhere()
	chain, err := logfile.OpenChain(w.n.cfg.FS, w.dir())
	if err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	from := logfile.Position{Log: logfile.Name{Seq: in.pos.Seq, Host: in.pos.Origin}, Offset: in.pos.Min}
	maxRecord := logfile.MaxPayload
	if w.n.cfg.LogFormat == LogKernel {
		maxRecord = 4096
	}
	eng, err := device.OpenEngine(ctx, device.EngineConfig{
		MaxRecord: maxRecord, ZeroesAsWrites: w.n.cfg.LogFormat == LogKernel,
		Resource: string(w.r), Host: w.n.cfg.Node, Disk: disk, Chain: chain, Size: in.size,
		Journal: &journal{w}, Now: func() time.Time { return w.n.tree.Clock().Now().Time() }, Log: w.log,
		DirectPatience: w.n.directPatience(),
		Durability:     w.n.cfg.Durability, SyncInterval: w.n.cfg.SyncInterval, WritebackAge: w.n.cfg.WritebackAge,
		IndexLimit: max(minIndex, int(w.n.cfg.IndexMemory/device.ExtentBytes)),
		Events:     w.event,
	}, from, in.pos.Min+in.pos.Len)
	if err != nil {
		return nil, errors.Join(err, chain.Close(), disk.Close())
	}
	return func() {
		old, _ := w.shared.get()
		w.disk, w.recovered = disk, false
		w.recoveredOwn.Store(false)
		w.shared.set(chain, eng)
		if old != nil {
			old.Close()
		}
	}, nil
}

func (w *worker) event(e device.Event) {
	if e.Err != nil {
		w.log.Warn("engine", "event", e.Kind.String(), keyPos, e.Position.String(), keyErr, e.Err)
	}
	w.kick()
}

// detach closes everything; only then is it reported (P6).
func (w *worker) detach(ctx context.Context) (func(), error) {
	eng := w.engine()
	var err error
	if _, member := w.n.tree.Get(w.r.DataPath(w.n.cfg.Node)); member {
		ctx, cancel := context.WithTimeout(ctx, w.n.cfg.DiskPatience)
		err = eng.SetReplay(ctx, false)
		cancel()
	}
	if x := w.export; x != nil {
		err = errors.Join(err, closeExport(x))
	}
	if cerr := eng.Close(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	if cerr := w.disk.Close(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	// A close that failed has closed nevertheless: what is missing on the disk is
	// in the log, and the replay link says so.
	return func() {
		chain, _ := w.shared.get()
		w.shared.set(chain, nil)
		w.disk, w.export = nil, nil
	}, err
}

// recoverLog finds the real end of the own logs after a restart and says so in
// the version links, whatever they said before (reference symlink-tree 4.8).
func (w *worker) recoverLog(ctx context.Context, a Recover) (func(), error) {
	_, eng := w.shared.get()
	end, torn, err := eng.RecoverKnown(ctx, a.Known, a.Force)
	if err != nil {
		return func() { w.setDamage(err, a.Force) }, err
	}
	if a.Force {
		if err := w.forgetLogs(end.Log); err != nil {
			return nil, err
		}
	}
	if torn > 0 && !a.Force {
		w.log.Warn("cut an unfinished record off the end of the own log; nothing in it was acknowledged", keyPos, end.String(), "bytes", torn)
	}
	for _, l := range w.ownLogs() {
		if err := w.leaveLog(l); err != nil {
			return nil, err
		}
	}
	return w.setRecovered, w.n.tree.SyncDir(w.r.Dir())
}

// setDamage remembers why the own logs cannot be recovered.
func (w *worker) setDamage(err error, forced bool) {
	var d *device.DamageError
	w.damage, w.verdict = nil, nil
	if errors.As(err, &d) {
		w.damage, w.verdict = &Damage{At: d.At, Lost: d.Lost, Reason: d.Err.Error(), Forced: forced}, d.Err
	} else if forced {
		w.damage = &Damage{Reason: err.Error(), Forced: true}
	}
}

// forgetLogs takes back what this node said about own logs behind last: they have
// been given up.
func (w *worker) forgetLogs(last logfile.Name) error {
	for _, e := range w.n.tree.Snapshot().List(w.r.Dir()) {
		seq, host, ok := symlinktree.NumberedOf(path.Base(e.Path), "version")
		if !ok || host != w.n.cfg.Node || seq <= last.Seq {
			continue
		}
		if err := w.n.tree.Delete(e.Path); err != nil {
			return err
		}
	}
	return nil
}

// setAside is the highest number of an own log that a recovery has set aside.
func (w *worker) setAside() (seq int) {
	list, err := w.n.cfg.FS.ReadDir(w.dir())
	if err != nil {
		w.log.Error("cannot list logfiles", keyPath, w.dir(), keyErr, err)
	}
	for _, e := range list {
		if name, ok := logfile.ParseSetAside(e.Name()); ok && name.Host == w.n.cfg.Node {
			seq = max(seq, name.Seq)
		}
	}
	return seq
}

func (w *worker) setRecovered() {
	w.damage, w.verdict = nil, nil
	w.givenUp = w.setAside()
	w.recovered = true
	w.recoveredOwn.Store(true)
}

// ownLogs are this node's logs from the replay position on, ascending.
func (w *worker) ownLogs() []logfile.Name {
	chain, eng := w.shared.get()
	st := eng.Status()
	list, err := chain.List()
	if err != nil {
		return nil
	}
	var own []logfile.Name
	for _, l := range list {
		if l.Name.Host == w.n.cfg.Node && l.Name.Seq >= st.Applied.Log.Seq && l.Name.Seq <= st.IngestEnd.Log.Seq {
			own = append(own, l.Name)
		}
	}
	return own
}

func (w *worker) setReplay(ctx context.Context, on bool) error {
	eng := w.engine()
	if on {
		if err := eng.Follow(eng.Status().Current); err != nil {
			return err
		}
	}
	return eng.SetReplay(ctx, on)
}

// nextLog goes over to the following log. Our version link of the old one is
// final before the new one is mentioned.
func (w *worker) nextLog(next logfile.Name) error {
	_, eng := w.shared.get()
	cur := eng.Status().Current
	if err := w.leaveLog(cur); err != nil {
		return err
	}
	if err := eng.NextLog(next); err != nil {
		return err
	}
	chain, _ := w.shared.get()
	size, err := chain.Durable(next)
	if err != nil {
		return err
	}
	return w.publishAfter(cur.Seq, next, size)
}

// leaveLog says that a log stays as long as it is here.
func (w *worker) leaveLog(log logfile.Name) error {
	chain, _ := w.shared.get()
	chain.Seal(log)
	return w.publishLength(log)
}

// publishLength publishes the version link of a log for its length here.
func (w *worker) publishLength(log logfile.Name) error {
	chain, _ := w.shared.get()
	size, err := chain.Durable(log)
	if err != nil {
		return err
	}
	return w.publishVersion(log, size)
}

// lead opens the own log and says so before the device appears.
func (w *worker) lead(next logfile.Name) error {
	_, eng := w.shared.get()
	st := eng.Status()
	cur := st.Current
	// After a failure the old log ends where it became durable, which only the
	// engine finds; announce then publishes it.
	if cur != next && st.Mode != device.Error {
		chain, _ := w.shared.get()
		chain.Seal(cur)
		// What this node has of it, even if the file is not here any more.
		if err := w.publishVersion(cur, st.IngestEnd.Offset); err != nil {
			return err
		}
	}
	// Of a hole that was announced and never came about, nothing may be left behind next.
	if err := w.forgetLogs(next); err != nil {
		return err
	}
	if err := eng.StartLogging(next); err != nil {
		return err
	}
	return w.announce(cur, next)
}

// rotate goes on in the next own log. The engine syncs the old one before it
// acknowledges anything in the new one; its final length is published first.
func (w *worker) rotate(next logfile.Name) error {
	_, eng := w.shared.get()
	cur := eng.Status().Current
	if err := eng.Rotate(next); err != nil {
		return err
	}
	if err := w.publishLength(cur); err != nil {
		return err
	}
	return w.announce(cur, next)
}

// announce publishes a new own log behind prev, durably: peers build on it.
func (w *worker) announce(prev, log logfile.Name) error {
	before := prev.Seq
	if prev == log {
		before = w.before(log)
	}
	if err := w.publishAfter(before, log, 0); err != nil {
		return err
	}
	if v, _ := w.n.tree.Get(w.r.MaxNrPath()); symlinktree.LeadingInt(v) < int64(log.Seq) {
		if err := w.n.tree.Set(w.r.MaxNrPath(), fmt.Sprint(log.Seq)); err != nil {
			return err
		}
	}
	return w.n.tree.SyncDir(w.r.Dir())
}

// yield ends the primary role. The device vanishes only when the disk has
// everything: whoever waits for it to go may take the disk then.
// A disk that does not take it is waited for only so long: the log has it.
func (w *worker) yield(ctx context.Context, x Exported) (apply func(), err error) {
	_, eng := w.shared.get()
	patient, cancel := context.WithTimeout(ctx, w.n.cfg.DiskPatience)
	defer cancel()
	behind := eng.WriteBack(patient)
	if behind != nil {
		w.log.Warn("giving the device up although the disk does not have everything yet", keyErr, behind)
	}
	if x != nil {
		if err := closeExport(x); err != nil {
			return nil, err
		}
		apply = func() { w.export = nil }
	}
	last, cancel := context.WithTimeout(ctx, w.n.cfg.DiskPatience)
	defer cancel()
	if err := eng.StopLogging(last); err != nil && behind == nil {
		return apply, err
	}
	return apply, errors.Join(w.publishLength(eng.Status().Current), w.n.tree.SyncDir(w.r.Dir()))
}

// refetch cuts a damaged copy back to its last good record; fetching goes on
// from there.
func (w *worker) refetch(ctx context.Context, a Refetch) error {
	chain, eng := w.shared.get()
	w.log.Warn("cutting a damaged part off a copy of a logfile", keyLog, a.Log.String(), keyPos, a.At)
	ctx, cancel := context.WithTimeout(ctx, w.n.cfg.DiskPatience)
	defer cancel()
	if err := eng.SetReplay(ctx, false); err != nil && eng.Status().ReplayErr == nil {
		return err // with a replay error the disk may not be at a border; the new copy gets it there
	}
	return chain.Truncate(a.Log, a.At)
}

// resize fails as long as the disk has not grown; a secondary then syncs the new
// part.
func (w *worker) resize(size int64) (apply func()) {
	err := w.engine().Resize(size)
	return func() {
		if err != nil {
			w.resizeRetry.fail(err.Error(), w.kick)
			w.log.Error("cannot resize", keyErr, err)
			return
		}
		w.resizeRetry.ok()
		w.log.Info("resized", "size", size)
	}
}

func (w *worker) openExport() {
	x, err := w.n.exports.open(string(w.r), w.engine())
	if err != nil {
		w.backoff.fail(fmt.Sprintf("export %s: %v", w.r, err), w.kick)
		w.log.Error("cannot export the device", keyErr, err)
		return
	}
	w.export = x
	w.log.Info("device appears", keyPath, x.Path())
	w.kick()
}

// publishVersion writes this node's version link of a log whose length here is
// pos, chained to its own link of the log before (reference symlink-tree 4.8).
//
// That one is mended first if it does not say the length that the file has: peers
// build on it, and a stale one would look like a split brain.
func (w *worker) publishVersion(log logfile.Name, pos int64) error {
	return w.publishAfter(w.before(log), log, pos)
}

// before is the number of the log that log follows: what our link of it says, else
// one less.
func (w *worker) before(log logfile.Name) int {
	v := w.get(w.r.VersionPath(log.Seq, w.n.cfg.Node))
	if l, err := symlinktree.ParseVersion(v); err == nil && nameOf(l) == log {
		if prev, ok := l.Predecessor(); ok && prev.Seq < log.Seq {
			return prev.Seq
		}
	}
	return log.Seq - 1
}

// publishAfter is publishVersion for a log that follows the one of number before.
func (w *worker) publishAfter(before int, log logfile.Name, pos int64) error {
	prev := ""
	if before > 0 {
		path := w.r.VersionPath(before, w.n.cfg.Node)
		prev = w.get(path)
		if before, err := symlinktree.ParseVersion(prev); err == nil && before.Seq >= w.foot() {
			chain, _ := w.shared.get()
			size, err := chain.Durable(nameOf(before))
			// Where others say that log builds on less of it, the rest of the file belongs to a branch
			// that was given up (invalidate).
			if at := readVersions(w.n.tree.Snapshot(), w.r).leftAt(nameOf(before), log, w.n.cfg.Node); at >= 0 {
				size = min(size, at)
			}
			if err == nil && size != before.Pos {
				if err := w.publishVersion(nameOf(before), size); err != nil {
					return err
				}
				prev = w.get(path)
			}
		}
	}
	v := symlinktree.NewVersion(log.Seq, log.Host, pos, prev)
	return w.n.tree.Set(w.r.VersionPath(log.Seq, w.n.cfg.Node), v.String())
}

// foot is the number of the log at which this replica began. The version link of the one before was copied
// from the primary, and stays: a file of that name may be left of an earlier membership, and tells nothing.
func (w *worker) foot() int {
	return int(symlinktree.LeadingInt(w.get(w.r.SkipCheckPath(w.n.cfg.Node))))
}

// journal publishes the engine's position as the replay link. Both statements
// must survive a power cut: Dirty before the disk is touched, Checkpoint before
// anybody deletes the log below it.
type journal struct{ w *worker }

func (j *journal) Dirty(log logfile.Name, min, end int64) error {
	return j.put(log, min, end)
}

func (j *journal) Checkpoint(log logfile.Name, min, end int64) error {
	return j.put(log, min, end)
}

func (j *journal) put(log logfile.Name, min, end int64) error {
	w := j.w
	t := w.n.tree
	if _, member := t.Get(w.r.DataPath(w.n.cfg.Node)); !member {
		return fmt.Errorf("%s is no longer a member of %s: its position is not written any more", w.n.cfg.Node, w.r)
	}
	v := symlinktree.Replay{Seq: log.Seq, Origin: log.Host, Min: min, Len: end - min}
	if err := t.Set(w.r.ReplayPath(w.n.cfg.Node), v.String()); err != nil {
		return err
	}
	return t.SyncDir(w.r.Dir())
}
