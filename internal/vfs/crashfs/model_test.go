package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
	"mars/internal/vfs"
)

func rnd(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, f vfs.FS, name string, flag int) vfs.File {
	t.Helper()
	h, err := f.OpenFile(name, flag, 0o600)
	must(t, err)
	return h
}

func write(t testing.TB, h vfs.File, p string, off int64) {
	t.Helper()
	_, err := h.WriteAt([]byte(p), off)
	must(t, err)
}

// state prints a whole file system, for comparisons.
func state(t testing.TB, f *FS, dir string) string {
	t.Helper()
	list, err := f.ReadDir("/" + dir)
	must(t, err)
	var b strings.Builder
	for _, e := range list {
		name := dir + "/" + e.Name()
		switch {
		case e.IsDir():
			fmt.Fprintf(&b, "%s/ %s", e.Name(), state(t, f, name))
		case e.Type() == fs.ModeSymlink:
			l, err := f.Readlink(name)
			must(t, err)
			info, err := e.Info()
			must(t, err)
			fmt.Fprintf(&b, "%s->%s@%d ", e.Name(), l, info.ModTime().UnixNano())
		default:
			p, err := f.ReadFile(name)
			must(t, err)
			fmt.Fprintf(&b, "%s=%q ", e.Name(), p)
		}
	}
	return b.String()
}

// outcomes crashes f many times under p and returns the different states.
func outcomes(t testing.TB, f *FS, p Policy, seed uint64) map[string]int {
	t.Helper()
	got := map[string]int{}
	r := rnd(seed)
	for range 400 {
		got[state(t, f.Crash(p, r), "")]++
	}
	return got
}

func wantOutcomes(t testing.TB, what string, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("%s: state %q never seen", what, w)
		}
		delete(got, w)
	}
	for g, n := range got {
		t.Errorf("%s: unexpected state %q (%d times)", what, g, n)
	}
}

// Each row is a small history; want lists every state that some policy may
// produce, lose what LoseAll must produce and keep what KeepAll must.
var histories = []struct {
	name       string
	do         func(t testing.TB, f *FS)
	lose, keep string
	others     []string // by Subset
}{
	{"entry without directory sync", func(t testing.TB, f *FS) {
		h := open(t, f, "/a", os.O_CREATE|os.O_RDWR)
		write(t, h, "x", 0)
		must(t, h.Datasync())
	}, "", `a="x" `, nil},
	{"directory sync without data sync", func(t testing.TB, f *FS) {
		h := open(t, f, "/a", os.O_CREATE|os.O_RDWR)
		write(t, h, "x", 0)
		must(t, f.SyncDir("/"))
	}, `a="" `, `a="x" `, []string{"a=\"\\x00\" "}},
	{"both synced", func(t testing.TB, f *FS) {
		h := open(t, f, "/a", os.O_CREATE|os.O_RDWR)
		write(t, h, "x", 0)
		must(t, h.Datasync())
		must(t, f.SyncDir("/"))
	}, `a="x" `, `a="x" `, nil},
	{"rename without sync is atomic", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 1, strings.NewReader("o")))
		must(t, f.AddFile("/b", 1, strings.NewReader("n")))
		must(t, f.Rename("/b", "/a"))
	}, `a="o" b="n" `, `a="n" `, nil},
	{"replace without data sync", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 1, strings.NewReader("o")))
		h := open(t, f, "/b", os.O_CREATE|os.O_RDWR)
		write(t, h, "n", 0)
		must(t, f.Rename("/b", "/a"))
		must(t, f.SyncDir("/"))
	}, `a="" `, `a="n" `, []string{"a=\"\\x00\" "}},
	{"rename across directories", func(t testing.TB, f *FS) {
		must(t, f.MkdirAll("/d"))
		must(t, f.AddFile("/a", 0, nil))
		must(t, f.Rename("/a", "/d/a"))
	}, `a="" d/ `, `d/ a="" `, nil},
	{"remove", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 0, nil))
		must(t, f.Remove("/a"))
	}, `a="" `, "", nil},
	{"remove and create again", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 1, strings.NewReader("o")))
		must(t, f.Remove("/a"))
		open(t, f, "/a", os.O_CREATE|os.O_RDWR)
	}, `a="o" `, `a="" `, []string{""}},
	{"mkdir", func(t testing.TB, f *FS) {
		must(t, f.Mkdir("/d", 0o700))
		open(t, f, "/d/a", os.O_CREATE|os.O_RDWR)
		must(t, f.SyncDir("/d"))
	}, "", `d/ a="" `, nil},
	{"truncate", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 3, strings.NewReader("abc")))
		must(t, open(t, f, "/a", os.O_RDWR).Truncate(1))
	}, `a="abc" `, `a="a" `, nil},
	{"truncate, then grow: the size is one field", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 3, strings.NewReader("abc")))
		h := open(t, f, "/a", os.O_RDWR)
		must(t, h.Truncate(1))
		must(t, h.Truncate(4))
	}, `a="abc" `, "a=\"a\\x00\\x00\\x00\" ", []string{`a="a" `}},
	{"symlink", func(t testing.TB, f *FS) {
		must(t, f.Symlink("v", "/l", time.Unix(0, 5)))
	}, "", "l->v@5 ", []string{"l->v@99 "}},
	{"symlink by rename, synced", func(t testing.TB, f *FS) {
		must(t, f.Symlink("v", "/.tmp", time.Unix(0, 5)))
		must(t, f.Rename("/.tmp", "/l"))
		must(t, f.SyncDir("/"))
	}, "l->v@5 ", "l->v@5 ", nil},
	{"symlink by rename", func(t testing.TB, f *FS) {
		must(t, f.Symlink("v", "/.t", time.Unix(0, 5)))
		must(t, f.Rename("/.t", "/l"))
	}, "", "l->v@5 ", []string{"l->v@99 ", ".t->v@5 ", ".t->v@99 "}},
	{"two writes in one sector are cumulative", func(t testing.TB, f *FS) {
		must(t, f.AddFile("/a", 2, strings.NewReader("--")))
		h := open(t, f, "/a", os.O_RDWR)
		write(t, h, "x", 0)
		write(t, h, "y", 1)
	}, `a="--" `, `a="xy" `, []string{`a="x-" `}},
}

