package sweep

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/device"
	"mars/device/nbd"
	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

// workload is a kind of load; its numbers are chances of 100.
type workload struct {
	name              string
	size              int64 // of the device
	longest           int64 // request, bytes
	area              int64 // requests start below it; 0: anywhere
	batch             int   // most requests in one Submit
	zero, trim, fua   int
	rotate, flush     int // after each batch
	push, publish     int
	batches           int
	secondary         bool
	pause             int // secondary
	maxRecord         int
	indexLimit        int
	wbBytes           int64
	zeroesAsWrites    bool
	recordSectorsZero bool // the log may cut a zeroing
}

func (w *workload) tune(mode device.Durability) func(*device.EngineConfig) {
	return func(c *device.EngineConfig) {
		c.Durability, c.MaxRecord, c.IndexLimit, c.ZeroesAsWrites = mode, w.maxRecord, w.indexLimit, w.zeroesAsWrites
		if w.wbBytes > 0 {
			c.WritebackBytes = w.wbBytes
		}
	}
}

const kib = 1 << 10

var workloads = []*workload{
	{name: "mixed", size: 48 * kib, longest: 6 * kib, batch: 3, zero: 5, trim: 5, fua: 15, rotate: 12, flush: 25, push: 15, publish: 20, batches: 30},
	{name: "overlap", size: 32 * kib, longest: 4 * kib, area: 6 * kib, batch: 2, zero: 8, trim: 8, fua: 10, rotate: 10, flush: 20, push: 20, publish: 15, batches: 34},
	{name: "zeroes", size: 48 * kib, longest: 16 * kib, batch: 2, zero: 30, trim: 30, fua: 10, rotate: 12, flush: 20, push: 20, publish: 15, batches: 30},
	{name: "rotate", size: 32 * kib, longest: 2 * kib, batch: 2, zero: 5, trim: 5, fua: 10, rotate: 45, flush: 15, push: 12, publish: 30, batches: 24},
	{name: "large", size: 64 * kib, longest: 24 * kib, batch: 2, zero: 5, trim: 5, fua: 15, rotate: 15, flush: 20, push: 15, publish: 15, batches: 16, maxRecord: 4096},
	{name: "crowded", size: 48 * kib, longest: 3 * kib, batch: 3, zero: 10, trim: 10, fua: 10, rotate: 15, flush: 15, push: 5, publish: 15, batches: 30, indexLimit: 64, wbBytes: 8 * kib, zeroesAsWrites: true, recordSectorsZero: true},
	{name: "replay", size: 48 * kib, longest: 6 * kib, batch: 2, zero: 8, trim: 8, rotate: 15, push: 20, pause: 15, batches: 24, secondary: true},
	{name: "replay-crowded", size: 48 * kib, longest: 3 * kib, batch: 3, zero: 10, trim: 10, rotate: 15, push: 5, pause: 10, batches: 26, secondary: true, indexLimit: 64, wbBytes: 8 * kib},
}

// run is one execution of a workload.
type run struct {
	seed uint64
	w    *workload
	mode device.Durability
	meta crashfs.Metadata

	rng  *rand.Rand
	fs   *crashfs.FS
	s    *sched
	n    *node
	j    *oracle.Journal
	ctx  context.Context
	base []byte
	acks atomic.Int64
	cur  atomic.Int64 // the log that is written
	next int          // the last one that a rotation was drawn for

	logs   map[int][]byte // content of all logs, kept outside
	source [][]byte       // secondary: the logs to be fetched
	images map[logfile.Position]uint64
	final  logfile.Position
	paused []pausedAt

	cuts   int
	every  uint64       // cut at one instant of so many only
	keep   func(*state) // told of every state that a cut may leave
	mutant *mutant
}

// pausedAt is what the live disk was while replay was off.
type pausedAt struct {
	pos  logfile.Position
	disk uint64
}

func (r *run) String() string {
	return fmt.Sprintf("%s/%v/%s", r.w.name, r.mode, metaNames[r.meta])
}

var metaNames = map[crashfs.Metadata]string{crashfs.Unordered: "unordered", crashfs.Journaled: "journaled"}

