package logoracle

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// Original accepts what the original itself has written, and refuses what its
// replay would skip, split wrongly or fail on.
func TestOriginal(t *testing.T) {
	kernel, err := os.ReadFile("testdata/kernel-first.log")
	if err != nil {
		t.Fatal(err)
	}
	one := func(r rec) []byte { r.seq = 1; return r.encode(t) }
	page := pattern(4096, 'p')
	for _, tt := range []struct {
		name, reason string
		log          []byte
	}{
		{"log of the original", "", kernel},
		{"page", "", one(rec{code: 1, pos: 65536 - 4096, data: page})},
		{"sealed page", "", one(rec{code: 1, pos: 4096, data: page, sealed: true})},
		{"sector of another digest", "", one(rec{code: 1, data: page[:512], digest: "sha1"})},
		{"zeros, compressed", "", one(rec{code: 1, pos: 1536, data: make([]byte, 32256), compress: "zlib"})},
		{"discard", "code 0x4d01", rangeRec(CodeDiscard, 0, 4096, 1).encode(t)},
		{"zeroes", "code 0x4d02", rangeRec(CodeZeroes, 0, 4096, 1).encode(t)},
		{"old data", "code 0x2", one(rec{code: 2, data: page})},
		{"large", "4608 bytes in one record", one(rec{code: 1, data: pattern(4608, 'x')})},
		{"part of a sector", "not whole sectors", one(rec{code: 1, data: page[:100]})},
		{"between sectors", "not whole sectors", one(rec{code: 1, pos: 100, data: page})},
		{"border", "border of 64 KiB", one(rec{code: 1, pos: 65536 - 512, data: page})},
		{"no sequence", "no sequence number", rec{code: 1, data: page}.encode(t)},
	} {
		log := bytes.Clone(tt.log)
		_, err := parse(log, Options{Original: true})
		switch {
		case tt.reason == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.reason != "" && (err == nil || !strings.Contains(err.Error(), tt.reason)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.reason)
		}
		if tt.reason != "" {
			if _, err := parse(log, Options{}); err != nil {
				t.Errorf("%s: not even sound: %v", tt.name, err)
			}
		}
	}
}
