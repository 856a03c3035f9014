// Package faultnet is a network that delays, throttles, cuts, loses and lies,
// on a seed. Network lives in memory and works inside testing/synctest; Wrap puts
// the same faults onto any net.Conn. Faults may change while connections are open.
//
// # Guarantees
//
// Without faults, streams deliver every byte once and in order, and a Close is
// seen by the other side after the data. Deadlines work as in package net. The
// same seed and the same sequence of calls give the same flips and losses.
//
// # Non-guarantees
//
// Nothing about real TCP: no congestion control, no retransmission. Bytes in
// flight are bounded by Buffer for each direction, whatever Delay times Rate is.
package faultnet

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// Link is what happens to traffic in one direction. The zero Link is perfect.
type Link struct {
	// Delay, and a random part up to Jitter, before bytes arrive. Streams stay in
	// order, packets need not.
	Delay, Jitter time.Duration
	// Rate in bytes per second, 0 = unlimited.
	Rate int64
	// Hold keeps bytes back for as long as it is set, as TCP does behind a cut
	// cable; packets are lost and dials hang until their context ends.
	Hold bool
	// Silent takes bytes and never delivers them, not even later: a half-open link.
	// Dials succeed.
	Silent bool
	// Refuse makes dials fail at once. It does not touch open connections.
	Refuse bool
	// FlipEvery inverts one bit per so many bytes on average, 0 = never.
	FlipEvery int64
	// FlipAt inverts one bit of the byte with this number (from 1) of each stream.
	FlipAt int64
	// ResetAfter breaks a stream, both ways, when so many bytes of it have been
	// sent in this direction, 0 = never.
	ResetAfter int64
	// Loss is the probability that a packet vanishes, and that a dial fails.
	Loss float64
}

// errReset is what both sides of a broken stream see.
func errReset(op string) error {
	return &net.OpError{Op: op, Net: "faultnet", Err: syscall.ECONNRESET}
}

// dice is a random source that many streams share.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newDice(seed uint64) *dice {
	return &dice{rng: rand.New(rand.NewPCG(seed, 0x6d617273))}
}

func (d *dice) float() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64()
}

func (d *dice) upTo(n int64) int64 {
	if n <= 0 {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Int64N(n)
}

// path counts the bytes of one direction of a stream and damages them.
type path struct {
	dice *dice
	sent int64
	// nextFlip is the number (from 1) of the byte that FlipEvery hits next.
	nextFlip int64
	free     time.Time // when the line has sent what it was given (Rate)
}

// pass damages p in place, and says how much of it is still sent before the
// stream breaks.
func (pa *path) pass(p []byte, l Link) (n int, reset bool) {
	n = len(p)
	if l.ResetAfter > 0 && pa.sent+int64(n) >= l.ResetAfter {
		n, reset = int(max(l.ResetAfter-pa.sent, 0)), true
	}
	flip := func(at int64) bool {
		i := at - pa.sent - 1
		if i < 0 || i >= int64(n) {
			return false
		}
		p[i] ^= 1 << pa.dice.upTo(8)
		return true
	}
	flip(l.FlipAt)
	if l.FlipEvery > 0 && pa.nextFlip <= pa.sent {
		pa.nextFlip = pa.sent + 1 + pa.dice.upTo(2*l.FlipEvery)
	}
	for l.FlipEvery > 0 && flip(pa.nextFlip) {
		pa.nextFlip += 1 + pa.dice.upTo(2*l.FlipEvery)
	}
	pa.sent += int64(n)
	return n, reset
}

// due is when n bytes that are sent now arrive.
func (pa *path) due(n int, l Link) time.Time {
	now := time.Now()
	if pa.free.Before(now) {
		pa.free = now
	}
	if l.Rate > 0 {
		pa.free = pa.free.Add(time.Duration(float64(n) / float64(l.Rate) * float64(time.Second)))
	}
	return pa.free.Add(l.Delay + time.Duration(pa.dice.upTo(int64(l.Jitter))))
}

// Faults are the two directions of a wrapped connection. They may be changed at
// any time.
type Faults struct {
	dice *dice

	mu            sync.Mutex
	read, write   Link
	changed       chan struct{}
	readP, writeP path
}

// NewFaults returns perfect links.
func NewFaults(seed uint64) *Faults {
	d := newDice(seed)
	return &Faults{dice: d, changed: make(chan struct{}), readP: path{dice: d}, writeP: path{dice: d}}
}

// SetRead sets the faults of what the wrapped side reads.
func (f *Faults) SetRead(l Link) { f.set(func() { f.read = l }) }

// SetWrite sets the faults of what it writes.
func (f *Faults) SetWrite(l Link) { f.set(func() { f.write = l }) }

func (f *Faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// Wrap puts faults onto a connection. Delay and Rate hold up the caller.
func (f *Faults) Wrap(c net.Conn) net.Conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &wrapped{Conn: c, f: f, ctx: ctx, cancel: cancel}
}

type wrapped struct {
	net.Conn
	f      *Faults
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

func (w *wrapped) Close() error {
	w.cancel()
	return w.Conn.Close()
}

// link waits while a direction is held and returns its faults.
func (w *wrapped) link(l *Link) (Link, error) {
	for {
		w.f.mu.Lock()
		now, changed := *l, w.f.changed
		w.f.mu.Unlock()
		if !now.Hold {
			return now, nil
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			return Link{}, net.ErrClosed
		}
	}
}

func (w *wrapped) Read(p []byte) (int, error) {
	for {
		n, err := w.Conn.Read(p)
		l, lerr := w.link(&w.f.read)
		if lerr != nil {
			return 0, lerr
		}
		if l.Silent && err == nil {
			continue
		}
		w.f.mu.Lock()
		n, reset := w.f.readP.pass(p[:n], l)
		due := w.f.readP.due(n, l)
		w.f.mu.Unlock()
		w.until(due)
		if reset {
			w.Close()
			err = errReset("read")
		}
		return n, err
	}
}

func (w *wrapped) Write(p []byte) (int, error) {
	l, err := w.link(&w.f.write)
	if err != nil {
		return 0, err
	}
	q := append([]byte(nil), p...)
	w.f.mu.Lock()
	n, reset := w.f.writeP.pass(q, l)
	due := w.f.writeP.due(n, l)
	w.f.mu.Unlock()
	w.until(due)
	if !l.Silent {
		if m, err := w.Conn.Write(q[:n]); err != nil {
			return m, err
		}
	}
	if reset {
		w.Close()
		return n, errReset("write")
	}
	return len(p), nil
}

func (w *wrapped) until(t time.Time) {
	d := time.Until(t)
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
	}
}
