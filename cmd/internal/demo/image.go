package demo

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
)

// imageGz is a real ext4 filesystem; assets/README.md tells how it was made.
//
//go:embed assets/ext4.img.gz
var imageGz []byte

// imageSize is what imageGz unpacks to, in bytes.
const imageSize = 16 << 20

// image unpacks the filesystem.
func image() ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(imageGz))
	if err != nil {
		return nil, fmt.Errorf("unpack the filesystem image: %w", err)
	}
	img := make([]byte, imageSize)
	if _, err := io.ReadFull(z, img); err != nil {
		return nil, fmt.Errorf("unpack the filesystem image: %w", err)
	}
	if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("the filesystem image is not %d bytes long", imageSize)
	}
	return img, nil
}
