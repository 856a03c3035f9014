package adm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/device"
	"mars/internal/testutil"
	"mars/internal/treeschema"
	"mars/internal/vfs"
	"mars/symlinktree"
)

// base is the fixed real time of the tests.
var base = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// lazyFS does not sync directories, it only notes that it was asked to: the tests
// do not lose power.
type lazyFS struct {
	vfs.FS
	vfs.Exchanger
	mu     sync.Mutex
	synced map[string]int
}

func (l *lazyFS) SyncDir(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.synced[name]++
	return nil
}

// rig is a node without a daemon: a root, a clock that stands still, and a second
// directory for disks and secrets.
type rig struct {
	t         testing.TB
	root, dir string
	node      string
	env       Env
	vars      map[string]string // of the environment
	puts      int
	daemon    *daemon
	fs        *lazyFS
}

func newRig(t testing.TB, node string) *rig {
	dir := t.TempDir()
	r := &rig{t: t, root: filepath.Join(dir, "mars"), dir: dir, node: node, vars: map[string]string{}}
	must(t, os.Mkdir(r.root, 0o700))
	r.fs = &lazyFS{FS: vfs.OS, Exchanger: vfs.OS.(vfs.Exchanger), synced: map[string]int{}}
	r.env = Env{
		FS:        r.fs,
		Getenv:    func(k string) string { return r.vars[k] },
		Now:       func() time.Time { return base },
		Addresses: func() ([]string, error) { return []string{"10.9.0.1"}, nil },
		Lookup: func(_ context.Context, h string) ([]string, error) {
			return nil, fmt.Errorf("lookup %s: no such host", h)
		},
		SyncAll: func() {},
		Poll:    4 * time.Millisecond,
	}
	t.Cleanup(func() { treeschema.Check(t, r.root) })
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree opens the rig's tree as another process would.
func (r *rig) tree() *symlinktree.Tree {
	r.t.Helper()
	tree, err := symlinktree.Open(r.root, symlinktree.Options{FS: r.fs, Node: r.node, Passive: true, Clock: symlinktree.NewClock(r.env.Now)})
	must(r.t, err)
	return tree
}

// expand replaces $ROOT, $DIR and $NOW[+-SECONDS] in a text.
func (r *rig) expand(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "$ROOT", r.root), "$DIR", r.dir)
	for {
		i := strings.Index(s, "$NOW")
		if i < 0 {
			return s
		}
		j := i + 4
		for j < len(s) && strings.ContainsRune("+-.0123456789", rune(s[j])) {
			j++
		}
		s = s[:i] + at(s[i+4:j]).String() + s[j:]
	}
}

// at is the stamp that is off seconds from now.
func at(off string) symlinktree.Stamp {
	var f float64
	if off != "" {
		var err error
		if f, err = strconv.ParseFloat(off, 64); err != nil {
			panic(err)
		}
	}
	return symlinktree.Stamp(base.Add(time.Duration(f * float64(time.Second))).UnixNano())
}

// shrink is the inverse of expand for output.
func (r *rig) shrink(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, r.root, "$ROOT"), r.dir, "$DIR")
}

// put makes what a text describes, one a line:
//
//	PATH -> VALUE [@SECONDS]   a link, written that long before (-) or after now
//	PATH = SIZE [@SECONDS]     a sparse file; relative paths are below the root
//	PATH/                      a directory
//
// Stamps default to half an hour ago. A dash as VALUE unlinks.
func (r *rig) put(text string) {
	r.t.Helper()
	tree := r.tree()
	r.puts++ // later texts overwrite earlier ones
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		stamp := at("-1800") + symlinktree.Stamp(r.puts)
		if i := strings.LastIndex(line, " @"); i >= 0 {
			stamp, line = at(line[i+2:]), line[:i]
		}
		line = r.expand(line)
		switch path, value, isLink := strings.Cut(line, " -> "); {
		case isLink && value == "-":
			must(r.t, tree.Unlink(path))
		case isLink:
			must(r.t, tree.SetAt(path, value, stamp))
		case strings.HasSuffix(line, "/"):
			must(r.t, os.MkdirAll(r.abs(line), 0o700))
		default:
			path, size, ok := strings.Cut(line, " = ")
			n, err := strconv.ParseInt(size, 10, 64)
			if !ok || err != nil {
				r.t.Fatalf("bad line %q", line)
			}
			must(r.t, os.MkdirAll(filepath.Dir(r.abs(path)), 0o700))
			must(r.t, os.WriteFile(r.abs(path), nil, 0o600))
			must(r.t, os.Truncate(r.abs(path), n))
			must(r.t, os.Chtimes(r.abs(path), stamp.Time(), stamp.Time()))
		}
	}
}

