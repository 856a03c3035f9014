package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The clients that people use, against an export in memory. A missing tool is a
// failure: `make test` installs them (qemu-utils, libnbd-bin, python3-libnbd, fio).

// tool runs a foreign client and returns its output and whether it succeeded.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed for this test: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir() // fio leaves files
	// nbdsh needs the python that the distribution's libnbd belongs to.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %q does not end: %s", name, args, out)
	}
	return string(out), err
}

// run is tool for what must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func (ts *testServer) uri(export string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, ts.sock)
}

// imageFile is a file of size bytes: half random, half a hole.
func imageFile(t *testing.T, size int) (string, []byte) {
	data := make([]byte, size)
	copy(data[size/4:], pattern(rand.New(rand.NewPCG(1, 2)), size/2))
	name := filepath.Join(t.TempDir(), "image")
	check(t, os.WriteFile(name, data, 0o600))
	return name, data
}

func TestNbdinfo(t *testing.T) {
	ts := startServer(t, Config{}, Export{Name: "disk", Description: "a test disk", Backend: NewMemory(10 << 20)},
		Export{Name: "frozen", Description: "yesterday", Backend: NewMemory(1 << 44), ReadOnly: true})
	list := run(t, "nbdinfo", "--list", "--json", ts.uri(""))
	var info struct {
		Protocol string
		Exports  []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64 `json:"export-size"`
			ReadOnly    bool  `json:"is_read_only"`
			Flush       bool  `json:"can_flush"`
			FUA         bool  `json:"can_fua"`
			Trim        bool  `json:"can_trim"`
			Zero        bool  `json:"can_zero"`
			Multi       bool  `json:"can_multi_conn"`
			DF          bool  `json:"can_df"`
			Min         int   `json:"block_size_minimum"`
			Preferred   int   `json:"block_size_preferred"`
			Max         int   `json:"block_size_maximum"`
		}
	}
	if err := json.Unmarshal([]byte(list), &info); err != nil {
		t.Fatalf("%v in %s", err, list)
	}
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 2 {
		t.Fatalf("list: %s", list)
	}
	for i, e := range info.Exports {
		ro := i == 1
		if e.Name != []string{"disk", "frozen"}[i] || e.Description != []string{"a test disk", "yesterday"}[i] || e.Size != []int64{10 << 20, 1 << 44}[i] ||
			e.ReadOnly != ro || !e.Flush || !e.FUA || e.Trim == ro || e.Zero == ro || !e.Multi || !e.DF || e.Min != 1 || e.Preferred != 4096 || e.Max != 32<<20 {
			t.Errorf("export %+v", e)
		}
	}
	for _, can := range []string{"flush", "fua", "trim", "zero", "multi-conn", "fast-zero", "cache", "df"} {
		if out, err := tool(t, "nbdinfo", "--can", can, ts.uri("disk")); err != nil {
			t.Errorf("--can %s: %v %s", can, err, out)
		}
	}
	if out, err := tool(t, "nbdinfo", "--can", "fast-zero", ts.uri("frozen")); err == nil {
		t.Errorf("fast zeroes on a read-only export: %s", out)
	}
	if out := strings.TrimSpace(run(t, "nbdinfo", "--size", ts.uri("frozen"))); out != "17592186044416" {
		t.Errorf("size %q", out)
	}
	if out, err := tool(t, "nbdinfo", ts.uri("nix")); err == nil || !strings.Contains(out, "nix") {
		t.Errorf("unknown export: %v %s", err, out)
	}
}

func TestNbdcopy(t *testing.T) {
	const size = 8 << 20
	ts, m := memServer(t, size)
	name, data := imageFile(t, size)
	back := filepath.Join(t.TempDir(), "back")
	for _, how := range [][]string{{"--flush"}, {"--flush", "--connections=4", "--requests=64"}, {"--synchronous", "--request-size=8388608"}} {
		check(t, m.Submit([]Op{{Kind: OpZeroes, Len: size}}))
		run(t, "nbdcopy", append(how, name, ts.uri("disk"))...)
		got := make([]byte, size)
		check(t, m.ReadAt(got, 0))
		if !bytes.Equal(got, data) {
			t.Errorf("nbdcopy %q: export differs from the file", how)
		}
		os.Remove(back)
		run(t, "nbdcopy", append(how, ts.uri("disk"), back)...)
		got, err := os.ReadFile(back)
		check(t, err)
		if !bytes.Equal(got, data) {
			t.Errorf("nbdcopy %q: file differs from the export", how)
		}
	}
}

func TestQemuImg(t *testing.T) {
	const size = 16 << 20
	ts, _ := memServer(t, size)
	name, _ := imageFile(t, size)
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "info", "--output=json", ts.uri("disk"))), &info); err != nil || info.Size != size {
		t.Errorf("info: %+v, %v", info, err)
	}
	run(t, "qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", name, ts.uri("disk"))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", name, ts.uri("disk"))
	back := filepath.Join(t.TempDir(), "back.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", ts.uri("disk"), back)
	run(t, "qemu-img", "compare", "-F", "raw", back, name)
}

