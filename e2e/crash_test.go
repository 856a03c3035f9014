package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/oracle/logoracle"
)

// vigil looks at links all the time.
type vigil struct {
	stop chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	bad  []string
}

// watchRoles notes when a node names another primary than p, or when a secondary
// takes a log for damaged.
func watchRoles(p *Node, nodes []*Node) *vigil {
	v := &vigil{stop: make(chan struct{})}
	v.wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-v.stop:
				return
			case <-tick.C:
			}
			for _, n := range nodes {
				if got := n.Res("primary"); got != p.Name {
					v.note(fmt.Sprintf("%s: the primary is %q", n.Name, got))
				}
				if code := n.Res("actual-" + n.Name + "/replay-code"); strings.HasPrefix(code, "-") {
					v.note(fmt.Sprintf("%s: replay-code %s", n.Name, code))
				}
			}
		}
	})
	return v
}

func (v *vigil) note(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.bad) < 10 {
		v.bad = append(v.bad, time.Now().Format("15:04:05.000 ")+s)
	}
}

// end returns what was seen.
func (v *vigil) end() []string {
	close(v.stop)
	v.wg.Wait()
	return v.bad
}

// TestVigilSees is the negative control.
func TestVigilSees(t *testing.T) {
	dir := workDir(t)
	n := &Node{t: t, Name: "hosta", dir: dir}
	if err := errors.Join(os.MkdirAll(n.Path("mars/resource-r0/actual-hosta"), 0o700),
		os.Symlink("(none)", n.Path("mars/resource-r0/primary")),
		os.Symlink("-84", n.Path("mars/resource-r0/actual-hosta/replay-code"))); err != nil {
		t.Fatal(err)
	}
	v := watchRoles(n, []*Node{n})
	for end := time.Now().Add(waitLimit); ; time.Sleep(time.Millisecond) {
		v.mu.Lock()
		seen := len(v.bad)
		v.mu.Unlock()
		if seen >= 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("neither another primary nor a damaged log is noticed")
		}
	}
	if bad := v.end(); !strings.Contains(bad[0], "(none)") || !strings.Contains(bad[1], "-84") {
		t.Errorf("seen: %q", bad)
	}
}

// TestV04PrimaryKilled: kill -9 of the primary loses no acknowledged write, and the
// role comes back by itself. Every fifth kill hits a rotation.
func TestV04PrimaryKilled(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	w := newWorld(t, c, 16*mib)
	w.gate.rate = 4e6
	rnd := seeded(t)
	roles := watchRoles(a, c.Nodes)
	kills := 5
	if soak(t) > 0 {
		kills = 30
	}
	repeat(t, kills, func(i int) {
		w.start(a)
		w.more(a, 50+rnd.IntN(200))
		if i%5 == 4 {
			a.Adm("log-rotate", "r0")
		}
		// A moment that no answer to a write decides.
		time.Sleep(time.Duration(rnd.IntN(50_000)) * time.Microsecond)
		a.Kill()
		w.crashed()
		a.Start()
		a.Adm("wait-resource", "r0", "is-device")
		a.WaitView("is-primary", "1")
		v := w.readBack("device after kill -9", a)
		t.Logf("round %d: %s", i, v.Summary())
		w.noSplitBrain()
	})
	b.WaitView("is-consistent", "1")
	if bad := roles.end(); len(bad) > 0 {
		t.Errorf("seen on the way:\n%s", strings.Join(bad, "\n"))
	}
	w.equal(a)
}

