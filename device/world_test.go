package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mars/device/nbd"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
	"mars/logfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	logDir   = "/mars/resource-r"
	diskPath = "/dev/disk"
)

// memJournal is a Journal that is durable at once, and checks what it is told.
type memJournal struct {
	mu       sync.Mutex
	pos      logfile.Position
	end      int64
	fail     error
	failLate error // of Checkpoint only
	calls    int
	problems []string
}

func (j *memJournal) Dirty(log logfile.Name, min, end int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return j.fail
	}
	if log != j.pos.Log || min != j.pos.Offset || end < j.end {
		j.problems = append(j.problems, fmt.Sprintf("dirty %v %d..%d while at %v..%d", log, min, end, j.pos, j.end))
	}
	j.end = end
	j.calls++
	return nil
}

func (j *memJournal) Checkpoint(log logfile.Name, min, end int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := errors.Join(j.fail, j.failLate); err != nil {
		return err
	}
	back := log.Seq < j.pos.Log.Seq || (log == j.pos.Log && min < j.pos.Offset)
	if back || end < min || (log == j.pos.Log && end < j.end && min < j.end) {
		j.problems = append(j.problems, fmt.Sprintf("checkpoint %v %d..%d while at %v..%d", log, min, end, j.pos, j.end))
	}
	j.pos, j.end = logfile.Position{Log: log, Offset: min}, end
	j.calls++
	return nil
}

func (j *memJournal) get() (logfile.Position, int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pos, j.end
}

func (j *memJournal) setFail(err, late error) {
	j.mu.Lock()
	j.fail, j.failLate = err, late
	j.mu.Unlock()
}

func (j *memJournal) clone() *memJournal {
	pos, end := j.get()
	return &memJournal{pos: pos, end: end}
}

func name(seq int, host string) logfile.Name { return logfile.Name{Seq: seq, Host: host} }

// world is one node's resource on a file system that can forget.
type world struct {
	t     testing.TB
	fs    *crashfs.FS
	disk  *Disk
	chain *logfile.Chain
	jour  *memJournal
	e     *Engine
	size  int64
	host  string
	tune  func(*EngineConfig)
}

func newWorld(t testing.TB, seed uint64, size int64, base []byte, tune func(*EngineConfig)) *world {
	fs := crashfs.New(seed)
	must(t, fs.MkdirAll(logDir))
	must(t, fs.MkdirAll("/dev"))
	var init io.Reader
	if base != nil {
		init = bytes.NewReader(base)
	}
	must(t, fs.AddDisk(diskPath, size, init))
	w := &world{t: t, fs: fs, jour: &memJournal{pos: logfile.Position{Log: name(1, "a")}}, size: size, host: "a", tune: tune}
	w.open()
	return w
}

// at is a world on the state that a crash left.
func (w *world) at(fs *crashfs.FS, jour *memJournal) *world {
	n := &world{t: w.t, fs: fs, jour: jour, size: w.size, host: w.host, tune: w.tune}
	n.open()
	return n
}

func (w *world) config() EngineConfig {
	cfg := EngineConfig{
		Resource: "r", Host: w.host, Disk: w.disk, Chain: w.chain, Size: w.size, Journal: w.jour,
		Log:          slog.New(slog.DiscardHandler),
		WritebackAge: 2 * time.Millisecond, SyncInterval: time.Millisecond,
		RetryMin: time.Millisecond, RetryMax: 4 * time.Millisecond, RepairInterval: 2 * time.Millisecond,
	}
	if w.tune != nil {
		w.tune(&cfg)
	}
	return cfg
}

func (w *world) open() {
	w.t.Helper()
	var err error
	w.disk, err = OpenDisk(w.fs, diskPath)
	must(w.t, err)
	w.chain, err = logfile.OpenChain(w.fs, logDir)
	must(w.t, err)
	pos, end := w.jour.get()
	w.e, err = OpenEngine(context.Background(), w.config(), pos, end)
	must(w.t, err)
	e, chain, disk := w.e, w.chain, w.disk
	w.t.Cleanup(func() { e.abandon(); chain.Close(); disk.Close() })
}

// abandon is what kill -9 leaves of an engine: nothing more is written.
func (e *Engine) abandon() {
	if e.getMode() != Closed {
		e.stop()
	}
}

// close ends the engine cleanly; reopen opens the same files again.
func (w *world) close() {
	w.t.Helper()
	must(w.t, w.e.Close())
	must(w.t, w.chain.Close())
	must(w.t, w.disk.Close())
}

func (w *world) recover() logfile.Position {
	w.t.Helper()
	end, _, err := w.e.Recover(context.Background(), false)
	must(w.t, err)
	return end
}

