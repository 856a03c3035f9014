package symlinktree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"mars/internal/testutil"
)

// watching runs Watch until the test ends, and returns after its first scan.
func watching(t *testing.T, tr *Tree) {
	t.Helper()
	cause := errors.New("test is over")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Watch(ctx) }()
	t.Cleanup(func() {
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("Watch returned %v", err)
		}
	})
}

func is(tr *Tree, path, value string) func() bool {
	return func() bool { v, ok := tr.Get(path); return ok && v == value }
}

func run(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// Edits with the administrator's own tools, with the real kernel events. The full
// rescan is an hour away: only events can bring them.
func TestWatchByHand(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{RescanInterval: time.Hour, VanishDelay: 20 * time.Millisecond})
	set(t, tr, "resource-r/primary", "a", "resource-r/size", "1", "resource-r/systemd-want", "h", "local-me/request", "x")
	watching(t, tr)
	byHand(t, root+"/ready", "1", tr.Clock().Now())
	testutil.WaitFor(t, 5*time.Second, "Watch is running", is(tr, "ready", "1"))

	want, _ := tr.Entry("resource-r/systemd-want")
	for _, tc := range []struct {
		name, script string
		then         func() bool
	}{
		{"ln -sfn", "ln -sfn b resource-r/primary", is(tr, "resource-r/primary", "b")},
		{"ln -sfn with an old time", "ln -sfn c resource-r/.x; touch -h -d @5 resource-r/.x; mv -T resource-r/.x resource-r/primary", is(tr, "resource-r/primary", "c")},
		{"touch -h", "touch -h resource-r/systemd-want", func() bool { e, _ := tr.Entry("resource-r/systemd-want"); return e.Stamp > want.Stamp }},
		{"rm", "rm resource-r/size", func() bool { e, _ := tr.Entry("resource-r/size"); return e.IsDeleted() }},
		{"rm of a request", "rm local-me/request", func() bool { _, ok := tr.Entry("local-me/request"); return !ok }},
		{"mkdir and link at once", "mkdir resource-q; ln -s d resource-q/primary", is(tr, "resource-q/primary", "d")},
		{"mkdir -p and link at once", "mkdir -p resource-p/todo-h; ln -s 1 resource-p/todo-h/attach", is(tr, "resource-p/todo-h/attach", "1")},
		{"link in the directory made before", "ln -sfn 0 resource-p/todo-h/attach", is(tr, "resource-p/todo-h/attach", "0")},
		{"mv", "mv resource-q/primary resource-q/syncfrom-x", func() bool {
			v, _ := tr.Get("resource-q/syncfrom-x")
			_, ok := tr.Get("resource-q/primary")
			return v == "d" && !ok
		}},
		{"a directory moved in", "mkdir .made; ln -s 10.0.0.9 .made/ip-n; mv .made ips", is(tr, "ips/ip-n", "10.0.0.9")},
		{"a name as ln makes them", "mkdir -p userspace; ln -s x userspace/Customer", is(tr, "userspace/Customer", "x")},
		{"a root link", "ln -s u uuid", is(tr, "uuid", "u")},
		{"directory made again", "rm -r resource-p/todo-h; mkdir resource-p/todo-h; ln -s 1 resource-p/todo-h/sync", is(tr, "resource-p/todo-h/sync", "1")},
		{"link in the one made again", "ln -s 1 resource-p/todo-h/connect", is(tr, "resource-p/todo-h/connect", "1")},
	} {
		run(t, root, tc.script)
		testutil.WaitFor(t, time.Second, tc.name, tc.then)
	}
	testutil.WaitFor(t, time.Second, "disk and memory agree", func() bool { return diff(disk(t, root), memory(tr)) == "" })
}

// The name under which ln makes a link is none of ours if it is gone at the second look.
func TestPassingNames(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	set(t, tr, "resource-r/primary", "a")
	const tmp = "resource-r/CuAb12xy"
	run(t, root, "ln -s b "+tmp)
	look := func(path string) {
		t.Helper()
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if _, err := tr.reconcile(path, false); err != nil {
			t.Fatal(err)
		}
	}
	out, err := tr.rescan(nil, scanOptions{patience: true})
	if _, known := tr.Entry(tmp); known || err != nil || len(out.gone) != 1 || len(out.changed) != 0 {
		t.Fatalf("first look: %+v, %v, known %v", out, err, known)
	}
	run(t, root, "mv -T "+tmp+" resource-r/primary")
	look(tmp)
	look("resource-r/primary")
	if _, known := tr.Entry(tmp); known {
		t.Error("the passing name has left something")
	}
	if v, _ := tr.Get("resource-r/primary"); v != "b" {
		t.Errorf("primary is %q", v)
	}
	run(t, root, "ln -s b "+tmp)
	look(tmp)
	if v, _ := tr.Get(tmp); v != "b" {
		t.Error("a name that stays is not taken at the second look")
	}
}

