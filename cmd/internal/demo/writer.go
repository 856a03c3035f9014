package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"mars/internal/nbdclient"
)

const (
	blockSize  = 4096
	flushEvery = 16
	writeRate  = 1000 // writes per second
)

// application is a load like a small database: random blocks behind the
// filesystem, a FLUSH after every 16th. It remembers what the device must contain.
type application struct {
	image []byte // the expected content of the whole device
	rnd   *rand.ChaCha8

	mu      sync.Mutex
	writes  int64
	slowest time.Duration
	err     error

	stop chan struct{}
	done chan struct{}
}

// start lets it write to an export until finish is called.
func (a *application) start(ctx context.Context, o nbdclient.Options) error {
	c, err := nbdclient.Dial(ctx, o)
	if err != nil {
		return err
	}
	a.stop, a.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(a.done)
		defer c.Close()
		err := a.run(ctx, c)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.err = err
	}()
	return nil
}

func (a *application) run(ctx context.Context, c *nbdclient.Client) error {
	pace := time.NewTicker(flushEvery * time.Second / writeRate)
	defer pace.Stop()
	for {
		for range flushEvery {
			if err := a.write(ctx, c); err != nil {
				return err
			}
		}
		if err := a.timed(func() error { return c.Flush(ctx) }); err != nil {
			return err
		}
		select {
		case <-a.stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pace.C:
		}
	}
}

func (a *application) write(ctx context.Context, c *nbdclient.Client) error {
	blocks := (int64(len(a.image)) - imageSize) / blockSize
	off := imageSize + int64(a.rnd.Uint64()%uint64(blocks))*blockSize
	p := a.image[off : off+blockSize]
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], a.rnd.Uint64())
	}
	if err := a.timed(func() error { return c.Write(ctx, p, off) }); err != nil {
		return fmt.Errorf("write of %d bytes at %d: %w", len(p), off, err)
	}
	a.mu.Lock()
	a.writes++
	a.mu.Unlock()
	return nil
}

func (a *application) timed(f func() error) error {
	begin := time.Now()
	err := f()
	took := time.Since(begin)
	a.mu.Lock()
	a.slowest = max(a.slowest, took)
	a.mu.Unlock()
	return err
}

// mark returns what happened since the last mark.
func (a *application) mark() (writes int64, slowest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	writes, slowest = a.writes, a.slowest
	a.writes, a.slowest = 0, 0
	return writes, slowest
}

func (a *application) written() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.writes
}

// failed is the first error of the load, while it runs and afterwards.
func (a *application) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// finish ends the load after its next FLUSH and closes the connection.
func (a *application) finish() error {
	if a.stop == nil {
		return errors.New("the application does not run")
	}
	close(a.stop)
	<-a.done
	a.stop = nil
	return a.failed()
}
