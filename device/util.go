package device

import (
	"bytes"
	"context"
	"io/fs"
	"sync"
	"time"
)

var errNotExist = fs.ErrNotExist

func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// longMutex is a sync.Mutex for those that hold it while they wait for a disk, a peer or a clock. Who waits for
// it waits for a channel, which fake time (testing/synctest) understands.
type longMutex struct {
	make sync.Once
	held chan struct{}
}

func (m *longMutex) Lock() {
	m.make.Do(func() { m.held = make(chan struct{}, 1) })
	m.held <- struct{}{}
}

// TryLock takes the mutex if it is free.
func (m *longMutex) TryLock() bool {
	m.make.Do(func() { m.held = make(chan struct{}, 1) })
	select {
	case m.held <- struct{}{}:
		return true
	default:
		return false
	}
}

// Unlock frees a locked mutex.
func (m *longMutex) Unlock() { <-m.held }

// wait pauses for d or until ctx ends.
func (e *Engine) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
