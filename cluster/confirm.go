package cluster

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"mars/device"
	"mars/logfile"
	"mars/symlinktree"
)

// Sync modes: what a FLUSH of the primary waits for. Members report what they have of its log as soon as it is
// in their copy; the engine of the primary holds answers back until enough have reported.

// msgDegraded is said while a resource in near mode waits for nobody.
const msgDegraded = "wrn-sync-degraded"

// Received takes the report of a member.
func (h *handler) Received(_ context.Context, peer, resource, log string, length int64) error {
	w, err := h.resource(resource)
	if err != nil {
		return err
	}
	name, err := logfile.ParseName(log)
	if err != nil {
		return err
	}
	_, eng := w.shared.get()
	if _, member := w.tree().Get(w.r.DataPath(peer)); !member || eng == nil {
		return nil // a moment too late or too early
	}
	return eng.Received(peer, logfile.Position{Log: name, Offset: length})
}

// syncMode is what is wanted; async if the link cannot be read.
func syncMode(s *symlinktree.Snapshot, r symlinktree.Resource) symlinktree.SyncMode {
	v, _ := s.Get(r.SyncModePath())
	m, _ := symlinktree.ParseSyncMode(v)
	return m
}

// reportFetch tells the author of a log what is here of it, while it waits for that.
func (w *worker) reportFetch(ctx context.Context, job *fetchJob) {
	tick := time.NewTicker(w.n.cfg.Scan) // the mode may change
	defer tick.Stop()
	reported := int64(-1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-job.arrived:
		}
		if pos := w.trusted(job); pos != reported && w.report(ctx, job, pos) {
			reported = pos // else again with the next bytes, or the next tick
		}
	}
}

// report tells the author of a log how much of it is here, if it wants to know.
func (w *worker) report(ctx context.Context, job *fetchJob, pos int64) bool {
	s := w.tree()
	if syncMode(s, w.r).Members == 0 {
		return false
	}
	// Who could not take over has nothing to offer.
	if in := readIntent(s, w.r, w.n.cfg.Node); !in.consistent() {
		return false
	}
	p := w.n.peer(job.what.Log.Host)
	if p == nil {
		return false
	}
	err := p.client.Received(ctx, string(w.r), job.what.Log.String(), pos)
	if err != nil {
		w.log.Debug("report of what was received", keyLog, job.what.Log.String(), keyErr, err)
	}
	return err == nil
}

// reportEnd reports a log that is complete, before its successor is asked for.
func (w *worker) reportEnd(ctx context.Context, job *fetchJob) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	w.report(ctx, job, w.trusted(job))
}

// trusted is how much of a log is here for sure. What was there when this marsd started may have lost its content in
// a power cut until replay has read it, and so may what is behind a damage.
func (w *worker) trusted(job *fetchJob) int64 {
	pos := job.pos.Load()
	_, eng := w.shared.get()
	if eng == nil {
		return 0
	}
	st := eng.Status()
	read := st.IngestEnd
	if (read.Log.Seq > job.what.Log.Seq || read.Log == job.what.Log && read.Offset >= w.inherited(job.what.Log)) && st.ReplayErr == nil {
		return pos
	}
	if w.inherited(job.what.Log) == 0 && st.ReplayErr == nil {
		return pos
	}
	if read.Log == job.what.Log {
		return min(pos, read.Offset)
	}
	return 0
}

// inherited is how long a copy was when this marsd first saw it.
func (w *worker) inherited(log logfile.Name) int64 {
	w.found.mu.Lock()
	defer w.found.mu.Unlock()
	return w.found.size[log]
}

// inherit notes which copies are from the time before this marsd.
func (w *worker) inherit(c *logfile.Chain) error {
	list, err := c.List()
	if err != nil {
		return err
	}
	w.found.mu.Lock()
	defer w.found.mu.Unlock()
	w.found.size = make(map[logfile.Name]int64)
	for _, l := range list {
		if w.found.size[l.Name], err = c.Size(l.Name); err != nil {
			return err
		}
	}
	return nil
}

// tune hands the engine what the tree wants of it.
func (w *worker) tune(s *symlinktree.Snapshot) {
	_, eng := w.shared.get()
	if eng == nil {
		return
	}
	m := syncMode(s, w.r)
	if eng.SetConfirm(device.Confirm{Members: m.Members, Patience: m.Patience}) {
		w.log.Info("what FLUSH waits for", "mode", m.String())
	}
	eng.KeepMembers(symlinktree.Members(s, w.r))
	eng.SetReplayDelay(replayDelay(s, w.r, w.n.cfg.Node))
}

func modeOf(c device.Confirm) symlinktree.SyncMode {
	return symlinktree.SyncMode{Members: c.Members, Patience: c.Patience}
}

// replayDelay is how old records must be on this node. Who shall be primary takes everything.
func replayDelay(s *symlinktree.Snapshot, r symlinktree.Resource, node string) time.Duration {
	if p, _ := s.Get(r.PrimaryPath()); p == node {
		return 0
	}
	v, _ := s.Get(r.TodoPath(node, symlinktree.ReplayDelay))
	return time.Duration(max(0, symlinktree.LeadingInt(v))) * time.Second
}

// publishConfirm shows the mode that is in force. Nothing is shown of a resource that has never had another
// one than async.
func (w *worker) publishConfirm(s *symlinktree.Snapshot, put func(name, value string), said map[string]string, st device.Status) {
	_, wanted := s.Get(w.r.SyncModePath())
	_, shown := s.Get(w.r.ActualPath(w.n.cfg.Node, symlinktree.SyncModeLink))
	if !wanted && !shown {
		return
	}
	put(symlinktree.SyncModeLink, modeOf(st.Confirm.Confirm).String())
	since := symlinktree.Stamp(0)
	if st.Confirm.Degraded {
		since = symlinktree.Stamp(st.Confirm.Since.UnixNano())
		said[msgDegraded] = fmt.Sprintf("fewer than %d members were quick enough: FLUSH of %s on %s waits for none of them until they have caught up; what it confirms meanwhile may be on this node alone",
			st.Confirm.Members, w.r, w.n.cfg.Node)
	}
	put(symlinktree.SyncDegradedLink, since.String())
	put(symlinktree.SyncWaitingLink, strconv.Itoa(st.Confirm.Waiting))
}