func newRun(seed uint64, w *workload, mode device.Durability, meta crashfs.Metadata) *run {
	r := &run{seed: seed, w: w, mode: mode, meta: meta, logs: map[int][]byte{}, images: map[logfile.Position]uint64{}}
	r.rng = rand.New(rand.NewPCG(seed, label(r.String())))
	return r
}

// label turns a name into a number that is the same in every process.
func label(s string) (n uint64) {
	for _, c := range []byte(s) {
		n = n*1099511628211 + uint64(c) + 1
	}
	return n
}

// fixed is the seed of all hashes of this process.
var fixed = maphash.MakeSeed()

func hashOf(p []byte) uint64 { return maphash.Bytes(fixed, p) }

// execute runs the workload to its end. It is called in a bubble.
func (r *run) execute(t testing.TB) {
	t.Helper()
	r.base = make([]byte, r.w.size)
	img := logoracle.NewImage(nil, r.w.size)
	must(t, oracle.StampInitial(img, r.seed, r.w.size/oracle.SectorSize))
	_, err := img.ReadAt(r.base, 0)
	must(t, err)
	r.j, err = oracle.NewJournal(oracle.JournalConfig{Run: r.seed, Branch: 1, Size: r.w.size, Initial: r.w.size / oracle.SectorSize, TrimZeroes: true})
	must(t, err)
	r.fs, err = newDisk(r.seed, r.meta, r.base)
	must(t, err)
	if r.w.secondary {
		r.makeSource(t)
	}
	var layer vfs.FS = r.fs
	if r.mutant != nil {
		layer = r.mutant.wrap(r.fs)
	}
	r.n, err = open(layer, r.w.tune(r.mode))
	must(t, err)
	if r.mutant != nil {
		r.n.onDirty = r.mutant.dirty
	}
	r.s = newSched(r.fs)
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithCancel(context.Background())
	defer func() {
		cancel()
		r.s.free()
		r.n.kill(r.fs)
		synctest.Wait()
	}()
	if r.w.secondary {
		must(t, r.n.e.SetReplay(r.ctx, true))
		r.driveSecondary(t)
	} else {
		r.drivePrimary(t)
	}
	if r.mutant == nil {
		r.s.finish(t)
		if err := r.s.failed(); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
	}
	r.collect(t)
}

// step is one decision: an operation that waits goes on, or the next thing begins. It
// returns false when neither is possible. begin is nil when the script is at an end.
func (r *run) step(parked []*parkedOp, begin func() bool) bool {
	n := 2 * len(parked)
	if begin != nil {
		n++
	}
	for n > 0 {
		k := r.rng.IntN(n)
		if k < 2*len(parked) {
			r.s.release(parked[k/2])
			return true
		}
		if begin() {
			return true
		}
		n, begin = 2*len(parked), nil
	}
	return false
}

// drive takes the steps of a script until it is done and nobody runs any more.
func (r *run) drive(t testing.TB, next func() (begin func() bool)) {
	t.Helper()
	for idle := 0; ; {
		parked := r.s.settle()
		r.cut(parked)
		if r.s.running("rotate") && r.s.running("client") {
			parked = slices.DeleteFunc(parked, createsLog)
		}
		begin := next()
		if r.step(parked, begin) {
			idle = 0
			continue
		}
		if begin == nil && !r.s.anybody() {
			return
		}
		if idle++; idle > 1000 {
			if r.mutant != nil {
				return // it may well get stuck
			}
			t.Fatalf("%v: nobody can go on; thread error: %v", r, r.s.failed())
		}
		time.Sleep(10 * time.Millisecond) // of the bubble: somebody waits for a timer
	}
}

// The locks of the engine are invisible to the bubble, so that nobody may come to wait
// for one whose owner is parked. A rotation excludes everything that uses the log for
// the last of its steps. So writes go between its first sync and the creation of the
// new log, which waits for them, and FLUSHes not at all.

func createsLog(p *parkedOp) bool {
	return p.op.Kind == crashfs.OpCreate && strings.HasPrefix(path.Base(p.op.Path), "log-")
}

