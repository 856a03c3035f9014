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
		pos := job.pos.Load()
		if pos == reported {
			continue
		}
		s := w.tree()
		if syncMode(s, w.r).Members == 0 {
			continue
		}
		// Who could not take over has nothing to offer.
		if in := readIntent(s, w.r, w.n.cfg.Node); !in.consistent() {
			continue
		}
		p := w.n.peer(job.what.Log.Host)
		if p == nil {
			continue
		}
		if err := p.client.Received(ctx, string(w.r), job.what.Log.String(), pos); err != nil {
			w.log.Debug("report of what was received", keyLog, job.what.Log.String(), keyErr, err)
			continue // again with the next bytes, or the next tick
		}
		reported = pos
	}
}

// tune hands the engine what the tree wants of it.
func (w *worker) tune(s *symlinktree.Snapshot, f Facts) {
	_, eng := w.shared.get()
	if eng == nil {
		return
	}
	var c device.Confirm
	if f.Mode == ModeLogging {
		m := syncMode(s, w.r)
		c = device.Confirm{Members: m.Members, Patience: m.Patience}
	}
	if eng.SetConfirm(c) {
		w.log.Info("what FLUSH waits for", "mode", modeOf(c).String())
	}
	members := symlinktree.Members(s, w.r)
	eng.KeepMembers(members)
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
