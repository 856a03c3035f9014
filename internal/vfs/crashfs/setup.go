package crashfs

import (
	"fmt"
	"io"
	"os"
	"path"
	"syscall"
)

// MkdirAll creates the directory name and its parents, durably and without
// counting operations. For setting up a test.
func (f *FS) MkdirAll(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pathErr("mkdir", name, f.mkdirAll(path.Clean(name)))
}

func (f *FS) mkdirAll(name string) error {
	if name == "/" {
		return nil
	}
	if err := f.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	p, err := f.resolve(name, true)
	if err != nil {
		return err
	}
	if p.ent.none() {
		f.plant(p, entry{ino: f.newInode(true, 0o755).id})
		return nil
	}
	if ino := f.inodes[p.ent.ino]; ino == nil || !ino.dir {
		return syscall.ENOTDIR
	}
	return nil
}

// plant makes a durable entry.
func (f *FS) plant(p place, e entry) {
	p.dir.ents.set(p.name, e)
	p.dir.durEnts.set(p.name, e)
}

// AddDisk creates a file of constant size that stands for a block device:
// writes beyond its end store what fits and fail with ENOSPC, truncation fails.
// It is durable, filled from init (nil: zeros), and counts no operation.
func (f *FS) AddDisk(name string, size int64, init io.Reader) error {
	return f.add(name, size, init, true)
}

// AddFile creates a durable regular file with the given bytes, and its parents.
func (f *FS) AddFile(name string, size int64, init io.Reader) error {
	return f.add(name, size, init, false)
}

func (f *FS) add(name string, size int64, init io.Reader, fixed bool) error {
	var c content
	if init != nil {
		buf := make([]byte, 1<<20)
		for off := int64(0); off < size; {
			n, err := io.ReadFull(init, buf[:min(int64(len(buf)), size-off)])
			c.writeAt(buf[:n], off)
			off += int64(n)
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				return pathErr("create", name, fmt.Errorf("read the initial content at %d: %w", off, err))
			}
		}
	}
	c.size = size
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.mkdirAll(path.Dir(path.Clean(name))); err != nil {
		return pathErr("create", name, err)
	}
	p, err := f.resolve(name, false)
	if err == nil && !p.ent.none() {
		err = syscall.EEXIST
	}
	if err != nil {
		return pathErr("create", name, err)
	}
	ino := f.newInode(false, 0o600)
	ino.fixed, ino.cur, ino.dur = fixed, c.clone(), c
	f.plant(p, entry{ino: ino.id})
	f.used += c.pages
	return nil
}

// ReadFile returns the whole content that readers see.
func (f *FS) ReadFile(name string) ([]byte, error) {
	h, err := f.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	size, err := h.Size()
	if err != nil {
		return nil, err
	}
	p := make([]byte, size)
	if n, err := h.ReadAt(p, 0); err != nil && (err != io.EOF || int64(n) != size) {
		return nil, err
	}
	return p, nil
}
