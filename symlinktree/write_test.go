package symlinktree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSetAndRead(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	r := Resource("r")
	set(t, tr, UUIDPath, "u", r.SizePath(), "4096", r.TodoPath("h", "attach"), "1", r.TodoPath("h", "sync"), "0")
	if v, ok := tr.Get(r.SizePath()); v != "4096" || !ok {
		t.Errorf("size %q %v", v, ok)
	}
	if _, ok := tr.Get("resource-x/size"); ok {
		t.Error("a link that was never set")
	}
	list := tr.List("resource-r/todo-h")
	if len(list) != 2 || list[0].Path != "resource-r/todo-h/attach" || list[1].Value != "0" {
		t.Errorf("list %v", list)
	}
	if d := tr.Dirs(""); !slices.Equal(d, []string{"resource-r"}) {
		t.Errorf("dirs %v", d)
	}
	if d := tr.Dirs("resource-r"); !slices.Equal(d, []string{"todo-h"}) {
		t.Errorf("dirs %v", d)
	}
	for _, d := range []string{"resource-r", "resource-r/todo-h"} {
		if st, err := os.Stat(filepath.Join(root, d)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", d, st.Mode(), err)
		}
	}
	agree(t, tr)

	// Equal: nothing happens. Touch: a new stamp.
	before, _ := tr.Entry(r.SizePath())
	seq := tr.Seq()
	set(t, tr, r.SizePath(), "4096")
	if after, _ := tr.Entry(r.SizePath()); after != before || tr.Seq() != seq {
		t.Errorf("an equal value was written: %v, %v", before, after)
	}
	if err := tr.Touch(r.SizePath(), "4096"); err != nil {
		t.Fatal(err)
	}
	if after, _ := tr.Entry(r.SizePath()); after.Stamp <= before.Stamp || after.Value != "4096" || tr.Seq() == seq {
		t.Errorf("touch: %v, %v", before, after)
	}

	// A tombstone, also where nothing was.
	for _, p := range []string{r.SizePath(), r.DataPath("gone")} {
		if err := tr.Delete(p); err != nil {
			t.Fatal(err)
		}
		if _, ok := tr.Get(p); ok {
			t.Errorf("%s is still there", p)
		}
		if e, ok := tr.Entry(p); !ok || !e.IsDeleted() {
			t.Errorf("%s: %v, %v", p, e, ok)
		}
	}
	if l := tr.List("resource-r"); len(l) != 0 {
		t.Errorf("tombstones are listed: %v", l)
	}
	agree(t, tr)
	if junk, _ := filepath.Glob(root + "/*/.tmp*"); len(junk) > 0 {
		t.Errorf("left behind: %v", junk)
	}
}

func TestSetRefuses(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	set(t, tr, "resource-r/size", "1")
	os.WriteFile(root+"/resource-r/log-000000001-h", []byte("log"), 0o600)
	os.WriteFile(root+"/resource-r/data-h", []byte("a disk image"), 0o600)
	os.WriteFile(root+"/resource-r/systemd-want", nil, 0o600)
	os.Mkdir(root+"/resource-r/directory", 0o700)
	os.Symlink("/etc", root+"/resource-evil")
	before := disk(t, root)
	seq := tr.Seq()
	for _, tc := range []struct {
		path, value string
		want        error
	}{
		{"../x", "1", ErrPath},
		{"resource-r/x", "", ErrValue},
		{"resource-r/x", "a\nb", ErrValue},
		{"resource-r/x", "a\x00b", ErrValue},
		{"resource-r/x", strings.Repeat("x", MaxValue+1), ErrValue},
		{"resource-r/log-000000001-h", "x", ErrPath},
		{"resource-r/log-000000002-h", "x", ErrPath},
		{"resource-r/data-h", "/dev/x", ErrRegularFile},
		{"resource-r/directory", "x", ErrIsDirectory},
		{"resource-evil/x", "1", ErrNotDirectory},
	} {
		if err := tr.Set(tc.path, tc.value); !errors.Is(err, tc.want) {
			t.Errorf("Set(%.40q, %.40q): %v, want %v", tc.path, tc.value, err, tc.want)
		}
	}
	if d := diff(before, disk(t, root)); d != "" || tr.Seq() != seq {
		t.Errorf("refused writes have changed something:\n%s", d)
	}
	set(t, tr, "resource-r/systemd-want", "h") // an empty file may go, marsadm makes such
	if err := tr.Delete("resource-r/log-000000001-h"); err != nil {
		t.Error(err)
	}
	if v, err := os.Readlink(root + "/resource-r/log-000000001-h"); v != Deleted {
		t.Errorf("logfile: %q, %v", v, err)
	}
	// A value as long as allowed is fine: it does not fit into an inode.
	set(t, tr, "resource-r/long", strings.Repeat("x", MaxValue-1))
	if v, _ := tr.Get("resource-r/long"); len(v) != MaxValue-1 {
		t.Errorf("%d bytes", len(v))
	}
}