// knownTo is what RecoverKnown is told by who knows one position, or none.
func knownTo(at logfile.Position) []logfile.Position {
	if at.Log.IsZero() {
		return nil
	}
	return []logfile.Position{at}
}

// primary recovers and starts the next log.
func (w *world) primary() {
	w.t.Helper()
	end := w.recover()
	next := name(end.Log.Seq+1, w.host)
	if end.Offset == 0 && end.Log.Host == w.host {
		next = end.Log
	}
	must(w.t, w.e.StartLogging(next))
}

func (w *world) rotate() {
	w.t.Helper()
	must(w.t, w.e.Rotate(name(w.e.Status().Current.Seq+1, w.host)))
}

func (w *world) flush() error {
	done := make(chan error, 1)
	w.e.Backend().Sync(func(err error) { done <- err })
	return <-done
}

// content is the device as clients see it.
func (w *world) content() []byte {
	w.t.Helper()
	p := make([]byte, w.size)
	must(w.t, w.e.ReadAt(p, 0))
	return p
}

func (w *world) diskContent() []byte {
	w.t.Helper()
	p, err := w.fs.ReadFile(diskPath)
	must(w.t, err)
	return p
}

// logOracle applies the logs of a directory from start up to end to an image, with
// nothing of the engine.
func logOracle(t testing.TB, fsys vfs.FS, image []byte, start, end logfile.Position) []byte {
	t.Helper()
	image, err := applyLogs(fsys, image, start, end)
	must(t, err)
	return image
}

func applyLogs(fsys vfs.FS, image []byte, start, end logfile.Position) ([]byte, error) {
	image = bytes.Clone(image)
	list, err := logfile.List(fsys, logDir)
	if err != nil {
		return nil, err
	}
	seen := start == end
	for _, f := range list {
		if f.Name.Seq < start.Log.Seq || f.Name.Seq > end.Log.Seq {
			continue
		}
		h, err := fsys.OpenFile(logDir+"/"+f.Name.String(), 0, 0)
		if err != nil {
			return nil, err
		}
		opt := logfile.ReaderOptions{End: f.Size}
		if f.Name == start.Log {
			opt.Start = start.Offset
		}
		if f.Name == end.Log {
			opt.End = end.Offset
			seen = true
		}
		r := logfile.NewReader(h, f.Size, f.Name, opt)
		for {
			rec, err := r.Next(context.Background())
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("log oracle up to %v: %w", end, err)
			}
			switch rec.Code {
			case logfile.CodeWrite:
				copy(image[rec.Pos:], rec.Data)
			case logfile.CodeDiscard, logfile.CodeZeroes:
				n, err := logfile.ParseRangePayload(rec.Data)
				if err != nil {
					return nil, err
				}
				clear(image[rec.Pos : rec.Pos+n])
			}
		}
		r.Close()
		h.Close()
	}
	if !seen {
		return nil, fmt.Errorf("log oracle: there is no %v", end.Log)
	}
	return image, nil
}

// randomOp is a write, a trim or zeroes, of at most longest bytes.
func randomOp(r *rand.Rand, size, longest, align int64) nbd.Op {
	n := align * (1 + r.Int64N(longest/align))
	op := nbd.Op{Off: align * r.Int64N((size-n)/align+1), Len: n}
	switch r.IntN(10) {
	case 0:
		op.Kind = nbd.OpTrim
	case 1:
		op.Kind, op.NoHole = nbd.OpZeroes, r.IntN(2) == 0
	default:
		op.Data = make([]byte, n)
		fill(r, op.Data)
	}
	return op
}

func fill(r *rand.Rand, p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
}

// apply does op to a model.
func apply(image []byte, op *nbd.Op) {
	if op.Kind == nbd.OpWrite {
		copy(image[op.Off:], op.Data)
	} else {
		clear(image[op.Off : op.Off+op.Len])
	}
}

// diff names the first difference.
func diff(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	n, first := 0, -1
	for i := range got {
		if got[i] != want[i] {
			if n++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Errorf("%d bytes differ, the first at %d", n, first)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, target error, text string) {
	t.Helper()
	if err == nil || (target != nil && !errors.Is(err, target)) || !bytes.Contains([]byte(err.Error()), []byte(text)) {
		t.Fatalf("got error %v, want %v with %q", err, target, text)
	}
}

func list(t testing.TB, w *world) (names []logfile.Name) {
	all, err := w.chain.List()
	must(t, err)
	for _, f := range all {
		names = append(names, f.Name)
	}
	return names
}
