package adm

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
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
//	run ARGS        a command, followed by what is expected: "exit N", the standard
//	                output behind "| ", the error output behind "! ", the changes
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
		case "run":
			got := r.step(strings.Fields(args))
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

// step runs one command and describes the outcome. Links that only the daemon
// writes on its own account are not part of it.
func (r *rig) step(args []string) string {
	before := r.state()
	res := r.run(args...)
	r.settle()
	after := r.state()
	for _, state := range []map[string]entry{before, after} {
		for p := range state {
			host, rest, _ := strings.Cut(strings.TrimPrefix(p, "actual-"), "/")
			if strings.HasPrefix(p, "actual-") && (rest == "time" || rest == "" && host != r.node) {
				delete(before, p)
				delete(after, p)
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "exit %d\n", res.code)
	for _, o := range []struct{ mark, text string }{{"| ", res.out}, {"! ", res.err}} {
		if o.text != "" {
			b.WriteString(o.mark + strings.ReplaceAll(strings.TrimSuffix(o.text, "\n"), "\n", "\n"+o.mark) + "\n")
		}
	}
	b.WriteString(r.shrink(changes(before, after)))
	return strings.Trim(b.String(), "\n")
}
