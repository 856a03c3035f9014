package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"mars/internal/nbdclient"
)

// result of one measurement.
type result struct {
	iops          float64
	p50, p99      time.Duration
	cpuSecondsGiB float64
	rss           int64
}

// load is one row of the table.
type load struct {
	name string
	// fio options, or nil: our own client, for what fio's nbd engine cannot send
	fio []string
	// own client
	depth    int
	fua      bool
	block    int64
	ceilings bool // also measure nbdkit memory
}

var loads = []load{
	{name: "randwrite 4k qd1", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, block: 4096, ceilings: true},
	{name: "randwrite 4k qd32", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, block: 4096, ceilings: true},
	{name: "randread 4k qd1", fio: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, block: 4096, ceilings: true},
	{name: "randread 4k qd32", fio: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, block: 4096, ceilings: true},
	{name: "randwrite 4k qd1 flush each", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, block: 4096},
	{name: "randwrite 4k qd32 flush each", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=1"}, block: 4096},
	{name: "randwrite 4k qd1 flush each 16", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=16"}, block: 4096},
	{name: "randwrite 4k qd32 flush each 16", fio: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=16"}, block: 4096},
	{name: "randwrite 4k qd1 FUA", depth: 1, fua: true, block: 4096},
	{name: "randwrite 4k qd32 FUA", depth: 32, fua: true, block: 4096},
	{name: "seqwrite 64k qd32", fio: []string{"--rw=write", "--bs=64k", "--iodepth=32"}, block: 65536, ceilings: true},
	{name: "seqwrite 1M qd8", fio: []string{"--rw=write", "--bs=1M", "--iodepth=8"}, block: 1 << 20, ceilings: true},
	{name: "rand 70:30 4k qd32", fio: []string{"--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"}, block: 4096},
}

func (l load) measure(ctx context.Context, s *server, o options) (result, error) {
	before := cpu(s.proc.Process.Pid)
	var r result
	var err error
	if l.fio != nil {
		r, err = runFio(ctx, s, o, l.fio)
	} else {
		r, err = l.runOwn(ctx, s, o)
	}
	if err != nil {
		return r, fmt.Errorf("%s, %s: %w", l.name, s.name, err)
	}
	gib := r.iops * o.runtime.Seconds() * float64(l.block) / (1 << 30)
	r.cpuSecondsGiB = (cpu(s.proc.Process.Pid) - before) / gib
	_, r.rss = rss(s.proc.Process.Pid)
	return r, nil
}

func runFio(ctx context.Context, s *server, o options, args []string) (result, error) {
	args = append([]string{"--name=bench", "--ioengine=nbd", "--uri=" + s.uri(), "--time_based", "--randrepeat=0",
		fmt.Sprintf("--runtime=%d", int(o.runtime.Seconds())), "--output-format=json"}, args...)
	out, err := exec.CommandContext(ctx, "fio", args...).Output()
	if err != nil {
		return result{}, fmt.Errorf("fio: %w", err)
	}
	// fio may print notes before the document.
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:]
	}
	type dir struct {
		Iops float64
		Clat struct {
			Percentile map[string]float64
		} `json:"clat_ns"`
	}
	var doc struct{ Jobs []struct{ Read, Write dir } }
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Jobs) == 0 {
		return result{}, fmt.Errorf("fio output: %w", err)
	}
	d := doc.Jobs[0].Write
	if d.Iops == 0 {
		d = doc.Jobs[0].Read
	}
	return result{
		iops: doc.Jobs[0].Read.Iops + doc.Jobs[0].Write.Iops,
		p50:  time.Duration(d.Clat.Percentile["50.000000"]),
		p99:  time.Duration(d.Clat.Percentile["99.000000"]),
	}, nil
}

// runOwn drives the server with our client: depth requests in flight on one
// connection.
func (l load) runOwn(ctx context.Context, s *server, o options) (result, error) {
	c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: s.socket, Export: s.export})
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	var flags []nbdclient.Flag
	if l.fua {
		flags = append(flags, nbdclient.FUA)
	}
	end := time.Now().Add(o.runtime)
	times := make([][]time.Duration, l.depth)
	errs := make([]error, l.depth)
	var wg sync.WaitGroup
	for i := range l.depth {
		wg.Go(func() {
			buf := make([]byte, l.block)
			for time.Now().Before(end) && errs[i] == nil {
				off := rand.Int64N(c.Size()/l.block) * l.block
				begin := time.Now()
				errs[i] = c.Write(ctx, buf, off, flags...)
				times[i] = append(times[i], time.Since(begin))
			}
		})
	}
	wg.Wait()
	var all []time.Duration
	for i := range times {
		if errs[i] != nil {
			return result{}, errs[i]
		}
		all = append(all, times[i]...)
	}
	slices.Sort(all)
	return result{iops: float64(len(all)) / o.runtime.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100]}, nil
}
