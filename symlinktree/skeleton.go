package symlinktree

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"mars/internal/vfs"
)

var errSkeleton = errors.New("symlinktree: not there yet")

// Stamp is a Lamport time in nanoseconds since 1970.
type Stamp int64

func (s Stamp) String() string           { return "" }
func (s Stamp) Time() time.Time          { return time.Unix(0, int64(s)) }
func ParseStamp(s string) (Stamp, error) { return 0, errSkeleton }

type Clock struct{}

func NewClock(real func() time.Time) *Clock { return &Clock{} }
func (c *Clock) Now() Stamp                 { return 0 }
func (c *Clock) Observe(s Stamp) error      { return errSkeleton }

type Entry struct {
	Path  string
	Value string
	Stamp Stamp
}

type Options struct {
	FS       vfs.FS
	Node     string
	Clock    *Clock
	Log      *slog.Logger
	Create   bool
	Passive  bool
	ReadOnly bool
}

type Tree struct{}
type Snapshot struct{}

func Open(root string, opt Options) (*Tree, error)                           { return nil, errSkeleton }
func (t *Tree) Root() string                                                 { return "" }
func (t *Tree) Node() string                                                 { return "" }
func (t *Tree) Clock() *Clock                                                { return nil }
func (t *Tree) Get(path string) (string, bool)                               { return "", false }
func (t *Tree) Entry(path string) (Entry, bool)                              { return Entry{}, false }
func (t *Tree) List(dir string) []Entry                                      { return nil }
func (t *Tree) Dirs(dir string) []string                                     { return nil }
func (t *Tree) Set(path, value string) error                                 { return errSkeleton }
func (t *Tree) SetAt(path, value string, s Stamp) error                      { return errSkeleton }
func (t *Tree) Touch(path, value string) error                               { return errSkeleton }
func (t *Tree) SetAll(list ...Entry) error                                   { return errSkeleton }
func (t *Tree) SetAllDurable(list ...Entry) error                            { return errSkeleton }
func (t *Tree) SyncDir(dir string) error                                     { return errSkeleton }
func (t *Tree) Delete(path string) error                                     { return errSkeleton }
func (t *Tree) Unlink(path string) error                                     { return errSkeleton }
func (t *Tree) Merge(from string, list []Entry) (changed []Entry, err error) { return nil, errSkeleton }
func (t *Tree) Rescan(dirs ...string) (changed []Entry, err error)           { return nil, errSkeleton }
func (t *Tree) Watch(ctx context.Context) error                              { return errSkeleton }
func (t *Tree) Subscribe() (<-chan struct{}, func())                         { return nil, nil }
func (t *Tree) Seq() uint64                                                  { return 0 }
func (t *Tree) Since(seq uint64) (list []Entry, next uint64, ok bool)        { return nil, 0, false }
func (t *Tree) Epoch() uint64                                                { return 0 }
func (t *Tree) RootDigest() [16]byte                                         { return [16]byte{} }
func (t *Tree) DirDigests() map[string][16]byte                              { return nil }
func (t *Tree) Dir(dir string) []Entry                                       { return nil }
func (t *Tree) Snapshot() *Snapshot                                          { return nil }
func (s *Snapshot) Get(path string) (string, bool)                           { return "", false }
func (s *Snapshot) Entry(path string) (Entry, bool)                          { return Entry{}, false }
func (s *Snapshot) List(dir string) []Entry                                  { return nil }
func (s *Snapshot) Dirs(dir string) []string                                 { return nil }
