package device

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"mars/internal/testutil"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

func TestOpenDiskRefusals(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	_, err := OpenDisk(vfs.OS, missing)
	wantErr(t, err, fs.ErrNotExist, "never created")
	if _, err := os.Lstat(missing); err == nil {
		t.Error("a missing disk was created")
	}
	must(t, os.Symlink(missing, filepath.Join(dir, "dangling")))
	_, err = OpenDisk(vfs.OS, filepath.Join(dir, "dangling"))
	wantErr(t, err, fs.ErrNotExist, "never created")
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	_, err = OpenDisk(vfs.OS, filepath.Join(dir, "loop"))
	wantErr(t, err, nil, "too many levels")
	_, err = OpenDisk(vfs.OS, dir)
	wantErr(t, err, ErrNotDisk, dir)
	_, err = OpenDisk(vfs.OS, "/dev/null")
	wantErr(t, err, ErrNotDisk, "/dev/null")
	small := filepath.Join(dir, "small")
	must(t, os.WriteFile(small, make([]byte, MinDiskSize-1), 0o600))
	_, err = OpenDisk(vfs.OS, small)
	wantErr(t, err, ErrTooSmall, "4095 bytes")
}

func TestDiskIsExclusive(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	must(t, os.WriteFile(path, make([]byte, 64<<10), 0o600))
	must(t, os.Symlink("disk", filepath.Join(dir, "link")))
	d, err := OpenDisk(vfs.OS, filepath.Join(dir, "link"))
	must(t, err)
	if d.Path() != path || d.Size() != 64<<10 {
		t.Errorf("disk %s, %d bytes", d.Path(), d.Size())
	}
	_, err = OpenDisk(vfs.OS, path)
	wantErr(t, err, ErrInUse, "by another process")
	must(t, d.Close())
	d, err = OpenDisk(vfs.OS, path) // closed means free
	must(t, err)
	must(t, d.Close())
}

// Both the kernel's zeroing and writing zeros leave exactly the range zeroed.
func TestDiskZeroes(t *testing.T) {
	const size = 2<<20 + 512
	r := rand.New(rand.NewPCG(testutil.Seed(t), 1))
	want := make([]byte, size)
	fill(r, want)
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, want, 0o600))
	memory := crashfs.New(1)
	must(t, memory.AddDisk(diskPath, size, bytes.NewReader(want)))
	for name, c := range map[string]struct {
		fs   vfs.FS
		path string
	}{"kernel": {vfs.OS, path}, "memory": {memory, diskPath}} {
		t.Run(name, func(t *testing.T) {
			want := bytes.Clone(want)
			d, err := OpenDisk(c.fs, c.path)
			must(t, err)
			defer d.Close()
			got := make([]byte, size)
			for i := range 60 {
				length := 1 + r.Int64N([]int64{300, 10000, 1 << 20}[i%3])
				off := r.Int64N(size - length + 1)
				if i%2 == 0 {
					must(t, d.Discard(off, length))
				} else {
					must(t, d.WriteZeroes(off, length))
				}
				clear(want[off : off+length])
				_, err := d.ReadAt(got, 0)
				must(t, err)
				if err := diff(got, want); err != nil {
					t.Fatalf("zeroed %d+%d: %v", off, length, err)
				}
				p := make([]byte, 1+r.IntN(20000))
				fill(r, p)
				off = r.Int64N(size - int64(len(p)) + 1)
				_, err = d.WritevAt([][]byte{p[:len(p)/3], p[len(p)/3:]}, off)
				must(t, err)
				copy(want[off:], p)
			}
			must(t, d.Flush())
			wantErr(t, d.Discard(size-10, 11), nil, "beyond its end")
			wantErr(t, d.WriteZeroes(-1, 1), nil, "beyond its end")
			_, err = d.WriteAt(make([]byte, 2), size-1)
			wantErr(t, err, nil, "beyond its end")
			_, err = d.ReadAt(make([]byte, 2), size-1)
			wantErr(t, err, io.ErrUnexpectedEOF, "read disk")
			// TryReadAt says the truth or nothing.
			p := make([]byte, 5000)
			if d.TryReadAt(p, 777) && !bytes.Equal(p, want[777:5777]) {
				t.Error("TryReadAt read something else")
			}
			if st, err := d.file.Size(); err != nil || st != size {
				t.Errorf("the disk has %d bytes now (%v)", st, err)
			}
		})
	}
}

// TRIM gives the space of a file back.
func TestDiscardFreesSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, bytes.Repeat([]byte{1}, 4<<20), 0o600))
	d, err := OpenDisk(vfs.OS, path)
	must(t, err)
	defer d.Close()
	must(t, d.Discard(0, 4<<20))
	if d.noHole.Load() {
		t.Log("the file system of the test cannot punch holes")
		return
	}
	must(t, d.Flush())
	if n := blocks(t, path); n > 64 {
		t.Errorf("%d blocks of 512 bytes are still allocated", n)
	}
}
