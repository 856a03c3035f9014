package cluster

import (
	"context"
	"fmt"
	"net"
	"time"

	"mars/device"
	"mars/device/nbd"
)

// exports serves the devices of the node: each on its own unix socket, and all of
// them on the TCP port if there is one.
type exports struct {
	dir    string
	server *nbd.Server
}

func (n *Node) openExports() error {
	n.exports = &exports{dir: n.cfg.NBDDir, server: nbd.NewServer(nbd.Config{Log: n.log})}
	if n.cfg.NBDTCP == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.NBDTCP)
	if err != nil {
		return fmt.Errorf("NBD port: %w (choose another one with --nbd-tcp)", err)
	}
	n.spawn(func() {
		if err := n.exports.server.Serve(l); err != nil {
			n.log.Error("NBD port failed", keyAddr, n.cfg.NBDTCP, keyErr, err)
		}
	})
	return nil
}

func (x *exports) close() { x.server.Close() }

func (x *exports) open(name string, eng *device.Engine) (*device.Export, error) {
	return device.OpenExport(device.ExportConfig{Engine: eng, Resource: name, Dir: x.dir, Server: x.server})
}

// closeExport makes a device vanish; when it returns no request is in flight.
func closeExport(x *device.Export) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return x.Stop(ctx)
}
