package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"mars/internal/nbdclient"
	"mars/symlinktree"
)

// res is a path below the resource's directory.
func res(name string) string { return symlinktree.Resource(resource).Path(name) }

func (s *scenario) formCluster(ctx context.Context) error {
	a := s.alpha()
	if err := s.marsadm(ctx, a, "create-cluster", "--ip="+a.addr); err != nil {
		return err
	}
	if err := s.startDaemon(a); err != nil {
		return err
	}
	for _, n := range s.nodes[1:] {
		// On real machines this is scp: the secret admits a node to the cluster.
		s.ui.command(n.name, fmt.Sprintf("cp %s %s", shellWord(a.secret()), shellWord(n.secret())))
		secret, err := os.ReadFile(a.secret())
		if err != nil {
			return err
		}
		if err := os.WriteFile(n.secret(), secret, 0o600); err != nil {
			return err
		}
		if err := s.startDaemon(n); err != nil {
			return err
		}
		err = s.until(ctx, "marsd of "+n.name+" gives a sign of life", func() (bool, string) {
			return n.get(symlinktree.ActualPath(n.name, "time")) != "", "no time link"
		})
		if err != nil {
			return err
		}
		if err := s.marsadm(ctx, n, "join-cluster", a.name, a.addr, "--ip="+n.addr); err != nil {
			return err
		}
	}
	g := s.gamma()
	err := s.until(ctx, "gamma knows all members", func() (bool, string) {
		for _, n := range s.nodes {
			if g.get(symlinktree.IPPath(n.name)) != n.addr {
				return false, "no address of " + n.name
			}
		}
		return true, ""
	})
	if err != nil {
		return err
	}
	s.ui.say("The state of the cluster is symlinks. Every node has them all; ls -l shows:")
	s.ui.links(g.links("uuid", "ips/ip-alpha", "ips/ip-beta", "ips/ip-gamma", "actual-gamma/alive"))
	return nil
}

func (s *scenario) createResource(ctx context.Context) error {
	a := s.alpha()
	if err := s.marsadm(ctx, a, "create-resource", resource, a.disk()); err != nil {
		return err
	}
	if err := s.marsadm(ctx, a, "wait-resource", resource, "is-device"); err != nil {
		return err
	}
	s.ui.links(a.links(res("data-alpha"), res("size"), res("primary"), res("replay-alpha"), res("todo-alpha/attach"), res("actual-alpha/is-primary")))
	s.ui.say("The device is served at %s", a.socket(resource))
	return nil
}

