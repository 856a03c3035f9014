package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"mars/logfile"
)

// fetchJob is one running log subscription.
type fetchJob struct {
	what   FetchFact
	cancel context.CancelFunc
	done   chan struct{}
}

var errFetchLimit = errors.New("the branch that we follow leaves this log here")

func (w *worker) startFetch(f FetchFact) {
	p := w.n.peer(f.Peer)
	chain, _ := w.shared.get()
	if p == nil || chain == nil {
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	job := &fetchJob{what: f, cancel: cancel, done: make(chan struct{})}
	w.fetch = job
	go func() {
		err := w.fetchLog(ctx, p, chain, f)
		cancel()
		close(job.done)
		w.later(func() { w.fetched(job, err) })
	}()
}

// stopFetch ends the subscription; its last bytes are in the file when it returns.
func (w *worker) stopFetch() {
	if w.fetch != nil {
		w.fetch.cancel()
		<-w.fetch.done
		w.fetch = nil
	}
}

// fetched is called when a subscription has ended by itself.
func (w *worker) fetched(job *fetchJob, err error) {
	if w.fetch == job {
		w.fetch = nil
	}
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, errFetchLimit) || errors.Is(err, errSpace) {
		return
	}
	w.log.Warn("fetch interrupted", keyLog, job.what.Log.String(), keyPeer, job.what.Peer, keyErr, err)
	pause := w.n.cfg.RetryMin
	if errors.Is(err, fs.ErrNotExist) {
		pause = w.n.cfg.RetryMax // it does not have that log: try others meanwhile
	}
	w.avoid[job.what.Peer] = time.Now().Add(pause)
	time.AfterFunc(pause, w.kick)
}

// fetchLog appends what the peer sends to the local copy, until the log is
// complete, the branch point is reached, or the connection ends. A second
// goroutine syncs: while one fdatasync runs, the next frames collect.
func (w *worker) fetchLog(ctx context.Context, p *peer, chain *logfile.Chain, f FetchFact) (err error) {
	off, err := chain.Size(f.Log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	stop := LevelFetch
	if p, _ := w.n.tree.Get(w.r.PrimaryPath()); p == w.n.cfg.Node {
		stop = LevelEmergency // it has to catch up before it can lead
	}
	syncer := newSyncer(chain, f.Log)
	defer func() { err = errors.Join(err, syncer.close()) }()
	return p.client.Log(ctx, string(w.r), f.Log.String(), off, func(off int64, data []byte, _ int64, _ bool) error {
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
