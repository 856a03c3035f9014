package sweep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/device"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
	"mars/symlinktree"
)

const (
	root     = "/base/mars"
	resDir   = root + "/resource-r"
	diskPath = "/dev/disk"
	res      = symlinktree.Resource("r")
	host     = "a"
	writer   = "a" // whose logs the workloads have
)

// node is what marsd holds of one resource: tree, logs, disk, engine.
type node struct {
	fs    vfs.FS
	tree  *symlinktree.Tree
	chain *logfile.Chain
	disk  *device.Disk
	e     *device.Engine

	// turn is whose turn it is to write links; the tree's own lock would be invisible to
	// the bubble.
	turn chan struct{}

	mu        sync.Mutex
	told      replayPos        // the last position whose publication has returned
	published logfile.Position // the last durable length that peers were told of
	deleted   map[int]bool
	onDirty   func(log logfile.Name, min, end int64) bool // mutant: true swallows it
}

// replayPos is a replay link.
type replayPos struct {
	pos logfile.Position
	end int64
}

func logName(seq int) logfile.Name { return logfile.Name{Seq: seq, Host: writer} }

// newDisk makes a file system with a member of resource r that has never logged.
func newDisk(seed uint64, meta crashfs.Metadata, base []byte) (*crashfs.FS, error) {
	fs := crashfs.New(seed)
	fs.SetMetadata(meta)
	if err := fs.MkdirAll("/base"); err != nil {
		return nil, err
	}
	if err := fs.AddDisk(diskPath, int64(len(base)), bytes.NewReader(base)); err != nil {
		return nil, err
	}
	tree, err := symlinktree.Open(root, symlinktree.Options{FS: fs, Node: host, Create: true})
	if err != nil {
		return nil, err
	}
	// As marsadm create-resource.
	start := symlinktree.Replay{Seq: 1, Origin: writer}
	version := symlinktree.Version{Digest: symlinktree.ZeroDigest, Seq: 1, Origin: writer}
	if err := tree.SetAllDurable(symlinktree.Entry{Path: res.DataPath(host), Value: diskPath},
		symlinktree.Entry{Path: res.VersionPath(1, host), Value: version.String()},
		symlinktree.Entry{Path: res.ReplayPath(host), Value: start.String()}); err != nil {
		return nil, err
	}
	fs.SyncAll()
	return fs, nil
}

// open starts a node on what is on the file system, at the position of its replay link.
func open(fs vfs.FS, tune func(*device.EngineConfig)) (*node, error) {
	n := &node{fs: fs, turn: make(chan struct{}, 1), deleted: map[int]bool{}}
	var err error
	if n.tree, err = symlinktree.Open(root, symlinktree.Options{FS: fs, Node: host}); err != nil {
		return nil, err
	}
	if n.told, err = n.link(); err != nil {
		return nil, err
	}
	if n.disk, err = device.OpenDisk(fs, diskPath); err != nil {
		return nil, err
	}
	if n.chain, err = logfile.OpenChain(fs, resDir); err != nil {
		return nil, err
	}
	cfg := device.EngineConfig{
		Resource: string(res), Host: host, Disk: n.disk, Chain: n.chain, Size: n.disk.Size(), Journal: n,
		Now: func() time.Time { return n.tree.Clock().Now().Time() }, Log: slog.New(slog.DiscardHandler),
		WritebackAge: 1000 * time.Hour, SyncInterval: time.Hour, WritebackJobs: 1,
	}
	if tune != nil {
		tune(&cfg)
	}
	n.e, err = device.OpenEngine(context.Background(), cfg, n.told.pos, n.told.end)
	return n, err
}

// link reads the replay link.
func (n *node) link() (replayPos, error) {
	v, _ := n.tree.Get(res.ReplayPath(host))
	r, err := symlinktree.ParseReplay(v)
	if err != nil {
		return replayPos{}, fmt.Errorf("replay link: %w", err)
	}
	return replayPos{logfile.Position{Log: logfile.Name{Seq: r.Seq, Host: r.Origin}, Offset: r.Min}, r.End()}, nil
}

