package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is one NBD server under test, on a unix socket.
type server struct {
	name   string
	socket string
	export string
	disk   string // the file behind it, if there is one
	pprof  string // socket of the profiles
	proc   *exec.Cmd
	stop   func()
}

func (s *server) uri() string { return fmt.Sprintf("nbd+unix:///%s?socket=%s", s.export, s.socket) }

// starter makes a fresh server with a device of o.size bytes.
type starter struct {
	name    string
	unsafe  string                                                            // why it has no part in loads with FLUSH or FUA
	foreign bool                                                              // measured by fio's NBD client
	start   func(ctx context.Context, o options, dir string) (*server, error) // nil: no server
}

// starters are marsd and what it is compared with. marsd is the first.
func starters(bin string) []starter {
	peer := func(name string, args func(disk, sock string, size int64) []string) func(context.Context, options, string) (*server, error) {
		return func(ctx context.Context, o options, dir string) (*server, error) {
			disk, err := preparedDisk(o, name)
			if err != nil {
				return nil, err
			}
			sock := filepath.Join(dir, "sock")
			s := &server{name: name, socket: sock, disk: disk}
			if err := s.run(ctx, nil, args(disk, sock, o.size)...); err != nil {
				return nil, err
			}
			return s, s.await(ctx)
		}
	}
	mars := func(ctx context.Context, o options, dir string) (*server, error) { return startMars(ctx, o, bin, dir) }
	qemu := func(cache string) func(disk, sock string, _ int64) []string {
		return func(disk, sock string, _ int64) []string {
			return []string{"qemu-nbd", "-f", "raw", "--cache=" + cache, "-t", "-e", "16", "-k", sock, disk}
		}
	}
	return []starter{
		{name: "marsd", start: mars},
		{name: "nbdkit file", start: peer("nbdkit file", func(disk, sock string, _ int64) []string {
			return []string{"nbdkit", "-f", "-U", sock, "file", disk}
		})},
		{name: "qemu-nbd writeback", start: peer("qemu-nbd writeback", qemu("writeback"))},
		{name: "qemu-nbd none", start: peer("qemu-nbd none", qemu("none"))},
		{name: "go-nbd", unsafe: "no FLUSH, no FUA", start: peer("go-nbd", func(disk, sock string, _ int64) []string {
			return []string{filepath.Join(bin, "gonbd"), sock, disk}
		})},
		{name: "nbdkit memory", unsafe: "not durable", start: func(ctx context.Context, o options, dir string) (*server, error) {
			s := &server{name: "nbdkit memory", socket: filepath.Join(dir, "sock")}
			if err := s.run(ctx, nil, "nbdkit", "-f", "-U", s.socket, "memory", fmt.Sprint(o.size)); err != nil {
				return nil, err
			}
			if err := s.await(ctx); err != nil {
				return nil, err
			}
			// Its memory is allocated by the first write, which the files of the others had long ago.
			fill := load{block: 1 << 20, seq: true, depth: 4, conns: 1, count: o.size >> 20}
			_, err := drive(ctx, s, fill, o)
			return s, err
		}},
		{name: "raw file (fio)"},
		{name: "marsd (fio nbd)", foreign: true, start: mars},
		{name: "nbdkit file (fio nbd)", foreign: true, start: peer("nbdkit file", func(disk, sock string, _ int64) []string {
			return []string{"nbdkit", "-f", "-U", sock, "file", disk}
		})},
	}
}

// preparedDisk is the written file of a server; it is made once.
func preparedDisk(o options, name string) (string, error) {
	path := filepath.Join(o.dir, strings.NewReplacer(" ", "-", "(", "", ")", "").Replace(name)+".disk")
	if st, err := os.Stat(path); err == nil && st.Size() == o.size {
		return path, nil
	}
	return path, makeDisk(path, o.size)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
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
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
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
