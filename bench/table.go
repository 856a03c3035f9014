package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// serverTable: every load on every server, interleaved, each measurement on a
// fresh server so that nobody pays for what ran before.
func serverTable(ctx context.Context, o options, bin string) error {
	type cell struct{ iops, p50, p99, cpu, rss []float64 }
	list := starters(bin)
	fmt.Printf("| load | server | IOPS | p50 µs | p99 µs | CPU s/GiB | peak RSS MiB | marsd / server |\n|---|---|---|---|---|---|---|---|\n")
	for _, l := range loads {
		if !o.rows.MatchString(l.name) {
			continue
		}
		cells := make(map[string]*cell)
		for range o.rounds {
			for _, st := range list {
				if st.name == "nbdkit memory" && !l.ceilings {
					continue
				}
				r, err := once(ctx, o, st, l)
				if err != nil {
					return err
				}
				c := cells[st.name]
				if c == nil {
					c = &cell{}
					cells[st.name] = c
				}
				c.iops = append(c.iops, r.iops)
				c.p50 = append(c.p50, float64(r.p50.Microseconds()))
				c.p99 = append(c.p99, float64(r.p99.Microseconds()))
				c.cpu = append(c.cpu, r.cpuSecondsGiB)
				c.rss = append(c.rss, float64(r.rss>>20))
			}
		}
		ours := median(cells["marsd"].iops)
		for _, st := range list {
			if c := cells[st.name]; c != nil {
				v := median(c.iops)
				fmt.Printf("| %s | %s | %.0f | %.0f | %.0f | %.2f | %.0f | %.2f |\n", l.name, st.name, v,
					median(c.p50), median(c.p99), median(c.cpu), median(c.rss), ours/v)
			}
		}
	}
	return nil
}

func once(ctx context.Context, o options, st starter, l load) (result, error) {
	dir, err := os.MkdirTemp(o.dir, strings.ReplaceAll(st.name, " ", "-")+"-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	s, err := st.start(ctx, dir, o.size)
	if err != nil {
		return result{}, err
	}
	defer s.stop()
	return l.measure(ctx, s, o)
}

func tempIn(o options, name string) (string, error) {
	dir := filepath.Join(o.dir, name)
	return dir, os.MkdirAll(dir, 0o700)
}
