// Command bench measures marsd beside the servers that people would otherwise use:
// same machine, same file system, same run, several interleaved rounds, the median
// of each and the ratio. It prints the tables of docs/BENCHMARKS.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"time"
)

func main() {
	o := options{}
	flag.StringVar(&o.dir, "dir", "", "directory for all files; its file system is part of what is measured (default: a temporary one)")
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved rounds; the median counts")
	flag.DurationVar(&o.runtime, "time", 500*time.Millisecond, "time of one measurement")
	flag.Int64Var(&o.size, "size", 256<<20, "device size in bytes")
	flag.StringVar(&o.json, "json", "", "file for all figures of all rounds")
	flag.StringVar(&o.profile, "profile", "", "directory for CPU, mutex, block and allocation profiles of marsd, one set per row")
	flag.BoolVar(&o.detail, "detail", false, "print each server's latency, CPU and memory too")
	flag.BoolVar(&o.foreign, "foreign", false, "cross-check: drive marsd and nbdkit by fio's NBD client too")
	flag.DurationVar(&o.budget, "budget", 22*time.Minute, "time for the table of servers; rounds are left out when it gets short")
	rows := flag.String("rows", ".", "regular expression of the rows to measure")
	flag.Parse()
	var err error
	if o.rows, err = regexp.Compile(*rows); err == nil && flag.NArg() > 0 {
		err = fmt.Errorf("surplus argument %q", flag.Arg(0))
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	dir     string
	rounds  int
	runtime time.Duration
	budget  time.Duration
	size    int64
	rows    *regexp.Regexp
	json    string
	profile string
	detail  bool
	foreign bool
}

func run(ctx context.Context, o options) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "mars-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.dir = dir
	}
	bin, err := build(ctx, o)
	if err != nil {
		return err
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			return err
		}
	}
	rep := &report{Machine: machine(), Rounds: o.rounds, Time: o.runtime.String(), Size: o.size}
	fmt.Printf("%d rounds of %v, device %d MiB, %s\n", o.rounds, o.runtime, o.size>>20, rep.Machine)
	fmt.Printf("other servers: IOPS: marsd's multiple of it, median (smallest..largest) of the rounds\n\n")
	for _, step := range []func() error{
		func() error { return serverTable(ctx, o, bin, rep) },
		func() error { return restartTable(ctx, o, rep) },
		func() error { return spindleTable(ctx, o, rep) },
		func() error { return replicationTable(ctx, o, bin, rep) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return rep.save(o.json)
}
