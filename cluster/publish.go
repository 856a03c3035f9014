package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"syscall"
	"time"

	"mars/device"
	"mars/logfile"
	"mars/symlinktree"
)

// publish makes what is true visible as links. Only what changed is written;
// nothing at all once this node is no longer a member (P7).
func (w *worker) publish(s *symlinktree.Snapshot, f Facts, said map[string]string) {
	node := w.n.cfg.Node
	if _, member := s.Get(w.r.DataPath(node)); !member {
		w.messages = make(map[string]string)
		w.cleanUp(s)
		return
	}
	put := func(name, value string) { w.n.put(w.r.ActualPath(node, name), value) }
	flag := func(name string, on bool) { put(name, strconv.Itoa(b2i(on))) }
	_, eng := w.shared.get()
	var st device.Status
	if eng != nil {
		st = eng.Status()
	}
	exported := w.export != nil
	flag(symlinktree.LogRecovered, w.ownEndKnown(s))
	flag("is-attached", eng != nil)
	flag("is-primary", exported || f.Mode == ModeLogging)
	flag("is-replaying", f.Mode == ModeReplaying)
	flag("is-copying", w.fetch != nil)
	flag("is-syncing", w.syncing != nil)
	flag("has-emergency", f.Space.Emergency)
	flag("is-emergency", st.Mode == device.Direct || st.Mode == device.Ceasing)
	open, flying := 0, 0
	if exported {
		open, flying = w.export.OpenCount(), w.export.InFlight()
	}
	put("open-count", strconv.Itoa(open))
	flag("if-on", exported)
	if exported {
		put("device-size", strconv.FormatInt(st.Size, 10))
		put("if-flying", strconv.Itoa(flying))
		put("if-state", strconv.Itoa(errno(st.LogErr)))
	}
	put("replay-code", replayCode(w.stopped(st), f))
	put(symlinktree.LogDamage, damageLink(f.Damage))
	put("disk-error", strconv.Itoa(errno(st.DiskErr)))
	w.publishConfirm(s, put, said, st)
	w.publishVersions(f, st)
	w.publishRates(put, st)
	w.publishMessages(put, said, st)
}

// publishVersions renews the version link of the log that this node is in. A
// transition publishes its own, in its own order.
func (w *worker) publishVersions(f Facts, st device.Status) {
	if w.busy != "" || f.Mode == ModeDetached || st.Current.IsZero() || st.Mode == device.Direct || st.Mode == device.Ceasing {
		return
	}
	cur := st.Current
	if cur.Host == w.n.cfg.Node && f.Mode != ModeLogging && !w.recovered {
		return // the real end of the own log is not known yet
	}
	size, ok := f.log(cur)
	if f.Mode == ModeLogging {
		size.Size, ok = st.LogDurable, true
	}
	if !ok || !w.progress.due(cur, size.Size, w.n.cfg.Publish, w.kick) {
		return
	}
	if err := w.publishVersion(cur, size.Size); err != nil {
		w.log.Error("cannot publish the version link", keyLog, cur.String(), keyErr, err)
	}
}

// progress paces the version link: at once when the log changes, else a few times
// a second.
type progress struct {
	log logfile.Name
	pos int64
	at  time.Time
}

func (p *progress) due(log logfile.Name, pos int64, every time.Duration, wake func()) bool {
	if p.log == log && p.pos == pos {
		return true // costs nothing, and mends a link that somebody else changed
	}
	if wait := every - time.Since(p.at); p.log == log && wait > 0 {
		time.AfterFunc(wait, wake)
		return false
	}
	p.log, p.pos, p.at = log, pos, time.Now()
	return true
}

// ownEndKnown is false while this node has a log of its own whose real end it has not
// looked for since it started: its links may say too little.
func (w *worker) ownEndKnown(s *symlinktree.Snapshot) bool {
	in := readIntent(s, w.r, w.n.cfg.Node)
	return w.recovered || in.pos.Origin != w.n.cfg.Node && readVersions(s, w.r).lastOf(w.n.cfg.Node).Log.Seq <= in.pos.Seq
}

// stopped is why replay or recovery stands still.
func (w *worker) stopped(st device.Status) error {
	if w.damage != nil {
		return errors.Join(w.verdict, syscall.EBADMSG)
	}
	return st.ReplayErr
}

// damageLink is the place where the own log is damaged and how many bytes would be
// lost; 0 if it is sound.
func damageLink(d *Damage) string {
	if d == nil || d.At.Log.IsZero() {
		return "0"
	}
	return fmt.Sprintf("%s,%d", d.At, d.Lost)
}

