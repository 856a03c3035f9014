package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"

	"github.com/pierrec/lz4/v4"
)

// text is content that compresses well and does not repeat at once.
func text(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = append(b, "record number "+strconv.Itoa(i*i)+" of the database; "...)
	}
	return b[:n]
}

func newPacker() *packer { return &packer{off: new(atomic.Bool), link: 1e6} }

func packed(t testing.TB, raw []byte) []byte {
	t.Helper()
	dst := make([]byte, len(raw))
	n := packBlock(dst, raw)
	if n == 0 {
		t.Fatalf("%d bytes do not shrink", len(raw))
	}
	return dst[:n]
}

func TestPackRoundTrip(t *testing.T) {
	for _, n := range []int{minPack, 4096, 4097, 5 * packSample, MaxFrame} {
		raw := text(n)
		buf, got, err := unpack(packed(t, raw))
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%d bytes came back as %d, %v", n, len(got), err)
			continue
		}
		putBuffer(buf)
	}
}

// reseal makes a payload whose outer checksums are right, so that only unpack can find the fault.
func reseal(size int, sum uint32, block []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(size))
	return append(binary.LittleEndian.AppendUint32(b, sum), block...)
}

func TestUnpackRefuses(t *testing.T) {
	raw := text(64 << 10)
	good := packed(t, raw)
	sum := crc32.Checksum(raw, castagnoli)
	zeros := make([]byte, MaxFrame)
	bomb := make([]byte, lz4.CompressBlockBound(4*MaxFrame))
	n, err := lz4.CompressBlock(make([]byte, 4*MaxFrame), bomb, nil)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	bomb = bomb[:n]
	for name, p := range map[string][]byte{
		"nothing":               nil,
		"no block":              good[:packHeader],
		"cut":                   good[:len(good)-1],
		"one byte more":         append(bytes.Clone(good), 0),
		"longer than said":      reseal(len(raw)-1, sum, good[packHeader:]),
		"shorter than said":     reseal(len(raw)+1, sum, good[packHeader:]),
		"not shorter":           reseal(len(good), sum, good[packHeader:]),
		"other content":         reseal(len(raw), sum^1, good[packHeader:]),
		"too large":             reseal(MaxFrame+1, sum, good[packHeader:]),
		"bomb that says it":     reseal(4*MaxFrame, 0, bomb),
		"bomb that denies it":   reseal(MaxFrame, crc32.Checksum(zeros, castagnoli), bomb),
		"bomb of 4 GiB":         reseal(1<<32-1, 0, bomb),
		"negative":              reseal(-1, 0, bomb),
		"offset before content": reseal(100, 0, []byte{0x14, 'a', 0xff, 0xff, 0, 0, 0}),
	} {
		if _, got, err := unpack(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %d bytes, %v, want ErrCorrupt", name, len(got), err)
		}
	}
}

// Every bit flip in a compressed frame is noticed.
func TestPackedFrameDamage(t *testing.T) {
	good := encodeFrame(frame{flags: flagCompressed, offset: 4096, durable: 8192, payload: packed(t, text(1000))})
	more := make([]byte, 2*MaxFrame) // follows, as on a live stream
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		fr := &frameReader{r: io.MultiReader(bytes.NewReader(bad), bytes.NewReader(more)), packed: true}
		if f, err := fr.next(); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v %+v, want ErrCorrupt", i, err, f)
		}
	}
	if _, err := (&frameReader{r: bytes.NewReader(good)}).next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("compressed frame that nobody asked for: %v, want ErrCorrupt", err)
	}
	for _, flags := range []uint32{flagHeartbeat, flagError} {
		b := encodeFrame(frame{flags: flagCompressed | flags, payload: packed(t, text(1000))})
		if _, err := (&frameReader{r: bytes.NewReader(b), packed: true}).next(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("compressed frame with flags %#x: %v, want ErrCorrupt", flags, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(packed(f, text(1000)))
	f.Add(packed(f, make([]byte, MaxFrame)))
	f.Add(reseal(100, 0, []byte{0x14, 'a', 0xff, 0xff, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, in []byte) {
		buf, raw, err := unpack(in)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || raw != nil {
				t.Fatalf("%v with %d bytes", err, len(raw))
			}
			return
		}
		if len(raw) > MaxFrame || len(raw) <= len(in) || crc32.Checksum(raw, castagnoli) != binary.LittleEndian.Uint32(in[4:]) {
			t.Fatalf("accepted %d bytes from %d", len(raw), len(in))
		}
		putBuffer(buf)
	})
}

func TestPackerDecides(t *testing.T) {
	count := func(pk *packer, raw []byte, frames int) (tries, used int) {
		dst := make([]byte, len(raw))
		for range frames {
			if pk.worthwhile(len(raw)) {
				tries++
				if pk.pack(dst, raw) > 0 {
					used++
				}
			}
		}
		return
	}
	const frames = 1000
	if _, used := count(newPacker(), text(128<<10), frames); used != frames {
		t.Errorf("text on a slow line: %d of %d frames are compressed", used, frames)
	}
	if tries, used := count(newPacker(), randomBytes(3, 128<<10), frames); used != 0 || tries > 30 {
		t.Errorf("noise: %d tries in %d frames, %d compressed", tries, frames, used)
	}
	for name, pk := range map[string]*packer{
		"fast line":            {off: new(atomic.Bool), link: 1e10},
		"line never busy":      {off: new(atomic.Bool)},
		"compressor is slower": {off: new(atomic.Bool), link: 1e6, speed: 1e6},
	} {
		if tries, _ := count(pk, text(128<<10), frames); tries != 0 {
			t.Errorf("%s: %d tries", name, tries)
		}
	}
	off := newPacker()
	off.off.Store(true)
	if tries, _ := count(off, text(128<<10), frames); tries != 0 {
		t.Errorf("forbidden: %d tries", tries)
	}
	if tries, _ := count(newPacker(), text(minPack-1), frames); tries != 0 {
		t.Errorf("tiny frames: %d tries", tries)
	}
	// After noise, text is found again.
	pk := newPacker()
	count(pk, randomBytes(3, 128<<10), frames)
	if _, used := count(pk, text(128<<10), frames); used < frames-2*maxUnpacked {
		t.Errorf("text behind noise: only %d of %d frames are compressed", used, frames)
	}
	// TCP's word counts where the network does not let itself be felt.
	pk = &packer{off: new(atomic.Bool), link: 1e10, tcp: 1e6}
	if _, used := count(pk, text(4096), 10); used != 10 {
		t.Errorf("slow line that is not busy: %d of 10 frames are compressed", used)
	}
}

// What noise costs beside the bytes themselves: one sample per maxUnpacked frames.
func BenchmarkPackNoise(b *testing.B) {
	raw, dst := randomBytes(5, MaxFrame), make([]byte, MaxFrame)
	pk := newPacker()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if pk.worthwhile(len(raw)) && pk.pack(dst, raw) > 0 {
			b.Fatal("noise was compressed")
		}
		crc32.Checksum(raw, castagnoli) // what every frame costs anyway
	}
}

func BenchmarkPackText(b *testing.B) {
	raw, dst := text(MaxFrame), make([]byte, MaxFrame)
	b.SetBytes(int64(len(raw)))
	n := 0
	for b.Loop() {
		n = packBlock(dst, raw)
	}
	b.ReportMetric(float64(len(raw))/float64(n), "ratio")
}

// shipSlow moves a whole log over a slow line and says how long it took.
func shipSlow(t *testing.T, content []byte, client, server bool) (took time.Duration, s *Server) {
	cfg := testConfig()
	cfg.NoCompression = !server
	w := newWorld(t, cfg)
	w.peer.SetCompression(client)
	w.net.SetAll(faultnet.Link{Rate: 1 << 20})
	l := w.h.log(content)
	l.sealed = true
	begin := time.Now()
	got := &copyOf{t: t, real: l}
	if err := w.peer.Log(t.Context(), "r", testLog, 0, got.deliver); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.data, content) || !got.sealed || got.beyond {
		t.Fatalf("got %d bytes, sealed=%v", len(got.data), got.sealed)
	}
	return time.Since(begin), w.server
}

