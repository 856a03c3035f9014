package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mars/device"
	"mars/logfile"
	"mars/symlinktree"
)

// worker drives one resource on this node: it looks at tree and facts, lets decide
// say what to do, does it, and publishes what became true. All its fields without
// another remark belong to its run goroutine.
type worker struct {
	n     *Node
	r     symlinktree.Resource
	log   *slog.Logger
	wake  chan struct{}
	stop  chan struct{}
	done  chan struct{}
	once  sync.Once
	ready chan completion // the transition under way has ended
	post  chan func()     // what background jobs want done in the run goroutine

	sieve sieve // what decisions are made of
	found found // logs from before this marsd
	// reports: a primary waits for what this node receives (sync-mode).
	reports atomic.Bool
	shared  shared // what peers and background jobs look at

	// recoveredOwn is recovered for other goroutines: own logs are served to their
	// end; before, only as far as they were published.
	recoveredOwn atomic.Bool

	// Of the node's watch on the space of its logs; see lookAtSpace.
	emergency, near atomic.Bool
	jammed          atomic.Int64 // in emergency mode at least until then, in Unix nanoseconds

	syncHeld atomic.Bool // a sync has failed and waits before it tries again

	disk      *device.Disk
	export    Exported
	recovered bool
	damage    *Damage // of the own logs; the last recovery failed because of it
	verdict   error   // its cause
	givenUp   int     // highest number of an own log that was set aside
	busy      string  // transition under way
	backoff   backoff
	ctx       context.Context // of the run goroutine
	cancel    context.CancelFunc

	fetch     *fetchJob
	ended     endedLog
	avoid     map[string]time.Time
	distrust  map[string]time.Time
	supplies  map[logfile.Name][]supply // who has sent what is here
	refetches refetches
	syncing   *syncJob
	syncRetry backoff

	resizeRetry backoff

	messages map[string]string // published msg- keys -> text
	rates    rates
	looked   time.Time // last round
	progress progress
}

// shared is the part of a worker that other goroutines may look at.
type shared struct {
	mu    sync.Mutex
	chain *logfile.Chain
	eng   *device.Engine
}

func (s *shared) get() (*logfile.Chain, *device.Engine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain, s.eng
}

func (s *shared) set(c *logfile.Chain, e *device.Engine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chain, s.eng = c, e
}

// completion is the result of a transition; apply runs in the run goroutine.
type completion struct {
	name  string
	err   error
	apply func()
}

