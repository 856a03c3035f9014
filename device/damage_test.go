package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mars/device/nbd"
	"mars/internal/logdamage"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

const damageSize = 128 << 10

// damageCases are the damaged forms of three logs that a primary has written.
func damageCases(t *testing.T) []logdamage.Case {
	seed := testutil.Seed(t)
	_, logs, _ := logsOf(t, seed, damageSize, 24, 2)
	_, foreign, _ := logsOf(t, seed+1, damageSize, 8, 0)
	cases := logdamage.Cases(seed, logs, foreign[0], damageSize)
	if len(cases) < 300 {
		t.Fatalf("only %d cases", len(cases))
	}
	return cases
}

// plant is a node whose logs are those of the case.
func plant(t testing.TB, c *logdamage.Case, host string) *world {
	w := newWorld(t, 1, damageSize, nil, func(cfg *EngineConfig) { cfg.Host = host })
	for i, l := range c.Logs {
		if !l.Absent {
			w.feed(name(i+1, "a"), 0, l.Data)
		}
	}
	return w
}

// prefix is the device with everything before pos and nothing else, from the
// healthy logs.
func prefix(t testing.TB, c *logdamage.Case, pos logfile.Position) []byte {
	fs := crashfs.New(1)
	must(t, fs.MkdirAll(logDir))
	for i, l := range c.Logs {
		if n := i + 1; n > pos.Log.Seq {
			break
		}
		data := l.Data // what is before the damage is whole
		if i+1 == pos.Log.Seq {
			data = data[:min(int64(len(data)), pos.Offset)]
		}
		must(t, fs.AddFile(logDir+"/"+name(i+1, "a").String(), int64(len(data)), bytes.NewReader(data)))
	}
	return logOracle(t, fs, make([]byte, damageSize), logfile.Position{Log: name(1, "a")}, pos)
}

func badPlace(c *logdamage.Case) logfile.Position {
	return logfile.Position{Log: name(c.File+1, "a"), Offset: c.Offset}
}

// class is the word that marsadm has for a verdict.
func class(err error) (word logdamage.Class, repeated int) {
	var bad *logfile.CorruptError
	var torn *logfile.TornError
	var d logfile.Defect
	switch {
	case errors.As(err, &bad):
		d = bad.Defect
	case errors.As(err, &torn):
		d = torn.Defect
	default:
		return logdamage.Missing, -1
	}
	switch unix.Errno(d.Errno) {
	case 0, unix.EAGAIN, unix.ERESTART:
		return logdamage.Incomplete, d.RepeatedByte
	case unix.EBADRQC:
		return logdamage.Uninitialised, d.RepeatedByte
	}
	return logdamage.Defective, d.RepeatedByte
}

// checkVerdict: class, file and offset, a reason and what to do.
func checkVerdict(c *logdamage.Case, err error) error {
	word, repeated := class(err)
	text := fmt.Sprint(err)
	switch {
	case c.Class != "" && word != c.Class:
		return fmt.Errorf("verdict is %s, want %s: %w", word, c.Class, err)
	case repeated != c.Repeated && (c.Class != "" || c.Repeated >= 0):
		return fmt.Errorf("verdict names byte %d, want %d: %w", repeated, c.Repeated, err)
	case c.Repeated >= 0 && !strings.Contains(text, fmt.Sprintf("%#02x", c.Repeated)):
		return fmt.Errorf("verdict does not name the byte %#02x: %w", c.Repeated, err)
	case !strings.Contains(text, badPlace(c).String()):
		return fmt.Errorf("verdict does not name %v: %w", badPlace(c), err)
	case !strings.Contains(text, "fetch") && !strings.Contains(text, "force"):
		return fmt.Errorf("verdict does not say what to do: %w", err)
	}
	return nil
}

