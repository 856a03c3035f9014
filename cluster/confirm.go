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
		reported = w.report(ctx, job, reported)
	}
}

// report tells the author of a log how much of it is here, if it wants to know and has not heard it yet. It returns
// what the author knows then.
func (w *worker) report(ctx context.Context, job *fetchJob, reported int64) int64 {
	if !w.reports.Load() {
		return reported
	}
	pos := w.trusted(job)
	if pos == reported {
		return reported
	}
	// Who could not take over has nothing to offer.
	if in := readIntent(w.tree(), w.r, w.n.cfg.Node); !in.consistent() {
		return reported
	}
	p := w.n.peer(job.what.Log.Host)
	if p == nil {
		return reported
	}
	if err := p.client.Received(ctx, string(w.r), job.what.Log.String(), pos); err != nil {
		w.log.Debug("report of what was received", keyLog, job.what.Log.String(), keyErr, err)
		return reported // again with the next bytes, or the next tick
	}
	return pos
}

// reportEnd reports a log that is complete, before its successor is asked for.
func (w *worker) reportEnd(ctx context.Context, job *fetchJob) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	w.report(ctx, job, -1)
}

// trusted is how much of a log is here for sure. What was there when this marsd started may have lost its content in
// a power cut until replay has read it, and so may what is behind a damage.
func (w *worker) trusted(job *fetchJob) int64 {
	_, eng := w.shared.get()
	if eng == nil {
		return 0
	}
	log, pos, st := job.what.Log, job.pos.Load(), eng.Status()
	read, old := st.IngestEnd, w.inherited(log)
	sure := old == 0 || read.Log.Seq > log.Seq || read.Log == log && read.Offset >= old
	switch {
	case sure && st.ReplayErr == nil:
		return pos
	case read.Log == log:
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
	w.reports.Store(m.Members > 0)
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
