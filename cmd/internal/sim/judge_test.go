package sim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
	"mars/symlinktree"
)

// history is what one application, or a line of them that hand over to each other, has
// written: a branch. A forced failover begins another one.
type history struct {
	id     int
	j      *oracle.Journal
	parent *history
	fork   int      // acknowledged writes of the parent at the fork
	server *session // that wrote last
	power  bool     // whose machine has lost power since
	direct bool     // something was written around the log
	over   bool     // its image was not to be had after that: judged no more
}

// addHistory begins a branch over base (nil: the initial stamps), or as a fork of parent.
func (w *world) addHistory(base io.ReaderAt, j *oracle.Journal) *history {
	h := &history{id: len(w.history) + 1, j: j}
	if j == nil {
		cfg := oracle.JournalConfig{Run: w.s.seed, Branch: uint32(h.id), Size: size, TrimZeroes: true, Base: base}
		if base == nil {
			cfg.Initial = size / oracle.SectorSize
		}
		var err error
		if h.j, err = oracle.NewJournal(cfg); err != nil {
			panic(err)
		}
	}
	w.mu.Lock()
	w.history = append(w.history, h)
	w.mu.Unlock()
	return h
}

func (w *world) histories() []*history {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*history
	for _, h := range w.history {
		if !h.over {
			list = append(list, h)
		}
	}
	return list
}

func (h *history) judge(img []byte, level oracle.Durability) *oracle.Verdict {
	v, err := h.j.CheckImage(bytes.NewReader(img), oracle.Options{Durable: level, MaxViolations: 3})
	if err != nil {
		panic(err)
	}
	return v
}

// acked counts the acknowledged changes.
func (h *history) acked() (n int) {
	for _, r := range h.j.Requests() {
		if r.Complete != 0 && r.Kind != oracle.KindFlush && !r.Void {
			n++
		}
	}
	return n
}