// A secondary stops in front of the first bad record, wherever and whatever it is,
// and goes on when it gets a sound copy.
func TestDamagedReplay(t *testing.T) {
	t.Parallel()
	for _, c := range damageCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			w := plant(t, &c, "b")
			must(t, w.e.SetReplay(context.Background(), true))
			bad := badPlace(&c)
			for i := range c.Logs {
				w.chain.Seal(name(i+1, "a")) // its writer has gone on
				if i == c.File {
					break
				}
				w.until("log taken in", func(s Status) bool {
					return s.IngestEnd == logfile.Position{Log: name(i+1, "a"), Offset: c.Whole[i]}
				})
				must(t, w.e.NextLog(name(i+2, "a")))
			}
			silent := c.Class == logdamage.Missing // nothing is wrong with what is there
			w.until("verdict", func(s Status) bool { return s.ReplayErr != nil || silent && s.IngestEnd == bad })
			s := w.e.Status()
			if s.IngestEnd != bad {
				t.Fatalf("taken in up to %v, the first bad record is at %v (%v)", s.IngestEnd, bad, s.ReplayErr)
			}
			if !silent {
				must(t, checkVerdict(&c, s.ReplayErr))
			}
			w.pause()
			must(t, diff(w.diskContent(), prefix(t, &c, bad)))
		})
	}
}

// known is what peers vouch for.
func known(lengths []int64) (k []logfile.Position) {
	for i, n := range lengths {
		k = append(k, logfile.Position{Log: name(i+1, "a"), Offset: n})
	}
	return k
}

// A crashed primary whose log is damaged in front of something that it may have
// acknowledged does not come up, changes nothing, and says where, why and what to do.
// Force gives it up and goes on in a new log. Behind all that was acknowledged everything is a torn tail.
func TestDamagedRecovery(t *testing.T) {
	t.Parallel()
	for _, c := range damageCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			must(t, recoverDamaged(t, &c, func(w *world, known []logfile.Position, force bool) (logfile.Position, error) {
				end, _, err := w.e.RecoverKnown(context.Background(), known, force)
				return end, err
			}))
		})
	}
}

type recoverFunc func(w *world, known []logfile.Position, force bool) (logfile.Position, error)

func recoverDamaged(t testing.TB, c *logdamage.Case, rec recoverFunc) error {
	bad := badPlace(c)
	lastFile := c.File == len(c.Logs)-1
	if lastFile {
		w := plant(t, c, "a")
		lengths := append([]int64(nil), c.Whole...)
		lengths[c.File] = min(lengths[c.File], c.Offset)
		end, err := rec(w, known(lengths), false)
		switch {
		case err != nil:
			return fmt.Errorf("damage behind all that was durable: %w", err)
		case end != bad && (end != logfile.Position{Log: bad.Log}):
			return fmt.Errorf("damage behind all that was durable: the log ends at %v, want %v", end, bad)
		}
		if err := diff(w.content(), prefix(t, c, bad)); err != nil {
			return fmt.Errorf("damage behind all that was durable: %w", err)
		}
		w.e.abandon()
		if c.Behind {
			return nil
		}
	}
	w := plant(t, c, "a")
	for range 2 {
		_, err := rec(w, known(c.Whole), false)
		var damage *DamageError
		if !errors.As(err, &damage) || damage.At != bad {
			return fmt.Errorf("recovery says %w, want damage at %v", err, bad)
		}
		if err := checkVerdict(c, err); err != nil {
			return err
		}
		if lost := sum(c.Whole[c.File:]) - c.Offset; damage.Lost < lost {
			return fmt.Errorf("says that %d bytes are lost, want at least %d", damage.Lost, lost)
		}
		if w.e.StartLogging(name(9, "a")) == nil {
			return errors.New("the device appeared over damage")
		}
		for i, l := range c.Logs {
			if p, err := w.fs.ReadFile(logDir + "/" + name(i+1, "a").String()); err == nil == l.Absent || !bytes.Equal(p, l.Data) {
				return fmt.Errorf("recovery changed log %d (%w)", i+1, err)
			}
		}
	}
	end, err := rec(w, known(c.Whole), true)
	if err != nil || end != bad {
		return fmt.Errorf("forced recovery ends at %v, want %v: %w", end, bad, err)
	}
	image := prefix(t, c, bad)
	if err := diff(w.content(), image); err != nil {
		return fmt.Errorf("forced: %w", err)
	}
	return goOn(t, w, c, bad, image)
}

// goOn writes in the log behind a forced end, lets the node crash, and recovers.
func goOn(t testing.TB, w *world, c *logdamage.Case, bad logfile.Position, image []byte) error {
	next := name(len(c.Logs)+1, "a")
	if err := w.e.StartLogging(next); err != nil {
		return fmt.Errorf("forced: %w", err)
	}
	if err := w.e.Submit([]nbd.Op{write(8192, 0x77, 4096)}); err != nil {
		return fmt.Errorf("forced: %w", err)
	}
	copy(image[8192:], bytes.Repeat([]byte{0x77}, 4096))
	if err := w.flush(); err != nil {
		return err
	}
	k := append(known(c.Whole[:c.File]), bad, logfile.Position{Log: next, Offset: w.e.Status().LogDurable})
	n := w.at(w.fs.KillState(), &memJournal{pos: logfile.Position{Log: name(1, "a")}})
	w.e.abandon()
	if _, _, err := n.e.RecoverKnown(context.Background(), k, false); err != nil {
		return fmt.Errorf("recovery after a forced one: %w", err)
	}
	err := diff(n.content(), image)
	n.e.abandon()
	return err
}