func (r *run) mayWrite() bool {
	return !r.s.running("rotate") || r.w.indexLimit == 0 && slices.ContainsFunc(r.s.settle(), createsLog)
}

// drivePrimary is the script of a primary.
func (r *run) drivePrimary(t testing.TB) {
	e := r.n.e
	r.cur.Store(1)
	r.next = 1
	var todo []func() bool // what has been drawn and not begun
	drawn, stopped := 0, false
	todo = append(todo, r.thread("client", nil, func() error {
		if _, _, err := e.Recover(r.ctx, false); err != nil {
			return err
		}
		return e.StartLogging(logName(1))
	}))
	r.drive(t, func() func() bool {
		if len(todo) == 0 {
			switch {
			case drawn < r.w.batches:
				drawn++
				todo = r.drawPrimary()
			case !stopped:
				stopped = true
				todo = append(todo, r.thread("client", []string{"flush", "rotate"}, func() error { return e.StopLogging(r.ctx) }))
			default:
				return nil
			}
		}
		return func() bool {
			if !todo[0]() {
				return false
			}
			todo = todo[1:]
			return true
		}
	})
}

// thread begins f as that thread, unless it or one of the others runs.
func (r *run) thread(name string, others []string, f func() error) func() bool {
	return func() bool {
		if r.s.running(append(others, name)...) {
			return false
		}
		r.s.start(name, f)
		return true
	}
}

func (r *run) chance(percent int) bool { return r.rng.IntN(100) < percent }

func (r *run) drawPrimary() (todo []func() bool) {
	reqs := r.draw()
	todo = append(todo, func() bool {
		return r.mayWrite() && r.thread("client", nil, func() error { return r.submit(reqs) })()
	})
	if r.chance(r.w.flush) {
		// Both forms of the backend.
		now := r.chance(50)
		todo = append(todo, r.thread("flush", []string{"rotate"}, func() error { return r.flush(now) }))
	}
	if r.chance(r.w.rotate) {
		r.next++
		next := logName(r.next)
		todo = append(todo, r.thread("rotate", []string{"flush", "client"}, func() error {
			err := r.n.e.Rotate(next)
			r.cur.Store(int64(next.Seq))
			return err
		}))
	}
	if r.chance(r.w.publish) {
		todo = append(todo, r.thread("publish", nil, func() error {
			log := logName(int(r.cur.Load()))
			if err := r.n.publish(log); err != nil && !errors.Is(err, errNotThere) {
				return err
			}
			return nil
		}))
	}
	return append(todo, r.drawBoth()...)
}

// drawBoth is what goes on on either side.
func (r *run) drawBoth() (todo []func() bool) {
	if r.chance(r.w.push) {
		todo = append(todo, r.thread("writeback", nil, func() error { return r.n.e.WriteBack(r.ctx) }))
	}
	if r.chance(30) {
		todo = append(todo, func() bool {
			seq := r.n.unneeded()
			if seq == 0 {
				return true
			}
			return r.thread("delete", nil, func() error {
				p, err := r.fs.ReadFile(resDir + "/" + logName(seq).String())
				if err != nil {
					return err
				}
				r.logs[seq] = p
				return r.n.deleteLog(seq)
			})()
		})
	}
	return todo
}

// request is one request of a batch.
type request struct {
	kind   oracle.Kind
	op     nbd.Op
	number uint64
}

