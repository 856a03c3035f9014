package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/testutil"
)

// volatileDisk models a device that loses everything since the last sync when
// it crashes. cover decides how many of the n submitted ops a sync makes durable: all of them,
// if it is honest.
type volatileDisk struct {
	*Memory
	cover   func(n, durable int) int
	mu      sync.Mutex
	ops     []Op // copies, in order
	durable int  // that many of ops survive a crash
}

func (d *volatileDisk) Submit(ops []Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, op := range ops {
		op.Data = bytes.Clone(op.Data)
		d.ops = append(d.ops, op)
	}
	return d.Memory.Submit(ops)
}

func (d *volatileDisk) Sync(done func(error)) {
	d.mu.Lock()
	n := d.cover(len(d.ops), d.durable)
	d.mu.Unlock()
	go func() {
		d.mu.Lock()
		d.durable = max(d.durable, n)
		d.mu.Unlock()
		done(nil)
	}()
}

func (d *volatileDisk) SyncNow() (done bool, err error) { return true, syncNow(d.Sync) }

// crash returns what the device holds after a power cut now.
func (d *volatileDisk) crash(t testing.TB) *Memory {
	m := NewMemory(d.Size())
	d.mu.Lock()
	defer d.mu.Unlock()
	check(t, m.Submit(d.ops[:d.durable]))
	return m
}

// lost runs writers on four connections. Now and then one writes on one connection, flushes on another, cuts the
// power, and looks for its write. It returns what was promised and lost.
func lost(t testing.TB, d *volatileDisk, rounds int) []string {
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: d})
	ctx := testContext(t)
	noise, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range 2 {
		c := ts.dial(nbdclient.Options{Export: "disk"})
		wg.Add(1)
		go func() {
			defer wg.Done()
			for noise.Err() == nil {
				if err := c.Write(ctx, make([]byte, 512), int64(1000+i)*512); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	var conns []*nbdclient.Client
	for range 3 {
		conns = append(conns, ts.dial(nbdclient.Options{Export: "disk"}))
	}
	rnd := rand.New(rand.NewPCG(testutil.Seed(t), 0))
	var bad []string
	for i := range rounds {
		want := binary.LittleEndian.AppendUint64(nil, rnd.Uint64())
		off := int64(rnd.IntN(1000)) * 512
		how := "FUA"
		if i%2 == 0 {
			how = "FLUSH on another connection"
			check(t, conns[i%3].Write(ctx, want, off))
			check(t, conns[(i+1)%3].Flush(ctx))
		} else {
			check(t, conns[i%3].Write(ctx, want, off, nbdclient.FUA))
		}
		got := make([]byte, 8)
		check(t, d.crash(t).ReadAt(got, off))
		if !bytes.Equal(got, want) {
			bad = append(bad, fmt.Sprintf("round %d: %s", i, how))
		}
	}
	stop()
	wg.Wait()
	return bad
}

func TestFlushCoversAllConnections(t *testing.T) {
	d := &volatileDisk{Memory: NewMemory(1 << 20), cover: func(n, _ int) int { return n }}
	if bad := lost(t, d, 30); bad != nil {
		t.Errorf("promised and lost: %q", bad)
	}
}

// TestFlushCheckNoticesLies is the negative control of the test above.
func TestFlushCheckNoticesLies(t *testing.T) {
	syncs := 0
	for name, cover := range map[string]func(n, durable int) int{
		"syncs nothing":        func(_, durable int) int { return durable },
		"forgets the youngest": func(n, _ int) int { return max(n-1, 0) },
		"syncs half of it":     func(n, durable int) int { return durable + (n-durable)/2 },
		"every fifth sync lies": func(n, durable int) int {
			if syncs++; syncs%5 == 0 {
				return durable
			}
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &volatileDisk{Memory: NewMemory(1 << 20), cover: cover}
			if bad := lost(t, d, 30); bad == nil {
				t.Error("not noticed")
			}
		})
	}
}
