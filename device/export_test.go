package device

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/device/nbd"
	"mars/internal/nbdclient"
)

func newExport(t *testing.T, w *world, dir string) *Export {
	t.Helper()
	x, err := OpenExport(ExportConfig{Engine: w.e, Resource: "r", Dir: dir, Config: nbd.Config{Log: slog.New(slog.DiscardHandler)}})
	must(t, err)
	t.Cleanup(func() { x.Stop(context.Background()) })
	return x
}

// TestExport: a client on the socket, under both names, through stop and start.
func TestExport(t *testing.T) {
	const size = 1 << 20
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w := newWorld(t, 1, size, nil, nil)
	w.primary()
	dir := filepath.Join(t.TempDir(), "nbd")
	x := newExport(t, w, dir)
	if st, err := os.Stat(x.Path()); err != nil || st.Mode().Perm() != 0o600 || x.Path() != dir+"/r.sock" {
		t.Fatalf("socket %s: %v, %v", x.Path(), st.Mode(), err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Fatalf("%v in the directory (%v)", list, err)
	}
	data := bytes.Repeat([]byte{0xa5}, 100<<10)
	for i, export := range []string{"r", ""} {
		c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: x.Path(), Export: export})
		must(t, err)
		if c.Size() != size {
			t.Errorf("size %d", c.Size())
		}
		must(t, c.Write(ctx, data, int64(i)*300<<10))
		must(t, c.Flush(ctx))
		if n := x.OpenCount(); n < 1 {
			t.Errorf("open count %d", n)
		}
		got := make([]byte, len(data))
		must(t, c.Read(ctx, got, int64(i)*300<<10))
		must(t, diff(got, data))
		must(t, c.Trim(ctx, int64(i)*300<<10, 4096))
		must(t, c.Read(ctx, got[:4096], int64(i)*300<<10))
		if !allZero(got[:4096]) {
			t.Error("a trimmed range is not zero")
		}
		must(t, c.Close())
	}
	_, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: x.Path(), Export: "other"})
	wantErr(t, err, nil, "")
	_, err = OpenExport(ExportConfig{Engine: w.e, Resource: "r", Dir: dir})
	wantErr(t, err, ErrInUse, "running server")

	c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: x.Path()})
	must(t, err)
	must(t, x.Stop(ctx)) // with a client connected
	must(t, x.Stop(ctx))
	if err := c.Write(ctx, data, 0); err == nil {
		t.Error("a write after Stop was acknowledged")
	}
	c.Kill()
	if _, err := os.Lstat(x.Path()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there (%v)", err)
	}
	if x.OpenCount() != 0 || x.InFlight() != 0 {
		t.Errorf("open %d, in flight %d", x.OpenCount(), x.InFlight())
	}
	newExport(t, w, dir)
}

func TestExportSockets(t *testing.T) {
	w := newWorld(t, 1, 1<<20, nil, nil)
	w.primary()
	dir := t.TempDir()
	path := filepath.Join(dir, "r.sock")
	// The socket of a dead owner.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	must(t, newExport(t, w, dir).Stop(context.Background()))
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = OpenExport(ExportConfig{Engine: w.e, Resource: "r", Dir: dir})
	wantErr(t, err, nil, "not a socket")
	if p, _ := os.ReadFile(path); string(p) != "precious" {
		t.Error("a file was taken for a socket")
	}
	for _, bad := range []string{"", "a/b", "..", ".x"} {
		_, err = OpenExport(ExportConfig{Engine: w.e, Resource: bad, Dir: dir})
		wantErr(t, err, syscall.EINVAL, "plain resource name")
	}
	_, err = OpenExport(ExportConfig{Engine: w.e, Resource: strings.Repeat("n", 120), Dir: dir})
	wantErr(t, err, nil, "shorter --nbd-dir")
}

// Exports on one shared server come and go without each other.
func TestExportSharedServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server := nbd.NewServer(nbd.Config{Log: slog.New(slog.DiscardHandler)})
	defer server.Close()
	dir := t.TempDir()
	open := func(name string, size int64) *Export {
		w := newWorld(t, 1, size, nil, nil)
		w.primary()
		x, err := OpenExport(ExportConfig{Engine: w.e, Resource: name, Dir: dir, Server: server})
		must(t, err)
		return x
	}
	one, two := open("one", 1<<20), open("two", 2<<20)
	must(t, one.Stop(ctx))
	c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: two.Path()})
	must(t, err)
	defer c.Close()
	if c.Size() != 2<<20 {
		t.Errorf("size %d", c.Size())
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); err != nil && err != io.EOF {
		t.Error(err)
	}
	must(t, open("one", 1<<20).Stop(ctx))
	must(t, two.Stop(ctx))
}
