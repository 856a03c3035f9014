package sweep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"mars/internal/oracle/logoracle"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
	"mars/symlinktree"
)

// chosen returns the random source of one check of one state.
func (c *checker) chosen(s *state, what uint64) *rand.Rand {
	return rand.New(rand.NewPCG(c.seed^label(c.String()+s.String()), what))
}

// again cuts the power during the recovery of a state, at one of its operations, and
// recovers from that: nothing has changed.
func (c *checker) again(s *state, image uint64) error {
	r := c.chosen(s, 1)
	if s.kill || r.IntN(recoveryCutEvery) != 0 { // after a kill the power may take what is not synced
		return nil
	}
	c.cutsOfRecovery++
	second, at, err := c.cutRecovery(s, r)
	if err != nil {
		return fmt.Errorf("recovery that is to be cut: %w", err)
	}
	wrap := func(err error) error { return fmt.Errorf("after a power cut %s of the recovery: %w", at, err) }
	if err := c.checkPrefix(second); err != nil {
		return wrap(err)
	}
	if c.w.secondary {
		return nil
	}
	got, err := c.checkPrimary(second)
	if err != nil {
		return wrap(err)
	}
	if hashOf(got) != image {
		return wrap(errors.New("the device has changed"))
	}
	return nil
}

// cutRecovery recovers s and lets the power go at one of the operations. Other than in
// a workload, which of the threads of the engine comes first is up to the runtime.
func (c *checker) cutRecovery(s *state, r *rand.Rand) (second *state, at string, err error) {
	fsys := s.fs.KillState()
	n, err := open(fsys, c.w.tune(c.mode))
	if err != nil {
		return nil, "", err
	}
	defer n.kill(fsys)
	op := 1 + r.Uint64N(24)
	fsys.CutAt(fsys.Ops() + op)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // of the bubble
	defer cancel()
	at = fmt.Sprintf("at operation %d", op)
	if err := c.recovery(ctx, n); err != nil && !fsys.Frozen() {
		return nil, "", err
	}
	if !fsys.Frozen() {
		at = "at the end"
		fsys.PowerCut()
	}
	again := *s
	if told, _ := n.promises(); !before(told.pos, s.told.pos) {
		again.told = told
	}
	again.fs = fsys.Crash(crashfs.Policies[r.IntN(len(crashfs.Policies))], r)
	return &again, at, nil
}

func (c *checker) recovery(ctx context.Context, n *node) error {
	if c.w.secondary {
		return n.e.SetReplay(ctx, false)
	}
	end, _, err := c.recover(n.e, n.known())
	if err != nil {
		return err
	}
	if err := n.e.StartLogging(following(end)); err != nil {
		return err
	}
	return n.e.WriteBack(ctx)
}

// damage breaks bytes of the log which the version link says are durable. No power cut
// does that; a disk may. Recovery must not take it for a torn tail.
func (c *checker) damage(s *state) error {
	r := c.chosen(s, 2)
	if c.w.secondary || r.IntN(damageEvery) != 0 {
		return nil
	}
	fsys := s.fs.KillState()
	// Before the engine is opened, which looks at the log at once.
	tree, err := symlinktree.Open(root, symlinktree.Options{FS: fsys, Node: host})
	if err != nil {
		return err
	}
	links := &node{tree: tree}
	all := links.known()
	if len(all) == 0 {
		return nil
	}
	known := all[len(all)-1]
	told, err := links.link()
	if err != nil {
		return err
	}
	from := int64(0)
	if told.pos.Log == known.Log {
		from = told.pos.Offset
	}
	if known.Log.Seq < told.pos.Log.Seq || known.Offset <= from {
		return nil
	}
	how, err := harm(fsys, known, from, r)
	if err != nil || how == "" {
		return err
	}
	n, err := open(fsys, c.w.tune(c.mode))
	if err != nil {
		return err
	}
	defer n.kill(fsys)
	c.damaged++
	end, torn, err := c.recover(n.e, all)
	if err == nil {
		return fmt.Errorf("P3: %s; the log was published as durable up to %v, and recovery took it for a tail: it ends at %v, %d bytes cut", how, known, end, torn)
	}
	return nil
}

// harm damages [from, known) of a log and says how; "" if nothing came of it.
func harm(fsys *crashfs.FS, known logfile.Position, from int64, r *rand.Rand) (how string, err error) {
	name := resDir + "/" + known.Log.String()
	log, err := fsys.ReadFile(name)
	if err != nil {
		return "", err
	}
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at := from + r.Int64N(known.Offset-from)
	switch r.IntN(4) {
	case 0:
		_, err = f.WriteAt([]byte{log[at] ^ 0x10}, at)
		return fmt.Sprintf("a bit differs at %d", at), err
	case 1:
		clean := make([]byte, int64(len(log))-at)
		if bytes.Equal(clean[:known.Offset-at], log[at:known.Offset]) {
			return "", nil
		}
		_, err = f.WriteAt(clean, at)
		return fmt.Sprintf("zeros from %d", at), err
	case 2:
		return fmt.Sprintf("the file ends at %d", at), f.Truncate(at)
	}
	borders, err := logoracle.Borders(bytesAt(log), known.Log.String(), known.Offset, logoracle.Options{})
	if err != nil {
		return "", err
	}
	for len(borders) > 0 && borders[0] < from {
		borders = borders[1:]
	}
	at = borders[r.IntN(len(borders)-1)]
	return fmt.Sprintf("the file ends at %d, between two records,", at), f.Truncate(at)
}
