package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// result of one measurement; times in microseconds.
type result struct {
	iops           float64
	p50, p99, p999 float64
	cpuPerGB       float64 // CPU seconds of the server
	rss            float64 // its peak, bytes
}

// load is one row of the table.
type load struct {
	name  string
	block int64
	reads int  // per cent; the rest are writes
	seq   bool // else random
	depth int  // per connection
	conns int
	flush int   // FLUSH after so many writes of each slot; 0: never
	fua   bool  // each write
	count int64 // requests of each connection, instead of a time; 0: by time
}

// loads is the whole matrix.
func loads() []load {
	var list []load
	sizes := []struct {
		name  string
		block int64
	}{{"4k", 4 << 10}, {"64k", 64 << 10}, {"1M", 1 << 20}}
	kinds := []struct {
		name  string
		reads int
	}{{"write", 0}, {"read", 100}, {"70:30", 70}}
	each := func(f func(depth, conns int)) {
		for _, depth := range []int{1, 32} {
			for _, conns := range []int{1, 4} {
				f(depth, conns)
			}
		}
	}
	for _, size := range sizes {
		for _, kind := range kinds {
			each(func(depth, conns int) {
				// More in flight at large sizes measures the memory of the queue.
				if conns > 1 && (size.block == 1<<20 || size.block > 4096 && depth == 1) {
					return
				}
				list = append(list, load{name: fmt.Sprintf("%s %s qd%d x%d", kind.name, size.name, depth, conns),
					block: size.block, reads: kind.reads, seq: size.block == 1<<20, depth: depth, conns: conns})
			})
		}
	}
	for _, d := range []load{{name: "flush1", flush: 1}, {name: "flush16", flush: 16}, {name: "fua", fua: true}} {
		each(func(depth, conns int) {
			l := d
			l.name = fmt.Sprintf("write 4k %s qd%d x%d", d.name, depth, conns)
			l.block, l.depth, l.conns = 4096, depth, conns
			list = append(list, l)
		})
	}
	return list
}

// durable says whether the load needs FLUSH or FUA.
func (l load) durable() bool { return l.fua || l.flush > 0 }

// measure runs the load once.
func (l load) measure(ctx context.Context, s *server, o options) (result, error) {
	if l.block >= 1<<20 {
		o.runtime *= 3 // or a slow disk completes nothing
	}
	r, err := drive(ctx, s, l, o)
	if err != nil {
		return r, fmt.Errorf("%s on %s: %w", l.name, s.name, err)
	}
	_, peak := rss(s.proc.Process.Pid)
	r.rss = float64(peak)
	return r, nil
}

// fioArgs is the load in fio's words.
func (l load) fioArgs(o options) []string {
	if l.block >= 1<<20 {
		o.runtime *= 3
	}
	rw := map[int]string{0: "write", 100: "read"}[l.reads]
	if rw == "" {
		rw = "rw"
	}
	if !l.seq {
		rw = "rand" + rw
	}
	args := []string{"--name=bench", "--rw=" + rw, fmt.Sprint("--bs=", l.block), fmt.Sprint("--iodepth=", l.depth), fmt.Sprint("--numjobs=", l.conns),
		"--time_based", "--randrepeat=0", "--thread", "--group_reporting", "--output-format=json",
		fmt.Sprintf("--ramp_time=%dms", warmUp.Milliseconds()), fmt.Sprintf("--runtime=%dms", o.runtime.Milliseconds())}
	if rw == "rw" || rw == "randrw" {
		args = append(args, fmt.Sprint("--rwmixread=", l.reads))
	}
	if l.flush > 0 {
		args = append(args, fmt.Sprint("--fdatasync=", l.flush))
	}
	return args
}

// fio runs fio and returns reads and writes together.
func fio(ctx context.Context, args []string) (result, error) {
	cmd := exec.CommandContext(ctx, "fio", args...)
	out, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("fio: %w: %s", err, out)
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
	j := doc.Jobs[0]
	d := j.Write
	if d.Iops == 0 {
		d = j.Read
	}
	pc := d.Clat.Percentile
	return result{iops: j.Read.Iops + j.Write.Iops,
		p50: pc["50.000000"] / 1e3, p99: pc["99.000000"] / 1e3, p999: pc["99.900000"] / 1e3}, nil
}

// foreign is the load on a server by fio's own NBD client: a cross-check of ours.
func (l load) foreign(ctx context.Context, s *server, o options) (result, error) {
	return fio(ctx, append(l.fioArgs(o), "--ioengine=nbd", "--uri="+s.uri()))
}

// rawFile is the load on a file without any server: what the disk and the page cache allow.
func (l load) rawFile(ctx context.Context, path string, o options) (result, error) {
	args := append(l.fioArgs(o), "--ioengine=io_uring", "--filename="+path, fmt.Sprint("--size=", o.size))
	if l.fua {
		args = append(args, "--sync=dsync")
	}
	return fio(ctx, args)
}
