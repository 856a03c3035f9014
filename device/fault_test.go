package device

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

func write(off int64, b byte, n int) nbd.Op {
	return nbd.Op{Off: off, Len: int64(n), Data: bytes.Repeat([]byte{b}, n)}
}

// A failing disk never moves the position and never fails a client; when it works
// again everything since the last good flush is written again.
func TestDiskErrors(t *testing.T) {
	for name, fault := range map[string]crashfs.Fault{
		"write": {Ops: crashfs.OpWrite, Path: diskPath, Err: syscall.EIO, Short: true},
		"flush": {Ops: crashfs.OpDatasync, Path: diskPath, Err: syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, 1))
			const size = 128 << 10
			w := newWorld(t, 1, size, nil, nil)
			w.primary()
			must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
			w.until("first checkpoint", func(s Status) bool { return s.Applied == s.IngestEnd })
			before, _ := w.jour.get()
			good := w.e.Status().Counters.Cycles
			repair := w.fs.Inject(fault)
			model := make([]byte, size)
			apply(model, &nbd.Op{Off: 0, Len: 4096, Data: bytes.Repeat([]byte{1}, 4096)})
			for range 30 {
				op := randomOp(r, size, 8<<10, 512)
				apply(model, &op)
				must(t, w.e.Submit([]nbd.Op{op}))
			}
			must(t, w.flush())
			w.until("disk error", func(s Status) bool { return s.DiskErr != nil && s.Counters.FailedCycles > 2 })
			if pos, _ := w.jour.get(); pos != before || w.e.Status().Counters.Cycles != good {
				t.Fatalf("position moved from %v to %v over a failed %s", before, pos, name)
			}
			must(t, diff(w.content(), model))
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			wantErr(t, w.e.StopLogging(ctx), syscall.EIO, "writeback")
			repair()
			w.until("checkpoint", func(s Status) bool { return s.Applied == s.IngestEnd && s.DiskErr == nil })
			// Power off: what the failed flush lost must have been written again.
			cut := w.fs.Crash(crashfs.LoseAll, r)
			w.e.abandon()
			disk, err := cut.ReadFile(diskPath)
			must(t, err)
			must(t, diff(disk, model))
		})
	}
}

// A read that fails reaches the client that asked and nobody else, is visible, and is
// forgotten when reads work again.
func TestReadError(t *testing.T) {
	w := newWorld(t, 1, 64<<10, bytes.Repeat([]byte{7}, 64<<10), func(c *EngineConfig) { c.WritebackAge = time.Hour })
	w.primary()
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	repair := w.fs.Inject(crashfs.Fault{Ops: crashfs.OpRead, Path: diskPath, Err: syscall.EIO})
	p := make([]byte, 4096)
	wantErr(t, w.e.ReadAt(p, 8192), syscall.EIO, "read disk")
	wantErr(t, w.e.Status().DiskErr, syscall.EIO, "read disk")
	must(t, w.e.ReadAt(p, 0)) // from the log
	must(t, w.e.Submit([]nbd.Op{write(4096, 2, 4096)}))
	must(t, w.flush())
	wantErr(t, w.e.ReadAt(p, 16384), syscall.EIO, "read disk")
	repair()
	must(t, w.e.ReadAt(p, 8192))
	if err := w.e.Status().DiskErr; err != nil || p[0] != 7 {
		t.Fatalf("after the repair: %v, byte %d", err, p[0])
	}
}

// A flush that fails tells every user of the disk, not only the one who called it.
func TestFlushSince(t *testing.T) {
	w := newWorld(t, 1, 64<<10, nil, nil)
	a, b := w.disk.Epoch(), w.disk.Epoch()
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: diskPath, Count: 1, Err: syscall.EIO})
	wantErr(t, w.disk.FlushSince(a), syscall.EIO, "flush disk")
	wantErr(t, w.disk.FlushSince(b), syscall.EIO, "written again")
	must(t, w.disk.FlushSince(w.disk.Epoch()))
	wantErr(t, w.disk.FlushSince(b), syscall.EIO, "written again")
}

