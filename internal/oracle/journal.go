package oracle

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is the kind of a request.
type Kind uint8

const (
	KindWrite Kind = iota + 1
	KindFUA
	KindZero
	KindTrim
	KindFlush
)

var kindNames = []string{"?", "write", "fua", "zero", "trim", "flush"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", k)
}

// Request is one line of the journal.
type Request struct {
	Number   uint64 // write number and submit time: the tick of the submission
	Complete uint64 // tick of the successful completion, 0: none (it may or may not have happened)
	Kind     Kind
	Branch   uint32
	Off, Len int64 // bytes
	Conn     int
	Err      string    // why it did not complete
	When     time.Time // wall clock of the completion, for Age only
	// Void is set by Resolve: the request is known to have been lost with a crash.
	Void bool
	// Kept is set by Resolve: of a request that was cut short only the first Kept
	// bytes exist; 0: all.
	Kept int64
}

func (r *Request) String() string {
	s := fmt.Sprintf("%s %d [%d+%d]", r.Kind, r.Number, r.Off, r.Len)
	switch {
	case r.Complete != 0:
		return s + fmt.Sprintf(" done at %d", r.Complete)
	case r.Err != "":
		return s + " failed: " + r.Err
	}
	return s + " never completed"
}

// JournalConfig describes the device under test.
type JournalConfig struct {
	Run    uint64 // id of the run, in every stamp
	Branch uint32 // id of the history
	Size   int64  // bytes, a multiple of 512
	// Initial sectors from 0 were stamped by StampInitial.
	Initial int64
	// Base is the content of the other sectors before the test. nil: zeros.
	Base io.ReaderAt
	// TrimZeroes: the export promises that trimmed ranges read as zeros. If not,
	// a trimmed range may contain anything until the next write.
	TrimZeroes bool
	// File receives every event as a line, see LoadJournal. Lines are written
	// before the request is sent, each with one Write. nil: memory only.
	File io.Writer
}

// Journal is the application's view of the history. Safe for concurrent use.
type Journal struct {
	cfg   JournalConfig
	clock *atomic.Uint64 // shared by all forks of a run

	mu      sync.Mutex
	reqs    []Request // ascending Number
	fileErr error
}

// NewJournal starts an empty journal.
func NewJournal(cfg JournalConfig) (*Journal, error) {
	switch {
	case cfg.Size <= 0 || cfg.Size%SectorSize != 0:
		return nil, fmt.Errorf("journal: device size %d is not a positive multiple of %d", cfg.Size, SectorSize)
	case cfg.Initial < 0 || cfg.Initial*SectorSize > cfg.Size:
		return nil, fmt.Errorf("journal: %d initial sectors do not fit into %d bytes", cfg.Initial, cfg.Size)
	}
	j := &Journal{cfg: cfg, clock: new(atomic.Uint64)}
	j.line("journal run=%d branch=%d size=%d initial=%d trimzeroes=%t\n", cfg.Run, cfg.Branch, cfg.Size, cfg.Initial, cfg.TrimZeroes)
	return j, j.fileErr
}

// Config returns the configuration.
func (j *Journal) Config() JournalConfig { return j.cfg }

// Tick advances the counter that orders everything and returns it: an instant
// for Options.AsOf, such as a crash.
func (j *Journal) Tick() uint64 { return j.clock.Add(1) }

// Submit records that a request is about to be sent and returns its number. The
// caller guarantees that it overlaps no request that may still be in flight.
func (j *Journal) Submit(kind Kind, off, length int64, conn int) (uint64, error) {
	if kind != KindFlush && (off < 0 || length <= 0 || off%SectorSize != 0 || length%SectorSize != 0 || off > j.cfg.Size-length) {
		return 0, fmt.Errorf("journal: %s [%d+%d] is not made of sectors of a device of %d bytes", kind, off, length, j.cfg.Size)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r := Request{Number: j.clock.Add(1), Kind: kind, Branch: j.cfg.Branch, Off: off, Len: length, Conn: conn}
	j.reqs = append(j.reqs, r)
	j.line("submit %d %s branch=%d off=%d len=%d conn=%d\n", r.Number, kind, r.Branch, off, length, conn)
	return r.Number, j.fileErr
}

// Complete records the answer to a request. After an error, as after silence,
// the request may or may not have happened.
func (j *Journal) Complete(number uint64, result error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := find(j.reqs, number)
	if r == nil {
		return fmt.Errorf("journal: completion of unknown request %d", number)
	}
	if r.Complete != 0 {
		return fmt.Errorf("journal: request %d completed twice", number)
	}
	tick := j.clock.Add(1)
	if result != nil {
		r.Err = result.Error()
		j.line("fail %d at=%d %q\n", number, tick, r.Err)
		return j.fileErr
	}
	r.Complete, r.When = tick, time.Now()
	j.line("done %d at=%d wall=%d\n", number, tick, r.When.UnixNano())
	return j.fileErr
}

// find returns the request with this number, or nil.
func find(reqs []Request, number uint64) *Request {
	i := sort.Search(len(reqs), func(i int) bool { return reqs[i].Number >= number })
	if i == len(reqs) || reqs[i].Number != number {
		return nil
	}
	return &reqs[i]
}

// Requests returns a copy of the journal.
func (j *Journal) Requests() []Request {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.reqs)
}

