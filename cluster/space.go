package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/device"
	"mars/symlinktree"
)

// The emergency ladder (reference symlink-tree 4.20). Each level has a reserve; a level is reached when less
// is free than its reserve and those of all higher levels together.
const (
	LevelWarn      = 1 // say so; the primary rotates and removes logs that no member needs
	LevelPurge     = 2 // secondaries remove copies that they have replayed
	LevelFetch     = 3 // secondaries stop fetching
	LevelEmergency = 4 // primaries stop logging
)

// Amount is a size of a file system's part.
type Amount struct {
	Bytes   int64
	Percent float64 // of the file system; if Bytes is set, too, the smaller one counts
}

// ParseAmount reads BYTES (K, M, G, T are understood), PERCENT% or BYTES:PERCENT%.
func ParseAmount(s string) (a Amount, err error) {
	bytes, percent, both := strings.Cut(s, ":")
	if !both && strings.HasSuffix(s, "%") {
		bytes, percent = "", s
	}
	if bytes != "" || both {
		shift, digits := 0, bytes
		if n := len(bytes); n > 0 {
			if i := strings.IndexByte("KMGT", bytes[n-1]); i >= 0 {
				shift, digits = 10*(i+1), bytes[:n-1]
			}
		}
		a.Bytes, err = strconv.ParseInt(digits, 10, 64)
		if err != nil || a.Bytes <= 0 || a.Bytes > 1<<62>>shift {
			return a, fmt.Errorf("%q is not a size: want BYTES (K, M, G, T), PERCENT%% or BYTES:PERCENT%%", s)
		}
		a.Bytes <<= shift
	}
	if percent != "" || both {
		a.Percent, err = strconv.ParseFloat(strings.TrimSuffix(percent, "%"), 64)
		if err != nil || !strings.HasSuffix(percent, "%") || !(a.Percent > 0 && a.Percent <= 100) {
			return a, fmt.Errorf("%q is not a size: want BYTES (K, M, G, T), PERCENT%% or BYTES:PERCENT%%", s)
		}
	}
	return a, nil
}

func (a Amount) String() string {
	switch {
	case a.Percent == 0:
		return strconv.FormatInt(a.Bytes, 10)
	case a.Bytes == 0:
		return fmt.Sprintf("%g%%", a.Percent)
	}
	return fmt.Sprintf("%d:%g%%", a.Bytes, a.Percent)
}

func (a Amount) of(total int64) int64 {
	part := int64(a.Percent / 100 * float64(total))
	switch {
	case a.Percent == 0:
		return a.Bytes
	case a.Bytes == 0:
		return part
	}
	return min(a.Bytes, part)
}

// Reserves are the reserves of levels 1 to 4.
type Reserves [LevelEmergency]Amount

// DefaultReserves is the original's 2 GiB each, but never more than 1 % of the file system each.
func DefaultReserves() (r Reserves) {
	for i := range r {
		r[i] = Amount{Bytes: 2 << 30, Percent: 1}
	}
	return r
}

// ParseReserves reads the amounts of levels 1 to 4, separated by commas.
func ParseReserves(s string) (r Reserves, err error) {
	parts := strings.Split(s, ",")
	if len(parts) != len(r) {
		return r, fmt.Errorf("%q has %d amounts, want %d: for the levels warn, purge, fetch, emergency", s, len(parts), len(r))
	}
	for i, p := range parts {
		if r[i], err = ParseAmount(strings.TrimSpace(p)); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r Reserves) String() string {
	var parts []string
	for _, a := range r {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, ",")
}

func (r Reserves) validate() error {
	for i, a := range r {
		if a.Bytes < 0 || a.Percent < 0 || a.Percent > 100 || a.Bytes == 0 && a.Percent == 0 {
			return fmt.Errorf("reserve of level %d is %s, want more than nothing", i+1, a)
		}
	}
	return nil
}

// threshold is how much must be free to be below level.
func (r Reserves) threshold(level int, total int64) (n int64) {
	for _, a := range r[level-1:] {
		n += a.of(total)
	}
	return n
}

// next is the level after free of total bytes have been found while level held. It rises at once, and falls
// by one step at a time, each only when an eighth of its reserve is free beyond the threshold.
func (r Reserves) next(level int, free, total int64) int {
	for l := LevelEmergency; l > level; l-- {
		if free < r.threshold(l, total) {
			return l
		}
	}
	if level > 0 && free >= r.threshold(level, total)+r[level-1].of(total)/8 {
		return level - 1
	}
	return level
}

// rest is what is free and what there is, after all reserves.
func (r Reserves) rest(free, total int64) (rest, all int64) {
	n := r.threshold(LevelWarn, total)
	return max(0, free-n), max(0, total-n)
}

// inEmergency decides for one resource whose emergency-limit is limit (percent that must be
// left of what there is after all reserves, 0 = none). Who has stopped goes on only when the file system is at
// level 0 and one percent more than the limit is left.
func inEmergency(was bool, level int, limit, rest, all int64) bool {
	switch {
	case level >= LevelEmergency:
		return true
	case was && level > 0:
		return true
	case limit <= 0:
		return false
	case was:
		limit = min(limit+1, 100)
	}
	return below(limit, rest, all)
}

// nearLimit is when the primary starts to make room for a resource with a limit.
const nearLimit = 5 // percent

func below(percent, rest, all int64) bool {
	return float64(rest)*100 < float64(percent)*float64(all)
}

// SpaceFacts is what decide knows of the file system of the root.
type SpaceFacts struct {
	Level     int
	Free      int64 // bytes, with what own logs have allocated ahead
	Below     int64 // bytes: less than that makes the level
	Emergency bool  // of this resource
	Limit     int64 // emergency-limit of this resource in percent, 0 = none
	Near      bool  // the limit of some resource will be reached soon
	Allowed   bool  // logging may be given up
}

// space watches the file system of the root.
type space struct {
	mu          sync.Mutex
	level       int
	free, total int64
	unseen      atomic.Int64 // bytes fetched since the last look
}

func (s *space) get() (level int, free, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level, s.free, s.total
}

// watchSpace looks at the free space often: a fast writer needs little time to fill it.
func (n *Node) watchSpace(ctx context.Context) {
	tick := time.NewTicker(n.cfg.SpaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.lookAtSpace()
		}
	}
}