// A journal that fails stops the writeback and nothing else.
func TestJournalErrors(t *testing.T) {
	w := newWorld(t, 1, 64<<10, nil, nil)
	w.primary()
	w.until("start published", func(s Status) bool { return s.Applied == s.IngestEnd })
	w.jour.setFail(errors.New("no space for links"), nil)
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	w.until("journal error", func(s Status) bool { return s.JournalErr != nil && s.DiskErr == nil })
	if disk := w.diskContent(); !allZero(disk) {
		t.Fatal("data went to the disk although the dirty zone could not be announced")
	}
	must(t, w.e.Submit([]nbd.Op{write(4096, 2, 4096)}))
	w.jour.setFail(nil, nil)
	w.until("checkpoint", func(s Status) bool { return s.Applied == s.IngestEnd && s.JournalErr == nil })

	// When only the position cannot be published, the data is not written again.
	before, _ := w.jour.get()
	w.jour.setFail(nil, errors.New("no space for links"))
	must(t, w.e.Submit([]nbd.Op{write(8192, 3, 4096)}))
	w.until("journal error", func(s Status) bool { return s.JournalErr != nil && s.Counters.FailedCycles > 2 })
	s := w.e.Status()
	if pos, end := w.jour.get(); pos != before || end != s.IngestEnd.Offset || s.Applied != before || s.Extents != 0 {
		t.Fatalf("zone %v..%d, status %+v", pos, end, s)
	}
	must(t, diff(w.content(), w.diskContent()))
	w.jour.setFail(nil, nil)
	w.until("checkpoint", func(s Status) bool { return s.Applied == s.IngestEnd && s.JournalErr == nil })
	if n := w.e.Status().Counters.WritebackOps; n != s.Counters.WritebackOps {
		t.Errorf("%d writes to the disk after %d", n, s.Counters.WritebackOps)
	}
}

// After a failed sync of the log nothing is acknowledged; the next log takes over
// all that had been acknowledged, although the old file may have lost it.
func TestLogSyncError(t *testing.T) {
	const size = 128 << 10
	r := rand.New(rand.NewPCG(2, 2))
	w := newWorld(t, 2, size, nil, func(c *EngineConfig) { c.SyncInterval = time.Hour })
	w.primary()
	model := make([]byte, size)
	step := func() {
		t.Helper()
		op := randomOp(r, size, 8<<10, 512)
		must(t, w.e.Submit([]nbd.Op{op}))
		apply(model, &op)
	}
	for range 10 {
		step()
	}
	w.rotate()
	for range 10 {
		step()
	}
	must(t, w.flush())
	log := w.e.Status().Current
	durable := w.e.Status().LogDurable
	disarm := w.fs.Inject(crashfs.Fault{Ops: crashfs.OpDatasync, Path: log.String(), Count: 1, Err: syscall.EIO})
	// The background writeback may meet the error before the client does.
	for range 10 {
		op := randomOp(r, size, 8<<10, 512)
		if err := w.e.Submit([]nbd.Op{op}); err == nil {
			apply(model, &op)
		} else {
			wantErr(t, err, syscall.EIO, "failed")
		}
	}
	wantErr(t, w.flush(), syscall.EIO, "writes are refused")
	disarm()
	wantErr(t, w.e.Submit([]nbd.Op{write(0, 9, 512)}), syscall.EIO, "writes are refused")
	wantErr(t, w.flush(), syscall.EIO, "writes are refused")
	if s := w.e.Status(); s.Mode != Error || s.LogErr == nil {
		t.Fatalf("status %+v", s)
	}
	_, err := w.e.ReadStable(context.Background(), make([]byte, 512), 0)
	wantErr(t, err, syscall.EIO, "failed")
	must(t, diff(w.content(), model))
	wantErr(t, w.e.Rotate(name(log.Seq+1, "a")), ErrState, "error")

	next := name(log.Seq+1, "a")
	must(t, w.e.StartLogging(next))
	must(t, diff(w.content(), model))
	if n, err := w.chain.Size(log); err != nil || n != durable {
		t.Fatalf("the old log has %d bytes (%v), durable were %d", n, err, durable)
	}
	for range 10 {
		step()
	}
	must(t, w.flush())
	cut := w.fs.Crash(crashfs.LoseAll, r)
	must(t, w.e.StopLogging(context.Background()))
	must(t, diff(w.diskContent(), model))
	n := w.at(cut, w.jour.clone())
	n.jour.pos, n.jour.end = logfile.Position{Log: name(1, "a")}, 0
	n.e.abandon()
	n.open()
	n.recover()
	must(t, diff(n.content(), model))
}

