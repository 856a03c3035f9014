package transport

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func checkSockopts(t *testing.T, c net.Conn, tos int, congestion string, userTimeout int) {
	t.Helper()
	err := control(c.(*net.TCPConn), func(fd int) error {
		if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS); err != nil || v != tos {
			t.Errorf("IP_TOS %d %v, want %d", v, err, tos)
		}
		if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || v != userTimeout {
			t.Errorf("TCP_USER_TIMEOUT %d %v, want %d", v, err, userTimeout)
		}
		if v, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || v != congestion {
			t.Errorf("TCP_CONGESTION %q %v, want %q", v, err, congestion)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
