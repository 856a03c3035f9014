package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/nbdproto"
)

// Options say what to connect to.
type Options struct {
	Network     string // "unix" or "tcp"
	Address     string
	Export      string // "" is the server's default
	Connections int    // default 1; more only if the server offers CAN_MULTI_CONN
	Simple      bool   // do not ask for structured replies
	// HandshakeTimeout bounds connecting and the handshake. Default 10 s.
	HandshakeTimeout time.Duration
}

// ParseURI understands nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH.
func ParseURI(uri string) (Options, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Options{}, fmt.Errorf("parse NBD URI: %w", err)
	}
	o := Options{Export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd", "nbd+tcp":
		if u.Hostname() == "" {
			return o, fmt.Errorf("parse NBD URI %q: no host", uri)
		}
		o.Network, o.Address = "tcp", u.Host
		if u.Port() == "" {
			o.Address += ":10809"
		}
	case "nbd+unix":
		if o.Network, o.Address = "unix", u.Query().Get("socket"); o.Address == "" {
			return o, fmt.Errorf("parse NBD URI %q: no ?socket=PATH", uri)
		}
	default:
		return o, fmt.Errorf("parse NBD URI %q: scheme must be nbd or nbd+unix", uri)
	}
	return o, nil
}

// ExportInfo is what a server tells about an export.
type ExportInfo struct {
	Name, Description                  string
	Size                               int64
	Flags                              uint16 // nbdproto.Trans*
	MinBlock, PreferredBlock, MaxBlock uint32
	Structured                         bool // structured replies are agreed on
}

// Has tells whether the export has all these nbdproto.Trans flags.
func (i ExportInfo) Has(flags uint16) bool { return i.Flags&flags == flags }

// List returns name and description of a server's exports.
func List(ctx context.Context, network, address string) ([]ExportInfo, error) {
	r, err := DialRaw(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var exports []ExportInfo
	err = r.during(ctx, func() (err error) {
		exports, err = r.List()
		return err
	})
	return exports, err
}

// Flag modifies a request.
type Flag = uint16

// Flags of requests.
const (
	FUA      = nbdproto.CmdFlagFUA      // return when this request is durable
	NoHole   = nbdproto.CmdFlagNoHole   // WriteZeroes: keep the range allocated
	DF       = nbdproto.CmdFlagDF       // Read: in one chunk
	FastZero = nbdproto.CmdFlagFastZero // WriteZeroes: only if it is fast
)

// Client is a connected export.
type Client struct {
	info  ExportInfo
	conns []*conn
	next  atomic.Uint64

	closeOnce sync.Once
}

// Dial connects to an export.
func Dial(ctx context.Context, o Options) (*Client, error) {
	timeout := o.HandshakeTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := &Client{}
	for want := max(o.Connections, 1); len(c.conns) < want; {
		cn, info, err := dialConn(ctx, o)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("connect to NBD export %q at %s: %w", o.Export, o.Address, err)
		}
		c.conns = append(c.conns, cn)
		c.info = info
		if !info.Has(nbdproto.TransCanMultiConn) {
			want = 1
		}
	}
	return c, nil
}

// Info is what the server said about the export.
func (c *Client) Info() ExportInfo { return c.info }

// Size is the length of the export in bytes.
func (c *Client) Size() int64 { return c.info.Size }

// Connections is how many are open to the server.
func (c *Client) Connections() int { return len(c.conns) }

// MaxRequest is the largest request, in bytes, that is not split.
func (c *Client) MaxRequest() int {
	return int(min(c.info.MaxBlock, nbdproto.MaxPayload))
}

// pick chooses the connection for a request.
func (c *Client) pick() *conn {
	if len(c.conns) == 1 {
		return c.conns[0]
	}
	return c.conns[c.next.Add(1)%uint64(len(c.conns))]
}

// Read fills p from off.
func (c *Client) Read(ctx context.Context, p []byte, off int64, flags ...Flag) error {
	return c.split(int64(len(p)), int64(c.MaxRequest()), func(done, n int64) error {
		return c.pick().do(ctx, nbdproto.CmdRead, or(flags), off+done, n, p[done:done+n])
	})
}

// Write writes p at off.
func (c *Client) Write(ctx context.Context, p []byte, off int64, flags ...Flag) error {
	return c.split(int64(len(p)), int64(c.MaxRequest()), func(done, n int64) error {
		return c.pick().do(ctx, nbdproto.CmdWrite, or(flags), off+done, n, p[done:done+n])
	})
}

// maxRange is the largest request without payload, in bytes: what fits into the length field, by whole blocks.
const maxRange = 1<<32 - 1<<20

// Trim tells that a range is no longer needed.
func (c *Client) Trim(ctx context.Context, off, length int64, flags ...Flag) error {
	return c.split(length, maxRange, func(done, n int64) error {
		return c.pick().do(ctx, nbdproto.CmdTrim, or(flags), off+done, n, nil)
	})
}

// WriteZeroes makes a range read as zeroes.
func (c *Client) WriteZeroes(ctx context.Context, off, length int64, flags ...Flag) error {
	return c.split(length, maxRange, func(done, n int64) error {
		return c.pick().do(ctx, nbdproto.CmdWriteZeroes, or(flags), off+done, n, nil)
	})
}

// Flush returns when all requests that had returned before are durable.
func (c *Client) Flush(ctx context.Context) error {
	return c.pick().do(ctx, nbdproto.CmdFlush, 0, 0, 0, nil)
}

func or(flags []Flag) Flag {
	var all Flag
	for _, f := range flags {
		all |= f
	}
	return all
}

// split calls f for pieces of at most limit bytes, at least once.
func (c *Client) split(length, limit int64, f func(done, n int64) error) error {
	for done := int64(0); ; {
		n := min(length-done, limit)
		if err := f(done, n); err != nil {
			return err
		}
		if done += n; done >= length {
			return nil
		}
	}
}

// ReadAt implements io.ReaderAt, without the io.EOF at the end: reading beyond it is an *Error.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if err := c.Read(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.Write(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye and closes the connections. Requests still in flight fail with
// ErrClosed. It does not flush.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		for _, cn := range c.conns {
			cn.close()
		}
	})
	return nil
}

// Kill breaks the connections without a word, as a client that dies does.
func (c *Client) Kill() {
	for _, cn := range c.conns {
		cn.fail(errKilled)
		<-cn.readerDone
	}
}

var errKilled = errors.New("nbd client was killed")