// A full log file system: the write fails, everything before it is safe, and the
// next log goes on.
func TestLogFull(t *testing.T) {
	w := newWorld(t, 3, 64<<10, nil, nil)
	w.primary()
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	free := w.fs.Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: "log-*", Err: syscall.ENOSPC, Short: true})
	wantErr(t, w.e.Submit([]nbd.Op{write(0, 2, 4096)}), syscall.EIO, "no space left")
	wantErr(t, w.e.Submit([]nbd.Op{write(4096, 3, 4096)}), syscall.EIO, "writes are refused")
	want := make([]byte, 64<<10)
	copy(want, bytes.Repeat([]byte{1}, 4096))
	must(t, diff(w.content(), want))
	w.until("written back", func(s Status) bool { return s.Applied == s.IngestEnd })
	free()
	log := w.e.Status().Current
	must(t, w.e.StartLogging(name(log.Seq+1, "a")))
	must(t, w.e.Submit([]nbd.Op{write(8192, 4, 4096)}))
	copy(want[8192:], bytes.Repeat([]byte{4}, 4096))
	must(t, w.flush())
	w.e.abandon()
	w = w.at(w.fs.KillState(), w.jour)
	w.recover()
	must(t, diff(w.content(), want))

	// The same, and then the node stops being primary instead.
	must(t, w.e.StartLogging(name(log.Seq+2, "a")))
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: "log-*", Err: syscall.ENOSPC})
	wantErr(t, w.e.Submit([]nbd.Op{write(0, 2, 4096)}), syscall.EIO, "no space left")
	must(t, w.e.StopLogging(context.Background()))
	must(t, diff(w.diskContent(), want))
}

// Writers wait for room in the index and are never failed by it.
func TestIndexLimit(t *testing.T) {
	const limit = 128
	w := newWorld(t, 4, 4<<20, nil, func(c *EngineConfig) { c.IndexLimit, c.WritebackAge, c.WritebackBytes = limit, time.Hour, 1<<40 })
	w.primary()
	block := make(chan struct{})
	release := sync.OnceFunc(func() { close(block) })
	defer release()
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: diskPath, Count: 1, Delay: func(crashfs.Op) { <-block }})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2 * limit { // none of them gets through alone
				if err := w.e.Submit([]nbd.Op{write(int64(g*2*limit+i)*4096, byte(g+1), 512)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	w.until("writers wait", func(s Status) bool { return s.Counters.WriterWaits >= 4 })
	if n := w.e.Status().Extents; n > limit {
		t.Errorf("%d extents, the limit is %d", n, limit)
	}
	release()
	wg.Wait()
	if n := w.e.Status().Extents; n > limit {
		t.Errorf("%d extents, the limit is %d", n, limit)
	}
	// A batch that is larger than the whole limit goes through alone.
	var ops []nbd.Op
	for i := range 2 * limit {
		ops = append(ops, write(int64(i)*8192, 7, 512))
	}
	must(t, w.e.Submit(ops))
	must(t, w.e.StopLogging(context.Background()))
}

// Waiting writers are released by Close.
func TestCloseReleasesWriters(t *testing.T) {
	w := newWorld(t, 5, 4<<20, nil, func(c *EngineConfig) { c.IndexLimit, c.CloseTimeout = 64, 50*time.Millisecond })
	w.primary()
	w.fs.Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: diskPath, Err: syscall.EIO})
	failed := make(chan error)
	go func() {
		for i := int64(0); ; i++ {
			if err := w.e.Submit([]nbd.Op{write(i%500*8192, 1, 512)}); err != nil {
				failed <- err
				return
			}
		}
	}()
	w.until("writer waits", func(s Status) bool { return s.Counters.WriterWaits > 0 && s.DiskErr != nil })
	wantErr(t, w.e.Close(), syscall.EIO, "the rest is in the log")
	wantErr(t, <-failed, syscall.ESHUTDOWN, "")
	wantErr(t, w.e.Submit([]nbd.Op{write(0, 1, 512)}), syscall.ESHUTDOWN, "")
	wantErr(t, w.flush(), syscall.ESHUTDOWN, "")
	must(t, w.e.Close())
}

