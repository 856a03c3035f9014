package adm

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// TestKernelTrees shows the trees that two machines with the original kernel module
// left behind, and compares with what the original's marsadm printed there. The
// pictures were taken moments apart, so numbers are compared only as far as they
// stood still: see exact.
func TestKernelTrees(t *testing.T) {
	for stage, exact := range map[string]bool{
		"nodea-1-resource": false, "nodea-2-joined": true, "nodea-3-written": true, "nodea-4-rotated": true,
		"nodeb-1-joining": false, "nodeb-2-joined": true,
	} {
		t.Run(stage, func(t *testing.T) {
			node, _, _ := strings.Cut(stage, "-")
			r := newRig(t, node)
			r.loadList("testdata/kernel/" + stage + ".list")
			r.env.DiskPresent = func(path string) bool { return path == "/dev/disk/data" }
			r.env.Mounts = func() []macro.Mount { return []macro.Mount{{Device: "/dev/mars/mydata", Point: "/tmp/m"}} }
			res := r.run("view", "all")
			if res.code != 0 || res.err != "" {
				t.Errorf("exit %d, %s", res.code, res.err)
			}
			data, err := os.ReadFile("testdata/kernel/" + stage + ".view")
			must(t, err)
			got, want := resourceLines(res.out, exact), resourceLines(string(data), exact)
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			// The records begin somewhere in the header.
			whole, tail := iops.ReplaceAllString(res.out, "N IOPS"), iops.ReplaceAllString(afterPrompt(string(data)), "N IOPS")
			if exact && !strings.HasSuffix(whole, tail) {
				t.Errorf("got\n%s\nwant at its end\n%s", whole, tail)
			}
			if exact && !strings.HasPrefix(whole, "used-log-compression=\"\"\nused-net-compression=\"\"\nused-log-digest=\"CHKSUM_CRC32C\"\n") {
				t.Errorf("header:\n%s", res.out)
			}
			r.soundLinks()
		})
	}
}

// TestKernelCluster is a cluster of the original without a resource.
func TestKernelCluster(t *testing.T) {
	r := newRig(t, "nodea")
	r.loadList("testdata/kernel/nodea-0-cluster.list")
	res := r.run("view", "all")
	data, err := os.ReadFile("testdata/kernel/nodea-0-cluster.view")
	must(t, err)
	// The original wrote both outputs to one file.
	if got := res.out + res.err; res.code != 0 || !strings.HasSuffix(string(data), got) || !strings.HasPrefix(got, "used-log-compression=") {
		t.Errorf("exit %d, got\n%s\nwant\n%s", res.code, got, data)
	}
	r.soundLinks()
}

// afterPrompt cuts the line with the command off.
func afterPrompt(text string) string {
	_, rest, _ := strings.Cut(text, "\n")
	return rest
}

// soundLinks checks that the parsers have no complaint about any link, and that the
// commands for people bear the tree.
func (r *rig) soundLinks() {
	r.t.Helper()
	res := r.run("tree", "-v")
	if res.code != 0 || res.err != "" || strings.Contains(res.out, "BROKEN") || !strings.Contains(res.out, "uuid") {
		r.t.Errorf("tree: exit %d, %s\n%s", res.code, res.err, res.out)
	}
	for _, cmd := range [][]string{{"why", "all"}, {"view", "all", "--json"}, {"view-1and1", "all"}} {
		if res := r.run(cmd...); res.code != 0 || strings.Contains(res.err, "ERROR") {
			r.t.Errorf("%q: exit %d, %s", cmd, res.code, res.err)
		}
	}
}

var (
	iops   = regexp.MustCompile(`[0-9]+ IOPS`)
	number = regexp.MustCompile(`[0-9]+[0-9.:]*( [KMG]iB)?`)
	bar    = regexp.MustCompile(`\[[=>:.]+\]`)
)

// resourceLines are the lines about resources, without what was in motion.
func resourceLines(text string, exact bool) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, " ") {
			continue
		}
		line = iops.ReplaceAllString(line, "N IOPS")
		if !exact {
			line = number.ReplaceAllString(bar.ReplaceAllString(line, "BAR"), "N")
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// loadList makes a tree of a recorded listing and sets the clock to its end.
func (r *rig) loadList(file string) {
	r.t.Helper()
	data, err := os.ReadFile(file)
	must(r.t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		left, value, _ := strings.Cut(line, " -> ")
		f := strings.Fields(left)
		path := strings.TrimPrefix(f[4], "./")
		sec, frac, _ := strings.Cut(f[3], ".")
		stamp, err := symlinktree.ParseStamp(sec + "." + frac[:9])
		must(r.t, err)
		switch abs := filepath.Join(r.root, path); f[0] {
		case "d":
			must(r.t, os.MkdirAll(abs, 0o700))
		case "l":
			must(r.t, r.env.withDefaults().FS.Symlink(value, abs, stamp.Time()))
		case "f":
			size, err := strconv.ParseInt(f[2], 10, 64)
			must(r.t, err)
			must(r.t, os.WriteFile(abs, nil, 0o600))
			must(r.t, os.Truncate(abs, size))
			must(r.t, os.Chtimes(abs, stamp.Time(), stamp.Time()))
		}
		if path == "actual-"+r.node+"/time" {
			now := stamp.Time().Add(300 * time.Millisecond)
			r.env.Now = func() time.Time { return now }
		}
	}
}