func TestSetAt(t *testing.T) {
	real := &fakeReal{at: testNow}
	tr := open(t, t.TempDir(), Options{Clock: NewClock(real.now)})
	p := Resource("r").PrimaryPath()
	const sec = Stamp(time.Second)
	for i, tc := range []struct {
		value string
		at    Stamp
		want  error
		now   string
	}{
		{AnyUUID, sec, nil, AnyUUID},
		{"b", sec, nil, "b"},      // equal stamp: the larger value stays
		{"a", sec, ErrStale, "b"}, // and the smaller one is refused
		{"b", sec, nil, "b"},      // repeated
		{"c", sec - 1, ErrStale, "b"},
		{"c", 0, ErrValue, "b"},
		{"c", testNow + Stamp(MaxFuture) + 1, ErrFuture, "b"},
		{"z", testNow, nil, "z"},
	} {
		if err := tr.SetAt(p, tc.value, tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%d: %v, want %v", i, err, tc.want)
		}
		if v, _ := tr.Get(p); v != tc.now {
			t.Errorf("%d: %q, want %q", i, v, tc.now)
		}
	}
	e, _ := tr.Entry(p)
	if e.Stamp != testNow {
		t.Errorf("stamp %v", e.Stamp)
	}
	set(t, tr, p, "y")
	if e, _ := tr.Entry(p); e.Stamp != testNow+1 {
		t.Errorf("a plain Set after it has stamp %v", e.Stamp)
	}
	agree(t, tr)
}

// The disk belongs to other processes too: what one of them has written since
// the last rescan is neither lost nor overruled by an old stamp.
func TestSetSeesTheDisk(t *testing.T) {
	root := t.TempDir()
	real := &fakeReal{at: testNow}
	tr := open(t, root, Options{Clock: NewClock(real.now)})
	p := Resource("r").PrimaryPath()
	set(t, tr, p, "a")

	// The value in memory is a, the disk says b: setting a must write.
	byHand(t, root+"/"+p, "b", testNow+100)
	set(t, tr, p, "a")
	if e, _ := tr.Entry(p); e.Value != "a" || e.Stamp <= testNow+100 {
		t.Errorf("%+v", e)
	}
	agree(t, tr)

	// The disk says what is asked for: no write, but memory learns it.
	byHand(t, root+"/"+p, "c", testNow+1000)
	set(t, tr, p, "c")
	if e, _ := tr.Entry(p); e.Value != "c" || e.Stamp != testNow+1000 {
		t.Errorf("%+v", e)
	}
	if list, _, _ := tr.Since(1); len(list) != 1 || list[0].Value != "c" {
		t.Errorf("peers are not told: %v", list)
	}

	// A merge older than the edit on the disk must not go over it.
	byHand(t, root+"/"+p, "d", testNow+3000)
	changed, err := tr.Merge("peer", []Entry{{p, "x", testNow + 2000}})
	if err != nil || len(changed) != 1 || changed[0] != (Entry{p, "d", testNow + 3000}) {
		t.Errorf("%v, %v", changed, err)
	}
	agree(t, tr)

	// Poisoned on the disk: overridden.
	byHand(t, root+"/"+p, "e", testNow+Stamp(MaxFuture)*3)
	set(t, tr, p, "f")
	if e, _ := tr.Entry(p); e.Value != "f" || e.Stamp > testNow+5000 {
		t.Errorf("%+v", e)
	}
	agree(t, tr)
}

