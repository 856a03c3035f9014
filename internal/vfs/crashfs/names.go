package crashfs

import (
	"cmp"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"mars/internal/vfs"
)

// OpenFile implements vfs.FS. O_APPEND is refused, as every write has an offset.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, err := f.open(name, flag, perm)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	return h, nil
}

func (f *FS) open(name string, flag int, perm fs.FileMode) (*file, error) {
	if flag&os.O_APPEND != 0 {
		return nil, syscall.EINVAL
	}
	if err := f.look(Op{Kind: OpOpen, Path: name}); err != nil {
		return nil, err
	}
	excl := flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0
	p, err := f.resolve(name, !excl && flag&syscall.O_NOFOLLOW == 0)
	if err != nil {
		return nil, err
	}
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case p.ent.none() && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case p.ent.none():
		return f.create(p, name, perm, writable)
	case excl:
		return nil, syscall.EEXIST
	case p.ent.link != nil:
		return nil, syscall.ELOOP
	}
	ino := f.inodes[p.ent.ino]
	if ino.dir && (writable || flag&os.O_CREATE != 0) {
		return nil, syscall.EISDIR
	}
	if !ino.dir && flag&syscall.O_DIRECTORY != 0 {
		return nil, syscall.ENOTDIR
	}
	h := &file{fs: f, ino: ino, name: name, writable: writable}
	if flag&os.O_TRUNC != 0 && writable && ino.cur.size > 0 && !ino.fixed {
		if err := h.truncateLocked(0); err != nil {
			return nil, err
		}
	}
	ino.open++
	return h, nil
}

func (f *FS) create(p place, name string, perm fs.FileMode, writable bool) (*file, error) {
	op := Op{Kind: OpCreate, Path: name}
	v, err := f.begin(&op)
	if err == nil {
		err = v.err
	}
	if err == nil && !p.dir.ents.m[p.name].none() { // somebody was faster during a delay
		err = syscall.EEXIST
	}
	if err != nil {
		return nil, err
	}
	ino := f.newInode(false, perm)
	f.addDirOp(change{p.dir.id, p.name, entry{ino: ino.id}})
	ino.open++
	return &file{fs: f, ino: ino, name: name, writable: writable}, nil
}

func (f *FS) newInode(dir bool, perm fs.FileMode) *inode {
	ino := &inode{id: f.nextIno, dir: dir, perm: perm.Perm(), mtime: f.now()}
	f.nextIno++
	f.inodes[ino.id] = ino
	return ino
}

// Mkdir implements vfs.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{Kind: OpMkdir, Path: name}
	p, err := f.change(&op, name)
	if err == nil && !p.ent.none() {
		err = syscall.EEXIST
	}
	if err != nil {
		return pathErr("mkdir", name, err)
	}
	ino := f.newInode(true, perm)
	f.addDirOp(change{p.dir.id, p.name, entry{ino: ino.id}})
	return nil
}

// change begins an operation on the entry name and resolves it afterwards, as a
// delay may have let others in.
func (f *FS) change(op *Op, name string) (place, error) {
	v, err := f.begin(op)
	if err == nil {
		err = v.err
	}
	if err != nil {
		return place{}, err
	}
	p, err := f.resolve(name, false)
	if err == nil && p.name == "" {
		err = syscall.EBUSY // the root
	}
	return p, err
}

// Remove implements vfs.FS: files, symlinks and empty directories.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{Kind: OpRemove, Path: name}
	p, err := f.change(&op, name)
	if err == nil && p.ent.none() {
		err = syscall.ENOENT
	}
	if err == nil && p.ent.ino != 0 && f.inodes[p.ent.ino].dir && len(f.inodes[p.ent.ino].ents.m) > 0 {
		err = syscall.ENOTEMPTY
	}
	if err != nil {
		return pathErr("remove", name, err)
	}
	f.addDirOp(change{p.dir.id, p.name, entry{}})
	f.unlinked(p.ent)
	return nil
}

// unlinked accounts for an entry that no longer refers to e.
func (f *FS) unlinked(e entry) {
	f.dropped++
	if ino := f.inodes[e.ino]; ino != nil && f.capacity > 0 && ino.open == 0 {
		f.used -= ino.cur.pages
	}
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldname, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.rename(oldname, newname); err != nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: err}
	}
	return nil
}

func (f *FS) rename(oldname, newname string) error {
	op := Op{Kind: OpRename, Path: newname}
	from, err := f.change(&op, oldname)
	to, toErr := f.resolve(newname, false)
	if toErr == nil && to.name == "" {
		toErr = syscall.EBUSY
	}
	// As the kernel: both directories first, then both names.
	const long = syscall.ENAMETOOLONG
	switch {
	case err != nil && err != long:
		return err
	case toErr != nil && toErr != long:
		return toErr
	case err != nil:
		return err
	case from.ent.none():
		return syscall.ENOENT
	case toErr != nil:
		return toErr
	}
	src, dst := f.inodes[from.ent.ino], f.inodes[to.ent.ino]
	srcDir, dstDir := src != nil && src.dir, dst != nil && dst.dir
	switch {
	case dstDir: // os.Rename never replaces a directory
		return syscall.EEXIST
	case from.dir == to.dir && from.name == to.name:
		return nil
	case srcDir && f.contains(src, to.dir):
		return syscall.EINVAL
	case srcDir && !to.ent.none():
		return syscall.ENOTDIR
	}
	f.addDirOp(change{from.dir.id, from.name, entry{}}, change{to.dir.id, to.name, from.ent})
	if u, ok := f.mtimes[from.ent.link]; ok {
		u.dir = to.dir.id
		f.mtimes[from.ent.link] = u
	}
	if !to.ent.none() {
		f.unlinked(to.ent)
	}
	return nil
}

