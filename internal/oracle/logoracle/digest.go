package logoracle

import (
	"bytes"
	"compress/zlib"
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/pierrec/lz4/v4"
)

// Flags of a record, upper half of the original's flag word (reference 1.4).
const (
	flagMD5    = 0x0002
	flagCRC32C = 0x0004
	flagCRC32  = 0x0008
	flagSHA1   = 0x0010
	flagLZO    = 0x0100
	flagLZ4    = 0x0200
	flagZLIB   = 0x0400
)

// checkDigest returns the name of the digest that applies ("" for none) and
// whether it fits. The 16-byte field holds the digest of 32 bytes, folded; MD5_OLD
// is the word alone.
func checkDigest(flags uint16, data []byte, word uint32, field []byte) (string, bool) {
	var full [32]byte
	name := ""
	switch {
	case flags&flagCRC32C != 0:
		name = "crc32c"
		eighths(data, full[:], func(p []byte) uint32 { return crc32.Checksum(p, castagnoli) })
	case flags&flagCRC32 != 0:
		name = "crc32"
		eighths(data, full[:], linuxCRC32)
	case flags&flagMD5 != 0:
		if len(data)%2 != 0 {
			return "md5", false
		}
		name = "md5"
		a, b := md5.Sum(data[:len(data)/2]), md5.Sum(data[len(data)/2:])
		copy(full[:], a[:])
		copy(full[16:], b[:])
	case flags&flagSHA1 != 0:
		name = "sha1"
		s := sha1.Sum(data)
		copy(full[:], s[:])
	case word != 0:
		s := md5.Sum(data)
		return "md5-old", binary.LittleEndian.Uint32(s[:]) == word
	default:
		return "", true
	}
	for i := range 16 {
		full[i] ^= full[16+i]
	}
	return name, bytes.Equal(full[:16], field)
}

// eighths computes eight sums over eight slices; the last takes the rest.
func eighths(data, out []byte, sum func([]byte) uint32) {
	n := len(data) / 8
	for i := range 8 {
		p := data[i*n : (i+1)*n]
		if i == 7 {
			p = data[7*n:]
		}
		binary.LittleEndian.PutUint32(out[4*i:], sum(p))
	}
}

// linuxCRC32 is "crc32" of the kernel's crypto API: seed 0, no final inversion.
func linuxCRC32(p []byte) uint32 {
	// Update inverts before and after; undo both.
	return ^crc32.Update(^uint32(0), crc32.IEEETable, p)
}

func decompress(flags uint16, p []byte, original int) ([]byte, error) {
	out := make([]byte, original)
	switch {
	case flags&flagLZ4 != 0:
		n, err := lz4.UncompressBlock(p, out)
		if err == nil && n != original {
			err = fmt.Errorf("%d bytes instead of %d", n, original)
		}
		return out, err
	case flags&flagZLIB != 0:
		z, err := zlib.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		if _, err := io.ReadFull(z, out); err != nil {
			return nil, err
		}
		if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return nil, errors.New("more bytes than announced")
		}
		return out, nil
	case flags&flagLZO != 0:
		return nil, errors.New("LZO is not supported")
	}
	return nil, fmt.Errorf("compressed, but flags are %#04x", flags)
}
