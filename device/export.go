package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/device/nbd"
)

// maxSocketPath is what the kernel takes (sun_path, with its NUL).
const maxSocketPath = 107

// ExportConfig says what is exported where.
type ExportConfig struct {
	Engine   *Engine
	Resource string // name of the export, and of the socket
	Dir      string // of the socket; made with mode 0700 if it is missing
	// Server, if set, is shared with other exports and outlives this one: it can serve
	// all of them on one TCP address. Otherwise the export has a server of its own,
	// made from Config.
	Server *nbd.Server
	Config nbd.Config
}

// Export is an Engine that NBD clients reach at the unix socket DIR/RESOURCE.sock, under the
// name of the resource and as the default export. It exists only while the
// engine logs.
type Export struct {
	name   string
	path   string
	server *nbd.Server
	own    bool
	l      *net.UnixListener

	served chan struct{}
	err    error // of the accept loop
	stop   sync.Mutex
}

// OpenExport starts to serve. The socket of a dead owner is replaced; a live one is
// refused with ErrInUse.
func OpenExport(cfg ExportConfig) (*Export, error) {
	if cfg.Engine == nil || cfg.Resource == "" || cfg.Resource != filepath.Base(cfg.Resource) || cfg.Resource[0] == '.' {
		return nil, fmt.Errorf("export %q: %w: an engine and a plain resource name are needed", cfg.Resource, syscall.EINVAL)
	}
	x := &Export{
		name:   cfg.Resource,
		path:   SocketPath(cfg.Dir, cfg.Resource),
		server: cfg.Server,
		served: make(chan struct{}),
	}
	if len(x.path) > maxSocketPath {
		return nil, fmt.Errorf("export %s: socket path %s has %d bytes, the kernel allows %d; use a shorter --nbd-dir", x.name, x.path, len(x.path), maxSocketPath)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("export %s: %w", x.name, err)
	}
	l, err := listenUnix(x.path)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", x.name, err)
	}
	x.l = l
	if x.server == nil {
		if err := cfg.Config.Validate(); err != nil {
			l.Close()
			return nil, fmt.Errorf("export %s: %w", x.name, err)
		}
		x.server, x.own = nbd.NewServer(cfg.Config), true
	}
	err = x.server.Add(nbd.Export{Name: x.name, Description: "MARS resource " + x.name, Backend: cfg.Engine.Backend(), MinBlock: cfg.Engine.minBlock()})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("export %s: %w", x.name, err)
	}
	go func() {
		defer close(x.served)
		x.err = x.server.ServeExport(l, x.name)
	}()
	return x, nil
}

// SocketPath is where the export of a resource is served while it exists.
func SocketPath(dir, resource string) string { return filepath.Join(dir, resource+".sock") }

// RemoveStale removes the socket of a resource that a killed owner has left: until the
// export is opened again it looks like a device. One that somebody serves stays.
func RemoveStale(dir, resource string) (removed bool, err error) {
	path := SocketPath(dir, resource)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := freeSocket(path); err != nil {
		return false, err
	}
	return true, nil
}

var sockets atomic.Uint32 // numbers temporary socket names

// listenUnix listens on path, with mode 0600 from the first moment on.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := freeSocket(path); err != nil {
		return nil, err
	}
	// Bound under a name that nobody looks for, so that a client never meets a
	// socket before it is 0600 and listening, and of two starters one fails.
	tmp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%d.%d", os.Getpid(), sockets.Add(1)))
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Link(tmp, path) // unlike rename it replaces nothing
	}
	os.Remove(tmp)
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// freeSocket makes sure that path is free: the socket of a dead owner is removed.
func freeSocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s exists and is not a socket; remove it or use another --nbd-dir", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("socket %s: %w by a running server", path, ErrInUse)
	}
	// Only this says that nobody listens; a full backlog does not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("socket %s: %w: its owner does not answer: %v", path, ErrInUse, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// Path is the socket.
func (x *Export) Path() string { return x.path }

// OpenCount is the number of clients that have the device open.
func (x *Export) OpenCount() int { return x.server.OpenCount(x.name) }

// InFlight is the number of requests that have not been answered.
func (x *Export) InFlight() int { return x.server.InFlight(x.name) }

// Stop takes the socket away, disconnects the clients and returns when their requests
// in flight are done, or with the cause of ctx. It can be repeated.
func (x *Export) Stop(ctx context.Context) error {
	x.stop.Lock()
	defer x.stop.Unlock()
	if x.l != nil {
		// Take the name away before the socket closes: from then on it may be another's.
		if err := os.Remove(x.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("stop export %s: %w", x.name, err)
		}
		x.l.Close()
		<-x.served
		x.l = nil
	}
	if err := x.server.Remove(ctx, x.name); err != nil {
		return fmt.Errorf("stop export %s: %w", x.name, err)
	}
	if x.own {
		return x.server.Close()
	}
	return nil
}
