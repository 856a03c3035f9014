package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"mars/device"
	"mars/internal/vfs"
	"mars/logfile"
)

// restartTable: how fast a device is usable again when 1 GiB of log is not written
// back, against reading the same file.
func restartTable(ctx context.Context, o options, rep *report) error {
	if !o.rows.MatchString("restart") {
		return nil
	}
	dir, err := tempIn(o, "restart")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const size, logBytes = 8 << 30, 1 << 30
	log, err := writeLog(dir, size, logBytes)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	f.Close()
	var scan, read, ratio []float64
	for range o.rounds {
		a, err := restartOnce(ctx, dir, size)
		if err != nil {
			return err
		}
		b, err := readOnce(log)
		if err != nil {
			return err
		}
		scan, read, ratio = append(scan, a), append(read, b), append(ratio, a/b)
	}
	lo, hi := bounds(ratio)
	t := &table{Title: "Restart with 1 GiB of log that is not written back (log in the page cache)",
		Head: []string{"what", "GB/s", "against", "GB/s", "ratio"},
		Rows: [][]string{{"open to first read and write, 4k records, all checksums verified", fmt.Sprintf("%.2f", median(scan)),
			"read of the same file", fmt.Sprintf("%.2f", median(read)), fmt.Sprintf("%.2f (%.2f..%.2f)", median(ratio), lo, hi)}}}
	t.print()
	rep.Tables = append(rep.Tables, t)
	return nil
}

var firstLog = logfile.Name{Seq: 1, Host: "a"}

// writeLog makes a log of random 4 KiB writes, as a load leaves it.
func writeLog(dir string, size, bytes int64) (path string, err error) {
	w, err := logfile.Create(dir, firstLog, logfile.WriterOptions{FS: vfs.OS})
	if err != nil {
		return "", err
	}
	r := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 64*4096)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	entries := make([]logfile.Entry, 64)
	for w.End() < bytes {
		for i := range entries {
			entries[i] = logfile.Entry{Pos: 4096 * r.Int64N(size/4096), Code: logfile.CodeWrite, Data: p[4096*i : 4096*i+4096]}
		}
		if _, err := w.Append(entries); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, firstLog.String()), w.Close()
}

// noJournal takes positions and forgets them: each restart starts from 0 again.
type noJournal struct{}

func (noJournal) Dirty(logfile.Name, int64, int64) error      { return nil }
func (noJournal) Checkpoint(logfile.Name, int64, int64) error { return nil }

func restartOnce(ctx context.Context, dir string, size int64) (gbs float64, err error) {
	begin := time.Now()
	disk, err := device.OpenDisk(vfs.OS, filepath.Join(dir, "disk"))
	if err != nil {
		return 0, err
	}
	defer disk.Close()
	chain, err := logfile.OpenChain(vfs.OS, dir)
	if err != nil {
		return 0, err
	}
	defer chain.Close()
	cfg := device.DefaultEngineConfig()
	cfg.Resource, cfg.Host, cfg.Disk, cfg.Chain, cfg.Size, cfg.Journal = "r", "a", disk, chain, size, noJournal{}
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.WritebackAge, cfg.WritebackBytes = time.Hour, 1<<40 // what comes after the restart is not measured
	cfg.CloseTimeout = time.Millisecond
	e, err := device.OpenEngine(ctx, cfg, logfile.Position{Log: firstLog}, 0)
	if err != nil {
		return 0, err
	}
	defer e.Close()
	end, _, err := e.Recover(ctx, false)
	if err != nil {
		return 0, err
	}
	if err := e.Backend().ReadAt(make([]byte, 4096), 0); err != nil {
		return 0, err
	}
	return float64(end.Offset) / time.Since(begin).Seconds() / 1e9, nil
}

func readOnce(path string) (gbs float64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	begin, total, p := time.Now(), int64(0), make([]byte, 1<<20)
	for {
		n, err := f.Read(p)
		total += int64(n)
		if err != nil {
			break
		}
	}
	return float64(total) / time.Since(begin).Seconds() / 1e9, nil
}