// replayCode is the original's: 0 running, 1 finished, 2 incomplete, <0 -errno with
// the MARS error and a repeated byte behind it (reference symlink-tree 1.5).
func replayCode(stopped error, f Facts) string {
	var corrupt *logfile.CorruptError
	var torn *logfile.TornError
	switch {
	case errors.As(stopped, &corrupt):
		return defectCode(&corrupt.Defect)
	case errors.As(stopped, &torn) && f.Damage != nil:
		return defectCode(&torn.Defect)
	case errors.As(stopped, &torn):
		return "2"
	case errors.Is(stopped, fs.ErrNotExist):
		return strconv.Itoa(-int(syscall.ENOENT))
	case stopped != nil:
		return strconv.Itoa(errno(stopped))
	}
	if f.Mode == ModeReplaying && f.Ingested < f.size(f.Current) {
		return "0"
	}
	return "1"
}

// defectCode names a defect; what was begun and not ended is incomplete.
func defectCode(d *logfile.Defect) string {
	code := d.Errno
	if code == 0 || code == int(syscall.EAGAIN) {
		code = int(syscall.ERESTART)
	}
	text := strconv.Itoa(-code)
	if d.MarsCode != 0 || d.RepeatedByte >= 0 {
		text += "," + strconv.Itoa(d.MarsCode)
	}
	if d.RepeatedByte >= 0 {
		text += fmt.Sprintf(",0x%02x", d.RepeatedByte)
	}
	return text
}

// errno is the negative errno of an error, as disk-error and if-state show it.
func errno(err error) int {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return -int(e)
	}
	return -int(syscall.EIO)
}

// publishMessages writes what is said now and turns to OK what no longer is.
func (w *worker) publishMessages(put func(name, value string), said map[string]string, st device.Status) {
	if st.DiskErr != nil {
		said[msgDisk] = fmt.Sprintf("disk of %s on %s: %v", w.r, w.n.cfg.Node, st.DiskErr)
	}
	if st.LogErr != nil {
		said["err-log"] = fmt.Sprintf("log of %s on %s: %v", w.r, w.n.cfg.Node, st.LogErr)
	}
	if st.JournalErr != nil {
		said["err-links"] = fmt.Sprintf("position of %s on %s cannot be written: %v", w.r, w.n.cfg.Node, st.JournalErr)
	}
	if _, ok := w.messages[msgReplayStop]; !ok {
		w.messages[msgReplayStop] = ""
		put("msg-"+msgReplayStop, "OK") // marsadm warns when it is missing
	}
	for key, text := range said {
		if w.messages[key] != text {
			w.messages[key] = text
			put("msg-"+key, w.n.message(text))
		}
	}
	for key, text := range w.messages {
		if _, ok := said[key]; !ok && text != "" {
			w.messages[key] = ""
			put("msg-"+key, "OK")
		}
	}
}

// rates turns counters into the original's per-second links.
type rates struct {
	at    time.Time
	last  device.Counters
	fetch int64
}

// publishRates writes operations/s and KiB/s; they fall to 0 when nothing moves.
func (w *worker) publishRates(put func(name, value string), st device.Status) {
	r := &w.rates
	now := time.Now()
	d := now.Sub(r.at)
	if d < time.Second {
		return
	}
	if eng := w.engine(); eng != nil {
		// Volumes grow while they are open.
		w.n.put(w.r.ActSizePath(w.n.cfg.Node), strconv.FormatInt(eng.DiskSize(), 10))
	}
	c, l := st.Counters, r.last
	fetched := st.LogDurable
	per := func(n int64) int64 { return int64(float64(max(0, n)) / d.Seconds()) }
	ops := map[string]int64{
		"if":     per(c.ReadOps + c.WriteOps - l.ReadOps - l.WriteOps),
		"replay": per(c.ReplayOps - l.ReplayOps),
		"file":   0, "sync": 0,
	}
	kib := map[string]int64{
		"if":     per(c.ReadBytes+c.WriteBytes-l.ReadBytes-l.WriteBytes) >> 10,
		"replay": per(c.ReplayBytes-l.ReplayBytes) >> 10,
		"file":   0,
		"sync":   per(c.SyncSame+c.SyncDifferent-l.SyncSame-l.SyncDifferent) >> 10,
	}
	if w.fetch != nil {
		kib["file"] = per(fetched-r.fetch) >> 10
	}
	for k, v := range ops {
		put("ops-"+k+"_rate", strconv.FormatInt(v, 10))
	}
	for k, v := range kib {
		put("amount-"+k+"_rate", strconv.FormatInt(v, 10))
	}
	r.at, r.last, r.fetch = now, c, fetched
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
