package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// files is what is in a filesystem for certain: name -> seed of the content.
type files struct {
	t   testing.TB
	rnd *rand.Rand

	mu        sync.Mutex
	confirmed map[string]uint64
	next      int
}

func newFiles(t testing.TB) *files {
	return &files{t: t, rnd: seeded(t), confirmed: map[string]uint64{}}
}

// data is the content of a file.
func data(seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	p := make([]byte, 1+rnd.IntN(48<<10))
	for i := 0; i < len(p); i++ {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// known writes files for mke2fs -d.
func (f *files) known(dir string, n int) {
	f.t.Helper()
	for range n {
		name, seed := f.name()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data(seed), 0o600); err != nil {
			f.t.Fatal(err)
		}
		f.confirmed[name] = seed
	}
}

func (f *files) name() (string, uint64) {
	f.next++
	return fmt.Sprintf("d%02d/file-%06d", f.next%7, f.next), f.rnd.Uint64()
}

// write makes one file, and returns nil once fsync has confirmed the file and its
// directory entry.
func (f *files) write(root string) error {
	name, seed := f.name()
	path := filepath.Join(root, name)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err == nil {
		if err := syncPath(root); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	o, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = o.Write(data(seed))
	if err == nil {
		err = o.Sync()
	}
	if err = errors.Join(err, o.Close()); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(path)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmed[name] = seed
	return nil
}

func syncPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f *files) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.confirmed)
}

// check reads every confirmed file.
func (f *files) check(root string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	bad := 0
	for name, seed := range f.confirmed {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err == nil && !bytes.Equal(got, data(seed)) {
			err = fmt.Errorf("%s: its content is not what fsync has confirmed", name)
		}
		if err != nil {
			if bad++; bad <= 5 {
				f.t.Error(err)
			}
		}
	}
	if bad > 0 {
		f.t.Fatalf("%d of %d confirmed files are lost or damaged", bad, len(f.confirmed))
	}
}

// writer writes files until it is stopped or the filesystem fails.
type writer struct {
	f    *files
	stop chan struct{}
	done chan struct{}
	err  error
}

func (f *files) start(root string) *writer {
	w := &writer{f: f, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for {
			select {
			case <-w.stop:
				return
			default:
			}
			if w.err = f.write(root); w.err != nil {
				return
			}
		}
	}()
	return w
}

// end stops the writer; its error is that of the file it was at.
func (w *writer) end() error {
	close(w.stop)
	<-w.done
	return w.err
}

// more waits for n further files.
func (w *writer) more(on *Node, n int) {
	on.t.Helper()
	before := w.f.count()
	on.WaitFor("the writer goes on", func() bool {
		select {
		case <-w.done:
			on.t.Fatalf("the writer has failed: %v", w.err)
		default:
		}
		return w.f.count() >= before+n
	})
}

// ext4Cluster is a cluster of two; hosta's disk holds an ext4 filesystem with known
// files and is a resource.
func ext4Cluster(t *testing.T, size int64) (a, b *Node, f *files) {
	t.Helper()
	needBlockLayer(t)
	c := NewCluster(t, 2)
	a, b = c.Nodes[0], c.Nodes[1]
	f = newFiles(t)
	known := a.Path("known")
	f.known(known, 60)
	disk := a.Disk("disk", size)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", known, disk)
	a.CreateResource(disk)
	b.Disk("disk", size)
	return a, b, f
}

// TestExt4 takes a filesystem over to the other node and back.
func TestExt4(t *testing.T) {
	t.Parallel()
	a, b, f := ext4Cluster(t, 96*mib)
	m := mountOn(a)
	f.check(m.dir)

	w := f.start(m.dir)
	b.JoinResource(b.Path("disk")) // syncs while files are written
	w.more(a, 20)
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	// While the device is in use nobody takes it away.
	if _, stderr, code := b.Try("primary", "r0"); code != 1 || !strings.Contains(stderr, "in use") {
		t.Errorf("primary on %s while %s has it mounted: exit code %d: %s", b.Name, a.Name, code, stderr)
	}
	m.umount()

	for _, step := range []struct{ from, to *Node }{{a, b}, {b, a}} {
		step.from.Adm("wait-umount", "r0")
		begin := time.Now()
		step.to.Primary()
		t.Logf("handover to %s took %v", step.to.Name, time.Since(begin))
		m = attach(step.to)
		m.fsck()
		m.umount()
		m = mountOn(step.to)
		f.check(m.dir)
		w = f.start(m.dir)
		w.more(step.to, 20)
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		f.check(m.dir)
		m.umount()
	}
	if _, err := os.Stat(b.Socket("r0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the device of %s is still there after the handover: %v", b.Name, err)
	}
}

// rounds is how often each side is killed.
func rounds(t *testing.T) int {
	if soak(t) > 0 {
		return 10
	}
	return 3
}

// TestExt4Kills kills both sides with kill -9 while files are written, at random
// moments. Every file that fsync has confirmed is there: on hosta as soon as marsd
// runs again, on hostb when it has caught up.
func TestExt4Kills(t *testing.T) {
	t.Parallel()
	a, b, f := ext4Cluster(t, 256*mib)
	b.JoinResource(b.Path("disk"))
	rnd := seeded(t)
	n, until := rounds(t), time.Now().Add(soak(t))
	for round := 0; round < n || time.Now().Before(until); round++ {
		m := mountOn(a)
		f.check(m.dir)
		w := f.start(m.dir)
		w.more(a, 1+rnd.IntN(15))

		b.Kill()
		w.more(a, 1+rnd.IntN(10))
		b.Start()
		w.more(a, rnd.IntN(10))

		// A moment that no file's end decides.
		time.Sleep(time.Duration(rnd.IntN(30_000)) * time.Microsecond)
		a.Kill()
		if err := w.end(); err == nil {
			t.Log("the writer was between two files when marsd died")
		}
		m.tearDown()
		a.Start()
		a.Adm("wait-resource", "r0", "is-device")
		if f.count() > 2500 {
			break // the filesystem is nearly full
		}
	}
	m := mountOn(a) // replays the filesystem's journal
	f.check(m.dir)
	m.umount()
	m = attach(a)
	m.fsck()
	m.release()
	t.Logf("%d confirmed files", f.count())

	a.Adm("wait-umount", "r0")
	b.Primary()
	m = attach(b)
	m.fsck()
	m.release()
	m = mountOn(b)
	f.check(m.dir)
	m.umount()
}

// TestFilesCheckSees is the negative control of the check.
func TestFilesCheckSees(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"missing":   os.Remove,
		"truncated": func(p string) error { return os.Truncate(p, 0) },
		"altered": func(p string) error {
			b, err := os.ReadFile(p)
			b[len(b)/2] ^= 1
			return errors.Join(err, os.WriteFile(p, b, 0o600))
		},
	} {
		probe := &fatalProbe{TB: quietErrors{t}}
		f := &files{t: probe, rnd: rand.New(rand.NewPCG(1, 1)), confirmed: map[string]uint64{}}
		dir := t.TempDir()
		f.known(dir, 5)
		if err := probe.catch(func() { f.check(dir) }); err != nil {
			t.Fatalf("sound files: %v", err)
		}
		if err := spoil(filepath.Join(dir, "d03/file-000003")); err != nil {
			t.Fatal(err)
		}
		if err := probe.catch(func() { f.check(dir) }); !errors.Is(err, errFatal) {
			t.Errorf("a %s file is not noticed", name)
		}
	}
}

// quietErrors swallows Error, which the check calls before Fatal.
type quietErrors struct{ testing.TB }

func (quietErrors) Error(...any) {}
