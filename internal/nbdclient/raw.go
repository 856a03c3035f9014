package nbdclient

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdproto"
)

// maxOptionReply is the longest option reply that is believed.
const maxOptionReply = 64 << 10

// Raw is one connection, spoken step by step. It is not for concurrent use.
type Raw struct {
	Conn  net.Conn
	Flags uint16 // handshake flags of the server
}

// OptionReply is one reply to an option.
type OptionReply struct {
	Option, Type uint32
	Data         []byte
}

// Reply is one reply, or one chunk of a structured reply.
type Reply struct {
	Handle     uint64
	Errno      uint32 // of a simple reply, or of an error chunk
	Structured bool
	Flags      uint16 // chunk
	Type       uint16 // chunk
	Payload    []byte // of a chunk, as it came
	Text       string // of an error chunk
}

// Done tells whether the request is answered completely.
func (r Reply) Done() bool { return !r.Structured || r.Flags&nbdproto.ChunkDone != 0 }

// DialRaw connects and reads the greeting; nothing is sent yet.
func DialRaw(ctx context.Context, network, address string) (*Raw, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r := &Raw{Conn: nc}
	if err := r.during(ctx, r.Greeting); err != nil {
		nc.Close()
		return nil, fmt.Errorf("nbd server %s: %w", address, err)
	}
	return r, nil
}

