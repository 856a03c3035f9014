package sweep

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"time"

	"mars/device"
	"mars/device/nbd"
	"mars/internal/oracle"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

var errNotThere = fs.ErrNotExist

func bytesAt(p []byte) io.ReaderAt { return bytes.NewReader(p) }

// variants is how many states are derived from one instant by each policy.
var variants = map[crashfs.Policy]int{
	crashfs.LoseAll: 1, crashfs.KeepAll: 1, crashfs.Subset: 4, crashfs.AllButOne: 2,
	crashfs.NewestOnly: 1, crashfs.TornLast: 3, crashfs.Prefix: 2,
}

// state is what a power cut (or the death of the process) left, and what had been
// promised by then.
type state struct {
	fs      *crashfs.FS
	cut     int    // number of the instant in its run
	op      string // what would have come next
	policy  crashfs.Policy
	variant int
	kill    bool

	hash      uint64 // of what is on the file system
	tick      uint64
	acks      int64
	told      replayPos
	published logfile.Position
}

func (s *state) String() string {
	if s.kill {
		return fmt.Sprintf("%d/kill/0", s.cut)
	}
	return fmt.Sprintf("%d/%v/%d", s.cut, s.policy, s.variant)
}

// cut derives the states that the power going now may leave.
func (r *run) cut(parked []*parkedOp) {
	if r.keep == nil {
		return
	}
	if r.cuts++; r.every > 1 && (uint64(r.cuts)+r.seed)%r.every != 0 {
		return
	}
	next := "nothing"
	if len(parked) > 0 {
		next = fmt.Sprintf("%s %s and %d others", parked[0].op.Kind, stable(parked[0].op.Path), len(parked)-1)
	}
	told, published := r.n.promises()
	tick, acks := r.j.Tick(), r.acks.Load()
	give := func(s state) {
		s.cut, s.op, s.tick, s.acks, s.told, s.published = r.cuts, next, tick, acks, told, published
		s.hash = persisted(s.fs)
		r.keep(&s)
	}
	pending := r.fs.Unsynced()
	for _, p := range crashfs.Policies {
		for v := range variants[p] {
			if pending == 0 && p != crashfs.KeepAll {
				break
			}
			rng := rand.New(rand.NewPCG(r.seed^label(r.String()), uint64(r.cuts)<<16|uint64(p)<<8|uint64(v)))
			give(state{fs: r.fs.Crash(p, rng), policy: p, variant: v})
		}
	}
	give(state{fs: r.fs.KillState(), kill: true})
}

// persisted is a hash of everything on the file system: names, contents, link texts and
// their stamps.
func persisted(fsys *crashfs.FS) uint64 {
	var h maphash.Hash
	h.SetSeed(fixed)
	walk(fsys, "/", &h)
	return h.Sum64()
}

func walk(fsys *crashfs.FS, dir string, h *maphash.Hash) {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		h.WriteString(err.Error())
		return
	}
	for _, e := range list {
		full := path.Join(dir, e.Name())
		h.WriteString(stable(full))
		h.WriteByte(0)
		switch {
		case e.IsDir():
			walk(fsys, full, h)
		case e.Type()&fs.ModeSymlink != 0:
			text, _ := fsys.Readlink(full)
			h.WriteString(text)
			info, _ := e.Info()
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], uint64(info.ModTime().UnixNano()))
			h.Write(b[:])
		default:
			p, _ := fsys.ReadFile(full)
			h.Write(p)
		}
		h.WriteByte(1)
	}
}

// checker judges the states of one run after its end.
type checker struct {
	*run
	oracle *oracle.Checker
	// recover calls RecoverKnown; a mutant replaces it.
	recover                 func(e *device.Engine, known []logfile.Position) (logfile.Position, int64, error)
	cutsOfRecovery, damaged int
}

func newChecker(r *run) *checker {
	return &checker{run: r, oracle: oracle.NewChecker(r.j), recover: func(e *device.Engine, known []logfile.Position) (logfile.Position, int64, error) {
		return e.RecoverKnown(context.Background(), known, false)
	}}
}

