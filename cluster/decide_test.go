package cluster

import (
	"fmt"
	"strings"
	"testing"

	"mars/logfile"
	"mars/symlinktree"
)

// The resource of all rows: r0 of 4096 bytes on a, b and c; b is the node that
// decides. Rows change what matters to them.
var base = map[string]string{
	"size": "4096", "primary": "a",
	"data-a": "/a", "data-b": "/b", "data-c": "/c",
	"todo-b/attach": "1", "todo-b/connect": "1", "todo-b/sync": "1", "todo-b/allow-replay": "1",
	"actual-a/is-primary": "1",
	"syncstatus-b":        "4096",
	"replay-b":            "log-000000001-a,100,0",
	"version-000000001-a": version(1, "a", 100, ""),
	"version-000000001-b": version(1, "a", 100, ""),
}

func version(seq int, origin string, pos int64, prev string) string {
	return symlinktree.NewVersion(seq, origin, pos, prev).String()
}

func log(seq int, host string) logfile.Name { return logfile.Name{Seq: seq, Host: host} }

// caughtUpFacts: b follows log 1 of a, with all 100 bytes taken in.
func caughtUpFacts() Facts {
	return Facts{
		Node: "b", Mode: ModeReplaying, Size: 4096, Recovered: false, Heard: true,
		Current: log(1, "a"), Ingested: 100,
		Logs:  []LogFact{{log(1, "a"), 100}},
		Alive: map[string]bool{"a": true, "c": true},
		Fetch: &FetchFact{log(1, "a"), "a", -1},
	}
}