// contains tells whether directory d is a, or below it.
func (f *FS) contains(a, d *inode) bool {
	if a == d {
		return true
	}
	for _, e := range a.ents.m {
		if sub := f.inodes[e.ino]; sub != nil && sub.dir && f.contains(sub, d) {
			return true
		}
	}
	return false
}

// Symlink implements vfs.FS.
func (f *FS) Symlink(target, name string, mtime time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.symlink(target, name, mtime); err != nil {
		return &os.LinkError{Op: "symlink", Old: target, New: name, Err: err}
	}
	return nil
}

func (f *FS) symlink(target, name string, mtime time.Time) error {
	op := Op{Kind: OpSymlink, Path: name}
	p, err := f.change(&op, name)
	switch {
	case err != nil && (target != "" || err == ErrPowerCut):
		return err
	case target == "":
		return syscall.ENOENT
	case len(target) > maxTarget:
		return syscall.ENAMETOOLONG
	case !p.ent.none():
		return syscall.EEXIST
	}
	l := &link{target: target, mtime: mtime, created: f.now()}
	f.addDirOp(change{p.dir.id, p.name, entry{link: l}})
	f.seq++
	f.mtimes[l] = mtimeUnit{seq: f.seq, dir: p.dir.id}
	return nil
}

// Readlink implements vfs.FS.
func (f *FS) Readlink(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.lookup(name)
	if err == nil && p.ent.link == nil {
		err = syscall.EINVAL
	}
	if err != nil {
		return "", pathErr("readlink", name, err)
	}
	return p.ent.link.target, nil
}

// Lstat implements vfs.FS.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.lookup(name)
	if err != nil {
		return nil, pathErr("lstat", name, err)
	}
	if p.name == "" {
		p.name = "/"
	}
	return f.info(p.name, p.ent), nil
}

func (f *FS) lookup(name string) (place, error) {
	if err := f.look(Op{Kind: OpRead, Path: name}); err != nil {
		return place{}, err
	}
	p, err := f.resolve(name, false)
	if err == nil && p.ent.none() {
		err = syscall.ENOENT
	}
	return p, err
}

// directory finds a directory, following symlinks.
func (f *FS) directory(name string) (*inode, error) {
	p, err := f.resolve(name, true)
	switch {
	case err != nil:
		return nil, err
	case p.ent.none():
		return nil, syscall.ENOENT
	case !f.inodes[p.ent.ino].dir:
		return nil, syscall.ENOTDIR
	}
	return f.inodes[p.ent.ino], nil
}

// ReadDir implements vfs.FS; the entries are sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.look(Op{Kind: OpRead, Path: name}); err != nil {
		return nil, pathErr("readdir", name, err)
	}
	d, err := f.directory(name)
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	list := make([]fs.DirEntry, 0, len(d.ents.m))
	for n, e := range d.ents.m {
		list = append(list, fs.FileInfoToDirEntry(f.info(n, e)))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, nil
}

// SyncDir implements vfs.FS.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{Kind: OpSyncDir, Path: name}
	v, err := f.begin(&op)
	if err != nil {
		return pathErr("syncdir", name, err)
	}
	d, err := f.directory(name)
	if err != nil {
		return pathErr("syncdir", name, err)
	}
	if v.err != nil {
		// The units stay pending: a journal that fails to commit keeps the old state.
		return pathErr("syncdir", name, v.err)
	}
	f.syncDirLocked(d, op.seq)
	return nil
}

func (f *FS) syncDirLocked(d *inode, mark uint64) {
	if f.metadata == Journaled {
		f.commitMetadata(mark)
		return
	}
	f.commitDirs(mark, func(op *dirOp) bool {
		return slices.ContainsFunc(op.changes, func(c change) bool { return c.dir == d.id })
	})
	for l, u := range f.mtimes {
		if u.dir == d.id && u.seq <= mark {
			delete(f.mtimes, l)
		}
	}
}

// FreeSpace implements vfs.FS. Without a capacity it reports 1 TiB.
func (f *FS) FreeSpace(name string) (free, total int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.look(Op{Kind: OpRead, Path: name}); err != nil {
		return 0, 0, pathErr("statfs", name, err)
	}
	p, err := f.resolve(name, true)
	if err == nil && p.ent.none() {
		err = syscall.ENOENT
	}
	if err != nil {
		return 0, 0, pathErr("statfs", name, err)
	}
	if f.capacity == 0 {
		return 1 << 40, 1 << 40, nil
	}
	return max(0, f.capacity-f.used*pageSize), f.capacity, nil
}
