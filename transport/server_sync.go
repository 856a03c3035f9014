package transport

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

const (
	// MaxRange bounds one range request on the wire; Peer.ReadRange splits.
	MaxRange = 4 << 20
	// MaxDigests bounds one digest request.
	MaxDigests = 16384
	// maxOffset keeps sums of offset and length from overflowing.
	maxOffset = 1 << 61
)

func (c *call) rangeParams() (resource string, off, length int64, err error) {
	if resource, err = c.resource(); err != nil {
		return
	}
	if off, err = c.length("offset"); err != nil {
		return
	}
	if length, err = c.length("length"); err != nil {
		return
	}
	if off > maxOffset || length < 1 || length > maxOffset {
		err = fmt.Errorf("%w: range of %d bytes at %d", ErrRefused, length, off)
	}
	return
}

func (c *call) readRange() error {
	resource, off, length, err := c.rangeParams()
	if err != nil {
		return err
	}
	if length > MaxRange {
		return fmt.Errorf("%w: range of %d bytes, at most %d", ErrRefused, length, MaxRange)
	}
	data := make([]byte, length)
	var pos Position
	return c.bulk(off, func(ctx context.Context) error {
		var err error
		pos, err = c.s.h.ReadRange(ctx, c.peer, resource, off, data)
		return err
	}, func() ([]byte, Position) { return data, pos })
}

func (c *call) digests() error {
	resource, off, length, err := c.rangeParams()
	if err != nil {
		return err
	}
	chunk, err := c.length("chunk")
	if err != nil {
		return err
	}
	n, err := digestCount(length, chunk)
	if err != nil {
		return err
	}
	var sums [][32]byte
	var pos Position
	return c.bulk(off, func(ctx context.Context) error {
		var err error
		sums, pos, err = c.s.h.Digests(ctx, c.peer, resource, off, length, chunk)
		if err == nil && int64(len(sums)) != n {
			err = fmt.Errorf("handler returned %d digests for %d chunks", len(sums), n)
		}
		return err
	}, func() ([]byte, Position) {
		data := make([]byte, 0, 32*n)
		for i := range sums {
			data = append(data, sums[i][:]...)
		}
		return data, pos
	})
}

func digestCount(length, chunk int64) (int64, error) {
	if chunk < 1 || chunk > maxOffset {
		return 0, fmt.Errorf("%w: chunk of %d bytes", ErrRefused, chunk)
	}
	n := (length + chunk - 1) / chunk
	if n > MaxDigests {
		return 0, fmt.Errorf("%w: %d digests, at most %d", ErrRefused, n, MaxDigests)
	}
	return n, nil
}

// bulk runs work, with heartbeats while it takes long, and sends what result
// returns as frames. The last one is sealed and has the position as JSON.
func (c *call) bulk(off int64, work func(context.Context) error, result func() ([]byte, Position)) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("handler failed: %v", p)
			}
		}()
		done <- work(ctx)
	}()
	fw := c.frames(c.ctx)
	fw.beatAt = frame{offset: off}
	err, running := error(nil), true
	tick := time.NewTicker(c.s.cfg.HeartbeatInterval)
	defer tick.Stop()
	for running {
		select {
		case err = <-done:
			running = false
		case <-tick.C:
			if berr := fw.beat(); berr != nil {
				// Nobody listens any more: stop the work, but wait for it, as it writes
				// into memory of this call.
				cancel()
				<-done
				return berr
			}
		}
	}
	if err != nil {
		return fw.failed(err, off)
	}
	data, pos := result()
	if err := fw.reply(off, data, pos); err != nil {
		return fw.failed(err, off)
	}
	return nil
}

func (fw *frameWriter) reply(off int64, data []byte, pos Position) error {
	for len(data) > 0 {
		n := fw.size(int64(len(data)))
		b := getBuffer(frameHeader + n)
		buf := (*b)[:frameHeader+n]
		copy(buf[frameHeader:], data[:n])
		err := fw.data(buf, frame{offset: off})
		putBuffer(b)
		if err != nil {
			return err
		}
		data = data[n:]
		off += int64(n)
	}
	text, err := json.Marshal(pos)
	if err != nil {
		return err
	}
	buf := append(make([]byte, frameHeader), text...)
	putHeader(buf, frame{flags: flagSealed, offset: off, payload: text})
	return fw.raw(buf)
}
