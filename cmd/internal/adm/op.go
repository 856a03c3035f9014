package adm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mars/symlinktree"
)

// kind says what an operation does.
type kind int

const (
	opSet    kind = iota // write a link with a fresh stamp, even if it has that value
	opSetAt              // write a link with a given stamp
	opDelete             // put a tombstone in place of a link or a logfile
	opUnlink             // remove a link here only
	opMkdir              // make a directory
	opRmdir              // remove a directory here only, if it is empty
	opLog                // create an empty logfile, which must not exist
)

// op is one step of a batch. Paths are relative to the root.
type op struct {
	kind  kind
	path  string
	value string
	stamp symlinktree.Stamp // opSetAt
}

func set(path, value string) op                        { return op{kind: opSet, path: path, value: value} }
func setAt(path, value string, s symlinktree.Stamp) op { return op{opSetAt, path, value, s} }
func del(path string) op                               { return op{kind: opDelete, path: path} }
func unlink(path string) op                            { return op{kind: opUnlink, path: path} }
func mkdir(path string) op                             { return op{kind: opMkdir, path: path} }
func rmdir(path string) op                             { return op{kind: opRmdir, path: path} }
func createLog(path string) op                         { return op{kind: opLog, path: path} }
func weak(s symlinktree.Stamp) symlinktree.Stamp       { return s + 1 }

// describe is the line that --dry-run prints; the words about links are the
// original's.
func (o op) describe(root string) string {
	p := filepath.Join(root, o.path)
	switch o.kind {
	case opSet:
		return fmt.Sprintf("DRY_RUN: would create symlink '%s' -> '%s'", p, o.value)
	case opSetAt:
		return fmt.Sprintf("DRY_RUN: would create symlink '%s' -> '%s' with stamp %s", p, o.value, o.stamp)
	case opDelete:
		return fmt.Sprintf("DRY_RUN: would create symlink '%s' -> '%s'", p, symlinktree.Deleted)
	case opUnlink:
		return fmt.Sprintf("DRY_RUN: would remove '%s'", p)
	case opMkdir:
		return fmt.Sprintf("DRY_RUN: would create directory '%s'", p)
	case opRmdir:
		return fmt.Sprintf("DRY_RUN: would remove directory '%s'", p)
	}
	return fmt.Sprintf("DRY_RUN: would create logfile '%s'", p)
}

// apply carries out a batch in order and then wakes marsd up.
func (s *session) apply(batch []op) error {
	if len(batch) == 0 {
		return nil
	}
	if err := s.step(batch); err != nil {
		return err
	}
	code := 1
	for _, o := range batch {
		if strings.HasSuffix(o.path, "/primary") || strings.HasPrefix(o.path, "todo-global/") || strings.HasPrefix(o.path, "ips/") {
			code = 2
		}
		if s.opt.dryRun {
			s.print("%s\n", o.describe(s.tree.Root()))
			continue
		}
		if s.opt.verbose > 0 {
			s.print("%s\n", strings.Replace(o.describe(s.tree.Root()), "DRY_RUN: would ", "", 1))
		}
		if err := s.perform(o); err != nil {
			return err
		}
	}
	if err := s.syncDirs(batch); err != nil {
		return err
	}
	return s.trigger(code)
}

// step shows a batch and waits for the administrator's consent (--singlestep).
func (s *session) step(batch []op) error {
	if !s.opt.singlestep || s.opt.dryRun {
		return nil
	}
	for _, o := range batch {
		s.print("next: %s\n", strings.Replace(o.describe(s.tree.Root()), "DRY_RUN: would ", "", 1))
	}
	s.print("Enter to go on, Ctrl-C to stop: ")
	for one := make([]byte, 1); one[0] != '\n'; {
		if _, err := io.ReadFull(s.env.Stdin, one); err != nil {
			s.print("\n")
			return refuse("what was confirmed before has been done", "stopped by --singlestep: no consent for the next batch of %d", len(batch))
		}
	}
	return nil
}

// syncDirs makes a batch durable: what an administrator was told to be done shall
// not be undone by a power failure.
func (s *session) syncDirs(batch []op) error {
	if s.opt.dryRun {
		return nil
	}
	done := make(map[string]bool)
	for _, o := range batch {
		if dir := strings.TrimSuffix(filepath.Dir(o.path), "."); o.kind <= opDelete && !done[dir] {
			done[dir] = true
			if err := s.tree.SyncDir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) perform(o op) error {
	abs := filepath.Join(s.tree.Root(), o.path)
	switch o.kind {
	case opSet:
		return s.tree.Touch(o.path, o.value)
	case opSetAt:
		return s.tree.SetAt(o.path, o.value, o.stamp)
	case opDelete:
		return s.tree.Delete(o.path)
	case opUnlink:
		return s.tree.Unlink(o.path)
	case opMkdir:
		return s.makeDir(o.path)
	case opRmdir:
		// Best effort: what is not empty, stays.
		if err := s.tree.RemoveDir(o.path); err != nil {
			s.detail("leave directory %s: %v", o.path, err)
		}
		return nil
	}
	return s.makeLog(o.path, abs)
}

// makeDir makes a directory and those above it. The original turns an emptied
// directory into a tombstone; one of those is not in the way.
func (s *session) makeDir(rel string) error {
	abs := s.tree.Root()
	for _, part := range strings.Split(rel, "/") {
		abs = filepath.Join(abs, part)
		st, err := s.env.FS.Lstat(abs)
		if err == nil && st.Mode()&fs.ModeSymlink != 0 {
			if v, err := s.env.FS.Readlink(abs); err == nil && v == symlinktree.Deleted {
				if err := s.env.FS.Remove(abs); err != nil {
					return err
				}
			}
		}
		if err := s.env.FS.Mkdir(abs, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// makeLog creates an empty logfile; a tombstone of that name gives way.
func (s *session) makeLog(rel, abs string) error {
	if err := s.makeDir(filepath.Dir(rel)); err != nil {
		return err
	}
	if v, err := s.env.FS.Readlink(abs); err == nil && v == symlinktree.Deleted {
		if err := s.env.FS.Remove(abs); err != nil {
			return err
		}
	}
	f, err := s.env.FS.OpenFile(abs, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create logfile %s: %w", rel, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return s.env.FS.SyncDir(filepath.Dir(abs))
}

// trigger asks marsd to look at the tree now, to publish its time and to exchange
// news with all peers. The numbers are the original's: 1 own tree, 2 tell, 3 tell
// and fetch, 8 fetch everything.
func (s *session) trigger(code int) error {
	if s.opt.dryRun {
		s.print("DRY_RUN: would execute trigger '%d'\n", code)
		return nil
	}
	return s.tree.Touch(symlinktree.LocalPath(s.node, "trigger"), fmt.Sprint(code))
}

// pull asks marsd for a complete exchange of trees with a host.
func (s *session) pull(host string) error {
	if s.opt.dryRun {
		s.print("DRY_RUN: would ask %s for its whole tree\n", host)
		return nil
	}
	return s.tree.Touch(symlinktree.LocalPath(s.node, "pull"), host)
}
