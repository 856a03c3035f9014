package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

// generator drives one connection with load.depth slots; a slot has one request in flight.
// All slots share one goroutine that reads replies and sends the next requests, so that at depth 32 one system call
// carries many of them and the client costs less than any server.
type generator struct {
	l      load
	nc     net.Conn
	rd     *bufio.Reader
	size   int64
	rnd    *rand.Rand
	slots  []slot
	data   []byte // what is written
	sink   []byte // what is read
	out    net.Buffers
	heads  []byte
	next   int64 // sequential position
	end    time.Time
	from   time.Time // measured from here
	flight int
	times  []time.Duration
	sent   int64
	async  chan net.Buffers // to the sender, if there is one
}

type slot struct {
	began time.Time
	cmd   uint16
	since int // writes since the last FLUSH
}

func dialGenerator(ctx context.Context, s *server, l load, seed uint64) (*generator, error) {
	r, err := nbdclient.DialRaw(ctx, "unix", s.socket)
	if err != nil {
		return nil, err
	}
	info, err := r.Go(s.export, false)
	if err != nil {
		r.Conn.Close()
		return nil, err
	}
	g := &generator{l: l, nc: r.Conn, rd: bufio.NewReaderSize(r.Conn, 256<<10), size: info.Size,
		rnd: rand.New(rand.NewPCG(seed, 11)), slots: make([]slot, l.depth),
		data: make([]byte, l.block), sink: make([]byte, l.block), heads: make([]byte, 0, l.depth*nbdproto.RequestSize),
		times: make([]time.Duration, 0, 1<<16)}
	for i := range g.data {
		g.data[i] = byte(g.rnd.Uint32())
	}
	if l.count == 0 {
		g.next = g.rnd.Int64N(g.size/l.block) * l.block
	}
	return g, nil
}

// queue adds the next request of a slot to what is sent.
func (g *generator) queue(i int, now time.Time) {
	s := &g.slots[i]
	h := protocol.TransmissionRequestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Handle: uint64(i)}
	if g.l.flush > 0 && s.since >= g.l.flush {
		// The time of a write that a FLUSH follows lasts until the FLUSH is answered.
		h.Type, s.cmd, s.since = nbdproto.CmdFlush, nbdproto.CmdFlush, 0
	} else {
		s.began, s.cmd = now, nbdproto.CmdWrite
		if g.rnd.IntN(100) < g.l.reads {
			s.cmd = nbdproto.CmdRead
		} else {
			s.since++
		}
		h.Type, h.Length = s.cmd, uint32(g.l.block)
		if g.l.seq {
			h.Offset = uint64(g.next)
			if g.next += g.l.block; g.next+g.l.block > g.size {
				g.next = 0
			}
		} else {
			h.Offset = uint64(g.rnd.Int64N(g.size/g.l.block) * g.l.block)
		}
		if g.l.fua && s.cmd == nbdproto.CmdWrite {
			h.CommandFlags = nbdproto.CmdFlagFUA
		}
	}
	n := len(g.heads)
	g.heads = g.heads[:n+nbdproto.RequestSize]
	nbdproto.PutRequest(g.heads[n:], &h)
	g.out = append(g.out, g.heads[n:])
	if h.Type == nbdproto.CmdWrite {
		g.out = append(g.out, g.data)
	}
	g.flight++
	g.sent++
}

func (g *generator) more(now time.Time) bool {
	if g.l.count > 0 {
		return g.sent < g.l.count
	}
	return now.Before(g.end)
}

func (g *generator) send() error {
	if len(g.out) == 0 {
		return nil
	}
	if g.async != nil {
		g.async <- slices.Clone(g.out)
		g.heads = make([]byte, 0, cap(g.heads))
	} else {
		b := g.out
		if _, err := b.WriteTo(g.nc); err != nil {
			return err
		}
		g.heads = g.heads[:0]
	}
	g.out = g.out[:0]
	return nil
}

