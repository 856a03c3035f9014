package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/oracle/logoracle"
	"mars/internal/vfs"
	"mars/symlinktree"
)

// What a kernel MARS has left behind: testdata/kernel/README.md.
const (
	kernelRes  = symlinktree.Resource("mydata")
	kernelSize = 64 * mib
)

// unpack makes the root of n from an archive of /mars.
func (n *Node) unpack(archive string) {
	n.t.Helper()
	f, err := os.Open(filepath.Join("testdata", "kernel", archive))
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		n.t.Fatal(err)
	}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			n.t.Fatal(err)
		}
		path := filepath.Join(n.Root(), strings.TrimPrefix(filepath.Clean(h.Name), "mars"))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o700)
		case tar.TypeSymlink:
			err = vfs.OS.Symlink(h.Linkname, path, h.ModTime)
		case tar.TypeReg:
			var b []byte
			if b, err = io.ReadAll(tr); err == nil {
				err = errors.Join(os.WriteFile(path, b, 0o600), os.Chtimes(path, h.ModTime, h.ModTime))
			}
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// plant makes the root of n from a listing, without the logfiles; keep chooses.
func (n *Node) plant(listing string, keep func(path string) bool) {
	n.t.Helper()
	for line := range strings.Lines(string(readFile(n.t, filepath.Join("..", "symlinktree", "testdata", "kernel", listing)))) {
		left, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " -> ")
		f := strings.Fields(left)
		if !ok || len(f) != 5 {
			n.t.Fatalf("%s: bad line %q", listing, line)
		}
		sec, frac, _ := strings.Cut(f[3], ".")
		stamp, err := symlinktree.ParseStamp(sec + "." + frac[:9])
		if err != nil {
			n.t.Fatal(err)
		}
		rel := strings.TrimPrefix(f[4], "./")
		if path := filepath.Join(n.Root(), rel); keep(rel) {
			switch f[0] {
			case "d":
				err = os.MkdirAll(path, 0o700)
			case "f":
				err = os.WriteFile(path, nil, 0o600)
			case "l":
				err = vfs.OS.Symlink(value, path, stamp.Time())
			}
			if err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// setBack gives a link of the fixture another value and keeps its age.
func (n *Node) setBack(path, value string) {
	n.t.Helper()
	path = filepath.Join(n.Root(), path)
	stamp := time.Unix(1795417040, 101897151)
	if st, err := os.Lstat(path); err == nil {
		stamp = st.ModTime()
		if err := os.Remove(path); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := vfs.OS.Symlink(value, path, stamp); err != nil {
		n.t.Fatal(err)
	}
}

// ln is ln -sfn VALUE PATH, as an administrator types it.
func (n *Node) ln(value, path string) {
	n.t.Helper()
	path = filepath.Join(n.Root(), path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	if err := os.Symlink(value, path); err != nil {
		n.t.Fatal(err)
	}
}

// kernelImage is what a log leaves on a disk of zeros: everything before clean, and
// of the records from there up to dirty every second one, as a crash in the middle
// of the writeback leaves it.
func kernelImage(t testing.TB, log []byte, name string, clean, dirty int64) []byte {
	t.Helper()
	img := make([]byte, kernelSize)
	i := 0
	err := logoracle.Parse(bytes.NewReader(log), name, dirty, logoracle.Options{Original: true, Size: kernelSize}, func(r *logoracle.Record) error {
		if i++; r.End <= clean || i%2 == 0 {
			copy(img[r.Pos:], r.Data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// borders are the ends of all records.
func borders(t testing.TB, log []byte, name string) []int64 {
	t.Helper()
	list, err := logoracle.Borders(bytes.NewReader(log), name, int64(len(log)), logoracle.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// device reads all of mydata through the export of n.
func (n *Node) device() []byte {
	n.t.Helper()
	c := n.dial(string(kernelRes))
	defer c.Close()
	img := make([]byte, c.Size())
	if _, err := c.ReadAt(img, 0); err != nil {
		n.t.Fatalf("read %s on %s: %v", kernelRes, n.Name, err)
	}
	return img
}

// same fails at the first difference.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	diffs, err := logoracle.Compare(bytes.NewReader(got), bytes.NewReader(want), int64(len(want)), 3)
	if err != nil || len(diffs) > 0 || len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d; differs at %v, %v", what, len(got), len(want), diffs, err)
	}
}
