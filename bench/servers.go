package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// server is one NBD server under test, on a unix socket.
type server struct {
	name   string
	socket string
	export string
	proc   *exec.Cmd
	stop   func()
}

func (s *server) uri() string { return fmt.Sprintf("nbd+unix:///%s?socket=%s", s.export, s.socket) }

// starter makes a fresh server with a device of size bytes in dir.
type starter struct {
	name  string
	start func(ctx context.Context, dir string, size int64) (*server, error)
}

func starters(bin string) []starter {
	return []starter{
		{"marsd", func(ctx context.Context, dir string, size int64) (*server, error) {
			return startMars(ctx, bin, dir, size)
		}},
		{"nbdkit file", func(ctx context.Context, dir string, size int64) (*server, error) {
			disk, sock := filepath.Join(dir, "disk"), filepath.Join(dir, "sock")
			return startPeer(ctx, "nbdkit file", disk, size, sock, "nbdkit", "-f", "-U", sock, "file", disk)
		}},
		{"qemu-nbd", func(ctx context.Context, dir string, size int64) (*server, error) {
			disk, sock := filepath.Join(dir, "disk"), filepath.Join(dir, "sock")
			return startPeer(ctx, "qemu-nbd", disk, size, sock, "qemu-nbd", "-f", "raw", "--cache=writeback", "-t", "-e", "16", "-k", sock, disk)
		}},
		{"nbdkit memory", func(ctx context.Context, dir string, size int64) (*server, error) {
			sock := filepath.Join(dir, "sock")
			return startPeer(ctx, "nbdkit memory", "", size, sock, "nbdkit", "-f", "-U", sock, "memory", fmt.Sprint(size))
		}},
	}
}

func makeDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Written, not sparse: allocation is not what is compared.
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := f.Write(buf[:min(int64(len(buf)), size-off)]); err != nil {
			return err
		}
	}
	return f.Sync()
}

func startPeer(ctx context.Context, name, disk string, size int64, sock string, args ...string) (*server, error) {
	if disk != "" {
		if err := makeDisk(disk, size); err != nil {
			return nil, err
		}
	}
	s := &server{name: name, socket: sock}
	if err := s.run(ctx, nil, args...); err != nil {
		return nil, err
	}
	return s, s.await(ctx)
}

// run starts the process; stop ends it and waits.
func (s *server) run(ctx context.Context, env []string, args ...string) error {
	s.proc = exec.CommandContext(ctx, args[0], args[1:]...)
	s.proc.Env = append(os.Environ(), env...)
	log, err := os.Create(s.socket + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	s.proc.Stderr = log
	if err := s.proc.Start(); err != nil {
		return fmt.Errorf("%s: %w (make deps installs it)", args[0], err)
	}
	s.stop = func() {
		s.proc.Process.Signal(syscall.SIGTERM)
		s.proc.Wait()
	}
	return nil
}

// await waits until the socket answers.
func (s *server) await(ctx context.Context) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			c.Close()
			return nil
		}
	}
	b, _ := os.ReadFile(s.socket + ".log")
	s.stop()
	return fmt.Errorf("%s does not serve %s: %s", s.name, s.socket, b)
}
