package symlinktree

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mars/internal/vfs"
)

// Options of Open. The zero value is what the daemon wants, except for Node.
type Options struct {
	FS    vfs.FS       // nil: vfs.OS
	Node  string       // own host name
	Clock *Clock       // nil: one of its own, over time.Now
	Log   *slog.Logger // nil: discard

	// Create makes the root (not its parents) if it is missing.
	Create bool
	// Passive takes the disk as it is: links without a stamp of their own order
	// are not stamped anew, and vanished links do not become tombstones. For
	// commands that run beside the daemon, whose business that is.
	Passive bool
	// ReadOnly never writes anything; it implies Passive.
	ReadOnly bool

	// RescanInterval is the time between full rescans under Watch: the net below
	// the events. Default 60 s; costs about 3 us a link.
	RescanInterval time.Duration
	// PollInterval replaces it where the kernel gives no events (no inotify
	// instances left, another file system layer). Default 1 s.
	PollInterval time.Duration
	// VanishDelay is how long under Watch a link must be gone before it counts as
	// deleted, so that "rm -rf" of a whole directory is seen for what it is.
	// Default 100 ms.
	VanishDelay time.Duration
}

func (o *Options) setDefaults() {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Clock == nil {
		o.Clock = NewClock(time.Now)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Passive = o.Passive || o.ReadOnly
	if o.RescanInterval <= 0 {
		o.RescanInterval = 60 * time.Second
	}
	if o.PollInterval <= 0 {
		o.PollInterval = time.Second
	}
	if o.VanishDelay <= 0 {
		o.VanishDelay = 100 * time.Millisecond
	}
}

// Tree is the symlink tree under one root: the disk, and the memory of it. All
// methods may be called concurrently. See the package comment for what it
// guarantees.
type Tree struct {
	root, node string
	fs         vfs.FS
	swap       vfs.Exchanger // nil if the file layer has none
	noSwap     atomic.Bool   // the file system below has none
	clock      *Clock
	log        *slog.Logger
	opt        Options
	passive    bool
	readOnly   bool
	pid        string
	epoch      uint64
	rootID     identity
	wins       func(a, b Entry) bool // newer; tests replace it
	notify     notifier              // for tests: instead of inotify

	// mu serialises everything that changes the disk.
	mu       sync.Mutex
	lost     map[string]bool // directories with live links that are not on the disk
	anchored map[string]bool // directories whose own names are durable
	checked  bool            // the file system keeps nanoseconds
	doubt    bool            // a known directory may be gone: look before writing

	top atomic.Pointer[node] // the memory; changed only under pub

	pub  sync.Mutex // never held during I/O
	ring *ring
	subs map[chan struct{}]struct{}
}

// tempSeq numbers temporary names; one sequence for all trees of the process.
var tempSeq atomic.Uint64

// Open reads the tree under root into memory. The root must be a directory of
// the calling user; its mode is set to 0700. Every stamp seen is observed by the
// clock. Regular files, dot names and unknown directories are left alone.
func Open(root string, opt Options) (*Tree, error) {
	opt.setDefaults()
	if opt.Node != "" {
		if err := ValidName(opt.Node); err != nil {
			return nil, fmt.Errorf("open tree %s: node: %w", root, err)
		}
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open tree %s: %w", root, err)
	}
	t := &Tree{
		root: abs, node: opt.Node, fs: opt.FS, clock: opt.Clock, log: opt.Log, opt: opt,
		passive: opt.Passive, readOnly: opt.ReadOnly,
		pid: strconv.Itoa(os.Getpid()), epoch: rand.Uint64() | 1, wins: mergeRule,
		lost: make(map[string]bool), anchored: make(map[string]bool),
		ring: newRing(ringLimit), subs: make(map[chan struct{}]struct{}),
	}
	t.swap, _ = t.fs.(vfs.Exchanger)
	t.top.Store(&node{})
	if err := t.openRoot(opt.Create); err != nil {
		return nil, fmt.Errorf("open tree %s: %w", root, err)
	}
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("open tree %s: %w", root, err)
	}
	return t, nil
}

func (t *Tree) openRoot(create bool) error {
	st, err := t.fs.Lstat(t.root)
	if errors.Is(err, fs.ErrNotExist) && create && !t.readOnly {
		if err := t.fs.Mkdir(t.root, 0o700); err != nil {
			return err
		}
		st, err = t.fs.Lstat(t.root)
	}
	switch {
	case err != nil:
		return err
	case st.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%w: it is a symlink; name the directory itself", ErrNotDirectory)
	case !st.IsDir():
		return ErrNotDirectory
	}
	t.rootID = identify(st)
	if t.readOnly {
		return nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to uid %d, this process runs as uid %d; whoever can write here can command the cluster", sys.Uid, os.Geteuid())
	}
	if st.Mode().Perm() != 0o700 {
		return t.chmodRoot()
	}
	return nil
}

