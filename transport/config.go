package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Protocol is the version of the wire protocol. It is also in the paths (/v1/).
const Protocol = 1

// Class separates traffic that must not delay each other. Each class of a peer
// has connections and a token bucket of its own.
type Class int

const (
	ClassTree Class = iota // hello, tree exchange, nudge
	ClassLog               // log subscriptions
	ClassSync              // range reads and digests
	numClasses
)

func (c Class) String() string {
	switch c {
	case ClassTree:
		return "tree"
	case ClassLog:
		return "log"
	case ClassSync:
		return "sync"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Limits are sending rates in bytes per second for each peer, 0 = unlimited.
type Limits struct{ Tree, Log, Sync int64 }

func (l Limits) of(c Class) int64 { return [numClasses]int64{l.Tree, l.Log, l.Sync}[c] }

// DSCP are code points (0 to 63) for each class, 0 = the system's default. The
// sender of the data marks it.
type DSCP struct{ Tree, Log, Sync int }

func (d DSCP) of(c Class) int { return [numClasses]int{d.Tree, d.Log, d.Sync}[c] }

// Config has the knobs of Server and Peer. A zero field means its default.
type Config struct {
	Log *slog.Logger

	// HeartbeatInterval: a stream that has nothing to say says so this often. The
	// receiver gives up after silentHeartbeats (3) intervals without a single byte. Both
	// ends must use the same value. Default 1 s.
	HeartbeatInterval time.Duration
	// DialTimeout bounds connecting (TCP), HandshakeTimeout what follows until the
	// peer is authenticated and has sent its request. Default 5 s and 10 s.
	DialTimeout, HandshakeTimeout time.Duration
	// RequestTimeout bounds the time until a reply begins, and the silence within
	// it where there are no heartbeats. Default 30 s.
	RequestTimeout time.Duration
	// WriteTimeout bounds how long the network may accept not a single byte of what
	// is being sent. Default 30 s.
	WriteTimeout time.Duration
	// IdleTimeout closes connections that nobody used. Default 90 s.
	IdleTimeout time.Duration
	// StreamAge ends a stream after a while (clean for the caller: it resumes), so
	// that nothing forgotten lives for ever. Default 1 h.
	StreamAge time.Duration
	// UserTimeout is TCP_USER_TIMEOUT: sent data that is not acknowledged for so
	// long ends the connection. Default 20 s. KeepAlive is the interval of TCP
	// keepalive probes, 3 of which may be lost. Default 5 s.
	UserTimeout, KeepAlive time.Duration

	// MaxConns bounds a server's authenticated connections in all and
	// MaxPeerConns those of one peer; MaxHandshakes those that are not authenticated
	// yet (beyond it the address with most of them loses its oldest); MaxRequests the tree and sync
	// requests being served at a time. Defaults 16384, 4096, 1024, 64.
	MaxConns, MaxPeerConns, MaxHandshakes, MaxRequests int

	Limits Limits
	// NoCompression: a server sends no compressed frames and a peer asks for none, until SetCompression.
	NoCompression bool
	DSCP          DSCP
	// Congestion is TCP_CONGESTION ("bbr", "cubic"), "" = the system's default.
	Congestion string

	// LogInterval is the least time between two log lines about the same kind of
	// trouble that a stranger can cause at will. Default 10 s.
	LogInterval time.Duration

	// Dial replaces the TCP dialer, for tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// maxDials is how many connections to one peer are being made at a time, so that
// hundreds of streams starting at once do not look like an attack.
const maxDials = 16

// silentHeartbeats is how many intervals without a byte end a stream.
const silentHeartbeats = 3

// DefaultConfig returns the values that zero fields stand for.
func DefaultConfig() Config {
	return Config{
		Log:               slog.Default(),
		HeartbeatInterval: time.Second,
		DialTimeout:       5 * time.Second,
		HandshakeTimeout:  10 * time.Second,
		RequestTimeout:    30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       90 * time.Second,
		StreamAge:         time.Hour,
		UserTimeout:       20 * time.Second,
		KeepAlive:         5 * time.Second,
		MaxConns:          16384,
		MaxPeerConns:      4096,
		MaxHandshakes:     1024,
		MaxRequests:       64,
		LogInterval:       10 * time.Second,
	}
}

// Validate reports the first nonsensical value. Zero is never nonsense.
func (c Config) Validate() error {
	for _, d := range []struct {
		name string
		v    time.Duration
	}{
		{"HeartbeatInterval", c.HeartbeatInterval}, {"DialTimeout", c.DialTimeout}, {"HandshakeTimeout", c.HandshakeTimeout},
		{"RequestTimeout", c.RequestTimeout}, {"WriteTimeout", c.WriteTimeout}, {"IdleTimeout", c.IdleTimeout},
		{"StreamAge", c.StreamAge}, {"UserTimeout", c.UserTimeout}, {"KeepAlive", c.KeepAlive}, {"LogInterval", c.LogInterval},
	} {
		if d.v != 0 && (d.v < time.Millisecond || d.v > 24*time.Hour) {
			return fmt.Errorf("transport config: %s is %v, want 1ms to 24h", d.name, d.v)
		}
	}
	if d := c.withDefaults(); d.RequestTimeout < 2*d.HeartbeatInterval {
		return fmt.Errorf("transport config: RequestTimeout %v is below two heartbeats of %v, the first of which comes late in a slow reply", d.RequestTimeout, d.HeartbeatInterval)
	}
	for _, n := range []struct {
		name string
		v    int
	}{{"MaxConns", c.MaxConns}, {"MaxPeerConns", c.MaxPeerConns}, {"MaxHandshakes", c.MaxHandshakes}, {"MaxRequests", c.MaxRequests}} {
		if n.v < 0 {
			return fmt.Errorf("transport config: %s is %d, want at least 1", n.name, n.v)
		}
	}
	if err := (&Traffic{Limits: c.Limits}).Validate(); err != nil {
		return fmt.Errorf("transport config: %w", err)
	}
	for class := range numClasses {
		if d := c.DSCP.of(class); d < 0 || d > 63 {
			return fmt.Errorf("transport config: DSCP of class %v is %d, want 0 to 63", class, d)
		}
	}
	if len(c.Congestion) > 15 {
		return errors.New("transport config: name of the congestion control is longer than 15 characters")
	}
	return nil
}

// withDefaults fills the zero fields.
func (c Config) withDefaults() Config {
	d := DefaultConfig()
	if c.Log == nil {
		c.Log = d.Log
	}
	for _, f := range []struct{ v, d *time.Duration }{
		{&c.HeartbeatInterval, &d.HeartbeatInterval}, {&c.DialTimeout, &d.DialTimeout}, {&c.HandshakeTimeout, &d.HandshakeTimeout},
		{&c.RequestTimeout, &d.RequestTimeout}, {&c.WriteTimeout, &d.WriteTimeout}, {&c.IdleTimeout, &d.IdleTimeout},
		{&c.StreamAge, &d.StreamAge}, {&c.UserTimeout, &d.UserTimeout}, {&c.KeepAlive, &d.KeepAlive}, {&c.LogInterval, &d.LogInterval},
	} {
		if *f.v == 0 {
			*f.v = *f.d
		}
	}
	for _, f := range []struct{ v, d *int }{
		{&c.MaxConns, &d.MaxConns}, {&c.MaxPeerConns, &d.MaxPeerConns}, {&c.MaxHandshakes, &d.MaxHandshakes}, {&c.MaxRequests, &d.MaxRequests},
	} {
		if *f.v == 0 {
			*f.v = *f.d
		}
	}
	return c
}
