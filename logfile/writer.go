package logfile

import (
	"time"

	"mars/internal/vfs"
)

type Entry struct {
	Pos  int64
	Code Code
	Data []byte
}
type Placed struct {
	Pos        int64
	Code       Code
	Len        int64
	DataOffset int64
	End        int64
}
type WriterOptions struct {
	FS        vfs.FS
	Now       func() time.Time
	OnAppend  func([]Placed)
	MaxRecord int
}
type Writer struct{}

func Create(dir string, name Name, opt WriterOptions) (*Writer, error) { panic("todo") }
func (w *Writer) Append(entries []Entry) (end int64, err error)        { panic("todo") }
func (w *Writer) Sync() (durable int64, err error)                     { panic("todo") }
func (w *Writer) End() int64                                           { panic("todo") }
func (w *Writer) Durable() int64                                       { panic("todo") }
func (w *Writer) Name() Name                                           { panic("todo") }
func (w *Writer) Err() error                                           { panic("todo") }
func (w *Writer) Close() error                                         { panic("todo") }
