package sim

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

// mutant is a negative control: a cluster with a mistake, which some seed has to notice.
type mutant struct {
	name  string
	rules []string // any of them
	file  func(f *mutantFile) *mutantFile
	sync  func(dir string) bool // false: this directory is not synced
	// handover replaces marsadm primary.
	handover func(w *world, n *node)
}

// maxMutantSeeds is how many seeds may pass a mutant.
const maxMutantSeeds = 150

func (m *mutant) options() options {
	return options{handover: m.handover, wrap: func(_ *node, f *crashfs.FS) vfs.FS {
		if m.file == nil && m.sync == nil {
			return f
		}
		return &mutantFS{f, m}
	}}
}

type mutantFS struct {
	*crashfs.FS
	m *mutant
}

func (f *mutantFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	h, err := f.FS.OpenFile(name, flag, perm)
	if err != nil || f.m.file == nil {
		return h, err
	}
	return f.m.file(&mutantFile{File: h, name: name}), nil
}

func (f *mutantFS) SyncDir(dir string) error {
	if f.m.sync != nil && !f.m.sync(dir) {
		return nil
	}
	return f.FS.SyncDir(dir)
}

type mutantFile struct {
	vfs.File
	name   string
	noSync bool
	late   bool // a write happens after the next one

	mu  sync.Mutex
	due func()
}

func (f *mutantFile) isLog() bool { return strings.HasPrefix(path.Base(f.name), "log-") }

func (f *mutantFile) Datasync() error {
	if f.noSync {
		return nil
	}
	return f.File.Datasync()
}

func (f *mutantFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	if !f.late {
		return f.File.WritevAt(bufs, off)
	}
	p := slices.Concat(bufs...)
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.due
	f.due = func() { _, _ = f.File.WriteAt(p, off) }
	if before != nil {
		before()
	}
	return len(p), nil
}

func (f *mutantFile) WriteAt(p []byte, off int64) (int, error) {
	if f.late {
		return f.WritevAt([][]byte{p}, off)
	}
	return f.File.WriteAt(p, off)
}

func mutants() []*mutant {
	return []*mutant{
		{name: "a replica publishes its position before its disk is flushed", rules: []string{"P4", "P3"}, file: func(f *mutantFile) *mutantFile {
			f.noSync = f.name == diskPath
			return f
		}},
		{name: "the log is not synced before FLUSH is answered", rules: []string{"P3", "P4", "P5", "P7"}, file: func(f *mutantFile) *mutantFile {
			f.noSync = f.isLog()
			return f
		}},
		{name: "replay out of order", rules: []string{"P4"}, file: func(f *mutantFile) *mutantFile {
			f.late = f.name == diskPath
			return f
		}},
		{name: "links are not synced", rules: []string{"P3", "P4", "P5", "P7", "link-lost", "liveness", "start"}, sync: func(dir string) bool {
			return dir != root+"/"+res.Dir()
		}},
		{name: "a handover does not wait for the old primary", rules: []string{"one-primary", "P3"}, handover: func(w *world, n *node) {
			inc := n.life()
			if inc == nil || inc.isDead() {
				return
			}
			t := inc.node.Tree()
			for _, m := range w.nodes {
				if m != n {
					_ = t.Set(res.ActualPath(m.name, "is-primary"), "0")
					_ = t.Set(res.ActualPath(m.name, "open-count"), "0")
				}
			}
			_ = t.Set(res.PrimaryPath(), n.name)
			time.Sleep(100 * time.Millisecond)
		}},
	}
}

// tagged is the mistake that the build tags have put into the product; see symlinktree/mutant_*.go.
var tagged string

// TestTagged wants it noticed.
func TestTagged(t *testing.T) {
	if tagged == "" {
		t.Skip("this build is without mutants; `make unit` has some with")
	}
	notice(t, &mutant{name: tagged, rules: []string{"liveness", "link-lost", "one-primary", "P3", "P4"}})
}

// TestMutants wants each mistake noticed, and says by which seed and rule.
func TestMutants(t *testing.T) {
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			if raceEnabled && m.handover != nil {
				t.Skip("it takes a while; `make unit` has it without the race detector")
			}
			t.Parallel()
			notice(t, m)
		})
	}
}

func notice(t *testing.T, m *mutant) {
	t.Helper()
	for seed := uint64(1); seed <= maxMutantSeeds; seed++ {
		r := run(t, newSchedule(seed), m.options())
		if len(r.found) == 0 {
			continue
		}
		f := r.found[0]
		if !slices.Contains(m.rules, f.rule) {
			t.Errorf("seed %d noticed it by rule %s, want one of %v: %v", seed, f.rule, m.rules, f)
		}
		t.Logf("%s: noticed by seed %d: %.300v", m.name, seed, f)
		return
	}
	t.Errorf("%s: nobody noticed in %d seeds", m.name, maxMutantSeeds)
}
