package logfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// AppendRaw appends a fetched piece of a logfile. off must be the local size,
// otherwise *OffsetError tells it. At offset 0 a missing file is created (a
// tombstone in its place is replaced: that the file is wanted is the caller's
// decision). A failed write leaves the file as it was, if the disk allows.
func (c *Chain) AppendRaw(name Name, off int64, p []byte) error {
	f, err := c.acquire(name)
	if errors.Is(err, fs.ErrNotExist) {
		if off != 0 {
			return &OffsetError{Log: name, Offset: off, Have: 0}
		}
		f, err = c.createRaw(name)
	}
	if err != nil {
		return err
	}
	defer c.release(f)
	f.raw.Lock()
	defer f.raw.Unlock()
	if err := c.rawAllowed(f, "append to"); err != nil {
		return err
	}
	if f.syncErr != nil {
		return f.syncErr
	}
	if err := f.learnSize(); err != nil {
		return err
	}
	have := f.size.Load()
	if off != have {
		return &OffsetError{Log: name, Offset: off, Have: have}
	}
	if len(p) == 0 {
		return nil
	}
	f.dirty.Store(true)
	n, err := f.file.WriteAt(p, off)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		if f.file.Truncate(off) != nil {
			f.size.Store(-1) // unknown; the next call looks
		}
		return fmt.Errorf("append to %s: %d of %d bytes written: %w", Position{name, off}, n, len(p), err)
	}
	f.size.Store(off + int64(n))
	return nil
}

// createRaw makes an empty logfile for fetched pieces and returns it acquired.
func (c *Chain) createRaw(name Name) (*chainFile, error) {
	c.making.Lock()
	defer c.making.Unlock()
	file, err := createFile(c.fs, c.dir, name)
	if err != nil && !errors.Is(err, ErrNotEmpty) {
		return nil, err
	}
	// Not empty: somebody else was faster, so just open it.
	if err == nil {
		if err := file.Close(); err != nil {
			return nil, fmt.Errorf("create %s: %w", name, err)
		}
	}
	return c.acquire(name)
}

// rawAllowed refuses changes under a live Writer and of a removed file. f.raw is
// held.
func (c *Chain) rawAllowed(f *chainFile, verb string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.writer != nil:
		return fmt.Errorf("%s %s: %w", verb, f.name, ErrInUse)
	case f.gone:
		return fmt.Errorf("%s %s: removed: %w", verb, f.name, os.ErrNotExist)
	}
	return nil
}

// SyncRaw makes all appended pieces durable and returns the durable length. A
// failed sync stays failed until Truncate has cut the file back to what was
// durable before: fetch the rest again.
func (c *Chain) SyncRaw(name Name) (durable int64, err error) {
	f, err := c.acquire(name)
	if err != nil {
		return 0, err
	}
	defer c.release(f)
	if w := c.writerOf(f); w != nil {
		return 0, fmt.Errorf("sync %s: %w", name, ErrInUse)
	}
	return c.sync(f)
}

// sync makes a file without Writer durable. Appends go on meanwhile; those who
// come while a sync runs share the next one.
func (c *Chain) sync(f *chainFile) (int64, error) {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	f.raw.Lock()
	err := f.syncErr
	if err == nil {
		err = f.learnSize()
	}
	size, durable := f.size.Load(), f.durable.Load()
	f.raw.Unlock()
	if err != nil || size == durable {
		return max(durable, 0), err
	}
	err = f.file.Datasync()
	f.raw.Lock()
	if err != nil {
		err = fmt.Errorf("sync %s: %w", Position{f.name, size}, err)
		f.syncErr = err
		size = max(durable, 0)
	} else {
		f.durable.Store(size)
		f.dirty.Store(f.size.Load() != size)
	}
	f.raw.Unlock()
	c.notify(f)
	return size, err
}