func snapshot(t *testing.T, links map[string]string) *symlinktree.Snapshot {
	t.Helper()
	tree, err := symlinktree.Open(t.TempDir(), symlinktree.Options{Node: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for path, v := range links {
		if v == "" {
			continue
		}
		if err := tree.Set("resource-r0/"+path, v); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return tree.Snapshot()
}

type row struct {
	name  string
	tree  map[string]string // over base; "" removes
	facts func(f *Facts)
	want  string // steps, messages as "say:KEY", in order, blank separated by "; "
}

func (r row) run(t *testing.T) {
	links := make(map[string]string)
	for k, v := range base {
		links[k] = v
	}
	for k, v := range r.tree {
		links[k] = v
	}
	f := caughtUpFacts()
	if r.facts != nil {
		r.facts(&f)
	}
	s := snapshot(t, links)
	var got []string
	for _, a := range decide(s, "r0", f) {
		if m, ok := a.(Say); ok {
			got = append(got, "say:"+m.Key)
			if !strings.Contains(m.Text, "r0") && !strings.Contains(m.Text, "log-") {
				t.Errorf("message names neither resource nor log: %q", m.Text)
			}
			continue
		}
		got = append(got, a.String())
	}
	if g := strings.Join(got, "; "); g != r.want {
		t.Errorf("\n got %s\nwant %s", g, r.want)
	}
	again := decide(s, "r0", f)
	if len(again) != len(got) {
		t.Errorf("a second call decides otherwise: %v", again)
	}
}

func idle(f *Facts) { f.Mode, f.Fetch = ModeIdle, nil }

func detached(f *Facts) {
	*f = Facts{Node: "b", Heard: true, Logs: f.Logs, Alive: f.Alive}
}

// own: b was primary in log 2 of its own and has 50 bytes in it.
func own(f *Facts) {
	idle(f)
	f.Current, f.Ingested = log(2, "b"), 50
	f.Logs = append(f.Logs, LogFact{log(2, "b"), 50})
}

// damaged: recovery of b's own log has found a defect at 20.
func damaged(f *Facts) {
	own(f)
	f.Ingested = 20
	f.Damage = &Damage{At: logfile.Position{Log: log(2, "b"), Offset: 20}, Lost: 30, Reason: "checksum"}
}

func leading(f *Facts) {
	own(f)
	f.Mode, f.Exported, f.Recovered, f.LogSize = ModeLogging, true, true, 50
}

var v1 = version(1, "a", 100, "")

func TestDecide(t *testing.T) {
	ownTree := map[string]string{"primary": "b", "actual-a/is-primary": "0", "replay-b": "log-000000002-b,0,50",
		"version-000000002-b": version(2, "b", 50, v1)}
	with := func(extra ...string) map[string]string {
		m := make(map[string]string)
		for k, v := range ownTree {
			m[k] = v
		}
		for i := 0; i < len(extra); i += 2 {
			m[extra[i]] = extra[i+1]
		}
		return m
	}
	rows := []row{
		// 4.3 attach and detach
		{"not a member", map[string]string{"data-b": ""}, detached, ""},
		{"attach", nil, detached, "attach"},
		{"attach is under way", nil, func(f *Facts) { detached(f); f.Busy = "attach" }, ""},
		{"attach failed a moment ago", nil, func(f *Facts) { detached(f); f.Holdoff = "attach of r0: in use" }, "say:err-transition"},
		{"no size yet", map[string]string{"size": ""}, detached, "say:err-attach"},
		{"broken replay link", map[string]string{"replay-b": "nonsense"}, detached, "say:err-replaylink-not-readable"},
		{"switched off, detached", map[string]string{"todo-b/attach": "0"}, detached, ""},
		{"detach a secondary", map[string]string{"todo-b/attach": "0"}, nil, "stop-fetch; detach"},
		{"detach while syncing", map[string]string{"todo-b/attach": "0"}, func(f *Facts) { f.Syncing = "a" }, "stop-fetch; stop-sync; detach"},
		{"member no more", map[string]string{"data-b": ""}, nil, "stop-fetch; detach"},
		{"marsd stops", nil, func(f *Facts) { f.Closing = true }, "stop-fetch; detach"},

		// 4.10 fetch
		{"all well", nil, nil, ""},
		{"start to fetch", nil, func(f *Facts) { f.Fetch = nil }, "fetch log-000000001-a from a"},
		{"fetch is switched off", map[string]string{"todo-b/connect": "0"}, nil, "stop-fetch"},
		{"writer silent, third member has more", map[string]string{"version-000000001-c": version(1, "a", 300, "")},
			func(f *Facts) { f.Fetch = nil; f.Alive["a"] = false }, "fetch log-000000001-a from c"},
		{"writer silent, third member has no more", map[string]string{"version-000000001-c": v1},
			func(f *Facts) { f.Fetch = nil; f.Alive["a"] = false }, ""},
		{"nobody alive has what is published", map[string]string{"version-000000001-a": version(1, "a", 300, "")},
			func(f *Facts) { f.Fetch = nil; f.Alive = nil }, "say:inf-fetch"},
		{"source just failed", nil, func(f *Facts) { f.Fetch = nil; f.Avoid = map[string]bool{"a": true} }, ""},
		{"preferred source has as much", map[string]string{"connect-b": "c,a", "version-000000001-a": version(1, "a", 300, ""), "version-000000001-c": v1},
			func(f *Facts) { f.Fetch = nil }, "fetch log-000000001-a from c"},
		{"preferred source has less", map[string]string{"connect-b": "c", "version-000000001-a": version(1, "a", 300, ""), "version-000000001-c": version(1, "a", 99, "")},
			func(f *Facts) { f.Fetch = nil }, "fetch log-000000001-a from a"},
		{"preferred source has failed", map[string]string{"connect-b": "c", "version-000000001-c": v1},
			func(f *Facts) { f.Fetch = nil; f.Avoid = map[string]bool{"c": true} }, "fetch log-000000001-a from a"},
		{"preferred source is silent", map[string]string{"connect-b": "c", "version-000000001-c": v1},
			func(f *Facts) { f.Fetch = nil; f.Alive["c"] = false }, "fetch log-000000001-a from a"},
		{"over to the preferred source", map[string]string{"connect-b": "c", "version-000000001-c": v1}, nil, "stop-fetch"},
		{"over to the more preferred source", map[string]string{"connect-b": "a c", "version-000000001-c": v1},
			func(f *Facts) { f.Fetch.Peer = "c" }, "stop-fetch"},
		{"at the preferred source already", map[string]string{"connect-b": "c,a", "version-000000001-c": v1},
			func(f *Facts) { f.Fetch.Peer = "c" }, ""},
		{"writer has sent damage", map[string]string{"version-000000001-a": version(1, "a", 300, ""), "version-000000001-c": version(1, "a", 200, "")},
			func(f *Facts) { f.Fetch = nil; f.Distrust = map[string]bool{"a": true} }, "fetch log-000000001-a from c"},
		{"who has sent damage is all there is", map[string]string{"version-000000001-a": version(1, "a", 300, ""), "version-000000001-c": v1},
			func(f *Facts) { f.Fetch = nil; f.Distrust = map[string]bool{"a": true} }, "fetch log-000000001-a from a"},
		{"the same name in another history", map[string]string{"connect-b": "c", "replay-b": "log-000000002-a,0,0", "version-000000002-a": version(2, "a", 300, v1),
			"version-000000002-b": version(2, "a", 0, v1), "version-000000002-c": version(2, "a", 900, version(1, "a", 50, ""))},
			func(f *Facts) {
				f.Fetch, f.Current, f.Ingested = nil, log(2, "a"), 0
				f.Logs = append(f.Logs, LogFact{log(2, "a"), 0})
				f.Distrust = map[string]bool{"a": true}
			}, "fetch log-000000002-a from a"},
		{"nothing arrives", map[string]string{"version-000000001-a": version(1, "a", 300, "")}, func(f *Facts) { f.FetchStalled = true }, "say:wrn-fetch-stalled"},
		{"nothing is synced", map[string]string{"syncstatus-b": "0"}, func(f *Facts) { f.Syncing, f.SyncStalled = "a", true }, "say:wrn-sync-stalled"},
		{"source fell silent", nil, func(f *Facts) { f.Alive["a"] = false; f.Fetch.Peer = "a" }, "stop-fetch"},
		{"running subscription keeps its source", map[string]string{"version-000000001-a": version(1, "a", 300, "")},
			func(f *Facts) { f.Fetch.Peer = "c" }, ""},
		{"log was left: fetch to its end only", map[string]string{"version-000000002-a": version(2, "a", 0, version(1, "a", 300, ""))},
			func(f *Facts) { f.Fetch = nil }, "fetch log-000000001-a from a; say:inf-versionlink-not-equal"},
		{"log was left: the endless subscription gets its limit", map[string]string{"version-000000002-a": version(2, "a", 0, version(1, "a", 300, ""))},
			nil, "stop-fetch; say:inf-versionlink-not-equal"},
		{"prefetch of the next log", map[string]string{"version-000000002-a": version(2, "a", 0, v1)}, func(f *Facts) { f.Fetch = nil },
			"fetch log-000000002-a from a"},

		// 4.11, 4.12 replay and the next log
		{"start to replay", nil, func(f *Facts) { f.Mode = ModeIdle }, "replay true"},
		{"replay switched off", map[string]string{"todo-b/allow-replay": "0"}, nil, "replay false"},
		{"replay is off", map[string]string{"todo-b/allow-replay": "0"}, func(f *Facts) { f.Mode = ModeIdle }, ""},
		{"next log", map[string]string{"version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) {
				f.Logs = append(f.Logs, LogFact{log(2, "a"), 0})
				f.Fetch = &FetchFact{log(2, "a"), "a", -1}
			}, "next log-000000002-a"},
		{"next log of a new primary", map[string]string{"primary": "c", "version-000000002-c": version(2, "c", 0, v1)},
			func(f *Facts) {
				f.Logs = append(f.Logs, LogFact{log(2, "c"), 10})
				f.Fetch = &FetchFact{log(2, "c"), "c", -1}
			}, "next log-000000002-c"},
		{"next log, but our own link is not final yet", map[string]string{"version-000000001-b": version(1, "a", 50, ""), "version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) {
				f.Logs = append(f.Logs, LogFact{log(2, "a"), 0})
				f.Fetch = &FetchFact{log(2, "a"), "a", -1}
			}, ""},
		{"not all of the old log taken in", map[string]string{"version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) {
				f.Ingested = 60
				f.Logs = append(f.Logs, LogFact{log(2, "a"), 0})
				f.Fetch = &FetchFact{log(2, "a"), "a", -1}
			}, ""},
		{"the writer left the log before our end", map[string]string{"version-000000002-c": version(2, "c", 0, version(1, "a", 60, ""))},
			func(f *Facts) { f.Fetch = nil }, "say:err-splitbrain-detected"},
		{"same length, other history", map[string]string{"version-000000001-b": strings.Replace(v1, v1[:4], "ffff", 1),
			"version-000000002-c": version(2, "c", 0, v1)}, func(f *Facts) { f.Fetch = nil }, "say:err-splitbrain-detected"},
		{"two branches from our end", map[string]string{"version-000000002-a": version(2, "a", 0, v1), "version-000000002-c": version(2, "c", 0, v1)},
			func(f *Facts) { f.Fetch = nil }, "say:err-splitbrain-detected"},
		{"bystander does not copy past a fork", map[string]string{
			"version-000000001-a": version(1, "a", 900, ""),
			"version-000000002-a": version(2, "a", 0, version(1, "a", 900, "")), "version-000000002-c": version(2, "c", 0, version(1, "a", 400, ""))},
			func(f *Facts) { f.Fetch = &FetchFact{log(1, "a"), "a", 400} }, "say:inf-versionlink-not-equal"},
		{"a log of the next number that builds on something else", map[string]string{"version-000000002-c": version(2, "c", 0, version(1, "c", 77, ""))},
			func(f *Facts) { f.Fetch = nil }, "fetch log-000000001-a from a; say:err-splitbrain-detected"},
		{"waiting for the rest of a record", nil, func(f *Facts) { f.Torn, f.Ingested = true, 90 }, ""},
		{"a left log ends inside a record", map[string]string{"version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) { f.Torn, f.Ingested, f.Fetch = true, 90, &FetchFact{log(2, "a"), "a", -1} }, "say:err-replay-stop"},

		// damaged copies
		{"the writer cut what it had not finished", map[string]string{"version-000000002-a": version(2, "a", 0, version(1, "a", 90, ""))},
			func(f *Facts) { f.Torn, f.Ingested = true, 90 }, "stop-fetch; refetch log-000000001-a at 90"},
		{"damaged copy is fetched again", nil, func(f *Facts) { f.Damaged, f.DamagedAt = "checksum", 40 },
			"stop-fetch; say:err-replay-stop; refetch log-000000001-a at 40"},
		{"damaged copy, nobody alive", nil, func(f *Facts) { f.Damaged, f.Fetch, f.Alive = "checksum", nil, nil }, "say:err-replay-stop"},
		{"damaged at the writer too", nil, func(f *Facts) { f.Damaged, f.Refetches, f.Fetch = "checksum", maxRefetches, nil },
			"say:err-replay-stop; say:wrn-log-refetch"},

		{"no fetch before the damage is cut off", nil, func(f *Facts) { f.Fetch, f.Busy = nil, "refetch" }, ""},

		// 4.15 sync
		{"sync", map[string]string{"syncstatus-b": "0"}, nil, "sync from a restart=false"},
		{"sync was begun from somebody else", map[string]string{"syncstatus-b": "2048", "syncsource-b": "c"}, nil, "sync from a restart=true"},
		{"device grows", map[string]string{"size": "8192", "syncstatus-b": "8192"}, nil, "resize to 8192"},
		{"device cannot grow yet", map[string]string{"size": "8192", "syncstatus-b": "8192"},
			func(f *Facts) { f.ResizeFailed = "disk of r0 is too small" }, "say:err-resize"},
		{"sync goes on at its cursor", map[string]string{"syncstatus-b": "2048", "syncsource-b": "a"}, nil, "sync from a restart=false"},
		{"sync runs", map[string]string{"syncstatus-b": "2048"}, func(f *Facts) { f.Syncing = "a" }, ""},
		{"sync switched off", map[string]string{"syncstatus-b": "2048", "todo-b/sync": "0"}, func(f *Facts) { f.Syncing = "a" }, "stop-sync"},
		{"sync waits for a primary", map[string]string{"syncstatus-b": "0", "actual-a/is-primary": "0"}, nil, "say:inf-sync-start"},
		{"primary changed under the sync", map[string]string{"syncstatus-b": "9", "primary": "c", "actual-c/is-primary": "1"},
			func(f *Facts) { f.Syncing = "a" }, "stop-sync"},
		{"sync over", nil, func(f *Facts) { f.Syncing = "a" }, "stop-sync"},

		// 4.6, 4.7 becoming primary
		{"planned handover: stop replay first", map[string]string{"primary": "b", "actual-a/is-primary": "0"}, nil, "stop-fetch; replay false"},
		{"then lead", map[string]string{"primary": "b", "actual-a/is-primary": "0"}, idle, "lead log-000000002-b"},
		{"the old primary is still there", map[string]string{"primary": "b"}, nil, "say:inf-primary"},
		{"the old primary is still there, forced", map[string]string{"primary": "b", "todo-b/connect": "0"}, nil, "stop-fetch; replay false"},
		{"the old primary is dead", map[string]string{"primary": "b"}, func(f *Facts) { idle(f); f.Alive["a"] = false }, "lead log-000000002-b"},
		{"not yet all fetched", map[string]string{"primary": "b", "actual-a/is-primary": "0", "version-000000001-a": version(1, "a", 300, "")}, nil, ""},
		{"not all fetched, forced", map[string]string{"primary": "b", "todo-b/connect": "0", "version-000000001-a": version(1, "a", 300, "")}, idle, "lead log-000000002-b"},
		{"not all taken in", map[string]string{"primary": "b", "actual-a/is-primary": "0"}, func(f *Facts) { f.Ingested = 50 }, ""},
		{"torn copy, forced", map[string]string{"primary": "b", "todo-b/connect": "0"},
			func(f *Facts) { idle(f); f.Torn, f.Ingested = true, 90 }, "cut log-000000001-a at 90"},
		{"damaged copy, forced", map[string]string{"primary": "b", "todo-b/connect": "0"},
			func(f *Facts) { f.Damaged, f.DamagedAt, f.Ingested = "checksum", 90, 90 }, "stop-fetch; cut log-000000001-a at 90"},
		{"copy that cannot be read, forced", map[string]string{"primary": "b", "todo-b/connect": "0"},
			func(f *Facts) { f.Damaged, f.DamagedAt, f.Ingested = "input/output error", -1, 90 }, "stop-fetch; say:err-replay-stop"},
		{"cut copy, forced", map[string]string{"primary": "b", "todo-b/connect": "0"},
			func(f *Facts) { idle(f); f.Ingested, f.Logs[0].Size = 90, 90 }, "lead log-000000002-b"},
		{"numbers that were set aside are not used again", ownTree, func(f *Facts) { own(f); f.Recovered, f.GivenUp = true, 6 }, "lead log-000000007-b"},
		{"never onto an unfinished sync", map[string]string{"primary": "b", "syncstatus-b": "10", "todo-b/connect": "0"}, idle,
			"say:err-primary-inconsistent; replay true"},
		{"never before the sync's end is replayed", map[string]string{"primary": "b", "actual-a/is-primary": "0", "syncpos-b": "log-000000001-a,400,0"}, nil,
			"say:err-primary-inconsistent"},
		{"not heard of the others yet", map[string]string{"primary": "b"}, func(f *Facts) { f.Heard = false }, "say:inf-primary"},

		{"a known successor is followed first", map[string]string{"primary": "b", "actual-a/is-primary": "0", "version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) {
				f.Logs = append(f.Logs, LogFact{log(2, "a"), 500})
				f.Fetch = &FetchFact{log(2, "a"), "a", -1}
			}, "say:inf-primary; next log-000000002-a"},
		{"a known successor is followed first, forced too if it is here", map[string]string{"primary": "b", "todo-b/connect": "0", "version-000000002-a": version(2, "a", 0, v1)},
			func(f *Facts) { f.Fetch = nil; f.Logs = append(f.Logs, LogFact{log(2, "a"), 500}) }, "say:inf-primary; next log-000000002-a"},
		{"a successor that is not here is given up by force", map[string]string{"primary": "b", "todo-b/connect": "0", "version-000000002-a": version(2, "a", 0, v1)},
			idle, "lead log-000000002-b"},
		{"own log from a lost start of the role", map[string]string{"primary": "b", "actual-a/is-primary": "0", "version-000000002-b": version(2, "b", 0, v1)},
			func(f *Facts) { f.Fetch = nil; f.Logs = append(f.Logs, LogFact{log(2, "b"), 500}) }, "say:inf-primary; next log-000000002-b"},

		// 4.21 restart
		{"own log after a restart", ownTree, own, "recover up to log-000000002-b,50 force=false"},
		{"recovered", ownTree, func(f *Facts) { own(f); f.Recovered = true }, "lead log-000000003-b"},
		{"recovered, but another member took over meanwhile", with("actual-c/is-primary", "1"), func(f *Facts) { own(f); f.Recovered = true }, "say:inf-primary; replay true"},
		{"recovered, and others went on from our end", with("version-000000003-c", version(3, "c", 0, version(2, "b", 50, v1))),
			func(f *Facts) { own(f); f.Recovered = true }, "say:inf-primary; fetch log-000000003-c from c; replay true"},
		{"own log, role lost meanwhile", with("primary", "a"), own, "recover up to log-000000002-b,50 force=false"},
		{"own empty log is used", with("replay-b", "log-000000002-b,0,0", "version-000000002-b", version(2, "b", 0, v1)), func(f *Facts) { own(f); f.Logs[1].Size = 0; f.Ingested = 0 }, "lead log-000000002-b"},
		{"own log announced, never created", with("replay-b", "log-000000002-b,0,0", "version-000000002-b", version(2, "b", 0, v1)), func(f *Facts) { own(f); f.Logs, f.Ingested = f.Logs[:1], 0 }, "lead log-000000002-b"},
		{"own log lost", with("replay-b", "log-000000002-b,0,0"), func(f *Facts) { own(f); f.Logs[1].Size = 0; f.Ingested = 0 }, "recover up to log-000000002-b,50 force=false"},
		{"own empty log with a later own one that is known", with("replay-b", "log-000000002-b,0,0", "version-000000002-b", version(2, "b", 0, v1),
			"version-000000003-b", version(3, "b", 9, version(2, "b", 0, v1))), func(f *Facts) { own(f); f.Logs[1].Size = 0; f.Ingested = 0 },
			"recover up to log-000000003-b,9 force=false"},
		{"pause-fetch is not consent", with("todo-b/connect", "0"), own, "recover up to log-000000002-b,50 force=false"},

		// the own log is damaged
		{"damaged: told, and tried again", ownTree, damaged, "say:err-replay-stop; recover up to log-000000002-b,50 force=false"},
		{"damaged: told while held off", ownTree, func(f *Facts) { damaged(f); f.Holdoff = "recover of r0" }, "say:err-replay-stop"},
		{"damaged: to be given up, at once", with("todo-b/give-up", "log-000000002-b,20"), func(f *Facts) { damaged(f); f.Holdoff = "recover of r0" },
			"recover up to log-000000002-b,50 force=true"},
		{"damaged: to be given up, under way", with("todo-b/give-up", "log-000000002-b,20"), func(f *Facts) { damaged(f); f.Busy = "recover" }, "say:err-replay-stop"},
		{"damaged: giving up has failed", with("todo-b/give-up", "log-000000002-b,20"),
			func(f *Facts) { damaged(f); f.Damage.Forced, f.Holdoff = true, "recover of r0" }, "say:err-replay-stop"},
		{"damaged: consent was for another place", with("todo-b/give-up", "log-000000002-b,10"), damaged,
			"say:err-replay-stop; recover up to log-000000002-b,50 force=false"},
		{"damaged: consent of before it was known", with("todo-b/give-up", "log-000000002-b,20"), own, "recover up to log-000000002-b,50 force=false"},
		{"damaged: never primary", with("todo-b/connect", "0"), damaged, "say:err-replay-stop; recover up to log-000000002-b,50 force=false"},
		{"given up: goes on behind every number that was used", with("version-000000002-b", version(2, "b", 20, v1), "version-000000003-c", version(3, "b", 70, version(2, "b", 50, v1))),
			func(f *Facts) { own(f); f.Recovered, f.Ingested, f.Logs[1].Size = true, 20, 20 }, "say:inf-primary; replay true"},
		{"given up: others keep what was given up", with("todo-b/give-up", "log-000000002-b,20", "version-000000002-b", version(2, "b", 20, v1), "version-000000003-c", version(3, "b", 70, version(2, "b", 50, v1))),
			func(f *Facts) { own(f); f.Recovered, f.Ingested, f.Logs[1].Size = true, 20, 20 }, "lead log-000000004-b"},
		{"all own logs are known, also across a gap", map[string]string{"primary": "b", "actual-a/is-primary": "0", "replay-b": "log-000000002-b,0,50",
			"version-000000002-b": version(2, "b", 50, v1), "version-000000005-b": version(5, "b", 7, version(2, "b", 50, v1))}, own,
			"recover up to log-000000005-b,7 force=false"},
		{"the writer gave up a damaged part", map[string]string{"version-000000004-a": version(4, "a", 0, version(1, "a", 90, ""))},
			func(f *Facts) { f.Ingested, f.Damaged, f.DamagedAt, f.Refetches = 90, "checksum", 90, maxRefetches },
			"stop-fetch; say:err-replay-stop; refetch log-000000001-a at 90"},
		{"numbers may be left out", map[string]string{"version-000000004-a": version(4, "a", 0, v1)}, func(f *Facts) { f.Fetch = nil },
			"fetch log-000000004-a from a"},
		{"the log that we are in was given up", map[string]string{"replay-b": "log-000000002-a,70,0", "version-000000002-b": version(2, "a", 70, v1),
			"version-000000004-a": version(4, "a", 0, version(1, "a", 60, ""))},
			func(f *Facts) {
				f.Current, f.Ingested, f.Logs, f.Fetch = log(2, "a"), 70, []LogFact{{log(2, "a"), 70}}, nil
			}, "fetch log-000000002-a from a; say:err-splitbrain-detected"},

		// primary
		{"device appears", ownTree, func(f *Facts) { leading(f); f.Exported = false }, "export"},
		{"primary, all well", ownTree, leading, ""},
		{"a failed log is followed by a new one", ownTree, func(f *Facts) { leading(f); f.LogFailed = true }, "lead log-000000003-b"},
		{"rotation by size", ownTree, func(f *Facts) { leading(f); f.RotateSize = 50 }, "rotate log-000000003-b"},
		{"rotation by marsadm", ownTree, func(f *Facts) { leading(f); f.Logs = append(f.Logs, LogFact{log(3, "b"), 0}) }, "rotate log-000000003-b"},
		{"somebody else's next log is not ours", ownTree, func(f *Facts) { leading(f); f.Logs = append(f.Logs, LogFact{log(3, "a-b"), 0}) }, ""},
		{"step down", with("primary", "(none)"), leading, "yield"},
		{"step down, device in use", with("primary", "(none)"), func(f *Facts) { leading(f); f.OpenCount = 2 }, "say:inf-primary"},
		{"marsd stops, device in use", ownTree, func(f *Facts) { leading(f); f.OpenCount, f.Closing = 2, true }, "yield"},
		{"detach a primary", with("todo-b/attach", "0"), leading, "yield"},
		{"forced off by leave-resource --host", with("data-b", ""), leading, "detach"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.run(t) })
	}
}

// The chain of a planned handover a -> b -> a as the bystander c sees it never
// looks like a split.
func TestDecideBystanderFollows(t *testing.T) {
	va := version(1, "a", 100, "")
	vb := version(2, "b", 70, va)
	links := map[string]string{
		"size": "4096", "primary": "a", "data-c": "/c", "todo-c/attach": "1", "todo-c/connect": "1", "todo-c/allow-replay": "1",
		"syncstatus-c": "4096", "replay-c": "log-000000001-a,100,0",
		"version-000000001-a": va, "version-000000001-b": va, "version-000000001-c": va,
		"version-000000002-b": vb, "version-000000002-a": vb, "version-000000003-a": version(3, "a", 5, vb),
	}
	s := snapshot(t, links)
	f := Facts{Node: "c", Mode: ModeReplaying, Size: 4096, Heard: true, Current: log(1, "a"), Ingested: 100, Alive: map[string]bool{"a": true},
		Logs: []LogFact{{log(1, "a"), 100}, {log(2, "b"), 70}}}
	got := fmt.Sprint(decide(s, "r0", f))
	if want := "[fetch log-000000003-a from a next log-000000002-b]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
