package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"mars/internal/logdamage"
)

// TestDamagedOwnLog is what a person sees and does when the log of a crashed primary
// is damaged: the place, the reason, the cost and the next command; nothing happens
// by itself; --force goes on, and the other member follows without a split brain.
func TestDamagedOwnLog(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs("--writeback-age", "1h")) // everything is still only in the log
	a, b := c.Nodes[0], c.Nodes[1]
	image := make([]byte, 16*mib)
	disks := map[*Node]string{a: a.Disk("disk", int64(len(image))), b: b.Disk("disk", int64(len(image)))}
	a.CreateResource(disks[a])
	b.JoinResource(disks[b])
	ctx := context.Background()
	cl := a.Client()
	put := func(n int) {
		t.Helper()
		p := bytes.Repeat([]byte{byte(n)}, 4096)
		if err := cl.Write(ctx, p, int64(n)<<16); err != nil {
			t.Fatal(err)
		}
		if err := cl.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 8 {
		put(n)
		copy(image[n<<16:], bytes.Repeat([]byte{byte(n)}, 4096))
	}
	Settle2(a, b)
	b.Adm("pause-fetch", "r0")
	b.WaitView("is-fetch", "0")
	for n := 8; n < 16; n++ {
		put(n)
	}
	name := strings.Split(highestVersion(a, a.Name), ",")[1]
	a.Kill()

	path := filepath.Join(a.Root(), "resource-r0", name)
	log := readFile(t, path)
	borders := logdamage.Borders(log)
	if n := len(borders); n != 17 {
		t.Fatalf("the log has %d records, want 16", n-1)
	}
	at := borders[8]
	damaged := bytes.Clone(log)
	damaged[at+1000] ^= 4
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	place := name + "," + strconv.FormatInt(at, 10)
	cost := strconv.Itoa(len(log) - int(at))
	a.Start()
	a.WaitView("log-damage", place+","+cost)
	a.WaitView("replay-code", "-74,10101")
	a.WaitFor("view tells everything", func() bool {
		out := a.Adm("view", "r0")
		for _, want := range []string{"DefectiveLog", place, "record checksum", cost + " bytes", "marsadm primary --force r0"} {
			if !strings.Contains(out, want) {
				return false
			}
		}
		return true
	})
	b.WaitFor("the other node is told", func() bool {
		return b.View("log-damage", "r0") == "0" && b.Res("actual-hosta/log-damage") == place+","+cost
	})
	if _, err, code := a.Try("primary", "r0"); code != 1 || !strings.Contains(err, place) {
		t.Errorf("primary without --force: code %d, %s", code, err)
	}
	if got := readFile(t, path); !bytes.Equal(got, damaged) || a.Res("actual-hosta/if-on") == "1" {
		t.Fatal("something has happened without --force")
	}
	// A handover waits for the end of the damaged log, too, and gives the role back.
	if _, err, code := b.Try("--timeout=3", "primary", "r0"); code == 0 {
		t.Errorf("a handover from a damaged primary passed: %s", err)
	}

	out, errs, code := a.Try("primary", "--force", "r0")
	if code != 0 || !strings.Contains(errs+out, cost+" bytes") || !strings.Contains(errs+out, place) {
		t.Fatalf("primary --force: code %d\n%s%s", code, out, errs)
	}
	a.WaitView("log-damage", "0")
	cl = a.Client()
	p := make([]byte, 4096)
	for n := range 16 {
		if err := cl.Read(ctx, p, int64(n)<<16); err != nil || !bytes.Equal(p, image[n<<16:n<<16+4096]) {
			t.Errorf("block %d is not what was in front of the damage (%v)", n, err)
		}
	}
	put(20)
	copy(image[20<<16:], bytes.Repeat([]byte{20}, 4096))
	cl.Close()
	b.Adm("resume-fetch", "r0")
	for _, n := range c.Nodes {
		n.WaitView("is-split-brain", "0")
	}
	b.WaitFor("is in the new log", func() bool { return highestVersion(b, b.Name) == highestVersion(a, a.Name) })
	for n, disk := range disks { // nothing is written back before somebody asks for it
		n.Adm("down", "r0")
		if got := readFile(t, disk); !bytes.Equal(got[:len(image)], image) {
			t.Errorf("the disk of %s is not what was in front of the damage and behind the new start", n.Name)
		}
	}
	for _, n := range c.Nodes {
		if s := n.View("is-split-brain", "r0"); s != "0" {
			t.Errorf("%s sees a split brain", n.Name)
		}
	}
}
