package logfile

import "mars/internal/vfs"

// Bounds of what is allocated ahead of the end of a growing logfile, in bytes.
const (
	minAhead = 1 << 20
	maxAhead = 16 << 20
)

// ahead allocates space beyond the end of a growing file without changing its size, so
// that a sync need not write the file system's allocation maps each time. It is an
// optimisation: where it does not work, the file just grows.
type ahead struct {
	file vfs.Allocator // nil: not to be had, or it failed once
	end  int64         // space is allocated up to here
}

func newAhead(f vfs.File) ahead {
	a, _ := f.(vfs.Allocator)
	return ahead{file: a}
}

// reserve is called before a file of size bytes grows to end.
func (a *ahead) reserve(f vfs.File, size, end int64) {
	if a.file == nil || end <= a.end {
		return
	}
	n := min(max(end/4, minAhead), maxAhead)
	if err := a.file.Allocate(size, end-size+n); err != nil {
		a.file = nil
		f.Truncate(size) // a full file system may have given a part: others need it now
		return
	}
	a.end = end + n
}

// free gives back what lies beyond size.
func (a *ahead) free(f vfs.File, size int64) {
	if a.end > size {
		f.Truncate(size)
	}
	a.file = nil
}
