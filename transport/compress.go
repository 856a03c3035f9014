package transport

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pierrec/lz4/v4"
)

// acceptLZ4 is what a client says in the query parameter "accept" of a log or range request if it
// takes compressed frames. Servers that know no compression ignore it, and clients that know none do not say it.
const acceptLZ4 = "lz4"

// The payload of a compressed frame is an LZ4 block behind
//
//	0  u32  length of the content, 1 to MaxFrame
//	4  u32  CRC-32C of the content
const packHeader = 8

// Compression has to pay: in bytes and in time.
const (
	minPack    = 512      // less is one network packet with or without
	packSample = 16 << 10 // tried first, out of the middle of what is longer than four of them
	// A frame has to shrink by an eighth. After one that does not, the next one goes out as it is, after two
	// in a row the next 2, 4, ... up to maxUnpacked, so that data that cannot be compressed costs nearly nothing.
	maxUnpacked = 64
	// The network has to be slower than half of what the compressor takes in.
	packMargin = 2
	// packSpeed is what the compressor is taken to do until it has been measured.
	packSpeed = 300e6
	// speedSample is the least amount of data of which a time says something.
	speedSample = minPiece
	linkAge     = 250 * time.Millisecond // TCP is asked this often
)

// packer decides whether frames of one class to one peer are compressed.
type packer struct {
	off *atomic.Bool // the administrator's word

	mu          sync.Mutex
	wait, pause int     // frames that go out as they are before the next try
	speed       float64 // bytes per second that the compressor takes in; 0 = not known
	link        float64 // bytes per second that went out
	tcp         float64 // bytes per second that TCP has delivered
	asked       time.Time
}

// worthwhile says whether a frame with n bytes of content shall be tried.
func (pk *packer) worthwhile(n int) bool {
	if n < minPack || pk.off.Load() {
		return false
	}
	pk.mu.Lock()
	defer pk.mu.Unlock()
	link := pk.link
	if pk.tcp > 0 && (link == 0 || pk.tcp < link) {
		link = pk.tcp
	}
	// Nothing is known of the network as long as it has not been busy: then nobody waits for it.
	speed := pk.speed
	if speed == 0 {
		speed = packSpeed
	}
	if link == 0 || link*packMargin > speed {
		return false
	}
	if pk.wait > 0 {
		pk.wait--
		return false
	}
	return true
}

// average moves old a quarter of the way to v.
func average(old, v float64) float64 {
	if old == 0 {
		return v
	}
	return old + (v-old)/4
}

// sent notes how long the network took for n bytes, and asks TCP now and then.
func (pk *packer) sent(n int, took time.Duration, g *guardConn) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if n >= speedSample && took > 0 {
		pk.link = average(pk.link, float64(n)/took.Seconds())
	}
	if now := time.Now(); now.Sub(pk.asked) >= linkAge {
		pk.asked = now
		pk.tcp = deliveryRate(g.Conn)
	}
}

func (pk *packer) tried(n int, took time.Duration, ok bool) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if n >= speedSample && took > 0 {
		pk.speed = average(pk.speed, float64(n)/took.Seconds())
	}
	if ok {
		pk.pause = 0
		return
	}
	pk.pause = min(max(2*pk.pause, 1), maxUnpacked)
	pk.wait = pk.pause
}

// pack compresses raw into dst, which is as long as raw. It returns the length of the payload, 0 if
// raw shall go out as it is.
func (pk *packer) pack(dst, raw []byte) int {
	begin, n := time.Now(), len(raw)
	if n > 4*packSample {
		at := (n - packSample) / 2
		if packBlock(dst, raw[at:at+packSample]) == 0 {
			pk.tried(packSample, time.Since(begin), false)
			return 0
		}
	}
	m := packBlock(dst, raw)
	pk.tried(n, time.Since(begin), m > 0)
	return m
}

// packBlock makes the payload of a compressed frame, or 0 if it would not be shorter than seven eighths.
func packBlock(dst, raw []byte) int {
	room := len(raw) - len(raw)/8
	n, err := lz4.CompressBlock(raw, dst[packHeader:room], nil)
	if err != nil || n == 0 { // the library's way to say that there is not enough room
		return 0
	}
	binary.LittleEndian.PutUint32(dst[0:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(dst[4:], crc32.Checksum(raw, castagnoli))
	return packHeader + n
}

// unpack returns the content of a compressed frame in a buffer for putBuffer. No payload makes it
// take more memory than a frame without compression may.
func unpack(payload []byte) (buf *[]byte, raw []byte, err error) {
	if len(payload) <= packHeader {
		return nil, nil, fmt.Errorf("%w: compressed frame of %d bytes", ErrCorrupt, len(payload))
	}
	size := binary.LittleEndian.Uint32(payload)
	if size > MaxFrame || int(size) <= len(payload) {
		return nil, nil, fmt.Errorf("%w: %d bytes of compressed frame claim to be %d, at most %d are allowed", ErrCorrupt, len(payload), size, MaxFrame)
	}
	buf = getBuffer(int(size))
	raw = (*buf)[:size:size]
	n, err := lz4.UncompressBlock(payload[packHeader:], raw)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: compressed frame: %v", ErrCorrupt, err)
	case n != int(size):
		err = fmt.Errorf("%w: compressed frame has %d bytes, says %d", ErrCorrupt, n, size)
	case crc32.Checksum(raw, castagnoli) != binary.LittleEndian.Uint32(payload[4:]):
		err = fmt.Errorf("%w: content of a compressed frame does not have its checksum", ErrCorrupt)
	}
	if err != nil {
		putBuffer(buf)
		return nil, nil, err
	}
	return buf, raw, nil
}
