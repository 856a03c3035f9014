package cluster

import (
	"strings"

	"mars/logfile"
	"mars/symlinktree"
)

// Mode says what a resource's engine is doing on this node.
type Mode int

const (
	ModeDetached  Mode = iota // disk closed
	ModeIdle                  // attached, neither replaying nor logging
	ModeReplaying             // following a log
	ModeLogging               // actual primary, or draining after having been one
)

func (m Mode) String() string {
	return [...]string{"detached", "idle", "replaying", "logging"}[m]
}

// LogFact is one logfile in the resource directory of this node.
type LogFact struct {
	Name logfile.Name
	Size int64 // bytes that are durable here
}

// Damage is why the own logs of this node cannot be taken to their end.
type Damage struct {
	At     logfile.Position // the last sound record ends here
	Lost   int64            // bytes behind it that would be given up
	Reason string
	Forced bool // giving them up has failed, too
}

// FetchFact describes the running log subscription.
type FetchFact struct {
	Log   logfile.Name
	Peer  string
	Limit int64 // where another branch left this log: nothing beyond is copied; -1 = none
}

// Facts is what decide knows about this node beside the tree. It is a plain
// value, so that a table test can write down any situation.
type Facts struct {
	Node string

	// Busy names the transition that is under way (attach, recover, ...); while it
	// runs nothing that touches the engine is started.
	Busy string
	// Holdoff is set for a while after a transition failed; Busy-like, but reported
	// as an error instead of as work.
	Holdoff string

	// ResizeFailed is why the device could not grow a moment ago.
	ResizeFailed string

	Mode      Mode
	Size      int64        // of the device, in bytes
	Recovered bool         // own log has been scanned since attach
	Current   logfile.Name // log that the engine is in
	Ingested  int64        // end of the last record of Current that the engine has taken in
	LogSize   int64        // bytes of the log being written (ModeLogging)
	LogFailed bool         // ModeLogging: the own log takes no more
	LogFull   bool         // ... for want of space
	Direct    bool         // ModeLogging: emergency mode, nothing is logged
	Torn      bool         // ingestion waits behind an incomplete record
	Damaged   string       // ingestion stopped at a damaged record: the reason
	DamagedAt int64        // -1: not a defect of the log, but of the reading
	Refetches int          // how often Current has been fetched again since it last made progress

	Damage  *Damage // the own logs cannot be recovered
	GivenUp int     // highest number of an own log that was set aside

	Logs []LogFact

	Exported  bool
	OpenCount int

	Fetch        *FetchFact
	FetchStalled bool            // ... and nothing has arrived for long, although somebody has more
	Avoid        map[string]bool // peers that just failed as a source
	Distrust     map[string]bool // peers that sent damage or had nothing to send lately: asked last
	Syncing      string          // peer that the running full sync reads from, "" = none
	SyncStalled  bool            // ... and nothing has been compared or copied for long

	Heard   bool            // every member has been asked once since the start: answered, or found silent
	Alive   map[string]bool // peers with fresh news
	Closing bool            // marsd is stopping

	RotateSize int64 // bytes, 0 = only on demand

	Space      SpaceFacts
	SyncQueued bool // as many other full syncs run here as the sync-limit allows
}

func (f *Facts) log(n logfile.Name) (LogFact, bool) {
	for _, l := range f.Logs {
		if l.Name == n {
			return l, true
		}
	}
	return LogFact{}, false
}

func (f *Facts) size(n logfile.Name) int64 {
	l, _ := f.log(n)
	return l.Size
}

// intent is what the tree wants of this node for one resource.
type intent struct {
	member                        bool
	disk                          string
	size                          int64
	primary                       string
	attach, connect, replay, sync bool
	pos                           symlinktree.Replay
	posOK                         bool
	synced                        int64
	syncPos                       symlinktree.Replay
	syncPosOK                     bool
	syncSource                    string
	giveUp                        string // position of a damage that the administrator accepts
	maxNr                         int    // highest log number handed out
	members                       []string
	prefer                        []string // sources of logs that the administrator prefers, first one first
}

func readIntent(s *symlinktree.Snapshot, r symlinktree.Resource, node string) intent {
	str := func(path string) string { v, _ := s.Get(path); return v }
	in := intent{
		disk:       str(r.DataPath(node)),
		size:       symlinktree.LeadingInt(str(r.SizePath())),
		primary:    str(r.PrimaryPath()),
		attach:     symlinktree.Switch(str(r.TodoPath(node, "attach"))),
		connect:    symlinktree.Switch(str(r.TodoPath(node, "connect"))),
		replay:     symlinktree.Switch(str(r.TodoPath(node, "allow-replay"))),
		sync:       symlinktree.Switch(str(r.TodoPath(node, "sync"))),
		synced:     symlinktree.LeadingInt(str(r.SyncStatusPath(node))),
		syncSource: str(r.Path("syncsource-" + node)), // see syncSourcePath,
		giveUp:     str(r.TodoPath(node, symlinktree.GiveUp)),
		members:    symlinktree.Members(s, r),
		maxNr:      int(symlinktree.LeadingInt(str(r.MaxNrPath()))),
	}
	in.member = in.disk != ""
	in.prefer = splitList(str(r.ConnectPath(node)))
	if v, err := symlinktree.ParseReplay(str(r.ReplayPath(node))); err == nil {
		in.pos, in.posOK = v, true
	}
	if v, err := symlinktree.ParseReplay(str(r.SyncPosPath(node))); err == nil {
		in.syncPos, in.syncPosOK = v, true
	}
	return in
}

// splitList reads the value of a preference list.
func splitList(v string) []string {
	return strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' })
}

// consistent is P4's word for this node: the sync is over and replay has passed
// the log end that was seen when the last chunk had been read.
func (in *intent) consistent() bool {
	if in.size <= 0 || in.synced < in.size || !in.posOK {
		return false
	}
	if !in.syncPosOK {
		return true
	}
	end := in.syncPos
	end.Min, end.Len = end.Min+end.Len, 0
	return symlinktree.CompareReplay(in.pos, end) >= 0
}
