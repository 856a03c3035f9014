package logfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/vfs"
)

// Info describes one logfile of a directory.
type Info struct {
	Name    Name
	Size    int64
	ModTime time.Time
}

// List returns the logfiles in dir, by serial number and host. Whatever is not a
// regular file with the name of a logfile is ignored.
func List(fsys vfs.FS, dir string) ([]Info, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list logfiles: %w", err)
	}
	var out []Info
	for _, e := range entries {
		name, err := ParseName(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list logfiles: %w", err)
		}
		// ReadDir may have seen a file where a tombstone is now.
		if st.Mode().IsRegular() {
			out = append(out, Info{Name: name, Size: st.Size(), ModTime: st.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b Info) int { return compareNames(a.Name, b.Name) })
	return out, nil
}

// maxOpen is how many files of a chain stay open without being in use. With one
// chain a resource, this bounds the descriptors of a node.
const maxOpen = 8

// Chain is the set of logfiles of one resource directory on this node: those that
// a Writer of this node makes and those that are fetched piece by piece. It knows
// how much of each is durable, and wakes those who wait for more. All methods are
// safe for concurrent use.
type Chain struct {
	fs  vfs.FS
	dir string

	// making serialises Create, Remove and the creation of fetched files, which wait
	// for the disk; it is taken before everything else.
	making sync.Mutex

	mu     sync.Mutex
	files  map[Name]*chainFile
	clock  uint64 // for the least recently used descriptor
	closed bool
}

// chainFile is what the Chain knows about one logfile. Its descriptor is opened
// when needed and closed when nobody uses it.
type chainFile struct {
	name Name

	// Guarded by Chain.mu.
	file   vfs.File
	refs   int    // users of file
	used   uint64 // Chain.clock of the last use
	gone   bool   // removed; the last user closes file
	sealed bool
	writer *Writer
	change chan struct{} // closed at the next change of durable, sealed or gone

	// Lock order: syncing, raw, Chain.mu.
	syncing sync.Mutex // one sync or truncation at a time
	raw     sync.Mutex // one append at a time; guards changes of what follows
	// size is the local length of a file without Writer, -1 before it is known.
	size atomic.Int64
	// durable is the synced part of size, -1 before the first sync.
	durable atomic.Int64
	syncErr error       // a failed sync that no later sync can make good
	dirty   atomic.Bool // unsynced bytes: keep the descriptor, it would report their loss
}

// OpenChain opens the logfiles in dir. Nothing is read: a file that is there
// already counts as durable when Durable, Wait or SyncRaw has synced it.
func OpenChain(fsys vfs.FS, dir string) (*Chain, error) {
	if fsys == nil {
		fsys = vfs.OS
	}
	st, err := fsys.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("open log chain: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("open log chain: %s is not a directory", dir)
	}
	return &Chain{fs: fsys, dir: dir, files: map[Name]*chainFile{}}, nil
}

// List is List of the chain's directory.
func (c *Chain) List() ([]Info, error) {
	list, err := List(c.fs, c.dir)
	if err != nil {
		return nil, err
	}
	// Forget files that were replaced by tombstones behind our back.
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, f := range c.files {
		_, there := slices.BinarySearchFunc(list, name, func(i Info, n Name) int { return compareNames(i.Name, n) })
		if !there && f.refs == 0 && f.writer == nil && !c.exists(name) {
			c.forget(f)
		}
	}
	return list, nil
}

// exists reports whether name is a regular file, or cannot be ruled out.
func (c *Chain) exists(name Name) bool {
	st, err := c.fs.Lstat(c.path(name))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return st.Mode().IsRegular()
}

func (c *Chain) path(name Name) string { return filepath.Join(c.dir, name.String()) }

// entry returns the chainFile of name, made if needed. c.mu is held.
func (c *Chain) entry(name Name) (*chainFile, error) {
	if c.closed {
		return nil, fmt.Errorf("log chain %s: %w", c.dir, ErrClosed)
	}
	f := c.files[name]
	if f == nil {
		if err := name.valid(); err != nil {
			return nil, err
		}
		f = &chainFile{name: name}
		f.size.Store(-1)
		f.durable.Store(-1)
		c.files[name] = f
	}
	return f, nil
}

// acquire returns the open file of name; release gives it back.
func (c *Chain) acquire(name Name) (*chainFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := c.entry(name)
	if err != nil {
		return nil, err
	}
	if f.file == nil {
		file, err := c.fs.OpenFile(c.path(name), os.O_RDWR, 0)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && f.writer == nil {
				c.forget(f)
			}
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		f.file = file
		f.refs++ // not a candidate
		c.evict()
		f.refs--
	}
	f.refs++
	c.clock++
	f.used = c.clock
	return f, nil
}

func (c *Chain) release(f *chainFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.refs--
	if f.gone && f.refs == 0 {
		f.file.Close()
	}
}

// evict closes the idle descriptors that were used longest ago. c.mu is held.
func (c *Chain) evict() {
	var idle []*chainFile
	for _, f := range c.files {
		if f.file != nil && f.refs == 0 && f.writer == nil && !f.dirty.Load() {
			idle = append(idle, f)
		}
	}
	if len(idle) <= maxOpen {
		return
	}
	slices.SortFunc(idle, func(a, b *chainFile) int {
		if a.used < b.used {
			return -1
		}
		return 1
	})
	for _, f := range idle[:len(idle)-maxOpen] {
		f.file.Close()
		f.file = nil
	}
}

// forget drops f and wakes its waiters. c.mu is held.
func (c *Chain) forget(f *chainFile) {
	delete(c.files, f.name)
	f.gone = true
	if f.refs == 0 && f.file != nil {
		f.file.Close()
	}
	f.wake()
}

// wake tells waiters to look again. Chain.mu is held.
func (f *chainFile) wake() {
	if f.change != nil {
		close(f.change)
		f.change = nil
	}
}

func (c *Chain) notify(f *chainFile) {
	c.mu.Lock()
	f.wake()
	c.mu.Unlock()
}

// ReadAt reads from a logfile like io.ReaderAt. Bytes behind the durable length
// are returned as they are. A call that runs during Remove still succeeds.
func (c *Chain) ReadAt(name Name, p []byte, off int64) (int, error) {
	f, err := c.acquire(name)
	if err != nil {
		return 0, err
	}
	defer c.release(f)
	return f.file.ReadAt(p, off)
}

// NewReader opens a Reader that keeps the file alive until Close (or until it is
// garbage), even if it is removed meanwhile. With a negative opt.End it reads up
// to the size that the file has now.
func (c *Chain) NewReader(name Name, opt ReaderOptions) (*Reader, error) {
	f, err := c.acquire(name)
	if err != nil {
		return nil, err
	}
	size, err := f.file.Size()
	if err != nil {
		c.release(f)
		return nil, fmt.Errorf("open reader of %s: %w", name, err)
	}
	r := NewReader(f.file, size, name, opt)
	var once sync.Once
	unpin := func() { once.Do(func() { c.release(f) }) }
	r.unpin = unpin
	r.unpins = runtime.AddCleanup(r, func(unpin func()) { unpin() }, unpin)
	return r, nil
}

// Create opens a Writer on a new logfile; Size, Durable and Wait follow it.
func (c *Chain) Create(name Name, opt WriterOptions) (*Writer, error) {
	if opt.FS == nil {
		opt.FS = c.fs
	}
	c.making.Lock()
	defer c.making.Unlock()
	if err := c.unused(name, "create"); err != nil {
		return nil, err
	}
	w, err := Create(c.dir, name, opt)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	f, err := c.entry(name)
	if err == nil {
		// A descriptor from before may belong to a tombstone's predecessor.
		c.forget(f)
		f, err = c.entry(name)
	}
	if err == nil {
		f.writer = w
		w.onSync = func() { c.notify(f) }
		w.onClose = func() { c.detach(f, w) }
	}
	c.mu.Unlock()
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// unused refuses an operation on a file with a live Writer. c.making is held.
func (c *Chain) unused(name Name, verb string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("%s %s: log chain %s: %w", verb, name, c.dir, ErrClosed)
	}
	if f := c.files[name]; f != nil && f.writer != nil {
		return fmt.Errorf("%s %s: %w", verb, name, ErrInUse)
	}
	return nil
}

// detach takes over what a closed Writer knew.
func (c *Chain) detach(f *chainFile, w *Writer) {
	f.raw.Lock()
	defer f.raw.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	// Remains of a failed batch behind End do not count; Truncate finds them.
	f.size.Store(w.End())
	f.durable.Store(w.Durable())
	if w.Durable() != w.End() {
		f.syncErr = w.Err()
	}
	f.writer = nil
	f.wake()
}

// Size is the local length of a logfile; of one with a Writer the length that was
// appended completely.
func (c *Chain) Size(name Name) (int64, error) {
	f, err := c.acquire(name)
	if err != nil {
		return 0, err
	}
	defer c.release(f)
	if w := c.writerOf(f); w != nil {
		return w.End(), nil
	}
	f.raw.Lock()
	defer f.raw.Unlock()
	if err := f.learnSize(); err != nil {
		return 0, err
	}
	return f.size.Load(), nil
}

func (c *Chain) writerOf(f *chainFile) *Writer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.writer
}

