package nbd

import (
	"encoding/binary"
	"unicode/utf8"

	"mars/internal/nbdproto"
)

// maxErrorText bounds the text of an error reply.
const maxErrorText = 1024

// errorText cuts a message to what is sent, not inside a character.
func errorText(s string) string {
	if len(s) <= maxErrorText {
		return s
	}
	s = s[:maxErrorText]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s[:max(len(s)-1, 0)]
}

// errorReplySize is enough for any form of error reply with this text.
func errorReplySize(text string) int { return nbdproto.ChunkHeaderSize + 6 + len(text) }

func putOK(b *buffer, handle uint64) {
	nbdproto.PutSimpleReply(b.take(nbdproto.SimpleReplySize), 0, handle)
}

// putError composes an error reply: with text if the client understands structured replies.
func putError(b *buffer, structured bool, handle uint64, errno uint32, text string) {
	if !structured {
		nbdproto.PutSimpleReply(b.take(nbdproto.SimpleReplySize), errno, handle)
		return
	}
	p := b.take(errorReplySize(text))
	nbdproto.PutChunkHeader(p, nbdproto.ChunkHeader{
		Magic: nbdproto.MagicStructuredReply, Flags: nbdproto.ChunkDone, Type: nbdproto.ChunkError,
		Handle: handle, Length: uint32(6 + len(text)),
	})
	p = p[nbdproto.ChunkHeaderSize:]
	binary.BigEndian.PutUint32(p, errno)
	binary.BigEndian.PutUint16(p[4:], uint16(len(text)))
	copy(p[6:], text)
}

// dataReplySize is the length of a successful reply to a read.
func dataReplySize(structured bool, length int) int {
	switch {
	case !structured:
		return nbdproto.SimpleReplySize + length
	case length == 0:
		return nbdproto.ChunkHeaderSize
	}
	return nbdproto.ChunkHeaderSize + nbdproto.ChunkOffsetSize + length
}

// putData composes the reply to a read and returns the place of its data, to be filled
// in before anything is sent. A read is never fragmented.
func putData(b *buffer, structured bool, r request) []byte {
	n := int(r.length)
	p := b.take(dataReplySize(structured, n))
	if !structured {
		nbdproto.PutSimpleReply(p, 0, r.handle)
		return p[nbdproto.SimpleReplySize:]
	}
	h := nbdproto.ChunkHeader{Magic: nbdproto.MagicStructuredReply, Flags: nbdproto.ChunkDone, Handle: r.handle}
	if n > 0 { // a data chunk must not be empty
		h.Type, h.Length = nbdproto.ChunkOffsetData, uint32(nbdproto.ChunkOffsetSize+n)
	}
	nbdproto.PutChunkHeader(p, h)
	if n == 0 {
		return nil
	}
	binary.BigEndian.PutUint64(p[nbdproto.ChunkHeaderSize:], r.off)
	return p[nbdproto.ChunkHeaderSize+nbdproto.ChunkOffsetSize:]
}

// replies are composed by the connection's goroutine and not yet handed to the outbox.
type replies struct {
	list  []*buffer
	bytes int // in full buffers of list, the last excepted
	mark  int // start of the latest reply in the last buffer
}

// flushAt is how many bytes of replies the connection's goroutine collects before
// it writes.
const flushAt = 1 << 20

// space makes room for a reply of n bytes at the end.
func (c *conn) space(n int) *buffer {
	q := &c.replies
	if k := len(q.list); k > 0 {
		b := q.list[k-1]
		if len(b.b)-b.n >= n {
			q.mark = b.n
			return b
		}
		q.bytes += b.n
		if q.bytes >= flushAt {
			c.flushReplies()
			c.out.waitBytes()
		}
	}
	size := n
	if len(q.list) > 0 || len(c.batch.reads) > 1 {
		size = max(n, 64<<10) // more will come
	}
	b := getBuffer(size)
	q.list = append(q.list, b)
	q.mark = 0
	return b
}

// undo takes back the latest reply.
func (q *replies) undo() { q.list[len(q.list)-1].n = q.mark }

func (c *conn) replyOK(handle uint64) { putOK(c.space(nbdproto.SimpleReplySize), handle) }

func (c *conn) replyError(handle uint64, errno uint32, text string) {
	text = errorText(text)
	putError(c.space(errorReplySize(text)), c.structured, handle, errno, text)
}

// replyData composes the reply to a read and returns the place of its data.
func (c *conn) replyData(r request) []byte {
	return putData(c.space(dataReplySize(c.structured, int(r.length))), c.structured, r)
}

// flushReplies hands everything composed to the outbox.
func (c *conn) flushReplies() {
	q := &c.replies
	k := len(q.list)
	if k > 0 && q.list[k-1].n == 0 { // its only reply was undone
		k--
		q.list[k].free()
	}
	if k > 0 {
		c.out.send(q.list[:k])
	}
	clear(q.list)
	q.list, q.bytes, q.mark = q.list[:0], 0, 0
}