func (s *scenario) writeImage(ctx context.Context) error {
	img, err := image()
	if err != nil {
		return err
	}
	a := s.alpha()
	s.ui.say("What nbdcopy --flush ext4.img 'nbd+unix:///%s?socket=%s' would do:", resource, a.socket(resource))
	c, err := nbdclient.Dial(ctx, s.export(a))
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Size() != s.opt.Size {
		return fmt.Errorf("the device has %d bytes instead of %d", c.Size(), s.opt.Size)
	}
	const piece = 256 << 10
	begin := time.Now()
	for off := int64(0); off < imageSize; off += piece {
		if err := c.Write(ctx, img[off:off+piece], off); err != nil {
			return err
		}
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	copy(s.app.image, img)
	s.ui.check("%s written and flushed in %s: FLUSH means that it is durable in alpha's logfile", bytesText(imageSize), millis(took))
	log := filepath.Join(a.root(), res("log-000000001-alpha"))
	if st, err := os.Stat(log); err == nil {
		s.ui.links([]link{{"alpha:/mars/" + res("log-000000001-alpha"), bytesText(st.Size()) + ", a file: everything that was written, in order"}})
	}
	return nil
}

func (s *scenario) joinResource(ctx context.Context) error {
	if err := s.app.start(ctx, s.export(s.alpha())); err != nil {
		return err
	}
	s.app.mark()
	replicas := s.nodes[1:]
	results := make(chan error, len(replicas))
	for _, n := range replicas {
		s.ui.command(n.name, "marsadm join-resource "+resource+" "+n.disk())
	}
	for _, n := range replicas {
		go func() { results <- s.quiet(ctx, n, false, "join-resource", resource, n.disk()) }()
	}
	pending := len(replicas)
	var failed error
	begin := time.Now()
	err := s.until(ctx, "beta and gamma are consistent replicas", func() (bool, string) {
		for more := true; more; {
			select {
			case err := <-results:
				pending--
				failed = errors.Join(failed, err)
			default:
				more = false
			}
		}
		var bars []bar
		consistent := pending == 0
		for _, n := range replicas {
			done := number(n.get(res("syncstatus-" + n.name)))
			bars = append(bars, bar{n.name, done, s.opt.Size, fmt.Sprintf("%s of %s", bytesText(done), bytesText(s.opt.Size))})
			if done < s.opt.Size || s.view(ctx, n, "is-consistent") != 1 {
				consistent = false
			}
		}
		s.ui.progress(bars)
		return consistent || failed != nil, fmt.Sprintf("%v", bars)
	})
	s.ui.progressDone()
	// The commands end with their context or their own deadline: wait for them.
	for ; pending > 0; pending-- {
		failed = errors.Join(failed, <-results)
	}
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	writes, slowest := s.app.mark()
	s.ui.check("full sync in %s. Meanwhile the application made %d writes, the slowest answer took %s",
		seconds(time.Since(begin)), writes, millis(slowest))
	s.ui.links(s.beta().links(res("syncstatus-beta"), res("syncpos-beta"), res("replay-beta")))
	return s.marsadm(ctx, s.beta(), "view", "all")
}

// number reads a link that is one.
func number(v string) int64 { return symlinktree.LeadingInt(v) }

func (s *scenario) killAndRecover(ctx context.Context) error {
	g := s.gamma()
	s.app.mark()
	pid := g.pid()
	s.ui.command(g.name, fmt.Sprintf("kill -9 %d", pid))
	g.kill()
	g.cmd = nil // it is meant to be dead
	const enough = 1500
	err := s.until(ctx, "the application has gone on writing", func() (bool, string) {
		n := s.app.written()
		return n >= enough, fmt.Sprintf("%d writes", n)
	})
	if err != nil {
		return err
	}
	writes, slowest := s.app.mark()
	s.ui.check("%d writes while gamma was dead, the slowest answer took %s", writes, millis(slowest))
	s.ui.links(s.alpha().links(res("replay-gamma"), res("version-000000001-alpha")))
	if err := s.startDaemon(g); err != nil {
		return err
	}
	behind := s.alpha().get(res("version-000000001-alpha"))
	begin := time.Now()
	err = s.until(ctx, "gamma has caught up", func() (bool, string) {
		if g.get(symlinktree.ActualPath(g.name, "alive")) != "1" {
			return false, "not up yet"
		}
		rest, size := s.view(ctx, g, "work-rest"), s.view(ctx, g, "work-size")
		if rest < 0 || size < 0 {
			return false, "no view yet"
		}
		s.ui.progress([]bar{{"gamma", size - rest, size, fmt.Sprintf("%s behind", bytesText(rest))}})
		// The application goes on: what counts is where it was when gamma came back.
		return s.reached(g, behind), fmt.Sprintf("%d bytes behind", rest)
	})
	s.ui.progressDone()
	if err != nil {
		return err
	}
	s.ui.check("gamma has caught up in %s, while the application kept writing", seconds(time.Since(begin)))
	s.ui.links(g.links(res("replay-alpha"), res("replay-beta"), res("replay-gamma")))
	return nil
}

// reached tells whether n has replayed at least up to where a version link stood.
func (s *scenario) reached(n *node, version string) bool {
	v, err := symlinktree.ParseVersion(version)
	if err != nil {
		return false
	}
	r, err := symlinktree.ParseReplay(n.get(res("replay-" + n.name)))
	return err == nil && symlinktree.CompareReplay(r, symlinktree.Replay{Seq: v.Seq, Origin: v.Origin, Min: v.Pos}) >= 0
}

func (s *scenario) handover(ctx context.Context) error {
	if err := s.app.finish(); err != nil {
		return fmt.Errorf("the application's I/O failed: %w", err)
	}
	s.ui.say("The application on alpha ends: its last FLUSH has been answered, the device is closed.")
	b := s.beta()
	if err := s.marsadm(ctx, s.alpha(), "wait-umount", resource); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.marsadm(ctx, b, "primary", resource); err != nil {
		return err
	}
	took := time.Since(begin)
	err := s.until(ctx, "alpha sees itself as a secondary", func() (bool, string) {
		v := s.alpha().get(res("actual-alpha/is-primary"))
		return v == "0", "is-primary is " + v
	})
	if err != nil {
		return err
	}
	s.ui.check("beta is primary after %s", seconds(took))
	s.ui.links(b.links(res("primary"), res("actual-alpha/is-primary"), res("actual-beta/is-primary"), res("actual-beta/if-on"), res("replay-beta")))
	return nil
}

// readBack compares the device of the new primary with what has been written.
func (s *scenario) readBack(ctx context.Context) error {
	b := s.beta()
	c, err := nbdclient.Dial(ctx, s.export(b))
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Size() != s.opt.Size {
		return fmt.Errorf("the device has %d bytes instead of %d", c.Size(), s.opt.Size)
	}
	got := make([]byte, s.opt.Size)
	if err := c.Read(ctx, got, 0); err != nil {
		return err
	}
	if err := s.compare([]content{{"the device on beta", got}}); err != nil {
		return err
	}
	if _, err := exec.LookPath("e2fsck"); err == nil {
		if err := s.fsck(ctx, got[:imageSize]); err != nil {
			return err
		}
	}
	c.Close()
	s.ui.say("beta's turn to write: the application goes on there.")
	if err := s.app.start(ctx, s.export(b)); err != nil {
		return err
	}
	s.app.mark()
	const enough = 500
	err = s.until(ctx, "the application writes on beta", func() (bool, string) {
		n := s.app.written()
		return n >= enough, fmt.Sprintf("%d writes", n)
	})
	if err = errors.Join(err, s.app.finish()); err != nil {
		return err
	}
	writes, slowest := s.app.mark()
	s.ui.check("%d writes on beta, the slowest answer took %s; alpha and gamma follow its new log", writes, millis(slowest))
	s.ui.links(b.links(res("version-000000002-beta")))
	return nil
}

// content is something that must be equal to what was written.
type content struct {
	what string
	got  []byte
}

// compare checks whole contents against what was written.
func (s *scenario) compare(list []content) error {
	want := sha256.Sum256(s.app.image)
	links := []link{{"written", fmt.Sprintf("sha256 %x", want[:16])}}
	for _, c := range list {
		have := sha256.Sum256(c.got)
		links = append(links, link{c.what, fmt.Sprintf("sha256 %x", have[:16])})
	}
	s.ui.links(links)
	for _, c := range list {
		for off := 0; off < len(s.app.image); off += blockSize {
			if !bytes.Equal(c.got[off:off+blockSize], s.app.image[off:off+blockSize]) {
				return fmt.Errorf("%s differs from what was written, first in the block at %d", c.what, off)
			}
		}
	}
	s.ui.check("all %s are equal", bytesText(int64(len(s.app.image))))
	return nil
}

// fsck lets the filesystem's own checker look at what came back.
func (s *scenario) fsck(ctx context.Context, img []byte) error {
	f := filepath.Join(s.dir, "readback.img")
	if err := os.WriteFile(f, img, 0o600); err != nil {
		return err
	}
	defer os.Remove(f)
	out, err := exec.CommandContext(ctx, "e2fsck", "-fn", f).CombinedOutput()
	if err != nil {
		s.ui.output(out, 20)
		return fmt.Errorf("e2fsck of the filesystem on beta: %w", err)
	}
	s.ui.check("e2fsck -fn: the filesystem on beta is clean")
	return nil
}

// compareDisks lets all nodes come to rest and looks below MARS, at the disks.
func (s *scenario) compareDisks(ctx context.Context) error {
	err := s.until(ctx, "alpha and gamma have replayed everything", func() (bool, string) {
		want := s.beta().get(res("version-000000002-beta"))
		return s.reached(s.alpha(), want) && s.reached(s.gamma(), want), want
	})
	if err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.marsadm(ctx, n, "view", "all"); err != nil {
			return err
		}
	}
	// The primary last: the others are to have all that it wrote.
	for _, n := range []*node{s.alpha(), s.gamma(), s.beta()} {
		if err := s.marsadm(ctx, n, "down", resource); err != nil {
			return err
		}
	}
	var disks []content
	for _, n := range s.nodes {
		got, err := readFile(n.disk(), s.opt.Size)
		if err != nil {
			return err
		}
		disks = append(disks, content{n.disk(), got})
	}
	if err := s.compare(disks); err != nil {
		return err
	}
	if !s.opt.Keep {
		return nil
	}
	for _, n := range []*node{s.beta(), s.alpha(), s.gamma()} {
		if err := s.marsadm(ctx, n, "up", resource); err != nil {
			return err
		}
	}
	return nil
}

func readFile(name string, size int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, size)
	_, err = io.ReadFull(f, p)
	return p, err
}
