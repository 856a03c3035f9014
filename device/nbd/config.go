package nbd

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"mars/internal/nbdproto"
)

// Config are the settings of a Server. The zero value of a field means its default.
type Config struct {
	Log *slog.Logger // default slog.Default

	// MaxConns bounds the connections of the server, those in the handshake included; further ones
	// are closed at once. Default 1024.
	MaxConns int
	// HandshakeTimeout bounds the time from accept to the first request. Default 10 s.
	HandshakeTimeout time.Duration
	// DrainTimeout is how long a connection that is being closed may take to read the replies
	// that it is owed. It does not bound the backend. Default 1 s.
	DrainTimeout time.Duration
	// MaxInFlight is the number of requests of one connection that may wait for the
	// backend; beyond it the server stops reading from that connection. Default 1024.
	MaxInFlight int
	// MaxInFlightBytes bounds the read data of one connection that is waited for or not yet
	// taken by the client. One request is always admitted. Default 64 MiB.
	MaxInFlightBytes int64
	// ReadWorkers bounds the reads of one export that wait for its disk at the same time. Default 32.
	ReadWorkers int
	// ReceiveBuffer is the memory, in bytes, that one receive may fill. It bounds the size
	// of a batch. Default 512 KiB: more than a unix socket holds.
	ReceiveBuffer int
}

// DefaultConfig is what the zero Config stands for.
func DefaultConfig() Config {
	return Config{
		Log:              slog.Default(),
		MaxConns:         1024,
		HandshakeTimeout: 10 * time.Second,
		DrainTimeout:     time.Second,
		MaxInFlight:      1024,
		MaxInFlightBytes: 64 << 20,
		ReadWorkers:      32,
		ReceiveBuffer:    512 << 10,
	}
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	d := DefaultConfig()
	if c.Log == nil {
		c.Log = d.Log
	}
	orDefault(&c.MaxConns, d.MaxConns)
	orDefault(&c.HandshakeTimeout, d.HandshakeTimeout)
	orDefault(&c.DrainTimeout, d.DrainTimeout)
	orDefault(&c.MaxInFlight, d.MaxInFlight)
	orDefault(&c.MaxInFlightBytes, d.MaxInFlightBytes)
	orDefault(&c.ReadWorkers, d.ReadWorkers)
	orDefault(&c.ReceiveBuffer, d.ReceiveBuffer)
	return c
}

// Validate reports settings that cannot work.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.MaxConns < 0, "nbd: MaxConns %d is negative", c.MaxConns)
	bad(c.HandshakeTimeout < 0, "nbd: HandshakeTimeout %v is negative", c.HandshakeTimeout)
	bad(c.DrainTimeout < 0, "nbd: DrainTimeout %v is negative", c.DrainTimeout)
	bad(c.MaxInFlight < 0, "nbd: MaxInFlight %d is negative", c.MaxInFlight)
	bad(c.MaxInFlightBytes < 0, "nbd: MaxInFlightBytes %d is negative", c.MaxInFlightBytes)
	bad(c.ReadWorkers < 0, "nbd: ReadWorkers %d is negative", c.ReadWorkers)
	bad(c.ReceiveBuffer < 4096 || c.ReceiveBuffer > nbdproto.MaxPayload, "nbd: ReceiveBuffer %d is not between 4096 and %d", c.ReceiveBuffer, nbdproto.MaxPayload)
	return errors.Join(errs...)
}
