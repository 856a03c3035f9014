package logfile

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// inflater decompresses payloads. It keeps its buffers, so one belongs to one
// reader; what it returns is valid until the next call.
type inflater struct {
	out  []byte
	src  bytes.Reader
	zlib io.ReadCloser
}

// inflate returns exactly n bytes or an error.
func (z *inflater) inflate(alg Flags, stored []byte, n int) ([]byte, error) {
	if z.out == nil {
		z.out = make([]byte, MaxPayload)
	}
	out := z.out[:n]
	switch alg {
	case CompressLZ4:
		got, err := lz4.UncompressBlock(stored, out)
		if err != nil {
			return nil, err
		}
		if got != n {
			return nil, fmt.Errorf("block holds %d bytes", got)
		}
		return out, nil
	case CompressZlib:
		return out, z.inflateZlib(stored, out)
	case CompressLZO:
		return nil, errors.New("LZO is not supported by this reader")
	}
	return nil, fmt.Errorf("compression flags %v", alg)
}

func (z *inflater) inflateZlib(stored, out []byte) error {
	z.src.Reset(stored)
	var err error
	if z.zlib == nil {
		z.zlib, err = zlib.NewReader(&z.src)
	} else {
		err = z.zlib.(zlib.Resetter).Reset(&z.src, nil)
	}
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(z.zlib, out); err != nil {
		return err
	}
	// The end of the stream carries its own checksum.
	var more [1]byte
	if n, err := z.zlib.Read(more[:]); n != 0 || err != io.EOF {
		if err == nil || err == io.EOF {
			err = errors.New("stream holds more bytes")
		}
		return err
	}
	return nil
}

// padded is the size of the payload area of a compressed payload of n bytes.
func padded(n int) int { return (n + 7) &^ 7 }
