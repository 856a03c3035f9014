package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
)

func TestFaults(t *testing.T) {
	seed := testutil.Seed(t)
	f := New(seed)
	must(t, f.AddFile("/m/log-1", 0, nil))
	must(t, f.AddFile("/m/disk", 8192, nil))
	log, disk := open(t, f, "/m/log-1", os.O_RDWR), open(t, f, "/m/disk", os.O_RDWR)
	p := bytes.Repeat([]byte("x"), 4096)

	t.Run("k-th write of a pattern", func(t *testing.T) {
		defer f.Inject(Fault{Ops: OpWrite, Path: "log-*", After: 2, Count: 1, Err: syscall.EIO})()
		for n := range 5 {
			if _, err := disk.WriteAt(p, 0); err != nil {
				t.Fatal("another file: ", err)
			}
			k, err := log.WriteAt(p, int64(n)*4096)
			if (n == 2) != errors.Is(err, syscall.EIO) || (n == 2) == (k == len(p)) {
				t.Fatalf("write %d: %d %v", n, k, err)
			}
			var perr *fs.PathError
			if err != nil && (!errors.As(err, &perr) || perr.Path != "/m/log-1") {
				t.Fatalf("error names no path: %v", err)
			}
		}
	})
	t.Run("short write", func(t *testing.T) {
		defer f.Inject(Fault{Ops: OpWrite, Path: "/m/log-1", Err: syscall.ENOSPC, Short: true})()
		seen := map[bool]bool{}
		for range 50 {
			must(t, log.Truncate(0))
			n, err := log.WritevAt([][]byte{p[:10], p[10:]}, 0)
			size, _ := log.Size()
			if !errors.Is(err, syscall.ENOSPC) || n >= len(p) || size != int64(n) {
				t.Fatal(n, size, err)
			}
			seen[n > 0] = true
		}
		if !seen[true] {
			t.Error("nothing was ever stored")
		}
	})
	t.Run("by chance", func(t *testing.T) {
		defer f.Inject(Fault{Ops: OpRead | OpDatasync, Path: "disk", Prob: 0.5, Err: syscall.EIO})()
		bad := 0
		for range 200 {
			if _, err := disk.ReadAt(p, 0); err != nil {
				bad++
			}
		}
		if bad < 50 || bad > 150 {
			t.Errorf("%d of 200 reads failed", bad)
		}
	})
	t.Run("names", func(t *testing.T) {
		for _, kind := range []OpKind{OpCreate, OpMkdir, OpRename, OpRemove, OpSymlink, OpSyncDir, OpOpen, OpTruncate} {
			before := state(t, f, "/m")
			remove := f.Inject(Fault{Ops: kind, Err: syscall.ENOSPC})
			err := map[OpKind]func() error{
				OpCreate:   func() error { _, err := f.OpenFile("/m/n", os.O_CREATE|os.O_RDWR, 0o600); return err },
				OpMkdir:    func() error { return f.Mkdir("/m/n", 0o700) },
				OpRename:   func() error { return f.Rename("/m/disk", "/m/n") },
				OpRemove:   func() error { return f.Remove("/m/disk") },
				OpSymlink:  func() error { return f.Symlink("v", "/m/n", time.Now()) },
				OpSyncDir:  func() error { return f.SyncDir("/m") },
				OpOpen:     func() error { _, err := f.OpenFile("/m/disk", os.O_RDONLY, 0); return err },
				OpTruncate: func() error { return log.Truncate(1) },
			}[kind]()
			remove()
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%v: %v", kind, err)
			}
			if after := state(t, f, "/m"); after != before {
				t.Errorf("%v failed but changed something", kind)
			}
		}
	})
	t.Run("two at once", func(t *testing.T) {
		var order []string
		defer f.Inject(Fault{Ops: OpWrite, Delay: func(op Op) { order = append(order, fmt.Sprint(op.Kind, " ", op.Len)) }})()
		defer f.Inject(Fault{Ops: OpWrite, Err: syscall.EDQUOT})()
		if _, err := disk.WriteAt(p, 0); !errors.Is(err, syscall.EDQUOT) || len(order) != 1 || order[0] != "write 4096" {
			t.Fatal(err, order)
		}
	})
}

