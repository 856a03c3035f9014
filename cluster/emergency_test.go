package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"mars/symlinktree"
)

const hole14 = "00000000000000000000000000000000,log-000000014-a,0:"

// primaryFacts: b is primary and writes its log 2.
func primaryFacts(f *Facts) {
	f.Mode, f.Recovered, f.Exported, f.Fetch = ModeLogging, true, true, nil
	f.Current, f.Ingested, f.LogSize = log(2, "b"), 500, 500
	f.Logs = []LogFact{{log(1, "a"), 100}, {log(2, "b"), 500}}
	f.Space.Allowed = true
}

// primaryTree: what b and the others say then.
func primaryTree(more map[string]string) map[string]string {
	m := map[string]string{"primary": "b", "actual-a/is-primary": "", "maxnr": "2",
		"replay-a": "log-000000002-b,500,0", "replay-b": "log-000000002-b,0,500", "replay-c": "log-000000002-b,100,0",
		"version-000000002-b": version(2, "b", 500, version(1, "a", 100, "")),
	}
	maps.Copy(m, more)
	return m
}

func withSpace(set func(s *SpaceFacts), more ...func(f *Facts)) func(f *Facts) {
	return func(f *Facts) {
		primaryFacts(f)
		set(&f.Space)
		for _, m := range more {
			m(f)
		}
	}
}

func level(l int) func(s *SpaceFacts) {
	return func(s *SpaceFacts) { s.Level, s.Emergency, s.Free = l, l == LevelEmergency, 1<<20 }
}

func full(f *Facts) { f.LogFailed, f.LogFull = true, true }

func secondary(set func(s *SpaceFacts)) func(f *Facts) {
	return func(f *Facts) { set(&f.Space) }
}

// The message names the true cause, and tells a secondary what to do when.
func TestEmergencyMessages(t *testing.T) {
	limit := func(s *SpaceFacts) { s.Emergency, s.Limit = true, 30 }
	for _, c := range []struct {
		name  string
		tree  map[string]string
		facts func(f *Facts)
		key   string
		want  []string
	}{
		{"full", primaryTree(nil), withSpace(level(4)), msgEmergency, []string{"level 4 of 4"}},
		{"limit of the resource", primaryTree(nil), withSpace(limit), msgEmergency, []string{"less than 30%", "set-emergency-limit"}},
		{"not enough free yet", primaryTree(nil), withSpace(func(s *SpaceFacts) { s.Level, s.Emergency = 2, true }), msgEmergency, []string{"was used up", "level 2"}},
		{"a quota", primaryTree(nil), withSpace(level(0), full, func(f *Facts) { f.LogSize = 0 }), msgEmergency, []string{"quota"}},
		{"about to end", primaryTree(nil), withSpace(level(0), func(f *Facts) { f.Direct, f.Current = true, log(13, "b") }), msgEmergency, []string{"about to end"}},
		{"secondary, while it lasts", map[string]string{"version-000000014-a": hole14, "actual-a/has-emergency": "1"}, nil, msgHole, []string{"is old", "when that is over, marsadm invalidate"}},
		{"secondary, afterwards", map[string]string{"version-000000014-a": hole14, "actual-a/has-emergency": "0"}, nil, msgHole, []string{"is old", "; marsadm invalidate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			links := maps.Clone(base)
			maps.Copy(links, c.tree)
			f := caughtUpFacts()
			if c.facts != nil {
				c.facts(&f)
			}
			for _, a := range decide(snapshot(t, links), "r0", f) {
				if m, ok := a.(Say); ok && m.Key == c.key {
					for _, w := range c.want {
						if !strings.Contains(m.Text, w) {
							t.Errorf("says %q, want %q in it", m.Text, w)
						}
					}
					if strings.Contains(m.Text, "level 0") {
						t.Errorf("says %q", m.Text)
					}
					return
				}
			}
			t.Error("says nothing")
		})
	}
}

