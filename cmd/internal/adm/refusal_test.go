package adm

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// printMatrix prints what the commands do instead of judging it.
var printMatrix = flag.Bool("print-matrix", false, "print the refusal matrix as it is")

// matrixRow is what commands that are the same in all situations become: names with
// commas between them, and words.
type matrixRow struct{ command, verdicts string }

// commands are the command lines of a row.
func (r matrixRow) commands() (out [][]string) {
	words := strings.Fields(r.command)
	for i, w := range words {
		if w == `""` {
			words[i] = ""
		}
	}
	for _, name := range strings.Split(words[0], ",") {
		out = append(out, append([]string{name}, words[1:]...))
	}
	return out
}

func matrixRows(t testing.TB) []matrixRow {
	var out []matrixRow
	for _, line := range strings.Split(strings.TrimSpace(matrix), "\n") {
		command, verdicts, ok := strings.Cut(line, "|")
		verdicts = strings.ReplaceAll(verdicts, " ", "")
		if !*printMatrix && (!ok || len(verdicts) != len(situations)) {
			t.Fatalf("bad row %q", line)
		}
		out = append(out, matrixRow{strings.TrimSpace(command), verdicts})
	}
	return out
}

// TestMatrixIsComplete: no command is left out.
func TestMatrixIsComplete(t *testing.T) {
	var runs [][]string
	for _, row := range matrixRows(t) {
		runs = append(runs, row.commands()...)
	}
	for _, g := range groups() {
		for _, v := range g.verbs {
			if !ranIn(runs, v) {
				t.Errorf("no row for %s", v.name)
			}
		}
	}
	if len(runs)*len(situations) < 1500 {
		t.Errorf("only %d cells", len(runs)*len(situations))
	}
}

// matrixDiffs is where the changes of the D cells are: for each row "== COMMAND", then
// "SITUATION, SITUATION:" and what changes in these.
const matrixDiffs = "testdata/matrix.txt"

// readDiffs reads that file: command, situation, changes.
func readDiffs(t testing.TB) map[[2]string]string {
	_, parts := readParts(t, matrixDiffs)
	out := map[[2]string]string{}
	for _, p := range parts {
		for _, block := range strings.Split(p.body, "\n\n") {
			names, diff, _ := strings.Cut(block, ":\n")
			for _, name := range strings.Split(names, ", ") {
				out[[2]string{p.head, name}] = diff
			}
		}
	}
	return out
}

func writeDiffs(t testing.TB, rows []matrixRow, diffs map[[2]string]string) {
	b := "What changes in the D cells of the refusal matrix (matrix_test.go); go test -run RefusalMatrix -update writes it.\n"
	for _, row := range rows {
		var order []string
		where := map[string][]string{}
		for _, s := range situations {
			if d := diffs[[2]string{row.command, s.name}]; d != "" {
				if where[d] == nil {
					order = append(order, d)
				}
				where[d] = append(where[d], s.name)
			}
		}
		for i, d := range order {
			if i == 0 {
				b += "== " + row.command + "\n"
			} else {
				b += "\n"
			}
			b += strings.Join(where[d], ", ") + ":\n" + d + "\n"
		}
	}
	must(t, os.WriteFile(matrixDiffs, []byte(b), 0o644))
}