// rm -rf of a directory is an accident, not many deletions.
func TestWatchRemovedDirectory(t *testing.T) {
	root := t.TempDir()
	var log lockedText
	tr := open(t, root, Options{RescanInterval: time.Hour, VanishDelay: 300 * time.Millisecond, Log: textLog(&log)})
	for i := range 50 {
		set(t, tr, fmt.Sprintf("resource-r/link-%d", i), "1")
	}
	watching(t, tr)
	byHand(t, root+"/ready", "1", tr.Clock().Now())
	testutil.WaitFor(t, 5*time.Second, "Watch is running", is(tr, "ready", "1"))
	run(t, root, "rm -rf resource-r")
	testutil.WaitFor(t, 2*time.Second, "the loss is reported", func() bool { return strings.Contains(log.String(), "resource-r") })
	run(t, root, "mkdir resource-r; ln -s 2 resource-r/new")
	testutil.WaitFor(t, 2*time.Second, "the directory is restored", func() bool {
		_, ok := tr.Get("resource-r/new")
		return ok && diff(disk(t, root), memory(tr)) == ""
	})
	if n := len(tr.List("resource-r")); n != 51 {
		t.Errorf("%d links are left", n)
	}
}

// Own writes come back as events. They must not look like changes.
func TestWatchOwnWrites(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{RescanInterval: time.Hour})
	watching(t, tr)
	byHand(t, root+"/ready", "1", tr.Clock().Now())
	testutil.WaitFor(t, 5*time.Second, "Watch is running", is(tr, "ready", "1"))
	start := tr.Seq()
	const writes = 500
	for i := range writes {
		set(t, tr, fmt.Sprintf("resource-r/todo-h/k%d", i%7), fmt.Sprint(i))
	}
	before := memory(tr)
	// Anything that Watch makes of these events comes before what it makes of the next one.
	byHand(t, root+"/resource-r/todo-h/last", "1", tr.Clock().Now())
	testutil.WaitFor(t, 5*time.Second, "the last event", is(tr, "resource-r/todo-h/last", "1"))
	if n := tr.Seq() - start; n != writes+1 {
		t.Errorf("%d changes for %d writes", n, writes+1)
	}
	after := memory(tr)
	delete(after, "resource-r/todo-h/last")
	if d := diff(before, after); d != "" {
		t.Error(d)
	}
}

// fakeNotifier gives the events that a test wants.
type fakeNotifier struct {
	events chan fsnotify.Event
	errs   chan error
	mu     sync.Mutex
	added  map[string]int
	refuse error
}

func newFakeNotifier() *fakeNotifier {
	return &fakeNotifier{events: make(chan fsnotify.Event), errs: make(chan error), added: make(map[string]int)}
}

func (f *fakeNotifier) Events() <-chan fsnotify.Event { return f.events }
func (f *fakeNotifier) Errors() <-chan error          { return f.errs }
func (f *fakeNotifier) Close() error                  { return nil }

func (f *fakeNotifier) Add(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.added[dir]++
	return f.refuse
}

func (f *fakeNotifier) watches(dir string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.added[dir]
}