func TestDecideSpace(t *testing.T) {
	limit := func(s *SpaceFacts) { s.Emergency = true }
	near := func(s *SpaceFacts) { s.Near = true }
	forbidden := func(s *SpaceFacts) { s.Level, s.Emergency, s.Allowed = 4, true, false }
	behind := map[string]string{"version-000000001-a": version(1, "a", 300, "")}
	rows := []row{
		{"primary, level 1: logs that nobody needs go", primaryTree(nil), withSpace(level(1)), "say:wrn-space-low; purge 1 logs up to log-000000001-a everywhere=true"},
		{"primary, level 0: nothing goes", primaryTree(nil), withSpace(level(0)), ""},
		{"primary near the limit of the resource: the same", primaryTree(nil), withSpace(near), "purge 1 logs up to log-000000001-a everywhere=true"},
		{"a member needs it still", primaryTree(map[string]string{"replay-c": "log-000000001-a,50,0"}), withSpace(level(1)), "say:wrn-space-low"},
		{"a member is about to join", primaryTree(map[string]string{"replay-c": ""}), withSpace(level(1)), "say:wrn-space-low"},
		{"a large log that everybody is in is rotated", primaryTree(nil),
			withSpace(level(1), func(f *Facts) { f.LogSize, f.Logs = 2<<20, f.Logs[1:] }), "say:wrn-space-low; rotate log-000000003-b"},
		{"not while somebody is behind it", primaryTree(map[string]string{"replay-c": "log-000000001-a,50,0"}),
			withSpace(level(1), func(f *Facts) { f.LogSize = 2 << 20 }), "say:wrn-space-low"},
		{"primary, level 4: logging ceases", primaryTree(nil), withSpace(level(4)), "say:err-space-low; say:err-emergency; cease, next log-000000013-b"},
		{"primary, limit of the resource: the same", primaryTree(nil), withSpace(limit), "say:err-emergency; cease, next log-000000013-b"},
		{"the number follows everything that was ever handed out", primaryTree(map[string]string{"maxnr": "7"}), withSpace(limit), "say:err-emergency; cease, next log-000000018-b"},
		{"... and what others have", primaryTree(map[string]string{"version-000000009-c": version(9, "c", 1, "")}), withSpace(limit), "say:err-emergency; cease, next log-000000020-b"},
		{"emergency mode is not allowed", primaryTree(nil), withSpace(forbidden), "say:err-space-low; purge 1 logs up to log-000000001-a everywhere=true"},
		{"busy: the step comes later", primaryTree(nil), withSpace(limit, func(f *Facts) { f.Busy = "rotate" }), "say:err-emergency"},
		{"a device that is not there yet waits for the way around the log", primaryTree(nil),
			withSpace(limit, func(f *Facts) { f.Exported = false }), "say:err-emergency; cease, next log-000000013-b"},
		{"in emergency mode: the device appears", primaryTree(nil), withSpace(limit, func(f *Facts) { f.Exported, f.Direct, f.Logs = false, true, nil }),
			"say:err-emergency; export"},
		{"in emergency mode: no rotation, but room is made", primaryTree(nil), withSpace(limit, func(f *Facts) { f.Direct, f.RotateSize = true, 1 }),
			"say:err-emergency; purge 1 logs up to log-000000001-a everywhere=true"},
		{"emergency over: the log behind the hole", primaryTree(nil), withSpace(level(0), func(f *Facts) { f.Direct, f.Current = true, log(13, "b") }),
			"say:err-emergency; lead log-000000013-b"},
		{"the log had no space, and the file system has none", primaryTree(nil), withSpace(level(2), full), "say:err-space-low; say:err-emergency; cease, next log-000000013-b"},
		{"the log had no space, but there is some: another log", primaryTree(nil), withSpace(level(0), full), "lead log-000000003-b"},
		{"... unless nothing could be written to this one at all", primaryTree(nil), withSpace(level(0), full, func(f *Facts) { f.LogSize = 0 }),
			"say:err-emergency; cease, next log-000000013-b"},
		{"a log that failed otherwise is followed first", primaryTree(nil), withSpace(level(4), func(f *Facts) { f.LogFailed = true }),
			"say:err-space-low; purge 1 logs up to log-000000001-a everywhere=true; lead log-000000003-b"},

		{"secondary, level 2: keeps what it has not replayed", nil, secondary(level(2)), "say:err-space-low"},
		{"secondary, level 2: copies it has replayed go, here only", map[string]string{"replay-b": "log-000000003-a,0,0", "replay-a": "log-000000001-a,0,0",
			"version-000000002-a": version(2, "a", 10, version(1, "a", 100, "")), "version-000000003-a": version(3, "a", 0, version(2, "a", 10, version(1, "a", 100, ""))),
			"version-000000003-b": version(3, "a", 0, version(2, "a", 10, version(1, "a", 100, "")))},
			func(f *Facts) {
				level(2)(&f.Space)
				f.Current, f.Ingested, f.Fetch = log(3, "a"), 0, &FetchFact{log(3, "a"), "a", -1}
				f.Logs = []LogFact{{log(1, "a"), 100}, {log(2, "a"), 10}, {log(3, "a"), 0}}
			}, "say:err-space-low; purge 2 logs up to log-000000002-a everywhere=false"},
		{"secondary, level 3: fetch stops, and says so", behind, secondary(level(3)), "say:err-space-low; say:inf-fetch; stop-fetch"},
		{"secondary, level 2: fetch goes on", behind, secondary(level(2)), "say:err-space-low"},
		{"secondary, limit of the resource: fetch stops", behind, secondary(limit), "say:inf-fetch; stop-fetch"},
		{"designated, level 3: it has to catch up", with(behind, "primary", "b", "actual-a/is-primary", "0"), secondary(level(3)), "say:err-space-low"},
		{"designated, level 4: not even then", with(behind, "primary", "b", "actual-a/is-primary", "0"), secondary(level(4)), "say:err-space-low; say:inf-fetch; stop-fetch"},
		{"in front of a hole", map[string]string{"version-000000014-a": hole14}, nil, "say:err-log-not-contiguous"},
		{"behind the hole of another one's history there is none", map[string]string{"version-000000014-c": hole14}, nil, ""},
		{"a sync whose source has left its log starts over, but not now", map[string]string{"version-000000014-a": hole14, "syncstatus-b": "1024"}, nil,
			"restart sync; say:err-log-not-contiguous; say:err-log-not-contiguous"},
		{"a running one is stopped first", map[string]string{"version-000000014-a": hole14, "syncstatus-b": "1024"}, func(f *Facts) { f.Syncing = "a" },
			"stop-sync; say:err-log-not-contiguous; say:err-log-not-contiguous"},
		{"no sync from a primary in emergency mode", map[string]string{"syncstatus-b": "0", "actual-a/is-emergency": "1"}, nil, "say:inf-sync-start"},
		{"no sync out of turn", map[string]string{"syncstatus-b": "0"}, func(f *Facts) { f.SyncQueued = true }, "say:inf-sync-start"},
		{"a sync that lost its turn stops", map[string]string{"syncstatus-b": "0"}, func(f *Facts) { f.SyncQueued, f.Syncing = true, "a" }, "stop-sync; say:inf-sync-start"},
		{"behind its own hole, others went on from before it", map[string]string{"primary": "c", "actual-a/is-primary": "", "actual-c/is-primary": "1",
			"replay-c": "log-000000002-c,0,9", "replay-b": "log-000000015-b,0,0",
			"version-000000014-b": strings.Replace(hole14, "-a", "-b", 1), "version-000000015-b": version(15, "b", 0, strings.Replace(hole14, "-a", "-b", 1))},
			func(f *Facts) {
				f.Current, f.Ingested, f.Recovered, f.Fetch = log(15, "b"), 0, true, nil
				f.Logs = []LogFact{{log(15, "b"), 0}}
			}, "say:err-splitbrain-detected"},
		{"restarted in emergency mode: leads the log behind the hole", map[string]string{"primary": "b", "actual-a/is-primary": "", "replay-b": "log-000000015-b,0,0",
			"version-000000014-b": strings.Replace(hole14, "-a", "-b", 1)},
			func(f *Facts) {
				f.Mode, f.Current, f.Ingested, f.Fetch, f.Logs = ModeIdle, log(15, "b"), 0, nil, nil
				level(4)(&f.Space)
			}, "say:err-space-low; lead log-000000015-b"},
	}
	for _, r := range rows {
		t.Run(r.name, r.run)
	}
}