func TestFailedSyncDirKeepsEntriesPending(t *testing.T) {
	f := New(1)
	open(t, f, "/a", os.O_CREATE|os.O_RDWR)
	f.Inject(Fault{Ops: OpSyncDir, Count: 1, Err: syscall.EIO})
	if err := f.SyncDir("/"); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if got := state(t, f.Crash(LoseAll, rnd(1)), ""); got != "" {
		t.Fatalf("durable after a failed sync: %q", got)
	}
	must(t, f.SyncDir("/"))
	if got := state(t, f.Crash(LoseAll, rnd(1)), ""); got != `a="" ` {
		t.Fatalf("%q", got)
	}
}

func TestCapacity(t *testing.T) {
	f := New(1)
	f.SetCapacity(10 * pageSize)
	a := open(t, f, "/a", os.O_CREATE|os.O_RDWR)
	n, err := a.WriteAt(make([]byte, 12*pageSize), 100)
	if !errors.Is(err, syscall.ENOSPC) || n != 10*pageSize-100 {
		t.Fatal(n, err)
	}
	free := func(want int64) {
		t.Helper()
		got, total, err := f.FreeSpace("/")
		if err != nil || total != 10*pageSize || got != want*pageSize {
			t.Fatalf("free %d of %d, want %d pages; %v", got, total, want, err)
		}
	}
	free(0)
	if n, err := a.WriteAt([]byte("over"), 5); n != 4 || err != nil {
		t.Fatal("overwriting needs no space: ", n, err)
	}
	must(t, a.Truncate(pageSize))
	free(9)
	b := open(t, f, "/b", os.O_CREATE|os.O_RDWR)
	write(t, b, "x", 5*pageSize) // a hole before it
	free(8)
	must(t, f.Remove("/b"))
	free(8) // still open
	must(t, b.Close())
	free(9)
	must(t, f.Rename("/a", "/c"))
	free(9)
	c := open(t, f, "/d", os.O_CREATE|os.O_RDWR)
	must(t, c.Close())
	must(t, a.Close())
	must(t, f.Rename("/d", "/c")) // frees what was /a
	free(10)
	if _, _, err := f.FreeSpace("/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	k := f.KillState()
	if got, _, _ := k.FreeSpace("/"); got != 10*pageSize {
		t.Fatal("free after a kill: ", got)
	}
}

func TestDisk(t *testing.T) {
	f := New(1)
	must(t, f.AddDisk("/dev/d", 1000, strings.NewReader("boot")))
	if err := f.AddDisk("/dev/d", 1000, nil); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	d := open(t, f, "/dev/d", os.O_RDWR|os.O_TRUNC)
	if n, err := d.WriteAt(make([]byte, 10), 995); n != 5 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	if n, err := d.WriteAt(make([]byte, 10), 2000); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	if err := d.Truncate(10); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if size, err := d.Size(); size != 1000 || err != nil {
		t.Fatal(size, err)
	}
	p, err := f.Crash(LoseAll, rnd(1)).ReadFile("/dev/d")
	if err != nil || !bytes.HasPrefix(p, []byte("boot")) || len(p) != 1000 {
		t.Fatal(len(p), err)
	}
	if ops := f.Ops(); ops != 2 {
		t.Fatalf("%d operations, want the two writes: setting up is free", ops)
	}
}

func TestPowerCutStopsEverything(t *testing.T) {
	f := New(1)
	must(t, f.AddFile("/a", 1, nil))
	must(t, f.MkdirAll("/d"))
	h := open(t, f, "/a", os.O_RDWR)
	f.CutAt(f.Ops() + 2)
	write(t, h, "1", 0)
	if f.Frozen() {
		t.Fatal("cut too early")
	}
	if _, err := h.WriteAt([]byte("2"), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"open":     func() error { _, err := f.OpenFile("/a", os.O_RDONLY, 0); return err },
		"create":   func() error { _, err := f.OpenFile("/n", os.O_CREATE|os.O_RDWR, 0); return err },
		"read":     func() error { _, err := h.ReadAt(make([]byte, 1), 0); return err },
		"write":    func() error { _, err := h.WriteAt(nil, 0); return err },
		"writev":   func() error { _, err := h.WritevAt(nil, 0); return err },
		"truncate": func() error { return h.Truncate(0) },
		"datasync": h.Datasync,
		"size":     func() error { _, err := h.Size(); return err },
		"rename":   func() error { return f.Rename("/a", "/b") },
		"remove":   func() error { return f.Remove("/a") },
		"mkdir":    func() error { return f.Mkdir("/m", 0o700) },
		"symlink":  func() error { return f.Symlink("", "/s", time.Now()) },
		"readlink": func() error { _, err := f.Readlink("/a"); return err },
		"lstat":    func() error { _, err := f.Lstat("/a"); return err },
		"readdir":  func() error { _, err := f.ReadDir("/"); return err },
		"syncdir":  func() error { return f.SyncDir("/") },
		"statfs":   func() error { _, _, err := f.FreeSpace("/"); return err },
	}
	ops := f.Ops()
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrPowerCut) {
			t.Errorf("%s after the cut: %v", name, err)
		}
	}
	if f.Ops() != ops {
		t.Error("operations after the cut are counted")
	}
	if err := h.Close(); !errors.Is(err, ErrPowerCut) {
		t.Errorf("close after the cut: %v", err)
	}
	k := f.KillState()
	if got := state(t, k, ""); got != `a="1" d/ ` {
		t.Errorf("state at the cut: %q", got)
	}
	open(t, k, "/works", os.O_CREATE|os.O_RDWR)
}