func newTestFS() *FS {
	f := New(1)
	f.SetClock(func() time.Time { return time.Unix(0, 99) })
	return f
}

func TestHistories(t *testing.T) {
	seed := testutil.Seed(t)
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			f := newTestFS()
			h.do(t, f)
			wantOutcomes(t, "lose-all", outcomes(t, f, LoseAll, seed), h.lose)
			wantOutcomes(t, "keep-all", outcomes(t, f, KeepAll, seed), h.keep)
			want := h.others
			want = append(want, h.keep)
			if h.lose != h.keep {
				want = append(want, h.lose)
			}
			wantOutcomes(t, "subset", outcomes(t, f, Subset, seed), want...)
			if got := state(t, f.KillState(), ""); got != h.keep {
				t.Errorf("after a kill: %q, want %q", got, h.keep)
			}
			if got := state(t, f, ""); got != h.keep {
				t.Errorf("the live file system changed: %q, want %q", got, h.keep)
			}
		})
	}
}

// With a journal the metadata survive as a prefix: no link without its mtime, no
// size without data, no second rename without the first.
func TestJournaledMetadata(t *testing.T) {
	seed := testutil.Seed(t)
	f := newTestFS()
	f.SetMetadata(Journaled)
	must(t, f.Symlink("v", "/.t", time.Unix(0, 5)))
	must(t, f.Rename("/.t", "/l"))
	h := open(t, f, "/a", os.O_CREATE|os.O_RDWR)
	write(t, h, "x", 0)
	wantOutcomes(t, "subset", outcomes(t, f, Subset, seed), "", ".t->v@99 ", ".t->v@5 ", "l->v@5 ", `a="" l->v@5 `, `a="x" l->v@5 `)

	h2 := open(t, f, "/b", os.O_CREATE|os.O_RDWR)
	must(t, h2.Datasync()) // one journal: it commits everything before
	wantOutcomes(t, "lose-all after any sync", outcomes(t, f, LoseAll, seed), `a="x" b="" l->v@5 `)
}

// The same for SyncDir: it commits what other directories have pending.
func TestJournaledSyncDir(t *testing.T) {
	f := newTestFS()
	f.SetMetadata(Journaled)
	must(t, f.MkdirAll("/d"))
	must(t, f.Symlink("v", "/l", time.Unix(0, 5)))
	write(t, open(t, f, "/a", os.O_CREATE|os.O_RDWR), "x", 0)
	must(t, f.SyncDir("/d"))
	wantOutcomes(t, "lose-all", outcomes(t, f, LoseAll, 1), `a="x" d/ l->v@5 `)
}