// before is the session whose log the log of s continues, as the version links of its
// node say; nil for the first one.
func (w *world) before(s *session) *session {
	at := func(l logfile.Name) *session {
		for i := len(w.sessions) - 1; i >= 0; i-- {
			if w.sessions[i].log == l {
				return w.sessions[i]
			}
		}
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	log := s.log
	if x := at(log); x != nil {
		return x // it has the log that it began, and wrote nothing into it
	}
	for range 100 {
		v, err := symlinktree.ParseVersion(s.n.get(res.VersionPath(log.Seq, s.n.name)))
		prev, ok := v.Predecessor()
		if err != nil || !ok {
			break
		}
		log = logfile.Name{Seq: prev.Seq, Host: prev.Origin}
		if x := at(log); x != nil {
			return x
		}
	}
	// Its links are deleted: the session of that host that was under way.
	for i := len(w.sessions) - 1; i >= 0; i-- {
		if x := w.sessions[i]; x.log.Host == log.Host && x.log.Seq <= log.Seq {
			return x
		}
	}
	return nil
}

// attribute finds out which history a device that appears goes on with, and judges its
// content: nothing that had to survive may be missing, and nobody else may serve it.
func (w *world) attribute(s *session, img []byte) {
	h := w.history[0]
	if b := w.before(s); b != nil {
		h = b.hist
	}
	forced := s.n.takeForce()
	level := oracle.Always
	switch {
	case forced:
		level = oracle.OrderOnly
	case h.power:
		level = oracle.Flushed
	}
	v := h.judge(img, level)
	switch {
	case v.OK():
	case h.direct || h.over:
		w.rebase(s, h, img)
		return
	default:
		w.violation("P3", "the device on %s (log %s, forced %v) does not have what it must of history %d (%v): %v", s.n.name, s.log, forced, h.id, level, v.Err())
		w.rebase(s, h, img)
		return
	}
	if !forced {
		for _, x := range w.sessions {
			if x.hist == h && x.serves() {
				w.violation("one-primary", "%s becomes primary while %s still serves the same history %d", s.n.name, x.n.name, h.id)
			}
		}
		if err := h.j.Resolve(v); err != nil {
			w.rebase(s, h, img)
			return
		}
		s.hist, h.server, h.power = h, s, false
		return
	}
	j, err := h.j.Fork(uint32(len(w.history)+1), v, nil)
	if err != nil {
		w.rebase(s, h, img)
		return
	}
	f := w.addHistory(nil, j)
	f.parent, f.fork, f.server = h, h.acked(), s
	s.hist = f
}

// rebase begins a history over a device of which not everything is known: an unordered
// one, or one with doubts that no check can settle.
func (w *world) rebase(s *session, h *history, img []byte) {
	f := w.addHistory(bytes.NewReader(img), nil)
	f.server, f.parent, f.fork = s, h, h.acked()
	s.hist = f
}

// aroundLog notes that writes go around the log (emergency mode): the disk is no prefix as
// long as that lasts.
func (w *world) aroundLog(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.hist.direct, w.lossy = true, true
}

// reader is a tree.
type reader interface {
	Get(path string) (string, bool)
}

// position is where a node's disk stands, if it says that it is a version of the device.
func position(t reader, node string) (rep symlinktree.Replay, ok bool) {
	get := func(p string) string { v, _ := t.Get(p); return v }
	if get(res.DataPath(node)) == "" || symlinktree.LeadingInt(get(res.SyncStatusPath(node))) < size {
		return rep, false
	}
	rep, err := symlinktree.ParseReplay(get(res.ReplayPath(node)))
	if err != nil {
		return rep, false
	}
	if v := get(res.SyncPosPath(node)); v != "" {
		end, err := symlinktree.ParseReplay(v)
		end.Min, end.Len = end.End(), 0
		if err != nil || symlinktree.CompareReplay(rep, end) < 0 {
			return rep, false
		}
	}
	return rep, true
}

// checkDisk is P4: the disk with the announced zone repaired is a prefix of a history.
func (w *world) checkDisk(n *node, fs *crashfs.FS, t reader, when string) {
	rep, ok := position(t, n.name)
	if !ok || w.unordered(n) {
		return
	}
	img, err := repaired(fs, rep)
	if err != nil {
		w.violation("P4", "%s, %s: the zone %v cannot be repaired: %v", n.name, when, rep, err)
		return
	}
	var first *oracle.Verdict
	for _, h := range w.histories() {
		v := h.judge(img, oracle.OrderOnly)
		if v.OK() {
			return
		}
		if first == nil || v.Total < first.Total {
			first = v
		}
	}
	w.violation("P4", "%s, %s: the disk at %v is no prefix of any history: %v", n.name, when, rep, first.Err())
}

// unordered: the node's disk has been written around the log, and no new life of the device has begun.
func (w *world) unordered(n *node) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.history {
		if h.direct && h.server != nil && h.server.n == n {
			return true
		}
	}
	return false
}

// repaired is the disk with the records of the dirty zone applied, as a restart would.
func repaired(fs *crashfs.FS, rep symlinktree.Replay) ([]byte, error) {
	disk, err := fs.ReadFile(diskPath)
	if err != nil || rep.Len == 0 {
		return disk, err
	}
	name := logfile.Name{Seq: rep.Seq, Host: rep.Origin}.String()
	log, err := fs.ReadFile(root + "/" + res.Dir() + "/" + name)
	if err != nil {
		return nil, err
	}
	img := logoracle.NewImage(bytes.NewReader(disk), size)
	err = logoracle.Parse(bytes.NewReader(log), name, rep.End(), logoracle.Options{Size: size}, func(r *logoracle.Record) error {
		if r.Offset < rep.Min {
			return nil
		}
		switch r.Code {
		case logoracle.CodeWrite:
			_, err := img.WriteAt(r.Data, r.Pos)
			return err
		case logoracle.CodeDiscard, logoracle.CodeZeroes:
			return img.Zero(r.Pos, r.Range)
		}
		return nil
	})
	out := make([]byte, size)
	if err == nil {
		_, err = img.ReadAt(out, 0)
	}
	return out, err
}

