package symlinktree

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"mars/internal/vfs"
)

// handEdit is a difference between disk and memory, and what becomes of it.
type handEdit struct {
	name string
	edit func(name string) error
	want string // value in the end
	at   Stamp  // its stamp; 0: stamped anew
	same bool   // no change at all
	gone bool   // not even a tombstone
}

const editPath = "resource-r/primary"

func link1(value string, s Stamp) func(string) error {
	return func(name string) error {
		os.Remove(name)
		return osSymlink(value, name, s)
	}
}

var handEdits = []handEdit{
	{name: "nothing", edit: func(string) error { return nil }, want: "old", at: testNow, same: true},
	{name: "newer", edit: link1("edit", testNow+5), want: "edit", at: testNow + 5},
	{name: "newer stamp only", edit: link1("old", testNow+5), want: "old", at: testNow + 5},
	{name: "older stamp", edit: link1("edit", testNow-5), want: "edit"},
	{name: "equal stamp", edit: link1("edit", testNow), want: "edit"},
	{name: "touched back", edit: link1("old", testNow-5), want: "old"},
	{name: "1970", edit: link1("edit", 1), want: "edit"},
	{name: "far future", edit: link1("edit", testNow+2*Stamp(MaxFuture)), want: "edit"},
	{name: "beyond all time", edit: func(name string) error {
		os.Remove(name)
		return vfs.OS.Symlink("edit", name, time.Unix(1<<33, 0))
	}, want: "edit"},
	{name: "removed", edit: os.Remove, want: Deleted},
	{name: "tombstone by hand", edit: link1(Deleted, testNow+5), want: Deleted, at: testNow + 5},
	{name: "became a file", edit: func(name string) error { os.Remove(name); return os.WriteFile(name, nil, 0o600) }, gone: true},
	{name: "unusable text", edit: link1("a\nb", testNow+5), gone: true},
}

func TestRescanRules(t *testing.T) {
	for _, tc := range handEdits {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			real := &fakeReal{at: testNow}
			tr := open(t, root, Options{Clock: NewClock(real.now)})
			if err := tr.SetAt(editPath, "old", testNow); err != nil {
				t.Fatal(err)
			}
			seq := tr.Seq()
			if err := tc.edit(root + "/" + editPath); err != nil {
				t.Fatal(err)
			}
			changed, err := tr.Rescan("resource-r")
			if err != nil {
				t.Fatal(err)
			}
			e, ok := tr.Entry(editPath)
			switch {
			case tc.gone:
				if ok || tr.Seq() != seq {
					t.Errorf("still known as %+v", e)
				}
				return
			case tc.same:
				if len(changed) != 0 || tr.Seq() != seq {
					t.Errorf("false change: %v", changed)
				}
			default:
				if len(changed) != 1 || changed[0] != e || tr.Seq() == seq {
					t.Errorf("changed: %v, known %+v", changed, e)
				}
			}
			if e.Value != tc.want || tc.at != 0 && e.Stamp != tc.at {
				t.Errorf("known as %+v, want %s at %v", e, tc.want, tc.at)
			}
			if tc.at == 0 && (e.Stamp <= testNow || e.Stamp > testNow+1000) {
				t.Errorf("stamped anew with %v", e.Stamp)
			}
			if now := tr.Clock().Now(); now <= e.Stamp || now > testNow+2000 {
				t.Errorf("clock at %v after seeing %v", now, e.Stamp)
			}
			agree(t, tr)
			if changed, err := tr.Rescan(); len(changed) > 0 || err != nil {
				t.Errorf("second rescan: %v, %v", changed, err)
			}
		})
	}
}

// Passive trees take the same edits as they are and write nothing.
func TestRescanPassive(t *testing.T) {
	for _, tc := range handEdits {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			real := &fakeReal{at: testNow}
			daemon := open(t, root, Options{Clock: NewClock(real.now)})
			if err := daemon.SetAt(editPath, "old", testNow); err != nil {
				t.Fatal(err)
			}
			tr := open(t, root, Options{Clock: NewClock(real.now), ReadOnly: true})
			if err := tc.edit(root + "/" + editPath); err != nil {
				t.Fatal(err)
			}
			before := disk(t, root)
			if _, err := tr.Rescan(); err != nil {
				t.Fatal(err)
			}
			if d := diff(before, disk(t, root)); d != "" {
				t.Errorf("a read-only tree has written:\n%s", d)
			}
			got, ok := tr.Get(editPath)
			if want := tc.want; ok != (!tc.gone && want != Deleted) || ok && got != want {
				t.Errorf("reads %q, %v", got, ok)
			}
		})
	}
}

