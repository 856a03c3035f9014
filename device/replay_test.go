package device

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

// logsOf makes logs by driving a primary, and returns them in order.
func logsOf(t testing.TB, seed uint64, size int64, ops, rotations int) (names []logfile.Name, data [][]byte, final []byte) {
	r := rand.New(rand.NewPCG(seed, 17))
	w := newWorld(t, seed, size, nil, func(c *EngineConfig) { c.WritebackAge = time.Hour })
	w.primary()
	for i := range ops {
		if rotations > 0 && i > 0 && i%(ops/(rotations+1)) == 0 {
			w.rotate()
		}
		op := randomOp(r, size, 16<<10, 512)
		must(t, w.e.Submit([]nbd.Op{op}))
	}
	must(t, w.flush())
	final = w.content()
	list, err := w.chain.List()
	must(t, err)
	for _, f := range list {
		p, err := w.fs.ReadFile(logDir + "/" + f.Name.String())
		must(t, err)
		names, data = append(names, f.Name), append(data, p)
	}
	w.e.abandon()
	return names, data, final
}

func (w *world) feed(log logfile.Name, off int64, p []byte) {
	w.t.Helper()
	must(w.t, w.chain.AppendRaw(log, off, p))
	_, err := w.chain.SyncRaw(log)
	must(w.t, err)
}

func (w *world) until(what string, cond func(Status) bool) {
	w.t.Helper()
	testutil.WaitFor(w.t, 20*time.Second, what, func() bool { return cond(w.e.Status()) })
}

func (w *world) pause() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must(w.t, w.e.SetReplay(ctx, false))
}

// TestReplay feeds the logs of a primary to a secondary in random pieces, with pauses, power
// cuts and rotation. Whenever it is paused its disk is exactly the log up to the published position (L0);
// after a crash that holds once the zone is repaired, and the position never goes back (L1, L2).
func TestReplay(t *testing.T) {
	seed := testutil.Seed(t)
	for name, tune := range map[string]func(*EngineConfig){
		"default":     func(c *EngineConfig) { c.Host = "b" },
		"small index": func(c *EngineConfig) { c.Host, c.IndexLimit = "b", 64 },
		"lazy":        func(c *EngineConfig) { c.Host, c.WritebackAge = "b", time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for round := range uint64(2) {
				replayRun(t, seed+round, tune)
			}
		})
	}
}

func replayRun(t *testing.T, seed uint64, tune func(*EngineConfig)) {
	const size = 128 << 10
	names, data, final := logsOf(t, seed, size, 300, 3)
	r := rand.New(rand.NewPCG(seed, 19))
	w := newWorld(t, seed, size, nil, tune)
	base := w.diskContent()
	start, _ := w.jour.get()
	exact := func(what string) {
		t.Helper()
		pos, end := w.jour.get()
		if s := w.e.Status(); pos != s.Applied || s.DirtyEnd != pos.Offset || end != pos.Offset {
			t.Fatalf("seed %d: %s: zone %v..%d, status %+v", seed, what, pos, end, s)
		}
		if err := diff(w.diskContent(), logOracle(t, w.fs, base, start, pos)); err != nil {
			t.Fatalf("seed %d: %s: disk is not the log up to %v: %v", seed, what, pos, err)
		}
	}
	on := func() { must(t, w.e.SetReplay(context.Background(), true)) }
	on()
	for i, log := range names {
		for off := 0; off < len(data[i]); {
			n := min(1+r.IntN(24<<10), len(data[i])-off)
			w.feed(log, int64(off), data[i][off:off+n])
			off += n
			switch r.IntN(12) {
			case 0:
				w.pause()
				exact("paused")
				on()
			case 1:
				before, _ := w.jour.get()
				w.fs.PowerCut() // from here on the journal is never ahead of the files
				jour := w.jour.clone()
				cut := w.fs.Crash(crashfs.Policies[r.IntN(len(crashfs.Policies))], r)
				w.e.abandon()
				w = w.at(cut, jour)
				w.pause() // repairs the zone although replay is off
				exact("repaired")
				if after, _ := w.jour.get(); after.Log.Seq < before.Log.Seq || (after.Log == before.Log && after.Offset < before.Offset) {
					t.Fatalf("position went back from %v to %v", before, after)
				}
				// The crash may have taken bytes that had not been synced; fetch goes on there.
				have, err := w.chain.Size(log)
				if errors.Is(err, errNotExist) {
					have, err = 0, nil
				}
				must(t, err)
				off = int(have)
				on()
				for j, earlier := range names[:i] { // NextLog is not remembered before the old log is on the disk
					if w.e.Status().Current == earlier {
						w.until("earlier log", func(s Status) bool { return s.IngestEnd.Offset == int64(len(data[j])) })
						must(t, w.e.NextLog(names[j+1]))
					}
				}
			}
		}
		w.until("log applied", func(s Status) bool { return s.IngestEnd == logfile.Position{Log: log, Offset: int64(len(data[i]))} })
		w.chain.Seal(log)
		if i+1 < len(names) {
			must(t, w.e.NextLog(names[i+1]))
		}
	}
	w.pause()
	exact("end")
	if err := diff(w.diskContent(), final); err != nil {
		t.Fatalf("seed %d: secondary differs from the primary: %v", seed, err)
	}
	if len(w.jour.problems) > 0 {
		t.Fatalf("journal: %q", w.jour.problems)
	}
}