// A forced recovery that stops half way leaves damage that can be seen as such, not a sound log with a gap
// between it and the next one.
func TestForcedRecoveryStopsHalfWay(t *testing.T) {
	w := newWorld(t, 1, 64<<10, nil, func(c *EngineConfig) { c.WritebackAge = time.Hour })
	w.primary()
	var borders []int64
	for i := range 3 {
		borders = append(borders, w.e.idx.end().Offset)
		must(t, w.e.Submit([]nbd.Op{write(int64(i)<<12, byte(i+1), 4096)}))
	}
	w.rotate()
	must(t, w.e.Submit([]nbd.Op{write(0, 9, 4096)}))
	must(t, w.flush())
	jour := &memJournal{pos: logfile.Position{Log: name(1, "a")}}
	cut := w.fs.KillState()
	w.e.abandon()
	f, err := cut.OpenFile(logDir+"/"+name(1, "a").String(), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), borders[1]+1000)
	must(t, errors.Join(err, f.Datasync(), f.Close()))

	n := w.at(cut, jour)
	repair := cut.Inject(crashfs.Fault{Ops: crashfs.OpRename, Err: syscall.EIO})
	_, _, err = n.e.RecoverKnown(context.Background(), nil, true)
	wantErr(t, err, syscall.EIO, "set")
	repair()
	n.e.abandon()
	n = n.at(cut.KillState(), jour)
	var damage *DamageError
	if _, _, err = n.e.RecoverKnown(context.Background(), nil, false); !errors.As(err, &damage) || damage.At.Offset != borders[1] {
		t.Fatalf("after half of a forced recovery: %v", err)
	}
	end, _, err := n.e.RecoverKnown(context.Background(), nil, true)
	if want := (logfile.Position{Log: name(1, "a"), Offset: borders[1]}); err != nil || end != want {
		t.Fatalf("forced again: ends at %v, want %v (%v)", end, want, err)
	}
}

func sum(list []int64) (n int64) {
	for _, v := range list {
		n += v
	}
	return n
}

// Negative control: readers that are too kind fail most of the matrix.
func TestDamageMatrixSees(t *testing.T) {
	kind := map[string]recoverFunc{
		"always forced": func(w *world, known []logfile.Position, _ bool) (logfile.Position, error) {
			end, _, err := w.e.RecoverKnown(context.Background(), known, true)
			return end, err
		},
		"believes the form of the tail": func(w *world, _ []logfile.Position, force bool) (logfile.Position, error) {
			end, _, err := w.e.RecoverKnown(context.Background(), nil, force)
			return end, err
		},
	}
	for what, rec := range kind {
		missed, n := 0, 0
		for _, c := range damageCases(t) {
			n++
			if recoverDamaged(t, &c, rec) == nil {
				missed++
			}
		}
		t.Logf("%s: %d of %d cases do not see it", what, missed, n)
		if missed > n*3/4 || what == "always forced" && missed > n/10 {
			t.Errorf("%s: only %d of %d cases see it", what, n-missed, n)
		}
	}
	// A reader that hops from record to record by their lengths and checks nothing.
	caught, n := 0, 0
	for _, c := range damageCases(t) {
		if c.Logs[c.File].Absent || c.Class == logdamage.Missing {
			continue
		}
		n++
		if hop(c.Logs[c.File].Data) != c.Offset {
			caught++
		}
	}
	t.Logf("a reader without checks: %d of %d cases see it", caught, n)
	if caught < n/2 {
		t.Errorf("a reader without checks passes %d of %d cases", n-caught, n)
	}
}

// hop is the lenient reader: where it stops.
func hop(log []byte) int64 {
	off := 0
	for off+logfile.Overhead < len(log) {
		n := int(log[off+10]) | int(log[off+11])<<8
		if n == 0 || off+n > len(log) {
			break
		}
		off += n
	}
	return int64(off)
}
