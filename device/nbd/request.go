package nbd

import (
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdproto"
)

// request is a decoded header, checked by limits.check.
type request struct {
	handle uint64
	off    uint64
	length uint32
	cmd    uint16
	flags  uint16
}

func (r request) fua() bool { return r.flags&nbdproto.CmdFlagFUA != 0 }

// payload is the number of bytes that follow the header on the wire. Only a
// WRITE has any, whatever its length field says: that is what keeps the stream
// in step behind commands that are refused.
func (r request) payload() int {
	if r.cmd == nbdproto.CmdWrite {
		return int(r.length)
	}
	return 0
}

// streamError means that the byte stream cannot be followed any further.
type streamError struct{ reason string }

func (e *streamError) Error() string { return e.reason }

// decodeRequest decodes a header of nbdproto.RequestSize bytes. An error means that
// nothing after it can be understood.
func decodeRequest(p []byte) (request, error) {
	h := nbdproto.Request(p)
	if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
		return request{}, &streamError{fmt.Sprintf("bad request magic %#08x, want %#08x: the peer does not speak NBD or the stream is out of step",
			h.RequestMagic, protocol.TRANSMISSION_MAGIC_REQUEST)}
	}
	r := request{handle: h.Handle, off: h.Offset, length: h.Length, cmd: h.Type, flags: h.CommandFlags}
	if r.payload() > nbdproto.MaxPayload {
		return request{}, &streamError{fmt.Sprintf("impossible request: WRITE of %d bytes at %d, the limit is %d", h.Length, h.Offset, nbdproto.MaxPayload)}
	}
	return r, nil
}

// refusal is the answer to a request that does not reach the backend.
type refusal struct {
	errno uint32
	text  string
}

// limits are what a request is checked against.
type limits struct {
	size       int64
	trans      uint16 // transmission flags of the export
	structured bool   // negotiated
	status     bool   // block status is negotiated
	slowZeroes bool   // the backend cannot promise FAST_ZERO now
}

// allowedFlags are the command flags that may come with each command.
func (l limits) allowedFlags(cmd uint16) uint16 {
	// FUA is valid with every command once it is offered.
	allowed := nbdproto.CmdFlagFUA
	switch cmd {
	case nbdproto.CmdRead:
		if l.structured {
			allowed |= nbdproto.CmdFlagDF
		}
	case nbdproto.CmdWriteZeroes:
		allowed |= nbdproto.CmdFlagNoHole
		if l.trans&nbdproto.TransFastZero != 0 {
			allowed |= nbdproto.CmdFlagFastZero
		}
	case nbdproto.CmdBlockStatus:
		allowed |= nbdproto.CmdFlagReqOne
	}
	return allowed
}

// check decides whether r may reach the backend: nil, or why not.
func (l limits) check(r request) *refusal {
	switch r.cmd {
	case nbdproto.CmdRead, nbdproto.CmdWrite, nbdproto.CmdDisc, nbdproto.CmdFlush, nbdproto.CmdTrim, nbdproto.CmdWriteZeroes:
	case nbdproto.CmdCache:
		if l.trans&nbdproto.TransCache == 0 {
			return &refusal{nbdproto.EINVAL, "CACHE is not offered by this export"}
		}
	case nbdproto.CmdBlockStatus:
		if !l.status {
			return &refusal{nbdproto.EINVAL, "BLOCK_STATUS needs the meta context " + nbdproto.ContextAllocation + ", which was not negotiated"}
		}
		if r.length == 0 {
			return &refusal{nbdproto.EINVAL, "BLOCK_STATUS of 0 bytes"}
		}
	default:
		return &refusal{nbdproto.EINVAL, fmt.Sprintf("%s (%d) is not offered by this export", nbdproto.CommandName(r.cmd), r.cmd)}
	}
	if bad := r.flags &^ l.allowedFlags(r.cmd); bad != 0 {
		return &refusal{nbdproto.EINVAL, fmt.Sprintf("%s with flags %#x that are not valid here", nbdproto.CommandName(r.cmd), bad)}
	}
	changes := r.cmd == nbdproto.CmdWrite || r.cmd == nbdproto.CmdTrim || r.cmd == nbdproto.CmdWriteZeroes
	if changes && l.trans&nbdproto.TransReadOnly != 0 {
		return &refusal{nbdproto.EPERM, fmt.Sprintf("%s refused: the export is read-only", nbdproto.CommandName(r.cmd))}
	}
	if r.cmd == nbdproto.CmdFlush {
		if r.off != 0 || r.length != 0 {
			return &refusal{nbdproto.EINVAL, "FLUSH covers the whole device: offset and length must be 0"}
		}
		return nil
	}
	if r.cmd == nbdproto.CmdDisc {
		return nil
	}
	if r.cmd == nbdproto.CmdRead && r.length > nbdproto.MaxPayload {
		return &refusal{nbdproto.EINVAL, fmt.Sprintf("READ of %d bytes, the limit is %d", r.length, nbdproto.MaxPayload)}
	}
	// No overflow: size is not negative, and length is checked against what is left behind off.
	if r.off > uint64(l.size) || uint64(r.length) > uint64(l.size)-r.off {
		errno := nbdproto.EINVAL
		if r.cmd == nbdproto.CmdWrite || r.cmd == nbdproto.CmdWriteZeroes {
			errno = nbdproto.ENOSPC
		}
		return &refusal{errno, fmt.Sprintf("%s of %d bytes at %d reaches beyond the end of the device at %d", nbdproto.CommandName(r.cmd), r.length, r.off, l.size)}
	}
	if r.flags&nbdproto.CmdFlagFastZero != 0 && l.slowZeroes {
		return &refusal{nbdproto.ENOTSUP, "WRITE_ZEROES may not be faster than writing now: zeroes are logged as writes, or go to the disk"}
	}
	return nil
}