// during runs a step of the handshake and breaks the connection if ctx ends meanwhile.
func (r *Raw) during(ctx context.Context, step func() error) error {
	stop := context.AfterFunc(ctx, func() { r.Conn.SetDeadline(time.Unix(1, 0)) })
	err := step()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// Greeting reads the server's first bytes.
func (r *Raw) Greeting() error {
	var p [nbdproto.GreetingSize]byte
	if _, err := io.ReadFull(r.Conn, p[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	g := nbdproto.Greeting(p[:])
	if g.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || g.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return fmt.Errorf("not a newstyle NBD server: greeting % x", p)
	}
	r.Flags = g.HandshakeFlags
	return nil
}

// Send writes bytes as they are.
func (r *Raw) Send(parts ...[]byte) error {
	for _, p := range parts {
		if _, err := r.Conn.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// ClientFlags answers the greeting.
func (r *Raw) ClientFlags(flags uint32) error {
	return r.Send(binary.BigEndian.AppendUint32(nil, flags))
}

// Option sends an option.
func (r *Raw) Option(id uint32, data []byte) error {
	return r.Send(nbdproto.AppendOption(nil, id, data))
}

// OptionReply reads one reply to an option.
func (r *Raw) OptionReply() (OptionReply, error) {
	var p [nbdproto.OptReplySize]byte
	if _, err := io.ReadFull(r.Conn, p[:]); err != nil {
		return OptionReply{}, fmt.Errorf("read option reply: %w", err)
	}
	h := nbdproto.OptReplyHeader(p[:])
	if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY {
		return OptionReply{}, fmt.Errorf("bad option reply magic %#x", h.ReplyMagic)
	}
	if h.Length > maxOptionReply {
		return OptionReply{}, fmt.Errorf("option reply of %d bytes, the limit is %d", h.Length, maxOptionReply)
	}
	data := make([]byte, h.Length)
	if _, err := io.ReadFull(r.Conn, data); err != nil {
		return OptionReply{}, fmt.Errorf("read option reply: %w", err)
	}
	return OptionReply{Option: h.ID, Type: h.Type, Data: data}, nil
}

// OptionReplies sends an option and reads its replies up to the final one (ACK or an error).
func (r *Raw) OptionReplies(id uint32, data []byte) ([]OptionReply, error) {
	if err := r.Option(id, data); err != nil {
		return nil, err
	}
	var list []OptionReply
	for {
		rep, err := r.OptionReply()
		if err != nil {
			return list, err
		}
		if rep.Option != id {
			return list, fmt.Errorf("reply to option %d instead of %d", rep.Option, id)
		}
		list = append(list, rep)
		if rep.Type == nbdproto.RepAck || rep.Type&nbdproto.RepErr != 0 {
			return list, nil
		}
	}
}

// InfoData is the data of OPT_INFO and OPT_GO.
func InfoData(name string, wants ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(wants)))
	for _, w := range wants {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// ParseInfo decodes the replies to INFO or GO. An error reply is an *OptionError.
func ParseInfo(list []OptionReply) (ExportInfo, error) {
	var info ExportInfo
	info.MaxBlock, info.MinBlock, info.PreferredBlock = nbdproto.MaxPayload, 1, 4096
	seen := false
	for _, rep := range list {
		if rep.Type&nbdproto.RepErr != 0 {
			return info, &OptionError{Option: rep.Option, Code: rep.Type, Text: string(rep.Data)}
		}
		if rep.Type != nbdproto.RepInfo || len(rep.Data) < 2 {
			continue
		}
		data := rep.Data[2:]
		switch binary.BigEndian.Uint16(rep.Data) {
		case nbdproto.InfoExport:
			if len(data) != 10 {
				return info, fmt.Errorf("NBD_INFO_EXPORT of %d bytes", len(data))
			}
			seen = true
			info.Size = int64(binary.BigEndian.Uint64(data))
			info.Flags = binary.BigEndian.Uint16(data[8:])
		case nbdproto.InfoName:
			info.Name = string(data)
		case nbdproto.InfoDescription:
			info.Description = string(data)
		case nbdproto.InfoBlockSize:
			if len(data) != 12 {
				return info, fmt.Errorf("NBD_INFO_BLOCK_SIZE of %d bytes", len(data))
			}
			info.MinBlock = binary.BigEndian.Uint32(data)
			info.PreferredBlock = binary.BigEndian.Uint32(data[4:])
			info.MaxBlock = binary.BigEndian.Uint32(data[8:])
		}
	}
	if !seen {
		return info, fmt.Errorf("the server did not send NBD_INFO_EXPORT")
	}
	if info.Size < 0 {
		return info, fmt.Errorf("export of %d bytes", uint64(info.Size))
	}
	return info, nil
}

// Go does the handshake for an export, with structured replies if wanted and known to
// the server.
func (r *Raw) Go(export string, structured bool) (ExportInfo, error) {
	if err := r.ClientFlags(uint32(nbdproto.FlagFixedNewstyle | r.Flags&nbdproto.FlagNoZeroes)); err != nil {
		return ExportInfo{}, err
	}
	accepted := false
	if structured {
		list, err := r.OptionReplies(nbdproto.OptStructuredReply, nil)
		if err != nil {
			return ExportInfo{}, err
		}
		accepted = list[len(list)-1].Type == nbdproto.RepAck
	}
	list, err := r.OptionReplies(nbdproto.OptGo, InfoData(export, nbdproto.InfoName, nbdproto.InfoDescription, nbdproto.InfoBlockSize))
	if err != nil {
		return ExportInfo{}, err
	}
	info, err := ParseInfo(list)
	info.Structured = accepted
	return info, err
}

// List asks for the exports and leaves.
func (r *Raw) List() ([]ExportInfo, error) {
	if err := r.ClientFlags(uint32(nbdproto.FlagFixedNewstyle | r.Flags&nbdproto.FlagNoZeroes)); err != nil {
		return nil, err
	}
	list, err := r.OptionReplies(nbdproto.OptList, nil)
	if err != nil {
		return nil, err
	}
	var exports []ExportInfo
	for _, rep := range list {
		if rep.Type&nbdproto.RepErr != 0 {
			return nil, &OptionError{Option: rep.Option, Code: rep.Type, Text: string(rep.Data)}
		}
		if rep.Type != nbdproto.RepServer {
			continue
		}
		if len(rep.Data) < 4 || uint64(binary.BigEndian.Uint32(rep.Data)) > uint64(len(rep.Data)-4) {
			return nil, fmt.Errorf("malformed list entry of %d bytes", len(rep.Data))
		}
		n := binary.BigEndian.Uint32(rep.Data)
		exports = append(exports, ExportInfo{Name: string(rep.Data[4 : 4+n]), Description: string(rep.Data[4+n:])})
	}
	return exports, r.Option(nbdproto.OptAbort, nil)
}

// RequestHeader encodes the header of a request.
func RequestHeader(cmd, flags uint16, handle, off uint64, length uint32) []byte {
	p := make([]byte, nbdproto.RequestSize)
	nbdproto.PutRequest(p, &protocol.TransmissionRequestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
		CommandFlags: flags, Type: cmd, Handle: handle, Offset: off, Length: length,
	})
	return p
}

// ReadReply reads a reply. The data of a simple reply to a READ follows it, unread.
func (r *Raw) ReadReply() (Reply, error) {
	var p [nbdproto.ChunkHeaderSize]byte
	if _, err := io.ReadFull(r.Conn, p[:nbdproto.SimpleReplySize]); err != nil {
		return Reply{}, err
	}
	switch magic := binary.BigEndian.Uint32(p[:]); magic {
	case protocol.TRANSMISSION_MAGIC_REPLY:
		return Reply{Errno: binary.BigEndian.Uint32(p[4:]), Handle: binary.BigEndian.Uint64(p[8:])}, nil
	case nbdproto.MagicStructuredReply:
	default:
		return Reply{}, fmt.Errorf("bad reply magic %#08x", magic)
	}
	if _, err := io.ReadFull(r.Conn, p[nbdproto.SimpleReplySize:]); err != nil {
		return Reply{}, err
	}
	h := nbdproto.Chunk(p[:])
	if h.Length > nbdproto.MaxPayload+nbdproto.ChunkOffsetSize {
		return Reply{}, fmt.Errorf("chunk of %d bytes", h.Length)
	}
	rep := Reply{Handle: h.Handle, Structured: true, Flags: h.Flags, Type: h.Type, Payload: make([]byte, h.Length)}
	if _, err := io.ReadFull(r.Conn, rep.Payload); err != nil {
		return rep, err
	}
	if h.Type&nbdproto.ChunkErrBit != 0 {
		var err error
		if rep.Errno, rep.Text, err = parseErrorChunk(rep.Payload); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// parseErrorChunk decodes the payload of an error chunk.
func parseErrorChunk(p []byte) (errno uint32, text string, err error) {
	if len(p) < 6 {
		return 0, "", fmt.Errorf("error chunk of %d bytes", len(p))
	}
	n := int(binary.BigEndian.Uint16(p[4:]))
	if n > len(p)-6 {
		return 0, "", fmt.Errorf("error chunk of %d bytes with a text of %d", len(p), n)
	}
	return binary.BigEndian.Uint32(p), string(p[6 : 6+n]), nil
}

// Close closes the connection.
func (r *Raw) Close() error { return r.Conn.Close() }
