package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// tool runs a client that this project did not write.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// The distribution's tools go with the distribution's python.
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %s does not end\n%s", name, strings.Join(args, " "), out)
	}
	return string(out), err
}

// randomFile makes a file with holes, zeroes and data that does not compress.
func randomFile(t testing.TB, path string, size int, seed uint64) []byte {
	t.Helper()
	p := make([]byte, size)
	rnd := rand.New(rand.NewPCG(seed, 7))
	for off := 0; off < size; off += 64 << 10 {
		if rnd.IntN(3) == 0 {
			continue
		}
		for i := off; i < min(size, off+64<<10); i++ {
			p[i] = byte(rnd.Uint32())
		}
	}
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestForeignClients lets the clients of libnbd, qemu and fio work on an export
// while a secondary follows. In the end both disks are equal and are what the
// clients have read.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	const size = 32 * mib
	diskA, diskB := a.Disk("disk", size), b.Disk("disk", size)
	tcp := a.Addr + ":10809"
	a.Stop()
	a.Args = append(a.Args, "--nbd-tcp", tcp, "--nbd-tls", "off")
	a.Start()
	a.CreateResource(diskA)
	b.JoinResource(diskB)
	uris := map[string]string{"unix": a.URI("r0"), "tcp": "nbd://" + tcp + "/r0"}

	t.Run("nbdinfo", func(t *testing.T) {
		for _, kind := range []string{"unix", "tcp"} {
			checkInfo(t, uris[kind], size)
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		for i, kind := range []string{"unix", "tcp"} {
			in, out := a.Path("in"), a.Path("out")
			want := randomFile(t, in, size, uint64(i))
			tool(t, "nbdcopy", "--flush", "--connections=4", in, uris[kind])
			tool(t, "nbdcopy", "--connections=4", uris[kind], out)
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: nbdcopy reads something else than it wrote", kind)
			}
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		in, out := a.Path("in"), a.Path("out")
		randomFile(t, in, size, 3)
		for _, uri := range uris {
			tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", in, uri)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, uri)
			tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, out)
		}
		// Negative control: compare sees one changed byte.
		tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1048576 4096", in)
		if _, err := try(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, uris["unix"]); err == nil {
			t.Error("qemu-img compare finds no difference where there is one")
		}
	})
	t.Run("qemu-io", func(t *testing.T) { patterns(t, a) })
	t.Run("nbdsh", func(t *testing.T) {
		for _, uri := range uris {
			tool(t, "nbdsh", "-u", uri, "-c", nbdshScript)
		}
	})
	t.Run("fio", func(t *testing.T) { fio(t, uris) })

	image := a.Path("final")
	tool(t, "nbdcopy", a.URI("r0"), image)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	equalDisks(t, want, a, map[*Node]string{a: diskA, b: diskB})
}

func checkInfo(t *testing.T, uri string, size int64) {
	t.Helper()
	var info struct {
		Protocol string `json:"protocol"`
		Exports  []struct {
			Name         string `json:"export-name"`
			Size         int64  `json:"export-size"`
			Flush        bool   `json:"can_flush"`
			FUA          bool   `json:"can_fua"`
			MultiConn    bool   `json:"can_multi_conn"`
			Trim         bool   `json:"can_trim"`
			Zero         bool   `json:"can_zero"`
			ReadOnly     bool   `json:"is_read_only"`
			BlockMinimum int64  `json:"block_minimum"`
			BlockMaximum int64  `json:"block_maximum"`
		} `json:"exports"`
	}
	for _, mode := range [][]string{{"--json"}, {"--json", "--list"}} {
		out := tool(t, "nbdinfo", append(mode, uri)...)
		info.Exports = nil
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			t.Fatalf("nbdinfo %v: %v\n%s", mode, err, out)
		}
		if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 {
			t.Fatalf("nbdinfo %v %s: %s", mode, uri, out)
		}
		e := info.Exports[0]
		if e.Name != "r0" || e.Size != size || !e.Flush || !e.FUA || !e.MultiConn || !e.Trim || !e.Zero || e.ReadOnly {
			t.Errorf("nbdinfo %v %s: %+v", mode, uri, e)
		}
	}
}

