package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"mars/internal/vfs/crashfs"
)

// schedule is all that is drawn from a seed: the cluster, and what happens to it when. It
// is made before the run, so that a shorter one can be tried.
type schedule struct {
	seed     uint64
	nodes    int
	members  int // of the resource; the others may join
	gossip   bool
	rotate   int64
	metadata crashfs.Metadata
	clocks   []time.Duration // wrong from the beginning
	length   time.Duration
	events   []event
}

// kind of an event.
type kind int

const (
	cut        kind = iota // nothing gets through between two nodes
	isolate                // ... between one and all the others
	oneWay                 // nothing arrives from one at the other
	halfOpen               // everything is accepted and nothing arrives, both ways
	slow                   // a thin line with delay and jitter
	lossy                  // datagrams get lost and overtake each other, connections are refused
	flips                  // bits are inverted
	resets                 // connections break again and again
	powerCut               // of one node, in the middle of its next operations
	kill                   // of one marsd: nothing is lost
	restart                // of one marsd, cleanly
	site                   // all nodes lose power at once
	clockJump              // to another time
	clockRate              // another speed
	full                   // no space for logs
	diskError              // the disk takes no writes
	handover               // planned, the application moves along
	failover               // forced
	giveUpRole             // marsadm secondary
	pauseFetch             // and the following: switched off for a while
	pauseReplay
	pauseSync
	down
	invalidate
	leaveJoin // leave, and join again with what is on the disk; or just join
	rotate
	deleteLogs
	burst // the application writes a lot
	kinds
)

var kindNames = [kinds]string{"cut", "isolate", "one-way", "half-open", "slow", "lossy", "flips", "resets", "power-cut", "kill", "restart", "site-power-cut",
	"clock-jump", "clock-rate", "full", "disk-error", "handover", "failover", "secondary", "pause-fetch", "pause-replay", "pause-sync", "down",
	"invalidate", "leave-join", "log-rotate", "log-delete", "burst"}

func (k kind) String() string { return kindNames[k] }

// weights of the kinds, in the order of their declaration.
var weights = [kinds]int{8, 6, 5, 4, 4, 4, 3, 4, 12, 5, 4, 2, 4, 2, 4, 3, 14, 7, 2, 4, 5, 2, 4, 4, 4, 8, 5, 4}

// event is one thing that happens.
type event struct {
	at, lasts time.Duration
	kind      kind
	node, to  int
	arg       uint64
}

func (e event) String() string {
	s := fmt.Sprintf("%6.3fs %s %s", e.at.Seconds(), e.kind, names[e.node])
	switch e.kind {
	case cut, oneWay, halfOpen, slow, lossy, flips, resets:
		s += "-" + names[e.to]
	}
	return fmt.Sprintf("%s for %.3fs (%d)", s, e.lasts.Seconds(), e.arg%1000)
}

func (s *schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d nodes, %d members, gossip %v, rotation at %d, metadata %v, clocks %v\n", s.seed, s.nodes, s.members, s.gossip, s.rotate, s.metadata, s.clocks)
	for i, e := range s.events {
		fmt.Fprintf(&b, "  %2d  %v\n", i, e)
	}
	return b.String()
}

// with is the same cluster with other events.
func (s *schedule) with(events []event) *schedule {
	c := *s
	c.events = events
	return &c
}

// newSchedule draws one.
func newSchedule(seed uint64) *schedule {
	r := rand.New(rand.NewPCG(seed, 0x73636865))
	s := &schedule{seed: seed, length: time.Duration(2000+r.IntN(3500)) * time.Millisecond}
	s.nodes = []int{2, 2, 2, 2, 3, 3, 3, 3, 4}[r.IntN(9)]
	s.members = s.nodes
	if s.nodes > 2 && r.IntN(4) == 0 {
		s.members--
	}
	s.gossip = r.IntN(4) == 0
	s.metadata = []crashfs.Metadata{crashfs.Unordered, crashfs.Journaled}[r.IntN(2)]
	s.rotate = []int64{0, 0, 16 << 10, 64 << 10}[r.IntN(4)]
	for range s.nodes {
		off := time.Duration(0)
		if r.IntN(3) == 0 {
			off = jump(r.Uint64())
		}
		s.clocks = append(s.clocks, off)
	}
	for range 2 + r.IntN(7) {
		s.events = append(s.events, s.draw(r))
	}
	slices.SortStableFunc(s.events, func(a, b event) int { return int(a.at - b.at) })
	return s
}

// jump is by how much a clock is wrong: milliseconds to days, both ways.
func jump(arg uint64) time.Duration {
	d := time.Millisecond << (arg % 30) // up to 6 days
	if arg>>32&1 == 0 {
		return -d
	}
	return d
}

func (s *schedule) draw(r *rand.Rand) event {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	e := event{arg: r.Uint64()}
	for x := r.IntN(sum); x >= weights[e.kind]; e.kind++ {
		x -= weights[e.kind]
	}
	e.at = time.Duration(200+r.Int64N(s.length.Milliseconds()-200)) * time.Millisecond
	e.lasts = time.Duration(100+r.IntN(100<<r.IntN(7))) * time.Millisecond
	e.node = r.IntN(s.nodes)
	e.to = (e.node + 1 + r.IntN(s.nodes-1)) % s.nodes
	return e
}
