package adm

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// situation is one column of the refusal matrix: a node in a state.
type situation struct {
	name, node string
	use        string // of testdata/base
	put        string
	daemon     string // rules; "-" for no daemon
}

// obedient are the rules of a marsd on both hosts that does what it is told.
const obedient = `resource-r0/primary=(none) => resource-r0/actual-hosta/is-primary=0
resource-r0/primary=(none) => resource-r0/actual-hosta/if-on=0
resource-r0/primary=hostb => resource-r0/actual-hostb/is-primary=1
resource-r0/primary=hostb => resource-r0/actual-hostb/if-on=1
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/is-attached=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/if-on=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/is-replaying=0
resource-r0/todo-hosta/sync=0 => resource-r0/actual-hosta/is-syncing=0
resource-r0/todo-hostb/attach=1 => resource-r0/actual-hostb/is-attached=1
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-attached=0
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-replaying=0
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-syncing=0
resource-r0/todo-hostb/allow-replay=0 => resource-r0/actual-hostb/is-replaying=0
resource-r0/todo-hostb/sync=0 => resource-r0/actual-hostb/is-syncing=0
resource-r0/todo-hostb/connect=0 => resource-r0/actual-hostb/is-copying=0
`

const switchedOff = `resource-r0/todo-hostb/attach -> 0
resource-r0/todo-hostb/connect -> 0
resource-r0/todo-hostb/sync -> 0
resource-r0/todo-hostb/allow-replay -> 0
resource-r0/actual-hostb/is-attached -> 0
resource-r0/actual-hostb/is-replaying -> 0
`

// situations are the columns, from left to right.
var situations = []situation{
	{name: "no cluster", node: "hosta", daemon: "-"},
	{name: "not joined", node: "hostc", use: "pair", put: "ips/ip-hostc -> 10.9.0.3", daemon: obedient},
	{name: "secondary", node: "hostb", use: "pair", daemon: obedient},
	{name: "syncing", node: "hostb", use: "pair", put: "resource-r0/syncstatus-hostb -> 4096\nresource-r0/actual-hostb/is-syncing -> 1", daemon: obedient},
	{name: "primary idle", node: "hosta", use: "pair", daemon: obedient},
	{name: "primary open", node: "hosta", use: "pair", put: "resource-r0/actual-hosta/open-count -> 1", daemon: obedient},
	{name: "detached", node: "hostb", use: "pair", put: switchedOff, daemon: obedient},
	{name: "split brain", node: "hostb", use: "pair", daemon: obedient, put: `resource-r0/log-000000002-hostb = 4096
resource-r0/replay-hosta -> log-000000002-hosta,4096,0
resource-r0/version-000000002-hosta -> 22222222222222222222222222222222,log-000000002-hosta,4096:11111111111111111111111111111111,log-000000001-hosta,8388608
resource-r0/replay-hostb -> log-000000002-hostb,4096,0
resource-r0/version-000000002-hostb -> 33333333333333333333333333333333,log-000000002-hostb,4096:11111111111111111111111111111111,log-000000001-hosta,8388608`},
	{name: "emergency", node: "hostb", use: "pair", put: "resource-r0/actual-hosta/has-emergency -> 1", daemon: obedient},
	{name: "cut", node: "hostb", use: "pair", put: "actual-hosta/time -> $NOW-300", daemon: "dead hosta\n" + obedient},
	{name: "daemon down", node: "hostb", use: "pair", put: "actual-hostb/time -> $NOW-300", daemon: "-"},
	{name: "damaged log", node: "hosta", use: "pair", daemon: obedient + givenUp, put: `resource-r0/actual-hosta/log-damage -> log-000000001-hosta,4096,8384512
resource-r0/actual-hosta/is-primary -> 0
resource-r0/actual-hosta/if-on -> 0
resource-r0/actual-hosta/replay-code -> -10101`},
}

// givenUp: marsd ends the own log in front of the damage when it is told to.
const givenUp = `resource-r0/todo-hosta/give-up=log-000000001-hosta,4096 => resource-r0/actual-hosta/if-on=1
resource-r0/todo-hosta/give-up=log-000000001-hosta,4096 => resource-r0/actual-hosta/is-primary=1
`

