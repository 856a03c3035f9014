package crashdisk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
)

// blockSize is the unit in which images share memory.
const blockSize = 64 << 10

var zeros = make([]byte, blockSize)

// image is the content of a disk. Blocks of zeros take no memory, and copies share what neither
// of them has changed since: a test keeps many states of a few large disks.
type image struct {
	size   int64
	blocks [][]byte // nil: zeros
	own    []bool   // the block belongs to this image alone
}

// readImage takes everything that r has.
func readImage(r io.Reader) (*image, error) {
	m := new(image)
	for {
		b := make([]byte, blockSize)
		n, err := io.ReadFull(r, b)
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if bytes.Equal(b, zeros) {
			b = nil
		}
		m.size += int64(n)
		m.blocks, m.own = append(m.blocks, b), append(m.own, true)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
	}
}

// clone is a copy that costs nothing until one of both changes.
func (m *image) clone() *image {
	clear(m.own)
	return &image{size: m.size, blocks: slices.Clone(m.blocks), own: make([]bool, len(m.own))}
}

// parts calls f for the part of each block in [off, off+n).
func parts(off, n int64, f func(block int, from, to int64)) {
	for end := off + n; off < end; {
		from := off % blockSize
		to := min(from+end-off, blockSize)
		f(int(off/blockSize), from, to)
		off += to - from
	}
}

func (m *image) read(p []byte, off int64) {
	parts(off, int64(len(p)), func(block int, from, to int64) {
		b := m.blocks[block]
		if b == nil {
			b = zeros
		}
		p = p[copy(p, b[from:to]):]
	})
}

func (m *image) write(p []byte, off int64) {
	parts(off, int64(len(p)), func(block int, from, to int64) {
		p = p[copy(m.mutable(block)[from:to], p):]
	})
}

func (m *image) zero(off, n int64) {
	parts(off, n, func(block int, from, to int64) {
		switch {
		case to-from == blockSize:
			m.blocks[block] = nil
		case m.blocks[block] != nil:
			clear(m.mutable(block)[from:to])
		}
	})
}

// mutable is the memory of a block that no other image sees.
func (m *image) mutable(block int) []byte {
	if !m.own[block] || m.blocks[block] == nil {
		b := make([]byte, blockSize)
		copy(b, m.blocks[block])
		m.blocks[block], m.own[block] = b, true
	}
	return m.blocks[block]
}

// bytes is the whole content.
func (m *image) bytes() []byte {
	p := make([]byte, m.size)
	m.read(p, 0)
	return p
}

// writeFile makes a file whose zeros are holes.
func (m *image) writeFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	for i, b := range m.blocks {
		off := int64(i) * blockSize
		if b == nil || bytes.Equal(b, zeros) {
			continue
		}
		if _, err := f.WriteAt(b[:min(blockSize, m.size-off)], off); err != nil {
			return err
		}
	}
	return nil
}