func TestOpenRepairsPoison(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(root+"/ips", 0o700)
	for i, at := range []Stamp{testNow, testNow + 1, testNow + 2, testNow + 3*Stamp(MaxFuture)} {
		if err := osSymlink("10.0.0.1", root+"/ips/ip-"+string(rune('a'+i)), at); err != nil {
			t.Fatal(err)
		}
	}
	real := &fakeReal{at: testNow}
	ro := open(t, root, Options{Clock: NewClock(real.now), ReadOnly: true})
	if now := ro.Clock().Now(); now > testNow+100 {
		t.Errorf("a poisoned stamp moved the clock to %v", now)
	}
	tr := open(t, root, Options{Clock: NewClock(real.now)})
	if e, ok := tr.Entry("ips/ip-d"); !ok || e.Stamp > testNow+100 || e.Stamp <= testNow+2 || e.Value != "10.0.0.1" {
		t.Errorf("%+v, %v", e, ok)
	}
	agree(t, tr)

	// The read-only tree, which keeps the poison in memory, can be overruled.
	if _, err := ro.Rescan(); err != nil {
		t.Error(err)
	}
	if d := diff(memory(tr), memory(ro)); d != "" {
		t.Error(d)
	}
}

// When all the tree seems to come from the future, it is the own clock that is
// wrong: nothing may be stamped anew with it.
func TestOpenWithBrokenClock(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(root+"/ips", 0o700)
	for i := range 9 {
		if err := osSymlink("10.0.0.1", root+"/ips/ip-"+string(rune('a'+i)), testNow+Stamp(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := osSymlink("10.0.0.1", root+"/ips/ip-z", testNow+2*Stamp(MaxFuture)); err != nil {
		t.Fatal(err)
	}
	before := disk(t, root)
	real := &fakeReal{at: Stamp(time.Hour)} // 1970
	tr := open(t, root, Options{Clock: NewClock(real.now)})
	after := disk(t, root)
	delete(before, "ips/ip-z")
	z := after["ips/ip-z"]
	delete(after, "ips/ip-z")
	if d := diff(before, after); d != "" {
		t.Errorf("sound links were stamped anew:\n%s", d)
	}
	if e, _ := tr.Entry("ips/ip-z"); e.Stamp > testNow+1000 || e.Stamp < testNow {
		t.Errorf("the poisoned one: %v, %v", e, z)
	}
	set(t, tr, "ips/ip-a", "10.0.0.2")
	if e, _ := tr.Entry("ips/ip-a"); e.Stamp <= testNow+8 {
		t.Errorf("new stamp %v is older than the tree", e.Stamp)
	}
	if _, err := tr.Merge("p", []Entry{{"ips/ip-b", "10.0.0.3", testNow + Stamp(time.Hour)}}); err != nil {
		t.Errorf("peers with a sound clock are refused: %v", err)
	}
}

func TestTombstoneVanishes(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	if err := tr.Delete("resource-r/x"); err != nil {
		t.Fatal(err)
	}
	set(t, tr, "local-me/request", "1", "resource-r/keep", "1")
	seq := tr.Seq()
	os.Remove(root + "/resource-r/x")
	os.Remove(root + "/local-me/request")
	changed, err := tr.Rescan()
	if err != nil || len(changed) != 0 || tr.Seq() != seq {
		t.Errorf("%v, %v", changed, err)
	}
	if _, ok := tr.Entry("resource-r/x"); ok {
		t.Error("the tombstone is still known")
	}
	if list, _, _ := tr.Since(1); len(list) != 1 || list[0].Path != "resource-r/keep" {
		t.Errorf("the ring holds %v", list)
	}
	agree(t, tr)
}

func TestDirectoryVanishes(t *testing.T) {
	prepare := func(t *testing.T) (*Tree, string, map[string]string) {
		root := t.TempDir()
		tr := open(t, root, Options{})
		set(t, tr, "resource-r/size", "1", "resource-r/todo-h/attach", "1", "resource-r/todo-h/sync", "1", "ips/ip-h", "10.0.0.1")
		if err := tr.Delete("resource-r/old"); err != nil {
			t.Fatal(err)
		}
		before := memory(tr)
		if err := os.RemoveAll(root + "/resource-r"); err != nil {
			t.Fatal(err)
		}
		return tr, root, before
	}
	t.Run("is reported and changes nothing", func(t *testing.T) {
		tr, _, before := prepare(t)
		for range 2 {
			changed, err := tr.Rescan()
			if !errors.Is(err, ErrVanished) || len(changed) != 0 {
				t.Errorf("%v, %v", changed, err)
			}
			if _, err := tr.Rescan("resource-r/todo-h"); !errors.Is(err, ErrVanished) {
				t.Errorf("sub-directory: %v", err)
			}
		}
		if d := diff(before, memory(tr)); d != "" {
			t.Error(d)
		}
	})
	t.Run("comes back with a write", func(t *testing.T) {
		tr, _, before := prepare(t)
		set(t, tr, "resource-r/todo-h/connect", "1")
		after := memory(tr)
		delete(after, "resource-r/todo-h/connect")
		if d := diff(before, after); d != "" {
			t.Error(d)
		}
		agree(t, tr)
	})
	t.Run("comes back with a merge", func(t *testing.T) {
		tr, _, _ := prepare(t)
		tr.Rescan()
		if changed, err := tr.Merge("p", []Entry{{"resource-r/size", "2", tr.Clock().Now()}}); err != nil || len(changed) != 1 {
			t.Errorf("%v, %v", changed, err)
		}
		if _, err := tr.Rescan(); !errors.Is(err, ErrVanished) { // todo-h is still missing
			t.Errorf("%v", err)
		}
		set(t, tr, "resource-r/todo-h/attach", "0")
		agree(t, tr)
	})
	t.Run("comes back by hand", func(t *testing.T) {
		tr, root, before := prepare(t)
		tr.Rescan()
		os.Mkdir(root+"/resource-r", 0o700)
		os.Mkdir(root+"/resource-r/todo-h", 0o700)
		byHand(t, root+"/resource-r/size", "7", tr.Clock().Now())
		changed, err := tr.Rescan()
		if err != nil || len(changed) != 1 || changed[0].Value != "7" {
			t.Errorf("%v, %v", changed, err)
		}
		after := memory(tr)
		before["resource-r/size"], after["resource-r/size"] = "", ""
		if d := diff(before, after); d != "" {
			t.Error(d)
		}
		agree(t, tr)
	})
	t.Run("cannot be restored", func(t *testing.T) {
		fs := &spyFS{}
		root := t.TempDir()
		tr := open(t, root, Options{FS: fs})
		set(t, tr, "resource-r/size", "1", "resource-r/primary", "h")
		before := memory(tr)
		os.RemoveAll(root + "/resource-r")
		tr.Rescan()
		os.Mkdir(root+"/resource-r", 0o700)
		fs.fail("Symlink", errDisk) // full
		for range 2 {
			if _, err := tr.Rescan(); !errors.Is(err, errDisk) {
				t.Errorf("%v", err)
			}
		}
		fs.fail("", nil)
		if _, err := tr.Rescan(); err != nil {
			t.Error(err)
		}
		if d := diff(before, memory(tr)); d != "" {
			t.Errorf("links were lost:\n%s", d)
		}
		agree(t, tr)
	})
	t.Run("had nothing live", func(t *testing.T) {
		root := t.TempDir()
		tr := open(t, root, Options{})
		if err := tr.Delete("resource-r/x"); err != nil {
			t.Fatal(err)
		}
		os.RemoveAll(root + "/resource-r")
		if changed, err := tr.Rescan(); err != nil || len(changed) > 0 {
			t.Errorf("%v, %v", changed, err)
		}
		agree(t, tr)
	})
}

// The file system was unmounted and something else is there: hands off.
func TestRootGone(t *testing.T) {
	base := t.TempDir()
	root := base + "/mars"
	tr := open(t, root, Options{Create: true})
	set(t, tr, UUIDPath, "u", "ips/ip-h", "10.0.0.1")
	before := memory(tr)
	if err := os.Rename(root, base+"/away"); err != nil {
		t.Fatal(err)
	}
	try := func(what string) {
		t.Helper()
		_, rerr := tr.Rescan()
		_, merr := tr.Merge("p", []Entry{{"ips/ip-p", "10.0.0.2", tr.Clock().Now()}})
		for i, err := range []error{tr.Set(UUIDPath, "v"), tr.Delete("ips/ip-h"), rerr, merr} {
			if !errors.Is(err, ErrRootGone) {
				t.Errorf("%s, %d: %v", what, i, err)
			}
		}
		if d := diff(before, memory(tr)); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	try("missing")
	os.Mkdir(root, 0o700)
	try("replaced")
	if d := disk(t, root); len(d) > 0 {
		t.Errorf("written into the wrong place: %v", d)
	}
	os.Remove(root)
	os.Rename(base+"/away", root)
	set(t, tr, UUIDPath, "v")
	agree(t, tr)
}

func TestRescanFindsNewDirectories(t *testing.T) {
	root := t.TempDir()
	tr := open(t, root, Options{})
	for _, d := range []string{"resource-r", "resource-r/actual-h", "strange", "resource-bad.name", "lost+found"} {
		os.MkdirAll(root+"/"+d, 0o700)
		osSymlink("v", root+"/"+d+"/x", testNow)
	}
	other := t.TempDir()
	osSymlink("secret", other+"/x", testNow)
	os.Symlink(other, root+"/resource-link") // never entered
	changed, err := tr.Rescan("")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range changed {
		got = append(got, e.Path)
	}
	slices.Sort(got)
	if want := []string{"resource-r/actual-h/x", "resource-r/x"}; !slices.Equal(got, want) {
		t.Errorf("found %v", got)
	}
	if d := tr.Dirs(""); !slices.Equal(d, []string{"resource-r"}) {
		t.Errorf("dirs %v", d)
	}
	if _, err := tr.Rescan("strange"); !errors.Is(err, ErrPath) {
		t.Errorf("a directory that is not ours: %v", err)
	}
}
