package adm

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"mars/transport"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata/*/*.txt")

// TestGolden runs the commands of testdata/*/*.txt and compares exit code, output
// and what has become of the tree. A file is a list of parts, each begun by a line
// "== KIND [ARGS]":
//
//	node NAME       where the commands run (hosta)
//	use FILE        the put part of another file of testdata/base
//	put             links and files to make, see rig.put
//	daemon          a marsd runs from here on, see parseRules; without rules: alive
//	stop            it stops
//	secret          the node gets a copy of the cluster secret
//	peers           marsd can ask these hosts of other clusters: "HOST NAME=VALUE...",
//	                see rig.probed
//	log FILE N      a sound logfile of N records
//	damage FILE AT  one byte of a file is turned over
//	run ARGS        a command ("" is an empty word), followed by what is expected:
//	                "exit N", the standard output behind "| ", the error output behind
//	                "! ", the changes
//	long ARGS       likewise; the output is in a file of its own
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		if filepath.Base(filepath.Dir(file)) == "base" {
			continue
		}
		t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".txt"), func(t *testing.T) {
			t.Parallel()
			golden(t, file)
		})
	}
}

type part struct{ head, body string }

func readParts(t testing.TB, file string) (comment string, parts []part) {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	chunks := strings.Split("\n"+strings.TrimSuffix(string(data), "\n"), "\n== ")
	for _, c := range chunks[1:] {
		head, body, _ := strings.Cut(c, "\n")
		parts = append(parts, part{head, strings.Trim(body, "\n")})
	}
	return strings.TrimSpace(chunks[0]), parts
}

func golden(t *testing.T, file string) {
	comment, parts := readParts(t, file)
	node := "hosta"
	if len(parts) > 0 && strings.HasPrefix(parts[0].head, "node ") {
		node = strings.TrimPrefix(parts[0].head, "node ")
	}
	r := newRig(t, node)
	var d *daemon
	for i, p := range parts {
		word, args, _ := strings.Cut(p.head, " ")
		switch word {
		case "node":
		case "use":
			_, more := readParts(t, "testdata/base/"+args+".txt")
			r.put(more[0].body)
		case "put":
			r.put(p.body)
		case "daemon":
			if d != nil {
				d.stop()
			}
			d = r.startDaemon(p.body)
		case "stop":
			d.stop()
		case "secret":
			must(t, transport.WriteSecret(filepath.Join(r.dir, "secret"), transport.NewSecret()))
		case "peers":
			know := map[string]map[string]string{}
			for _, line := range strings.Split(p.body, "\n") {
				words := strings.Fields(line)
				know[words[0]] = map[string]string{}
				for _, w := range words[1:] {
					name, value, _ := strings.Cut(w, "=")
					know[words[0]][name] = value
				}
			}
			r.probed(know)
		case "log":
			path, n, _ := strings.Cut(r.expand(args), " ")
			records, err := strconv.Atoi(n)
			must(t, err)
			writeLog(t, path, records)
		case "damage":
			path, at, _ := strings.Cut(r.expand(args), " ")
			off, err := strconv.Atoi(at)
			must(t, err)
			data, err := os.ReadFile(path)
			must(t, err)
			data[off] ^= 1
			must(t, os.WriteFile(path, data, 0o600))
		case "run", "long":
			words := strings.Fields(args)
			for k, w := range words {
				if w == `""` {
					words[k] = ""
				}
			}
			out := ""
			if word == "long" {
				out = strings.TrimSuffix(file, ".txt") + fmt.Sprintf(".%d.out", i)
			}
			got := r.step(words, out)
			if *update {
				parts[i].body = got
			} else if got != p.body {
				t.Errorf("marsadm %s\n--- got\n%s\n--- want\n%s", args, got, p.body)
			}
		default:
			t.Fatalf("unknown part %q", p.head)
		}
	}
	if *update && !t.Failed() {
		var b strings.Builder
		if comment != "" {
			b.WriteString(comment + "\n")
		}
		for _, p := range parts {
			fmt.Fprintf(&b, "== %s\n", p.head)
			if p.body != "" {
				b.WriteString(p.body + "\n")
			}
		}
		must(t, os.WriteFile(file, []byte(b.String()), 0o644))
	}
}