// A call that is delayed when the power goes does not take effect.
func TestCutDuringADelay(t *testing.T) {
	f := New(1)
	must(t, f.AddFile("/a", 1, nil))
	h := open(t, f, "/a", os.O_RDWR)
	f.Inject(Fault{Ops: OpWrite, Delay: func(Op) { f.PowerCut() }})
	if _, err := h.WriteAt([]byte("1"), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatal(err)
	}
	if got := state(t, f.KillState(), ""); got != "a=\"\\x00\" " {
		t.Fatal(got)
	}
}

func TestKillThenPowerCut(t *testing.T) {
	f := New(1)
	must(t, f.AddFile("/a", 1, nil))
	write(t, open(t, f, "/a", os.O_RDWR), "1", 0)
	open(t, f, "/b", os.O_CREATE|os.O_RDWR)
	k := f.KillState()
	if got := state(t, k, ""); got != `a="1" b="" ` {
		t.Fatal(got)
	}
	if got := state(t, k.Crash(LoseAll, rnd(1)), ""); got != "a=\"\\x00\" " {
		t.Fatalf("a power cut after the kill: %q", got)
	}
	must(t, open(t, k, "/a", os.O_RDWR).Datasync())
	if got := state(t, k.Crash(LoseAll, rnd(1)), ""); got != `a="1" ` {
		t.Fatalf("synced by the next process: %q", got)
	}
	if got := state(t, f.Crash(LoseAll, rnd(1)), ""); got != "a=\"\\x00\" " {
		t.Fatalf("the first file system changed: %q", got)
	}
}

// Derived file systems and the live one are independent, also under -race.
func TestIndependentCopies(t *testing.T) {
	f := New(1)
	must(t, f.AddDisk("/disk", 64*pageSize, nil))
	h := open(t, f, "/disk", os.O_RDWR)
	var wg sync.WaitGroup
	r := rnd(testutil.Seed(t))
	for round := range 20 {
		write(t, h, fmt.Sprintf("round %02d", round), int64(round)*pageSize)
		for _, c := range []*FS{f.Crash(KeepAll, r), f.KillState()} {
			wg.Go(func() {
				d := open(t, c, "/disk", os.O_RDWR)
				for k := range 64 {
					write(t, d, "scribble", int64(k)*pageSize)
				}
				open(t, c, "/new", os.O_CREATE|os.O_RDWR)
			})
		}
	}
	wg.Wait()
	for round := range 20 {
		p := make([]byte, 8)
		if _, err := h.ReadAt(p, int64(round)*pageSize); err != nil || string(p) != fmt.Sprintf("round %02d", round) {
			t.Fatalf("%d: %q %v", round, p, err)
		}
	}
	if got := state(t, f, ""); strings.Contains(got, "new") {
		t.Fatal(got[:20])
	}
}