// TestRefusalMatrix is V25: every command in every situation, with what it changes.
func TestRefusalMatrix(t *testing.T) {
	rows, want := matrixRows(t), readDiffs(t)
	got := make([][]byte, len(rows))
	for y := range rows {
		got[y] = []byte(strings.Repeat("?", len(situations)))
	}
	var mu sync.Mutex
	diffs := map[[2]string]string{}
	t.Run("cells", func(t *testing.T) {
		for x, s := range situations {
			t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
				if raceEnabled && x%3 != 2 {
					t.Skip("every third situation is enough for the race detector")
				}
				t.Parallel()
				c := newColumn(t, s)
				defer c.end()
				for y, row := range rows {
					for i, command := range row.commands() {
						verdict, diff, why := c.cell(t, command)
						if *printMatrix {
							if i > 0 && got[y][x] != verdict {
								t.Errorf("%s: %c, %s: %c", row.command, got[y][x], command, verdict)
							}
							got[y][x] = verdict
							continue
						}
						if want := row.verdicts[x]; verdict != want {
							t.Errorf("%s: %c, want %c\n%s\n%s", command, verdict, want, why, diff)
						}
						at := [2]string{row.command, s.name}
						if *update && i == 0 && verdict == 'D' {
							mu.Lock()
							diffs[at] = diff
							mu.Unlock()
						} else if !*update && verdict == 'D' && diff != want[at] {
							t.Errorf("%s changes\n%s\nwant\n%s", command, diff, want[at])
						}
					}
				}
			})
		}
	})
	for y, row := range rows {
		if *printMatrix {
			fmt.Fprintf(os.Stderr, "%-40s | %s\n", row.command, strings.Join(strings.Split(string(got[y]), ""), " "))
		}
		for x, s := range situations {
			if *printMatrix {
				break
			}
			if _, listed := want[[2]string{row.command, s.name}]; listed && row.verdicts[x] != 'D' && !*update {
				t.Errorf("%s has changes for %s in %q, which changes nothing", matrixDiffs, row.command, s.name)
			}
		}
	}
	if *update && !raceEnabled && !t.Failed() {
		writeDiffs(t, rows, diffs)
	}
}

// column is a node in a situation. What a command changes is put back afterwards.
type column struct {
	s     situation
	r     *rig
	d     *daemon
	start map[string]entry
}

func newColumn(t *testing.T, s situation) *column {
	c := &column{s: s, r: newRig(t, s.node)}
	if s.use != "" {
		c.r.use(s.use)
	}
	c.r.put("$DIR/new = 67108864\n$DIR/log-000000001-hosta = 0\n" + s.put)
	if s.units {
		must(t, os.Mkdir(filepath.Join(c.r.dir, "units"), 0o755))
		c.r.script("systemctl", "exit 0")
		c.r.vars["SYSTEMD_TARGET_DIR"] = filepath.Join(c.r.dir, "units")
		c.r.vars["SYSTEMCTL"] = filepath.Join(c.r.dir, "systemctl")
		c.r.vars["MARS_PATH"] = filepath.Join(c.r.dir, "etc")
		c.r.vars["ETC_MARSADM"] = filepath.Join(c.r.dir, "etc")
	}
	c.begin()
	return c
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
func (c *column) cell(t *testing.T, command []string) (verdict byte, diff, why string) {
	t.Helper()
	timeout := "--timeout=2"
	if c.s.daemon == "-" || command[0] == "wait-resource" || command[0] == "wait-umount" {
		timeout = "--timeout=0.2" // marsd will not come, or it is so or not
	}
	res := c.r.run(append([]string{timeout}, command...)...)
	if diff = withoutBeacons(maps.Clone(c.start), c.r.state()); diff != "" {
		c.r.settle()
		diff = withoutBeacons(maps.Clone(c.start), c.r.state())
		c.undo()
	}
	changed := diff
	diff = ofNow.ReplaceAllString(c.r.shrink(c.ofCommand(diff)), "$$NOW")
	why = fmt.Sprintf("exit %d\n%s%s", res.code, res.out, res.err)
	switch {
	case command[0] == "check" && changed == "":
		return '0' + byte(res.code), diff, why
	case res.code == ExitDone && changed == "":
		return 'n', diff, why
	case res.code == ExitDone:
		return 'D', diff, why
	case res.code == ExitFailed && changed == "" && strings.Contains(res.err, "ERROR: "):
		return 'R', diff, why
	case res.code == ExitTimeout && changed == "":
		return 'T', diff, why
	}
	return 'X', diff, why // failed half way, or without a word
}

// ofCommand leaves out of a list of changes what the stand-in for marsd answers by its
// rules: that depends on what it gets to see.
func (c *column) ofCommand(diff string) string {
	if c.s.daemon == "-" || diff == "" {
		return diff
	}
	answers := map[string]bool{}
	rules, _ := parseRules(c.r.t, c.s.daemon)
	for _, u := range rules {
		answers[u.thenPath] = true
	}
	var out []string
	for _, line := range strings.Split(diff, "\n") {
		path, _, _ := strings.Cut(line[2:], " ")
		if line[0] == 'x' || !answers[path] {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// ofNow are stamps of the present; how many there have been before differs.
var ofNow = regexp.MustCompile(fmt.Sprintf(`\b%d\.\d{9}\b`, base.Unix()))

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
