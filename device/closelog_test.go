package device

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/vfs/crashfs"
)

// flushAtTheEnd is what a FLUSH is told that meets the end of logging while the last sync of the log is under way,
// which fails.
func flushAtTheEnd(t *testing.T, k knobs) error {
	w := newWorld(t, 1, 64<<10, nil, func(c *EngineConfig) { c.SyncInterval, c.WritebackAge, c.knobs = time.Hour, time.Hour, k })
	w.primary()
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	syncing, fail := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: "log-*", Err: syscall.EIO, Delay: func(crashfs.Op) {
		once.Do(func() { close(syncing) })
		<-fail
	}})
	stopped, flushed := make(chan error, 1), make(chan error, 1)
	go func() { stopped <- w.e.StopLogging(context.Background()) }()
	<-syncing
	go func() { _, err := w.e.FlushNow(); flushed <- err }()
	var err error
	if k.lateClose {
		err = <-flushed // does not wait
		close(fail)
	} else {
		close(fail)
		err = <-flushed
	}
	wantErr(t, <-stopped, syscall.EIO, "failed after")
	return err
}

// A FLUSH is not answered by the writer being gone before its log is durable.
func TestFlushWhileLoggingEnds(t *testing.T) {
	wantErr(t, flushAtTheEnd(t, knobs{}), syscall.EIO, "failed after")
	if err := flushAtTheEnd(t, knobs{lateClose: true}); err != nil {
		t.Errorf("the mutant is not noticed: %v", err)
	}
}
