package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
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
	// Close frees the socket. Nobody reads or writes any more; StopReading and
	// Shutdown may still come, and do nothing.
	Close()
}

// newWire finds the best wire for a connection whose handshake is over. It takes nc over.
func newWire(nc net.Conn) wire {
	if w := newSockWire(nc); w != nil {
		nc.Close() // its socket lives on in w, out of the runtime's poller
		return w
	}
	return &connWire{nc: nc, raw: nc}
}

// connWire is a wire over any net.Conn.
type connWire struct {
	nc      net.Conn
	raw     net.Conn // what nc sends through: nc itself, or the socket below TLS
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

func (w *connWire) Close() { w.nc.Close() }

func (w *connWire) Shutdown() {
	w.stopped.Store(true)
	w.raw.Close() // TLS would first try to say good-bye
}

// sockWire is a wire over a socket whose descriptor it owns, for two reasons. A reply can be tried without
// waiting (MSG_DONTWAIT), so that whoever completes a request may send it. And a receive blocks in the kernel for a
// moment (idleAfter) before it resorts to the runtime's poller: under load that saves two more system
// calls, a thread switch and a scheduling round per request, while an idle connection costs no thread.
type sockWire struct {
	fd      int
	stopped atomic.Bool
	idle    atomic.Bool // waits without a thread

	mu     sync.Mutex // keeps the descriptor while somebody shuts it down
	closed bool
}

// idleAfter is how long a receive blocks its thread before the connection counts as idle.
const idleAfter = 20 * time.Millisecond

// newSockWire returns nil if nc is not a socket that can be taken over.
func newSockWire(nc net.Conn) *sockWire {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	w := &sockWire{fd: -1}
	raw.Control(func(fd uintptr) {
		dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		tv := unix.NsecToTimeval(idleAfter.Nanoseconds())
		if err := unix.SetsockoptTimeval(dup, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			unix.Close(dup)
			return
		}
		w.fd = dup
	})
	if w.fd < 0 {
		return nil
	}
	unix.SetNonblock(w.fd, false)
	return w
}

func (w *sockWire) Read(p []byte) (int, error) {
	for !w.stopped.Load() {
		n, err := unix.Read(w.fd, p)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			return 0, io.EOF
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.waitIdle()
		default:
			return 0, os.NewSyscallError("read", err)
		}
	}
	return 0, io.EOF
}

// waitIdle waits without a thread until there may be something to read. If that
// cannot be had, it returns at once and the next receive blocks its thread again.
func (w *sockWire) waitIdle() {
	dup, err := unix.FcntlInt(uintptr(w.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	// The flag belongs to both descriptors; sends say themselves whether they wait.
	unix.SetNonblock(dup, true)
	f := os.NewFile(uintptr(dup), "nbd") // joins the poller because the descriptor is non-blocking
	defer f.Close()
	w.idle.Store(true)
	defer w.idle.Store(false)
	if raw, err := f.SyscallConn(); err == nil {
		// The first look is not idle: the runtime forgets an event that came before it was asked to wait.
		raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR) || w.stopped.Load()
		})
	}
	unix.SetNonblock(w.fd, false)
}

// send sends all of bufs or, unless wait, what the socket takes at once.
func (w *sockWire) send(bufs [][]byte, wait bool) (sent int, err error) {
	for len(bufs) > 0 {
		var n int
		if len(bufs) == 1 {
			n, err = unix.SendmsgN(w.fd, bufs[0], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		} else {
			n, err = unix.SendmsgBuffers(w.fd, bufs, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && !wait:
			return sent, nil
		case errors.Is(err, unix.EAGAIN):
			// A slow client costs a thread. A shutdown ends the poll, too.
			unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLOUT}}, -1)
		case err != nil:
			return sent, os.NewSyscallError("sendmsg", err)
		default:
			sent += n
			bufs = consume(bufs, n)
		}
	}
	return sent, nil
}

func (w *sockWire) Writev(bufs [][]byte) error {
	_, err := w.send(bufs, true)
	return err
}

func (w *sockWire) TryWritev(bufs [][]byte) (int, error) { return w.send(bufs, false) }

func (w *sockWire) shut(how int) {
	w.stopped.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		unix.Shutdown(w.fd, how)
	}
}

// StopReading wakes a receive that blocks in the kernel (shutdown) as well as one
// that waits in the runtime's poller (which shutdown makes readable).
func (w *sockWire) StopReading() { w.shut(unix.SHUT_RD) }

func (w *sockWire) Shutdown() { w.shut(unix.SHUT_RDWR) }

func (w *sockWire) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		unix.Close(w.fd)
	}
}

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