func TestSetAllDurable(t *testing.T) {
	fs := &spyFS{}
	root := t.TempDir()
	tr := open(t, root, Options{FS: fs})
	if err := tr.SetAllDurable(Entry{Path: "resource-r/actual-h/a", Value: "1"}, Entry{Path: "resource-r/actual-h/b", Value: "2"}); err != nil {
		t.Fatal(err)
	}
	want := []string{root + "/resource-r/actual-h", root + "/resource-r", root}
	if !slices.Equal(fs.synced, want) {
		t.Errorf("first time: synced %v", fs.synced)
	}
	fs.synced = nil
	if err := tr.SetAllDurable(Entry{Path: "resource-r/actual-h/a", Value: "3"}); err != nil || !slices.Equal(fs.synced, want[:1]) {
		t.Errorf("again: synced %v, %v", fs.synced, err)
	}
	fs.synced = nil
	fs.fail("SyncDir", errDisk)
	if err := tr.SetAllDurable(Entry{Path: "resource-q/x", Value: "3"}); !errors.Is(err, errDisk) {
		t.Errorf("a failed sync is not reported: %v", err)
	}
	fs.fail("", nil)
	fs.synced = nil
	if err := tr.SetAllDurable(Entry{Path: "resource-q/x", Value: "4"}); err != nil || len(fs.synced) != 2 {
		t.Errorf("after a failed sync the parent is not synced: %v, %v", fs.synced, err)
	}
	// In order, up to the first error.
	err := tr.SetAll(Entry{Path: "resource-r/x", Value: "1"}, Entry{Path: "bad//path", Value: "1"}, Entry{Path: "resource-r/y", Value: "1"})
	_, x := tr.Get("resource-r/x")
	_, y := tr.Get("resource-r/y")
	if !errors.Is(err, ErrPath) || !x || y {
		t.Errorf("%v %v %v", err, x, y)
	}
}

func TestFaults(t *testing.T) {
	for _, op := range []string{"Symlink", "Rename", "Exchange", "RenameNoReplace", "Mkdir", "Lstat", "Readlink"} {
		t.Run(op, func(t *testing.T) {
			fs := &spyFS{}
			root := t.TempDir()
			tr := open(t, root, Options{FS: fs})
			set(t, tr, "resource-r/a", "1", "resource-r/b", "1")
			fs.fail(op, errDisk)
			err1 := tr.Set("resource-r/a", "2")
			err2 := tr.Set("resource-q/new", "2")
			_, err3 := tr.Merge("peer", []Entry{{"resource-r/a", "3", tr.Clock().Now()}})
			if !errors.Is(errors.Join(err1, err2, err3), errDisk) && op != "Rename" {
				t.Errorf("no error: %v, %v, %v", err1, err2, err3)
			}
			fs.fail("", nil)
			agree(t, tr) // memory never claims what is not on the disk
			if junk, _ := filepath.Glob(root + "/*/.tmp*"); len(junk) > 0 {
				t.Errorf("left behind: %v", junk)
			}
			if _, err := tr.Rescan(); err != nil {
				t.Error(err)
			}
			agree(t, tr)
			set(t, tr, "resource-r/a", "4", "resource-q/new", "4")
			agree(t, tr)
		})
	}
}

