package nbd

import (
	"crypto/tls"
	"fmt"

	"mars/internal/nbdproto"
)

// startTLS answers STARTTLS. What was agreed on before is void then, because somebody in
// between could have said it; nothing that was sent in the clear is read as if it had been protected,
// because the handshake reads no byte ahead.
func (h *handshake) startTLS(id uint32, data []byte) error {
	switch {
	case len(data) != 0:
		h.refuse(id, nbdproto.RepErrInvalid, "STARTTLS takes no data")
		return h.flush()
	case h.door.tls == nil:
		h.refuse(id, nbdproto.RepErrUnsup, "this address has no TLS")
		return h.flush()
	case h.secure != nil:
		h.refuse(id, nbdproto.RepErrInvalid, "TLS is in use already")
		return h.flush()
	}
	h.reply(id, nbdproto.RepAck, nil)
	if err := h.flush(); err != nil {
		return err
	}
	secure := tls.Server(h.rw, h.door.tls)
	if err := secure.Handshake(); err != nil { // the connection's deadline bounds it
		return fmt.Errorf("start TLS: %w", err)
	}
	h.rw, h.secure = secure, secure
	h.structured, h.status = false, nil
	return nil
}
