package logfile

import (
	"errors"
	"fmt"
	"io/fs"
)

// Recheck compares what the chain knows about a logfile with what is in the directory, and learns anew
// when somebody else has shortened, replaced or removed the file. Those who wait for it look again: they get a smaller
// length, or fs.ErrNotExist. A file that has a live Writer is nobody else's to touch and not looked at.
func (c *Chain) Recheck(name Name) (changed bool, err error) {
	c.making.Lock()
	defer c.making.Unlock()
	if !c.exists(name) {
		return c.lost(name), nil
	}
	f, done, err := c.alone(name, "recheck")
	if errors.Is(err, fs.ErrNotExist) {
		return c.lost(name), nil
	}
	if err != nil {
		return false, err
	}
	defer done()
	st, err := c.fs.Lstat(c.path(name))
	if err != nil {
		return false, fmt.Errorf("recheck %s: %w", name, err)
	}
	size, err := f.file.Size()
	if err != nil {
		return false, fmt.Errorf("recheck %s: %w", name, err)
	}
	known := f.size.Load()
	switch {
	case size != st.Size(): // the descriptor is of a file that was replaced
		c.mu.Lock()
		c.forget(f)
		c.mu.Unlock()
		return true, nil
	case known < 0 || size >= known:
		return false, nil
	}
	f.size.Store(size)
	f.durable.Store(min(f.durable.Load(), size))
	c.mu.Lock()
	f.sealed = false
	f.wake()
	c.mu.Unlock()
	return true, nil
}

// lost forgets a file that is not there any more.
func (c *Chain) lost(name Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[name]
	if f == nil || f.writer != nil {
		return false
	}
	c.forget(f)
	return true
}