// Without any sync the pending lists stay bounded, and forgotten files are freed.
func TestBounds(t *testing.T) {
	f := New(1)
	must(t, f.AddFile("/a", 0, nil))
	h := open(t, f, "/a", os.O_RDWR)
	for n := range 3 * pendingLimit {
		write(t, h, "x", int64(n))
		must(t, f.Symlink("v", "/l", time.Unix(1, 0)))
		must(t, f.Remove("/l"))
	}
	if n := f.Unsynced(); n > 5*pendingLimit {
		t.Fatalf("%d units pending", n)
	}
	for n := range 2000 {
		name := fmt.Sprintf("/f%d", n)
		must(t, open(t, f, name, os.O_CREATE|os.O_RDWR).Close())
		must(t, f.Remove(name))
		must(t, f.SyncDir("/"))
	}
	if n := len(f.inodes); n > 600 {
		t.Fatalf("%d inodes kept for 2 files", n)
	}
	f.SyncAll()
	if f.Unsynced() != 0 {
		t.Fatal("SyncAll left something")
	}
}

// Rename across directories, then sync only one side: older pending operations
// on the same names do not come back.
func TestOlderOperationsDoNotOverwriteDurableOnes(t *testing.T) {
	f := newTestFS()
	must(t, f.MkdirAll("/d"))
	open(t, f, "/a", os.O_CREATE|os.O_RDWR)
	must(t, f.Rename("/a", "/d/a"))
	must(t, f.SyncDir("/d"))
	wantOutcomes(t, "subset", outcomes(t, f, Subset, 1), `d/ a="" `)
	must(t, f.Symlink("v", "/d/s", time.Unix(0, 5)))
	must(t, f.Rename("/d/s", "/s"))
	must(t, f.SyncDir("/"))
	wantOutcomes(t, "subset", outcomes(t, f, Subset, 1), `d/ a="" s->v@5 `)
}

func TestDeterminism(t *testing.T) {
	run := func() string {
		f := newTestFS()
		var out strings.Builder
		r := rnd(3)
		f.OnOp(func(c *Cut) {
			fmt.Fprintln(&out, c.Op.N, c.Op.Kind, c.Op.Path, c.Unsynced(), state(t, c.Crash(Subset, r), ""))
		})
		for n := range 20 {
			h := open(t, f, fmt.Sprint("/f", n%3), os.O_CREATE|os.O_RDWR)
			write(t, h, "data", int64(n))
			must(t, f.Symlink("v", "/t", time.Unix(0, int64(n))))
			must(t, f.Rename("/t", fmt.Sprint("/l", n%2)))
			if n%7 == 6 {
				must(t, f.SyncDir("/"))
			}
		}
		return out.String()
	}
	if a, b := run(), run(); a != b {
		t.Fatal("two equal runs differ")
	}
}

func BenchmarkCrash(b *testing.B) {
	f := New(1)
	if err := f.AddDisk("/disk", 64<<20, nil); err != nil {
		b.Fatal(err)
	}
	d := open(b, f, "/disk", os.O_RDWR)
	h := open(b, f, "/log", os.O_CREATE|os.O_RDWR)
	p := make([]byte, 4096)
	for n := range int64(16384) {
		d.WriteAt(p, n*4096)
	}
	for n := range 200 {
		must(b, f.Symlink("v", fmt.Sprint("/l", n), time.Now()))
	}
	f.SyncAll()
	for n := range int64(64) {
		h.WriteAt(p, n*4096)
	}
	r := rnd(1)
	for b.Loop() {
		f.Crash(Subset, r)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "crashes/s")
}
