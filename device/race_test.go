package device

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/device/nbd"
)

// TestConcurrency: 16 writers, each with blocks of its own, readers that want to see
// what was acknowledged, flushes, rotations and writeback, all at once.
func TestConcurrency(t *testing.T) {
	const writers, blocks, rounds = 16, 8, 40
	const size = writers * blocks * blockSize
	w := newWorld(t, 1, size, nil, func(c *EngineConfig) { c.IndexLimit, c.WritebackBytes = 256, 64<<10 })
	w.primary()
	var acked [writers * blocks]atomic.Uint64 // newest acknowledged version
	var begun [writers * blocks]atomic.Uint64 // newest version submitted
	stamp := func(p []byte, b int, v uint64) {
		for i := 0; i < len(p); i += 16 {
			binary.LittleEndian.PutUint64(p[i:], uint64(b))
			binary.LittleEndian.PutUint64(p[i+8:], v)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var writing, others sync.WaitGroup
	for g := range writers {
		writing.Go(func() {
			p := make([]byte, blockSize)
			for v := uint64(1); v <= rounds; v++ {
				b := g*blocks + int(v)%blocks
				begun[b].Store(v)
				stamp(p, b, v)
				if err := w.e.Submit([]nbd.Op{{Off: int64(b) * blockSize, Len: blockSize, Data: p}}); err != nil {
					t.Error(err)
					return
				}
				acked[b].Store(v)
				if v%10 == 0 {
					if err := w.flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	done := make(chan struct{})
	for g := range 3 {
		others.Go(func() {
			p := make([]byte, blockSize)
			for i := g; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				b := i * 7 % (writers * blocks)
				low := acked[b].Load()
				ok, err := w.e.TryReadAt(p, int64(b)*blockSize)
				if err == nil && !ok {
					err = w.e.ReadAt(p, int64(b)*blockSize)
				}
				if err != nil {
					t.Error(err)
					return
				}
				high := begun[b].Load()
				for j := 0; j < len(p); j += 16 { // sectors may be of different versions, never old ones
					v := binary.LittleEndian.Uint64(p[j+8:])
					if v < low || v > high || (v > 0 && binary.LittleEndian.Uint64(p[j:]) != uint64(b)) {
						t.Errorf("block %d byte %d has version %d, want %d to %d", b, j, v, low, high)
						return
					}
				}
			}
		})
	}
	others.Go(func() {
		p := make([]byte, 3*blockSize)
		for seq := w.e.Status().Current.Seq + 1; ; seq++ {
			select {
			case <-done:
				return
			default:
			}
			if err := w.e.Rotate(name(seq, "a")); err != nil {
				t.Error(err)
				return
			}
			// Logs that are not needed any more go away under the readers.
			applied := w.e.Status().Applied.Log
			for _, f := range list(t, w) {
				if f.Seq < applied.Seq {
					if err := w.chain.Remove(f); err != nil {
						t.Error(err)
					}
				}
			}
			if _, err := w.e.ReadStable(ctx, p, 0); err != nil {
				t.Error(err)
			}
		}
	})
	writing.Wait()
	close(done)
	others.Wait()
	must(t, w.e.StopLogging(ctx))
	disk := w.diskContent()
	want := make([]byte, blockSize)
	for b := range acked {
		clear(want)
		if v := acked[b].Load(); v > 0 {
			stamp(want, b, v)
		}
		if err := diff(disk[b*blockSize:(b+1)*blockSize], want); err != nil {
			t.Fatalf("block %d on the disk: %v", b, err)
		}
	}
	if len(w.jour.problems) > 0 {
		t.Fatalf("journal: %q", w.jour.problems)
	}
}
