package nbdclient

import (
	"errors"
	"fmt"
	"syscall"

	"mars/internal/nbdproto"
)

// ErrClosed is the reason of requests after Close.
var ErrClosed = errors.New("nbd client is closed")

// Error is a request that the server refused or failed.
type Error struct {
	Command uint16
	Off     int64
	Len     int64
	Errno   syscall.Errno
	Text    string // of the server, if it sends any
}

func (e *Error) Error() string {
	s := fmt.Sprintf("nbd %s of %d bytes at %d: %v", nbdproto.CommandName(e.Command), e.Len, e.Off, e.Errno)
	if e.Text != "" {
		s += " (" + e.Text + ")"
	}
	return s
}

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }

// OptionError is an option that the server refused.
type OptionError struct {
	Option uint32
	Code   uint32
	Text   string
}

func (e *OptionError) Error() string {
	what := "refused"
	switch e.Code {
	case nbdproto.RepErrUnsup:
		what = "not supported"
	case nbdproto.RepErrPolicy:
		what = "forbidden"
	case nbdproto.RepErrInvalid:
		what = "invalid"
	case nbdproto.RepErrUnknown:
		what = "unknown export"
	case nbdproto.RepErrShutdown:
		what = "server is shutting down"
	case nbdproto.RepErrTooBig:
		what = "too big"
	}
	s := fmt.Sprintf("nbd handshake: %s (option %d, code %#x)", what, e.Option, e.Code)
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}
