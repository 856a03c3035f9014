package crashfs

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"mars/internal/vfs"
)

// ErrPowerCut is what every call returns once the power is gone.
var ErrPowerCut = errors.New("power cut (crashfs)")

// Metadata selects how unsynced metadata may be lost; see the package comment.
type Metadata int

const (
	Unordered Metadata = iota // any subset, as POSIX allows
	Journaled                 // a prefix, as ext4 and XFS do
)

// OpKind names a call; kinds can be or-ed for Fault.Ops.
type OpKind uint16

const (
	OpWrite OpKind = 1 << iota
	OpTruncate
	OpDatasync
	OpCreate
	OpMkdir
	OpRename
	OpRemove
	OpSymlink
	OpSyncDir
	// OpRead is never numbered; it exists for faults.
	OpRead
	// OpOpen of an existing file is never numbered; it exists for faults.
	OpOpen
)

var opNames = map[OpKind]string{
	OpWrite: "write", OpTruncate: "truncate", OpDatasync: "datasync", OpCreate: "create", OpMkdir: "mkdir",
	OpRename: "rename", OpRemove: "remove", OpSymlink: "symlink", OpSyncDir: "syncdir", OpRead: "read", OpOpen: "open",
}

func (k OpKind) String() string { return opNames[k] }

// Op describes one call.
type Op struct {
	N    uint64 // number of the operation, from 1; 0 for reads and opens
	Kind OpKind
	Path string
	Off  int64 // writes and reads; the new size of a truncate
	Len  int   // writes and reads
	seq  uint64
}

// pendingLimit bounds the units kept for one file, and for all directories.
const pendingLimit = 8192

// FS implements vfs.FS. All methods may be called concurrently.
type FS struct {
	mu       sync.Mutex
	rng      *rand.Rand
	now      func() time.Time
	metadata Metadata

	ops    uint64 // operations begun
	seq    uint64 // units and sync marks are ordered by it
	cutAt  uint64 // 0: never
	frozen bool
	onOp   func(*Cut)

	faults   []*armed
	capacity int64 // bytes; 0: unlimited
	used     int64 // pages in use, valid while capacity > 0

	nextIno uint64
	inodes  map[uint64]*inode
	dirty   map[uint64]*inode // files with pending units
	dirOps  []*dirOp          // pending, ascending seq; elements are immutable
	mtimes  map[*link]mtimeUnit
	dropped int // entries removed since the last collection
}

var _ vfs.FS = (*FS)(nil)

const rootIno = 1

// New returns an empty file system with a root directory. The seed drives short
// writes, failed syncs and Fault.Prob; policies have their own source.
func New(seed uint64) *FS {
	f := &FS{
		rng: rand.New(rand.NewPCG(seed, 0x637261736866)), now: time.Now, nextIno: rootIno + 1,
		inodes: map[uint64]*inode{}, dirty: map[uint64]*inode{}, mtimes: map[*link]mtimeUnit{},
	}
	f.inodes[rootIno] = &inode{id: rootIno, dir: true, perm: 0o755, mtime: f.now()}
	return f
}

// SetMetadata selects the metadata model for the future of this file system and
// of everything derived from it.
func (f *FS) SetMetadata(m Metadata) { f.mu.Lock(); f.metadata = m; f.mu.Unlock() }

// SetClock replaces time.Now as the source of modification times.
func (f *FS) SetClock(now func() time.Time) { f.mu.Lock(); f.now = now; f.mu.Unlock() }

// Ops returns how many operations have begun. A second run of the same workload
// can be cut at every number up to it.
func (f *FS) Ops() uint64 { f.mu.Lock(); defer f.mu.Unlock(); return f.ops }

// CutAt freezes the file system when operation n is about to start: it and
// every later call return ErrPowerCut. What a write that was cut in the middle
// leaves behind is a state of CutAt(n+1), as unsynced units may be torn.
func (f *FS) CutAt(n uint64) { f.mu.Lock(); f.cutAt = n; f.mu.Unlock() }

// PowerCut freezes the file system now.
func (f *FS) PowerCut() { f.mu.Lock(); f.frozen = true; f.mu.Unlock() }

// Frozen tells whether the power has been cut.
func (f *FS) Frozen() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.frozen }

// OnOp installs h, which runs before each operation takes effect, so that one
// run of a workload visits all its cut points. h must use only its Cut: calling
// a method of this FS from it would deadlock.
func (f *FS) OnOp(h func(*Cut)) { f.mu.Lock(); f.onOp = h; f.mu.Unlock() }

// Cut is an instant of the file system, seen by an OnOp hook.
type Cut struct {
	Op Op // the operation that has not happened yet
	f  *FS
}

// Crash is FS.Crash at this instant.
func (c *Cut) Crash(p Policy, r *rand.Rand) *FS { return c.f.crashLocked(p, r) }

// KillState is FS.KillState at this instant.
func (c *Cut) KillState() *FS { return c.f.killLocked() }

// Unsynced is FS.Unsynced at this instant.
func (c *Cut) Unsynced() int { return len(c.f.units()) }

// PowerCut freezes the file system: the operation fails.
func (c *Cut) PowerCut() { c.f.frozen = true }

// Unsynced returns the number of units that a power cut could lose now.
func (f *FS) Unsynced() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.units()) }

// SyncAll makes everything durable, like sync(2).
func (f *FS) SyncAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncAllLocked()
}

func (f *FS) syncAllLocked() {
	for _, ino := range f.dirty {
		f.commitFile(ino, f.seq)
	}
	f.commitDirs(f.seq, func(*dirOp) bool { return true })
}

// begin starts a mutating call: power, cut, hook, number, faults. The lock is
// held on entry and on return, but not while a fault delays the call. A sync
// covers what had been issued when it began: op.seq is that mark.
func (f *FS) begin(op *Op) (fault verdict, err error) {
	if f.frozen {
		return fault, ErrPowerCut
	}
	f.ops++
	op.N = f.ops
	if f.onOp != nil {
		f.onOp(&Cut{Op: *op, f: f})
	}
	if f.cutAt != 0 && op.N >= f.cutAt {
		f.frozen = true
	}
	if f.frozen {
		f.ops--
		return fault, ErrPowerCut
	}
	f.seq++
	op.seq = f.seq
	fault = f.inject(*op)
	if f.frozen { // during a delay
		return verdict{}, ErrPowerCut
	}
	return fault, nil
}

// look starts a call that changes nothing.
func (f *FS) look(op Op) error {
	if f.frozen {
		return ErrPowerCut
	}
	if op.Kind == 0 || len(f.faults) == 0 {
		return nil
	}
	v := f.inject(op)
	if f.frozen {
		return ErrPowerCut
	}
	return v.err
}

func pathErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
