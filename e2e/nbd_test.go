package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// marsd runs a subcommand of the daemon's binary.
func marsd(t testing.TB, n *Node, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "marsd"), args...)
	cmd.Env = n.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("marsd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// matrixScript writes and reads sizes from 512 bytes to 32 MiB at aligned and odd places, checks what surrounds them,
// and what is refused. It expects a device of 80 MiB.
const matrixScript = `
import errno, os
MiB = 1024 * 1024
size = h.get_size()
assert size == 80 * MiB, size
for f in (h.can_flush, h.can_fua, h.can_multi_conn, h.can_trim, h.can_zero, h.can_fast_zero, h.can_cache):
    assert f(), f
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MiB
def everything():
    return b"".join(bytes(h.pread(16 * MiB, o)) for o in range(0, size, 16 * MiB))
model = bytearray(everything())
seedling = os.urandom(1 * MiB)
def data(n, k):
    return (seedling[k:] + seedling * (n // MiB + 1))[:n]
k = 0
for n in (512, 513, 4096, 4097, 65536, 65537, MiB, 4 * MiB + 1, 32 * MiB):
    for off in (0, 1, 511, 512, 4095, 4096, 65535, MiB + 3, size - n) if n < MiB else (511, size - n):
        k += 1
        p = data(n, k * 97)
        h.pwrite(p, off, nbd.CMD_FLAG_FUA if k % 3 == 0 else 0)
        model[off:off + n] = p
        lo, hi = max(0, off - 4096), min(size, off + n + 4096)
        got = b"".join(bytes(h.pread(min(32 * MiB, hi - o), o)) for o in range(lo, hi, 32 * MiB))
        assert got == model[lo:hi], (n, off)
for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA):
    for n, off in ((1, 77), (512, 5000), (8192, 100001), (33 * MiB, 3)):
        h.zero(n, off, flags)
        model[off:off + n] = bytes(n)
h.trim(MiB, 50 * MiB)
model[50 * MiB:51 * MiB] = bytes(MiB)
h.cache(4 * MiB, 0)
h.flush()
assert everything() == model
h.set_strict_mode(0)
def refused(f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum in (errno.EINVAL, errno.ENOSPC), e
        return
    raise AssertionError(("accepted", f, a))
for off, n in ((size - 1, 2), (size, 1), (size - 4096, 8192), (2**63, 512), (2**64 - 512, 1024)):
    for f in (h.pread, h.trim, h.zero, h.cache):
        refused(f, n, off)
    refused(h.pwrite, b"x" * n, off)
h.pwrite(b"", 0)
assert everything() == model
h.shutdown()
`

// statusScript writes at places of a sparse device and compares the block status, as it is in the log, with what was written.
const statusScript = `
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(URI)
G = 1 << 30
size = h.get_size()
assert size == SIZE and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
K = 65536
def status(off, n, flags=0):
    out = []
    def f(ctx, o, entries, err):
        out.extend(entries)
    h.block_status(n, off, f, flags)
    return [(a, b) for a, b in zip(out[0::2], out[1::2])]
HZ = nbd.STATE_HOLE | nbd.STATE_ZERO
for base in (0, 5 * G, 1 << 40, size - 8 * K):
    assert status(base, 8 * K) == [(8 * K, HZ)], (base, status(base, 8 * K))
    h.pwrite(b"d" * K, base + K)
    h.pwrite(b"e" * K, base + 4 * K)
    want = [(K, HZ), (K, 0), (2 * K, HZ), (K, 0), (3 * K, HZ)]
    assert status(base, 8 * K) == want, (base, status(base, 8 * K))
    assert status(base, 8 * K, nbd.CMD_FLAG_REQ_ONE) == want[:1]
    h.trim(K, base + K)
    assert status(base, 4 * K) == [(4 * K, HZ)], (base, status(base, 4 * K))
    assert h.pread(K, base + 4 * K) == b"e" * K
h.shutdown()
`

// TestV18NBD is scenario V18 with the real binaries and foreign clients: the matrix, TLS, block status, a 15 TiB
// device, clients that are killed, and a secondary that follows and refuses.
func TestV18NBD(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	const size = 80 * mib
	diskA, diskB := a.Disk("disk", size), b.Disk("disk", size)
	tcp := a.Addr + ":10810"
	a.Stop()
	a.Args = append(a.Args, "--nbd-tcp", tcp) // TLS is required by default
	a.Start()
	a.CreateResource(diskA)
	b.JoinResource(diskB)
	creds := a.Path("nbd-client")
	marsd(t, a, "nbd-client", "--root", a.Root(), "--secret", a.secret(), "--name", "tester", creds)
	secure := fmt.Sprintf("nbds://%s/r0?tls-certificates=%s", tcp, creds)

	t.Run("matrix", func(t *testing.T) {
		for _, uri := range []string{a.URI("r0"), secure} {
			for _, structured := range []string{"True", "False"} {
				connect := fmt.Sprintf("h.set_request_structured_replies(%s)\nh.set_uri_allow_local_file(True)\nh.connect_uri(%q)", structured, uri)
				tool(t, "nbdsh", "-c", connect, "-c", matrixScript)
			}
		}
	})
	t.Run("without TLS", func(t *testing.T) {
		if out, err := try(t, "nbdinfo", "nbd://"+tcp+"/r0"); err == nil {
			t.Errorf("served in the clear: %s", out)
		}
		if _, err := try(t, "nbdinfo", fmt.Sprintf("nbds://%s/r0", tcp)); err == nil {
			t.Error("served without a client certificate")
		}
	})
	t.Run("copy and map", func(t *testing.T) { copyAndMap(t, a, secure, creds, tcp, size) })
	t.Run("killed clients", func(t *testing.T) { killedClients(t, a) })
	t.Run("secondary", func(t *testing.T) {
		if _, err := os.Stat(b.Socket("r0")); !os.IsNotExist(err) {
			t.Errorf("socket on the secondary: %v", err)
		}
		if out, err := try(t, "nbdinfo", b.URI("r0")); err == nil {
			t.Errorf("served by the secondary: %s", out)
		}
	})
	image := a.Path("final")
	tool(t, "nbdcopy", a.URI("r0"), image)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	equalDisks(t, want, a, map[*Node]string{a: diskA, b: diskB})
}

// copyAndMap copies an image in and compares what nbdinfo and qemu-img say about it with what it holds.
func copyAndMap(t *testing.T, a *Node, uri, creds, tcp string, size int) {
	in, out := a.Path("in"), a.Path("out")
	data := randomFile(t, in, size, 5)
	tool(t, "nbdcopy", "--destination-is-zero", "--flush", in, uri)
	tool(t, "nbdcopy", "--flush", in, uri)
	tool(t, "nbdcopy", uri, out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("nbdcopy reads something else than it wrote: %v", err)
	}
	tool(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+creds, "--image-opts",
		"driver=file,filename="+in, "driver=nbd,host="+a.Addr+",port="+strings.TrimPrefix(tcp, a.Addr+":")+",export=r0,tls-creds=t")
	type part struct {
		Offset, Length, Start int64
		Type                  int
		Zero                  bool
	}
	for _, cmd := range [][]string{{"nbdinfo", "--map", "--json", a.URI("r0")}, {"nbdinfo", "--map", "--json", uri}, {"qemu-img", "map", "--output=json", "-f", "raw", a.URI("r0")}} {
		var parts []part
		if err := json.Unmarshal([]byte(tool(t, cmd[0], cmd[1:]...)), &parts); err != nil {
			t.Fatal(err)
		}
		next, zeroes := int64(0), int64(0)
		for _, p := range parts {
			off, zero := p.Start, p.Zero
			if cmd[0] == "nbdinfo" {
				off, zero = p.Offset, p.Type&2 != 0
			}
			if off != next {
				t.Fatalf("%v: a gap at %d", cmd, next)
			}
			next += p.Length
			if zero {
				zeroes += p.Length
				if len(bytes.TrimLeft(data[off:next], "\x00")) > 0 {
					t.Errorf("%v: %d..%d is said to be zero and holds data", cmd, off, next)
				}
			}
		}
		// A third of the image are zeroes, and nbdcopy writes them as such.
		if next != int64(size) || zeroes < int64(size)/8 {
			t.Errorf("%v: %d of %d bytes are zeroes, the map ends at %d", cmd, zeroes, size, next)
		}
	}
}

// killedClients: a client that is killed with requests in flight counts as gone within a second, and its
// death is nobody else's business.
func killedClients(t *testing.T, a *Node) {
	late := 0
	for range 5 {
		cmd := exec.Command("/usr/bin/fio", "--name=victim", "--ioengine=nbd", "--uri="+a.URI("r0"), "--rw=randrw", "--bs=64k", "--size=32M",
			"--iodepth=64", "--time_based", "--runtime=60", "--thread")
		cmd.Dir = a.dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		a.WaitFor("the client has the device open", func() bool { return a.View("device-opened", "r0") != "0" })
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		begin := time.Now()
		a.WaitFor("nobody has the device open", func() bool { return a.View("device-opened", "r0") == "0" })
		if d := time.Since(begin); d > 2*time.Second { // one of them is the pace of the status links and of marsadm
			t.Logf("the open count was seen to be released after %v", d)
			late++
		}
	}
	if late > 2 { // a busy machine delays one or the other
		t.Errorf("the open count was released late %d times of 5", late)
	}
	tool(t, "nbdinfo", a.URI("r0"))
}

// TestV18Sparse: offsets beyond 32 bits, block status in the log and on the disk, at 15 TiB, which ext4 can hold as a file.
func TestV18Sparse(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1)
	a := c.Nodes[0]
	const size = 15 << 40
	a.CreateResource(a.Disk("disk", size))
	script := fmt.Sprintf("URI = %q\nSIZE = %d\n", a.URI("r0"), int64(size)) + statusScript
	tool(t, "nbdsh", "-c", script)
	if out := strings.TrimSpace(tool(t, "nbdinfo", "--size", a.URI("r0"))); out != fmt.Sprint(int64(size)) {
		t.Errorf("size %s", out)
	}
	// The data outlives the daemon, and is where it was.
	a.Stop()
	a.Start()
	a.Adm("wait-resource", "r0", "is-device")
	tool(t, "nbdsh", "-u", a.URI("r0"), "-c", `
for base in (0, 5 << 30, 1 << 40, h.get_size() - 8 * 65536):
    assert h.pread(65536, base + 65536) == bytearray(65536)
    assert h.pread(65536, base + 4 * 65536) == b"e" * 65536
`)
}