// patience is of the bubble: a wait that cannot end costs nothing.
const patience = time.Hour

func (c *checker) options(s *state) oracle.Options {
	opt := oracle.Options{AsOf: s.tick}
	switch {
	case c.w.secondary:
	case s.kill || c.mode == device.DurabilityAlways:
		opt.Durable = oracle.Always
	case c.mode == device.DurabilityFlush:
		opt.Durable = oracle.Flushed
	}
	if c.w.maxRecord > 0 {
		opt.RecordSectors = int64(c.w.maxRecord) / oracle.SectorSize
		opt.SplitRanges = c.w.recordSectorsZero
	}
	return opt
}

// matches compares a device content with the logs and with what the clients were told.
func (c *checker) matches(s *state, n *node, what string, p []byte, pos logfile.Position, durable bool) error {
	if size, err := n.chain.Size(logName(pos.Log.Seq - 1)); pos.Offset == 0 && pos.Log.Seq > 1 && err == nil {
		// A rotation that the power cut hit: what was written meanwhile was cut off the old log.
		pos = logfile.Position{Log: logName(pos.Log.Seq - 1), Offset: size}
	}
	want, ok := c.images[pos]
	if !ok {
		return fmt.Errorf("%s: %v is no position of the log", what, pos)
	}
	if hashOf(p) != want {
		return fmt.Errorf("%s is not the log up to %v", what, pos)
	}
	opt := c.options(s)
	if !durable {
		opt.Durable = oracle.OrderOnly
	}
	v, err := c.oracle.Check(bytesAt(p), opt)
	if err == nil {
		err = v.Err()
	}
	if err != nil {
		return fmt.Errorf("%s at %v: %w", what, pos, err)
	}
	return nil
}

func before(a, b logfile.Position) bool {
	return a.Log.Seq < b.Log.Seq || a.Log.Seq == b.Log.Seq && a.Offset < b.Offset
}

// check recovers the state in every way there is and says what is wrong.
func (c *checker) check(s *state) error {
	if err := c.checkPrefix(s); err != nil {
		return fmt.Errorf("P4: %w", err)
	}
	if c.w.secondary {
		return c.again(s, 0)
	}
	image, err := c.checkPrimary(s)
	if err != nil {
		return fmt.Errorf("P3: %w", err)
	}
	return c.again(s, hashOf(image))
}

// checkPrefix repairs the announced zone only: after that the disk is exactly the log up
// to the published position, which never went back.
func (c *checker) checkPrefix(s *state) error {
	fsys := s.fs.KillState()
	n, err := open(fsys, c.w.tune(c.mode))
	if err != nil {
		return err
	}
	defer n.kill(fsys)
	found, _ := n.promises()
	if before(found.pos, s.told.pos) {
		return fmt.Errorf("the position went back from %v to %v", s.told.pos, found.pos)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.e.SetReplay(ctx, false); err != nil {
		return fmt.Errorf("repair of the zone %v..%d: %w", found.pos, found.end, err)
	}
	told, _ := n.promises()
	if told.end != told.pos.Offset {
		return fmt.Errorf("after the repair the zone is %v..%d", told.pos, told.end)
	}
	disk, err := fsys.ReadFile(diskPath)
	if err != nil {
		return err
	}
	if err := c.matches(s, n, "the disk", disk, told.pos, false); err != nil {
		return err
	}
	if !c.w.secondary {
		return nil
	}
	return c.catchUp(fsys, n)
}

// catchUp lets a secondary fetch and replay the rest.
func (c *checker) catchUp(fsys *crashfs.FS, n *node) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.e.SetReplay(ctx, true); err != nil {
		return err
	}
	for seq := n.e.Status().Current.Seq; seq <= len(c.source); seq++ {
		data := c.source[seq-1]
		have, err := n.chain.Durable(logName(seq))
		if err != nil && !errors.Is(err, errNotThere) {
			return err
		}
		if err := c.mend(n, seq, have); err != nil {
			return err
		}
		if have, err = n.chain.Durable(logName(seq)); err != nil && !errors.Is(err, errNotThere) {
			return err
		}
		if have < int64(len(data)) {
			if err := feed(n, logName(seq), have, data[have:]); err != nil {
				return err
			}
		}
		end := logfile.Position{Log: logName(seq), Offset: int64(len(data))}
		for tries := 0; n.e.Status().IngestEnd != end; tries++ {
			if tries > 100 {
				return fmt.Errorf("replay does not get to %v: %v at %v", end, n.e.Status().ReplayErr, n.e.Status().IngestEnd)
			}
			time.Sleep(time.Second)
		}
		n.chain.Seal(end.Log)
		if seq < len(c.source) {
			if err := n.e.NextLog(logName(seq + 1)); err != nil {
				return err
			}
		}
	}
	if err := n.e.SetReplay(ctx, false); err != nil {
		return err
	}
	disk, err := fsys.ReadFile(diskPath)
	if err != nil {
		return err
	}
	if hashOf(disk) != c.images[c.final] {
		return errors.New("after the rest of the log the disk is not the end of the log")
	}
	return nil
}