// One file layer without the extras of the real one: no exchange, no inode
// numbers, types of directory entries unknown.
func TestPlainFileLayer(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{FS: plainFS{}})
	set(t, tr, "resource-r/a", "1", "resource-r/a", "2", "ips/ip-h", "10.0.0.1")
	byHand(t, root+"/resource-r/a", "3", tr.Clock().Now())
	if changed, err := tr.Rescan(); err != nil || len(changed) != 1 || changed[0].Value != "3" {
		t.Errorf("%v, %v", changed, err)
	}
	if err := tr.Unlink("resource-r/a"); err != nil {
		t.Error(err)
	}
	agree(t, tr)
	again := open(t, root, Options{FS: plainFS{}})
	if again.RootDigest() != tr.RootDigest() {
		t.Error("read back differently")
	}
}

func TestRoundedStampsAreRefused(t *testing.T) {
	tr := open(t, t.TempDir(), Options{FS: &spyFS{round: time.Microsecond}})
	if err := tr.Set("ips/ip-h", "10.0.0.1"); err == nil || !strings.Contains(err.Error(), "rounds time stamps") {
		t.Errorf("Set: %v", err)
	}
	if _, err := tr.Merge("p", []Entry{{"ips/ip-h", "10.0.0.1", 5}}); err == nil || !strings.Contains(err.Error(), "rounds time stamps") {
		t.Errorf("Merge: %v", err)
	}
}