// reply takes one reply and queues what follows it.
func (g *generator) reply() error {
	var p [nbdproto.SimpleReplySize]byte
	if _, err := io.ReadFull(g.rd, p[:]); err != nil {
		return err
	}
	if m := binary.BigEndian.Uint32(p[:]); m != protocol.TRANSMISSION_MAGIC_REPLY {
		return fmt.Errorf("reply with magic %#x", m)
	}
	i := binary.BigEndian.Uint64(p[8:])
	if i >= uint64(len(g.slots)) {
		return fmt.Errorf("reply to unknown handle %d", i)
	}
	s := &g.slots[i]
	if errno := binary.BigEndian.Uint32(p[4:]); errno != 0 {
		return fmt.Errorf("%s failed with error %d", nbdproto.CommandName(s.cmd), errno)
	}
	if s.cmd == nbdproto.CmdRead {
		if _, err := io.ReadFull(g.rd, g.sink); err != nil {
			return err
		}
	}
	g.flight--
	now := time.Now()
	flushNext := s.cmd == nbdproto.CmdWrite && g.l.flush > 0 && s.since >= g.l.flush
	if !flushNext && now.After(g.from) && now.Before(g.end) {
		g.times = append(g.times, now.Sub(s.began))
	}
	if g.more(now) || flushNext {
		g.queue(int(i), now)
	}
	return nil
}

func (g *generator) run() error {
	defer g.nc.Close()
	if g.l.reads > 0 && g.l.reads < 100 {
		// A server that works on one request at a time does not read while it sends.
		g.async = make(chan net.Buffers, g.l.depth+1)
		var wg sync.WaitGroup
		wg.Go(func() {
			for b := range g.async {
				if _, err := b.WriteTo(g.nc); err != nil {
					g.nc.Close()
				}
			}
		})
		defer wg.Wait()
		defer close(g.async)
	}
	for i := range g.slots {
		g.queue(i, time.Now())
	}
	for g.flight > 0 {
		if err := g.send(); err != nil {
			return err
		}
		if err := g.reply(); err != nil {
			return err
		}
		for g.flight > 0 && g.rd.Buffered() >= nbdproto.SimpleReplySize && len(g.out) < 2*g.l.depth {
			if err := g.reply(); err != nil {
				return err
			}
		}
	}
	return nil
}

// warmUp is left out of each measurement.
const warmUp = 100 * time.Millisecond

// drive runs the load on all its connections.
func drive(ctx context.Context, s *server, l load, o options) (result, error) {
	gens := make([]*generator, l.conns)
	for i := range gens {
		g, err := dialGenerator(ctx, s, l, uint64(i))
		if err != nil {
			return result{}, err
		}
		defer g.nc.Close()
		gens[i] = g
	}
	stop := context.AfterFunc(ctx, func() {
		for _, g := range gens {
			g.nc.Close()
		}
	})
	defer stop()
	from := time.Now().Add(warmUp)
	errs := make([]error, len(gens))
	var wg sync.WaitGroup
	for i, g := range gens {
		g.from, g.end = from, from.Add(o.runtime)
		wg.Go(func() { errs[i] = g.run() })
	}
	if l.count == 0 {
		time.Sleep(time.Until(from))
	}
	before := cpu(s.proc.Process.Pid)
	if l.count == 0 {
		time.Sleep(o.runtime)
	}
	used := cpu(s.proc.Process.Pid) - before
	wg.Wait()
	var all []time.Duration
	for i, g := range gens {
		if errs[i] != nil {
			return result{}, errs[i]
		}
		all = append(all, g.times...)
	}
	r := summary(all, o.runtime)
	r.cpuPerGB = used / (float64(len(all)) * float64(l.block) / 1e9)
	return r, nil
}

func summary(all []time.Duration, runtime time.Duration) result {
	if len(all) == 0 {
		return result{}
	}
	slices.Sort(all)
	at := func(per1000 int) float64 { return float64(all[len(all)*per1000/1000]) / 1e3 }
	return result{iops: float64(len(all)) / runtime.Seconds(), p50: at(500), p99: at(990), p999: at(999)}
}
