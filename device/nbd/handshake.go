package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdproto"
)

// maxOption is the longest option data that is taken; NBD strings have at
// most 4096 bytes, so nothing sensible is longer.
const maxOption = 8 << 10

var (
	// errAborted ends a handshake that the client gave up politely.
	errAborted = errors.New("client aborted the handshake")
	// errNotNBD is a peer that speaks something else.
	errNotNBD = errors.New("peer does not speak the NBD handshake")
	// errPlain is a client that wants its export by the oldest option, to which there is no other no.
	errPlain = errors.New("client does not use TLS, which this address requires")
)

// directory is what a handshake needs to know about exports.
type directory interface {
	find(name string) (*export, error)
	attach(name string) (*export, error)
	list() []Export
}

// session is what a handshake has agreed on.
type session struct {
	exp        *export // attached
	structured bool
	status     bool      // base:allocation, too
	tls        *tls.Conn // nil without
}

// handshake is the server's side of the fixed newstyle negotiation.
type handshake struct {
	rw         net.Conn
	dir        directory
	door       *door
	secure     *tls.Conn
	noZeroes   bool
	structured bool
	status     *export // for which base:allocation is chosen
	in         []byte  // option data, at most maxOption
	out        []byte  // replies of one option, sent in one write
}

// negotiate runs the handshake until the client has chosen an export. The caller owns
// session.exp whenever it is not nil, also beside an error.
func negotiate(rw net.Conn, dir directory, d *door) (session, error) {
	h := &handshake{rw: rw, dir: dir, door: d}
	if _, err := rw.Write(nbdproto.AppendGreeting(nil, nbdproto.FlagFixedNewstyle|nbdproto.FlagNoZeroes)); err != nil {
		return session{}, fmt.Errorf("send greeting: %w", err)
	}
	var p [nbdproto.OptionHeaderSize]byte
	if _, err := io.ReadFull(rw, p[:nbdproto.ClientFlagsSize]); err != nil {
		return session{}, fmt.Errorf("read client flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(p[:])
	if bad := flags &^ uint32(nbdproto.FlagFixedNewstyle|nbdproto.FlagNoZeroes); bad != 0 {
		return session{}, fmt.Errorf("%w: unknown client flags %#x", errNotNBD, bad)
	}
	h.noZeroes = flags&uint32(nbdproto.FlagNoZeroes) != 0
	for {
		if _, err := io.ReadFull(h.rw, p[:]); err != nil {
			return session{}, fmt.Errorf("read option: %w", err)
		}
		opt := nbdproto.OptionHeader(p[:])
		if opt.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
			return session{}, fmt.Errorf("%w: bad option magic %#x", errNotNBD, opt.OptionMagic)
		}
		exp, err := h.option(opt.ID, opt.Length)
		if exp != nil || err != nil {
			return session{exp: exp, structured: h.structured, status: exp != nil && exp == h.status, tls: h.secure}, err
		}
	}
}

// option answers one option. It returns the export when the handshake is over.
func (h *handshake) option(id, length uint32) (*export, error) {
	h.out = h.out[:0]
	if length > maxOption {
		if id == nbdproto.OptExportName {
			return nil, fmt.Errorf("%w: export name of %d bytes", errNotNBD, length)
		}
		if _, err := io.CopyN(io.Discard, h.rw, int64(length)); err != nil {
			return nil, fmt.Errorf("read option %d: %w", id, err)
		}
		h.refuse(id, nbdproto.RepErrTooBig, fmt.Sprintf("option data of %d bytes, the limit is %d", length, maxOption))
		return nil, h.flush()
	}
	if cap(h.in) < int(length) {
		h.in = make([]byte, maxOption)
	}
	data := h.in[:length]
	if _, err := io.ReadFull(h.rw, data); err != nil {
		return nil, fmt.Errorf("read option %d: %w", id, err)
	}
	if h.door.require && h.secure == nil && id != nbdproto.OptStartTLS && id != nbdproto.OptAbort {
		if id == nbdproto.OptExportName {
			return nil, errPlain
		}
		h.refuse(id, nbdproto.RepErrTLSReqd, "this address serves nobody without TLS")
		return nil, h.flush()
	}
	switch id {
	case nbdproto.OptStartTLS:
		return nil, h.startTLS(id, data)
	case nbdproto.OptListMetaContext, nbdproto.OptSetMetaContext:
		h.metaContext(id, data)
	case nbdproto.OptExportName:
		return h.exportName(string(data))
	case nbdproto.OptAbort:
		h.reply(id, nbdproto.RepAck, nil)
		h.flush() // the client need not wait for it
		return nil, errAborted
	case nbdproto.OptList:
		h.listExports(id, data)
	case nbdproto.OptInfo, nbdproto.OptGo:
		return h.infoOrGo(id, data)
	case nbdproto.OptStructuredReply:
		if len(data) != 0 {
			h.refuse(id, nbdproto.RepErrInvalid, "STRUCTURED_REPLY takes no data")
			break
		}
		h.structured = true
		h.reply(id, nbdproto.RepAck, nil)
	default:
		h.refuse(id, nbdproto.RepErrUnsup, fmt.Sprintf("option %d is not supported", id))
	}
	return nil, h.flush()
}

// exportName is the oldest way to choose an export: it cannot say no, except by hanging up.
func (h *handshake) exportName(name string) (*export, error) {
	exp, err := h.dir.attach(name)
	if err != nil {
		return nil, err
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(exp.Backend.Size()))
	h.out = binary.BigEndian.AppendUint16(h.out, exp.transFlags(h.structured))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, nbdproto.OldExportPadding)...)
	}
	return exp, h.flush()
}

