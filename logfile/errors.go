package logfile

import (
	"errors"
	"fmt"
)

// Sentinels. Errors that name a logfile wrap them.
var (
	// ErrClosed: the Writer or Chain has been closed.
	ErrClosed = errors.New("closed")
	// ErrNotEmpty: a logfile that was written by an earlier run is never appended to.
	ErrNotEmpty = errors.New("logfile is not empty")
	// ErrInUse: the operation is refused while a Writer is open on the file.
	ErrInUse = errors.New("logfile is being written")
	// ErrEntry: an Entry that cannot be made into a record.
	ErrEntry = errors.New("bad log entry")
)

// Errno values as the original's replay-code shows them.
const (
	errnoEAGAIN   = 11 // more bytes are needed
	errnoEBADRQC  = 56 // end magic is garbage
	errnoEBADMSG  = 74 // defective
	errnoERESTART = 85 // incomplete
)

// Error numbers of the original (MARS_ERR_*).
const (
	marsInval        = 10003
	marsZero         = 10004
	marsNegative     = 10005
	marsBadLen       = 10006
	marsAdvance      = 10007
	marsIncomplete   = 10009
	marsSeqForward   = 10010
	marsSeqBackward  = 10011
	marsSize         = 10012
	marsScanMagic    = 10013
	marsEndMagic     = 10020
	marsEndRepeated  = 10021
	marsCRCFlags     = 10100
	marsCRCMismatch  = 10101
	marsUncompress   = 10150
	marsUncompLength = 10152
)

// Defect describes where and why a log cannot be read further. Offset is the
// border behind the last good record.
type Defect struct {
	Log    Name
	Offset int64
	Reason string
	// Errno is what the original would publish as replay-code (as a positive
	// number), 0 where it would report the end of the log.
	Errno int
	// MarsCode is the original's error number (100xx), 0 where it has none.
	MarsCode int
	// RepeatedByte is the value if the place of the end magic is filled with one
	// byte, else -1.
	RepeatedByte int
	Hint         string // what a person can do about it
}

func (d *Defect) text(kind string) string {
	s := fmt.Sprintf("%s at %s: %s", kind, Position{d.Log, d.Offset}, d.Reason)
	if d.Errno != 0 || d.MarsCode != 0 {
		s += fmt.Sprintf(" (errno %d, code %d)", d.Errno, d.MarsCode)
	}
	if d.Hint != "" {
		s += "; " + d.Hint
	}
	return s
}

// TornError: the log stops inside a record that was never completely written, or
// is not completely here yet. Everything before Offset is good and nothing was
// ever confirmed to be behind it.
type TornError struct{ Defect }

func (e *TornError) Error() string { return e.text("torn tail") }

// CorruptError: the record at Offset is damaged. It must not be applied.
type CorruptError struct{ Defect }

func (e *CorruptError) Error() string { return e.text("damaged log record") }

// OffsetError is returned by Chain.AppendRaw when the piece does not continue the
// local file; fetch again from Have.
type OffsetError struct {
	Log    Name
	Offset int64 // where the piece wanted to go
	Have   int64 // local size
}

func (e *OffsetError) Error() string {
	return fmt.Sprintf("append to %s at offset %d: local copy ends at %d; fetch from there", e.Log, e.Offset, e.Have)
}
