package device

import (
	"context"
	"errors"
	"fmt"
)

// WriteBack returns when everything that was logged or ingested before the call is
// on the disk, flushed and checkpointed. What the engine does goes on meanwhile.
func (e *Engine) WriteBack(ctx context.Context) error {
	defer e.wb.push()()
	end := e.idx.end()
	var cause error
	err := e.await(ctx, func() (bool, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		cause = errors.Join(e.diskErr, e.jourErr)
		at := e.applied
		return at.Log.Seq > end.Log.Seq || at.Log == end.Log && at.Offset >= end.Offset, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("resource %s: writeback: %w", e.cfg.Resource, err), cause)
	}
	return nil
}

// DiskSize is the size of the disk now, in bytes; the last known one if it cannot
// be read.
func (e *Engine) DiskSize() int64 {
	e.disk.refresh()
	return e.disk.Size()
}
