package spindle

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"mars/internal/vfs"
)

// FS is a file system whose files lie on a Disk, or nowhere (see NewNull). It is
// what a journaling file system does to a disk, with the page cache in front:
// writes to a file with a region of its own (AddFile) start at once and wait only for
// the queue, as with sync_file_range; writes to others stay in memory until Datasync, which
// transfers what is dirty in order and, if the size has changed, commits the journal: two
// blocks, the second after the first is on the platter.
type FS struct {
	disk *Disk
	// depth bounds the requests of an AddFile file that are under way: what the write-out of an Engine keeps in
	// flight, 4 jobs x 2 units x 8 runs.
	depth int

	mu      sync.Mutex
	nodes   map[string]*node
	space   int64 // where the next new file is placed
	journal int64 // where the journal begins; journalSize bytes
	jpos    int64
}

const (
	journalSize = 128 << 20
	journalPart = 4096     // one block of a commit
	fileSpace   = 64 << 30 // what is set aside for each new file
	maxRequest  = 1 << 20  // longest transfer of one request, in bytes
)

type node struct {
	mode   fs.FileMode
	target string
	mtime  time.Time

	size, synced int64 // synced: the size that the journal knows
	base         int64 // on the disk
	direct       bool  // a region of its own: written at once
	dirty        []span

	under int // requests under way
	room  chan struct{}
}

type span struct{ off, end int64 }

// NewFS returns a file system for new files in [from, end of the disk).
func NewFS(d *Disk, from int64) *FS {
	f := &FS{disk: d, depth: 64, nodes: map[string]*node{"/": {mode: fs.ModeDir | 0o700}}}
	f.journal, f.space = from, from+journalSize
	return f
}

// NewNull returns a file system without a disk: nothing takes time and nothing is kept. It carries loads
// that no memory and no disk of a test could hold.
func NewNull() *FS { return NewFS(nil, 0) }

// AddFile makes a file of a fixed size at an offset of the disk: a device.
func (f *FS) AddFile(name string, base, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[name] = &node{mode: 0o600, size: size, synced: size, base: base, direct: true}
}

func pathErr(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// parent checks that the directory of name is there. mu is held.
func (f *FS) parent(name string) error {
	if p := f.nodes[path.Dir(name)]; p == nil || !p.mode.IsDir() {
		return syscall.ENOENT
	}
	return nil
}

// OpenFile implements vfs.FS.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[name]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, pathErr("open", name, syscall.ENOENT)
	case n == nil:
		if err := f.parent(name); err != nil {
			return nil, pathErr("open", name, err)
		}
		n = &node{mode: perm, base: f.space, mtime: time.Now()}
		f.space += fileSpace
		f.nodes[name] = n
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL && !n.direct:
		return nil, pathErr("open", name, syscall.EEXIST)
	case !n.mode.IsRegular():
		return nil, pathErr("open", name, syscall.ELOOP)
	}
	return &file{fs: f, n: n, name: name}, nil
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldname, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[oldname]
	if n == nil {
		return pathErr("rename", oldname, syscall.ENOENT)
	}
	if err := f.parent(newname); err != nil {
		return pathErr("rename", newname, err)
	}
	delete(f.nodes, oldname)
	f.nodes[newname] = n
	return nil
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodes[name] == nil {
		return pathErr("remove", name, syscall.ENOENT)
	}
	delete(f.nodes, name)
	return nil
}

// Mkdir implements vfs.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.parent(name); err != nil {
		return pathErr("mkdir", name, err)
	}
	return f.add("mkdir", name, &node{mode: fs.ModeDir | perm, mtime: time.Now()})
}

func (f *FS) add(op, name string, n *node) error {
	if f.nodes[name] != nil {
		return pathErr(op, name, syscall.EEXIST)
	}
	f.nodes[name] = n
	return nil
}

// Symlink implements vfs.FS.
func (f *FS) Symlink(target, name string, mtime time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.parent(name); err != nil {
		return pathErr("symlink", name, err)
	}
	return f.add("symlink", name, &node{mode: fs.ModeSymlink | 0o777, target: target, mtime: mtime})
}

// Readlink implements vfs.FS.
func (f *FS) Readlink(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[name]
	switch {
	case n == nil:
		return "", pathErr("readlink", name, syscall.ENOENT)
	case n.mode&fs.ModeSymlink == 0:
		return "", pathErr("readlink", name, syscall.EINVAL)
	}
	return n.target, nil
}

// Lstat implements vfs.FS.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[name]
	if n == nil {
		return nil, pathErr("lstat", name, syscall.ENOENT)
	}
	return info{path.Base(name), n.size, n.mode, n.mtime}, nil
}

// ReadDir implements vfs.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.nodes[name]; d == nil || !d.mode.IsDir() {
		return nil, pathErr("readdir", name, syscall.ENOENT)
	}
	var list []fs.DirEntry
	for p, n := range f.nodes {
		if p != "/" && path.Dir(p) == name {
			list = append(list, fs.FileInfoToDirEntry(info{path.Base(p), n.size, n.mode, n.mtime}))
		}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// SyncDir implements vfs.FS: a commit of the journal.
func (f *FS) SyncDir(string) error {
	f.commit()
	return nil
}

// FreeSpace implements vfs.FS.
func (f *FS) FreeSpace(string) (free, total int64, err error) { return 1 << 50, 1 << 50, nil }

// commit writes the journal: what is committed, then the block that says so.
func (f *FS) commit() {
	if f.disk == nil {
		return
	}
	for range 2 {
		f.mu.Lock()
		at := f.journal + f.jpos
		f.jpos = (f.jpos + journalPart) % journalSize
		f.mu.Unlock()
		f.disk.Do(at, journalPart)
	}
}

type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.mtime }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }
