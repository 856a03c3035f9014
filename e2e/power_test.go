package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/crashdisk"
	"mars/internal/nbdclient"
	"mars/internal/testutil"
)

// needBlockLayer skips, visibly, where a filesystem cannot be mounted over NBD.
func needBlockLayer(t testing.TB, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "mounting needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			skip(t, "no "+dev)
		}
	}
	for _, name := range append([]string{"nbdfuse", "losetup", "mke2fs"}, tools...) {
		if _, err := exec.LookPath(name); err != nil {
			skip(t, name+" is not installed")
		}
	}
}

// skip is t.Skip that `make e2e` lists and counts: a line in the file MARS_SKIPS.
func skip(t testing.TB, why string) {
	t.Helper()
	if name := os.Getenv("MARS_SKIPS"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, "%s: %s\n", t.Name(), why)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Skip(why)
}

// marsSize is the size of the crash disk under /mars.
const marsSize = 160 * mib

// power is a node whose /mars (an ext4) and whose disk are crash disks. This process
// is the server of both, so that they have one history.
type power struct {
	t    testing.TB
	n    *Node
	rec  *crashdisk.Recorder
	mars *mount // of the running system, then of a rebuilt one
	disk *mount // the file of the running system
	stop func() error

	watching sync.WaitGroup
	unwatch  chan struct{}
}

