package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"mars/internal/crashdisk"
	"mars/internal/oracle"
	"mars/internal/oracle/logoracle"
)

// snapshot is the state of the peer at a mark of the history.
type snapshot struct {
	index int
	dir   string
}

// peerSnapshot copies the peer while it stands still: what the primary ships from
// now on it has not got.
func peerSnapshot(p *power, b *Node, k int) snapshot {
	b.t.Helper()
	b.Freeze()
	defer b.Thaw()
	s := snapshot{dir: b.Path(fmt.Sprintf("copy-%d", k))}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	s.index = p.rec.Len()
	p.rec.Mark("peer copied")
	tool(b.t, "cp", "-a", "--sparse=always", b.Root(), b.Path("disk"), s.dir)
	return s
}

// back makes the peer what it was.
func (s snapshot) back(b *Node) {
	b.t.Helper()
	tool(b.t, "rm", "-rf", b.Root(), b.Path("disk"))
	tool(b.t, "cp", "-a", "--sparse=always", filepath.Join(s.dir, "mars"), filepath.Join(s.dir, "disk"), b.dir)
}

// neverAhead compares the logs: whatever the peer has, the author has still got
// after its power cut (P5).
func neverAhead(a, b *Node) error {
	logs, err := filepath.Glob(filepath.Join(b.Root(), "resource-r0", "log-*-"+a.Name))
	if err != nil {
		return err
	}
	for _, name := range logs {
		has, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		own, err := os.ReadFile(filepath.Join(a.Root(), "resource-r0", filepath.Base(name)))
		if err != nil && len(has) > 0 {
			return fmt.Errorf("%s has %d bytes of %s: %w", b.Name, len(has), filepath.Base(name), err)
		}
		if !bytes.HasPrefix(own, has) {
			return fmt.Errorf("%s has %d bytes of %s, of which its author %s has lost something: it has %d", b.Name, len(has), filepath.Base(name), a.Name, len(own))
		}
	}
	return nil
}

// TestV03PowerCutWithPeer: after a power cut of the primary its secondary is never
// ahead of it, nobody sees a split brain, and both become equal without an operator.
func TestV03PowerCutWithPeer(t *testing.T) {
	t.Parallel()
	needBlockLayer(t)
	c := NewCluster(t, 2, Apart(), WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	cuts := 3
	if soak(t) > 0 {
		cuts = 60
	}
	s := prepareSweep(t, a)
	a.Adm("create-cluster", "--ip="+a.Addr)
	a.Start()
	b.copySecret(a)
	b.Start()
	b.Adm("join-cluster", a.Name, a.Addr, "--ip="+b.Addr)
	a.CreateResource(a.Path("disk"))
	b.JoinResource(b.Disk("disk", s.size))
	s.start(a)
	var list []snapshot
	for k := range cuts {
		s.more(a, 20+s.rnd.IntN(60))
		if k%3 == 1 {
			s.p.rotate()
		}
		list = append(list, peerSnapshot(s.p, b, k))
	}
	s.more(a, 10)
	s.finish()
	b.Kill()
	s.h = s.p.end()
	b.Bin = a.Bin
	cutter, policies := s.h.Cutter(), crashdisk.Policies()
	for k, snap := range list {
		policy := policies[(2*k)%len(policies)]
		snap.back(b)
		s.p.restore(cutter.Cut(snap.index, policy, s.rnd))
		if err := s.peerCut(snap.index, a, b); err != nil {
			t.Fatalf("cut at %d of %d, %v: %v", snap.index, len(s.h.Entries), policy, err)
		}
		b.Kill()
		s.p.drop()
	}
	// Negative control: a log that has lost its end.
	snap := list[len(list)-1]
	snap.back(b)
	s.p.mars = loopMount(t, a.Path("mars.img"), a.Root())
	defer s.p.drop()
	logs, _ := filepath.Glob(filepath.Join(b.Root(), "resource-r0", "log-*"))
	if len(logs) == 0 {
		t.Fatal("the peer has no log: this proves nothing")
	}
	for _, l := range logs {
		if err := os.Truncate(filepath.Join(a.Root(), "resource-r0", filepath.Base(l)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := neverAhead(a, b); err == nil {
		t.Error("a secondary that is ahead is not noticed")
	}
}

func (s *sweep) peerCut(index int, a, b *Node) error {
	s.t.Helper()
	if err := neverAhead(a, b); err != nil {
		return err
	}
	img, err := s.p.boot(s.size)
	if err != nil {
		return err
	}
	v, err := s.journal.CheckImage(bytes.NewReader(img), oracle.Options{AsOf: s.h.Tick(index), Durable: oracle.Flushed, RecordSectors: recordSectors})
	if err == nil {
		err = v.Err()
	}
	if err != nil {
		return err
	}
	b.StartNoWait()
	Settle(a, b)
	b.WaitView("diskstate", "UpToDate")
	a.WaitView("diskstate", "UpToDate")
	s.noSplitBrain()
	for _, n := range []*Node{a, b} {
		n.Adm("down", "r0")
		diffs, err := logoracle.Compare(bytes.NewReader(img), bytes.NewReader(readFile(s.t, n.Path("disk"))), s.size, 5)
		if err != nil || len(diffs) > 0 {
			return fmt.Errorf("disk of %s differs from the device after the cut: %v %w", n.Name, diffs, err)
		}
	}
	return nil
}
