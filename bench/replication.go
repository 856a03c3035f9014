package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// replicationTable: what happens between two nodes, against plain copies of the
// same bytes in the same run.
func replicationTable(ctx context.Context, o options, bin string, rep *report) error {
	if !o.rows.MatchString("replication") {
		return nil
	}
	var ship, replay, tcp, cp, rssA, rssB []float64
	for i := range o.rounds {
		m, err := replicateOnce(ctx, o, bin, i)
		if err != nil {
			return err
		}
		ship, replay = append(ship, m.ship), append(replay, m.replay)
		tcp, cp = append(tcp, m.tcp), append(cp, m.copy)
		rssA, rssB = append(rssA, m.rssA), append(rssB, m.rssB)
	}
	row := func(what string, ours []float64, against string, theirs []float64) []string {
		var ratio []float64
		for i := range ours {
			ratio = append(ratio, ours[i]/theirs[i])
		}
		lo, hi := bounds(ratio)
		return []string{what, fmt.Sprintf("%.0f", median(ours)), against, fmt.Sprintf("%.0f", median(theirs)),
			fmt.Sprintf("%.2f (%.2f..%.2f)", median(ratio), lo, hi)}
	}
	t := &table{Title: fmt.Sprintf("Replication (peak RSS: primary %.0f MiB, secondary %.0f MiB)", median(rssA), median(rssB)),
		Head: []string{"what", "MB/s", "against", "MB/s", "ratio"},
		Rows: [][]string{
			row("log shipping, loopback, TLS", ship, "plain TCP copy of the log to a synced file", tcp),
			row("replay of a 4k random-write log", replay, "plain sequential copy of the log, synced", cp),
		}}
	t.print()
	rep.Tables = append(rep.Tables, t)
	return nil
}

type replication struct{ ship, replay, tcp, copy, rssA, rssB float64 }

// replicateOnce writes a log while the secondary is disconnected, then times
// fetching it (replay paused), then replaying it.
func replicateOnce(ctx context.Context, o options, bin string, round int) (m replication, err error) {
	dir, err := tempIn(o, fmt.Sprintf("replication-%d", round))
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	secret := filepath.Join(dir, "secret")
	a, err := newMarsNode(bin, filepath.Join(dir, "a"), "nodea", "127.0.0.62", secret)
	if err != nil {
		return m, err
	}
	b, err := newMarsNode(bin, filepath.Join(dir, "b"), "nodeb", "127.0.0.63", secret)
	if err != nil {
		return m, err
	}
	if err := makeDisk(a.disk, o.size); err != nil {
		return m, err
	}
	if err := a.create(ctx); err != nil {
		return m, err
	}
	defer a.stop()
	if err := makeDisk(b.disk, o.size); err != nil {
		return m, err
	}
	steps := func(n *marsNode, list ...[]string) error {
		for _, s := range list {
			if _, err := n.adm(ctx, s...); err != nil {
				return err
			}
		}
		return nil
	}
	if err := b.daemon(ctx); err != nil {
		return m, err
	}
	defer b.stop()
	if err := steps(b, []string{"join-cluster", a.node, a.addr, "--ip=" + b.addr}, []string{"join-resource", "r0", b.disk}); err != nil {
		return m, err
	}
	if err := b.view(ctx, "is-consistent", "1"); err != nil {
		return m, err
	}
	if err := steps(b, []string{"pause-replay", "r0"}, []string{"pause-fetch", "r0"}); err != nil {
		return m, err
	}
	fill := o
	fill.runtime = max(o.runtime, 3*time.Second)
	if _, err := drive(ctx, &a.server, load{block: 4096, depth: 32, conns: 1}, fill); err != nil {
		return m, err
	}
	log := filepath.Join(a.root, "resource-r0", "log-000000001-nodea")
	copyLog := filepath.Join(b.root, "resource-r0", "log-000000001-nodea")
	st, err := os.Stat(log)
	if err != nil {
		return m, err
	}
	had, err := os.Stat(copyLog)
	if err != nil {
		return m, err
	}
	bytes := float64(st.Size() - had.Size())

	begin := time.Now()
	if err := steps(b, []string{"resume-fetch", "r0"}); err != nil {
		return m, err
	}
	for {
		if c, err := os.Stat(copyLog); err == nil && c.Size() >= st.Size() {
			break
		}
		if time.Since(begin) > 5*time.Minute || ctx.Err() != nil {
			return m, fmt.Errorf("fetch does not finish: %w", ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
	m.ship = bytes / time.Since(begin).Seconds() / 1e6

	begin = time.Now()
	if err := steps(b, []string{"resume-replay", "r0"}); err != nil {
		return m, err
	}
	if err := b.view(ctx, "replay-rest", "0"); err != nil {
		return m, err
	}
	m.replay = bytes / time.Since(begin).Seconds() / 1e6
	if m.tcp, err = tcpCopy(log, filepath.Join(dir, "tcp")); err != nil {
		return m, err
	}
	if m.copy, err = fileCopy(log, filepath.Join(dir, "copy")); err != nil {
		return m, err
	}
	_, pa := rss(a.proc.Process.Pid)
	_, pb := rss(b.proc.Process.Pid)
	m.rssA, m.rssB = float64(pa>>20), float64(pb>>20)
	return m, nil
}

// fileCopy is the floor of replay: the same bytes, in order, once synced.
func fileCopy(from, to string) (mbs float64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	return receive(src, to)
}

// tcpCopy is the floor of shipping: the same bytes over a plain connection.
func tcpCopy(from, to string) (mbs float64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if f, err := os.Open(from); err == nil {
			io.Copy(c, f)
			f.Close()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return receive(c, to)
}

func receive(src io.Reader, to string) (float64, error) {
	begin := time.Now()
	dst, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 256<<10))
	if err != nil {
		return 0, err
	}
	if err := dst.Sync(); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(begin).Seconds() / 1e6, nil
}
