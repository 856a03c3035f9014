package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mars/logfile"
)

// fetchJob is one running log subscription.
type fetchJob struct {
	what    FetchFact
	cancel  context.CancelCauseFunc
	done    chan struct{}
	pos     atomic.Int64 // what is here
	moved   atomic.Int64 // when something arrived last, in nanoseconds since begun
	storing atomic.Bool  // what has arrived is being written
	stalled atomic.Bool
	arrived chan struct{} // something has
	begun   time.Time
	from    int64 // where the subscription began; of fetchLog, then of fetched
}

var (
	errFetchLimit = errors.New("the branch that we follow leaves this log here")
	errStalled    = errors.New("another member has more of the log, and this one has sent nothing")
)

// Waits of a fetch in terms of the retry settings, so that tests with quick ones are quick.
const (
	stallRetries    = 2  // times RetryMax: nothing arrives for so long although somebody has more
	distrustRetries = 12 // times RetryMax: who sent damage, or fell behind, is asked last
)

func (w *worker) startFetch(f FetchFact) {
	p := w.n.peer(f.Peer)
	chain, _ := w.shared.get()
	if p == nil || chain == nil {
		return
	}
	if w.ended.holds(f.Log, chain) && readVersions(w.tree(), w.r).published(f.Log) <= w.ended.at {
		return
	}
	ctx, cancel := context.WithCancelCause(w.ctx)
	job := &fetchJob{what: f, cancel: cancel, done: make(chan struct{}), arrived: make(chan struct{}, 1), begun: time.Now()}
	w.fetch = job
	go func() {
		var watch sync.WaitGroup
		watch.Go(func() { w.watchFetch(ctx, job) })
		watch.Go(func() { w.reportFetch(ctx, job) })
		err := w.fetchLog(ctx, p, chain, job)
		if err == nil {
			w.reportEnd(ctx, job)
		}
		cancel(nil)
		watch.Wait()
		close(job.done)
		w.later(func() { w.fetched(job, err) })
	}()
}

// stopFetch ends the subscription; its last bytes are in the file when it returns.
func (w *worker) stopFetch() {
	if w.fetch != nil {
		w.fetch.cancel(context.Canceled)
		<-w.fetch.done
		w.supplied(w.fetch)
		w.fetch = nil
	}
}

// fetched is called when a subscription has ended by itself.
func (w *worker) fetched(job *fetchJob, err error) {
	if w.fetch == job {
		w.fetch = nil
		w.supplied(job)
	}
	if err == nil && job.pos.Load() == job.from {
		w.ended = endedLog{job.what.Log, job.from, time.Now().Add(w.n.cfg.RetryMax)}
		time.AfterFunc(w.n.cfg.RetryMax, w.kick)
	}
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, errFetchLimit) || errors.Is(err, errSpace) {
		return
	}
	w.log.Warn("fetch interrupted", keyLog, job.what.Log.String(), keyPeer, job.what.Peer, keyErr, err)
	pause := w.n.cfg.RetryMin
	switch {
	case errors.Is(err, errStalled):
		w.suspect(job.what.Peer)
	case errors.Is(err, fs.ErrNotExist):
		pause = w.n.cfg.RetryMax // it does not have that log: try others meanwhile
	}
	w.avoid[job.what.Peer] = time.Now().Add(pause)
	time.AfterFunc(pause, w.kick)
}

// endedLog is a log that its source has left, as it says, and of which everything is here. Until somebody
// begins the next one, or says that there is more, it is asked for again only now and then.
type endedLog struct {
	log   logfile.Name
	at    int64
	until time.Time
}

func (e *endedLog) holds(log logfile.Name, chain *logfile.Chain) bool {
	if e.log != log || !time.Now().Before(e.until) {
		return false
	}
	size, err := chain.Size(log)
	return err == nil && size == e.at
}

// watchFetch ends a subscription that brings nothing although another live member
// has more, and says that one stands still if nobody else can help. A source that is silent altogether is
// noticed by the transport, much earlier.
func (w *worker) watchFetch(ctx context.Context, job *fetchJob) {
	limit := stallRetries * w.n.cfg.RetryMax
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		quiet := time.Since(job.begun)-time.Duration(job.moved.Load()) >= limit && !job.storing.Load()
		if !quiet {
			job.stalled.Store(false)
			continue
		}
		pos, alive := job.pos.Load(), w.n.alive()
		if job.what.Limit >= 0 && pos >= job.what.Limit {
			continue
		}
		v := readVersions(w.tree(), w.r)
		for host := range v.bySeq[job.what.Log.Seq] {
			if at, ok := v.holds(host, job.what.Log); ok && at > pos && host != job.what.Peer && alive[host] && v.agree(host, job.what.Log) {
				job.cancel(fmt.Errorf("%w for %v", errStalled, limit))
				return
			}
		}
		if stalled := v.published(job.what.Log) > pos; job.stalled.Swap(stalled) != stalled {
			w.kick()
		}
	}
}

// supply says that a peer has sent a log from a place on.
type supply struct {
	peer string
	from int64
}

