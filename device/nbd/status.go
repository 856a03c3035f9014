package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"mars/internal/nbdproto"
)

// allocationID is the number of base:allocation in replies.
const allocationID = 1

// parseMeta decodes the data of LIST_META_CONTEXT and SET_META_CONTEXT: the name of an export and queries.
func parseMeta(data []byte) (name string, queries []string, err error) {
	text := func() (string, error) {
		if len(data) < 4 {
			return "", fmt.Errorf("length of a string is cut off: %d bytes left", len(data))
		}
		n := binary.BigEndian.Uint32(data)
		data = data[4:]
		if n > nbdproto.MaxName || int(n) > len(data) {
			return "", fmt.Errorf("string of %d bytes in %d bytes of option data, the limit is %d", n, len(data), nbdproto.MaxName)
		}
		s := string(data[:n])
		data = data[n:]
		return s, nil
	}
	if name, err = text(); err != nil {
		return "", nil, err
	}
	if len(data) < 4 {
		return "", nil, fmt.Errorf("number of queries is cut off: %d bytes left", len(data))
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for range count { // ends when the data does
		q, err := text()
		if err != nil {
			return "", nil, err
		}
		queries = append(queries, q)
	}
	if len(data) > 0 {
		return "", nil, fmt.Errorf("%d bytes behind the last of %d queries", len(data), count)
	}
	return name, queries, nil
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(id uint32, data []byte) {
	set := id == nbdproto.OptSetMetaContext
	if set {
		h.status = nil // whatever comes of it, it replaces the choice before
	}
	if !h.structured {
		h.refuse(id, nbdproto.RepErrInvalid, "meta contexts need structured replies: send STRUCTURED_REPLY first")
		return
	}
	name, queries, err := parseMeta(data)
	if err != nil {
		h.refuse(id, nbdproto.RepErrInvalid, err.Error())
		return
	}
	exp, err := h.dir.find(name)
	if err != nil {
		code := nbdproto.RepErrUnknown
		if errors.Is(err, ErrServerClosed) {
			code = nbdproto.RepErrShutdown
		}
		h.refuse(id, code, err.Error())
		return
	}
	wanted := !set && len(queries) == 0 // that lists everything
	for _, q := range queries {
		namespace, leaf, _ := strings.Cut(q, ":")
		wanted = wanted || q == nbdproto.ContextAllocation || !set && namespace == "base" && leaf == "" && q != namespace
	}
	if wanted && exp.sparse != nil {
		var b []byte
		if set {
			h.status = exp
			b = binary.BigEndian.AppendUint32(b, allocationID)
		} else {
			b = binary.BigEndian.AppendUint32(b, 0)
		}
		h.reply(id, nbdproto.RepMeta, append(b, nbdproto.ContextAllocation...))
	}
	h.reply(id, nbdproto.RepAck, nil)
}

const (
	// maxStatus is the number of extents in one reply, so that it fits into what is reserved
	// for it. A client asks again for what is behind.
	maxStatus = (replyRoom - nbdproto.ChunkHeaderSize - nbdproto.ContextIDSize) / nbdproto.DescriptorSize
	// maxLookups bounds the calls of the backend for one reply.
	maxLookups = 8
)

// serveStatus runs in a worker.
func (c *conn) serveStatus(r request) {
	limit := maxStatus
	if r.flags&nbdproto.CmdFlagReqOne != 0 {
		limit = 1
	}
	b := getBuffer(replyRoom)
	list, err := c.extents(r, limit)
	if err != nil {
		putError(b, c.structured, r.handle, Errno(err), errorText(err.Error()))
	} else {
		putStatus(b, r.handle, list)
	}
	c.exp.inflight.Add(-1)
	c.out.post(b, 1, replyRoom)
}

// extents asks the backend for the state of a range, and joins neighbours in the same state.
func (c *conn) extents(r request, limit int) ([]Extent, error) {
	off, end := int64(r.off), int64(r.off)+int64(r.length)
	var list, part []Extent
	for range maxLookups {
		var err error
		part, err = c.exp.sparse.Extents(part[:0], off, end, maxStatus)
		if err != nil {
			return nil, err
		}
		for _, x := range part {
			if x.Len <= 0 || x.Len > end-off {
				return nil, fmt.Errorf("block status at %d: the device answers with an extent of %d bytes of %d", off, x.Len, end-off)
			}
			k := len(list)
			if k > 0 && list[k-1].State == x.State {
				list[k-1].Len += x.Len
			} else if k == limit {
				return list, nil
			} else {
				list = append(list, x)
			}
			off += x.Len
		}
		if off == end || len(part) == 0 {
			break
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("block status at %d: the device does not answer", r.off)
	}
	return list, nil
}

// putStatus composes the reply to a block status. Lengths fit: they add up to that of the request.
func putStatus(b *buffer, handle uint64, list []Extent) {
	n := nbdproto.ContextIDSize + len(list)*nbdproto.DescriptorSize
	p := b.take(nbdproto.ChunkHeaderSize + n)
	nbdproto.PutChunkHeader(p, nbdproto.ChunkHeader{
		Magic: nbdproto.MagicStructuredReply, Flags: nbdproto.ChunkDone, Type: nbdproto.ChunkBlockStatus,
		Handle: handle, Length: uint32(n),
	})
	p = p[nbdproto.ChunkHeaderSize:]
	binary.BigEndian.PutUint32(p, allocationID)
	p = p[nbdproto.ContextIDSize:]
	for _, x := range list {
		binary.BigEndian.PutUint32(p, uint32(x.Len))
		binary.BigEndian.PutUint32(p[4:], uint32(x.State))
		p = p[nbdproto.DescriptorSize:]
	}
}

// servePrefetch runs in a worker.
func (c *conn) servePrefetch(r request) {
	b := getBuffer(replyRoom)
	if err := c.exp.sparse.Prefetch(int64(r.off), int64(r.length)); err != nil {
		putError(b, c.structured, r.handle, Errno(err), errorText(err.Error()))
	} else {
		putOK(b, r.handle)
	}
	c.exp.inflight.Add(-1)
	c.out.post(b, 1, replyRoom)
}
