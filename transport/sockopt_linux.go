package transport

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune applies the settings to a TCP connection and does nothing to others.
// What the kernel refuses is reported but the connection works all the same.
func (c *Config) tune(conn net.Conn) error {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	var errs []error
	errs = append(errs, tc.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: c.KeepAlive, Interval: c.KeepAlive, Count: 3,
	}))
	errs = append(errs, control(tc, func(fd int) error {
		var errs []error
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(c.UserTimeout.Milliseconds())); err != nil {
			errs = append(errs, fmt.Errorf("TCP_USER_TIMEOUT: %w", err))
		}
		if c.Congestion != "" {
			if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, c.Congestion); err != nil {
				errs = append(errs, fmt.Errorf("TCP_CONGESTION %s: %w", c.Congestion, err))
			}
		}
		return errors.Join(errs...)
	}))
	return errors.Join(errs...)
}

// mark sets the DSCP of a class.
func (c *Config) mark(conn net.Conn, class Class) error {
	tc, ok := conn.(*net.TCPConn)
	if !ok || c.DSCP == (DSCP{}) {
		return nil
	}
	tos := c.DSCP.of(class) << 2
	return control(tc, func(fd int) error {
		// A socket has one of the two families, or both if it is dual.
		err4 := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, tos)
		err6 := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
		if err4 != nil && err6 != nil {
			return fmt.Errorf("DSCP: %w", err4)
		}
		return nil
	})
}

// deliveryRate is what TCP has measured lately, in bytes per second; 0 if it has not, or if c is not TCP.
func deliveryRate(c net.Conn) float64 {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return 0
	}
	var rate uint64
	err := control(tc, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			rate = info.Delivery_rate
		}
		return err
	})
	if err != nil {
		return 0
	}
	return float64(rate)
}

func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