// draw makes a batch whose requests do not overlap each other.
func (r *run) draw() (reqs []request) {
	w := r.w
	for range 1 + r.rng.IntN(w.batch) {
		// Each power of two is equally likely.
		n := w.longest >> r.rng.IntN(4)
		n = oracle.SectorSize * (1 + r.rng.Int64N(max(1, n/oracle.SectorSize)))
		room := w.size - n
		if w.area > 0 {
			room = min(room, w.area-oracle.SectorSize)
		}
		q := request{kind: oracle.KindWrite, op: nbd.Op{Off: oracle.SectorSize * r.rng.Int64N(room/oracle.SectorSize+1), Len: n}}
		switch k := r.rng.IntN(100); {
		case k < w.zero:
			q.kind, q.op.Kind, q.op.NoHole = oracle.KindZero, nbd.OpZeroes, r.chance(50)
		case k < w.zero+w.trim:
			q.kind, q.op.Kind = oracle.KindTrim, nbd.OpTrim
		case k < w.zero+w.trim+w.fua:
			q.kind, q.op.FUA = oracle.KindFUA, true
		}
		overlaps := false
		for _, o := range reqs {
			overlaps = overlaps || (q.op.Off < o.op.Off+o.op.Len && o.op.Off < q.op.Off+q.op.Len)
		}
		if !overlaps {
			reqs = append(reqs, q)
		}
	}
	return reqs
}

// announce enters the requests into the journal and fills in their data.
func (r *run) announce(reqs []request) (ops []nbd.Op, fua bool, err error) {
	for i := range reqs {
		q := &reqs[i]
		if q.number, err = r.j.Submit(q.kind, q.op.Off, q.op.Len, 0); err != nil {
			return nil, false, err
		}
		if q.op.Kind == nbd.OpWrite {
			q.op.Data = make([]byte, q.op.Len)
			oracle.FillRequest(q.op.Data, r.seed, 1, q.number)
		}
		fua = fua || q.op.FUA
		ops = append(ops, q.op)
	}
	return ops, fua, nil
}

func (r *run) complete(number uint64) error {
	r.acks.Add(1)
	return r.j.Complete(number, nil)
}

