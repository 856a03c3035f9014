package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

func encodeFrame(f frame) []byte {
	b := make([]byte, frameHeader+len(f.payload))
	copy(b[frameHeader:], f.payload)
	putHeader(b, f)
	return b
}

func TestFrameGolden(t *testing.T) {
	got := encodeFrame(frame{flags: flagSealed, offset: 4096, durable: 4101, payload: []byte("hello")})
	want := []byte{
		0x4d, 0x46, 1, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0x08, 0xdc, 0x65, 0xf3,
		0, 16, 0, 0, 0, 0, 0, 0, 5, 16, 0, 0, 0, 0, 0, 0,
		'h', 'e', 'l', 'l', 'o',
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the wire format has changed:\n got % x\nwant % x", got, want)
	}
}

func TestFrameRoundTrip(t *testing.T) {
	list := []frame{
		{offset: 0, durable: 0},
		{flags: flagHeartbeat, offset: 7, durable: 7},
		{offset: 1, durable: 1 << 40, payload: []byte{1}},
		{offset: 1 << 50, durable: 1<<50 + MaxFrame, payload: bytes.Repeat([]byte{0xa5}, MaxFrame)},
		{flags: flagSealed, offset: 9, durable: 9},
	}
	var buf bytes.Buffer
	for _, f := range list {
		buf.Write(encodeFrame(f))
	}
	fr := &frameReader{r: &buf}
	for i, want := range list {
		got, err := fr.next()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if got.flags != want.flags || got.offset != want.offset || got.durable != want.durable || !bytes.Equal(got.payload, want.payload) {
			t.Errorf("frame %d came back different", i)
		}
	}
	if _, err := fr.next(); err != io.EOF {
		t.Errorf("end between frames: %v, want EOF", err)
	}
}

// Every single bit flip and every truncation is noticed, and told apart.
func TestFrameDamage(t *testing.T) {
	good := encodeFrame(frame{offset: 4096, durable: 8192, payload: []byte("some bytes of a log")})
	more := make([]byte, 2*MaxFrame) // follows, as on a live stream: a longer length must not hang
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		fr := &frameReader{r: io.MultiReader(bytes.NewReader(bad), bytes.NewReader(more))}
		if f, err := fr.next(); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v %+v, want ErrCorrupt", i, err, f)
		}
	}
	for n := 1; n < len(good); n++ {
		fr := &frameReader{r: bytes.NewReader(good[:n])}
		if _, err := fr.next(); !errors.Is(err, ErrTruncated) || errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrTruncated", n, err)
		}
	}
}

func TestFrameOversizeIsRefusedBeforeReading(t *testing.T) {
	b := encodeFrame(frame{})
	binary.LittleEndian.PutUint32(b[8:], MaxFrame+1)
	fr := &frameReader{r: bytes.NewReader(b)}
	if _, err := fr.next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("oversize frame: %v, want ErrCorrupt", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(encodeFrame(frame{offset: 1, durable: 2, payload: []byte("x")}))
	f.Add(encodeFrame(frame{flags: flagHeartbeat}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		fr := &frameReader{r: bytes.NewReader(in)}
		used := 0
		for {
			fm, err := fr.next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTruncated) {
					t.Fatalf("unclassified error %v", err)
				}
				return
			}
			again := encodeFrame(fm)
			if !bytes.Equal(again, in[used:used+len(again)]) {
				t.Fatalf("accepted a frame that encodes differently")
			}
			used += len(again)
		}
	})
}
