package logfile

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/vfs"
)

// WriterOptions configure a Writer.
type WriterOptions struct {
	// FS defaults to vfs.OS.
	FS vfs.FS
	// Now is the Lamport clock; it is asked once a batch. Defaults to time.Now.
	Now func() time.Time
	// OnAppend is called with the records of each batch, in log order, after they
	// were written and before End moves and any Append of the batch returns. It runs
	// inside the append critical section: it must not call the Writer and not keep
	// the slice. It is not called for a batch that failed.
	OnAppend func([]Placed)
	// MaxRecord bounds the payload of a record, in bytes, 512 to MaxPayload (the
	// default). With 4096 or less records never cross a 64 KiB border of the
	// device either, as the original writes them.
	MaxRecord int
}

func (o WriterOptions) withDefaults() (WriterOptions, error) {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxRecord == 0 {
		o.MaxRecord = MaxPayload
	}
	if o.MaxRecord < sectorSize || o.MaxRecord > MaxPayload {
		return o, fmt.Errorf("MaxRecord is %d, want %d to %d", o.MaxRecord, sectorSize, MaxPayload)
	}
	return o, nil
}

// Writer appends records to one logfile. All methods are safe for concurrent
// use. There is no goroutine of its own: callers that find nobody writing write
// for all that wait (Append) or sync for all that wait (Sync).
//
// The first failure is final: from then on Append, Sync and Err report it, End
// stays before the batch that failed, and nothing is acknowledged any more.
type Writer struct {
	name Name
	opt  WriterOptions
	file vfs.File

	// onSync wakes the Chain when durable or an error has changed; it is set before
	// first use, and called with syncMu held. onClose tells it of the end.
	onSync  func()
	onClose func()

	end     atomic.Int64 // behind the last record that was written and placed
	durable atomic.Int64

	mu      sync.Mutex
	waiting []*appendCall
	spare   []*appendCall // the slice that waiting takes turns with
	calls   sync.Pool     // of *appendCall
	writing bool          // a leader is at work
	err     error         // sticky
	closed  bool
	idle    sync.Cond // signalled when writing becomes false

	// Owned by the leader.
	batch batch
	ahead ahead

	syncMu  sync.Mutex
	syncing bool
	synced  sync.Cond
	syncErr error // sticky
}

// appendCall is one Append that waits.
type appendCall struct {
	entries []Entry
	end     int64
	err     error
	lead    bool // set instead of a result: become the leader
	wake    chan struct{}
}

// Create opens a Writer on a new logfile in dir, or on an existing empty one. The
// file has mode 0600 and its name is durable. A tombstone of the same name is
// replaced; a file with content is refused with ErrNotEmpty.
func Create(dir string, name Name, opt WriterOptions) (*Writer, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	f, err := createFile(opt.FS, dir, name)
	if err != nil {
		return nil, err
	}
	w := &Writer{name: name, opt: opt, file: f, ahead: newAhead(f)}
	w.idle.L = &w.mu
	w.synced.L = &w.syncMu
	return w, nil
}

// Name is the name of the logfile.
func (w *Writer) Name() Name { return w.name }

// End is the log position behind the last appended record.
func (w *Writer) End() int64 { return w.end.Load() }

// Durable is the log position up to which the file has been synced.
func (w *Writer) Durable() int64 { return w.durable.Load() }

// Err is the first failure of a write or a sync, nil while all is well.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Append logs the entries, in order and without those of other callers between
// them, and returns the log position behind them once they are in the file (page
// cache, not yet durable). The entries of all callers that wait go out in one
// vectored write. Refusing a bad entry (ErrEntry) leaves everything as it was.
func (w *Writer) Append(entries []Entry) (end int64, err error) {
	for i := range entries {
		if err := entries[i].check(); err != nil {
			return w.End(), fmt.Errorf("append to %s: %w", w.name, err)
		}
	}
	c := w.call(entries)
	w.mu.Lock()
	if err := w.refuse(); err != nil {
		w.mu.Unlock()
		w.recycle(c)
		return w.End(), err
	}
	w.waiting = append(w.waiting, c)
	if w.writing {
		w.mu.Unlock()
		<-c.wake
		if !c.lead {
			end, err = c.end, c.err
			w.recycle(c)
			return end, err
		}
		w.mu.Lock()
	}
	w.writing = true
	w.lead(c)
	w.mu.Unlock()
	end, err = c.end, c.err
	w.recycle(c)
	return end, err
}

// call takes an appendCall from the pool. The pool is the Writer's own, because its
// channels belong to one test bubble.
func (w *Writer) call(entries []Entry) *appendCall {
	c, ok := w.calls.Get().(*appendCall)
	if !ok {
		c = &appendCall{wake: make(chan struct{}, 1)}
	}
	c.entries, c.err, c.lead = entries, nil, false
	return c
}

func (w *Writer) recycle(c *appendCall) {
	c.entries = nil
	w.calls.Put(c)
}

