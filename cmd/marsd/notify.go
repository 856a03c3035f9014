package main

import (
	"net"
	"os"
	"time"
)

// notify tells systemd about our state (sd_notify protocol: one datagram). It
// does nothing when nobody listens.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(notifyTimeout))
	c.Write([]byte(state))
}