func (h *handshake) listExports(id uint32, data []byte) {
	if len(data) != 0 {
		h.refuse(id, nbdproto.RepErrInvalid, "LIST takes no data")
		return
	}
	for _, e := range h.dir.list() {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		b = append(append(b, e.Name...), e.Description...)
		h.reply(id, nbdproto.RepServer, b)
	}
	h.reply(id, nbdproto.RepAck, nil)
}

// parseInfo decodes the data of INFO and GO: a name and the wanted kinds of information.
func parseInfo(data []byte) (name string, wants []uint16, err error) {
	if len(data) < 6 {
		return "", nil, fmt.Errorf("option data of %d bytes is too short", len(data))
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if uint64(n)+2 > uint64(len(data)) {
		return "", nil, fmt.Errorf("name of %d bytes does not fit into the option", n)
	}
	if n > nbdproto.MaxName {
		return "", nil, fmt.Errorf("name of %d bytes, the limit is %d", n, nbdproto.MaxName)
	}
	name, data = string(data[:n]), data[n:]
	count := int(binary.BigEndian.Uint16(data))
	data = data[2:]
	if len(data) != 2*count {
		return "", nil, fmt.Errorf("%d information requests announced, %d bytes of them sent", count, len(data))
	}
	for ; len(data) > 0; data = data[2:] {
		wants = append(wants, binary.BigEndian.Uint16(data))
	}
	return name, wants, nil
}

func (h *handshake) infoOrGo(id uint32, data []byte) (*export, error) {
	name, wants, err := parseInfo(data)
	if err != nil {
		h.refuse(id, nbdproto.RepErrInvalid, err.Error())
		return nil, h.flush()
	}
	choose := h.dir.find
	if id == nbdproto.OptGo {
		choose = h.dir.attach
	}
	exp, err := choose(name)
	if err != nil {
		code := nbdproto.RepErrUnknown
		if errors.Is(err, ErrServerClosed) {
			code = nbdproto.RepErrShutdown
		}
		h.refuse(id, code, err.Error())
		return nil, h.flush()
	}
	b := binary.BigEndian.AppendUint16(nil, nbdproto.InfoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(exp.Backend.Size()))
	b = binary.BigEndian.AppendUint16(b, exp.transFlags(h.structured))
	h.reply(id, nbdproto.RepInfo, b)
	// Always sent: who ignores it loses nothing.
	b = binary.BigEndian.AppendUint16(b[:0], nbdproto.InfoBlockSize)
	b = binary.BigEndian.AppendUint32(b, max(minBlock, exp.MinBlock))
	b = binary.BigEndian.AppendUint32(b, preferredBlock)
	b = binary.BigEndian.AppendUint32(b, nbdproto.MaxPayload)
	h.reply(id, nbdproto.RepInfo, b)
	var name1, desc1 bool // each once, however often it is asked for
	for _, want := range wants {
		switch {
		case want == nbdproto.InfoName && !name1:
			name1 = true
			h.reply(id, nbdproto.RepInfo, append(binary.BigEndian.AppendUint16(b[:0], want), exp.Name...))
		case want == nbdproto.InfoDescription && !desc1 && exp.Description != "":
			desc1 = true
			h.reply(id, nbdproto.RepInfo, append(binary.BigEndian.AppendUint16(b[:0], want), exp.Description...))
		}
	}
	h.reply(id, nbdproto.RepAck, nil)
	if id == nbdproto.OptInfo {
		exp = nil
	}
	return exp, h.flush()
}

// Block sizes that clients are told, in bytes.
const (
	minBlock       = 1
	preferredBlock = 4096
)

func (h *handshake) reply(id, typ uint32, data []byte) {
	h.out = nbdproto.AppendOptReply(h.out, id, typ, data)
}

func (h *handshake) refuse(id, code uint32, text string) {
	h.reply(id, code, []byte(text[:min(len(text), nbdproto.MaxName)]))
}

func (h *handshake) flush() error {
	if _, err := h.rw.Write(h.out); err != nil {
		return fmt.Errorf("send option reply: %w", err)
	}
	return nil
}