func (t *Tree) chmodRoot() error {
	f, err := t.fs.OpenFile(t.root, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("mode must be 0700: %w", err)
	}
	defer f.Close()
	fd, ok := f.(vfs.Fd)
	if !ok {
		return errors.New("mode must be 0700")
	}
	if err := unix.Fchmod(int(fd.Fd()), 0o700); err != nil {
		return fmt.Errorf("mode must be 0700: %w", err)
	}
	return nil
}

// Root is the absolute path of the tree.
func (t *Tree) Root() string { return t.root }

// Node is the own host name.
func (t *Tree) Node() string { return t.node }

// Clock is the Lamport clock that stamps this tree.
func (t *Tree) Clock() *Clock { return t.clock }

// Snapshot is an immutable view of the memory. It costs nothing.
func (t *Tree) Snapshot() *Snapshot { return &Snapshot{top: t.top.Load()} }

// The readers below are those of a Snapshot taken now.

func (t *Tree) Get(path string) (value string, ok bool) { return t.Snapshot().Get(path) }
func (t *Tree) Entry(path string) (Entry, bool)         { return t.top.Load().entry(path) }
func (t *Tree) List(dir string) []Entry                 { return t.Snapshot().List(dir) }
func (t *Tree) Dirs(dir string) []string                { return t.Snapshot().Dirs(dir) }
func (t *Tree) Dir(dir string) []Entry                  { return t.Snapshot().Dir(dir) }
func (t *Tree) RootDigest() [16]byte                    { return t.Snapshot().RootDigest() }
func (t *Tree) DirDigests() map[string][16]byte         { return t.Snapshot().DirDigests() }

// Epoch is a random number of this Open. Sequence numbers of another epoch mean nothing.
func (t *Tree) Epoch() uint64 { return t.epoch }

// Seq is the number of the latest change of a replicated link.
func (t *Tree) Seq() uint64 {
	t.pub.Lock()
	defer t.pub.Unlock()
	return t.ring.seq
}

// Since returns the replicated entries that changed after seq, each path once
// with its newest value, in the order of their newest change; next is the seq to
// ask with the next time. If ok is false the changes are not remembered that far
// back: compare digests, and go on from next.
func (t *Tree) Since(seq uint64) (list []Entry, next uint64, ok bool) {
	t.pub.Lock()
	paths, ok := t.ring.since(seq)
	next = t.ring.seq
	top := t.top.Load()
	t.pub.Unlock()
	if !ok {
		return nil, next, false
	}
	list = make([]Entry, 0, len(paths))
	for _, p := range paths {
		if e, known := top.entry(p); known {
			list = append(list, e)
		}
	}
	return list, next, true
}

// Subscribe returns a channel that is cued after any change of the memory: own,
// merged or by hand. Cues are coalesced. The function ends the subscription.
func (t *Tree) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	t.pub.Lock()
	t.subs[ch] = struct{}{}
	t.pub.Unlock()
	return ch, func() {
		t.pub.Lock()
		delete(t.subs, ch)
		t.pub.Unlock()
	}
}

// publish takes changes into the memory. They are on the disk already.
func (t *Tree) publish(list ...change) {
	if len(list) == 0 {
		return
	}
	t.pub.Lock()
	defer t.pub.Unlock()
	t.top.Store(t.top.Load().apply(list))
	for _, c := range list {
		switch {
		case !Replicated(c.Path):
		case c.forget:
			t.ring.forget(c.Path)
		default:
			t.ring.add(c.Path)
		}
	}
	t.cue()
}

// learnDir makes an empty directory known.
func (t *Tree) learnDir(dir string) {
	t.pub.Lock()
	defer t.pub.Unlock()
	t.top.Store(t.top.Load().update(dir, func(l []Entry) []Entry { return l }))
	t.cue()
}

// forgetDir drops a directory and everything below it.
func (t *Tree) forgetDir(dir string) {
	t.pub.Lock()
	defer t.pub.Unlock()
	if n := t.top.Load().find(dir); n != nil {
		n.walk(func(n *node) {
			for _, e := range n.links {
				t.ring.forget(e.Path)
			}
		})
		t.top.Store(t.top.Load().without(dir))
		t.cue()
	}
}

func (t *Tree) cue() {
	for ch := range t.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
