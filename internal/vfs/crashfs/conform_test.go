package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/testutil"
	"mars/internal/vfs"
)

// Differential test against the kernel: the same random calls on a temporary
// directory and on crashfs give the same results, errors and trees.

// outcome makes results comparable: the errno decides, not the text.
func outcome(err error) string {
	var no syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case err == io.EOF:
		return "EOF"
	case errors.As(err, &no):
		if no == syscall.EEXIST { // rmdir may say either
			no = syscall.ENOTEMPTY
		}
		return no.Error()
	case errors.Is(err, fs.ErrClosed):
		return "closed"
	}
	return err.Error()
}

// side is one of the two file systems, with the handles opened on it.
type side struct {
	fs    vfs.FS
	root  string
	files []vfs.File
}

// step performs one random call; r yields the same choices for both sides.
func (s *side) step(r *rand.Rand) string {
	name := func() string {
		p := []string{"a", "b", "c", "d/a", "d/b", "d/e/a", "l", "d", "d/e", "x/y", "a/z", strings.Repeat("n", 256), "l/a"}
		return path.Join(s.root, p[r.IntN(len(p))])
	}
	data := bytes.Repeat([]byte{byte('a' + r.IntN(26))}, r.IntN(9000))
	off := int64(r.IntN(12000))
	pick := r.IntN(1 << 20)
	switch r.IntN(14) {
	case 0, 1:
		n := name()
		flag := []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_CREATE | os.O_EXCL,
			os.O_RDWR | os.O_CREATE | os.O_TRUNC, os.O_RDWR | syscall.O_NOFOLLOW, os.O_RDONLY | syscall.O_DIRECTORY}[r.IntN(8)]
		f, err := s.fs.OpenFile(n, flag, 0o600)
		if err == nil {
			s.files = append(s.files, f)
		}
		return fmt.Sprint("open ", flag, " ", outcome(err))
	case 2:
		return "mkdir " + outcome(s.fs.Mkdir(name(), 0o700))
	case 3:
		return "remove " + outcome(s.fs.Remove(name()))
	case 4, 5:
		return "rename " + outcome(s.fs.Rename(name(), name()))
	case 6:
		targets := []string{"a", "d", "d/b", "l", "", "nowhere", "../" + path.Base(s.root) + "/b"}
		return "symlink " + outcome(s.fs.Symlink(targets[r.IntN(len(targets))], name(), time.Unix(int64(pick), 7)))
	case 7:
		t, err := s.fs.Readlink(name())
		return "readlink " + strings.ReplaceAll(t, s.root, "") + outcome(err)
	case 8:
		n := path.Join(s.root, []string{"", "d", "d/e", "x"}[r.IntN(4)])
		if info, err := s.fs.Lstat(n); err == nil && !info.IsDir() {
			return "the kernel syncs files as well"
		}
		return "syncdir " + outcome(s.fs.SyncDir(n))
	}
	if len(s.files) == 0 {
		return "none"
	}
	k := pick % len(s.files)
	f := s.files[k]
	switch r.IntN(7) {
	case 0, 1:
		n, err := f.WriteAt(data, off)
		return fmt.Sprint("write ", n, outcome(err))
	case 2:
		n, err := f.WritevAt([][]byte{data, nil, []byte("tail")}, off)
		return fmt.Sprint("writev ", n, outcome(err))
	case 3:
		p := make([]byte, 5000)
		n, err := f.ReadAt(p, off)
		return fmt.Sprintf("read %d %x %s", n, p[:n], outcome(err))
	case 4:
		return "truncate " + outcome(f.Truncate(off))
	case 5:
		return "datasync " + outcome(f.Datasync())
	}
	s.files = slices.Delete(s.files, k, k+1)
	return "close " + outcome(f.Close())
}

// tree lists everything below dir with contents.
func (s *side) tree(dir string) string {
	list, err := s.fs.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range list {
		full := path.Join(dir, e.Name())
		info, err := s.fs.Lstat(full)
		if err != nil {
			return err.Error()
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %#o uid=%d ", e.Name(), info.Mode(), st.Mode, st.Uid)
		switch {
		case info.IsDir():
			b.WriteString("{" + s.tree(full) + "}")
		case info.Mode()&fs.ModeSymlink != 0:
			l, _ := s.fs.Readlink(full)
			fmt.Fprintf(&b, "-> %s size=%d mtime=%v", strings.ReplaceAll(l, s.root, ""), info.Size(), info.ModTime().UnixNano())
		default:
			f, err := s.fs.OpenFile(full, os.O_RDONLY, 0)
			if err != nil {
				return err.Error()
			}
			p := make([]byte, info.Size())
			n, _ := f.ReadAt(p, 0)
			size, _ := f.Size()
			fmt.Fprintf(&b, "%d %d %x", n, size, p)
			f.Close()
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestAgreesWithTheKernel(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range uint64(15) {
		dir := t.TempDir()
		real := &side{fs: vfs.OS, root: dir}
		twin := &side{fs: New(seed), root: dir}
		must(t, twin.fs.(*FS).MkdirAll(dir))
		ra, rb := rand.New(rand.NewPCG(seed, round)), rand.New(rand.NewPCG(seed, round))
		var log []string
		for n := range 400 {
			a, b := real.step(ra), twin.step(rb)
			log = append(log, a[:min(len(a), 60)])
			if a != b {
				t.Fatalf("round %d, step %d: kernel %.200s\ncrashfs %.200s\nbefore: %s", round, n, a, b, strings.Join(log[max(0, len(log)-15):], "; "))
			}
			if n%40 == 0 {
				if a, b := real.tree(dir), twin.tree(dir); a != b {
					t.Fatalf("round %d, step %d: trees differ\n%.2000s\n---\n%.2000s", round, n, a, b)
				}
			}
		}
		for _, s := range []*side{real, twin} {
			for _, f := range s.files {
				f.Close()
			}
		}
	}
}
