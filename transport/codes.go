package transport

import (
	"errors"
	"io/fs"
	"net/http"
)

// codes are the error classes that survive the wire, with their HTTP status.
var codes = []struct {
	code   string
	status int
	err    error
}{
	{"not-found", http.StatusNotFound, fs.ErrNotExist},
	{"forbidden", http.StatusForbidden, fs.ErrPermission},
	{"beyond", http.StatusRequestedRangeNotSatisfiable, ErrBeyond},
	{"busy", http.StatusServiceUnavailable, ErrBusy},
	{"superseded", http.StatusConflict, ErrSuperseded},
	{"bad-request", http.StatusBadRequest, ErrRefused},
	{"closing", http.StatusServiceUnavailable, ErrClosing},
}

// maxErrorText bounds an error text on the wire.
const maxErrorText = 4096

// wireError is how an error travels, as a reply body or inside a stream.
type wireError struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"error,omitempty"`
}

func encodeError(err error) (wireError, int) {
	msg := err.Error()
	if len(msg) > maxErrorText {
		msg = msg[:maxErrorText]
	}
	var remote *RemoteError
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return wireError{c.code, msg}, c.status
		}
	}
	if errors.As(err, &remote) {
		return wireError{remote.Code, msg}, http.StatusInternalServerError
	}
	return wireError{"failed", msg}, http.StatusInternalServerError
}

func (w wireError) err() error {
	if w.Code == "" {
		w.Code = "failed"
	}
	if w.Message == "" {
		w.Message = "the peer gave no reason"
	}
	if len(w.Message) > maxErrorText {
		w.Message = w.Message[:maxErrorText]
	}
	return &RemoteError{Code: w.Code, Message: w.Message}
}