// TestKilledWhileStarting kills marsd again and again at random moments of its
// start, with an empty log and with one that is not: it always comes back by itself.
func TestKilledWhileStarting(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1, WithArgs(fastArgs...))
	a := c.Nodes[0]
	const size = 4 * mib
	a.CreateResource(a.Disk("disk", size))
	p := &power{t: t, n: a}
	rnd := seeded(t)
	want := make([]byte, size)
	repeat(t, 8, func(i int) {
		for range 3 {
			a.Kill()
			a.StartNoWait()
			// Half of the moments are around the first appearance of the device.
			if rnd.IntN(2) == 0 {
				if err := p.await("the socket appears", func() bool { _, err := os.Stat(a.Socket("r0")); return err == nil }); err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
				time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Microsecond)
			} else {
				time.Sleep(time.Duration(rnd.IntN(600_000)) * time.Microsecond)
			}
		}
		a.Kill()
		img, err := p.boot(size)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if !bytes.Equal(img, want) {
			t.Fatalf("round %d: the device does not hold what was written", i)
		}
		if i%2 == 0 {
			return
		}
		cl := a.Client()
		copy(want[i%1000*4096:], bytes.Repeat([]byte{byte(i)}, 4096))
		if err := errors.Join(cl.Write(context.Background(), want[i%1000*4096:(i%1000+1)*4096], int64(i%1000*4096)), cl.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

// fioJobs write one block after the other, each from the start of its own part of
// the device: what fio has counted is a prefix of the part.
const (
	fioJobs = 4
	fioPart = 8 * mib
)

// fioCommand writes with checksums in every block, a FLUSH after 16, or only
// verifies. Every job follows with its name.
func fioCommand(ctx context.Context, n *Node, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "fio", append([]string{"--ioengine=nbd", "--uri=" + n.URI("r0"),
		"--rw=write", "--bs=4k", "--iodepth=1", "--verify=crc32c", "--verify_fatal=1", "--fsync=16"}, args...)...)
	cmd.Dir = n.Path("fio") // it leaves its state there
	return cmd
}

// fioJob is the work on a part: so many bytes of it.
func fioJob(part int, size int64) []string {
	return []string{fmt.Sprintf("--name=part%d", part), fmt.Sprintf("--offset=%d", part*fioPart), fmt.Sprintf("--size=%d", size)}
}

// fioWritten is how many bytes of each part fio has seen acknowledged.
func fioWritten(path string) ([]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	from, to := strings.Index(string(b), "{"), strings.LastIndex(string(b), "}")
	if from < 0 || to < from {
		return nil, fmt.Errorf("%s: no result: %.200q", path, b)
	}
	var res struct {
		Jobs []struct {
			Name  string `json:"jobname"`
			Write struct {
				Bytes int64 `json:"io_bytes"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(b[from:to+1], &res); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(res.Jobs) != fioJobs {
		return nil, fmt.Errorf("%s: %d jobs, want %d", path, len(res.Jobs), fioJobs)
	}
	list := make([]int64, fioJobs)
	for _, j := range res.Jobs {
		var part int
		if _, err := fmt.Sscanf(j.Name, "part%d", &part); err != nil || part >= fioJobs {
			return nil, fmt.Errorf("%s: job %q", path, j.Name)
		}
		list[part] = j.Write.Bytes
	}
	return list, nil
}

// fioVerify lets fio read back the first bytes of each part.
func fioVerify(n *Node, written []int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	for i, size := range written {
		if size == 0 {
			continue
		}
		out, err := fioCommand(ctx, n, append([]string{"--verify_only"}, fioJob(i, size)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("part %d, %d bytes: %w\n%.2000s", i, size, err, out)
		}
	}
	return nil
}

// TestV04FioKilled: kill -9 of the primary under fio: fio itself verifies every
// block whose write was acknowledged.
func TestV04FioKilled(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		skip(t, "fio is not installed")
	}
	t.Parallel()
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	disks := map[*Node]string{a: a.Disk("disk", fioJobs*fioPart), b: b.Disk("disk", fioJobs*fioPart)}
	if err := os.Mkdir(a.Path("fio"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.CreateResource(disks[a])
	b.JoinResource(disks[b])
	rnd := seeded(t)
	kills := 3
	if soak(t) > 0 {
		kills = 30
	}
	repeat(t, kills, func(i int) {
		zero := a.Client() // so that nothing of the round before can pass for this one's
		if err := errors.Join(zero.WriteZeroes(context.Background(), 0, fioJobs*fioPart), zero.Flush(context.Background()), zero.Close()); err != nil {
			t.Fatal(err)
		}
		Settle(a, a)
		written := fioUnderKill(t, a, i%5 == 4, time.Duration(500+rnd.IntN(1000))*time.Millisecond, time.Duration(rnd.IntN(50))*time.Millisecond)
		a.Start()
		a.Adm("wait-resource", "r0", "is-device")
		if err := fioVerify(a, written); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if slices.Min(written) == 0 {
			t.Errorf("round %d: %v bytes were written: this proves nothing", i, written)
		}
		if i == 0 { // negative control: the part behind what was written is no data of fio's
			beyond := append([]int64(nil), written...)
			beyond[0] += 16 << 10
			if err := fioVerify(a, beyond); err == nil {
				t.Fatal("fio verifies what was never written")
			}
		}
		t.Logf("round %d: %v bytes verified", i, written)
	})
	Settle(a, b)
	for _, n := range c.Nodes {
		n.Adm("down", "r0")
	}
	x, err := os.Open(disks[a])
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := os.Open(disks[b])
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	if diffs, err := logoracle.Compare(x, y, fioJobs*fioPart, 5); err != nil || len(diffs) > 0 {
		t.Errorf("disks differ: %v %v", diffs, err)
	}
}

// logEnd is the published length of n's newest log.
func logEnd(n *Node) int64 {
	v := strings.Split(highestVersion(n, n.Name), ",")
	if len(v) < 3 {
		return 0
	}
	end, _ := strconv.ParseInt(strings.SplitN(v[2], ":", 2)[0], 10, 64)
	return end
}

// fioUnderKill runs fio, kills marsd, and returns what fio had seen acknowledged.
func fioUnderKill(t testing.TB, a *Node, rotate bool, after, then time.Duration) []int64 {
	t.Helper()
	out := a.Path("fio/result")
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	args := []string{"--do_verify=0", "--rate_iops=400", "--output-format=json", "--output=" + out}
	for i := range fioJobs {
		args = append(args, fioJob(i, fioPart)...)
	}
	cmd := fioCommand(ctx, a, args...)
	said, err := os.Create(a.Path("fio/said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	before := logEnd(a)
	a.WaitFor("fio writes", func() bool { return logEnd(a) > before+200<<10 })
	time.Sleep(after)
	if rotate {
		a.Adm("log-rotate", "r0")
	}
	time.Sleep(then)
	a.Kill()
	if err := cmd.Wait(); err == nil {
		t.Fatal("fio has not noticed that its device was killed")
	}
	written, err := fioWritten(out)
	if err != nil {
		b, _ := os.ReadFile(a.Path("fio/said"))
		t.Fatalf("%v\n%s", err, b)
	}
	return written
}
