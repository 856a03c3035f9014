// Package nbdproto is the vocabulary of the NBD protocol that the server
// (device/nbd) and the client (internal/nbdclient) share: the constants that
// github.com/pojntfx/go-nbd/pkg/protocol lacks, and the encoding of the headers
// by hand, because encoding/binary's reflection costs more than the rest of a
// request. All integers on the wire are big endian.
//
// Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
package nbdproto

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Handshake flags. The client's have the same bits as the server's.
const (
	FlagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes      = uint16(1 << 1)
)

// Options that a client may send during the handshake.
const (
	OptExportName      = uint32(1)
	OptAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            = protocol.NEGOTIATION_ID_OPTION_LIST
	OptPeekExport      = uint32(4)
	OptStartTLS        = uint32(5)
	OptInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Replies to options. Those with RepErr set are errors; their data is text.
const (
	RepAck    = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo   = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMeta   = uint32(4) // META_CONTEXT

	RepErr         = uint32(1 << 31)
	RepErrUnsup    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy   = RepErr | 2
	RepErrInvalid  = RepErr | 3
	RepErrTLSReqd  = RepErr | 5
	RepErrUnknown  = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown = RepErr | 7
	RepErrTooBig   = RepErr | 9
)

// Information types of NBD_REP_INFO.
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags of an export.
const (
	TransHasFlags     = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	TransReadOnly     = uint16(1 << 1)
	TransFlush        = uint16(1 << 2)
	TransFUA          = uint16(1 << 3)
	TransRotational   = uint16(1 << 4)
	TransTrim         = uint16(1 << 5)
	TransWriteZeroes  = uint16(1 << 6)
	TransDF           = uint16(1 << 7)
	TransCanMultiConn = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	TransResize       = uint16(1 << 9)
	TransCache        = uint16(1 << 10)
	TransFastZero     = uint16(1 << 11)
)

// Commands.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
	CmdResize      = uint16(8)
)

// Command flags.
const (
	CmdFlagFUA      = uint16(1 << 0)
	CmdFlagNoHole   = uint16(1 << 1)
	CmdFlagDF       = uint16(1 << 2)
	CmdFlagReqOne   = uint16(1 << 3)
	CmdFlagFastZero = uint16(1 << 4)
)

// Errors of a reply: the only values that NBD allows.
const (
	EPERM     = protocol.TRANSMISSION_ERROR_EPERM
	EIO       = uint32(5)
	ENOMEM    = uint32(12)
	EINVAL    = protocol.TRANSMISSION_ERROR_EINVAL
	ENOSPC    = uint32(28)
	EOVERFLOW = uint32(75)
	ENOTSUP   = uint32(95)
	ESHUTDOWN = uint32(108)
)

// Structured replies.
const (
	MagicStructuredReply = uint32(0x668e33ef)

	ChunkDone = uint16(1 << 0) // flag: last chunk of this reply

	ChunkNone        = uint16(0)
	ChunkOffsetData  = uint16(1)
	ChunkOffsetHole  = uint16(2)
	ChunkBlockStatus = uint16(5)
	ChunkErrBit      = uint16(1 << 15)
	ChunkError       = ChunkErrBit | 1
	ChunkErrorOffset = ChunkErrBit | 2
)

// The meta context that everybody knows, and the bits of its descriptors.
const (
	ContextAllocation = "base:allocation"

	StateHole = 1 << 0
	StateZero = 1 << 1
)

// Sizes on the wire, and limits.
const (
	GreetingSize     = 18 // protocol.NegotiationNewstyleHeader
	ClientFlagsSize  = 4
	OptionHeaderSize = 16 // protocol.NegotiationOptionHeader
	OptReplySize     = 20 // protocol.NegotiationReplyHeader
	RequestSize      = 28 // protocol.TransmissionRequestHeader
	SimpleReplySize  = 16 // protocol.TransmissionReplyHeader
	ChunkHeaderSize  = 20
	ChunkOffsetSize  = 8   // the offset in front of the data of ChunkOffsetData
	ContextIDSize    = 4   // in front of the descriptors of ChunkBlockStatus
	DescriptorSize   = 8   // length and state of one extent in ChunkBlockStatus
	OldExportPadding = 124 // zeroes after the reply to EXPORT_NAME unless NO_ZEROES

	MaxName    = 4096     // bytes of any string
	MaxPayload = 32 << 20 // bytes of one request or reply, the limit every client knows
)

// ChunkHeader starts each chunk of a structured reply.
type ChunkHeader struct {
	Magic  uint32
	Flags  uint16
	Type   uint16
	Handle uint64
	Length uint32
}

