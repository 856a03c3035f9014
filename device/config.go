package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"mars/logfile"
)

// Durability says when a write is acknowledged (promise P2).
type Durability int

const (
	// DurabilityFlush acknowledges after write(2) to the log; FLUSH and FUA wait
	// for fdatasync of the log. The default.
	DurabilityFlush Durability = iota
	// DurabilityAlways makes every write durable before it is acknowledged.
	DurabilityAlways
	// DurabilityNone keeps the order, but FLUSH and FUA do not wait.
	DurabilityNone
)

func (d Durability) String() string {
	switch d {
	case DurabilityFlush:
		return "flush"
	case DurabilityAlways:
		return "always"
	case DurabilityNone:
		return "none"
	}
	return fmt.Sprintf("durability(%d)", int(d))
}

// ParseDurability reads the value of --durability.
func ParseDurability(s string) (Durability, error) {
	for _, d := range []Durability{DurabilityFlush, DurabilityAlways, DurabilityNone} {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("durability %q: want flush, always or none", s)
}

// Journal is where the engine publishes how far the disk is. All methods are
// idempotent and may block; an error stops the step that called, which is
// repeated later. The engine never has two calls in flight.
type Journal interface {
	// Dirty is called before any log data beyond the last announced end goes to
	// the disk: from now on [min, end) of log may be mixed on disk.
	Dirty(log logfile.Name, min, end int64) error
	// Checkpoint is called after the disk has been flushed: everything before min
	// of log is on the disk. end >= min is the end of the dirty zone; end == min
	// means that the disk is exactly the prefix min.
	Checkpoint(log logfile.Name, min, end int64) error
}

// EventKind classifies an Event.
type EventKind int

// The kinds of Event.
const (
	EventDiskError   EventKind = iota // writeback or flush failed; it is being retried
	EventDiskOK                       // the first success after EventDiskError
	EventLogError                     // the own log failed; writes get EIO until StartLogging
	EventReplayError                  // replay stopped at a torn or damaged record
	EventCheckpoint                   // the replay position has moved
	EventTornTail                     // recovery cut a torn record off the log
)

func (k EventKind) String() string {
	return [...]string{"disk-error", "disk-ok", "log-error", "replay-error", "checkpoint", "torn-tail"}[k]
}

// Event tells what happened to an engine. Position is the log position it is about.
type Event struct {
	Kind     EventKind
	Resource string
	Position logfile.Position
	Err      error
}

// EngineConfig are the parts and settings of an Engine. Disk and Chain stay the
// caller's: they are closed by it, after Close.
type EngineConfig struct {
	Resource string // for messages
	Host     string // this node; only logs of this name are ever written
	Disk     *Disk
	Chain    *logfile.Chain
	Size     int64 // logical size in bytes, at most that of the disk
	Journal  Journal
	Now      func() time.Time // Lamport stamp source of records
	Log      *slog.Logger

	Durability     Durability
	MaxRecord      int           // payload bytes of one record; default logfile.MaxPayload
	IndexLimit     int           // extents held, about ExtentBytes each; writers wait beyond it, and are slowed down from a quarter on. Default 2<<20
	WritebackAge   time.Duration // oldest dirty data before writeback starts. Default 2 s
	WritebackBytes int64         // logged bytes that start writeback at once. Default 256 MiB
	WritebackJobs  int           // disk writes in flight. Default 4
	SyncInterval   time.Duration // the log is synced at latest this long after a write. Default 20 ms
	RetryMin       time.Duration // first pause after a failed writeback; doubles. Default 100 ms
	RetryMax       time.Duration // longest pause. Default 10 s
	RepairInterval time.Duration // how often a stopped replay looks for changed bytes. Default 1 s
	RotateTimeout  time.Duration // longest wait of Rotate for a free layer. Default 30 s
	CloseTimeout   time.Duration // longest writeback of Close. Default 60 s
	DirectPatience time.Duration // how long writers wait for StartDirect or StartLogging after the log had no space; 0 = they get EIO at once
	ZeroesAsWrites bool          // TRIM and WRITE_ZEROES are logged as zero payloads, and only whole sectors are written, for the original's readers
	ReaderMode     logfile.Mode  // how strict replay reads; default logfile.Compat

	// Events, if set, is called for each Event. It must not block or call back.
	Events func(Event)

	// knobs break the engine on purpose: negative controls of its tests.
	knobs knobs
}

// ExtentBytes is what an extent of the index costs, in bytes of memory.
const ExtentBytes = 64

// DefaultEngineConfig are the settings that withDefaults fills in.
func DefaultEngineConfig() EngineConfig {
	return EngineConfig{
		MaxRecord:      logfile.MaxPayload,
		IndexLimit:     2 << 20,
		WritebackAge:   2 * time.Second,
		WritebackBytes: 256 << 20,
		WritebackJobs:  4,
		SyncInterval:   20 * time.Millisecond,
		RetryMin:       100 * time.Millisecond,
		RetryMax:       10 * time.Second,
		RepairInterval: time.Second,
		RotateTimeout:  30 * time.Second,
		CloseTimeout:   time.Minute,
	}
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c EngineConfig) withDefaults() EngineConfig {
	d := DefaultEngineConfig()
	orDefault(&c.MaxRecord, d.MaxRecord)
	orDefault(&c.IndexLimit, d.IndexLimit)
	orDefault(&c.WritebackAge, d.WritebackAge)
	orDefault(&c.WritebackBytes, d.WritebackBytes)
	orDefault(&c.WritebackJobs, d.WritebackJobs)
	orDefault(&c.SyncInterval, d.SyncInterval)
	orDefault(&c.RetryMin, d.RetryMin)
	orDefault(&c.RetryMax, d.RetryMax)
	orDefault(&c.RepairInterval, d.RepairInterval)
	orDefault(&c.RotateTimeout, d.RotateTimeout)
	orDefault(&c.CloseTimeout, d.CloseTimeout)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Validate reports what cannot work.
func (c EngineConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf("resource %s: "+format, append([]any{c.Resource}, args...)...))
		}
	}
	bad(c.Resource == "" || c.Host == "", "resource and host must be named (host %q)", c.Host)
	bad(c.Disk == nil || c.Chain == nil || c.Journal == nil, "disk, chain and journal must be set")
	bad(c.Size <= 0, "size %d is not positive", c.Size)
	if c.Disk != nil {
		bad(c.Size > c.Disk.Size(), "size %d is larger than disk %s (%d bytes); use a larger disk or a smaller size",
			c.Size, c.Disk.Path(), c.Disk.Size())
	}
	bad(c.MaxRecord < 512 || c.MaxRecord > logfile.MaxPayload, "MaxRecord %d is not between 512 and %d", c.MaxRecord, logfile.MaxPayload)
	bad(c.IndexLimit < 64, "IndexLimit %d is less than 64", c.IndexLimit)
	bad(c.Durability < DurabilityFlush || c.Durability > DurabilityNone, "unknown %v", c.Durability)
	bad(c.WritebackAge < 0 || c.WritebackBytes < 0 || c.WritebackJobs < 0 || c.SyncInterval < 0 || c.RetryMin < 0 ||
		c.RetryMax < c.RetryMin || c.RotateTimeout < 0 || c.CloseTimeout < 0 || c.DirectPatience < 0 || c.RepairInterval < 0,
		"negative interval, or RetryMax below RetryMin")
	return errors.Join(errs...)
}

// SyncSource is the device that a full sync copies from, as of some log position
// that every call returns: the log end observed after the data was read, whose
// bytes up to there are durable at their author.
type SyncSource interface {
	// Digests returns the SHA-256 of each chunk of [off, off+length); the last may
	// be short. A chunk of zeros has the all-zero sum.
	Digests(ctx context.Context, off, length, chunk int64) (sums [][32]byte, end logfile.Position, err error)
	Read(ctx context.Context, off int64, p []byte) (end logfile.Position, err error)
}