// matrix says what becomes of every command in every situation: D done, n done
// without changing anything, R refused without having changed anything, T timed out. Columns are
// the situations; what the original demands is in reference marsadm.md 6 and
// symlink-tree.md 7.
const matrix = `
create-cluster                     | D R R R R R R R R R R R
join-cluster hosta 10.9.0.1        | R R R R R R R R R R R R
leave-cluster                      | R D R R R R R R R R R R
leave-cluster --force              | R D D D D D D D D D D D
merge-cluster-check hostz 10.9.0.9 | R R R R R R R R R R R R
create-uuid                        | D R R R R R R R R R R R
create-resource r1 $DIR/new        | R D D D D D D D D D D D
create-resource r0 $DIR/new        | R R R R R R R R R R R R
join-resource r0 $DIR/new          | R D R R R R R R R R R R
join-resource r0 $DIR/new --force  | R D D D R R D D R D R R
leave-resource r0                  | R R R R R R D R R R R R
leave-resource r0 --force          | R n D D D D D D D D D D
delete-resource r0                 | R R R R R R R R R R R R
delete-resource r0 --force         | R D D D D D D D D D D D
activate-guest r0                  | R D R R R R R R R R R R
deactivate-guest r0                | R R R R R R R R R R R R
up r0                              | R R n n n n D n n n R n
down r0                            | R R D D D R D D D D D D
attach r0                          | R R n n n n D n n n R n
detach r0                          | R R D D D R D D D D D D
detach r0 --force                  | R R D D D D D D D D D D
connect r0                         | R R n n n n D n n n n n
disconnect r0                      | R R D D D D D D D D D D
pause-fetch r0                     | R R D D D D D D D D D D
resume-fetch r0                    | R R n n n n D n n n n n
pause-replay r0                    | R R D D D D D D D D D D
resume-replay r0                   | R R n n n n D n n n n n
pause-sync r0                      | R R D D D D D D D D D D
resume-sync r0                     | R R n n n n D n R n n n
pause-sync-global r0               | R R D D D D D D D D D D
primary r0                         | R R D R D D R R D R R R
primary r0 --ignore-sync           | R R D R D D R R D R R R
primary r0 --force                 | R R R R R R R R R R R D
secondary r0                       | R R D D D R D D D D D D
secondary r0 --force               | R R D D D D D D D D D D
invalidate r0                      | R R D D R R D D R R R R
invalidate r0 --force              | R R D D R R D D R D R R
fake-sync r0                       | R R D D D D D D D D D D
set-replay r0 1                    | R R R R R R D R R R R R
set-replay r0 9 --force            | R R R R R R R R R R R R
resize r0                          | R R R R R R R R R R R R
wait-cluster                       | R n n n n n n n n n R n
wait-umount r0                     | R n n n n T n n n n n n
cron                               | R D D D D D D D D D D D
log-rotate r0                      | R R R R D D R R R R R n
log-delete-all r0                  | R R n n n n n D n n n n
log-purge-all r0                   | R n n n n n n n n n n n
err-purge-all r0                   | R n D D D D D D D D D D
link-purge-all r0                  | R n n n n n n n n n n n
set-emergency-limit r0 80          | R R D D D D D D D D D D
get-emergency-limit r0             | R R n n n n n n n n n n
set-global-sync-limit-value 2      | R D D D D D D D D D D D
set-connect-pref-list r0 hosta     | R R D D D D D D D D D D
set-systemd-unit r0 x.service      | R R D D D D D D D D D D
set-systemd-want r0 hosta          | R R R R R R R R R R R R
set-link x userspace/a             | R D D D D D D D D D D D
delete-file userspace/none         | R R R R R R R R R R R R
view r0                            | R n n n n n n n n n n n
role r0                            | R n n n n n n n n n n n
show r0                            | R n n n n n n n n n n n
show-errors r0                     | R n n n n n n n n n n n
`

// printMatrix prints what the commands do instead of judging it.
var printMatrix = flag.Bool("print-matrix", false, "print the refusal matrix as it is")

// matrixRow is one command with its verdicts.
type matrixRow struct{ command, verdicts string }

func matrixRows(t testing.TB) []matrixRow {
	var out []matrixRow
	for _, line := range strings.Split(strings.TrimSpace(matrix), "\n") {
		command, verdicts, ok := strings.Cut(line, "|")
		verdicts = strings.ReplaceAll(verdicts, " ", "")
		if !ok || len(verdicts) != len(situations) && !*printMatrix {
			t.Fatalf("bad row %q", line)
		}
		out = append(out, matrixRow{strings.TrimSpace(command), verdicts})
	}
	return out
}

