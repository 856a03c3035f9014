package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wire is the socket of a connection during transmission. One goroutine reads
// and, at any time, at most one writes.
type wire interface {
	// Read is like io.Reader. After StopReading it returns io.EOF.
	Read(p []byte) (int, error)
	// Writev sends all of bufs, waiting for the peer as long as it takes. It may change bufs.
	Writev(bufs [][]byte) error
	// TryWritev sends what goes without waiting and returns how many bytes that were.
	TryWritev(bufs [][]byte) (int, error)
	// StopReading wakes a blocked Read for good.
	StopReading()
	// Shutdown breaks both directions and wakes everybody.
	Shutdown()
}

// newWire finds the best wire for a connection whose handshake is over.
func newWire(nc net.Conn) wire {
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return newSockWire(nc, raw)
		}
	}
	return &connWire{nc: nc}
}

// connWire is a wire over any net.Conn.
type connWire struct {
	nc      net.Conn
	stopped atomic.Bool
}

func (w *connWire) Read(p []byte) (int, error) {
	n, err := w.nc.Read(p)
	if err != nil && w.stopped.Load() {
		err = io.EOF
	}
	return n, err
}

func (w *connWire) Writev(bufs [][]byte) error {
	nb := net.Buffers(bufs)
	_, err := nb.WriteTo(w.nc)
	return err
}

func (w *connWire) TryWritev([][]byte) (int, error) { return 0, nil }

func (w *connWire) StopReading() {
	w.stopped.Store(true)
	w.nc.SetReadDeadline(time.Unix(1, 0))
}

func (w *connWire) Shutdown() {
	w.stopped.Store(true)
	w.nc.Close()
}

// sockWire is a wire over a socket. It makes its system calls itself, for two
// reasons. A reply can be tried without waiting (MSG_DONTWAIT), so that whoever completes a request
// may send it. And a receive blocks in the kernel for a moment (idleAfter) before it resorts to the
// runtime's poller: under load that saves two system calls and a scheduling round per request, while an
// idle connection costs no thread.
type sockWire struct {
	nc      net.Conn
	raw     syscall.RawConn
	stopped atomic.Bool

	// The reader's and the writer's call in progress: kept here so that the
	// functions handed to the runtime are made once.
	rbuf []byte
	rn   int
	rerr error
	rfn  func(fd uintptr) bool

	wbufs [][]byte
	wwait bool
	wn    int
	werr  error
	wfn   func(fd uintptr) bool
}

// idleAfter is how long a receive blocks its thread before the connection counts as idle.
const idleAfter = 20 * time.Millisecond

func newSockWire(nc net.Conn, raw syscall.RawConn) *sockWire {
	w := &sockWire{nc: nc, raw: raw}
	w.rfn = w.recv
	w.wfn = w.send
	raw.Control(func(fd uintptr) {
		tv := unix.NsecToTimeval(idleAfter.Nanoseconds())
		if err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return // stays non-blocking, which works as well
		}
		// All sends say MSG_DONTWAIT, so only the receive is affected.
		unix.SetNonblock(int(fd), false)
	})
	return w
}

// recv is one attempt; false makes the runtime wait until the socket is readable.
func (w *sockWire) recv(fd uintptr) bool {
	for {
		n, err := unix.Read(int(fd), w.rbuf)
		switch {
		case errors.Is(err, unix.EINTR) && !w.stopped.Load():
			continue
		case errors.Is(err, unix.EAGAIN):
			return w.stopped.Load()
		}
		w.rn, w.rerr = n, err
		return true
	}
}

func (w *sockWire) Read(p []byte) (int, error) {
	w.rbuf, w.rn, w.rerr = p, 0, nil
	err := w.raw.Read(w.rfn)
	w.rbuf = nil
	if err == nil {
		err = w.rerr
	}
	if w.rn <= 0 && (err == nil || w.stopped.Load()) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	return w.rn, nil
}

// send sends what it can; false makes the runtime wait until the socket is writable.
func (w *sockWire) send(fd uintptr) bool {
	for len(w.wbufs) > 0 {
		var n int
		var err error
		if len(w.wbufs) == 1 {
			n, err = unix.SendmsgN(int(fd), w.wbufs[0], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		} else {
			n, err = unix.SendmsgBuffers(int(fd), w.wbufs, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return !w.wwait
		case err != nil:
			w.werr = os.NewSyscallError("sendmsg", err)
			return true
		}
		w.wn += n
		w.wbufs = consume(w.wbufs, n)
	}
	return true
}

func (w *sockWire) write(bufs [][]byte, wait bool) (int, error) {
	w.wbufs, w.wwait, w.wn, w.werr = bufs, wait, 0, nil
	err := w.raw.Write(w.wfn)
	w.wbufs = nil
	if err == nil {
		err = w.werr
	}
	return w.wn, err
}

func (w *sockWire) Writev(bufs [][]byte) error {
	_, err := w.write(bufs, true)
	return err
}

func (w *sockWire) TryWritev(bufs [][]byte) (int, error) { return w.write(bufs, false) }

func (w *sockWire) shut(how int) {
	w.stopped.Store(true)
	w.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
}

// StopReading wakes a receive that blocks in the kernel (shutdown) as well as one
// that waits in the runtime's poller (which shutdown makes readable).
func (w *sockWire) StopReading() { w.shut(unix.SHUT_RD) }

func (w *sockWire) Shutdown() { w.shut(unix.SHUT_RDWR) }

// consume drops the first n bytes of bufs, in place.
func consume(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// peerName tells people who a client is: the address, or for unix sockets
// the process.
func peerName(nc net.Conn) string {
	if _, ok := nc.(*net.UnixConn); ok {
		name := "unix"
		if raw, err := nc.(syscall.Conn).SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					name = fmt.Sprintf("unix pid %d uid %d", cred.Pid, cred.Uid)
				}
			})
		}
		return name
	}
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return "unknown"
}
