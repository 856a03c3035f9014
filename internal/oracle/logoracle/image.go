package logoracle

import (
	"errors"
	"fmt"
	"io"
)

const pageSize = 64 << 10

// Image is a device in memory over a base that is only read. Not safe for
// concurrent writing.
type Image struct {
	base  io.ReaderAt // nil: zeros
	size  int64
	pages map[int64]*[pageSize]byte
}

// NewImage returns an image with the content of base, which must not change as
// long as the image is in use and have at least size bytes; nil is all zeros.
func NewImage(base io.ReaderAt, size int64) *Image {
	return &Image{base: base, size: size, pages: map[int64]*[pageSize]byte{}}
}

// Size returns the size of the device.
func (m *Image) Size() int64 { return m.size }

// ReadAt implements io.ReaderAt.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := int(min(int64(len(p)), max(0, m.size-off)))
	for done := 0; done < n; {
		at := off + int64(done)
		k := min(n-done, int(pageSize-at%pageSize))
		if pg := m.pages[at/pageSize]; pg != nil {
			copy(p[done:done+k], pg[at%pageSize:])
		} else if err := m.readBase(p[done:done+k], at); err != nil {
			return done, err
		}
		done += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Image) readBase(p []byte, off int64) error {
	if m.base == nil {
		clear(p)
		return nil
	}
	if n, err := m.base.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("base image at %d: %w", off+int64(n), err)
	}
	return nil
}

// WriteAt implements io.WriterAt; it refuses to write beyond the end.
func (m *Image) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.change(off, int64(len(p)), func(dst []byte, done int64) { copy(dst, p[done:]) })
}

// Zero fills a range with zeros.
func (m *Image) Zero(off, length int64) error {
	return m.change(off, length, func(dst []byte, _ int64) { clear(dst) })
}

func (m *Image) change(off, length int64, f func(dst []byte, done int64)) error {
	if off < 0 || length < 0 || off > m.size-length {
		return fmt.Errorf("[%d+%d] is outside of an image of %d bytes", off, length, m.size)
	}
	for done := int64(0); done < length; {
		at := off + done
		k := min(length-done, pageSize-at%pageSize)
		pg := m.pages[at/pageSize]
		if pg == nil {
			pg = new([pageSize]byte)
			start := at / pageSize * pageSize
			if k < pageSize {
				if err := m.readBase(pg[:min(pageSize, m.size-start)], start); err != nil {
					return err
				}
			}
			m.pages[at/pageSize] = pg
		}
		f(pg[at%pageSize:at%pageSize+k], done)
		done += k
	}
	return nil
}