// patterns writes patterns with qemu-io, some flushed and some only acknowledged,
// kills marsd, and reads them after its restart: kill -9 takes neither.
func patterns(t *testing.T, a *Node) {
	const count, step = 24, 1 * mib
	var write, read []string
	for i := range count {
		off, pat, n := i*step+i*512, 1+i*5%255, 512<<(i%9)
		write = append(write, "-c", fmt.Sprintf("write -P %d %d %d", pat, off, n))
		read = append(read, "-c", fmt.Sprintf("read -P %d %d %d", pat, off, n))
		switch i % 8 {
		case 3:
			write = append(write, "-c", "flush")
		case 5:
			write = append(write, "-c", fmt.Sprintf("write -z %d 4096", off+512*1024), "-c", fmt.Sprintf("write -f -P %d %d 4096", pat, off+768*1024))
			read = append(read, "-c", fmt.Sprintf("read -P 0 %d 4096", off+512*1024), "-c", fmt.Sprintf("read -P %d %d 4096", pat, off+768*1024))
		case 6:
			write = append(write, "-c", fmt.Sprintf("discard %d 65536", off+256*1024))
		}
	}
	uri := a.URI("r0")
	tool(t, "qemu-io", append([]string{"-f", "raw", uri}, write...)...)
	checkPatterns := func(when string) {
		t.Helper()
		out := tool(t, "qemu-io", append([]string{"-f", "raw", uri}, read...)...)
		if strings.Contains(out, "Pattern verification failed") {
			t.Errorf("%s: %s", when, out)
		}
	}
	checkPatterns("at once")
	a.Kill()
	a.Start()
	a.Adm("wait-resource", "r0", "is-device")
	checkPatterns("after kill -9")
	a.Stop()
	a.Start()
	a.Adm("wait-resource", "r0", "is-device")
	checkPatterns("after a clean restart")
	// Negative control.
	out, err := try(t, "qemu-io", "-f", "raw", uri, "-c", "read -P 254 0 512")
	if err == nil && !strings.Contains(out, "Pattern verification failed") {
		t.Errorf("qemu-io does not see a wrong pattern: %s", out)
	}
}

const nbdshScript = `
import errno, os
size = h.get_size()
assert size == 32 * 1024 * 1024, size
assert h.can_flush() and h.can_fua() and h.can_multi_conn() and h.can_trim() and h.can_zero()
assert not h.is_read_only()
data = os.urandom(100 * 1024)
h.pwrite(data, 12345)                        # unaligned
assert h.pread(len(data), 12345) == data
h.pwrite(b"fua" * 100, 3 * 1024 * 1024, nbd.CMD_FLAG_FUA)
assert h.pread(300, 3 * 1024 * 1024) == b"fua" * 100
h.zero(4096, 12345 + 1000)
assert h.pread(4096, 13345) == bytearray(4096)
assert h.pread(1000, 12345) == data[:1000]
assert h.pread(1000, 13345 + 4096) == data[5096:6096]
h.trim(1024 * 1024, 8 * 1024 * 1024)
h.flush()
# Many requests in flight, answered in any order.
bufs = [(nbd.Buffer.from_bytearray(bytearray(os.urandom(8192))), 16 * 1024 * 1024 + i * 8192) for i in range(64)]
cookies = [h.aio_pwrite(b, off) for b, off in bufs]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.flush()
for b, off in bufs:
    assert h.pread(8192, off) == b.to_bytearray()
# Beyond the end: an error each, and the connection goes on.
h.set_strict_mode(0)
for f in (lambda: h.pread(4096, size), lambda: h.pread(8192, size - 4096), lambda: h.pwrite(b"x" * 8192, size - 4096),
          lambda: h.trim(8192, size - 4096), lambda: h.zero(8192, size - 4096)):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum in (errno.EINVAL, errno.ENOSPC), e
    else:
        raise AssertionError("accepted beyond the end")
last = h.pread(4096, size - 4096)
h.pwrite(last, size - 4096)
h.shutdown()
`

// fio verifies what it wrote, at random, with many requests in flight.
func fio(t *testing.T, uris map[string]string) {
	for kind, uri := range uris {
		for _, bs := range []string{"4k-4k", "512-64k"} {
			out := tool(t, "fio", "--name="+kind, "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange="+bs,
				"--size=8M", "--iodepth=32", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--verify_state_save=0", "--output-format=terse")
			if strings.Contains(out, "verify:") {
				t.Errorf("fio over %s, %s: %s", kind, bs, out)
			}
		}
	}
}