// Old and new nodes talk to each other: a side that does not know of compression gets and sends frames as they
// are. On a slow line text arrives much sooner, noise not later.
func TestLogCompression(t *testing.T) {
	const size = 2 << 20
	run := func(content []byte, client, server bool) (took time.Duration, compressed int64, sent Sent) {
		synctest.Test(t, func(t *testing.T) {
			var s *Server
			took, s = shipSlow(t, content, client, server)
			compressed, sent = s.Compressed(), s.Sent(ClassLog)
		})
		return
	}
	plain, n, _ := run(text(size), false, true)
	if n != 0 {
		t.Errorf("a client that did not ask got %d compressed frames", n)
	}
	if _, n, _ := run(text(size), true, false); n != 0 {
		t.Errorf("a server that may not compress did so %d times", n)
	}
	packed, n, sent := run(text(size), true, true)
	if n == 0 || packed > plain*2/3 || sent.Content != size || sent.Wire > size*2/3 {
		t.Errorf("text: %d compressed frames, %v instead of %v, %+v", n, packed, plain, sent)
	}
	noise, n, sent := run(randomBytes(9, size), true, true)
	if n != 0 || noise > plain*101/100 {
		t.Errorf("noise: %d compressed frames, %v instead of %v, %+v", n, noise, plain, sent)
	}
	t.Logf("2 MiB at 1 MiB/s: text %v, compressed %v, noise %v", plain, packed, noise)
}

func TestRangeCompression(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, testConfig())
		w.net.SetAll(faultnet.Link{Rate: 1 << 20})
		w.h.device = append(text(4<<20), randomBytes(2, 1<<20)...)
		w.h.end = Position{Log: testLog, Offset: 77}
		got := make([]byte, len(w.h.device))
		for range 2 {
			if pos, err := w.peer.ReadRange(t.Context(), "r", 0, got); err != nil || pos != w.h.end {
				t.Fatal(pos, err)
			}
			if !bytes.Equal(got, w.h.device) {
				t.Fatal("the range came back different")
			}
			clear(got)
		}
		if sent := w.server.Sent(ClassSync); w.server.Compressed() == 0 || sent.Wire > sent.Content*3/4 || sent.Content != int64(2*len(got)) {
			t.Errorf("%d frames compressed, %+v", w.server.Compressed(), sent)
		}
	})
}

func TestAcceptIsAskedFor(t *testing.T) {
	p := NewPeer(testIdentity(t, testSecret(1), "hostb"), "hosta", "127.0.0.1:1", Config{Log: discard()})
	defer p.Close()
	q := url.Values{}
	if !p.accept(q) || q.Get("accept") != acceptLZ4 {
		t.Errorf("query %v", q)
	}
	p.SetCompression(false)
	if q = (url.Values{}); p.accept(q) || len(q) > 0 {
		t.Errorf("query of a node that may not: %v", q)
	}
}