// P2 by mode: what a power cut may take after an acknowledgement.
func TestDurabilityModes(t *testing.T) {
	for _, c := range []struct {
		mode        Durability
		flush, kept bool
	}{
		{DurabilityFlush, false, false}, {DurabilityFlush, true, true},
		{DurabilityAlways, false, true},
		{DurabilityNone, true, false},
	} {
		w := newWorld(t, 6, 64<<10, nil, func(cfg *EngineConfig) {
			cfg.Durability, cfg.SyncInterval, cfg.WritebackAge = c.mode, time.Hour, time.Hour
		})
		w.primary()
		must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
		if c.flush {
			must(t, w.flush())
		}
		cut := w.fs.Crash(crashfs.LoseAll, rand.New(rand.NewPCG(1, 1)))
		kill := w.fs.KillState()
		w.e.abandon()
		for state, fs := range map[string]*crashfs.FS{"power cut": cut, "kill": kill} {
			n := w.at(fs, w.jour.clone())
			n.recover()
			kept := n.content()[0] == 1
			if want := c.kept || state == "kill"; kept != want {
				t.Errorf("%v, flush %v, %s: kept %v, want %v", c.mode, c.flush, state, kept, want)
			}
		}
	}
}

// Peers get bytes soon although nobody flushes.
func TestBackgroundSync(t *testing.T) {
	w := newWorld(t, 7, 64<<10, nil, nil)
	w.primary()
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	end := w.e.Status().LogEnd
	testutil.WaitFor(t, 10*time.Second, "log durable", func() bool { return w.e.Status().LogDurable >= end })
}

// ReadStable never shows what its author can still lose (P5).
func TestReadStable(t *testing.T) {
	w := newWorld(t, 8, 64<<10, nil, func(c *EngineConfig) { c.SyncInterval, c.WritebackAge = time.Hour, time.Hour })
	w.primary()
	must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
	p := make([]byte, 4096)
	end, err := w.e.ReadStable(context.Background(), p, 0)
	must(t, err)
	if d, _ := w.chain.Durable(end.Log); d < end.Offset || end != w.e.Status().IngestEnd || p[0] != 1 {
		t.Fatalf("read at %v, durable %d, byte %d", end, d, p[0])
	}
	n := w.at(w.fs.Crash(crashfs.LoseAll, rand.New(rand.NewPCG(1, 1))), w.jour.clone())
	n.recover()
	if n.content()[0] != 1 {
		t.Fatal("a peer has data that its author lost")
	}
}

// Damage in an own log before its end is an error that changes nothing; force ends
// the log in front of it.
func TestRecoverDamaged(t *testing.T) {
	const size = 128 << 10
	_, data, _ := logsOf(t, 9, size, 60, 0)
	bad := bytes.Clone(data[0])
	bad[len(bad)/2] ^= 4
	w := newWorld(t, 9, size, nil, func(c *EngineConfig) { c.WritebackAge = time.Hour })
	w.feed(name(1, "a"), 0, bad)
	var corrupt *logfile.CorruptError
	for range 2 {
		_, _, err := w.e.Recover(context.Background(), false)
		if !errors.As(err, &corrupt) {
			t.Fatalf("recovery of a damaged log: %v", err)
		}
		if n, _ := w.chain.Size(name(1, "a")); n != int64(len(bad)) {
			t.Fatalf("recovery cut the damaged log to %d", n)
		}
	}
	end, torn, err := w.e.Recover(context.Background(), true)
	must(t, err)
	if end.Offset != corrupt.Offset || torn != int64(len(bad))-corrupt.Offset {
		t.Fatalf("forced to %v, %d bytes cut; damage at %d", end, torn, corrupt.Offset)
	}
	must(t, diff(w.content(), logOracle(t, w.fs, make([]byte, size), logfile.Position{Log: name(1, "a")}, end)))
	must(t, w.e.StartLogging(name(2, "a")))
	must(t, w.e.Close())
}