// supplied remembers who has sent what.
func (w *worker) supplied(job *fetchJob) {
	log := job.what.Log
	if job.pos.Load() <= job.from {
		return
	}
	list := slices.DeleteFunc(w.supplies[log], func(s supply) bool { return s.from >= job.from })
	if n := len(list); n == 0 || list[n-1].peer != job.what.Peer {
		list = append(list, supply{job.what.Peer, job.from})
	}
	if len(list) > maxSupplies {
		list = list[1:]
	}
	w.supplies[log] = list
	if len(w.supplies) > 2*maxPrefetch {
		oldest := log
		for l := range w.supplies {
			if l.Seq < oldest.Seq {
				oldest = l
			}
		}
		delete(w.supplies, oldest)
	}
}

const maxSupplies = 16

// blame distrusts the peer that has sent a damaged place for a while: its copy may be the damaged one.
// A node that has nobody else asks it again all the same.
func (w *worker) blame(log logfile.Name, at int64) {
	for _, s := range slices.Backward(w.supplies[log]) {
		if s.from <= at {
			w.suspect(s.peer)
			return
		}
	}
}

func (w *worker) suspect(peer string) {
	pause := distrustRetries * w.n.cfg.RetryMax
	w.distrust[peer] = time.Now().Add(pause)
	time.AfterFunc(pause, w.kick)
}

// present lists what is not over yet, and forgets the rest.
func present(until map[string]time.Time) map[string]bool {
	out := make(map[string]bool)
	for p, t := range until {
		if time.Now().Before(t) {
			out[p] = true
		} else {
			delete(until, p)
		}
	}
	return out
}

// needed are the copies whose files have to be there.
func (w *worker) needed() (list []logfile.Name) {
	if w.fetch != nil && w.fetch.pos.Load() > 0 {
		list = append(list, w.fetch.what.Log)
	}
	if eng := w.engine(); eng != nil && !eng.Status().Current.IsZero() {
		list = append(list, eng.Status().Current)
	}
	return list
}

// recheck looks at a copy that seems to be missing or shorter than what was fetched. What somebody has cut off it is
// fetched again: a subscription of that log begins anew at its end.
func (w *worker) recheck(chain *logfile.Chain, name logfile.Name) (changed bool) {
	changed, err := chain.Recheck(name)
	if w.fetch != nil && w.fetch.what.Log == name && w.fetch.pos.Load() > 0 && err == nil {
		// The chain may have noticed before.
		_, serr := chain.Size(name)
		changed = changed || errors.Is(serr, fs.ErrNotExist)
	}
	switch {
	case err != nil:
		w.log.Error("cannot look at a copy of a logfile", keyLog, name.String(), keyErr, err)
	case changed:
		w.log.Warn("a copy of a logfile has been cut, replaced or removed; what is missing is fetched again", keyLog, name.String())
		if w.fetch != nil && w.fetch.what.Log == name {
			w.stopFetch()
		}
		w.kick()
	}
	return changed
}

// fetchLog appends what the peer sends to the local copy, until the log is
// complete, the branch point is reached, or the connection ends. A second
// goroutine syncs: while one fdatasync runs, the next frames collect.
func (w *worker) fetchLog(ctx context.Context, p *peer, chain *logfile.Chain, job *fetchJob) (err error) {
	f := job.what
	off, err := chain.Size(f.Log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	job.from = off
	job.pos.Store(off)
	stop := LevelFetch
	if p, _ := w.n.tree.Get(w.r.PrimaryPath()); p == w.n.cfg.Node {
		stop = LevelEmergency // it has to catch up before it can lead
	}
	syncer := newSyncer(chain, f.Log)
	defer func() { err = errors.Join(err, syncer.close()) }()
	return p.client.Log(ctx, string(w.r), f.Log.String(), off, func(off int64, data []byte, _ int64, _ bool) error {
		job.storing.Store(true)
		defer job.storing.Store(false)
		limited := f.Limit >= 0 && off+int64(len(data)) >= f.Limit
		if limited {
			data = data[:max(0, f.Limit-off)]
		}
		if len(data) > 0 || off == 0 {
			if err := w.n.mayFetch(len(data), stop); err != nil {
				return err
			}
			if err := chain.AppendRaw(f.Log, off, data); err != nil {
				return fmt.Errorf("append to %s at %d: %w", f.Log, off, err)
			}
			if err := syncer.kick(); err != nil {
				return err
			}
			job.pos.Store(off + int64(len(data)))
			job.moved.Store(int64(time.Since(job.begun)))
			select {
			case job.arrived <- struct{}{}:
			default:
			}
		}
		if limited {
			return errFetchLimit
		}
		return nil
	})
}

// syncer makes appended bytes durable as fast as the disk allows.
type syncer struct {
	chain *logfile.Chain
	log   logfile.Name
	wake  chan struct{}
	done  chan struct{}
	mu    sync.Mutex
	err   error
}

func newSyncer(c *logfile.Chain, log logfile.Name) *syncer {
	s := &syncer{chain: c, log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for range s.wake {
			if _, err := s.chain.SyncRaw(s.log); err != nil {
				s.mu.Lock()
				s.err = fmt.Errorf("sync %s: %w", s.log, err)
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func (s *syncer) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// kick asks for a sync and reports whether an earlier one failed.
func (s *syncer) kick() error {
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.failed()
}

func (s *syncer) close() error {
	close(s.wake)
	<-s.done
	return s.failed()
}
