package nbd

import "mars/internal/nbdproto"

// OpKind says what an Op does to its range.
type OpKind uint8

// The kinds of Op.
const (
	OpWrite  OpKind = iota // Data goes to Off; Len is len(Data)
	OpTrim                 // the range is no longer needed; Data is nil
	OpZeroes               // the range reads as zeroes afterwards; Data is nil
)

// Op is one request that changes the device.
type Op struct {
	Kind OpKind
	Off  int64
	Len  int64  // > 0, and Off+Len is at most Backend.Size
	Data []byte // OpWrite only; memory of the server, valid until Submit returns
	// FUA tells that the client waits until this very request is durable. The
	// server calls Backend.Sync itself; a backend need not look at it.
	FUA    bool
	NoHole bool // OpZeroes only: the range must stay allocated
}

// Backend is a block device. All methods are called concurrently, from all
// connections of the export. No call reaches beyond Size, none is empty.
//
// An error is answered to the client as the errno that errors.Is finds in it
// (see Errno); its text goes along if the client understands structured replies.
// A panic is not recovered: it means that the device lies, and must be seen.
type Backend interface {
	// Size is the length of the device in bytes. It is asked again for every
	// request, so a device may grow while it is open. It must not block.
	Size() int64
	// ReadAt fills p from off. It may block. A read sees every write whose
	// Submit has returned.
	ReadAt(p []byte, off int64) error
	// TryReadAt is ReadAt for those who must not wait: it answers at memory speed
	// or says done == false, leaving p undefined and the work to ReadAt.
	TryReadAt(p []byte, off int64) (done bool, err error)
	// Submit carries out ops in this order. When it returns nil all of them are
	// acknowledged to the client, except those with FUA; after an error none is,
	// and each may or may not have happened. It blocks only for back-pressure.
	// The slice and the memory of Data belong to the server again afterwards.
	Submit(ops []Op) error
	// Sync calls done, once, from any goroutine or before it returns, as soon as
	// everything whose Submit returned before is durable, whichever connection it
	// came from. It must not block. done does not block either.
	Sync(done func(error))
	// SyncNow is Sync for a caller that has nothing else to do: it returns when that
	// is durable. It saves the way through another goroutine. It waits for a disk and nothing
	// else: when there is more to wait for it returns false at once, and Sync has to be called.
	SyncNow() (done bool, err error)
}

// State tells what a part of a device is made of, in the bits of the meta context base:allocation.
type State uint32

// The bits of State. A part with neither is allocated and may hold anything.
const (
	StateHole State = nbdproto.StateHole // takes no space
	StateZero State = nbdproto.StateZero // reads as zeroes
)

// Extent is a part of a device in one state.
type Extent struct {
	Len   int64
	State State
}

// SparseBackend is a Backend that knows where it holds data. For others the export offers
// neither block status nor FAST_ZERO nor CACHE.
type SparseBackend interface {
	Backend
	// Extents appends to dst the extents from off on, in order and without gaps: at least one,
	// at most limit, none reaching beyond end. It may block. What it says was true
	// at some moment between call and return.
	Extents(dst []Extent, off, end int64, limit int) ([]Extent, error)
	// FastZeroes tells whether OpZeroes costs much less than writing as many bytes. It must not block.
	FastZeroes() bool
	// Prefetch makes reads of a range fast soon, as far as that is sensible. It may block.
	Prefetch(off, length int64) error
}

// Export is a Backend under a name.
type Export struct {
	Name        string // at most 4096 bytes
	Description string // for people, shown by `nbdinfo --list`; at most 4096 bytes
	Backend     Backend
	ReadOnly    bool
	// MinBlock, if set, is the smallest request that the backend takes, in bytes, a
	// power of two; clients are told so. Default 1.
	MinBlock uint32
}