// kill ends the node as a power cut does: nothing is written any more.
func (n *node) kill(fs *crashfs.FS) {
	fs.PowerCut()
	n.close()
}

// close ends the node cleanly.
func (n *node) close() error {
	return errors.Join(n.e.Close(), n.chain.Close(), n.disk.Close())
}

// Dirty and Checkpoint are cluster's journal.
func (n *node) Dirty(log logfile.Name, min, end int64) error {
	if n.onDirty != nil && n.onDirty(log, min, end) {
		return nil
	}
	return n.put(log, min, end)
}

func (n *node) Checkpoint(log logfile.Name, min, end int64) error { return n.put(log, min, end) }

func (n *node) put(log logfile.Name, min, end int64) error {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	v := symlinktree.Replay{Seq: log.Seq, Origin: log.Host, Min: min, Len: end - min}
	if err := n.tree.Set(res.ReplayPath(host), v.String()); err != nil {
		return err
	}
	if err := n.tree.SyncDir(res.Dir()); err != nil {
		return err
	}
	n.mu.Lock()
	n.told = replayPos{logfile.Position{Log: log, Offset: min}, end}
	n.mu.Unlock()
	return nil
}

func (n *node) promises() (told replayPos, published logfile.Position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told, n.published
}

// publish tells the peers how much of a log is durable, and what the final length of
// the log before is.
func (n *node) publish(log logfile.Name) error {
	size, err := n.chain.Durable(log)
	if err != nil {
		return err
	}
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	prev := ""
	if log.Seq > 1 {
		before := logName(log.Seq - 1)
		path := res.VersionPath(before.Seq, host)
		prev, _ = n.tree.Get(path)
		if length, err := n.chain.Durable(before); err == nil {
			older, _ := n.tree.Get(res.VersionPath(before.Seq-1, host))
			if want := symlinktree.NewVersion(before.Seq, before.Host, length, older).String(); want != prev {
				if err := n.tree.Set(path, want); err != nil {
					return err
				}
				prev = want
			}
		}
	}
	if err := n.tree.Set(res.VersionPath(log.Seq, host), symlinktree.NewVersion(log.Seq, log.Host, size, prev).String()); err != nil {
		return err
	}
	n.mu.Lock()
	n.published = logfile.Position{Log: log, Offset: size}
	n.mu.Unlock()
	return nil
}

// known lists the logs that the version links confirm, each with the length at which it was
// left, the last one with what is published: what marsd gives to RecoverKnown.
func (n *node) known() (list []logfile.Position) {
	links := make(map[int]symlinktree.Version)
	last := 0
	for _, e := range n.tree.List(res.Dir()) {
		if _, name, _ := strings.Cut(e.Path, "/"); !strings.HasPrefix(name, "version-") {
			continue
		}
		if v, err := symlinktree.ParseVersion(e.Value); err == nil {
			links[v.Seq] = v
			last = max(last, v.Seq)
		}
	}
	v, ok := links[last]
	for at := v.Pos; ok; {
		list = append([]logfile.Position{{Log: logName(v.Seq), Offset: at}}, list...)
		prev, known := v.Predecessor()
		if !known {
			break
		}
		at = prev.Pos
		v, ok = links[prev.Seq]
	}
	return list
}

// unneeded is a log that is on the disk, or 0.
func (n *node) unneeded() int {
	told, _ := n.promises()
	n.mu.Lock()
	defer n.mu.Unlock()
	for seq := 1; seq < told.pos.Log.Seq; seq++ {
		if !n.deleted[seq] {
			return seq
		}
	}
	return 0
}

// deleteLog is marsadm log-delete.
func (n *node) deleteLog(seq int) error {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	n.mu.Lock()
	n.deleted[seq] = true
	n.mu.Unlock()
	if err := n.tree.Set(res.LogPath(seq, writer), symlinktree.Deleted); err != nil {
		return err
	}
	_, err := n.chain.List()
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
