package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"

	"mars/device"
	"mars/device/nbd"
	"mars/symlinktree"
	"mars/transport"
)

// exports serves the devices of the node: each on its own unix socket, and all of
// them on the TCP port if there is one.
type exports struct {
	dir     string
	server  *nbd.Server
	replace func(string, *device.Engine) (Exported, error) // Config.OpenExport
}

// Exported is a device that clients can use: a *device.Export, or what a test puts in its place.
type Exported interface {
	Path() string   // for people
	OpenCount() int // clients that have it open
	InFlight() int  // requests without an answer
	// Stop takes it away and returns when no request is in flight. It can be repeated.
	Stop(ctx context.Context) error
}

func (n *Node) openExports() error {
	n.exports = &exports{dir: n.cfg.NBDDir, server: nbd.NewServer(nbd.Config{Log: n.log}), replace: n.cfg.OpenExport}
	n.removeStaleSockets()
	if n.cfg.NBDTCP == "" {
		return nil
	}
	secure, err := n.nbdTLS()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", n.cfg.NBDTCP)
	if err != nil {
		return fmt.Errorf("NBD port: %w (choose another one with --nbd-tcp)", err)
	}
	if secure == nil {
		n.log.Warn("NBD port without TLS: whoever reaches it can read and write every device", keyAddr, n.cfg.NBDTCP)
	}
	n.spawn(func() {
		if err := n.exports.server.ServeTLS(l, secure, secure != nil && n.cfg.NBDTLS.Mode != TLSOn); err != nil {
			n.log.Error("NBD port failed", keyAddr, n.cfg.NBDTCP, keyErr, err)
		}
	})
	return nil
}

// removeStaleSockets removes what a marsd that was killed has left: a client shall not take it for a
// device. A failure matters only when the device is to appear, and is reported then.
func (n *Node) removeStaleSockets() {
	for _, r := range symlinktree.Resources(n.tree.Snapshot()) {
		switch removed, err := device.RemoveStale(n.cfg.NBDDir, string(r)); {
		case err != nil:
			n.log.Warn("socket of an earlier time", keyResource, string(r), keyErr, err)
		case removed:
			n.log.Info("removed the socket that a killed marsd has left", keyPath, device.SocketPath(n.cfg.NBDDir, string(r)))
		}
	}
}

// sayWhere publishes where the device is, or will be while this node is primary.
func (w *worker) sayWhere() {
	if x := w.n.exports; x != nil && x.replace == nil {
		w.n.put(w.r.ActualPath(w.n.cfg.Node, symlinktree.NBDSocketLink), device.SocketPath(x.dir, string(w.r)))
	}
}

// nbdTLS is what the NBD port asks of its clients, nil for nothing.
func (n *Node) nbdTLS() (*tls.Config, error) {
	t := n.cfg.NBDTLS
	switch {
	case t.Mode == TLSOff:
		return nil, nil
	case t.Cert != "":
		return transport.LoadNBDServerTLS(t.Cert, t.Key, t.CA)
	}
	secret, err := n.cfg.secret()
	if err != nil {
		return nil, err
	}
	a, err := transport.NewNBDAuthority(secret)
	if err != nil {
		return nil, err
	}
	hosts := []string{"localhost"}
	if h, err := os.Hostname(); err == nil && h != n.cfg.Node {
		hosts = append(hosts, h)
	}
	return a.ServerTLS(n.cfg.Node, hosts...), nil
}

func (x *exports) close() { x.server.Close() }

func (x *exports) open(name string, eng *device.Engine) (Exported, error) {
	if x.replace != nil {
		return x.replace(name, eng)
	}
	e, err := device.OpenExport(device.ExportConfig{Engine: eng, Resource: name, Dir: x.dir, Server: x.server})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// closeExport makes a device vanish; when it returns no request is in flight.
func closeExport(x Exported) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return x.Stop(ctx)
}
