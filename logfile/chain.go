package logfile

import (
	"context"
	"time"

	"mars/internal/vfs"
)

type Info struct {
	Name    Name
	Size    int64
	ModTime time.Time
}
type Chain struct{}

func List(fsys vfs.FS, dir string) ([]Info, error)                       { panic("todo") }
func OpenChain(fsys vfs.FS, dir string) (*Chain, error)                  { panic("todo") }
func (c *Chain) List() ([]Info, error)                                   { panic("todo") }
func (c *Chain) ReadAt(name Name, p []byte, off int64) (int, error)      { panic("todo") }
func (c *Chain) NewReader(name Name, opt ReaderOptions) (*Reader, error) { panic("todo") }
func (c *Chain) Create(name Name, opt WriterOptions) (*Writer, error)    { panic("todo") }
func (c *Chain) AppendRaw(name Name, off int64, p []byte) error          { panic("todo") }
func (c *Chain) SyncRaw(name Name) (durable int64, err error)            { panic("todo") }
func (c *Chain) Truncate(name Name, size int64) error                    { panic("todo") }
func (c *Chain) Size(name Name) (int64, error)                           { panic("todo") }
func (c *Chain) Durable(name Name) (int64, error)                        { panic("todo") }
func (c *Chain) Wait(ctx context.Context, name Name, beyond int64) (durable int64, sealed bool, err error) {
	panic("todo")
}
func (c *Chain) Seal(name Name)         { panic("todo") }
func (c *Chain) Remove(name Name) error { panic("todo") }
func (c *Chain) Close() error           { panic("todo") }