func with(m map[string]string, kv ...string) map[string]string {
	m = maps.Clone(m)
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

const mib = 1 << 20

func eightEach() (r Reserves) {
	for i := range r {
		r[i] = Amount{Bytes: 8 * mib}
	}
	return r
}

func TestLadder(t *testing.T) {
	for _, tc := range []struct {
		name      string
		was, free int // MiB
		want      int
		kib       int // more
	}{
		{"plenty", 0, 64, 0, 0},
		{"just above the first threshold", 0, 32, 0, 0},
		{"below it", 0, 31, 1, 0},
		{"two", 0, 23, 2, 0},
		{"three", 0, 15, 3, 0},
		{"four at once", 0, 7, 4, 0},
		{"1 MiB more does not leave it", 4, 8, 4, 0},
		{"the margin does", 4, 9, 3, 0},
		{"by one step, however much there is", 4, 64, 3, 0},
		{"next step", 3, 64, 2, 0},
		{"last step", 1, 64, 0, 0},
		{"last step needs the margin", 1, 32, 1, 0},
		{"rises again on the way down", 1, 6, 4, 0},
		{"nothing left", 0, 0, 4, 0},
	} {
		if got := eightEach().next(tc.was, int64(tc.free)*mib, 64*mib); got != tc.want {
			t.Errorf("%s: level %d, want %d", tc.name, got, tc.want)
		}
	}
	r, err := ParseReserves("2G:1%,2%, 64K,100")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.threshold(1, 1<<30); got != 1<<30/100+1<<30/50+64<<10+100 {
		t.Errorf("threshold %d", got)
	}
	if rest, all := eightEach().rest(40*mib, 64*mib); rest != 8*mib || all != 32*mib {
		t.Errorf("rest %d of %d", rest, all)
	}
	if rest, all := eightEach().rest(4*mib, 16*mib); rest != 0 || all != 0 {
		t.Errorf("rest %d of %d on a file system smaller than its reserves", rest, all)
	}
}

func TestParseReserves(t *testing.T) {
	for _, s := range []string{DefaultReserves().String(), "1,2,3,4", "1%,2%,3.5%,100%", "1G:1%,1G:1%,1G:1%,8M"} {
		r, err := ParseReserves(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		again, err := ParseReserves(r.String())
		if err != nil || again != r {
			t.Errorf("%q becomes %q: %v", s, r, err)
		}
		if err := r.validate(); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", "1,2,3", "1,2,3,4,5", "1,2,3,0", "1,2,3,-1", "1,2,3,x", "1,2,3,101%", "1,2,3,0%", "1,2,3,NaN%", "1,2,3,:1%", "1,2,3,1:", "1,2,3,9999999999999G", "1,2,3,%"} {
		if _, err := ParseReserves(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
	if err := (Reserves{}).validate(); err == nil {
		t.Error("no reserves at all were accepted")
	}
}

func TestInEmergency(t *testing.T) {
	for _, tc := range []struct {
		name             string
		was              bool
		level            int
		limit, rest, all int64
		want             bool
	}{
		{"no limit, space", false, 0, 0, 10, 100, false},
		{"level 4", false, 4, 0, 0, 100, true},
		{"level 3", false, 3, 0, 10, 100, false},
		{"was, and level 1", true, 1, 0, 10, 100, true},
		{"was, level 0", true, 0, 0, 10, 100, false},
		{"above the limit", false, 0, 40, 40, 100, false},
		{"below it", false, 0, 40, 39, 100, true},
		{"was, at the limit", true, 0, 40, 40, 100, true},
		{"was, one percent more", true, 0, 40, 41, 100, false},
		{"limit 100, nothing used", false, 0, 100, 100, 100, false},
		{"limit 100, was, nothing used", true, 0, 100, 100, 100, false},
		{"a file system smaller than its reserves", false, 0, 40, 0, 0, false},
	} {
		if got := inEmergency(tc.was, tc.level, tc.limit, tc.rest, tc.all); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestSyncTurns(t *testing.T) {
	wishes := func(s string) (w []syncWish) { // r0 able, r1! not able, r2* runs
		for _, f := range strings.Fields(s) {
			name := strings.TrimRight(f, "!*")
			w = append(w, syncWish{symlinktree.Resource(name), !strings.Contains(f, "!"), strings.Contains(f, "*")})
		}
		return w
	}
	for _, tc := range []struct {
		limit  int
		prefer string
		wishes string
		want   string
	}{
		{0, "", "r0 r1 r2 r3", "r0 r1 r2 r3"},
		{1, "", "r3 r1 r0 r2", "r0"},
		{2, "", "r3 r1 r0 r2", "r0 r1"},
		{3, "", "r3 r1! r0 r2", "r0 r2 r3"},
		{1, "", "r0! r1! r2", "r2"},
		{1, "r2 r1", "r0 r1 r2 r3", "r2"},
		{2, "r2 r9 r1", "r0 r1 r2 r3", "r1 r2"},
		{3, "r2", "r0 r1 r2 r3", "r0 r1 r2"},
		{1, "r2", "r0 r1 r2 r3*", "r3"},    // who runs goes on
		{1, "r2", "r0 r1 r2* r3*", "r2"},   // the limit was lowered
		{2, "", "r0 r1 r2! r3*!", "r0 r1"}, // paused: makes room
		{5, "", "r0 r1", "r0 r1"},
		{1, "", "", ""},
		{0, "", "r0!", ""},
		{-1, "", "r0 r1", "r0 r1"},
	} {
		turns := syncTurns(tc.limit, strings.Fields(tc.prefer), wishes(tc.wishes))
		var got []string
		for r := range turns {
			got = append(got, string(r))
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("limit %d, order %q, wishes %q: %q, want %q", tc.limit, tc.prefer, tc.wishes, s, tc.want)
		}
	}
}

// Of many that ask at once, no more than the limit get a place.
func TestSyncSlots(t *testing.T) {
	var s syncSlots
	got := make(chan bool, 20)
	for i := range 20 {
		go func() { got <- s.take(symlinktree.Resource(fmt.Sprint("r", i)), 3) }()
	}
	n := 0
	for range 20 {
		if <-got {
			n++
		}
	}
	if n != 3 {
		t.Fatalf("%d of 20 got one of 3 places", n)
	}
	for r := range maps.Clone(s.running) {
		if !s.take(r, 1) {
			t.Error("who has a place is refused")
		}
		s.give(r)
	}
	if !s.take("x", 1) || s.give("y") || !s.give("x") {
		t.Error("a place that was given back is not free")
	}
}