// refuse reports why nothing can be appended. w.mu is held.
func (w *Writer) refuse() error {
	if w.err != nil {
		return w.err
	}
	if w.closed {
		return fmt.Errorf("append to %s: %w", w.name, ErrClosed)
	}
	return nil
}

// leaderRounds bounds how many batches a caller writes for others after its own.
// More rounds save wake-ups between batches; fewer return to the caller sooner.
const leaderRounds = 8

// lead writes what waits, own among it, and hands over to another caller if there
// is still more. w.mu is held on entry and on return.
func (w *Writer) lead(own *appendCall) {
	for range leaderRounds {
		calls := w.waiting
		if len(calls) == 0 {
			break
		}
		w.waiting = w.spare[:0]
		failed := w.err
		w.mu.Unlock()
		if failed == nil {
			failed = w.write(calls)
		}
		for _, c := range calls {
			c.err = failed
			if failed != nil {
				c.end = w.End()
			}
			if c != own {
				c.wake <- struct{}{}
			}
		}
		clear(calls)
		w.mu.Lock()
		w.spare = calls
		if failed != nil && w.err == nil {
			w.err = failed
		}
	}
	if len(w.waiting) > 0 {
		next := w.waiting[0]
		next.lead = true
		next.wake <- struct{}{}
		return
	}
	w.writing = false
	w.idle.Broadcast()
}

// write encodes and writes one batch. Only the leader calls it, without w.mu.
func (w *Writer) write(calls []*appendCall) error {
	start := w.End()
	b := &w.batch
	b.reset(start, b.seq)
	need := 0
	for _, c := range calls {
		for i := range c.entries {
			need += arenaNeed(&c.entries[i], w.opt.MaxRecord)
		}
	}
	b.reserve(need)
	stamp := w.opt.Now()
	for _, c := range calls {
		b.add(c.entries, w.opt.MaxRecord, stamp)
		c.end = b.end
	}
	if b.end == start {
		return nil
	}
	w.ahead.reserve(w.file, start, b.end)
	n, err := w.file.WritevAt(b.vectors(), start)
	if err == nil && int64(n) != b.end-start {
		err = io.ErrShortWrite
	}
	if err != nil {
		// Take the remains off the file, so that its size is the log's again. If that
		// fails as well, readers find a torn tail behind End.
		w.file.Truncate(start)
		return fmt.Errorf("append to %s: %d of %d bytes written: %w", Position{w.name, start}, n, b.end-start, err)
	}
	if w.opt.OnAppend != nil {
		w.opt.OnAppend(b.placed)
	}
	w.end.Store(b.end)
	clear(b.bufs)
	return nil
}

// Sync makes everything durable that was appended before the call, and returns
// the durable length. Concurrent callers share one fdatasync. After a failed
// write it still syncs the records before it, so that their readers get them,
// but returns the failure.
func (w *Writer) Sync() (durable int64, err error) {
	target := w.End()
	w.syncMu.Lock()
	for w.syncErr == nil && w.durable.Load() < target {
		if w.syncing {
			w.synced.Wait()
			continue
		}
		w.leadSync()
	}
	err = w.syncErr
	w.syncMu.Unlock()
	if err == nil {
		err = w.Err()
	}
	return w.Durable(), err
}

// leadSync runs one fdatasync for all callers. w.syncMu is held on entry and on
// return.
func (w *Writer) leadSync() {
	w.syncing = true
	w.syncMu.Unlock()
	// Whatever has been written by now is covered, also by callers that came later.
	covered := w.End()
	err := w.file.Datasync()
	if err != nil {
		// The kernel may have dropped the pages and report success next time, so no
		// later sync can cover these bytes (and no later append may follow them).
		err = fmt.Errorf("sync %s: %w", Position{w.name, covered}, err)
		w.mu.Lock()
		if w.err == nil {
			w.err = err
		}
		w.mu.Unlock()
	} else {
		w.durable.Store(covered)
	}
	w.syncMu.Lock()
	w.syncing = false
	if err != nil {
		w.syncErr = err
	}
	w.synced.Broadcast()
	if w.onSync != nil {
		w.onSync()
	}
}

// Close waits for callers in flight, syncs and closes the file. It returns the
// first failure of the Writer. Closing again returns ErrClosed.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return fmt.Errorf("close %s: %w", w.name, ErrClosed)
	}
	w.closed = true
	for w.writing {
		w.idle.Wait()
	}
	w.mu.Unlock()
	if w.Err() == nil { // else a reader may want to see what is there
		w.ahead.free(w.file, w.End())
	}
	_, err := w.Sync()
	w.syncMu.Lock()
	for w.syncing {
		w.synced.Wait()
	}
	// From here on End == Durable or syncErr is set, so that Sync stays away from
	// the descriptor.
	cerr := w.file.Close()
	w.syncMu.Unlock()
	if w.onClose != nil {
		w.onClose()
	}
	if cerr != nil {
		cerr = fmt.Errorf("close %s: %w", w.name, cerr)
	}
	return errors.Join(err, cerr)
}
