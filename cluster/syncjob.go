package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"mars/device"
	"mars/logfile"
	"mars/symlinktree"
	"mars/transport"
)

// syncJob is one running full sync.
type syncJob struct {
	peer   string
	cancel context.CancelFunc
	done   chan struct{}
	pos    atomic.Int64

	stalled atomic.Bool // nothing has been compared or copied for a while
}

func (w *worker) startSync(a Sync) {
	p := w.n.peer(a.Peer)
	eng := w.engine()
	limit, _ := w.n.syncLimit()
	if p == nil || eng == nil || w.syncRetry.reason() != "" || !w.n.slots.take(w.r, limit) {
		return
	}
	w.syncHeld.Store(false)
	ctx, cancel := context.WithCancel(w.ctx)
	job := &syncJob{peer: a.Peer, cancel: cancel, done: make(chan struct{})}
	w.syncing = job
	go func() {
		var watch sync.WaitGroup
		watch.Go(func() { w.watchSync(ctx, job, eng) })
		err := w.runSync(ctx, job, p, a.Restart)
		cancel()
		watch.Wait()
		close(job.done)
		w.later(func() { w.synced(job, err) })
	}()
}

// watchSync says that a sync stands still. Requests have deadlines of their own, so it goes on or fails by itself.
func (w *worker) watchSync(ctx context.Context, job *syncJob, eng *device.Engine) {
	limit := stallRetries * w.n.cfg.RetryMax
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	done := func() int64 { c := eng.Status().Counters; return c.SyncSame + c.SyncDifferent }
	last, since := done(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := done(); now != last {
			last, since = now, time.Now()
		}
		if stalled := time.Since(since) >= limit; job.stalled.Swap(stalled) != stalled {
			w.kick()
		}
	}
}

func (w *worker) stopSync() {
	if w.syncing != nil {
		w.syncing.cancel()
		<-w.syncing.done
		w.syncing = nil
		w.giveSlot()
	}
}

func (w *worker) synced(job *syncJob, err error) {
	if w.syncing != job {
		return // stopped meanwhile
	}
	w.syncing = nil
	switch {
	case err == nil:
		w.syncRetry.ok()
	case errors.Is(err, context.Canceled):
	default:
		w.log.Warn("full sync interrupted", keyPeer, job.peer, keyErr, err)
		w.syncHeld.Store(true)
		w.syncRetry.fail(err.Error(), func() { w.syncHeld.Store(false); w.kick() })
	}
	w.giveSlot()
}

// giveSlot lets the next sync of this node run. That this one has ended is said first: nobody sees
// more of them than may run.
func (w *worker) giveSlot() {
	if _, member := w.n.tree.Get(w.r.DataPath(w.n.cfg.Node)); member {
		w.n.put(w.r.ActualPath(w.n.cfg.Node, "is-syncing"), "0")
	}
	if w.n.slots.give(w.r) {
		w.n.kickAll()
	}
}

// runSync copies what differs. The cursor survives restarts; another source
// starts from 0, because its history need not be the one copied so far.
func (w *worker) runSync(ctx context.Context, job *syncJob, p *peer, restart bool) error {
	t, node := w.n.tree, w.n.cfg.Node
	set := func(path, value string) error { return t.Set(path, value) }
	if restart {
		if err := set(w.r.SyncStatusPath(node), "0"); err != nil {
			return err
		}
	}
	// What an older sync ended at says nothing about this one.
	err := errors.Join(t.Delete(w.r.SyncPosPath(node)), set(w.syncSourcePath(), p.name), t.SyncDir(w.r.Dir()))
	if err != nil {
		return err
	}
	in := readIntent(w.tree(), w.r, node)
	eng := w.engine()
	src := &syncSource{peer: p.client, resource: string(w.r)}
	job.pos.Store(in.synced)
	w.log.Info("full sync starts", keyPeer, p.name, "from", in.synced, "size", in.size)
	last := time.Now()
	end, err := eng.Sync(ctx, src, in.synced, in.size, func(done, same, different int64) {
		job.pos.Store(done)
		if time.Since(last) < w.n.cfg.Publish || done >= in.size {
			return // the last step is published below, with its position
		}
		last = time.Now()
		set(w.r.SyncStatusPath(node), fmt.Sprint(done))
		set(w.r.VerifyStatusPath(node), fmt.Sprintf("%d,%d", same/verifyUnit, different/verifyUnit))
	})
	if err != nil {
		// What is behind the cursor stays valid.
		if pos := job.pos.Load(); pos < in.size {
			set(w.r.SyncStatusPath(node), fmt.Sprint(pos))
		}
		return err
	}
	w.log.Info("full sync done", keyPeer, p.name, "consistent-at", end.String())
	pos := symlinktree.Replay{Seq: end.Log.Seq, Origin: end.Log.Host, Min: end.Offset}
	// Position first: a finished sync without its position would claim too much.
	if err := set(w.r.SyncPosPath(node), pos.String()); err != nil {
		return err
	}
	if err := t.SyncDir(w.r.Dir()); err != nil {
		return err
	}
	return errors.Join(set(w.r.SyncStatusPath(node), fmt.Sprint(in.size)), t.Delete(w.syncSourcePath()))
}