func (r *rig) abs(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(r.root, path)
}

// state is every entry below the root with its value and stamp. Requests to the
// daemon are left out: they come and go.
type entry struct {
	value string
	stamp symlinktree.Stamp
}

func (r *rig) state() map[string]entry {
	r.t.Helper()
	out := map[string]entry{}
	must(r.t, filepath.WalkDir(r.root, func(path string, d os.DirEntry, err error) error {
		// The daemon goes on writing.
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(r.root, path)
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(d.Name(), ".tmp"):
		case rel == "local-"+r.node:
			return filepath.SkipDir
		case rel == ".":
		case d.IsDir():
			out[rel+"/"] = entry{}
		case st.Mode()&os.ModeSymlink != 0:
			v, err := os.Readlink(path)
			if err != nil {
				return err
			}
			out[rel] = entry{" -> " + v, symlinktree.Stamp(st.ModTime().UnixNano())}
		default:
			out[rel] = entry{fmt.Sprintf(" = %d", st.Size()), 0}
		}
		return nil
	}))
	return out
}

// changes prints what has become of a tree: + new, ~ other value, ^ same value
// with a newer stamp, x tombstone, - gone. A weak stamp and one of 1970 are shown.
func changes(before, after map[string]entry) string {
	var lines []string
	for p, e := range after {
		old, was := before[p]
		mark := ""
		switch {
		case was && old == e:
			continue
		case e.value == " -> "+symlinktree.Deleted:
			lines = append(lines, "x "+p)
			continue
		case was && old.value == e.value:
			mark = "^ "
		case was:
			mark = "~ "
		default:
			mark = "+ "
		}
		note := ""
		switch {
		case was && e.stamp == old.stamp+1:
			note = " (weak)"
		case e.stamp != 0 && e.stamp < at("-1000000"):
			note = " @" + e.stamp.String()
		}
		lines = append(lines, mark+p+e.value+note)
	}
	for p := range before {
		if _, is := after[p]; !is {
			lines = append(lines, "- "+p)
		}
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i][2:] < lines[j][2:] })
	return strings.Join(lines, "\n")
}

// result is the outcome of a command.
type result struct {
	code     int
	out, err string
}

func (r *rig) run(args ...string) result { return r.runContext(context.Background(), args...) }

func (r *rig) runContext(ctx context.Context, args ...string) result {
	r.t.Helper()
	var out, errs bytes.Buffer
	all := []string{"--root=" + r.root, "--node=" + r.node, "--secret=" + filepath.Join(r.dir, "secret"), "--timeout=5"}
	for _, a := range args {
		all = append(all, r.expand(a))
	}
	code := Run(ctx, all, &out, &errs, r.env)
	return result{code, r.shrink(out.String()), r.shrink(errs.String())}
}

// daemon plays marsd: it answers triggers for all hosts of the cluster that are not
// dead, keeps the heartbeat, and follows rules: when a link has a value, another
// one gets a value.
type daemon struct {
	stop func()
	idle atomic.Int64 // rounds since it last had something to do
}

type rule struct{ ifPath, ifValue, thenPath, thenValue string }

