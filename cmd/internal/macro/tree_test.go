package macro

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/logfile"
	"mars/symlinktree"
)

// memTree is a tree in memory, made of "PATH -> VALUE [@STAMP]" lines.
type memTree map[string]symlinktree.Entry

func parseTree(t testing.TB, text string) memTree {
	t.Helper()
	m := memTree{}
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		stamp := int64(1)
		if i := strings.LastIndex(line, " @"); i >= 0 {
			n, err := strconv.ParseInt(line[i+2:], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			stamp, line = n, line[:i]
		}
		path, value, ok := strings.Cut(line, " -> ")
		if !ok {
			t.Fatalf("bad line %q", line)
		}
		m[path] = symlinktree.Entry{Path: path, Value: value, Stamp: symlinktree.Stamp(stamp) * 1e9}
	}
	return m
}

func (m memTree) Get(path string) (string, bool) {
	e, ok := m[path]
	if !ok || e.IsDeleted() {
		return "", false
	}
	return e.Value, true
}

func (m memTree) Entry(path string) (symlinktree.Entry, bool) { e, ok := m[path]; return e, ok }

func (m memTree) List(dir string) []symlinktree.Entry {
	var out []symlinktree.Entry
	for p, e := range m {
		if i := strings.LastIndexByte(p, '/'); p[:max(i, 0)] == dir && !e.IsDeleted() {
			out = append(out, e)
		}
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Path < out[k].Path })
	return out
}

func (m memTree) Dirs(dir string) []string {
	seen := map[string]bool{}
	for p := range m {
		rest := p
		if dir != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(p, dir+"/"); !ok {
				continue
			}
		}
		if name, _, ok := strings.Cut(rest, "/"); ok {
			seen[name] = true
		}
	}
	var out []string
	for d := range seen {
		out = append(out, d)
	}
	sort.Strings(out)
	return out
}

// testContext looks at a tree at second 10000.
func testContext(tree Tree, host string, logs ...string) *Context {
	return &Context{
		Tree: tree, Node: "a", Host: host, Res: "r", Now: 10000e9, Real: time.Unix(10000, 0).UTC(),
		Window: time.Minute, Stuck: time.Hour, Timeout: 600 * time.Second, Threshold: 10 << 20,
		Logs: func(string) []logfile.Info {
			var out []logfile.Info
			for _, l := range logs {
				name, size, _ := strings.Cut(l, "=")
				n, err := logfile.ParseName(name)
				if err != nil {
					panic(err)
				}
				bytes, _ := strconv.ParseInt(size, 10, 64)
				out = append(out, logfile.Info{Name: n, Size: bytes})
			}
			return out
		},
		Warn: func(string) {},
	}
}

// chain writes replay and version links in shorthand: "a 2a50: 2a80<1a100 1a100"
// means: host a has replayed log 2 of a up to 50; its version links say that log 2
// of a goes to 80 and follows log 1 of a at 100, and that log 1 of a goes to 100.
// A letter behind # is the digest.
func chain(t testing.TB, lines ...string) memTree {
	t.Helper()
	var b strings.Builder
	for _, line := range lines {
		left, right, _ := strings.Cut(line, ":")
		w := strings.Fields(left)
		host := w[0]
		if len(w) > 1 {
			seq, origin, pos, _ := shorthand(t, w[1])
			fmt.Fprintf(&b, "resource-r/replay-%s -> log-%09d-%s,%d,0\nresource-r/data-%s -> /d\n", host, seq, origin, pos, host)
		}
		for _, v := range strings.Fields(right) {
			head, prev, hasPrev := strings.Cut(v, "<")
			seq, origin, pos, digest := shorthand(t, head)
			value := fmt.Sprintf("%s,log-%09d-%s,%d:", digest, seq, origin, pos)
			if hasPrev {
				n, o, p, d := shorthand(t, prev)
				value += fmt.Sprintf("%s,log-%09d-%s,%d", d, n, o, p)
			}
			fmt.Fprintf(&b, "resource-r/version-%09d-%s -> %s\n", seq, host, value)
		}
	}
	return parseTree(t, b.String())
}

func shorthand(t testing.TB, s string) (seq int, origin string, pos int64, digest string) {
	t.Helper()
	s, d, _ := strings.Cut(s, "#")
	n := digits(s)
	if n == 0 || n == len(s) {
		t.Fatalf("bad position %q", s)
	}
	seq, _ = strconv.Atoi(s[:n])
	pos, err := strconv.ParseInt(s[n+1:], 10, 64)
	if err != nil {
		t.Fatalf("bad position %q", s)
	}
	if d == "" {
		d = strconv.Itoa(seq % 10)
	}
	return seq, s[n : n+1], pos, strings.Repeat(d, 32)
}
