package symlinktree

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Links of this project that say what FLUSH and FUA wait for, and how old records must be that are replayed.
const (
	SyncModeLink     = "sync-mode"     // in resource-R: what is wanted; in actual-H: what is in force
	SyncDegradedLink = "sync-degraded" // in actual-H: since when nobody is waited for, 0.000000000 = not so
	SyncWaitingLink  = "sync-waiting"  // in actual-H: requests that wait for members
	ReplayDelay      = "replay-delay"  // in todo-H: seconds
)

// SyncModePath is what FLUSH and FUA of the resource wait for.
func (r Resource) SyncModePath() string { return r.Path(SyncModeLink) }

// SyncMode says what a FLUSH or FUA waits for beyond the log of the primary: that Members other members
// have received everything up to there. The zero value is async.
type SyncMode struct {
	Members int
	// Patience is how long it waits at most (near); 0 = for ever (sync). Whole milliseconds.
	Patience time.Duration
}

// Limits of a SyncMode.
const (
	MaxSyncMembers  = 64
	MaxSyncPatience = time.Hour
)

func (m SyncMode) String() string {
	switch {
	case m.Members == 0:
		return "async"
	case m.Patience == 0:
		return fmt.Sprintf("sync,%d", m.Members)
	}
	return fmt.Sprintf("near,%d,%d", m.Members, m.Patience.Milliseconds())
}

// ParseSyncMode reads the value of a sync-mode link: async, sync,MEMBERS or near,MEMBERS,MILLISECONDS.
func ParseSyncMode(s string) (SyncMode, error) {
	bad := func(why string) (SyncMode, error) {
		return SyncMode{}, fmt.Errorf("%w: sync mode %.40q: %s; want async, sync,MEMBERS or near,MEMBERS,MILLISECONDS", ErrValue, s, why)
	}
	f := strings.Split(s, ",")
	want := map[string]int{"async": 1, "sync": 2, "near": 3}[f[0]]
	if want != len(f) {
		return bad("unknown")
	}
	var m SyncMode
	if want > 1 {
		n, err := strconv.Atoi(f[1])
		if err != nil || n < 1 || n > MaxSyncMembers {
			return bad(fmt.Sprintf("members are not 1 to %d", MaxSyncMembers))
		}
		m.Members = n
	}
	if want > 2 {
		ms, err := strconv.Atoi(f[2])
		if err != nil || ms < 1 || int64(ms) > MaxSyncPatience.Milliseconds() {
			return bad(fmt.Sprintf("milliseconds are not 1 to %d", MaxSyncPatience.Milliseconds()))
		}
		m.Patience = time.Duration(ms) * time.Millisecond
	}
	return m, nil
}