func newWorker(n *Node, r symlinktree.Resource) *worker {
	w := &worker{
		n: n, r: r, log: n.log.With(keyResource, string(r)),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		ready:     make(chan completion, 1),
		post:      make(chan func(), 4),
		avoid:     make(map[string]time.Time),
		distrust:  make(map[string]time.Time),
		supplies:  make(map[logfile.Name][]supply),
		messages:  make(map[string]string),
		backoff:   backoff{min: n.cfg.RetryMin, max: 30 * time.Second},
		syncRetry: backoff{min: n.cfg.RetryMin, max: n.cfg.RetryMax},

		resizeRetry: backoff{min: n.cfg.RetryMin, max: n.cfg.RetryMax},
		refetches:   refetches{min: n.cfg.RetryMax, slow: slowRefetch * n.cfg.RetryMax},
	}
	w.sieve.log = w.log
	// What was said before a restart, or by a kernel MARS, is to be taken back.
	for _, e := range n.tree.List(r.ActualDir(n.cfg.Node)) {
		if key, ok := strings.CutPrefix(filepath.Base(e.Path), "msg-"); ok && e.Value != symlinktree.MessageOK {
			w.messages[key] = e.Value
		}
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

func (w *worker) dir() string { return filepath.Join(w.n.cfg.Root, w.r.Dir()) }

// kick asks for another look, soon.
func (w *worker) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) close() { w.once.Do(func() { close(w.stop); w.kick() }) }

func (w *worker) closing() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// run looks, decides, acts and publishes until the resource is detached after
// close.
func (w *worker) run() {
	defer close(w.done)
	defer w.cancel()
	tick := time.NewTicker(w.n.cfg.Scan)
	defer tick.Stop()
	for {
		w.round()
		if w.closing() && w.busy == "" && w.engine() == nil {
			w.release()
			return
		}
		pause := minRound
		select {
		case <-w.ctx.Done():
			w.abandon()
			return
		case <-w.wake:
		case <-tick.C:
		case <-w.changed():
			pause = progressRound
		case c := <-w.ready:
			w.complete(c)
		case f := <-w.post:
			f()
		}
		w.pace(pause)
	}
}

// pace bounds the rounds of a busy resource: progress is published a few times a
// second, not for every record.
func (w *worker) pace(pause time.Duration) {
	if wait := pause - time.Since(w.looked); wait > 0 {
		select {
		case <-time.After(wait):
		case <-w.wake:
			w.pace(minRound)
		case c := <-w.ready:
			w.complete(c)
		}
	}
}

// The shortest time between two rounds of one resource; the longer one if only
// the engine has got on.
const (
	minRound      = 10 * time.Millisecond
	progressRound = 50 * time.Millisecond
)

// release frees what outlives a detach.
func (w *worker) release() {
	chain, _ := w.shared.get()
	w.shared.set(nil, nil)
	if chain != nil {
		chain.Close()
	}
}

func (w *worker) engine() *device.Engine { _, e := w.shared.get(); return e }

func (w *worker) changed() <-chan struct{} {
	if e := w.engine(); e != nil {
		return e.Changed()
	}
	return nil
}

func (w *worker) round() {
	if err := w.openChain(); err != nil {
		w.log.Error("cannot open the logfiles", keyPath, w.dir(), keyErr, err)
		return
	}
	s := w.tree()
	f := w.facts(s)
	w.tune(s) // before a device can appear
	actions := decide(s, w.r, f)
	said := make(map[string]string)
	w.mend(s)
	if text := w.sieve.complaint(); text != "" {
		said[msgBroken] = text
	}
	for _, a := range actions {
		if m, ok := a.(Say); ok {
			said[m.Key] = m.Text
			continue
		}
		w.log.Debug("step", keyAction, a.String())
		w.act(a)
	}
	w.publish(s, f, said)
	w.looked = time.Now()
}

// openChain opens the resource's logfiles once the directory exists.
func (w *worker) openChain() error {
	if c, _ := w.shared.get(); c != nil {
		return nil
	}
	c, err := logfile.OpenChain(w.n.cfg.FS, w.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := w.inherit(c); err != nil {
		return errors.Join(err, c.Close())
	}
	w.shared.set(c, nil)
	return nil
}

// found is how long logs were when this marsd first saw them.
type found struct {
	mu   sync.Mutex
	size map[logfile.Name]int64
}

// facts reads this node's side.
func (w *worker) facts(s *symlinktree.Snapshot) Facts {
	f := Facts{
		Node: w.n.cfg.Node, Busy: w.busy, Holdoff: w.backoff.reason(), ResizeFailed: w.resizeRetry.reason(),
		Recovered: w.recovered, Damage: w.damage, GivenUp: w.givenUp, Alive: w.n.alive(), Closing: w.closing(),
		Heard: w.n.heardAll(symlinktree.Members(s, w.r)), RotateSize: w.n.rotateSize.Load(),
		Avoid: present(w.avoid), Distrust: present(w.distrust),
	}
	f.Space, f.SyncQueued = w.spaceFacts(), !w.syncTurn(s, f.Alive)
	chain, eng := w.shared.get()
	w.logFacts(&f, chain)
	if w.fetch != nil {
		ff := w.fetch.what
		f.Fetch, f.FetchStalled = &ff, w.fetch.stalled.Load()
	}
	if w.syncing != nil {
		f.Syncing, f.SyncStalled = w.syncing.peer, w.syncing.stalled.Load()
	}
	if eng == nil {
		return f
	}
	st := eng.Status()
	f.Current, f.Size = st.Current, st.Size
	f.Ingested = st.IngestEnd.Offset
	if st.IngestEnd.Log != st.Current {
		f.Ingested = 0
	}
	f.LogSize, f.LogFailed = st.LogEnd, st.Mode == device.Error
	f.LogFull, f.Direct = st.LogFull, st.Mode == device.Direct
	switch st.Mode {
	case device.Replaying:
		f.Mode = ModeReplaying
	case device.Logging, device.Error, device.Direct:
		f.Mode = ModeLogging
	case device.Ceasing:
		f.Mode, f.LogFailed, f.LogFull = ModeLogging, true, true
	case device.Closed:
		f.Mode = ModeDetached
	default:
		f.Mode = ModeIdle
	}
	var torn *logfile.TornError
	var corrupt *logfile.CorruptError
	switch {
	case errors.As(st.ReplayErr, &torn), st.ReplayErr == nil && st.Torn:
		f.Torn = true
	case errors.As(st.ReplayErr, &corrupt):
		f.Damaged, f.DamagedAt = corrupt.Reason, corrupt.Offset
		f.Refetches = w.refetches.count(st.Current, corrupt.Offset, readVersions(s, w.r).sourceState(st.Current, f.Node), time.Now())
	case st.ReplayErr != nil:
		f.Damaged, f.DamagedAt = st.ReplayErr.Error(), -1
		f.Refetches = maxRefetches // not something that fetching heals
	}
	if w.export != nil {
		f.Exported, f.OpenCount = true, w.export.OpenCount()
	}
	return f
}

func (w *worker) logFacts(f *Facts, chain *logfile.Chain) {
	if chain == nil {
		return
	}
	list, err := chain.List()
	if err != nil {
		w.log.Error("cannot list logfiles", keyPath, w.dir(), keyErr, err)
		return
	}
	for _, l := range list {
		size, err := chain.Durable(l.Name)
		if err != nil {
			w.log.Error("cannot read a logfile", keyLog, l.Name.String(), keyErr, err)
			continue
		}
		if size > l.Size && l.Name.Host != w.n.cfg.Node && w.recheck(chain, l.Name) {
			size = l.Size
		}
		f.Logs = append(f.Logs, LogFact{l.Name, size})
	}
	for _, name := range w.needed() {
		if _, ok := f.log(name); !ok && name.Host != w.n.cfg.Node {
			w.recheck(chain, name)
		}
	}
}

// later hands f to the run goroutine, unless that has ended.
func (w *worker) later(f func()) {
	select {
	case w.post <- f:
	case <-w.ctx.Done():
	}
}

// begin runs a transition in the background; only one at a time.
func (w *worker) begin(name string, f func(ctx context.Context) (apply func(), err error)) {
	w.busy = name
	w.log.Info("begin", keyAction, name)
	go func() {
		apply, err := f(w.ctx)
		w.ready <- completion{name, err, apply}
	}()
}

func (w *worker) complete(c completion) {
	w.busy = ""
	if c.apply != nil {
		c.apply() // what became true even if the transition failed later on
	}
	if c.err != nil {
		w.backoff.fail(fmt.Sprintf("%s of %s: %v", c.name, w.r, c.err), w.kick)
		w.log.Error("failed", keyAction, c.name, keyErr, c.err)
		return
	}
	w.backoff.ok()
	w.log.Info("done", keyAction, c.name)
	w.kick()
}

// backoff spaces out the repetitions of something that fails.
type backoff struct {
	min, max time.Duration
	pause    time.Duration
	until    time.Time
	text     string
}

// fail starts a pause, twice as long as the last one; wake is called at its end.
func (b *backoff) fail(text string, wake func()) {
	b.pause = min(max(b.pause*2, b.min), b.max)
	b.until, b.text = time.Now().Add(b.pause), text
	time.AfterFunc(b.pause, wake)
}

func (b *backoff) ok() { b.pause, b.text, b.until = 0, "", time.Time{} }

// reason is what failed, while the pause lasts.
func (b *backoff) reason() string {
	if time.Now().Before(b.until) {
		return b.text
	}
	return ""
}
