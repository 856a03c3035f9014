package device

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/testutil"
)

// TestModel drives a primary through writes, trims, flushes, rotations, checkpoints,
// restarts and kills, and compares every read with a byte array.
func TestModel(t *testing.T) {
	seed := testutil.Seed(t)
	for name, tune := range map[string]func(*EngineConfig){
		"default":     func(c *EngineConfig) {},
		"small index": func(c *EngineConfig) { c.IndexLimit = 64 },
		"lazy":        func(c *EngineConfig) { c.WritebackAge = time.Hour },
		"as kernel":   func(c *EngineConfig) { c.MaxRecord, c.ZeroesAsWrites = 4096, true },
		"always":      func(c *EngineConfig) { c.Durability = DurabilityAlways },
		"none":        func(c *EngineConfig) { c.Durability = DurabilityNone },
		"one job":     func(c *EngineConfig) { c.WritebackJobs, c.WritebackBytes = 1, 4096 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for round := range uint64(2) {
				modelRun(t, seed+round, tune)
			}
		})
	}
}

func modelRun(t *testing.T, seed uint64, tune func(*EngineConfig)) {
	const size = 256 << 10
	r := rand.New(rand.NewPCG(seed, 7))
	model := make([]byte, size)
	fill(r, model)
	base := bytes.Clone(model)
	w := newWorld(t, seed, size, base, tune)
	start, _ := w.jour.get()
	w.primary()
	units := []int64{1, 512, 4096}
	if w.config().ZeroesAsWrites {
		units[0] = 512 // for the original, which knows sectors only
	}
	for range 250 {
		switch n := r.IntN(100); {
		case n < 55:
			var ops []nbd.Op
			for range 1 + r.IntN(4) {
				longest := int64(8 << 10)
				if r.IntN(10) == 0 {
					longest = 128 << 10
				}
				op := randomOp(r, size, longest, units[r.IntN(3)])
				apply(model, &op)
				ops = append(ops, op)
			}
			must(t, w.e.Submit(ops))
		case n < 90:
			p := make([]byte, 1+r.IntN(32<<10))
			off := r.Int64N(size - int64(len(p)))
			done, err := w.e.TryReadAt(p, off)
			must(t, err)
			if !done {
				must(t, w.e.ReadAt(p, off))
			}
			if err := diff(p, model[off:off+int64(len(p))]); err != nil {
				t.Fatalf("seed %d: read of %d at %d (try %v): %v", seed, len(p), off, done, err)
			}
		case n < 94:
			must(t, w.flush())
		case n < 96:
			w.rotate()
		case n < 98: // clean restart
			w.close()
			if err := diff(w.diskContent(), model); err != nil {
				t.Fatalf("seed %d: disk after a clean stop: %v", seed, err)
			}
			if pos, end := w.jour.get(); end != pos.Offset {
				t.Fatalf("after a clean stop the zone is %v..%d", pos, end)
			}
			w.open()
			w.primary()
		default: // kill -9
			w.e.abandon()
			w = w.at(w.fs.KillState(), w.jour)
			w.primary()
		}
	}
	if err := diff(w.content(), model); err != nil {
		t.Fatalf("seed %d: device at the end: %v", seed, err)
	}
	must(t, w.e.StopLogging(context.Background()))
	pos, end := w.jour.get()
	if s := w.e.Status(); end != pos.Offset || pos != s.IngestEnd || s.Extents != 0 || s.DirtyBytes != 0 {
		t.Fatalf("after StopLogging the position is %v..%d, status %+v", pos, end, s)
	}
	if err := diff(w.diskContent(), model); err != nil {
		t.Fatalf("seed %d: disk at the end: %v", seed, err)
	}
	if err := diff(logOracle(t, w.fs, base, start, pos), model); err != nil {
		t.Fatalf("seed %d: the logs tell another story: %v", seed, err)
	}
	if len(w.jour.problems) > 0 {
		t.Fatalf("seed %d: journal: %q", seed, w.jour.problems)
	}
}
