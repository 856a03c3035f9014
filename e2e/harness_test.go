package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/testutil"
	"mars/internal/treeschema"
)

// bin is the directory of the binaries under test.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "mars-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bin")
	args := []string{"build", "-o", bin + "/"}
	// The same code runs under the race detector in the tests of its packages. Here it would cost
	// most of the time: hundreds of marsadm start, and a dozen of marsd run at once.
	if os.Getenv("MARS_SOAK") != "" {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "mars/cmd/marsd", "mars/cmd/marsadm")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	// Scenarios mostly wait: more of them at once than there are processors.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set("5"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code = m.Run()
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: the tests left something behind:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return code
}

// leftovers are processes of our binaries that still run, and our loop devices.
func leftovers() []string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, p := range procs {
		if exe, err := os.Readlink(p); err == nil && strings.HasPrefix(exe, bin) {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+exe)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.Contains(string(b), workPrefix+strconv.Itoa(os.Getpid())+"-") {
			left = append(left, "loop device "+l+" of "+strings.TrimSpace(string(b)))
		}
	}
	own := workPrefix + strconv.Itoa(os.Getpid()) + "-"
	if b, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, own) {
				left = append(left, "mount "+strings.TrimSpace(line))
			}
		}
	}
	spaces, _ := filepath.Glob("/run/netns/me2e" + strconv.Itoa(os.Getpid()) + "-*")
	return append(left, spaces...)
}

// workPrefix starts the name of every working directory; the pid follows. Short,
// because paths of unix sockets are.
const workPrefix = "me2e-"

// soak is MARS_SOAK, 0 in `make test`.
func soak(t testing.TB) time.Duration {
	v := os.Getenv("MARS_SOAK")
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("MARS_SOAK=%q: %v", v, err)
	}
	return d
}

// seeded returns a generator whose seed is printed.
func seeded(t testing.TB) *rand.Rand {
	seed := testutil.Seed(t)
	return rand.New(rand.NewPCG(seed, 1))
}

// workDir is a directory that goes away with the test.
func workDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", workPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("MARS_E2E_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Cluster is a set of nodes.
type Cluster struct {
	t     testing.TB
	dir   string
	Nodes []*Node
	net   *network // nil: loopback addresses
	opt   clusterOptions
}

type clusterOptions struct {
	netns bool
	args  []string // further arguments of every marsd
	apart bool     // directories only: no cluster is made
	mars  []int64  // bytes of each node's /mars, a filesystem of its own; 0 = just a directory
}

// Option of NewCluster.
type Option func(*clusterOptions)

// WithNetwork puts every node into a network namespace of its own, so that links
// can be cut and throttled.
func WithNetwork() Option { return func(o *clusterOptions) { o.netns = true } }

// WithArgs gives arguments to every marsd.
func WithArgs(args ...string) Option {
	return func(o *clusterOptions) { o.args = append(o.args, args...) }
}

// Apart makes nodes that are not in a cluster and do not run.
func Apart() Option { return func(o *clusterOptions) { o.apart = true } }

// WithMars gives each node a filesystem of so many bytes for its /mars; 0 = just a directory.
func WithMars(bytes ...int64) Option {
	return func(o *clusterOptions) { o.mars = bytes }
}

// NewCluster makes a cluster of n nodes hosta, hostb, ... that run and know each
// other. Everything ends with the test.
func NewCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: workDir(t)}
	for _, o := range opts {
		o(&c.opt)
	}
	var addrs []string
	if c.opt.netns {
		c.net = newNetwork(t, n)
		addrs = c.net.addrs
	} else {
		addrs = loopbackAddrs(t, n)
	}
	for i, addr := range addrs {
		node := newNode(c, i, addr)
		c.Nodes = append(c.Nodes, node)
		if i < len(c.opt.mars) && c.opt.mars[i] > 0 {
			smallFS(t, node.Root(), c.opt.mars[i])
		}
	}
	t.Cleanup(c.end)
	if c.opt.apart {
		return c
	}
	a := c.Nodes[0]
	a.Adm("create-cluster", "--ip="+a.Addr)
	a.Start()
	for _, b := range c.Nodes[1:] {
		b.copySecret(a)
		b.Start()
		b.Adm("join-cluster", a.Name, a.Addr, "--ip="+b.Addr)
	}
	for _, b := range c.Nodes {
		b.WaitFor("all addresses", func() bool {
			for _, o := range c.Nodes {
				if b.Link("ips/ip-"+o.Name) != o.Addr {
					return false
				}
			}
			return true
		})
	}
	return c
}

// loopbackAddrs finds addresses on which nobody uses the standard ports.
func loopbackAddrs(t testing.TB, n int) []string {
	t.Helper()
	for range 100 {
		net3 := fmt.Sprintf("127.%d.%d.", 16+rand.IntN(200), rand.IntN(256))
		free := true
		var list []string
		for i := range n {
			a := net3 + strconv.Itoa(i+1)
			for _, port := range []string{"7777", "7778"} {
				l, err := net.Listen("tcp", net.JoinHostPort(a, port))
				if err != nil {
					free = false
					continue
				}
				l.Close()
			}
			list = append(list, a)
		}
		if free {
			return list
		}
	}
	t.Fatal("no free loopback addresses")
	return nil
}

// end stops all daemons and judges their logs.
func (c *Cluster) end() {
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		wg.Add(1)
		go func() { defer wg.Done(); n.end() }()
	}
	wg.Wait()
	for _, n := range c.Nodes {
		treeschema.Check(n.t, n.Root())
		n.judgeLog()
	}
	if c.net != nil {
		c.net.remove()
	}
}