// TestRefusalMatrix is V25: every command in every situation.
func TestRefusalMatrix(t *testing.T) {
	rows := matrixRows(t)
	if len(rows)*len(situations) < 400 {
		t.Errorf("only %d cells", len(rows)*len(situations))
	}
	got := make([][]byte, len(rows))
	for y := range rows {
		got[y] = []byte(strings.Repeat("?", len(situations)))
	}
	t.Run("cells", func(t *testing.T) {
		for x, s := range situations {
			t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
				if raceEnabled && x%3 != 2 {
					t.Skip("every third situation is enough for the race detector")
				}
				t.Parallel()
				c := &column{s: s, r: newRig(t, s.node)}
				if s.use != "" {
					c.r.use(s.use)
				}
				c.r.put("$DIR/new = 67108864\n" + s.put)
				c.begin()
				defer c.end()
				for y, row := range rows {
					verdict, why := c.cell(t, row.command)
					got[y][x] = verdict
					if want := (row.verdicts + strings.Repeat("?", 20))[x]; verdict != want && !*printMatrix {
						t.Errorf("%s: %c, want %c\n%s", row.command, verdict, want, why)
					}
				}
			})
		}
	})
	if *printMatrix {
		for y, row := range rows {
			fmt.Fprintf(os.Stderr, "%-32s | %s\n", row.command, strings.Join(strings.Split(string(got[y]), ""), " "))
		}
	}
}

// column is a node in a situation. What a command changes is put back afterwards.
type column struct {
	s     situation
	r     *rig
	d     *daemon
	start map[string]entry
}

func (c *column) begin() {
	if c.s.daemon != "-" {
		c.d = c.r.startDaemon(c.s.daemon)
	}
	c.r.settle()
	c.start = c.r.state()
}

// undo puts back what a command has changed, with its old stamps.
func (c *column) undo() {
	c.end()
	t := c.r.t
	must(t, os.RemoveAll(c.r.abs("local-"+c.r.node)))
	now := c.r.state()
	for p := range now {
		if _, was := c.start[p]; !was {
			must(t, os.RemoveAll(c.r.abs(p)))
		}
	}
	for p, e := range c.start {
		if now[p] == e {
			continue
		}
		abs := strings.TrimSuffix(c.r.abs(p), "/")
		value, link := strings.CutPrefix(e.value, " -> ")
		must(t, os.RemoveAll(abs))
		must(t, os.MkdirAll(filepath.Dir(abs), 0o700))
		switch {
		case link:
			must(t, os.Symlink(value, abs))
			ts := unix.NsecToTimespec(int64(e.stamp))
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, abs, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
		case strings.HasSuffix(p, "/"):
			must(t, os.MkdirAll(abs, 0o700))
		default:
			size, err := strconv.ParseInt(strings.TrimPrefix(e.value, " = "), 10, 64)
			must(t, err)
			must(t, os.WriteFile(abs, nil, 0o600))
			must(t, os.Truncate(abs, size))
			must(t, os.Chtimes(abs, at("-1800").Time(), at("-1800").Time()))
		}
	}
	c.begin()
}

func (c *column) end() {
	if c.d != nil {
		c.d.stop()
		c.d = nil
	}
}

// cell runs one command and classifies the outcome.
func (c *column) cell(t *testing.T, command string) (verdict byte, why string) {
	t.Helper()
	before := c.r.state()
	args := append([]string{"--timeout=2"}, strings.Fields(command)...)
	if c.s.daemon == "-" {
		args[0] = "--timeout=0.2" // marsd will not come
	}
	res := c.r.run(args...)
	c.r.settle()
	diff := withoutBeacons(before, c.r.state())
	why = fmt.Sprintf("exit %d\n%s%s%s", res.code, res.out, res.err, diff)
	if diff != "" {
		c.undo()
	}
	switch {
	case res.code == ExitDone && diff == "":
		return 'n', why
	case res.code == ExitDone:
		return 'D', why
	case res.code == ExitFailed && diff == "" && strings.Contains(res.err, "ERROR: "):
		return 'R', why
	case res.code == ExitTimeout && diff == "":
		return 'T', why
	case res.code == ExitUsage:
		return 'U', why
	}
	return 'X', why // failed half way, or without a word
}

// withoutBeacons are the changes of a tree without signs of life.
func withoutBeacons(before, after map[string]entry) string {
	for _, state := range []map[string]entry{before, after} {
		for p := range state {
			if dir, name, ok := strings.Cut(p, "/"); ok && strings.HasPrefix(dir, "actual-") && name == "time" {
				delete(state, p)
			}
		}
	}
	return changes(before, after)
}