// learnSize fills in f.size. f.raw is held and f.file acquired.
func (f *chainFile) learnSize() error {
	if f.size.Load() >= 0 {
		return nil
	}
	n, err := f.file.Size()
	if err != nil {
		return fmt.Errorf("size of %s: %w", f.name, err)
	}
	f.size.Store(n)
	return nil
}

// Durable is the length of a logfile that has been synced. A file from an earlier
// run is synced by the first call.
func (c *Chain) Durable(name Name) (int64, error) {
	f, err := c.acquire(name)
	if err != nil {
		return 0, err
	}
	defer c.release(f)
	if w := c.writerOf(f); w != nil {
		return w.Durable(), nil
	}
	return c.firstSync(f)
}

// firstSync returns the durable length, syncing a file that never was.
func (c *Chain) firstSync(f *chainFile) (int64, error) {
	if n := f.durable.Load(); n >= 0 {
		return n, nil
	}
	return c.sync(f)
}

// Wait returns when the durable length is greater than beyond, when the file is
// sealed and durable to its end, or with the cause of ctx when that ends. For a
// file that does not exist or is removed meanwhile it returns fs.ErrNotExist.
func (c *Chain) Wait(ctx context.Context, name Name, beyond int64) (durable int64, sealed bool, err error) {
	f, err := c.acquire(name)
	if err != nil {
		return 0, false, err
	}
	if c.writerOf(f) == nil {
		_, err = c.firstSync(f)
	}
	// A waiter keeps no descriptor.
	c.release(f)
	if err != nil {
		return 0, false, err
	}
	for {
		c.mu.Lock()
		durable, sealed = f.progress()
		switch {
		case c.closed:
			err = fmt.Errorf("wait for %s: %w", name, ErrClosed)
		case f.gone:
			err = fmt.Errorf("wait for %s: removed: %w", name, fs.ErrNotExist)
		}
		if err != nil || durable > beyond || sealed {
			c.mu.Unlock()
			return durable, sealed, err
		}
		if f.change == nil {
			f.change = make(chan struct{})
		}
		change := f.change
		c.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return durable, false, fmt.Errorf("wait for %s: %w", Position{name, beyond}, context.Cause(ctx))
		}
	}
}

