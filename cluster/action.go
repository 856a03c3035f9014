package cluster

import (
	"fmt"

	"mars/logfile"
)

// Action is one step toward the intent. decide returns them, a worker executes
// them; every one is safe to repeat.
type Action interface{ String() string }

type (
	// Attach opens the disk and the engine at the replay link.
	Attach struct{}
	// Detach stops everything and closes engine and disk.
	Detach struct{}
	// Recover scans the node's own logs from the replay position to their end. What
	// was ever published as durable (Known, the own logs in order with their lengths)
	// must be there; behind it a power cut may have left anything. Force gives up what
	// is damaged.
	Recover struct {
		Known []logfile.Position
		Force bool
	}
	// Replay switches ingestion of the current log on or off. Off returns with the
	// disk at an exact prefix.
	Replay struct{ On bool }
	// Next lets the engine go on in the following log.
	Next struct{ Log logfile.Name }
	// Lead makes the node actual primary: it opens the next log of its own.
	Lead struct{ Log logfile.Name }
	// Yield ends the primary role: write back everything, let the device vanish,
	// stop logging.
	Yield struct{}
	// Rotate goes on writing in the next own log.
	Rotate struct{ Log logfile.Name }
	// Resize makes the device larger; devices never shrink.
	Resize struct{ Size int64 }
	// Export lets the device appear.
	Export struct{}
	// Fetch subscribes to a log of a peer; StopFetch ends the subscription.
	Fetch     FetchFact
	StopFetch struct{}
	// Refetch cuts a damaged copy back so that it is fetched again from there.
	Refetch struct {
		Log logfile.Name
		At  int64
	}
	// Cut ends a copy in front of what cannot be read: it is given up.
	Cut struct {
		Log logfile.Name
		At  int64
	}
	// Sync copies what differs from the primary; StopSync ends it.
	Sync struct {
		Peer    string
		Restart bool
	}
	StopSync struct{}
	// Say publishes a message under actual-NODE/msg-KEY; what is not said again in
	// the next round turns to OK.
	Say struct{ Key, Text string }
)

func (Attach) String() string { return "attach" }
func (Detach) String() string { return "detach" }
func (a Recover) String() string {
	var last logfile.Position
	if n := len(a.Known); n > 0 {
		last = a.Known[n-1]
	}
	return fmt.Sprintf("recover up to %s force=%v", last, a.Force)
}
func (a Replay) String() string  { return fmt.Sprintf("replay %v", a.On) }
func (a Next) String() string    { return "next " + a.Log.String() }
func (a Lead) String() string    { return "lead " + a.Log.String() }
func (Yield) String() string     { return "yield" }
func (a Rotate) String() string  { return "rotate " + a.Log.String() }
func (Export) String() string    { return "export" }
func (a Resize) String() string  { return fmt.Sprintf("resize to %d", a.Size) }
func (a Fetch) String() string   { return "fetch " + a.Log.String() + " from " + a.Peer }
func (StopFetch) String() string { return "stop-fetch" }
func (a Refetch) String() string { return fmt.Sprintf("refetch %s at %d", a.Log, a.At) }
func (a Cut) String() string     { return fmt.Sprintf("cut %s at %d", a.Log, a.At) }
func (a Sync) String() string    { return fmt.Sprintf("sync from %s restart=%v", a.Peer, a.Restart) }
func (StopSync) String() string  { return "stop-sync" }
func (a Say) String() string     { return a.Key + ": " + a.Text }

// Message keys, the original's where it has one (reference symlink-tree 1.5).
const (
	msgSecret       = "err-secret" // of the node
	msgReplayStop   = "err-replay-stop"
	msgSplitBrain   = "err-splitbrain-detected"
	msgNotEqual     = "inf-versionlink-not-equal"
	msgFetch        = "inf-fetch"
	msgFetchStalled = "wrn-fetch-stalled"
	msgSyncStart    = "inf-sync-start"
	msgSyncStalled  = "wrn-sync-stalled"
	msgReplayStart  = "inf-replay-start"
	msgAttach       = "err-attach"
	msgPrimary      = "inf-primary"
	msgReplayLink   = "err-replaylink-not-readable"
	msgRefetch      = "wrn-log-refetch"
	msgDisk         = "err-disk"
	msgResize       = "err-resize"
	msgTransition   = "err-transition"
	msgInconsistent = "err-primary-inconsistent"
	msgBroken       = "err-broken-link"
)