// PutRequest encodes h into p[:RequestSize].
func PutRequest(p []byte, h *protocol.TransmissionRequestHeader) {
	_ = p[RequestSize-1]
	binary.BigEndian.PutUint32(p, h.RequestMagic)
	binary.BigEndian.PutUint16(p[4:], h.CommandFlags)
	binary.BigEndian.PutUint16(p[6:], h.Type)
	binary.BigEndian.PutUint64(p[8:], h.Handle)
	binary.BigEndian.PutUint64(p[16:], h.Offset)
	binary.BigEndian.PutUint32(p[24:], h.Length)
}

// Request decodes p[:RequestSize].
func Request(p []byte) protocol.TransmissionRequestHeader {
	_ = p[RequestSize-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(p),
		CommandFlags: binary.BigEndian.Uint16(p[4:]),
		Type:         binary.BigEndian.Uint16(p[6:]),
		Handle:       binary.BigEndian.Uint64(p[8:]),
		Offset:       binary.BigEndian.Uint64(p[16:]),
		Length:       binary.BigEndian.Uint32(p[24:]),
	}
}

// PutSimpleReply encodes a simple reply into p[:SimpleReplySize].
func PutSimpleReply(p []byte, errno uint32, handle uint64) {
	_ = p[SimpleReplySize-1]
	binary.BigEndian.PutUint32(p, protocol.TRANSMISSION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(p[4:], errno)
	binary.BigEndian.PutUint64(p[8:], handle)
}

// PutChunkHeader encodes h into p[:ChunkHeaderSize].
func PutChunkHeader(p []byte, h ChunkHeader) {
	_ = p[ChunkHeaderSize-1]
	binary.BigEndian.PutUint32(p, h.Magic)
	binary.BigEndian.PutUint16(p[4:], h.Flags)
	binary.BigEndian.PutUint16(p[6:], h.Type)
	binary.BigEndian.PutUint64(p[8:], h.Handle)
	binary.BigEndian.PutUint32(p[16:], h.Length)
}

// Chunk decodes p[:ChunkHeaderSize].
func Chunk(p []byte) ChunkHeader {
	_ = p[ChunkHeaderSize-1]
	return ChunkHeader{
		Magic:  binary.BigEndian.Uint32(p),
		Flags:  binary.BigEndian.Uint16(p[4:]),
		Type:   binary.BigEndian.Uint16(p[6:]),
		Handle: binary.BigEndian.Uint64(p[8:]),
		Length: binary.BigEndian.Uint32(p[16:]),
	}
}

// OptionHeader decodes the header of an option, p[:OptionHeaderSize].
func OptionHeader(p []byte) protocol.NegotiationOptionHeader {
	_ = p[OptionHeaderSize-1]
	return protocol.NegotiationOptionHeader{
		OptionMagic: binary.BigEndian.Uint64(p),
		ID:          binary.BigEndian.Uint32(p[8:]),
		Length:      binary.BigEndian.Uint32(p[12:]),
	}
}

// AppendOption appends an option with its data.
func AppendOption(b []byte, id uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// OptReplyHeader decodes the header of an option reply, p[:OptReplySize].
func OptReplyHeader(p []byte) protocol.NegotiationReplyHeader {
	_ = p[OptReplySize-1]
	return protocol.NegotiationReplyHeader{
		ReplyMagic: binary.BigEndian.Uint64(p),
		ID:         binary.BigEndian.Uint32(p[8:]),
		Type:       binary.BigEndian.Uint32(p[12:]),
		Length:     binary.BigEndian.Uint32(p[16:]),
	}
}

// AppendOptReply appends an option reply with its data.
func AppendOptReply(b []byte, id, typ uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Greeting decodes the server's first bytes, p[:GreetingSize].
func Greeting(p []byte) protocol.NegotiationNewstyleHeader {
	_ = p[GreetingSize-1]
	return protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  binary.BigEndian.Uint64(p),
		OptionMagic:    binary.BigEndian.Uint64(p[8:]),
		HandshakeFlags: binary.BigEndian.Uint16(p[16:]),
	}
}

// AppendGreeting appends the server's first bytes.
func AppendGreeting(b []byte, flags uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	return binary.BigEndian.AppendUint16(b, flags)
}

// CommandName is the command's name for messages.
func CommandName(cmd uint16) string {
	switch cmd {
	case CmdRead:
		return "READ"
	case CmdWrite:
		return "WRITE"
	case CmdDisc:
		return "DISC"
	case CmdFlush:
		return "FLUSH"
	case CmdTrim:
		return "TRIM"
	case CmdCache:
		return "CACHE"
	case CmdWriteZeroes:
		return "WRITE_ZEROES"
	case CmdBlockStatus:
		return "BLOCK_STATUS"
	case CmdResize:
		return "RESIZE"
	}
	return "unknown command"
}
