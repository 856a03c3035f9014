package logfile

import (
	"context"
	"io"
)

type Mode int

const (
	Compat Mode = iota
	Strict
	Lenient
)

type ReaderOptions struct {
	Mode         Mode
	Start        int64
	End          int64
	MaxPos       int64
	DurableKnown bool
	Durable      int64
}
type Reader struct{}

func NewReader(f io.ReaderAt, size int64, name Name, opt ReaderOptions) *Reader { panic("todo") }
func (r *Reader) Next(ctx context.Context) (*Record, error)                     { panic("todo") }
func (r *Reader) Offset() int64                                                 { panic("todo") }
func (r *Reader) LastSeq() uint32                                               { panic("todo") }
func (r *Reader) Extend(end int64)                                              { panic("todo") }
func (r *Reader) Close()                                                        { panic("todo") }