func TestQemuIO(t *testing.T) {
	ts, _ := memServer(t, 64<<20)
	io := func(commands ...string) string {
		args := []string{"-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		return run(t, "qemu-io", append(args, ts.uri("disk"))...)
	}
	io("write -P 0xab 0 64k", "write -f -P 0xcd 1M 4k", "aio_write -P 0x11 2M 1M", "aio_write -P 0x22 3M 1M", "aio_flush", "flush",
		"write -P 0x77 8M 31M", "write -z 9M 1M", "write -z -u 10M 1M", "discard 11M 1M", "write -P 0x99 513 1023")
	io("read -P 0xab 0 512", "read -P 0x99 513 1023", "read -P 0xab 1536 62k", "read -P 0xcd 1M 4k", "read -P 0x11 2M 1M", "read -P 0x22 3M 1M",
		"read -P 0x77 8M 1M", "read -P 0 9M 2M", "read -P 0 11M 1M", "read -P 0x77 12M 27M", "read -P 0 39M 25M")
	if out, err := tool(t, "qemu-io", "-f", "raw", "-c", "read -P 0x78 8M 4k", ts.uri("disk")); err == nil || !strings.Contains(out, "Pattern verification failed") {
		t.Errorf("negative control: %v %s", err, out)
	}
}

const nbdshScript = `
import os, errno
h.set_strict_mode(0)
h.connect_uri(%q)
size = h.get_size()
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_multi_conn() and h.can_df()
assert h.get_structured_replies_negotiated()
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * 1024 * 1024
buf = os.urandom(100000)
h.pwrite(buf, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(100000, 12345) == buf
h.zero(5000, 20000, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 40960)
h.flush()
assert h.pread(5000, 20000) == bytearray(5000)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((len(data), offset, status))
h.pread_structured(4096, 100, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(4096, 100, nbd.READ_DATA)], chunks

def refused(want, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == want, (f, args, e.string)
        return
    raise AssertionError("no error")
refused(errno.ENOSPC, h.pwrite, buf, size - 1)
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.trim, 4096, size - 1)
refused(errno.ENOSPC, h.zero, 4096, size - 1)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 4096) == bytearray(4096)
h.cache(4096, 0)
refused(errno.EINVAL, h.cache, 4096, size)
refused(errno.EINVAL, h.pwrite, buf, 0, nbd.CMD_FLAG_DF)
assert h.pread(100, 12345) == buf[:100]

bufs = [nbd.Buffer.from_bytearray(bytearray([i %% 251]) * 4096) for i in range(300)]
for cookie in [h.aio_pwrite(b, i * 4096) for i, b in enumerate(bufs)]:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
for i in range(300):
    assert h.pread(4096, i * 4096) == bytearray([i %% 251]) * 4096, i
h.shutdown()
print("all is well")
`

func TestNbdsh(t *testing.T) {
	ts, _ := memServer(t, 8<<20)
	if out := run(t, "nbdsh", "-c", fmt.Sprintf(nbdshScript, ts.uri("disk"))); !strings.Contains(out, "all is well") {
		t.Errorf("%s", out)
	}
	ts.waitOpen("disk", 0)
}

func TestFio(t *testing.T) {
	ts, _ := memServer(t, 16<<20)
	if out := run(t, "fio", "--enghelp"); !strings.Contains(out, "nbd") {
		t.Fatalf("fio has no nbd engine: %s", out)
	}
	run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+ts.uri("disk"), "--rw=randrw", "--bsrange=512-64k", "--size=16m", "--iodepth=32",
		"--fsync=20", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--group_reporting")
	out := run(t, "fio", "--name=trim", "--ioengine=nbd", "--uri="+ts.uri("disk"), "--rw=randtrimwrite", "--bs=4k", "--size=8m", "--iodepth=8", "--randrepeat=0")
	if !strings.Contains(out, "err= 0") {
		t.Errorf("%s", out)
	}
}

// TestKillForeignClient: a client killed with requests in flight is gone within a second.
func TestKillForeignClient(t *testing.T) {
	ts, _ := memServer(t, 64<<20)
	path, err := exec.LookPath("fio")
	if err != nil {
		t.Fatalf("fio is needed for this test: %v", err)
	}
	cmd := exec.Command(path, "--name=load", "--ioengine=nbd", "--uri="+ts.uri("disk"), "--rw=randrw", "--bs=4k", "--size=64m", "--iodepth=32",
		"--thread", "--time_based", "--runtime=60")
	cmd.Dir = t.TempDir()
	check(t, cmd.Start())
	e := ts.exports["disk"]
	for deadline := time.Now().Add(patience); e.inflight.Load() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("fio does not start")
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	start := time.Now()
	ts.waitOpen("disk", 0)
	if d := time.Since(start); d > openLimit {
		t.Errorf("open for another %v", d)
	}
}