// A torn tail in a log that has a successor with data is damage: the old log was
// complete when the new one got its first byte.
func TestRecoverTornMiddle(t *testing.T) {
	const size = 128 << 10
	names, data, _ := logsOf(t, 10, size, 60, 1)
	for _, empty := range []bool{true, false} {
		w := newWorld(t, 10, size, nil, nil)
		w.feed(names[0], 0, data[0][:len(data[0])-30])
		if empty {
			w.feed(names[1], 0, nil) // the crash hit the rotation
		} else {
			w.feed(names[1], 0, data[1])
		}
		end, torn, err := w.e.Recover(context.Background(), false)
		if empty {
			must(t, err)
			if torn == 0 || end != (logfile.Position{Log: names[1]}) {
				t.Fatalf("recovered to %v, torn %d", end, torn)
			}
			must(t, w.e.StartLogging(names[1])) // the empty log is used
			must(t, w.e.Close())
			continue
		}
		wantErr(t, err, nil, "later logs have data")
		end, _, err = w.e.Recover(context.Background(), true)
		must(t, err)
		if end.Log != names[0] {
			t.Fatalf("forced recovery stepped over a hole to %v", end)
		}
		w.e.abandon()
	}
}

// A gap in the series of logs, and a fork.
func TestRecoverSeries(t *testing.T) {
	const size = 128 << 10
	names, data, final := logsOf(t, 11, size, 90, 2)
	w := newWorld(t, 11, size, nil, nil)
	w.feed(names[2], 0, data[2])
	wantErr(t, w.e.StartLogging(name(4, "a")), ErrState, "recover first")
	w.feed(names[0], 0, data[0])
	wantErr(t, w.e.StartLogging(name(4, "a")), ErrState, "recover first")
	_, _, err := w.e.Recover(context.Background(), false)
	wantErr(t, err, nil, "a log is missing between")
	w.feed(name(2, "x"), 0, data[1])
	w.feed(name(2, "y"), 0, data[1])
	_, _, err = w.e.Recover(context.Background(), false)
	wantErr(t, err, nil, "split brain")
	must(t, w.chain.Remove(name(2, "x")))
	w.recover() // a log that another node wrote before this one became primary
	must(t, diff(w.content(), final))
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, 12, 64<<10, nil, nil)
	wantErr(t, w.e.Submit([]nbd.Op{write(0, 1, 512)}), syscall.ESHUTDOWN, "not primary")
	w.primary()
	for _, op := range []nbd.Op{write(64<<10, 1, 1), write(64<<10-1, 1, 2), write(-1, 1, 1), {Off: 0, Len: 10, Data: make([]byte, 9)}, {Kind: nbd.OpTrim, Off: 1, Len: 1<<63 - 1}} {
		wantErr(t, w.e.Submit([]nbd.Op{op}), syscall.EINVAL, "")
	}
	wantErr(t, w.e.ReadAt(make([]byte, 2), 64<<10-1), syscall.EINVAL, "beyond the device end")
	_, err := w.e.TryReadAt(make([]byte, 2), 64<<10-1)
	wantErr(t, err, syscall.EINVAL, "beyond the device end")
	if end := w.e.Status().LogEnd; end != 0 {
		t.Fatalf("refused requests left %d bytes in the log", end)
	}
	_, err = OpenEngine(context.Background(), EngineConfig{}, logfile.Position{Log: name(1, "a")}, 0)
	wantErr(t, err, nil, "must be set")
	cfg := w.config()
	cfg.Size = 1 << 40
	_, err = OpenEngine(context.Background(), cfg, logfile.Position{Log: name(1, "a")}, 0)
	wantErr(t, err, nil, "larger than disk")
	_, err = OpenEngine(context.Background(), w.config(), logfile.Position{}, 0)
	wantErr(t, err, nil, "no valid replay position")
}
