package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// build compiles marsd, marsadm and go-nbd's server without the race detector.
func build(ctx context.Context, o options) (string, error) {
	bin := filepath.Join(o.dir, "bin")
	args := []string{"build", "-o", bin + "/"}
	if o.profile != "" {
		args = append(args, "-tags", "profile")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/marsd", "./cmd/marsadm")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build marsd: %w", err)
	}
	cmd = exec.CommandContext(ctx, "go", "build", "-C", filepath.Join("bench", "gonbd"), "-o", filepath.Join(bin, "gonbd"), ".")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build bench/gonbd: %w", err)
	}
	return bin, nil
}

// marsNode is one node of a cluster on loopback.
type marsNode struct {
	server
	bin, root, node, addr, secret, disk string
}

func newMarsNode(bin, dir, node, ip, secret string) (*marsNode, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	n := &marsNode{bin: bin, node: node, secret: secret,
		root: filepath.Join(dir, "mars"), addr: l.Addr().String(), disk: filepath.Join(dir, "disk")}
	n.name, n.export = "marsd", "r0"
	n.socket = filepath.Join(dir, "r0.sock")
	return n, os.MkdirAll(n.root, 0o700)
}

func (n *marsNode) env() []string {
	return []string{"MARS_ROOT=" + n.root, "MARS_NODE=" + n.node, "MARS_SECRET=" + n.secret, "MARSD_PPROF=" + n.pprof}
}

func (n *marsNode) adm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "marsadm"), args...)
	cmd.Env = append(os.Environ(), n.env()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("marsadm %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (n *marsNode) daemon(ctx context.Context) error {
	return n.run(ctx, n.env(), filepath.Join(n.bin, "marsd"), "--bind", n.addr, "--nbd-dir", filepath.Dir(n.socket))
}

// view polls a macro until it has the value.
func (n *marsNode) view(ctx context.Context, macro, want string) error {
	last := ""
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		v, err := n.adm(ctx, "view-"+macro, "r0")
		if err != nil {
			return err
		}
		if last = v; v == want {
			return nil
		}
	}
	return fmt.Errorf("view-%s on %s is %q, want %q", macro, n.node, last, want)
}

func startMars(ctx context.Context, o options, bin, dir string) (*server, error) {
	n, err := newMarsNode(bin, dir, "nodea", "127.0.0.61", filepath.Join(dir, "secret"))
	if err != nil {
		return nil, err
	}
	// The disk is as warm as that of the others, and not written for each measurement.
	disk, err := preparedDisk(o, "marsd")
	if err != nil {
		return nil, err
	}
	if err := os.Link(disk, n.disk); err != nil {
		return nil, err
	}
	n.server.disk = disk
	if o.profile != "" {
		n.pprof = filepath.Join(dir, "pprof")
	}
	if err := n.create(ctx); err != nil {
		return nil, err
	}
	return &n.server, nil
}

// create makes a cluster of one with one resource on its disk.
func (n *marsNode) create(ctx context.Context) error {
	if _, err := n.adm(ctx, "create-cluster", "--ip="+n.addr); err != nil {
		return err
	}
	if err := n.daemon(ctx); err != nil {
		return err
	}
	if _, err := n.adm(ctx, "create-resource", "r0", n.disk); err != nil {
		return err
	}
	if _, err := n.adm(ctx, "wait-resource", "r0", "is-device"); err != nil {
		return err
	}
	return n.await(ctx)
}