// alone gives a logfile without a live Writer to one caller, who ends that with done.
func (c *Chain) alone(name Name, verb string) (f *chainFile, done func(), err error) {
	if f, err = c.acquire(name); err != nil {
		return nil, nil, err
	}
	f.syncing.Lock()
	f.raw.Lock()
	done = func() {
		f.raw.Unlock()
		f.syncing.Unlock()
		c.release(f)
	}
	if err := c.rawAllowed(f, verb); err != nil {
		done()
		return nil, nil, err
	}
	return f, done, nil
}

// Truncate cuts a logfile to size bytes, durably: a torn tail, or a damaged copy
// that is to be fetched again. It refuses to lengthen a file and to touch one with
// a live Writer. The file is no longer sealed afterwards.
func (c *Chain) Truncate(name Name, size int64) error {
	f, done, err := c.alone(name, "truncate")
	if err != nil {
		return err
	}
	defer done()
	have, err := f.file.Size()
	if err != nil {
		return fmt.Errorf("truncate %s: %w", name, err)
	}
	if size < 0 || size > have {
		return fmt.Errorf("truncate %s to %d bytes: it has %d", name, size, have)
	}
	if f.syncErr != nil && size > max(f.durable.Load(), 0) {
		return fmt.Errorf("truncate %s to %d bytes: only %d are known to be on the disk: %w", name, size, max(f.durable.Load(), 0), f.syncErr)
	}
	// Whoever waits must not take the old length for durable any more.
	f.size.Store(size)
	if f.durable.Load() > size {
		f.durable.Store(size)
	}
	if size < have {
		c.mu.Lock()
		f.sealed = false
		c.mu.Unlock()
	}
	defer c.notify(f)
	err = f.file.Truncate(size)
	if err != nil {
		f.size.Store(-1)
		return fmt.Errorf("truncate %s to %d bytes: %w", name, size, err)
	}
	if err := f.file.Datasync(); err != nil {
		f.syncErr = fmt.Errorf("sync %s: %w", Position{name, size}, err)
		return f.syncErr
	}
	f.syncErr = nil
	f.durable.Store(size)
	f.dirty.Store(false)
	return nil
}

// Restore makes a logfile size bytes long whose end got lost: what is missing
// becomes a hole, which no Reader accepts. It never shortens.
func (c *Chain) Restore(name Name, size int64) error {
	if err := c.AppendRaw(name, 0, nil); err != nil {
		var have *OffsetError
		if !errors.As(err, &have) {
			return err
		}
	}
	f, done, err := c.alone(name, "restore")
	if err != nil {
		return err
	}
	defer done()
	have, err := f.file.Size()
	if err == nil && have < size {
		err = f.file.Truncate(size)
	}
	f.size.Store(-1)
	if err == nil {
		err = f.file.Datasync()
	}
	if err != nil {
		return fmt.Errorf("restore %s to %d bytes: %w", name, size, err)
	}
	f.size.Store(max(have, size))
	f.durable.Store(max(have, size))
	f.syncErr = nil
	f.dirty.Store(false)
	c.notify(f)
	return nil
}

const setAsidePrefix = "given-up-"

// ParseSetAside parses the name of a file that SetAside has made.
func ParseSetAside(file string) (Name, bool) {
	rest, ok := strings.CutPrefix(file, setAsidePrefix)
	if !ok {
		return Name{}, false
	}
	name, err := ParseName(rest)
	return name, err == nil
}

// SetAside renames a logfile so that it is no log of the chain any more, durably, and
// returns its new path. An older one of that name is replaced.
func (c *Chain) SetAside(name Name) (path string, err error) {
	if err := name.valid(); err != nil {
		return "", err
	}
	path = filepath.Join(c.dir, setAsidePrefix+name.String())
	c.making.Lock()
	defer c.making.Unlock()
	if err := c.unused(name, "set aside"); err != nil {
		return "", err
	}
	if err = c.fs.Rename(c.path(name), path); err == nil {
		err = c.fs.SyncDir(c.dir)
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[name]; f != nil {
		c.forget(f)
	}
	return path, nil
}