// newPower puts n, which does not run yet, onto crash disks. Its backing disk is
// n.Path("disk"), with this content.
func newPower(t testing.TB, n *Node, content io.Reader, clock func() uint64) *power {
	t.Helper()
	p := &power{t: t, n: n, rec: crashdisk.New(clock), unwatch: make(chan struct{})}
	for name, base := range map[string]io.Reader{"mars": makeExt4(t, n.Path("mars.img"), marsSize), "disk": content} {
		if err := p.rec.AddDisk(name, base); err != nil {
			t.Fatal(err)
		}
	}
	socket := n.Path("crash.sock")
	stop, err := p.rec.Serve(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceValue(stop)
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	uri := func(disk string) string { return "nbd+unix:///" + disk + "?socket=" + socket }
	p.mars = fuseFile(t, uri("mars"), n.Root(), n.Path("fuse-mars"))
	p.mars.loop = loopDevice(t, p.mars.file)
	tool(t, "mount", "-t", "ext4", p.mars.loop, p.mars.dir)
	p.mars.up = true
	p.disk = fuseFile(t, uri("disk"), n.Path("unused"), n.Path("fuse-disk"))
	if err := errors.Join(os.Chmod(n.Root(), 0o700), os.Symlink(p.disk.file, n.Path("disk"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end) // before anything is unmounted
	return p
}

// begin makes the cluster and the resource.
func (p *power) begin() {
	p.t.Helper()
	p.n.Adm("create-cluster", "--ip="+p.n.Addr)
	p.n.Start()
	p.n.CreateResource(p.n.Path("disk"))
}

// watch marks in the history when a log appears and when a link of r0 changes.
func (p *power) watch() {
	dir := filepath.Join(p.n.Root(), "resource-r0")
	p.watching.Go(func() {
		known := map[string]string{}
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-p.unwatch:
				return
			case <-tick.C:
			}
			list, _ := os.ReadDir(dir)
			for _, e := range list {
				to, _ := os.Readlink(filepath.Join(dir, e.Name()))
				if old, ok := known[e.Name()]; !ok || old != to {
					known[e.Name()] = to
					p.rec.Mark(e.Name() + " " + to)
				}
			}
		}
	})
}

// interesting are the marks around which a cut is worth while: rotations, and
// what is published about logs and positions.
func interesting(text string) bool {
	for _, word := range []string{"log-", "version-", "replay-", "rotated ", "maxnr"} {
		if strings.HasPrefix(text, word) {
			return true
		}
	}
	return false
}

// end ends the running system; what happens from now on is not part of the test.
// The cuts are looked at by the binaries of the repository, without the race
// detector in the short form: a cut costs two starts.
func (p *power) end() *crashdisk.History {
	p.t.Helper()
	h := p.rec.History()
	close(p.unwatch)
	p.watching.Wait()
	p.n.Kill()
	if p.n.Bin = bin; soak(p.t) == 0 {
		p.n.Bin = tagged(p.t, "")
	}
	p.mars.umount()
	p.disk.release()
	if err := p.stop(); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Remove(p.n.Path("disk")); err != nil {
		p.t.Fatal(err)
	}
	return h
}

// restore makes the node's disks those of a cut; the power is back, marsd does
// not run yet.
func (p *power) restore(s *crashdisk.State) {
	p.t.Helper()
	img := p.n.Path("mars.img")
	if err := errors.Join(s.WriteFile("mars", img), s.WriteFile("disk", p.n.Path("disk"))); err != nil {
		p.t.Fatal(err)
	}
	p.mars = loopMount(p.t, img, p.n.Root())
	p.t.Cleanup(p.n.end) // before it is unmounted
}

// drop ends the node of a cut.
func (p *power) drop() {
	p.t.Helper()
	if p.n.Running() {
		p.n.Kill()
	}
	p.mars.umount()
}

// loopMount mounts an image; ext4 replays its journal.
func loopMount(t testing.TB, img, dir string) *mount {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := &mount{t: t, dir: dir, fuse: img}
	m.loop = loopDevice(t, img)
	t.Cleanup(m.tearDown)
	tool(t, "mount", "-t", "ext4", m.loop, dir)
	m.up = true
	return m
}

// loopDevice makes a block device of a file. There are few of them: it waits for one.
func loopDevice(t testing.TB, file string) (loop string) {
	t.Helper()
	testutil.WaitFor(t, waitLimit, "a loop device is free", func() bool {
		out, err := try(t, "losetup", "-f", "--show", file)
		loop = strings.TrimSpace(out)
		return err == nil
	})
	return loop
}

// hangRule is how long a node may take to come back by itself.
const hangRule = time.Minute

// await is a wait that fails with an error, for systems that are expected to be
// broken.
func (p *power) await(what string, cond func() bool) error {
	for end := time.Now().Add(hangRule); !cond(); time.Sleep(5 * time.Millisecond) {
		if !p.n.Running() {
			return fmt.Errorf("%s: marsd has ended: %v\n%s", what, p.n.exit, p.n.logTail(10))
		}
		if time.Now().After(end) {
			view, _, _ := p.n.Try("view", "all")
			links, _ := try(p.t, "ls", "-lR", filepath.Join(p.n.Root(), "resource-r0"))
			return fmt.Errorf("%s: not within %v\n%s%s%s", what, hangRule, view, links, p.n.logTail(10))
		}
	}
	return nil
}

// boot starts marsd and reads its device, which must come back without an
// operator.
func (p *power) boot(size int64) ([]byte, error) {
	p.t.Helper()
	p.n.StartNoWait()
	var c *nbdclient.Client
	err := p.await("the device appears", func() (ok bool) {
		var err error
		c, err = nbdclient.Dial(context.Background(), nbdclient.Options{Network: "unix", Address: p.n.Socket("r0"), Export: "r0"})
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	img := make([]byte, size)
	if _, err := c.ReadAt(img, 0); err != nil {
		return nil, fmt.Errorf("read the device: %w", err)
	}
	return img, nil
}

// settled waits for the end of writeback, and compares the disk with what the
// device has shown. Then a second crash and start must change nothing.
func (p *power) settled(img []byte) error {
	n := p.n
	var last string
	err := p.await("everything is written back", func() bool {
		last = n.Res("replay-" + n.Name)
		r, v := strings.Split(last, ","), strings.Split(highestVersion(n, n.Name), ",")
		return len(r) == 3 && len(v) >= 3 && r[0] == v[1] && r[1] == strings.SplitN(v[2], ":", 2)[0] && r[2] == "0"
	})
	if err != nil {
		return fmt.Errorf("%w; the replay position is %s", err, last)
	}
	if !bytes.Equal(readFile(p.t, n.Path("disk")), img) {
		return errors.New("after writeback the disk differs from the device")
	}
	if code := n.Link("resource-r0/actual-" + n.Name + "/replay-code"); code != "" && code[0] == '-' {
		return fmt.Errorf("replay-code is %s", code)
	}
	n.Kill()
	again, err := p.boot(int64(len(img)))
	if err != nil {
		return fmt.Errorf("second start: %w", err)
	}
	if !bytes.Equal(again, img) {
		return errors.New("a second start has changed the device")
	}
	return nil
}

// logNumber is the highest log in the tree.
func (p *power) logNumber() int {
	logs, _ := filepath.Glob(filepath.Join(p.n.Root(), "resource-r0", "log-*"))
	best := 0
	for _, l := range logs {
		nr, _ := strconv.Atoi(strings.Split(filepath.Base(l), "-")[1])
		best = max(best, nr)
	}
	return best
}

// indexes draws cuts in [lo, hi]: half of them near interesting marks, half
// anywhere; all near the marks if n is 0. They ascend.
func indexes(h *crashdisk.History, rnd *rand.Rand, lo, hi, n int) []int {
	near := h.Near(lo, hi, 5, interesting)
	if n == 0 {
		n = 300 + 2*len(near)
	}
	var list []int
	for range n - min(n/2, len(near)) {
		list = append(list, lo+rnd.IntN(hi-lo+1))
	}
	rnd.Shuffle(len(near), func(i, k int) { near[i], near[k] = near[k], near[i] })
	list = append(list, near[:min(n/2, len(near))]...)
	slices.Sort(list)
	return list
}

// tagged builds our binaries without the race detector, with a build tag that puts
// a fault into them, or none.
func tagged(t testing.TB, tag string) string {
	t.Helper()
	taggedMu.Lock()
	defer taggedMu.Unlock()
	dir := filepath.Join(bin, "tag-"+tag)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	build := exec.Command("go", "build", "-tags", tag, "-o", dir+"/", "mars/cmd/marsd", "mars/cmd/marsadm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with tag %q: %v\n%s", tag, err, out)
	}
	return dir
}

var taggedMu sync.Mutex
