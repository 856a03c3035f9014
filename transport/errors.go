package transport

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrSecret: the other side was not admitted by the same cluster secret.
	ErrSecret = errors.New("does not hold the same cluster secret")
	// ErrWrongNode: another node answers at this address.
	ErrWrongNode = errors.New("another node answers at this address")
	// ErrTimeout: nothing came from the peer for the time allowed. The link may be
	// half open; a new connection is the remedy.
	ErrTimeout = errors.New("peer is silent")
	// ErrCorrupt: bytes that are not what the peer can have sent: a checksum
	// mismatch, a bad header, an oversize length, a wrong offset.
	ErrCorrupt = errors.New("corrupt data from peer")
	// ErrTruncated: the connection ended in the middle of a message.
	ErrTruncated = errors.New("connection ended early")
	// ErrBeyond: the peer has fewer durable bytes of the log than were asked for.
	ErrBeyond = errors.New("offset is beyond the durable end of the log")
	// ErrSuperseded: the same peer has opened the same stream again.
	ErrSuperseded = errors.New("superseded by a newer subscription of the same node")
	// ErrBusy: the server has reached a limit; try again later.
	ErrBusy = errors.New("server is busy")
	// ErrClosing: the peer is shutting down.
	ErrClosing = errors.New("node is shutting down")
	// ErrClosed: this side was closed.
	ErrClosed = errors.New("transport is closed")
	// ErrRefused: a request or reply outside the limits of the protocol.
	ErrRefused = errors.New("request refused")
)

// Error says which operation with which peer failed, and where. Fields that do
// not apply are empty; Offset is meaningful if Log or Resource is set, and is
// where a new call should resume.
type Error struct {
	Op       string
	Peer     string
	Addr     string
	Resource string
	Log      string
	Offset   int64
	Err      error
	Hint     string
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", e.Op)
	switch {
	case e.Log != "":
		fmt.Fprintf(&b, " %s of %s at %d", e.Log, e.Resource, e.Offset)
	case e.Resource != "":
		fmt.Fprintf(&b, " of %s at %d", e.Resource, e.Offset)
	}
	fmt.Fprintf(&b, " from %s", e.Peer)
	if e.Addr != "" {
		fmt.Fprintf(&b, " (%s)", e.Addr)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// RemoteError is a refusal that the peer's Handler expressed.
type RemoteError struct {
	Code    string // "not-found", "busy", "beyond", "superseded", "bad-request", "failed"
	Message string
}

func (e *RemoteError) Error() string { return e.Message }

// Is makes the sentinels survive the wire.
func (e *RemoteError) Is(target error) bool {
	for _, c := range codes {
		if c.code == e.Code {
			return target == c.err
		}
	}
	return false
}