// logs reads the logfiles of a node.
func logs(fs *crashfs.FS) map[logfile.Name][]byte {
	out := map[logfile.Name][]byte{}
	dir := root + "/" + res.Dir()
	list, err := fs.ReadDir(dir)
	if err != nil {
		return out
	}
	for _, e := range list {
		name, err := logfile.ParseName(e.Name())
		if err != nil || e.Type()&os.ModeType != 0 {
			continue
		}
		if p, err := fs.ReadFile(path.Join(dir, e.Name())); err == nil {
			out[name] = p
		}
	}
	return out
}

// checkLogs is P5 and P7: what a node has of another one's log, that one has as well, byte for byte.
func (w *world) checkLogs(when string) {
	all := make([]map[logfile.Name][]byte, len(w.nodes))
	for i, n := range w.nodes {
		all[i] = logs(n.files())
	}
	for i, n := range w.nodes {
		for name, copied := range all[i] {
			if name.Host == n.name {
				continue
			}
			author := strings.Index("abcd", name.Host)
			own, ok := all[author][name]
			if !ok {
				continue
			}
			if len(copied) > len(own) {
				w.violation("P5", "%s, %s: it has %d bytes of %s, but its author only %d", n.name, when, len(copied), name, len(own))
			} else if k := differ(copied[:min(len(copied), n.vouched(name))], own); k >= 0 {
				w.violation("P7", "%s, %s: its copy of %s (%d bytes, it vouches for %d) differs at %d from its author's (%d bytes)", n.name, when, name, len(copied), n.vouched(name), k, len(own))
			}
		}
	}
}

// vouched is how much of its copy of a log the node has replayed. Behind that a power cut may have left
// anything, which replay finds and fetches again.
func (n *node) vouched(name logfile.Name) int {
	rep, err := symlinktree.ParseReplay(n.get(res.ReplayPath(n.name)))
	v, verr := symlinktree.ParseVersion(n.get(res.VersionPath(name.Seq, n.name)))
	switch {
	case err != nil, verr != nil, v.Seq != name.Seq, v.Origin != name.Host:
		return 0
	case rep.Seq == name.Seq && rep.Origin == name.Host:
		return int(rep.End())
	case name.Seq < rep.Seq:
		return int(v.Pos)
	}
	return 0
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// check looks at everything, while nobody can go on.
func (w *world) check(when string) {
	if w.failed() {
		return
	}
	w.stat(func(s *stats) { s.checks++ })
	serving := map[*history]*session{}
	for _, x := range w.sessions {
		if !x.serves() {
			continue
		}
		if y := serving[x.hist]; y != nil && y.n != x.n {
			w.violation("one-primary", "%s: %s and %s serve history %d", when, y.n.name, x.n.name, x.hist.id)
		}
		serving[x.hist] = x
	}
	if len(serving) > 1 && !w.forced {
		w.violation("one-primary", "%s: %d devices without a forced failover", when, len(serving))
	}
	for _, n := range w.nodes {
		if s := n.snapshot(); s != nil {
			w.links.look(n, s, when)
			if !n.files().Frozen() {
				w.checkDisk(n, n.files(), s, when)
			}
		}
	}
	w.checkLogs(when)
}

// checkImage judges what a power cut has left of n.
func (w *world) checkImage(n *node, fs *crashfs.FS) {
	t, err := symlinktree.Open(root, symlinktree.Options{FS: fs, Node: n.name, ReadOnly: true})
	if err != nil {
		w.violation("start", "the tree of %s cannot be read after a crash: %v", n.name, err)
		return
	}
	s := t.Snapshot()
	w.links.reset(n, s)
	w.checkDisk(n, fs, s, "after its crash")
}

func (w *world) count() stats {
	st := stats{took: w.now(), dials: w.net.Dials()}
	for _, s := range w.sessions {
		st.writes += s.ops
		st.acked += s.acked
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	st.checks, st.crashes, st.commands, st.refused = w.tally.checks, w.tally.crashes, w.tally.commands, w.tally.refused
	return st
}

func (w *world) stat(f func(s *stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.tally)
}

func (w *world) String() string { return fmt.Sprintf("seed %d", w.s.seed) }