// Resolve takes over what a check of the recovered device has shown, while the
// device is idle and nothing old can still arrive: requests that are missing in
// the image are void from now on, and those that are present count as completed
// now, although nobody was told. A later image in which a void request shows up
// is in violation. v must come from this journal (or the one it was forked from),
// be without violations, and not from Torn.
func (j *Journal) Resolve(v *Verdict) error {
	if err := v.Err(); err != nil {
		return fmt.Errorf("resolve: the image is not a prefix: %w", err)
	}
	if v.unsure {
		return errors.New("resolve: this check (torn requests allowed, or too many doubtful ones) does not tell what exists")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	tick := j.clock.Add(1)
	j.line("resolve at=%d\n", tick)
	for _, m := range v.missing {
		r := find(j.reqs, m.number)
		switch {
		case r == nil:
			return fmt.Errorf("resolve: request %d is not in this journal", m.number)
		case m.sectors == 0:
			r.Void = true
			j.line("void %d\n", r.Number)
		default:
			r.Kept = m.sectors * SectorSize
			j.line("cut %d kept=%d\n", r.Number, r.Kept)
		}
	}
	j.closeMissing(v)
	for _, m := range v.present {
		r := find(j.reqs, m.number)
		if r == nil {
			return fmt.Errorf("resolve: request %d is not in this journal", m.number)
		}
		if r.Complete == 0 {
			r.Complete, r.When = tick, time.Now()
			j.line("done %d at=%d wall=%d\n", m.number, tick, r.When.UnixNano())
		}
	}
	return j.fileErr
}

// closeMissing makes everything void that was submitted after a missing request had been
// acknowledged: an image has it only if it has that one as well. Of what later zeroings and trims
// cover the sectors alone do not tell.
func (j *Journal) closeMissing(v *Verdict) {
	known := map[uint64]bool{}
	for _, m := range v.present {
		known[m.number] = true
	}
	first := uint64(0) // the earliest acknowledgement of one that is missing
	for _, m := range v.missing {
		if r := find(j.reqs, m.number); r != nil && r.Complete != 0 && (first == 0 || r.Complete < first) {
			first = r.Complete
		}
	}
	for i := range j.reqs {
		if r := &j.reqs[i]; first != 0 && r.Number > first && r.Number <= v.AsOf && !known[r.Number] && r.Kind != KindFlush && !r.Void {
			r.Void = true
			j.line("void %d\n", r.Number)
		}
	}
}

// Fork starts the journal of a new history: a node was promoted by force, and v
// is the verdict over its device at that moment. What its device did not contain
// is void in the new history; the old journal goes on unchanged, and neither
// accepts a later write of the other.
func (j *Journal) Fork(branch uint32, v *Verdict, file io.Writer) (*Journal, error) {
	j.mu.Lock()
	n := &Journal{cfg: j.cfg, clock: j.clock, reqs: slices.Clone(j.reqs)}
	j.mu.Unlock()
	if slices.ContainsFunc(n.reqs, func(r Request) bool { return r.Branch == branch }) || branch == j.cfg.Branch {
		return nil, fmt.Errorf("fork: branch %d exists already", branch)
	}
	n.cfg.Branch, n.cfg.File = branch, nil
	// What v has not seen is not part of the new history.
	cut := sort.Search(len(n.reqs), func(i int) bool { return n.reqs[i].Number > v.AsOf })
	n.reqs = n.reqs[:cut:cut]
	if err := n.Resolve(v); err != nil {
		return nil, fmt.Errorf("fork branch %d: %w", branch, err)
	}
	n.cfg.File = file
	n.dump()
	return n, n.fileErr
}

// CheckImage judges img; see Checker.Check. For many images of one history make
// the Checker once.
func (j *Journal) CheckImage(img io.ReaderAt, opt Options) (*Verdict, error) {
	return NewChecker(j).Check(img, opt)
}
