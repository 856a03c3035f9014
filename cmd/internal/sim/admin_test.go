package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"mars/cmd/internal/adm"
	"mars/internal/vfs"
	"mars/symlinktree"
)

// marsadm runs the real command on a node, as another process on that machine would.
func (n *node) marsadm(timeout time.Duration, args ...string) (code int, text string) {
	w := n.w
	n.admin <- struct{}{}
	defer func() { <-n.admin }()
	inc := n.life()
	line := strings.Join(args, " ")
	if inc == nil || inc.isDead() {
		w.note("%s is down: no %s", n.name, line)
		return 1, "down"
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.work.Go(func() {
		select {
		case <-inc.dead:
			cancel()
		case <-ctx.Done():
		}
	})
	afs := &adminFS{FS: inc.fs, inc: inc}
	env := adm.Env{
		Getenv: func(k string) string {
			return map[string]string{"MARS_ROOT": root, "MARS_NODE": n.name, "MARS_PATH": "/nowhere", "ETC_MARSADM": "/nowhere"}[k]
		},
		Hostname:     func() (string, error) { return n.name, nil },
		Now:          n.clock.now,
		FS:           afs,
		IsMountPoint: func(string) (bool, error) { return true, nil },
		Addresses:    func() ([]string, error) { return []string{n.ip}, nil },
		Lookup: func(_ context.Context, h string) ([]string, error) {
			return nil, errors.New("no name service for " + h)
		},
		DiskSize:    func(string, bool) (int64, error) { return size, nil },
		DiskPresent: func(string) bool { return true },
		SyncAll:     func() {},
		Poll:        100 * time.Millisecond,
	}
	var out, errs bytes.Buffer
	began := w.now()
	code = adm.Run(ctx, append([]string{fmt.Sprintf("--timeout=%g", timeout.Seconds()), "--window=10"}, args...), &out, &errs, env)
	w.stat(func(s *stats) {
		s.commands++
		if code != 0 {
			s.refused++
		}
	})
	text = strings.TrimSpace(out.String() + errs.String())
	first, _, _ := strings.Cut(text, "\n")
	w.note("%s: marsadm %s -> %d after %v (%s)", n.name, line, code, w.now()-began, first)
	return code, text
}

// takeForce tells whether a forced failover to this node was ordered, once.
func (n *node) takeForce() bool {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	f := n.force
	n.force = false
	return f
}

// failover is what an administrator does when the primary is lost.
func (n *node) failover(timeout time.Duration) bool {
	if code, _ := n.marsadm(timeout, "pause-fetch", string(res)); code != 0 {
		return false
	}
	n.w.mu.Lock()
	n.force, n.w.forced, n.w.lossy = true, true, true
	n.w.mu.Unlock()
	code, _ := n.marsadm(timeout, "--force", "primary", string(res))
	// A command that fails may have given the order before it did.
	if v, err := n.files().Readlink(root + "/" + res.PrimaryPath()); code != 0 && err == nil && v != n.name {
		n.takeForce()
	}
	return code == 0
}

// adminFS tells marsd what the command has changed, as inotify does.
type adminFS struct {
	vfs.FS
	inc *incarnation

	mu   sync.Mutex
	dirs map[string]bool
}

func (a *adminFS) touched(name string) {
	dir, ok := strings.CutPrefix(path.Dir(name), root)
	if !ok || strings.HasPrefix(path.Base(name), ".tmp.") {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dirs == nil {
		a.dirs = map[string]bool{}
		time.AfterFunc(2*time.Millisecond, a.tell)
	}
	a.dirs[strings.TrimPrefix(dir, "/")] = true
}

func (a *adminFS) tell() {
	a.mu.Lock()
	dirs := a.dirs
	a.dirs = nil
	a.mu.Unlock()
	inc := a.inc.n.life() // it may have been restarted meanwhile
	if inc == nil || inc.isDead() || inc.node.Tree() == nil {
		return
	}
	t := inc.node.Tree()
	for d := range dirs {
		_, _ = t.Rescan(d) // an event is only a cue
	}
}

func (a *adminFS) Rename(from, to string) error {
	err := a.FS.Rename(from, to)
	a.touched(to)
	return err
}

func (a *adminFS) Remove(name string) error {
	err := a.FS.Remove(name)
	a.touched(name)
	return err
}

func (a *adminFS) Mkdir(name string, perm fs.FileMode) error {
	err := a.FS.Mkdir(name, perm)
	a.touched(name)
	return err
}

func (a *adminFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := a.FS.OpenFile(name, flag, perm)
	if flag&os.O_CREATE != 0 {
		a.touched(name)
	}
	return f, err
}

func isOn(v string) bool { return symlinktree.Switch(v) }