// mend cuts off what the crash damaged in the unsynced part of a fetched log, as the
// fetch does when replay stops there.
func (c *checker) mend(n *node, seq int, have int64) error {
	p := make([]byte, have)
	if have == 0 {
		return nil
	}
	if _, err := n.chain.ReadAt(logName(seq), p, 0); err != nil && err != io.EOF {
		return err
	}
	data := c.source[seq-1]
	good := 0
	for good < len(p) && good < len(data) && p[good] == data[good] {
		good++
	}
	if good == len(p) {
		return nil
	}
	if at := n.e.Status().IngestEnd; at.Log.Seq == seq && at.Offset > int64(good) {
		return fmt.Errorf("replay has passed %d although the log is damaged at %d", at.Offset, good)
	}
	if err := n.chain.Truncate(logName(seq), int64(good)); err != nil {
		return err
	}
	if n.e.Status().Current.Seq == seq {
		return n.e.Follow(logName(seq))
	}
	return nil
}

// checkPrimary does what marsd does with a designated primary: recover, log on, write
// back.
func (c *checker) checkPrimary(s *state) (image []byte, err error) {
	fsys := s.fs.KillState()
	n, err := open(fsys, c.w.tune(c.mode))
	if err != nil {
		return nil, err
	}
	defer n.kill(fsys)
	end, _, err := c.recover(n.e, n.known())
	if err != nil {
		return nil, fmt.Errorf("recovery (known %v): %w", n.known(), err)
	}
	again, torn, err := c.recover(n.e, n.known())
	if err != nil || again != end || torn != 0 {
		return nil, fmt.Errorf("second recovery: %v after %v, %d bytes torn, %w", again, end, torn, err)
	}
	image = make([]byte, c.w.size)
	if err := n.e.ReadAt(image, 0); err != nil {
		return nil, err
	}
	if err := c.matches(s, n, "the device", image, end, true); err != nil {
		return nil, err
	}
	if before(end, s.published) {
		return nil, fmt.Errorf("P5: peers may have %v, the log ends at %v", s.published, end)
	}
	if err := n.e.StartLogging(following(end)); err != nil {
		return nil, err
	}
	extra := nbd.Op{Off: 512, Len: 512, Data: bytes.Repeat([]byte{7}, 512)}
	if err := n.e.Submit([]nbd.Op{extra}); err != nil {
		return nil, err
	}
	if err := n.close(); err != nil {
		return nil, err
	}
	disk, err := fsys.ReadFile(diskPath)
	if err != nil {
		return nil, err
	}
	want := bytes.Clone(image)
	copy(want[512:], extra.Data)
	if !bytes.Equal(disk, want) {
		return nil, errors.New("after the writeback the disk is not the device")
	}
	return image, nil
}

// following is the log that a primary goes on with.
func following(end logfile.Position) logfile.Name {
	if end.Offset == 0 {
		return end.Log
	}
	return logName(end.Log.Seq + 1)
}
