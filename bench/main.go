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
	flag.DurationVar(&o.runtime, "time", 3*time.Second, "time of one measurement")
	flag.Int64Var(&o.size, "size", 256<<20, "device size in bytes")
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
	size    int64
	rows    *regexp.Regexp
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
	bin, err := build(ctx, o.dir)
	if err != nil {
		return err
	}
	fmt.Printf("%d rounds of %v, device %d MiB, %s\n\n", o.rounds, o.runtime, o.size>>20, machine())
	if err := serverTable(ctx, o, bin); err != nil {
		return err
	}
	return replicationTable(ctx, o, bin)
}