// parseRules reads "dead HOST" and "PATH=VALUE => PATH=VALUE" lines.
func parseRules(t testing.TB, text string) (rules []rule, dead map[string]bool) {
	dead = map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if h, ok := strings.CutPrefix(line, "dead "); ok {
			dead[h] = true
			continue
		}
		if line == "" || line == "alive" {
			continue
		}
		cond, act, ok := strings.Cut(line, " => ")
		var u rule
		var ok1, ok2 bool
		u.ifPath, u.ifValue, ok1 = strings.Cut(cond, "=")
		u.thenPath, u.thenValue, ok2 = strings.Cut(act, "=")
		if !ok || !ok1 || !ok2 {
			t.Fatalf("bad rule %q", line)
		}
		rules = append(rules, u)
	}
	return rules, dead
}

// settle waits until the daemon has seen everything and done what its rules say.
func (r *rig) settle() {
	r.t.Helper()
	if d := r.daemon; d != nil {
		d.idle.Store(0)
		testutil.WaitFor(r.t, 5*time.Second, "the daemon is idle", func() bool { return d.idle.Load() > 1 })
	}
}

// startDaemon starts one; it has beaten once when this returns.
func (r *rig) startDaemon(text string) *daemon {
	r.t.Helper()
	rules, dead := parseRules(r.t, text)
	tree := r.tree()
	beat := func() {
		hosts := append(symlinktree.Hosts(tree), r.node)
		for _, h := range hosts {
			if !dead[h] {
				_ = tree.Touch(symlinktree.ActualPath(h, "time"), tree.Clock().Now().String())
			}
		}
	}
	beat()
	quit := make(chan struct{})
	d := new(daemon)
	var wg sync.WaitGroup
	wg.Go(func() {
		for quiet := r.quiet(); ; {
			acted := false
			if !quiet() {
				_, _ = tree.Rescan()
			}
			for _, u := range rules {
				v, _ := tree.Get(u.ifPath)
				// Nothing that a member left is written again, as marsd does not.
				if now, _ := tree.Entry(u.thenPath); v == u.ifValue && now.Value != u.thenValue && now.Value != symlinktree.Deleted {
					_ = tree.Set(u.thenPath, u.thenValue)
					acted = true
				}
			}
			// News of a peer come after what it has done.
			if p := symlinktree.LocalPath(r.node, "trigger"); hasLink(tree, p) {
				_ = tree.Unlink(p)
				beat()
				acted = true
			}
			_ = tree.Unlink(symlinktree.LocalPath(r.node, "pull"))
			if acted {
				d.idle.Store(0)
			} else {
				d.idle.Add(1)
			}
			select {
			case <-quit:
				return
			case <-time.After(4 * time.Millisecond):
			}
		}
	})
	var once sync.Once
	d.stop = func() { once.Do(func() { close(quit); wg.Wait(); r.daemon = nil }) }
	r.daemon = d
	r.t.Cleanup(d.stop)
	return d
}

// quiet returns a cheap question: whether no directory below the root has changed
// since it was asked last. Links are only ever renamed into place. The clock of the
// filesystem is coarse: what has changed a moment ago may have changed again.
func (r *rig) quiet() func() bool {
	const coarse = 25 * time.Millisecond
	seen := map[string]time.Time{}
	return func() bool {
		quiet := len(seen) > 0
		for dir, was := range seen {
			st, err := os.Stat(dir)
			quiet = quiet && err == nil && st.ModTime().Equal(was) && time.Since(was) > coarse
		}
		if quiet {
			return true
		}
		clear(seen)
		_ = filepath.WalkDir(r.root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				if st, err := os.Stat(path); err == nil {
					seen[path] = st.ModTime()
				}
			}
			return nil
		})
		return false
	}
}

func hasLink(t *symlinktree.Tree, path string) bool { _, ok := t.Get(path); return ok }

// holdDisk opens a disk as marsd does.
func (r *rig) holdDisk(path string) *device.Disk {
	r.t.Helper()
	d, err := device.OpenDisk(vfs.OS, path)
	must(r.t, err)
	return d
}
