package device

import (
	"errors"
	"time"

	"mars/logfile"
)

// Mode is what an Engine is doing.
type Mode int

// The modes of an Engine.
const (
	Idle       Mode = iota // neither replays nor logs
	Replaying              // secondary: records of the followed log are applied as they become durable
	Recovering             // primary: the own log is being scanned
	Logging                // primary: writes are accepted
	Error                  // primary: the log failed, writes get EIO
	Closed
	Ceasing // primary on the way from the log to the disk alone: writers wait
	Direct  // primary in emergency mode: requests go to the disk, nothing is logged
)

func (m Mode) String() string {
	return [...]string{"idle", "replaying", "recovering", "logging", "error", "closed", "ceasing", "direct"}[m]
}

// Counters count since OpenEngine.
type Counters struct {
	ReadOps, ReadBytes      int64 // clients
	WriteOps, WriteBytes    int64 // clients, TRIM and WRITE_ZEROES included
	FlushOps                int64
	ReplayOps, ReplayBytes  int64 // records and payload bytes taken from logs by replay or recovery
	LogBytes                int64 // bytes appended to own logs
	DirectBytes             int64 // bytes of clients that went around the log
	WritebackOps            int64 // writes to the disk
	WritebackBytes          int64 // bytes written to the disk, zeroed ranges excluded
	Cycles, FailedCycles    int64 // writeback cycles
	SyncSame, SyncDifferent int64 // bytes compared by full sync
	SyncRepeated, LogSyncs  int64 // chunks thrown away by full sync; fdatasyncs of the own log asked for by the engine
	WriterWaits             int64 // writers that waited for room in the index
	WriterWaited            time.Duration
}

// Status is a snapshot of an Engine.
type Status struct {
	Mode     Mode
	Size     int64
	Current  logfile.Name     // log that is written or replayed
	Applied  logfile.Position // MIN: everything before is on the disk
	DirtyEnd int64            // end of the dirty zone in Applied.Log; == Applied.Offset if the disk is exactly there
	// IngestEnd is how far records are in the index: what reads see.
	IngestEnd logfile.Position
	// LogEnd and LogDurable belong to Current: its length and durable length.
	LogEnd, LogDurable int64

	Extents    int   // held in the index
	DirtyBytes int64 // device bytes that the disk lacks (zeroed ranges excluded)
	LogBacklog int64 // log bytes between Applied and IngestEnd

	Replay     bool  // the replay switch
	Torn       bool  // replay waits for the rest of a record that is here in part
	ReplayErr  error // *logfile.TornError or *logfile.CorruptError: replay stopped there
	DiskErr    error // writeback is failing and being retried, or the last read of a client failed
	LogErr     error // the own log failed
	LogFull    bool  // LogErr is that a write had no space
	JournalErr error

	Confirm ConfirmStatus

	Counters Counters
}

// Status returns a snapshot.
func (e *Engine) Status() Status {
	s := Status{Size: e.Size(), Counters: e.n.snapshot()}
	s.Replay, s.ReplayErr = e.replay.state()
	torn := e.replay.torn.Load()
	s.Confirm = e.confirm.status()
	if f := e.failed.Load(); f != nil {
		s.LogErr = f.err
		var full fullError
		s.LogFull = errors.As(f.err, &full)
	}
	e.logMu.RLock()
	w := e.writer
	e.logMu.RUnlock()
	e.idx.mu.RLock()
	top := e.idx.top()
	s.IngestEnd = top.endPos()
	for _, l := range e.idx.list {
		s.Extents += l.ext.count
		s.DirtyBytes += l.ext.bytes
		s.LogBacklog += l.end - l.start
	}
	e.idx.mu.RUnlock()
	e.mu.Lock()
	s.Mode, s.Applied, s.DirtyEnd, s.DiskErr, s.JournalErr = e.mode, e.applied, e.dirtyEnd, e.diskErr, e.jourErr
	e.mu.Unlock()
	if s.DiskErr == nil {
		s.DiskErr = e.lastReadError()
	}
	s.Current = s.IngestEnd.Log
	s.Torn = torn > s.IngestEnd.Offset && s.Mode == Replaying
	if w != nil && w.Name() == s.Current {
		s.LogEnd, s.LogDurable = s.IngestEnd.Offset, w.Durable()
	} else {
		// A file that is not there has no bytes.
		s.LogEnd, _ = e.chain.Size(s.Current)
		s.LogDurable, _ = e.chain.Durable(s.Current)
	}
	return s
}