func TestOpen(t *testing.T) {
	base := t.TempDir()
	os.Symlink(base, base+"/link")
	os.WriteFile(base+"/file", nil, 0o600)
	os.Mkdir(base+"/wide", 0o755)
	for name, want := range map[string]error{"missing": os.ErrNotExist, "link": ErrNotDirectory, "file": ErrNotDirectory} {
		if _, err := Open(base+"/"+name, Options{Node: "h"}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, err := Open(base+"/wide", Options{Node: "bad.name"}); !errors.Is(err, ErrName) {
		t.Errorf("bad node name: %v", err)
	}
	if tr, err := Open(base+"/made", Options{Node: "h", Create: true}); err != nil || tr.Node() != "h" || tr.Root() != base+"/made" {
		t.Errorf("create: %v", err)
	}
	if _, err := Open(base+"/wide", Options{Node: "h", ReadOnly: true}); err != nil {
		t.Errorf("read-only: %v", err)
	}
	if st, _ := os.Stat(base + "/wide"); st.Mode().Perm() != 0o755 {
		t.Error("a read-only open has changed the mode")
	}
	if _, err := Open(base+"/wide", Options{Node: "h"}); err != nil {
		t.Errorf("mode 0755: %v", err)
	}
	if st, _ := os.Stat(base + "/wide"); st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v after open", st.Mode())
	}
	if os.Geteuid() == 0 {
		os.Mkdir(base+"/foreign", 0o700)
		os.Chown(base+"/foreign", 12345, 0)
		if _, err := Open(base+"/foreign", Options{Node: "h"}); err == nil || !strings.Contains(err.Error(), "uid 12345") {
			t.Errorf("a root of somebody else: %v", err)
		}
	}
	ro, err := Open(base+"/made", Options{Node: "h", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	_, merr := ro.Merge("p", nil)
	_, terr := ro.RemoveTemp(0)
	for i, err := range []error{ro.Set("uuid", "x"), ro.SetAt("uuid", "x", 1), ro.Unlink("uuid"), merr, terr, ro.RemoveDir("ips")} {
		if !errors.Is(err, ErrReadOnly) && i != 5 || err == nil {
			t.Errorf("read-only %d: %v", i, err)
		}
	}
}

func TestUnlinkAndJunk(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	p := LocalPath("me", "trigger")
	set(t, tr, p, "1")
	if err := tr.Unlink(p); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(root + "/" + p); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if _, ok := tr.Entry(p); ok {
		t.Error("still in memory")
	}
	if err := tr.Unlink(p); err != nil {
		t.Errorf("twice: %v", err)
	}
	os.WriteFile(root+"/local-me/file", []byte("x"), 0o600)
	if err := tr.Unlink("local-me/file"); !errors.Is(err, ErrRegularFile) {
		t.Errorf("a file: %v", err)
	}
	if err := tr.RemoveDir("local-me"); err == nil {
		t.Error("a directory with a file in it was removed")
	}
	os.Remove(root + "/local-me/file")
	if err := tr.RemoveDir("local-me"); err != nil {
		t.Error(err)
	}
	agree(t, tr)
	os.Symlink("x", root+"/.tmp.99.uuid")
	if n, err := tr.RemoveTemp(time.Hour); n != 0 || err != nil {
		t.Errorf("young junk: %d, %v", n, err)
	}
	if n, err := tr.RemoveTemp(-time.Hour); n != 1 || err != nil {
		t.Errorf("junk: %d, %v", n, err)
	}
}

// Directories that the original has turned into tombstones count as absent.
func TestDirectoryTombstone(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(root+"/resource-r", 0o700)
	os.Symlink(Deleted, root+"/resource-r/defaults-h")
	os.Symlink(Deleted, root+"/defaults-h")
	tr := open(t, root, Options{})
	if d := tr.Dirs("resource-r"); len(d) != 0 {
		t.Errorf("dirs %v", d)
	}
	if _, err := tr.Rescan(); err != nil {
		t.Error(err)
	}
	set(t, tr, "resource-r/defaults-h/x", "1", "defaults-h/sync-limit", "0")
	agree(t, tr)
}

// Several processes' worth of trees and goroutines write the same few links. The
// stamp on the disk never goes back, nothing but whole values is ever seen, and
// in the end everybody agrees with the newest write.
func TestConcurrentWriters(t *testing.T) {
	root := t.TempDir()
	const trees, each = 4, 150
	paths := []string{"resource-r/primary", "resource-r/todo-h/attach", "ips/ip-h"}
	list := make([]*Tree, trees)
	for i := range list {
		list[i] = open(t, root, Options{Node: fmt.Sprintf("n%d", i), Passive: i%2 == 1})
	}
	stop := make(chan struct{})
	var watch, writers sync.WaitGroup
	var seen map[string]Stamp
	watch.Go(func() { seen = watchStamps(t, root, paths, stop) })
	for i, tr := range list {
		for g := range 2 {
			writers.Go(func() {
				for n := range each {
					p := paths[(n+g)%len(paths)]
					v := fmt.Sprintf("%d.%d.%d", i, g, n)
					var err error
					switch n % 5 {
					case 0:
						_, err = tr.Merge("peer", []Entry{{p, v, tr.Clock().Now()}})
					case 1:
						_, err = tr.Rescan()
					default:
						err = tr.Set(p, v)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	writers.Wait()
	close(stop)
	watch.Wait()
	for range 2 { // the first round may stamp something anew
		for _, tr := range list {
			if _, err := tr.Rescan(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tr := range list {
		agree(t, tr)
	}
	for _, p := range paths {
		if e, _ := list[0].Entry(p); e.Stamp < seen[p] {
			t.Errorf("%s: ends at %v, but %v had been seen", p, e.Stamp, seen[p])
		}
	}
}

// watchStamps reads the links all the time, checks each, and returns the newest
// stamps.
func watchStamps(t *testing.T, root string, paths []string, stop chan struct{}) map[string]Stamp {
	last := make(map[string]found)
	newest := make(map[string]Stamp)
	tr := open(t, root, Options{ReadOnly: true})
	for {
		select {
		case <-stop:
			return newest
		default:
		}
		for _, p := range paths {
			d, err := tr.probe(root + "/" + p)
			if err != nil {
				t.Error(err)
				return newest
			}
			was, seen := last[p]
			switch {
			case d.kind == absent && !seen:
				continue
			case d.kind != link || strings.Count(d.value, ".") != 2:
				t.Errorf("%s: saw %+v after %+v", p, d, was)
			case d.stamp == was.stamp && d.value != was.value:
				t.Errorf("%s: one stamp, two values: %+v, %+v", p, was, d)
			}
			last[p] = d
			newest[p] = max(newest[p], d.stamp)
		}
	}
}