// TestReplayStopsAtDamage: the record is not applied, what is before is on the disk,
// the status says why, and a repaired copy lets replay go on by itself.
func TestReplayStopsAtDamage(t *testing.T) {
	const size = 128 << 10
	names, data, final := logsOf(t, 1, size, 60, 0)
	log, good := names[0], data[0]
	for what, damage := range map[string]struct {
		bytes  func() []byte
		sealed bool
		torn   bool
	}{
		"flipped byte": {func() []byte {
			p := bytes.Clone(good)
			p[len(p)/2] ^= 1
			return p
		}, false, false},
		"torn and sealed": {func() []byte { return bytes.Clone(good[:len(good)-40]) }, true, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, size, nil, func(c *EngineConfig) { c.Host = "b" })
			base := w.diskContent()
			start, _ := w.jour.get()
			must(t, w.e.SetReplay(context.Background(), true))
			w.feed(log, 0, damage.bytes())
			if damage.sealed {
				w.chain.Seal(log)
			}
			w.until("replay error", func(s Status) bool { return s.ReplayErr != nil })
			var torn *logfile.TornError
			var bad *logfile.CorruptError
			err := w.e.Status().ReplayErr
			if errors.As(err, &torn) != damage.torn || errors.As(err, &bad) == damage.torn {
				t.Fatalf("replay error %v", err)
			}
			w.until("written back", func(s Status) bool { return s.Applied == s.IngestEnd })
			pos := w.e.Status().Applied
			at := pos.Offset
			if damage.torn && at != torn.Offset || !damage.torn && at != bad.Offset {
				t.Fatalf("stopped at %v, error %v", pos, err)
			}
			if err := diff(w.diskContent(), logOracle(t, w.fs, base, start, pos)); err != nil {
				t.Fatal(err)
			}
			// The switch can be used while the error stands.
			w.pause()
			must(t, w.e.SetReplay(context.Background(), true))
			w.until("replay error again", func(s Status) bool { return s.ReplayErr != nil })
			must(t, w.chain.Truncate(log, at))
			w.feed(log, at, good[at:])
			w.until("repaired", func(s Status) bool { return s.IngestEnd.Offset == int64(len(good)) && s.ReplayErr == nil })
			w.pause()
			if err := diff(w.diskContent(), final); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A log that the primary never finished, and states in which switches must refuse.
func TestReplayRefusals(t *testing.T) {
	const size = 128 << 10
	names, data, _ := logsOf(t, 2, size, 60, 1)
	w := newWorld(t, 2, size, nil, func(c *EngineConfig) { c.Host = "b" })
	must(t, w.e.SetReplay(context.Background(), true))
	w.feed(names[0], 0, data[0][:len(data[0])-10])
	w.until("most of it", func(s Status) bool { return s.IngestEnd.Offset > 0 })
	wantErr(t, w.e.NextLog(names[1]), ErrState, "not been applied to its end")
	wantErr(t, w.e.NextLog(name(1, "x")), ErrState, "does not follow")
	wantErr(t, w.e.Follow(names[1]), ErrState, "current log is")
	wantErr(t, w.e.Rotate(name(3, "b")), ErrState, "replaying")
	wantErr(t, w.e.StartLogging(name(3, "b")), ErrState, "replaying")
	w.pause()
	wantErr(t, w.e.StartLogging(name(2, "b")), ErrState, "recover first")
	wantErr(t, w.e.StartLogging(name(2, "a")), nil, "only ever writes its own")
	wantErr(t, w.e.StartLogging(name(1, "b")), nil, "does not come after")
	must(t, w.e.Follow(names[0]))
	// The dead primary's torn tail is cut by the new one.
	end, torn, err := w.e.Recover(context.Background(), false)
	must(t, err)
	if torn == 0 || end.Offset+torn != int64(len(data[0])-10) {
		t.Fatalf("recovered to %v, torn %d of %d", end, torn, len(data[0])-10)
	}
	must(t, w.e.StartLogging(name(2, "b")))
	must(t, w.e.Submit([]nbd.Op{{Off: 0, Len: 512, Data: make([]byte, 512)}}))
	wantErr(t, w.e.SetReplay(context.Background(), true), ErrState, "logging")
	must(t, w.e.StopLogging(context.Background()))
	must(t, w.e.StopLogging(context.Background()))
}

// The zone says that the disk has parts of bytes which are not here: nothing may be
// called repaired before they are.
func TestZoneBeyondTheLog(t *testing.T) {
	const size = 128 << 10
	names, data, final := logsOf(t, 3, size, 60, 0)
	log, good := names[0], data[0]
	w := newWorld(t, 3, size, nil, func(c *EngineConfig) { c.Host = "b" })
	w.e.abandon()
	w.jour.end = int64(len(good))
	w.open()
	w.feed(log, 0, good[:len(good)/2])
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	wantErr(t, w.e.SetReplay(ctx, false), context.DeadlineExceeded, "repair of the dirty zone")
	wantErr(t, w.e.NextLog(name(2, "a")), ErrState, "not repaired")
	_, _, err := w.e.Recover(context.Background(), false)
	wantErr(t, err, nil, "fetch it from a peer")
	w.feed(log, int64(len(good)/2), good[len(good)/2:])
	w.pause()
	if err := diff(w.diskContent(), final); err != nil {
		t.Fatal(err)
	}
	if pos, end := w.jour.get(); pos.Offset != int64(len(good)) || end != pos.Offset {
		t.Fatalf("zone %v..%d", pos, end)
	}
}

// TestReplayIsContinuous: bytes are applied as they arrive, without a switch.
func TestReplayIsContinuous(t *testing.T) {
	const size = 128 << 10
	names, data, _ := logsOf(t, 4, size, 40, 0)
	w := newWorld(t, 4, size, nil, func(c *EngineConfig) { c.Host = "b" })
	must(t, w.e.SetReplay(context.Background(), true)) // before the log exists
	borders := []int64{0}
	r := logfile.NewReader(bytes.NewReader(data[0]), int64(len(data[0])), names[0], logfile.ReaderOptions{End: -1})
	for {
		rec, err := r.Next(context.Background())
		if err != nil {
			break
		}
		borders = append(borders, rec.End())
	}
	for i := 1; i < len(borders); i++ {
		mid := (borders[i-1] + borders[i]) / 2
		w.feed(names[0], borders[i-1], data[0][borders[i-1]:mid])
		w.feed(names[0], mid, data[0][mid:borders[i]])
		w.until("next record", func(s Status) bool { return s.IngestEnd.Offset == borders[i] })
	}
}

// Records beyond the device stop replay until the device has grown.
func TestReplayBeyondTheDevice(t *testing.T) {
	names, data, final := logsOf(t, 5, 256<<10, 60, 0)
	w := newWorld(t, 5, 256<<10, nil, func(c *EngineConfig) { c.Host, c.Size = "b", 128<<10 })
	must(t, w.e.SetReplay(context.Background(), true))
	w.feed(names[0], 0, data[0])
	w.until("replay error", func(s Status) bool { return s.ReplayErr != nil })
	wantErr(t, w.e.Resize(64<<10), nil, "smaller than now")
	wantErr(t, w.e.Resize(512<<10), ErrTooSmall, "grow it first")
	must(t, w.e.Resize(256<<10))
	w.until("applied", func(s Status) bool { return s.IngestEnd.Offset == int64(len(data[0])) })
	w.pause()
	if err := diff(w.diskContent(), final); err != nil {
		t.Fatal(err)
	}
}

// Compressed records, as the original may write them, are read back from the log.
func TestReplayPackedZeros(t *testing.T) {
	w := newWorld(t, 6, 256<<10, bytes.Repeat([]byte{1}, 256<<10), func(c *EngineConfig) { c.ZeroesAsWrites, c.WritebackAge = true, time.Hour })
	w.primary()
	wantErr(t, w.e.Submit([]nbd.Op{{Kind: nbd.OpTrim, Off: 1000, Len: 200 << 10}}), syscall.EINVAL, "whole sectors")
	must(t, w.e.Submit([]nbd.Op{{Kind: nbd.OpTrim, Off: 1024, Len: 200 << 10}}))
	want := bytes.Repeat([]byte{1}, 256<<10)
	clear(want[1024 : 1024+200<<10])
	must(t, diff(w.content(), want))
	if n := w.e.idx.end().Offset; n > 4000 {
		t.Fatalf("200 KiB of zeros take %d bytes of log", n)
	}
	w.e.abandon()
	w = w.at(w.fs.KillState(), w.jour)
	w.recover()
	must(t, diff(w.content(), want))
	must(t, w.e.Close())
	must(t, diff(w.diskContent(), want))
}

// The repair of a zone ends also when a portion of records ends exactly there.
func TestRepairEndsWithPortion(t *testing.T) {
	const size = 128 << 10
	names, data, _ := logsOf(t, 31, size, 60, 0)
	w := newWorld(t, 31, size, nil, func(c *EngineConfig) { c.IndexLimit = 64 })
	w.feed(names[0], 0, data[0])
	var ends []int64
	r := logfile.NewReader(bytes.NewReader(data[0]), int64(len(data[0])), names[0], logfile.ReaderOptions{End: -1})
	for rec, err := r.Next(t.Context()); err == nil; rec, err = r.Next(t.Context()) {
		ends = append(ends, rec.End())
	}
	r.Close()
	zone := ends[2*w.e.portion()-1]
	w.e.abandon()
	w.jour.end = zone
	w.open()
	w.pause()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.e.replayUpTo(w.e.ctx, zone, int64(len(data[0])), false)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("replay looks at a zone that is repaired for ever")
	}
}
