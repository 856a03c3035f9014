package crashfs

import (
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

const (
	maxName   = 255
	maxTarget = 4095
	maxHops   = 40
)

// place is where a path leads: the directory, the last component and what is
// there (nothing, if it does not exist).
type place struct {
	dir  *inode
	name string
	ent  entry
}

// resolve walks name, which must be absolute. Symlinks on the way are followed,
// one in the last component only on demand.
func (f *FS) resolve(name string, follow bool) (place, error) {
	if !strings.HasPrefix(name, "/") {
		return place{}, syscall.EINVAL
	}
	rest := path.Clean(name)
	for hops := 0; ; hops++ {
		if hops > maxHops {
			return place{}, syscall.ELOOP
		}
		p, next, err := f.walk(rest, follow)
		if err != nil || next == "" {
			return p, err
		}
		rest = next
	}
}

// walk resolves name up to the first symlink that must be followed; next is
// then the path that it stands for.
func (f *FS) walk(name string, follow bool) (p place, next string, err error) {
	p = place{dir: f.inodes[rootIno], ent: entry{ino: rootIno}}
	comps := strings.Split(strings.Trim(name, "/"), "/")
	if comps[0] == "" {
		return p, "", nil
	}
	for i, comp := range comps {
		if len(comp) > maxName {
			return place{}, "", syscall.ENAMETOOLONG
		}
		if i > 0 {
			d := f.inodes[p.ent.ino]
			if d == nil {
				return place{}, "", syscall.ENOENT
			}
			if !d.dir {
				return place{}, "", syscall.ENOTDIR
			}
			p.dir = d
		}
		p.name, p.ent = comp, p.dir.ents.m[comp]
		if p.ent.link != nil && (i < len(comps)-1 || follow) {
			base := "/" + strings.Join(comps[:i], "/")
			if strings.HasPrefix(p.ent.link.target, "/") {
				base = "/"
			}
			return place{}, path.Join(base, p.ent.link.target, strings.Join(comps[i+1:], "/")), nil
		}
		if p.ent.none() && i < len(comps)-1 {
			return place{}, "", syscall.ENOENT
		}
	}
	return p, "", nil
}

// fileInfo is what Lstat and DirEntry.Info return.
type fileInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
	ino   uint64
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.size }
func (i *fileInfo) Mode() fs.FileMode  { return i.mode }
func (i *fileInfo) ModTime() time.Time { return i.mtime }
func (i *fileInfo) IsDir() bool        { return i.mode.IsDir() }

// Sys returns a *syscall.Stat_t with owner, inode and type, as package os does.
func (i *fileInfo) Sys() any {
	st := &syscall.Stat_t{
		Ino: i.ino, Size: i.size, Mode: uint32(i.mode.Perm()), Nlink: 1,
		Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), Mtim: syscall.NsecToTimespec(i.mtime.UnixNano()),
	}
	switch i.mode.Type() {
	case fs.ModeDir:
		st.Mode |= syscall.S_IFDIR
	case fs.ModeSymlink:
		st.Mode |= syscall.S_IFLNK
	default:
		st.Mode |= syscall.S_IFREG
	}
	return st
}

func (f *FS) info(name string, e entry) *fileInfo {
	if e.link != nil {
		return &fileInfo{name: name, size: int64(len(e.link.target)), mode: fs.ModeSymlink | 0o777, mtime: e.link.mtime}
	}
	ino := f.inodes[e.ino]
	i := &fileInfo{name: name, size: ino.cur.size, mode: ino.perm, mtime: ino.mtime, ino: ino.id}
	if ino.dir {
		i.mode |= fs.ModeDir
	}
	return i
}
