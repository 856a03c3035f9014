package crashdisk

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"

	"mars/device/nbd"
)

// SectorSize is what a disk writes as a whole or not at all.
const SectorSize = 512

// Kind is the kind of an Entry.
type Kind uint8

// The kinds of Entry.
const (
	Write Kind = iota + 1
	Zero       // the range reads as zeros
	Flush
	Mark
)

// Entry is one event of the history.
type Entry struct {
	Kind Kind
	Disk int    // index in History.Disks; -1 for marks
	Tick uint64 // the clock when it was recorded
	Off  int64
	Len  int64
	Data []byte // Write only
	Text string // Mark only
}

// Recorder records what happens to its disks. Safe for concurrent use.
type Recorder struct {
	tick func() uint64

	mu      sync.Mutex
	disks   []*disk
	entries []Entry
}

// New starts an empty history. clock orders the entries among the events of the
// test, for example the journal of an oracle; it is called with a lock held.
func New(clock func() uint64) *Recorder { return &Recorder{tick: clock} }

// disk is one disk; it implements nbd.Backend.
type disk struct {
	r     *Recorder
	index int
	name  string
	base  *image // content before the history
	now   *image
}

// AddDisk adds a disk with this content, before Serve.
func (r *Recorder) AddDisk(name string, content io.Reader) error {
	base, err := readImage(content)
	if err != nil {
		return fmt.Errorf("add disk %q: %w", name, err)
	}
	if base.size == 0 || base.size%SectorSize != 0 {
		return fmt.Errorf("add disk %q: %d bytes are not a number of sectors", name, base.size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.disks {
		if d.name == name {
			return fmt.Errorf("add disk %q: the name is in use", name)
		}
	}
	r.disks = append(r.disks, &disk{r: r, index: len(r.disks), name: name, base: base, now: base.clone()})
	return nil
}

// Mark inserts a mark: what is known to have happened by now.
func (r *Recorder) Mark(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, Entry{Kind: Mark, Disk: -1, Tick: r.tick(), Text: text})
}

// Len is the number of entries so far.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.entries)
}

// Serve exports all disks on a unix socket. stop ends the server; unmount what
// lies on the disks before that.
func (r *Recorder) Serve(socket string, log *slog.Logger) (stop func() error, err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("serve crash disks: %w", err)
	}
	s := nbd.NewServer(nbd.Config{Log: log})
	r.mu.Lock()
	disks := slices.Clone(r.disks)
	r.mu.Unlock()
	for _, d := range disks {
		if err := s.Add(nbd.Export{Name: d.name, Backend: d}); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return func() error { return errors.Join(s.Close(), <-served) }, nil
}

// Size implements nbd.Backend.
func (d *disk) Size() int64 { return d.base.size }

// ReadAt implements nbd.Backend.
func (d *disk) ReadAt(p []byte, off int64) error {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.now.read(p, off)
	return nil
}

// TryReadAt implements nbd.Backend.
func (d *disk) TryReadAt(p []byte, off int64) (bool, error) { return true, d.ReadAt(p, off) }

// Submit implements nbd.Backend. Trims leave zeros.
func (d *disk) Submit(ops []nbd.Op) error {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	for _, op := range ops {
		if op.Off%SectorSize != 0 || op.Len%SectorSize != 0 {
			return fmt.Errorf("crash disk %s: request [%d+%d] is not made of sectors", d.name, op.Off, op.Len)
		}
		e := Entry{Kind: Zero, Disk: d.index, Off: op.Off, Len: op.Len}
		if op.Kind == nbd.OpWrite {
			e.Kind, e.Data = Write, slices.Clone(op.Data)
		}
		d.r.record(e)
		e.apply(d.now)
	}
	return nil
}

// SyncNow implements nbd.Backend.
func (d *disk) SyncNow() (done bool, err error) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.r.record(Entry{Kind: Flush, Disk: d.index})
	return true, nil
}

// Sync implements nbd.Backend.
func (d *disk) Sync(done func(error)) {
	_, err := d.SyncNow()
	done(err)
}

// record needs r.mu.
func (r *Recorder) record(e Entry) {
	e.Tick = r.tick()
	r.entries = append(r.entries, e)
}

func (e *Entry) apply(img *image) {
	if e.Kind == Write {
		img.write(e.Data, e.Off)
		return
	}
	img.zero(e.Off, e.Len)
}