// syncSourcePath is a link of our own: whose device the unfinished sync copies. The
// original has no such name and ignores it.
func (w *worker) syncSourcePath() string { return w.r.Path("syncsource-" + w.n.cfg.Node) }

// verifyUnit is the unit of the verifystatus link (reference symlink-tree 5.3).
const verifyUnit = 4096

// syncSource reads the primary's device through its engine.
type syncSource struct {
	peer     *transport.Peer
	resource string
}

func (s *syncSource) Digests(ctx context.Context, off, length, chunk int64) ([][32]byte, logfile.Position, error) {
	sums, pos, err := s.peer.Digests(ctx, s.resource, off, length, chunk)
	if err != nil {
		return nil, logfile.Position{}, err
	}
	at, err := position(pos)
	return sums, at, err
}

func (s *syncSource) Read(ctx context.Context, off int64, p []byte) (logfile.Position, error) {
	pos, err := s.peer.ReadRange(ctx, s.resource, off, p)
	if err != nil {
		return logfile.Position{}, err
	}
	return position(pos)
}

func position(p transport.Position) (logfile.Position, error) {
	name, err := logfile.ParseName(p.Log)
	return logfile.Position{Log: name, Offset: p.Offset}, err
}

// The other side: what this node serves while it is primary.

func (w *worker) readRange(ctx context.Context, p []byte, off int64) (transport.Position, error) {
	eng := w.engine()
	if eng == nil {
		return transport.Position{}, fmt.Errorf("resource %s is not attached on %s", w.r, w.n.cfg.Node)
	}
	end, err := eng.ReadStable(ctx, p, off)
	if err != nil {
		return transport.Position{}, err
	}
	return transport.Position{Log: end.Log.String(), Offset: end.Offset}, nil
}

// digests reads chunk by chunk; the range is bounded by the transport.
func (w *worker) digests(ctx context.Context, off, length, chunk int64) ([][32]byte, transport.Position, error) {
	var sums [][32]byte
	var pos transport.Position
	buf := make([]byte, min(chunk, length))
	for length > 0 {
		p := buf[:min(chunk, length)]
		var err error
		if pos, err = w.readRange(ctx, p, off); err != nil {
			return nil, pos, err
		}
		sums = append(sums, device.ChunkSum(p))
		off += int64(len(p))
		length -= int64(len(p))
	}
	return sums, pos, nil
}

// openLog serves a logfile of this node, its own or a copy.
func (w *worker) openLog(name logfile.Name) (transport.LogSource, error) {
	chain, _ := w.shared.get()
	if chain == nil {
		return nil, fmt.Errorf("%s on %s: %w", name, w.n.cfg.Node, fs.ErrNotExist)
	}
	if _, err := chain.Size(name); err != nil {
		return nil, fmt.Errorf("%s on %s: %w", name, w.n.cfg.Node, err)
	}
	return &logSource{w, chain, name}, nil
}

// logSource never shows a byte of an own log that recovery could still cut off (P5):
// until that has run, only what was published as durable.
type logSource struct {
	w     *worker
	chain *logfile.Chain
	name  logfile.Name
}

func (s *logSource) ReadAt(p []byte, off int64) (int, error) { return s.chain.ReadAt(s.name, p, off) }

func (s *logSource) Wait(ctx context.Context, beyond int64) (int64, bool, error) {
	for s.name.Host == s.w.n.cfg.Node && !s.w.recoveredOwn.Load() {
		limit := s.published()
		size, err := s.chain.Durable(s.name)
		if limit = min(limit, size); err != nil || limit > beyond || beyond < 0 {
			return limit, false, err
		}
		select {
		case <-ctx.Done():
			return 0, false, context.Cause(ctx)
		case <-time.After(s.w.n.cfg.Publish):
		}
	}
	return s.chain.Wait(ctx, s.name, beyond)
}

// published is the length that this node's version link vouches for.
func (s *logSource) published() int64 {
	v := s.w.get(s.w.r.VersionPath(s.name.Seq, s.name.Host))
	if l, err := symlinktree.ParseVersion(v); err == nil && nameOf(l) == s.name {
		return l.Pos
	}
	return 0
}

func (s *logSource) Close() error { return nil }
