package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

// history is what a single writer did: every state the device has been in.
type history struct {
	mu     sync.Mutex
	states [][32]byte // states[k] is the digest after k operations
	acked  atomic.Int64
	safe   atomic.Int64                     // operations that a completed FLUSH covers
	known  atomic.Pointer[logfile.Position] // a position that was made durable
}

func (h *history) add(image []byte) {
	h.mu.Lock()
	h.states = append(h.states, sha256.Sum256(image))
	h.mu.Unlock()
}

// prefix returns the youngest number of operations that makes image, -1 if none does.
func (h *history) prefix(image []byte) int {
	sum := sha256.Sum256(image)
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := len(h.states) - 1; k >= 0; k-- {
		if h.states[k] == sum {
			return k
		}
	}
	return -1
}

// snapshot is a crash in the middle of a run.
type snapshot struct {
	fs     *crashfs.FS
	jour   *memJournal
	safe   int64
	known  logfile.Position
	policy string
}

const crashSize = 96 << 10

// crashRun writes to a primary while power cuts are sampled from its file system.
func crashRun(t testing.TB, seed uint64, tune func(*EngineConfig), cuts, ops int) ([]snapshot, *history, []byte) {
	r := rand.New(rand.NewPCG(seed, 11))
	base := make([]byte, crashSize)
	fill(r, base)
	model := bytes.Clone(base)
	h := &history{}
	h.add(model)
	w := newWorld(t, seed, crashSize, base, tune)
	if r.IntN(2) == 0 {
		w.fs.SetMetadata(crashfs.Journaled)
	}
	w.primary()
	var snaps []snapshot
	var mu sync.Mutex
	cr := rand.New(rand.NewPCG(seed, 13))
	chance := float64(cuts) / float64(ops*3)
	w.fs.OnOp(func(c *crashfs.Cut) {
		mu.Lock()
		defer mu.Unlock()
		if cr.Float64() > chance || len(snaps) >= cuts {
			return
		}
		p := crashfs.Policies[cr.IntN(len(crashfs.Policies))]
		s := snapshot{jour: w.jour.clone(), safe: h.safe.Load(), policy: fmt.Sprintf("%v before %v %s", p, c.Op.Kind, c.Op.Path)}
		if s.known = (logfile.Position{Log: name(1, "a")}); h.known.Load() != nil {
			s.known = *h.known.Load()
		}
		s.fs = c.Crash(p, cr)
		snaps = append(snaps, s)
	})
	for range ops {
		switch n := r.IntN(20); {
		case n < 16:
			op := randomOp(r, crashSize, 16<<10, 512)
			apply(model, &op)
			h.add(model)
			must(t, w.e.Submit([]nbd.Op{op}))
			h.acked.Add(1)
		case n < 18:
			acked, end := h.acked.Load(), w.e.idx.end()
			must(t, w.flush())
			h.safe.Store(acked)
			h.known.Store(&end)
		case n < 19:
			w.rotate()
		default:
			w.e.wb.push()()
		}
	}
	w.fs.OnOp(nil)
	w.e.abandon()
	mu.Lock()
	defer mu.Unlock()
	return snaps, h, base
}

// checkCrash restarts on what a crash left and returns what is wrong.
func checkCrash(t testing.TB, s snapshot, h *history, base []byte, patience time.Duration) error {
	// P4: repair of the announced zone alone gives an exact prefix.
	sec := &world{t: t, fs: s.fs.KillState(), jour: s.jour.clone(), size: crashSize, host: "a"}
	sec.open()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := sec.e.SetReplay(ctx, false); err != nil {
		return fmt.Errorf("repair of the zone: %w", err)
	}
	pos, end := sec.jour.get()
	if end != pos.Offset {
		return fmt.Errorf("after the repair the zone is %v..%d", pos, end)
	}
	if h.prefix(sec.diskContent()) < 0 {
		return fmt.Errorf("P4: the disk at %v is no prefix", pos)
	}
	start := logfile.Position{Log: name(1, "a")}
	want, err := applyLogs(sec.fs, base, start, pos)
	if err != nil {
		return fmt.Errorf("P4: the log does not reach the position of the disk: %w", err)
	}
	if err := diff(sec.diskContent(), want); err != nil {
		return fmt.Errorf("P4: the disk at %v is not the log up to there: %w", pos, err)
	}
	sec.e.abandon()

	// P3: the primary is at a prefix that has everything a FLUSH covered.
	w := &world{t: t, fs: s.fs, jour: s.jour, size: crashSize, host: "a"}
	w.open()
	first, _, err := w.e.RecoverKnown(ctx, knownTo(s.known), false)
	if err != nil {
		return fmt.Errorf("recovery (known %v): %w", s.known, err)
	}
	again, torn, err := w.e.RecoverKnown(ctx, knownTo(s.known), false)
	if err != nil || again != first || torn != 0 {
		return fmt.Errorf("second recovery: %v after %v, torn %d: %w", again, first, torn, err)
	}
	image := w.content()
	k := h.prefix(image)
	if k < 0 {
		return errors.New("P3: the device is no prefix")
	}
	if int64(k) < s.safe {
		return fmt.Errorf("P2: the device has %d operations, a FLUSH covered %d", k, s.safe)
	}
	must(t, w.e.StartLogging(name(first.Log.Seq+1, "a")))
	must(t, w.e.Submit([]nbd.Op{{Off: 0, Len: 512, Data: bytes.Repeat([]byte{7}, 512)}}))
	must(t, w.e.Close())
	copy(image, bytes.Repeat([]byte{7}, 512))
	if err := diff(w.diskContent(), image); err != nil {
		return fmt.Errorf("disk after writeback: %w", err)
	}
	if len(w.jour.problems) > 0 {
		return fmt.Errorf("journal: %q", w.jour.problems)
	}
	return nil
}

// TestPowerCut samples power cuts of a primary under load: P2, P3 and P4 hold.
func TestPowerCut(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(4) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			snaps, h, base := crashRun(t, seed+round, nil, 30, 250)
			for i, s := range snaps {
				if err := checkCrash(t, s, h, base, 20*time.Second); err != nil {
					t.Fatalf("seed %d cut %d (%s): %v", seed+round, i, s.policy, err)
				}
			}
		})
	}
}

// TestPowerCutMutants breaks the order of the writeback and wants to see it noticed.
func TestPowerCutMutants(t *testing.T) {
	seed := testutil.Seed(t)
	for name, k := range map[string]knobs{
		"data before the log is durable":    {skipLogSync: true},
		"data before the zone is announced": {skipDirty: true},
		"position before the data":          {checkpointFirst: true},
		"position before the flush":         {skipFlush: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broken := func(c *EngineConfig) {
				c.knobs = k
				c.SyncInterval = 50 * time.Millisecond // or it hides the missing sync
			}
			for round := range uint64(40) {
				snaps, h, base := crashRun(t, seed+round, broken, 30, 150)
				for _, s := range snaps {
					if err := checkCrash(t, s, h, base, time.Second); err != nil {
						t.Logf("noticed in round %d: %v", round, err)
						return
					}
				}
			}
			t.Fatal("nobody noticed")
		})
	}
}
