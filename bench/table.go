package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cell collects the rounds of one load on one server.
type cell struct {
	Row, Server string
	Note        string    `json:",omitempty"`
	IOPS        []float64 // one per round
	P50us       []float64
	P99us       []float64
	P999us      []float64
	CPUPerGB    []float64 `json:",omitempty"` // CPU seconds of the server per 10^9 bytes
	RSSMiB      []float64 `json:",omitempty"` // peak
	Ratio       []float64 // marsd / this server, of the same round
}

func (c *cell) add(r result) {
	c.IOPS = append(c.IOPS, r.iops)
	c.P50us, c.P99us, c.P999us = append(c.P50us, r.p50), append(c.P99us, r.p99), append(c.P999us, r.p999)
	if r.rss > 0 {
		c.CPUPerGB, c.RSSMiB = append(c.CPUPerGB, r.cpuPerGB), append(c.RSSMiB, r.rss/(1<<20))
	}
}

// report is what -json writes.
type report struct {
	Machine string
	Rounds  int
	Time    string
	Size    int64
	Cells   []*cell
	Tables  []*table `json:",omitempty"`
}

// table is one that does not compare servers.
type table struct {
	Title string
	Head  []string
	Rows  [][]string
}

func (t *table) print() {
	fmt.Printf("\n## %s\n\n| %s |\n|%s\n", t.Title, strings.Join(t.Head, " | "), strings.Repeat("---|", len(t.Head)))
	for _, r := range t.Rows {
		fmt.Printf("| %s |\n", strings.Join(r, " | "))
	}
}

func (r *report) save(path string) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// serverTable: every load on every server. The servers take turns within a round, so
// that a machine that gets slower does so for all of them.
func serverTable(ctx context.Context, o options, bin string, rep *report) error {
	list := slices.DeleteFunc(starters(bin), func(st starter) bool { return st.foreign && !o.foreign })
	var rows []load
	for _, l := range loads() {
		if o.rows.MatchString(l.name) {
			rows = append(rows, l)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Printf("| load | marsd IOPS | p50 / p99 / p99.9 µs | CPU s/GB | RSS MiB |")
	for _, st := range list[1:] {
		fmt.Printf(" %s |", st.name)
	}
	fmt.Printf("\n|%s\n", strings.Repeat("---|", len(list)+4))
	begin, rounds := time.Now(), 0
	for i, l := range rows {
		// What has been seen tells how many rounds fit into the rest of the budget.
		n := o.rounds
		if rounds > 0 {
			left, each := o.budget-time.Since(begin), time.Since(begin)/time.Duration(rounds)
			n = max(1, min(n, int(left/(each*time.Duration(len(rows)-i)))))
		}
		rounds += n
		cells, err := l.compare(ctx, o, list, n)
		if err != nil {
			return err
		}
		rep.Cells = append(rep.Cells, cells...)
		printRow(l, cells)
		if err := rep.save(o.json); err != nil {
			return err
		}
	}
	if o.detail {
		printDetail(rep.Cells)
	}
	return nil
}

// compare runs the rounds of one load.
func (l load) compare(ctx context.Context, o options, list []starter, rounds int) ([]*cell, error) {
	cells := make([]*cell, len(list))
	for i, st := range list {
		cells[i] = &cell{Row: l.name, Server: st.name}
		if l.durable() && st.unsafe != "" {
			cells[i].Note = st.unsafe
		}
	}
	for round := range rounds {
		for k := range list {
			i := (k + round) % len(list) // nobody is always first
			if cells[i].Note != "" || list[i].foreign && l.fua {
				continue
			}
			r, err := once(ctx, o, list[i], l)
			if err != nil {
				return nil, err
			}
			cells[i].add(r)
		}
	}
	for _, c := range cells {
		for i, v := range c.IOPS {
			c.Ratio = append(c.Ratio, cells[0].IOPS[i]/v)
		}
	}
	return cells, nil
}

// once is one measurement on a fresh server, so that nobody pays for what ran before.
func once(ctx context.Context, o options, st starter, l load) (r result, err error) {
	dir, err := os.MkdirTemp(o.dir, "run-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if st.start == nil {
		disk, err := preparedDisk(o, st.name)
		if err != nil {
			return r, err
		}
		if r, err = l.rawFile(ctx, disk, o); err != nil {
			return r, err
		}
		return r, syncFile(disk)
	}
	s, err := st.start(ctx, o, dir)
	if err != nil {
		return r, err
	}
	defer s.stop()
	if st.foreign {
		r, err = l.foreign(ctx, s, o)
	} else if p := startProfile(o, s, l); p != nil {
		r, err = l.measure(ctx, s, o)
		if perr := p.finish(); err == nil {
			err = perr
		}
	} else {
		r, err = l.measure(ctx, s, o)
	}
	if err == nil && s.disk != "" {
		err = syncFile(s.disk) // its dirty pages are not the next one's
	}
	return r, err
}

func printRow(l load, cells []*cell) {
	m := cells[0]
	fmt.Printf("| %s | %.0f | %.0f / %.0f / %.0f | %.2f | %.0f |", l.name, median(m.IOPS), median(m.P50us), median(m.P99us),
		median(m.P999us), median(m.CPUPerGB), median(m.RSSMiB))
	for _, c := range cells[1:] {
		switch {
		case c.Note != "":
			fmt.Printf(" %s |", c.Note)
		case len(c.IOPS) == 0:
			fmt.Printf(" - |")
		default:
			lo, hi := bounds(c.Ratio)
			fmt.Printf(" %.0f: **%.2f** (%.2f..%.2f) |", median(c.IOPS), median(c.Ratio), lo, hi)
		}
	}
	fmt.Println()
}

func printDetail(cells []*cell) {
	fmt.Printf("\n| load | server | IOPS | p50 µs | p99 µs | p99.9 µs | CPU s/GB | peak RSS MiB | marsd / server | of the rounds |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range cells {
		if len(c.IOPS) == 0 {
			continue
		}
		lo, hi := bounds(c.Ratio)
		fmt.Printf("| %s | %s | %.0f | %.0f | %.0f | %.0f | %s | %s | %.2f | %.2f..%.2f |\n", c.Row, c.Server, median(c.IOPS), median(c.P50us),
			median(c.P99us), median(c.P999us), optional("%.2f", c.CPUPerGB), optional("%.0f", c.RSSMiB), median(c.Ratio), lo, hi)
	}
}

func optional(format string, v []float64) string {
	if len(v) == 0 {
		return "-"
	}
	return fmt.Sprintf(format, median(v))
}

func tempIn(o options, name string) (string, error) {
	dir := filepath.Join(o.dir, name)
	return dir, os.MkdirAll(dir, 0o700)
}
