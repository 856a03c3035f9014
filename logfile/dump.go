package logfile

import "io"

type VerifyResult struct {
	Records int
	End     int64
	Err     error
}

func Dump(w io.Writer, f io.ReaderAt, size int64, name Name, json bool) error      { panic("todo") }
func Verify(f io.ReaderAt, size int64, name Name, mode Mode) (VerifyResult, error) { panic("todo") }