// Bytes that reached the disk beyond a size that did not are gone: they must not
// come back when the file grows again.
func TestDataBeyondALostSizeReadsAsZeros(t *testing.T) {
	f := newTestFS()
	must(t, f.AddFile("/a", 0, nil))
	write(t, open(t, f, "/a", os.O_RDWR), "x", 0)
	short := 0
	r := rnd(testutil.Seed(t))
	for range 200 {
		c := f.Crash(Subset, r)
		if state(t, c, "") != `a="" ` {
			continue
		}
		short++
		must(t, open(t, c, "/a", os.O_RDWR).Truncate(1))
		if got := state(t, c, ""); got != "a=\"\\x00\" " {
			t.Fatalf("the file grew to %q", got)
		}
	}
	if short == 0 {
		t.Fatal("no crash lost the size")
	}
}

func TestTornAndReordered(t *testing.T) {
	seed := testutil.Seed(t)
	const n = 8
	base := bytes.Repeat([]byte{'.'}, n*sectorSize)
	f := New(seed)
	must(t, f.AddDisk("/disk", int64(len(base)), bytes.NewReader(base)))
	h := open(t, f, "/disk", os.O_RDWR)
	write(t, h, strings.Repeat("a", 4*sectorSize), 0)
	write(t, h, strings.Repeat("b", 4*sectorSize), 4*sectorSize)
	seen := map[string]bool{}
	r := rnd(seed)
	for i := range 6000 {
		p, err := f.Crash([]Policy{Subset, Policies[i%len(Policies)]}[i%2], r).ReadFile("/disk")
		must(t, err)
		sig := make([]byte, n)
		for i := range sig {
			sig[i] = p[i*sectorSize]
			if !bytes.Equal(p[i*sectorSize:(i+1)*sectorSize], bytes.Repeat(sig[i:i+1], sectorSize)) {
				t.Fatalf("sector %d is torn inside", i)
			}
		}
		seen[string(sig)] = true
	}
	for _, want := range []string{"........", "aaaabbbb", "aaaa....", "....bbbb", "aaaab...", "aaaabb..", "aaaa.b.b", "a.a....."} {
		if !seen[want] {
			t.Errorf("state %s never seen in %d different ones", want, len(seen))
		}
	}
}

// A sync covers what was written before it was called, not what lands meanwhile.
func TestSlowSyncCoversOnlyItsPast(t *testing.T) {
	f := New(1)
	must(t, f.AddDisk("/disk", 2*sectorSize, nil))
	h := open(t, f, "/disk", os.O_RDWR)
	write(t, h, "before", 0)
	entered, leave := make(chan bool), make(chan bool)
	remove := f.Inject(Fault{Ops: OpDatasync, Path: "disk", Delay: func(Op) { entered <- true; <-leave }})
	done := make(chan error)
	go func() { done <- h.Datasync() }()
	<-entered
	write(t, h, "during", sectorSize)
	close(leave)
	must(t, <-done)
	remove()
	p, err := f.Crash(LoseAll, rnd(1)).ReadFile("/disk")
	must(t, err)
	if !bytes.HasPrefix(p, []byte("before")) || p[sectorSize] != 0 {
		t.Fatalf("durable: %q and %q", p[:6], p[sectorSize:sectorSize+6])
	}
	must(t, h.Datasync())
	p, _ = f.Crash(LoseAll, rnd(1)).ReadFile("/disk")
	if !bytes.HasPrefix(p[sectorSize:], []byte("during")) {
		t.Fatal("the second sync did not cover the write during the first")
	}
}

func TestFailedSyncIsNeverMadeGood(t *testing.T) {
	seed := testutil.Seed(t)
	lost := 0
	for i := range uint64(64) {
		f := New(seed + i)
		must(t, f.AddDisk("/disk", sectorSize, nil))
		h := open(t, f, "/disk", os.O_RDWR)
		write(t, h, "x", 0)
		f.Inject(Fault{Ops: OpDatasync, Count: 1, Err: syscall.EIO})
		if err := h.Datasync(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		must(t, h.Datasync())
		if p, _ := f.ReadFile("/disk"); p[0] != 'x' {
			t.Fatal("the page cache forgot the write")
		}
		if p, _ := f.Crash(KeepAll, rnd(seed)).ReadFile("/disk"); p[0] != 'x' {
			lost++
		}
	}
	if lost == 0 || lost == 64 {
		t.Fatalf("%d of 64 failed syncs lost their write for ever, want some", lost)
	}
}
