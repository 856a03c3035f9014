package symlinktree

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMergeRules(t *testing.T) {
	const at = testNow
	p := Resource("r").PrimaryPath()
	for _, tc := range []struct {
		name  string
		have  *Entry
		offer Entry
		taken bool
	}{
		{"new", nil, Entry{p, "a", at}, true},
		{"newer", &Entry{p, "a", at}, Entry{p, "b", at + 1}, true},
		{"newer, equal value", &Entry{p, "a", at}, Entry{p, "a", at + 1}, true},
		{"older", &Entry{p, "a", at}, Entry{p, "b", at - 1}, false},
		{"same", &Entry{p, "a", at}, Entry{p, "a", at}, false},
		{"tie, larger value", &Entry{p, "a", at}, Entry{p, "b", at}, true},
		{"tie, smaller value", &Entry{p, "b", at}, Entry{p, "a", at}, false},
		{"tombstone over older", &Entry{p, "a", at}, Entry{p, Deleted, at + 1}, true},
		{"tombstone under newer", &Entry{p, "a", at}, Entry{p, Deleted, at - 1}, false},
		{"tombstone where nothing was", nil, Entry{p, Deleted, at}, true},
		{"old link under a tombstone", &Entry{p, Deleted, at}, Entry{p, "a", at - 1}, false},
		{"re-created after a tombstone", &Entry{p, Deleted, at}, Entry{p, "a", at + 1}, true},
		{"preliminary, over nothing", nil, Entry{p, AnyUUID, Stamp(time.Second)}, true},
	} {
		tr := open(t, t.TempDir(), Options{Clock: NewClock((&fakeReal{at: at}).now)})
		if tc.have != nil {
			if _, err := tr.Merge("x", []Entry{*tc.have}); err != nil {
				t.Fatal(err)
			}
		}
		seq := tr.Seq()
		changed, err := tr.Merge("peer", []Entry{tc.offer})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		want := tc.offer
		if !tc.taken && tc.have != nil {
			want = *tc.have
		}
		if got, _ := tr.Entry(p); got != want || (len(changed) > 0) != tc.taken || (tr.Seq() > seq) != tc.taken {
			t.Errorf("%s: have %+v, changed %v, want %+v", tc.name, got, changed, want)
		}
		agree(t, tr)
		if now := tr.Clock().Now(); now <= tc.offer.Stamp {
			t.Errorf("%s: the clock has not observed the offer", tc.name)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	root := t.TempDir()
	real := &fakeReal{at: testNow}
	tr := open(t, root, Options{Clock: NewClock(real.now)})
	set(t, tr, "resource-r/size", "1")
	for name, text := range map[string]string{"log-000000001-h": "log", "log-000000002-h": "log", "data-h": "image", "empty": ""} {
		os.WriteFile(root+"/resource-r/"+name, []byte(text), 0o600)
	}
	os.Mkdir(root+"/resource-r/directory", 0o700)
	before := disk(t, root)
	at := testNow + 5
	bad := []struct {
		e    Entry
		want error
	}{
		{Entry{"../evil", "x", at}, ErrPath},
		{Entry{"/etc/passwd", "x", at}, ErrPath},
		{Entry{"resource-r/../../evil", "x", at}, ErrPath},
		{Entry{"resource-r", "/etc", at}, ErrPath},
		{Entry{"defaults-h", Deleted, at}, ErrPath},
		{Entry{"newdir/x", "x", at}, ErrPath},
		{Entry{"resource-r/.tmp.1.x", "x", at}, ErrPath},
		{Entry{"resource-r/x", "", at}, ErrValue},
		{Entry{"resource-r/x", "a\nb", at}, ErrValue},
		{Entry{"resource-r/x", strings.Repeat("x", MaxValue+1), at}, ErrValue},
		{Entry{"resource-r/x", "1", 0}, ErrValue},
		{Entry{"resource-r/x", "1", -5}, ErrValue},
		{Entry{"resource-r/x", "1", testNow + Stamp(MaxFuture) + 100}, ErrFuture},
		{Entry{"local-me/trigger", "x", at}, ErrUnreplicated},
		{Entry{"resource-r/local-me/x", "x", at}, ErrUnreplicated},
		{Entry{"cache-h/x", "x", at}, ErrUnreplicated},
		{Entry{"actual-h/read-stamp", "x", at}, ErrUnreplicated},
		{Entry{"ignore-x", "x", at}, ErrUnreplicated},
		{Entry{"resource-r/log-000000001-h", "x", at}, ErrPath},
		{Entry{"resource-r/log-000000009-h", "x", at}, ErrPath},
		{Entry{"resource-r/data-h", "/dev/x", at}, ErrRegularFile},
		{Entry{"resource-r/data-h", Deleted, at}, ErrRegularFile},
		{Entry{"resource-r/directory", "x", at}, ErrIsDirectory},
	}
	list := []Entry{{"resource-r/good", "1", at}}
	for _, b := range bad {
		changed, err := tr.Merge("peer", []Entry{b.e})
		if !errors.Is(err, b.want) || len(changed) > 0 {
			t.Errorf("%.60q -> %.20q: %v, %v; want %v", b.e.Path, b.e.Value, changed, err, b.want)
		}
		var me *MergeError
		if !errors.As(err, &me) || me.From != "peer" || me.Total != 1 || me.Refused[0].Path != b.e.Path {
			t.Errorf("%.60q: error does not name it: %v", b.e.Path, err)
		}
		list = append(list, b.e)
	}
	if d := diff(before, disk(t, root)); d != "" {
		t.Errorf("refused entries have left traces:\n%s", d)
	}
	list = append(list, Entry{"resource-r/good2", "1", at}, Entry{"resource-r/empty", "was empty", at})
	changed, err := tr.Merge("peer", list)
	var me *MergeError
	if len(changed) != 3 || !errors.As(err, &me) || me.Total != len(bad) || len(me.Refused) != maxRefusals || len(err.Error()) > 8192 {
		t.Errorf("mixed list: %v, %v", changed, err)
	}
	agreeBut(t, tr, "resource-r/log-000000001-h", "resource-r/log-000000002-h", "resource-r/data-h", "resource-r/directory")
}

// agreeBut is agree without the regular files that a test has put there.
func agreeBut(t *testing.T, tr *Tree, except ...string) {
	t.Helper()
	d := disk(t, tr.root)
	for _, p := range except {
		delete(d, p)
	}
	if d := diff(d, memory(tr)); d != "" {
		t.Errorf("disk and memory differ:\n%s", d)
	}
}

// A tombstone removes a logfile whatever the times of the file say, because they
// are those of its copying (reference symlink-tree 9.11).
func TestMergeDeletesLogs(t *testing.T) {
	root := t.TempDir()
	real := &fakeReal{at: testNow}
	tr := open(t, root, Options{Clock: NewClock(real.now)})
	set(t, tr, "resource-r/size", "1")
	p := Resource("r").LogPath(3, "a-b")
	os.WriteFile(root+"/"+p, []byte("log"), 0o600)
	future := (testNow + Stamp(time.Hour)).Time()
	os.Chtimes(root+"/"+p, future, future)
	if changed, err := tr.Merge("peer", []Entry{{p, Deleted, testNow}}); err != nil || len(changed) != 1 {
		t.Errorf("%v, %v", changed, err)
	}
	agree(t, tr)
	// The writer of a new logfile replaces the tombstone; memory lets go of it.
	os.Remove(root + "/" + p)
	os.WriteFile(root+"/"+p, nil, 0o600)
	if changed, err := tr.Rescan(); err != nil || len(changed) != 0 {
		t.Errorf("%v, %v", changed, err)
	}
	agreeBut(t, tr, p)
}

// Whoever sees a fresh beacon must see what its author wrote before.
func TestMergeBeaconLast(t *testing.T) {
	fs := &spyFS{}
	tr := open(t, t.TempDir(), Options{FS: fs})
	at := tr.Clock().Now()
	list := []Entry{{ActualPath("p", "time"), at.String(), at}, {ActualPath("p", "alive"), "1", at}}
	for i := range 2 * mergeChunk {
		list = append(list, Entry{Resource("r").VersionPath(i, "p"), "x", at})
	}
	changed, err := tr.Merge("p", list)
	if err != nil || len(changed) != len(list) {
		t.Fatal(len(changed), err)
	}
	i := slices.IndexFunc(changed, func(e Entry) bool { return isBeacon(e.Path) })
	if i != len(changed)-2 {
		t.Errorf("first beacon at %d of %d", i, len(changed))
	}
}

// An edit by another process that falls between looking and renaming is noticed.
func TestRaceWithAnotherProcess(t *testing.T) {
	const p = "resource-r/primary"
	hand := func(value string, s Stamp) func(*testing.T, string) {
		return func(t *testing.T, root string) { byHand(t, root+"/"+p, value, s) }
	}
	set := func(tr *Tree) error { return tr.Set(p, "mine") }
	merge := func(tr *Tree) error { _, err := tr.Merge("peer", []Entry{{p, "theirs", testNow + 50}}); return err }
	for _, tc := range []struct {
		name string
		op   string // at which file operation the other process strikes
		have bool
		do   func(*Tree) error
		edit func(*testing.T, string)
		want string
		at   Stamp // 0: newer than the edit
	}{
		{"set, edit older", "Exchange", true, set, hand("edit", testNow+1), "mine", 0},
		{"set, edit newer", "Exchange", true, set, hand("edit", testNow+Stamp(time.Hour)), "mine", 0},
		{"set, created meanwhile", "RenameNoReplace", false, set, hand("edit", testNow+Stamp(time.Hour)), "mine", 0},
		{"merge, edit older", "Exchange", true, merge, hand("edit", testNow+2), "theirs", testNow + 50},
		{"merge, edit newer", "Exchange", true, merge, hand("edit", testNow+100), "edit", testNow + 100},
		{"merge, created newer", "RenameNoReplace", false, merge, hand("edit", testNow+100), "edit", testNow + 100},
		{"merge, created older", "RenameNoReplace", false, merge, hand("edit", testNow+1), "theirs", testNow + 50},
		{"merge, removed", "Exchange", true, merge, func(t *testing.T, root string) { os.Remove(root + "/" + p) }, Deleted, 0},
		{"merge, became a file", "Exchange", true, merge, func(t *testing.T, root string) {
			os.Remove(root + "/" + p)
			os.WriteFile(root+"/"+p, []byte("data"), 0o600)
		}, "", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs := &spyFS{before: make(map[string]func(string))}
			root := t.TempDir()
			tr := open(t, root, Options{FS: fs, Clock: NewClock((&fakeReal{at: testNow}).now)})
			if err := tr.Set("resource-r/size", "1"); err != nil {
				t.Fatal(err)
			}
			if tc.have {
				if err := tr.SetAt(p, "old", testNow); err != nil {
					t.Fatal(err)
				}
			}
			fs.before[tc.op] = func(name string) {
				if strings.HasSuffix(name, p) {
					tc.edit(t, root)
				}
			}
			err := tc.do(tr)
			if len(fs.before) > 0 {
				t.Fatal("the other process was never reached")
			}
			if tc.at < 0 {
				if !errors.Is(err, ErrRegularFile) {
					t.Errorf("error %v", err)
				}
				if text, _ := os.ReadFile(root + "/" + p); string(text) != "data" {
					t.Errorf("the file holds %q", text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			e, _ := tr.Entry(p)
			if e.Value != tc.want || tc.at > 0 && e.Stamp != tc.at || tc.at == 0 && e.Stamp <= testNow+1 {
				t.Errorf("ended as %+v, want %s at %v", e, tc.want, tc.at)
			}
			if tc.name == "set, edit newer" && e.Stamp <= testNow+Stamp(time.Hour) {
				t.Errorf("stamp %v is not newer than the edit", e.Stamp)
			}
			agree(t, tr)
		})
	}
}