// submit is what the NBD server does with a batch.
func (r *run) submit(reqs []request) error {
	ops, fua, err := r.announce(reqs)
	if err != nil {
		return err
	}
	if err := r.n.e.Submit(ops); err != nil {
		return err
	}
	for _, plain := range []bool{true, false} {
		if !plain && fua {
			if _, err := r.n.e.FlushNow(); err != nil {
				return err
			}
		}
		for _, q := range reqs {
			if q.op.FUA != plain {
				if err := r.complete(q.number); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *run) flush(now bool) error {
	number, err := r.j.Submit(oracle.KindFlush, 0, 0, 1)
	if err != nil {
		return err
	}
	if now {
		_, err = r.n.e.FlushNow()
	} else {
		done := make(chan error, 1)
		r.n.e.Backend().Sync(func(err error) { done <- err })
		err = <-done
	}
	if err != nil {
		return err
	}
	return r.complete(number)
}

// makeSource writes the logs that a secondary fetches.
func (r *run) makeSource(t testing.TB) {
	fs := crashfs.New(r.seed)
	must(t, fs.MkdirAll("/src"))
	for seq := 1; len(r.source) < 1+r.w.batches*r.w.rotate/100; seq++ {
		w, err := logfile.Create("/src", logName(seq), logfile.WriterOptions{FS: fs, MaxRecord: r.w.maxRecord})
		must(t, err)
		for range r.w.batches / (1 + r.w.batches*r.w.rotate/100) {
			reqs := r.draw()
			ops, _, err := r.announce(reqs)
			must(t, err)
			var entries []logfile.Entry
			for _, op := range ops {
				switch {
				case op.Kind == nbd.OpWrite:
					entries = append(entries, logfile.Entry{Pos: op.Off, Code: logfile.CodeWrite, Data: op.Data})
				case op.NoHole:
					entries = append(entries, logfile.Entry{Pos: op.Off, Code: logfile.CodeZeroes, Data: logfile.RangePayload(op.Len)})
				default:
					entries = append(entries, logfile.Entry{Pos: op.Off, Code: logfile.CodeDiscard, Data: logfile.RangePayload(op.Len)})
				}
			}
			_, err = w.Append(entries)
			must(t, err)
			for _, q := range reqs {
				must(t, r.complete(q.number))
			}
		}
		must(t, w.Close())
		p, err := fs.ReadFile("/src/" + logName(seq).String())
		must(t, err)
		r.source = append(r.source, p)
		r.logs[seq] = p
	}
}

// driveSecondary is the script of a secondary: pieces of the logs arrive, replay is
// switched off and on, it goes from log to log.
func (r *run) driveSecondary(t testing.TB) {
	e := r.n.e
	var todo []func() bool
	seq, off, on := 1, 0, true
	switchReplay := func(to bool) {
		on = to
		todo = append(todo, r.thread("switch", []string{"next", "first"}, func() error {
			if err := e.SetReplay(r.ctx, to); err != nil || to {
				return err
			}
			told, _ := r.n.promises()
			disk, err := r.fs.ReadFile(diskPath)
			r.paused = append(r.paused, pausedAt{told.pos, hashOf(disk)})
			return err
		}))
	}
	r.drive(t, func() func() bool {
		if len(todo) == 0 {
			data := r.source[seq-1]
			switch {
			case off < len(data):
				n := min(1+r.rng.IntN(6*kib), len(data)-off)
				log, at, piece := logName(seq), int64(off), data[off:off+n]
				off += n
				// The first piece makes the log and syncs it, and so does replay if it looks
				// meanwhile: see mayWrite.
				name := "feed"
				if at == 0 {
					name = "first"
				}
				todo = append(todo, r.thread(name, []string{"feed", "first", "switch", "next"}, func() error { return feed(r.n, log, at, piece) }))
				if r.chance(r.w.pause) {
					switchReplay(!on)
				}
			case !on:
				switchReplay(true)
			case seq < len(r.source):
				seq, off = seq+1, 0
				cur, next := logfile.Position{Log: logName(seq - 1), Offset: int64(len(data))}, logName(seq)
				todo = append(todo, func() bool {
					if r.s.running("feed", "first") || e.Status().IngestEnd != cur {
						return false
					}
					r.n.chain.Seal(cur.Log)
					return r.thread("next", []string{"switch"}, func() error { return e.NextLog(next) })()
				})
			default:
				return nil
			}
			todo = append(todo, r.drawBoth()...)
		}
		return func() bool {
			if !todo[0]() {
				return false
			}
			todo = todo[1:]
			return true
		}
	})
}

// feed is what the fetch of a log does with a piece.
func feed(n *node, log logfile.Name, off int64, p []byte) error {
	if err := n.chain.AppendRaw(log, off, p); err != nil {
		return err
	}
	if _, err := n.chain.SyncRaw(log); err != nil {
		return err
	}
	if n.e.Status().Current == log {
		return n.e.Follow(log)
	}
	return nil
}

// collect applies all logs to the base and notes what the device was at each position.
func (r *run) collect(t testing.TB) {
	img := logoracle.NewImage(nil, r.w.size)
	_, err := img.WriteAt(r.base, 0)
	must(t, err)
	p := make([]byte, r.w.size)
	note := func(pos logfile.Position) {
		_, err := img.ReadAt(p, 0)
		must(t, err)
		r.images[pos] = hashOf(p)
		r.final = pos
	}
	for seq := 1; ; seq++ {
		log, ok := r.logs[seq]
		if !ok {
			if log, err = r.fs.ReadFile(resDir + "/" + logName(seq).String()); err != nil {
				break
			}
			r.logs[seq] = log
		}
		note(logfile.Position{Log: logName(seq)})
		err := logoracle.Parse(bytesAt(log), logName(seq).String(), int64(len(log)), logoracle.Options{Sealed: true, Size: r.w.size}, func(rec *logoracle.Record) error {
			switch rec.Code {
			case logoracle.CodeWrite:
				if _, err := img.WriteAt(rec.Data, rec.Pos); err != nil {
					return err
				}
			case logoracle.CodeDiscard, logoracle.CodeZeroes:
				if err := img.Zero(rec.Pos, rec.Range); err != nil {
					return err
				}
			}
			note(logfile.Position{Log: logName(seq), Offset: rec.End})
			return nil
		})
		if err != nil && r.mutant == nil {
			t.Fatalf("%v: %v", r, err)
		}
	}
	for _, x := range r.paused {
		if want, ok := r.images[x.pos]; !ok || want != x.disk {
			t.Fatalf("%v: replay is off at %v, but the disk is not the log up to there", r, x.pos)
		}
	}
}
