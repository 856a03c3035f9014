package symlinktree

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"mars/internal/vfs"
)

const (
	// debounce is how long events are collected before anybody looks at the disk.
	debounce = 2 * time.Millisecond
	// maxNames is how many links of a directory are looked at one by one; beyond
	// that the whole directory is.
	maxNames = 32
)

// notifier tells that something may have changed. Events are cues: they may be
// late, doubled, mixed up or missing.
type notifier interface {
	Events() <-chan fsnotify.Event
	Errors() <-chan error
	Add(dir string) error // idempotent; dir is a directory and not a link
	Close() error
}

// newNotifier returns nil and the reason where there are no events to be had.
func (t *Tree) newNotifier() (notifier, error) {
	if t.notify != nil {
		return t.notify, nil
	}
	if t.fs != vfs.OS {
		return nil, errors.New("this file layer has no notification")
	}
	n, err := newInotify()
	if err != nil {
		return nil, fmt.Errorf("%w (raise fs.inotify.max_user_instances)", err)
	}
	return n, nil
}

// Watch keeps the memory equal to the disk until ctx ends, and returns its
// cause: edits by hand and by other processes are taken within milliseconds
// where the kernel gives events, and within PollInterval where it does not. An
// event is only a cue to look; a full rescan at the start, after lost events and
// every RescanInterval catches what has slipped through. One Watch per Tree.
func (t *Tree) Watch(ctx context.Context) error {
	w := &watcher{
		t:      t,
		dirty:  make(map[string]map[string]bool),
		second: make(map[string]time.Time),
		cue:    make(chan struct{}, 1),
	}
	n, err := t.newNotifier()
	if err != nil {
		w.degrade(err)
	} else {
		w.n = n
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { w.collect(done) })
		defer wg.Wait()
		defer close(done)
		defer n.Close()
	}
	return w.run(ctx)
}

// watcher is one run of Watch.
type watcher struct {
	t      *Tree
	n      notifier // nil: polling
	polls  bool     // events are incomplete or absent: rescan often
	second map[string]time.Time
	cue    chan struct{}

	mu    sync.Mutex
	dirty map[string]map[string]bool // directory -> names; nil: the whole directory
	lost  bool                       // events were lost: everything is dirty
}

// collect drains the events at once, so that the kernel's queue stays short.
func (w *watcher) collect(done <-chan struct{}) {
	events, errs := w.n.Events(), w.n.Errors()
	for {
		select {
		case <-done:
			return
		case ev, ok := <-events:
			if !ok {
				return
			}
			if w.note(ev) {
				w.wake()
			}
		case err, ok := <-errs:
			if !ok {
				return
			}
			w.t.log.Info("events lost, rescanning", keyError, err)
			w.mu.Lock()
			w.lost = true
			w.mu.Unlock()
			w.wake()
		}
	}
}

func (w *watcher) wake() {
	select {
	case w.cue <- struct{}{}:
	default:
	}
}

// note marks what an event is about as dirty, unless it is none of our business:
// writing to a logfile, temporary names.
func (w *watcher) note(ev fsnotify.Event) bool {
	if ev.Op == fsnotify.Write {
		return false
	}
	rel, ok := strings.CutPrefix(ev.Name, w.t.root)
	if !ok || rel != "" && rel[0] != '/' {
		return false
	}
	path := strings.TrimPrefix(rel, "/")
	dir, name := splitPath(path)
	if strings.HasPrefix(name, ".") || dirClass(dir) == classUnknown {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	names, known := w.dirty[dir]
	switch {
	case name == "" || len(names) >= maxNames:
		w.dirty[dir] = nil
	case !known:
		w.dirty[dir] = map[string]bool{name: true}
	case names != nil:
		names[name] = true
	}
	return true
}

func (w *watcher) run(ctx context.Context) error {
	w.full()
	interval := w.interval()
	full := time.NewTimer(interval)
	defer full.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		w.rearm(again)
		if now := w.interval(); now != interval { // degraded meanwhile
			interval = now
			full.Reset(interval)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
			w.secondLook()
		case <-full.C:
			w.full()
			full.Reset(interval)
		case <-w.cue:
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(debounce):
				w.flush()
			}
		}
	}
}

func (w *watcher) interval() time.Duration {
	if w.polls {
		return min(w.t.opt.PollInterval, w.t.opt.RescanInterval)
	}
	return w.t.opt.RescanInterval
}

// degrade switches to polling, and says so once.
func (w *watcher) degrade(err error) {
	if !w.polls {
		w.polls = true
		w.t.log.Warn("no events for part of the tree, polling instead", keyError, err)
	}
}

// flush looks at everything that is dirty.
func (w *watcher) flush() {
	w.mu.Lock()
	dirty, lost := w.dirty, w.lost
	w.dirty, w.lost = make(map[string]map[string]bool), false
	w.mu.Unlock()
	if lost {
		w.full()
		return
	}
	for dir, names := range dirty {
		if names == nil {
			w.rescan(dir, false)
			continue
		}
		for name := range names {
			path := joinPath(dir, name)
			if childClass(dir, name) == classUnknown {
				w.reconcile(path, true)
			} else if there, _ := w.t.isDir(path); there {
				w.rescan(path, true) // a new one may have come with everything in it
			} else {
				w.rescan(dir, false)
			}
		}
	}
}

func (w *watcher) full() {
	w.took(w.t.rescan(nil, scanOptions{patience: true, visit: w.add}))
}

func (w *watcher) rescan(dir string, deep bool) {
	w.took(w.t.rescan([]string{dir}, scanOptions{patience: true, deep: deep, visit: w.add}))
}

func (w *watcher) reconcile(path string, patience bool) {
	w.t.mu.Lock()
	out, err := w.t.reconcile(path, patience)
	w.t.mu.Unlock()
	w.took(out, err)
}

// took deals with what a look at the disk has brought.
func (w *watcher) took(out outcome, err error) {
	due := time.Now().Add(w.t.opt.VanishDelay)
	for _, path := range out.gone {
		if _, waiting := w.second[path]; !waiting {
			w.second[path] = due
		}
	}
	if err != nil && !errors.Is(err, ErrVanished) { // that was logged when it happened
		w.t.log.Warn("rescan", keyError, err)
	}
}

// secondLook settles the links that had vanished a while ago.
func (w *watcher) secondLook() {
	now := time.Now()
	for path, due := range w.second {
		if !now.Before(due) {
			delete(w.second, path)
			w.reconcile(path, false)
		}
	}
}

func (w *watcher) rearm(timer *time.Timer) {
	next := time.Hour
	for _, due := range w.second {
		next = min(next, time.Until(due))
	}
	timer.Reset(max(next, 0))
}

// add watches a directory before it is read, so that nothing falls between.
func (w *watcher) add(dir string) {
	if w.n == nil {
		return
	}
	if there, err := w.t.isDir(dir); err != nil || !there {
		return // never a link: the kernel would follow it
	}
	if err := w.n.Add(w.t.abs(dir)); err != nil && !notThere(err) {
		w.degrade(fmt.Errorf("watch %s: %w (raise fs.inotify.max_user_watches)", w.t.abs(dir), err))
	}
}
