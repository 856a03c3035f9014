package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// spindleTable: the engine on a modelled disk, where log and data share one head. It runs in virtual
// time, which only tests have: TestHeadline of internal/spindle.
func spindleTable(ctx context.Context, o options, rep *report) error {
	if !o.rows.MatchString("spindle") {
		return nil
	}
	file := filepath.Join(o.dir, "spindle.json")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-run", "^TestHeadline$", "./internal/spindle")
	cmd.Env = append(os.Environ(), "MARS_SPINDLE_TABLE="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("modelled spindle: %w\n%s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	t := &table{Title: "Random 4 KiB writes on a modelled 7200 rpm disk, log and data on the same spindle",
		Head: []string{"load", "raw IOPS", "engine IOPS, sustained", "ratio", "burst IOPS (CPU bound)", "engine p50 / p99 / p99.9 / max ms", "raw p50 / p99 / p99.9 / max ms"}}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var row []string
		if err := json.Unmarshal(sc.Bytes(), &row); err != nil {
			return fmt.Errorf("modelled spindle: %w", err)
		}
		t.Rows = append(t.Rows, row)
	}
	t.print()
	rep.Tables = append(rep.Tables, t)
	return nil
}