// lookAtSpace moves the ladder by one look and wakes whom it concerns.
func (n *Node) lookAtSpace() {
	free, total, err := n.cfg.FS.FreeSpace(n.cfg.Root)
	if err != nil {
		n.log.Error("cannot read free space", keyRoot, n.cfg.Root, keyErr, err)
		return
	}
	reserves := n.cfg.Reserves
	workers := n.allWorkers()
	limits := n.emergencyLimits(workers)
	if len(limits) > 0 || free < reserves.threshold(LevelWarn, total) {
		free += n.allocatedAhead(workers)
	}
	n.space.mu.Lock()
	was := n.space.level
	n.space.level, n.space.free, n.space.total = reserves.next(was, free, total), free, total
	level := n.space.level
	n.space.mu.Unlock()
	n.publishSpace(level, free, total)
	if level != was {
		n.log.Warn("space on the file system of the logs", keyRoot, n.cfg.Root, "level", level, "was", was, "free", free, "total", total)
	}
	rest, all := reserves.rest(free, total)
	now := time.Now()
	near := false // one resource makes room for the other
	for _, limit := range limits {
		near = near || below(limit+nearLimit, rest, all)
	}
	for _, w := range workers {
		em := inEmergency(w.emergency.Load(), level, limits[w], rest, all) || now.UnixNano() < w.jammed.Load()
		if w.emergency.Swap(em) != em || w.near.Swap(near) != near || level != was {
			w.kick()
		}
	}
}

// emergencyLimits are the limits of those resources that have one.
func (n *Node) emergencyLimits(workers []*worker) map[*worker]int64 {
	limits := make(map[*worker]int64)
	for _, w := range workers {
		if limit := w.emergencyLimit(); limit > 0 {
			limits[w] = limit
		}
	}
	return limits
}

// emergencyLimit is that of one resource, 0 if it has none.
func (w *worker) emergencyLimit() int64 {
	v, _ := w.n.tree.Get(w.r.TodoPath(w.n.cfg.Node, symlinktree.SwitchEmergencyLimit))
	if limit := symlinktree.LeadingInt(v); limit > 0 && limit <= 100 {
		return limit
	}
	return 0
}

// allocatedAhead is what logs under way have reserved behind their end: it is taken, but theirs to
// use, and given back when they end. Counting it as used would make emergency mode end itself.
func (n *Node) allocatedAhead(workers []*worker) (sum int64) {
	for _, w := range workers {
		_, eng := w.shared.get()
		if eng == nil {
			continue
		}
		st := eng.Status()
		if st.Mode != device.Logging {
			continue
		}
		info, err := n.cfg.FS.Lstat(filepath.Join(w.dir(), st.Current.String()))
		if err != nil {
			continue
		}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += max(0, sys.Blocks*512-info.Size())
		}
	}
	return sum
}

func (n *Node) publishSpace(level int, free, total int64) {
	rest, all := n.cfg.Reserves.rest(free, total)
	for name, v := range map[string]int64{"emergency": int64(level), "rest-space": rest >> 30, "total-space": all >> 30} {
		n.put(symlinktree.ActualPath(n.cfg.Node, name), strconv.FormatInt(v, 10))
	}
}

// lookEvery is how much may be fetched between two looks, in bytes.
const lookEvery = 1 << 20

// errSpace ends a fetch.
var errSpace = errors.New("the file system of the logs is filling up")

// mayFetch is asked for each piece that a peer sends: between two ticks a fast one fills any
// reserve. stop is the level at which the fetch ends.
func (n *Node) mayFetch(bytes int, stop int) error {
	if n.space.unseen.Add(int64(bytes)) >= lookEvery {
		n.space.unseen.Store(0)
		n.lookAtSpace()
	}
	if level, _, _ := n.space.get(); level >= stop {
		return errSpace
	}
	return nil
}

// crowded is why a node that is not primary does not fetch, "" if it may.
func (f *SpaceFacts) crowded(designated bool) string {
	switch {
	case f.Level >= LevelEmergency, f.Level >= LevelFetch && !designated:
		return fmt.Sprintf("less than %d bytes are free", f.Below)
	case f.Emergency && !designated:
		return "the emergency limit is reached"
	}
	return ""
}

// spaceFacts is what decide is told.
func (w *worker) spaceFacts() SpaceFacts {
	level, free, total := w.n.space.get()
	below := int64(0)
	if level > 0 {
		below = w.n.cfg.Reserves.threshold(level, total)
	}
	return SpaceFacts{Level: level, Free: free, Below: below, Emergency: w.emergency.Load(), Limit: w.emergencyLimit(),
		Near: w.near.Load(), Allowed: w.n.cfg.Emergency}
}