// runsOf are the command lines of the golden files that are expected to end with one
// of these codes, as words.
func runsOf(t testing.TB, codes ...int) (runs [][]string) {
	files, err := filepath.Glob("testdata/*/*.txt")
	must(t, err)
	for _, file := range files {
		_, parts := readParts(t, file)
		for _, p := range parts {
			word, args, _ := strings.Cut(p.head, " ")
			exit, _, _ := strings.Cut(strings.TrimPrefix(p.body, "exit "), "\n")
			if code, err := strconv.Atoi(exit); (word == "run" || word == "long") && err == nil && slices.Contains(codes, code) {
				runs = append(runs, strings.Fields(args))
			}
		}
	}
	return runs
}

// ranIn reports whether one of some command lines is one of v.
func ranIn(runs [][]string, v verb) bool {
	return slices.ContainsFunc(runs, func(words []string) bool {
		i := slices.IndexFunc(words, func(w string) bool { return !strings.HasPrefix(w, "-") })
		prefix, macros := strings.CutSuffix(v.name, "NAME")
		return i >= 0 && (words[i] == v.name || macros && strings.HasPrefix(words[i], prefix))
	})
}

// TestEveryVerbIsGolden: there is a golden run of every command that succeeds, unless
// it never does.
func TestEveryVerbIsGolden(t *testing.T) {
	good, bad := runsOf(t, ExitDone), runsOf(t, ExitFailed)
	if len(good) < 200 || ranIn(good, verb{name: "no-such-command"}) || !ranIn(good, verb{name: "up"}) {
		t.Fatalf("%d runs", len(good))
	}
	for _, g := range groups() {
		for _, v := range g.verbs {
			runs := good
			for _, r := range retired {
				if r.name == v.name && !r.done {
					runs = bad
				}
			}
			if !ranIn(runs, v) {
				t.Errorf("no golden file runs %s", v.name)
			}
		}
	}
}

// longText stands for a long output: a file of the packages that is the same, or a
// golden one.
func longText(t testing.TB, text, golden string) string {
	t.Helper()
	for _, f := range []string{"marsadm.bash", "_marsadm", "marsadm.fish"} {
		if data, err := os.ReadFile(filepath.Join("../../../packaging/completion", f)); err == nil && string(data) == text {
			return "(packaging/completion/" + f + ")\n"
		}
	}
	if *update {
		must(t, os.WriteFile(golden, []byte(text), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if string(want) != text {
		t.Errorf("%s is not what comes out:\n%s", golden, text)
	}
	return "(" + filepath.Base(golden) + ")\n"
}

// step runs one command and describes the outcome. Links that only the daemon
// writes on its own account are not part of it. The output goes to the file long if
// that is named.
func (r *rig) step(args []string, long string) string {
	before := r.state()
	res := r.run(args...)
	r.settle()
	after := r.state()
	for _, state := range []map[string]entry{before, after} {
		for p := range state {
			host, rest, _ := strings.Cut(strings.TrimPrefix(p, "actual-"), "/")
			if strings.HasPrefix(p, "probe-") || strings.HasPrefix(p, "actual-") && (rest == "time" || rest == "" && host != r.node) {
				delete(before, p)
				delete(after, p)
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "exit %d\n", res.code)
	for _, o := range []struct{ mark, text string }{{"| ", res.out}, {"! ", res.err}} {
		if long != "" && o.mark == "| " {
			o.text = longText(r.t, o.text, long)
		}
		if o.text != "" {
			b.WriteString(o.mark + strings.ReplaceAll(strings.TrimSuffix(o.text, "\n"), "\n", "\n"+o.mark) + "\n")
		}
	}
	b.WriteString(r.shrink(changes(before, after)))
	return strings.ReplaceAll(strings.Trim(b.String(), "\n"), "Version: "+admVersion+" "+buildVersion(), "Version: "+admVersion+" $BUILD")
}
