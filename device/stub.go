package device

import (
	"context"

	"mars/device/nbd"
	"mars/internal/vfs"
	"mars/logfile"
)

type knobs struct{}
type Disk struct{}

func OpenDisk(fsys vfs.FS, path string) (*Disk, error)   { panic("todo") }
func (d *Disk) Size() int64                              { panic("todo") }
func (d *Disk) Path() string                             { panic("todo") }
func (d *Disk) ReadAt(p []byte, off int64) (int, error)  { panic("todo") }
func (d *Disk) WriteAt(p []byte, off int64) (int, error) { panic("todo") }
func (d *Disk) Close() error                             { panic("todo") }

type Engine struct{}

func OpenEngine(ctx context.Context, cfg EngineConfig, from logfile.Position, dirtyEnd int64) (*Engine, error) {
	panic("todo")
}
func (e *Engine) Follow(log logfile.Name) error                { panic("todo") }
func (e *Engine) SetReplay(ctx context.Context, on bool) error { panic("todo") }
func (e *Engine) NextLog(name logfile.Name) error              { panic("todo") }
func (e *Engine) Recover(ctx context.Context, force bool) (end logfile.Position, torn int64, err error) {
	panic("todo")
}
func (e *Engine) StartLogging(name logfile.Name) error  { panic("todo") }
func (e *Engine) Rotate(name logfile.Name) error        { panic("todo") }
func (e *Engine) StopLogging(ctx context.Context) error { panic("todo") }
func (e *Engine) Status() Status                        { panic("todo") }
func (e *Engine) Changed() <-chan struct{}              { panic("todo") }
func (e *Engine) Resize(size int64) error               { panic("todo") }
func (e *Engine) Close() error                          { panic("todo") }
func (e *Engine) ReadStable(ctx context.Context, p []byte, off int64) (end logfile.Position, err error) {
	panic("todo")
}
func (e *Engine) Sync(ctx context.Context, src SyncSource, from, size int64, progress func(done, same, different int64)) (end logfile.Position, err error) {
	panic("todo")
}

// Backend is the engine as the NBD server sees it.
func (e *Engine) Backend() nbd.Backend { panic("todo") }

type ExportConfig struct {
	Engine   *Engine
	Resource string
	Dir      string
	Server   nbd.Config
}
type Export struct{}

// OpenExport serves Engine at DIR/RESOURCE.sock.
func OpenExport(cfg ExportConfig) (*Export, error) { panic("todo") }
func (x *Export) Path() string                     { panic("todo") }
func (x *Export) OpenCount() int                   { panic("todo") }
func (x *Export) InFlight() int                    { panic("todo") }
func (x *Export) Stop(ctx context.Context) error   { panic("todo") }
