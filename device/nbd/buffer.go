package nbd

import (
	"sync"

	"mars/internal/nbdproto"
)

// replyRoom is what a reply needs beside its data, generously.
const replyRoom = 4096

// bufferClasses are the capacities that are pooled. The last holds the largest
// request with its header.
var bufferClasses = [...]int{
	4 << 10,
	64<<10 + replyRoom,
	256<<10 + replyRoom,
	1<<20 + replyRoom,
	4<<20 + replyRoom,
	nbdproto.MaxPayload + replyRoom,
}

var bufferPools [len(bufferClasses)]sync.Pool

// buffer is pooled memory of a size class. Bytes [0, n) are in use.
type buffer struct {
	b     []byte
	n     int
	class int
}

// getBuffer returns an empty buffer of at least size bytes. size is at most
// the largest class.
func getBuffer(size int) *buffer {
	class := 0
	for bufferClasses[class] < size {
		class++
	}
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		b.n = 0
		return b
	}
	return &buffer{b: make([]byte, bufferClasses[class]), class: class}
}

// free gives the memory back. The caller must be its only user.
func (b *buffer) free() { bufferPools[b.class].Put(b) }

// take reserves the next n bytes, or returns nil if they do not fit.
func (b *buffer) take(n int) []byte {
	if len(b.b)-b.n < n {
		return nil
	}
	p := b.b[b.n : b.n+n : b.n+n]
	b.n += n
	return p
}

func (b *buffer) bytes() []byte { return b.b[:b.n] }