func TestWatchLostEvents(t *testing.T) {
	root := t.TempDir()
	n := newFakeNotifier()
	tr := open(t, root, Options{RescanInterval: time.Hour})
	tr.notify = n
	set(t, tr, "resource-r/a", "1")
	watching(t, tr)
	testutil.WaitFor(t, 2*time.Second, "the tree is watched", func() bool { return n.watches(root) > 0 && n.watches(root+"/resource-r") > 0 })
	byHand(t, root+"/resource-r/a", "2", tr.Clock().Now())
	os.Mkdir(root+"/ips", 0o700)
	byHand(t, root+"/ips/ip-h", "10.0.0.1", tr.Clock().Now())
	n.errs <- fsnotify.ErrEventOverflow
	testutil.WaitFor(t, 2*time.Second, "overflow: full rescan", func() bool { return is(tr, "resource-r/a", "2")() && is(tr, "ips/ip-h", "10.0.0.1")() })
	testutil.WaitFor(t, 2*time.Second, "the new directory is watched", func() bool { return n.watches(root+"/ips") > 0 })

	// Nonsense does no harm, an event for one link looks at that link only.
	seq := tr.Seq()
	byHand(t, root+"/resource-r/b", "unseen", tr.Clock().Now())
	for _, ev := range []fsnotify.Event{
		{Name: "/elsewhere/x", Op: fsnotify.Create},
		{Name: root + "x/y", Op: fsnotify.Create},
		{Name: root + "/../x", Op: fsnotify.Create},
		{Name: root + "/unknown/x", Op: fsnotify.Create},
		{Name: root + "/resource-r/.tmp.1.b", Op: fsnotify.Create},
		{Name: root + "/resource-r/b", Op: fsnotify.Write},
		{Name: root + "/resource-r/not-there", Op: fsnotify.Remove},
		{Name: root + "/resource-gone", Op: fsnotify.Create},
		{Name: "", Op: 0},
	} {
		n.events <- ev
	}
	byHand(t, root+"/resource-r/a", "3", tr.Clock().Now())
	n.events <- fsnotify.Event{Name: root + "/resource-r/a", Op: fsnotify.Chmod}
	testutil.WaitFor(t, 2*time.Second, "the event of a", is(tr, "resource-r/a", "3"))
	if got := tr.Seq() - seq; got != 1 {
		t.Errorf("%d changes", got)
	}

	// Many names at once: the directory as a whole.
	for i := range 2 * maxNames {
		n.events <- fsnotify.Event{Name: fmt.Sprintf("%s/resource-r/n%d", root, i), Op: fsnotify.Create}
	}
	testutil.WaitFor(t, 2*time.Second, "b is found", is(tr, "resource-r/b", "unseen"))
}

// Without events, or with too few watches, the tree is polled.
func TestWatchPolls(t *testing.T) {
	for name, prepare := range map[string]func(*Tree){
		"no watches left": func(tr *Tree) { n := newFakeNotifier(); n.refuse = syscall.ENOSPC; tr.notify = n },
		"no events":       func(tr *Tree) { tr.fs = plainFS{}; tr.rootID = identity{} },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			var log lockedText
			tr := open(t, root, Options{RescanInterval: time.Hour, PollInterval: 10 * time.Millisecond, Log: textLog(&log)})
			prepare(tr)
			watching(t, tr)
			for i := range 3 {
				v := fmt.Sprint(i)
				byHand(t, root+"/x", v, tr.Clock().Now())
				testutil.WaitFor(t, 2*time.Second, "polled", is(tr, "x", v))
			}
			if strings.Count(log.String(), "polling") != 1 {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

// A daemon watches while commands write through trees of their own.
func TestWatchOtherProcess(t *testing.T) {
	root := t.TempDir()
	daemon := open(t, root, Options{RescanInterval: time.Hour})
	cue, stop := daemon.Subscribe()
	defer stop()
	watching(t, daemon)
	for i := range 20 {
		cmd := open(t, root, Options{Passive: true})
		p := fmt.Sprintf("resource-r%d/todo-h/attach", i%3)
		v := fmt.Sprint(i)
		set(t, cmd, p, v, LocalPath("me", "trigger"), v)
		testutil.WaitFor(t, 2*time.Second, "the daemon knows", func() bool { return is(daemon, p, v)() && is(daemon, LocalPath("me", "trigger"), v)() })
		select {
		case <-cue:
		case <-time.After(2 * time.Second):
			t.Fatal("no cue")
		}
		if err := daemon.Unlink(LocalPath("me", "trigger")); err != nil {
			t.Fatal(err)
		}
		testutil.WaitFor(t, 2*time.Second, "the command knows", func() bool {
			cmd.Rescan("local-me")
			_, ok := cmd.Get(LocalPath("me", "trigger"))
			return !ok
		})
	}
	agree(t, daemon)
	if _, err := os.Lstat(root + "/" + LocalPath("me", "trigger")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the request is still there")
	}
}

// lockedText is a log that may be read while it is written.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
