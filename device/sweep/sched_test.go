package sweep

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/vfs/crashfs"
)

// mutating are the operations at which a thread stops until it is told to go on.
const mutating = crashfs.OpWrite | crashfs.OpTruncate | crashfs.OpDatasync | crashfs.OpCreate | crashfs.OpMkdir |
	crashfs.OpRename | crashfs.OpRemove | crashfs.OpSymlink | crashfs.OpSyncDir

// sched makes the interleaving of a workload a choice of its driver: every persisted
// operation waits for release. It works inside a synctest bubble, where it is known
// when nobody can go on.
type sched struct {
	mu     sync.Mutex
	parked []*parkedOp
	busy   map[string]bool
	open   bool
	err    error
}

type parkedOp struct {
	op   crashfs.Op
	key  string
	goOn chan struct{}
}

func newSched(fs *crashfs.FS) *sched {
	s := &sched{busy: map[string]bool{}}
	fs.Inject(crashfs.Fault{Ops: mutating, Delay: s.park})
	return s
}

func (s *sched) park(op crashfs.Op) {
	p := &parkedOp{op: op, key: fmt.Sprintf("%s %d %012d %d", stable(op.Path), op.Kind, op.Off, op.Len), goOn: make(chan struct{})}
	s.mu.Lock()
	if s.open {
		s.mu.Unlock()
		return
	}
	s.parked = append(s.parked, p)
	s.mu.Unlock()
	<-p.goOn
}

// stable is a path without what differs from run to run: the number in the name of a
// temporary link.
func stable(path string) string {
	i := strings.Index(path, "/.tmp.")
	if i < 0 {
		return path
	}
	_, name, _ := strings.Cut(path[i+len("/.tmp."):], ".")
	return path[:i] + "/.tmp." + name
}

// settle waits until nobody can go on, and returns the operations that wait, in an order
// that does not depend on the runtime.
func (s *sched) settle() []*parkedOp {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortFunc(s.parked, func(a, b *parkedOp) int { return cmp.Compare(a.key, b.key) })
	return slices.Clone(s.parked)
}

func (s *sched) release(p *parkedOp) {
	s.mu.Lock()
	s.parked = slices.DeleteFunc(s.parked, func(x *parkedOp) bool { return x == p })
	s.mu.Unlock()
	close(p.goOn)
}

// free lets everybody go on without asking, from now on.
func (s *sched) free() {
	s.mu.Lock()
	s.open = true
	list := s.parked
	s.parked = nil
	s.mu.Unlock()
	for _, p := range list {
		close(p.goOn)
	}
}

// start runs f as the thread of that name.
func (s *sched) start(name string, f func() error) {
	s.mu.Lock()
	s.busy[name] = true
	s.mu.Unlock()
	go func() {
		err := f()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy[name] = false
		if err != nil && s.err == nil {
			s.err = fmt.Errorf("%s: %w", name, err)
		}
	}()
}

func (s *sched) running(names ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(names, func(n string) bool { return s.busy[n] })
}

func (s *sched) anybody() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.busy {
		if b {
			return true
		}
	}
	return false
}

func (s *sched) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// finish lets everybody run to the end.
func (s *sched) finish(t testing.TB) {
	t.Helper()
	s.free()
	for range 100 {
		synctest.Wait()
		if !s.anybody() {
			return
		}
		time.Sleep(time.Second) // of the bubble
	}
	t.Fatal("a thread of the workload does not end")
}
