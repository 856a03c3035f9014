package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
	"mars/internal/testutil"
)

// slowMemory answers only small reads inline, so that both read paths are used.
func slowMemory(size int64) *hookBackend {
	m := NewMemory(size)
	return &hookBackend{Memory: m, try: func(p []byte, off int64) (bool, error) {
		if off/512%3 == 0 {
			return false, nil
		}
		return m.TryReadAt(p, off)
	}}
}

// TestSizesAndAlignments writes and reads all sizes from a byte to 32 MiB at aligned
// and odd offsets, on both reply formats, against a model.
func TestSizesAndAlignments(t *testing.T) {
	const size = 40 << 20
	rnd := rand.New(rand.NewPCG(testutil.Seed(t), 0))
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: slowMemory(size)})
	ctx := testContext(t)
	model := make([]byte, size)
	data := pattern(rnd, nbdproto.MaxPayload+4096)
	buf := make([]byte, nbdproto.MaxPayload)
	clients := []*nbdclient.Client{ts.dial(nbdclient.Options{Export: "disk"}), ts.dial(nbdclient.Options{Export: "disk", Simple: true, Connections: 3})}
	sizes := []int{1, 511, 512, 513, 4095, 4096, 4097, 65536, 262144 - 28, 262144, 262145, 524288 - 29, 524288 - 28, 524288 - 27, 524288, 1 << 20, 5<<20 + 1, nbdproto.MaxPayload - 1, nbdproto.MaxPayload}
	for i, n := range sizes {
		for k, align := range []int64{1, 512, 4096, 1 << 20} {
			if n > 1<<20 && (i+k)%4 != 0 {
				continue // one alignment each
			}
			off := rnd.Int64N((size-int64(n))/align+1) * align
			c := clients[(i+k)%2]
			p := data[rnd.IntN(len(data)-n+1):][:n]
			var flags []nbdclient.Flag
			if k == 2 {
				flags = append(flags, nbdclient.FUA)
			}
			check(t, c.Write(ctx, p, off, flags...))
			copy(model[off:], p)
			// Read more than was written, through the other client.
			lo, hi := max(0, off-700), min(size, off+int64(n)+700)
			hi = min(hi, lo+nbdproto.MaxPayload)
			got := buf[:hi-lo]
			check(t, clients[(i+k+1)%2].Read(ctx, got, lo))
			if !bytes.Equal(got, model[lo:hi]) {
				t.Fatalf("write of %d bytes at %d: device differs from the model", n, off)
			}
			if k == 1 { // make a hole again
				check(t, c.WriteZeroes(ctx, off+1, int64(n)-1))
				clear(model[off+1 : off+int64(n)])
			}
		}
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		got := buf[:min(int64(len(buf)), size-off)]
		check(t, clients[0].Read(ctx, got, off))
		if !bytes.Equal(got, model[off:off+int64(len(got))]) {
			t.Fatalf("device differs from the model behind %d", off)
		}
	}
	// A request that the protocol cannot carry is split by the client.
	check(t, clients[0].Write(ctx, model[1:], 1))
}

// TestSparse16TiB uses offsets that need more than 32 bits.
func TestSparse16TiB(t *testing.T) {
	const size = 16 << 40
	ts, m := memServer(t, size)
	ctx := testContext(t)
	c := ts.dial(nbdclient.Options{Export: "disk"})
	if c.Size() != size {
		t.Fatalf("size %d", c.Size())
	}
	for _, off := range []int64{0, 1<<31 - 100, 1<<32 - 100, 1<<40 + 12345, size - 200} {
		p := pattern(rand.New(rand.NewPCG(uint64(off), 0)), 200)
		check(t, c.Write(ctx, p, off))
		got := make([]byte, 200)
		check(t, c.Read(ctx, got, off))
		if !bytes.Equal(got, p) {
			t.Errorf("at %d: wrong data", off)
		}
	}
	if err := c.Write(ctx, make([]byte, 201), size-200); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("beyond the end: %v", err)
	}
	check(t, c.Trim(ctx, 0, size)) // many requests of nearly 4 GiB
	if n := m.Pages(); n != 0 {
		t.Errorf("%d pages left after trimming everything", n)
	}
}

// TestManyInFlight: 16 connections with 64 requests in flight each, over disjoint
// ranges, compared with what each writer knows.
func TestManyInFlight(t *testing.T) {
	const (
		conns, depth = 16, 64
		slot         = 6 << 10
		rounds       = 5
	)
	ts := startServer(t, Config{}, Export{Name: "disk", Backend: slowMemory(conns * depth * slot)})
	seed := testutil.Seed(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range conns {
		c := ts.dial(nbdclient.Options{Export: "disk", Simple: i%2 == 0})
		for k := range depth {
			wg.Add(1)
			go func() {
				defer wg.Done()
				rnd := rand.New(rand.NewPCG(seed, uint64(i*depth+k)))
				if err := hammer(ctx, c, rnd, int64(i*depth+k)*slot, slot, rounds); err != nil {
					t.Errorf("connection %d, worker %d: %v", i, k, err)
				}
			}()
		}
	}
	wg.Wait()
	if n := ts.InFlight("disk"); n != 0 {
		t.Errorf("%d requests in flight at rest", n)
	}
}

// hammer mixes requests over one range and checks each read.
func hammer(ctx context.Context, c *nbdclient.Client, rnd *rand.Rand, base int64, size, rounds int) error {
	model, buf := make([]byte, size), make([]byte, size)
	for range rounds {
		off := rnd.IntN(size)
		n := 1 + rnd.IntN(size-off)
		var err error
		switch rnd.IntN(6) {
		case 0:
			err = c.WriteZeroes(ctx, base+int64(off), int64(n))
			clear(model[off : off+n])
		case 1:
			p := pattern(rnd, n)
			err = c.Write(ctx, p, base+int64(off), nbdclient.FUA)
			copy(model[off:], p)
		case 2:
			err = c.Flush(ctx)
		default:
			p := pattern(rnd, n)
			err = c.Write(ctx, p, base+int64(off))
			copy(model[off:], p)
		}
		if err != nil {
			return err
		}
		if err := c.Read(ctx, buf, base); err != nil {
			return err
		}
		if !bytes.Equal(buf, model) {
			return errors.New("device differs from the model")
		}
	}
	return nil
}
