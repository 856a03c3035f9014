package sweep

import (
	"context"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"mars/device"
	"mars/internal/testutil"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

// mutant is a negative control: a layer between the node and the disk that breaks one
// rule, as a node with that mistake would.
type mutant struct {
	name     string
	workload string
	mode     device.Durability

	datasync func(m *mutant, f *mutantFile) error
	syncDir  func(m *mutant, fs *crashfs.FS, dir string) error
	late     bool // writes to the log have returned when they begin
	dirty    func(log logfile.Name, min, end int64) bool
	recover  func(e *device.Engine, known []logfile.Position) (logfile.Position, int64, error)

	run  *run
	mu   sync.Mutex
	owed []func() error
}

func (m *mutant) wrap(fs *crashfs.FS) vfs.FS {
	return &mutantFS{fs, m}
}

// settle pays what is owed.
func (m *mutant) settle() error {
	m.mu.Lock()
	list := m.owed
	m.owed = nil
	m.mu.Unlock()
	for _, f := range list {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// owe syncs the file later, also if it has been closed by then.
func (m *mutant) owe(f *mutantFile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owed = append(m.owed, func() error {
		h, err := m.run.fs.OpenFile(f.name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.Datasync()
	})
}

type mutantFS struct {
	*crashfs.FS
	m *mutant
}

func (f *mutantFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	h, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &mutantFile{File: h, name: name, m: f.m}, nil
}

func (f *mutantFS) SyncDir(dir string) error {
	if f.m.syncDir != nil {
		return f.m.syncDir(f.m, f.FS, dir)
	}
	return f.FS.SyncDir(dir)
}

type mutantFile struct {
	vfs.File
	name string
	m    *mutant
}

func (f *mutantFile) isLog() bool { return strings.HasPrefix(path.Base(f.name), "log-") }

func (f *mutantFile) Datasync() error {
	if f.m.datasync != nil {
		return f.m.datasync(f.m, f)
	}
	return f.File.Datasync()
}

func (f *mutantFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	if !f.m.late || !f.isLog() {
		return f.File.WritevAt(bufs, off)
	}
	p := slices.Concat(bufs...)
	go func() {
		if h, err := f.m.run.fs.OpenFile(f.name, os.O_RDWR, 0); err == nil {
			h.WriteAt(p, off)
			h.Close()
		}
	}()
	return len(p), nil
}

func skipLog(_ *mutant, f *mutantFile) error {
	if f.isLog() {
		return nil
	}
	return f.File.Datasync()
}

func skipDisk(_ *mutant, f *mutantFile) error {
	if f.name == diskPath {
		return nil
	}
	return f.File.Datasync()
}

// flushLater flushes the disk after the position has been published.
func flushLater(m *mutant, f *mutantFile) error {
	if f.name == diskPath {
		m.owe(f)
		return nil
	}
	return f.File.Datasync()
}

// rotateFirst leaves the old log unsynced at a rotation until the new one has been synced.
func rotateFirst(m *mutant, f *mutantFile) error {
	if f.isLog() && m.run.s.running("rotate") && !strings.HasSuffix(f.name, logName(m.run.next).String()) {
		m.owe(f)
		return nil
	}
	if err := f.File.Datasync(); err != nil || !f.isLog() {
		return err
	}
	return m.settle()
}

func mutants() []*mutant {
	return []*mutant{
		{name: "the log is not synced", workload: "mixed", datasync: skipLog},
		{name: "the log is not synced for always", workload: "overlap", mode: device.DurabilityAlways, datasync: skipLog},
		{name: "the disk is not flushed", workload: "mixed", datasync: skipDisk},
		{name: "the disk is not flushed by a secondary", workload: "replay", datasync: skipDisk},
		{name: "the position is published before the disk is flushed", workload: "mixed", datasync: flushLater,
			syncDir: func(m *mutant, fs *crashfs.FS, dir string) error {
				if err := fs.SyncDir(dir); err != nil || dir != resDir {
					return err
				}
				return m.settle()
			}},
		{name: "acknowledged before the write", workload: "mixed", late: true},
		{name: "acknowledged before the write, without flushes", workload: "overlap", mode: device.DurabilityNone, late: true},
		{name: "at a rotation the new log is acknowledged before the old one is durable", workload: "rotate", datasync: rotateFirst},
		{name: "the dirty zone is not announced", workload: "overlap", dirty: func(logfile.Name, int64, int64) bool { return true }},
		{name: "the dirty zone is not announced by a secondary", workload: "replay", dirty: func(logfile.Name, int64, int64) bool { return true }},
		{name: "links are not synced", workload: "rotate", syncDir: func(_ *mutant, fs *crashfs.FS, dir string) error {
			if dir == resDir {
				return nil
			}
			return fs.SyncDir(dir)
		}},
		{name: "a torn tail is accepted before a position known to be durable", workload: "mixed",
			recover: func(e *device.Engine, _ []logfile.Position) (logfile.Position, int64, error) {
				return e.RecoverKnown(context.Background(), nil, false)
			}},
		{name: "recovery is forced", workload: "mixed",
			recover: func(e *device.Engine, known []logfile.Position) (logfile.Position, int64, error) {
				return e.RecoverKnown(context.Background(), known, true)
			}},
	}
}

// TestMutants wants each mistake found, and says which point found it.
func TestMutants(t *testing.T) {
	seed := testutil.Seed(t)
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			points := 0
			for round := range uint64(20) {
				for _, meta := range []crashfs.Metadata{crashfs.Unordered, crashfs.Journaled} {
					r := newRun(seed+round, workloadNamed(m.workload), m.mode, meta)
					r.mutant, m.run = m, r
					found := ""
					r.every = 3
					synctest.Test(t, func(t *testing.T) {
						found = sweepRun(t, r, &tally{}, &points)
					})
					if found != "" {
						t.Logf("noticed at point %d of the sweep, %s", points, found)
						return
					}
				}
			}
			t.Errorf("nobody noticed in %d points", points)
		})
	}
}