// progress is the durable length, and whether that is the final one. Chain.mu is
// held.
func (f *chainFile) progress() (durable int64, complete bool) {
	if w := f.writer; w != nil {
		durable = w.Durable()
		return durable, f.sealed && durable == w.End()
	}
	durable = max(f.durable.Load(), 0)
	return durable, f.sealed && durable == f.size.Load()
}

// Seal declares a file complete: nothing will ever be appended to it. Waiters see
// that once all of it is durable.
func (c *Chain) Seal(name Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := c.entry(name)
	if err != nil {
		return // closed: nobody waits any more
	}
	f.sealed = true
	f.wake()
}

// Remove deletes a logfile. Readers in flight keep their bytes. A tombstone that
// took the file's place already is left alone.
func (c *Chain) Remove(name Name) error {
	if err := name.valid(); err != nil {
		return err
	}
	c.making.Lock()
	defer c.making.Unlock()
	if err := c.unused(name, "remove"); err != nil {
		return err
	}
	st, err := c.fs.Lstat(c.path(name))
	if err == nil && st.Mode().IsRegular() {
		if err = c.fs.Remove(c.path(name)); err == nil {
			err = c.fs.SyncDir(c.dir)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[name]; f != nil {
		c.forget(f)
	}
	return nil
}

// Close wakes all waiters with ErrClosed and closes what is open. Writers are
// closed by their owners; Readers keep their files until their own Close.
func (c *Chain) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("close log chain %s: %w", c.dir, ErrClosed)
	}
	c.closed = true
	for _, f := range c.files {
		c.forget(f)
	}
	return nil
}
