package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"mars/device"
	"mars/device/nbd"
)

// exports holds what all devices of the node share: the socket directory and the
// optional TCP server.
type exports struct {
	dir string
	tcp *nbd.Server // nil without --nbd-tcp
	cfg nbd.Config
}

func (n *Node) openExports() error {
	n.exports = &exports{dir: n.cfg.NBDDir, cfg: nbd.Config{Log: n.log}}
	if err := os.MkdirAll(n.cfg.NBDDir, 0o755); err != nil {
		return fmt.Errorf("directory of the device sockets: %w (choose one with --nbd-dir)", err)
	}
	if n.cfg.NBDTCP == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.NBDTCP)
	if err != nil {
		return fmt.Errorf("NBD port: %w", err)
	}
	n.exports.tcp = nbd.NewServer(n.exports.cfg)
	n.spawn(func() {
		if err := n.exports.tcp.Serve(l); err != nil {
			n.log.Error("NBD port failed", keyAddr, n.cfg.NBDTCP, keyErr, err)
		}
	})
	return nil
}

func (x *exports) close() {
	if x.tcp != nil {
		x.tcp.Close()
	}
}

// export is the device of one resource while it exists.
type export struct {
	x    *exports
	name string
	unix *device.Export
}

func (x *exports) open(name string, eng *device.Engine) (*export, error) {
	unix, err := device.OpenExport(device.ExportConfig{Engine: eng, Resource: name, Dir: x.dir, Server: x.cfg})
	if err != nil {
		return nil, err
	}
	if x.tcp != nil {
		err := x.tcp.Add(nbd.Export{Name: name, Description: "MARS resource " + name, Backend: eng.Backend()})
		if err != nil {
			return nil, errors.Join(err, unix.Stop(context.Background()))
		}
	}
	return &export{x, name, unix}, nil
}

// openCount is exact: the connections that have entered transmission.
func (e *export) openCount() int {
	n := e.unix.OpenCount()
	if e.x.tcp != nil {
		n += e.x.tcp.OpenCount(e.name)
	}
	return n
}

func (e *export) inFlight() int {
	n := e.unix.InFlight()
	if e.x.tcp != nil {
		n += e.x.tcp.InFlight(e.name)
	}
	return n
}

// close makes the device vanish; when it returns no request is in flight.
func (e *export) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	if e.x.tcp != nil {
		err = e.x.tcp.Remove(ctx, e.name)
	}
	return errors.Join(err, e.unix.Stop(ctx))
}
