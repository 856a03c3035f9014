package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Peer is the client side of one other node. It holds no connection until it is
// used. All methods may be called concurrently; none of them retries: the caller
// decides when, and resumes where the error says.
type Peer struct {
	id    *Identity
	name  string
	addr  string
	cfg   Config
	cfgOK error
	tls   *tls.Config
	quiet *quietLog

	ctx    context.Context
	cancel context.CancelCauseFunc

	plain atomic.Bool // no compressed frames

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup

	// One pool for each class, so that they never share a TCP connection; streams
	// take a connection each and give it up when they end.
	pools   [numClasses]*http.Transport
	dials   chan struct{} // a token for each connection being made
	streams *http.Transport
}

// NewPeer describes the node name at addr (host:port of its data port). cfg is
// checked by the first call.
func NewPeer(id *Identity, name, addr string, cfg Config) *Peer {
	p := &Peer{id: id, name: name, addr: addr, cfgOK: cfg.Validate(), cfg: cfg.withDefaults()}
	if err := checkName("node name", name); err != nil && p.cfgOK == nil {
		p.cfgOK = err
	}
	p.quiet = newQuietLog(p.cfg.Log, p.cfg.LogInterval)
	p.tls = id.ClientTLS(name)
	p.plain.Store(p.cfg.NoCompression)
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	for i := range p.pools {
		p.pools[i] = p.pool(Class(i))
	}
	p.dials = make(chan struct{}, maxDials)
	p.streams = p.pool(ClassLog)
	p.streams.DisableKeepAlives = true
	return p
}

// Name is the node's name.
func (p *Peer) Name() string { return p.name }

// Addr is where it is expected.
func (p *Peer) Addr() string { return p.addr }

// SetCompression says whether replies may have compressed frames, from the next request on.
func (p *Peer) SetCompression(on bool) { p.plain.Store(!on) }

// accept adds to a request for frames that they may be compressed, and says whether it did.
func (p *Peer) accept(q url.Values) (packed bool) {
	if p.plain.Load() {
		return false
	}
	q.Set("accept", acceptLZ4)
	return true
}

func (p *Peer) pool(class Class) *http.Transport {
	return &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, class) },
		DisableCompression:  true,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     p.cfg.IdleTimeout / 2, // always before the server's, so that none is closed under a request
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		// What a reply may put into memory before anybody looks at it.
		MaxResponseHeaderBytes: 16 << 10,
	}
}

func (p *Peer) dial(ctx context.Context, class Class) (net.Conn, error) {
	ctx, cancel := p.bind(ctx)
	defer cancel()
	turn := time.NewTimer(p.cfg.RequestTimeout)
	defer turn.Stop()
	select {
	case p.dials <- struct{}{}:
		defer func() { <-p.dials }()
	case <-turn.C:
		return nil, fmt.Errorf("%w: %d other connections are waiting for it", ErrTimeout, maxDials)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	tctx, stop := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer stop()
	dial := p.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	raw, err := dial(tctx, "tcp", p.addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := errors.Join(p.cfg.tune(raw), p.cfg.mark(raw, class)); err != nil {
		p.quiet.warn("sockopt", "socket settings refused by the kernel", "peer", p.name, "err", err)
	}
	g := newGuard(raw, p.cfg.RequestTimeout, p.cfg.WriteTimeout)
	hctx, stop := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	defer stop()
	g.in.on = true
	tc := tls.Client(g, p.tls)
	if err := tc.HandshakeContext(hctx); err != nil {
		raw.Close()
		if hctx.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: no TLS handshake within %v", ErrTimeout, p.cfg.HandshakeTimeout)
		}
		return nil, err
	}
	return tc, nil
}

// bind makes a context that ends with ctx and with the Peer.
func (p *Peer) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.ctx, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil) }
}

// Close ends all calls and returns when they have ended.
func (p *Peer) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel(ErrClosed)
	p.calls.Wait()
	for _, t := range p.pools {
		t.CloseIdleConnections()
	}
	p.streams.CloseIdleConnections()
	return nil
}

// exchange is a request whose reply is being read.
type exchange struct {
	*http.Response
	conn *guardConn
	done func()
}

// silence sets how long the peer may send nothing from now on.
func (x *exchange) silence(d time.Duration) {
	if x.conn != nil {
		x.conn.readTimeout.Store(int64(d))
	}
}

// request describes what to ask for.
type request struct {
	class  Class
	stream bool
	method string
	path   string
	query  url.Values
	body   any
}

func (p *Peer) start(ctx context.Context, q request) (*exchange, error) {
	if p.cfgOK != nil {
		return nil, p.cfgOK
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	p.calls.Add(1)
	p.mu.Unlock()
	ctx, cancel := p.bind(ctx)
	x := &exchange{}
	x.done = sync.OnceFunc(func() {
		if x.Response != nil {
			x.Body.Close()
		}
		cancel()
		p.calls.Done()
	})
	if err := p.roundTrip(ctx, q, x); err != nil {
		x.done()
		return nil, err
	}
	return x, nil
}

func (p *Peer) roundTrip(ctx context.Context, q request, x *exchange) error {
	var body io.Reader
	if q.body != nil {
		b, err := json.Marshal(q.body)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		x.conn = guardOf(info.Conn)
		x.silence(p.cfg.RequestTimeout)
	}})
	u := url.URL{Scheme: "https", Host: p.name, Path: q.path, RawQuery: q.query.Encode()}
	r, err := http.NewRequestWithContext(ctx, q.method, u.String(), body)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "marsd")
	// All requests are idempotent, so one that finds a kept connection dead may go
	// out again. Not sent on the wire.
	r.Header["Idempotency-Key"] = []string{}
	t := p.pools[q.class]
	if q.stream {
		t = p.streams
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	x.Response = resp
	if resp.StatusCode != http.StatusOK {
		var we wireError
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4*maxErrorText))
		if json.Unmarshal(b, &we) != nil || we.Message == "" {
			we = wireError{"failed", fmt.Sprintf("HTTP status %s", resp.Status)}
		}
		return we.err()
	}
	return nil
}

// json does a request with one JSON object as its reply.
func (p *Peer) json(ctx context.Context, q request, limit int64, into any) error {
	x, err := p.start(ctx, q)
	if err != nil {
		return err
	}
	defer x.done()
	b, err := io.ReadAll(io.LimitReader(x.Body, limit+1))
	if err != nil {
		return truncated(err, "in a reply")
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("%w: reply longer than %d bytes", ErrCorrupt, limit)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: reply: %v", ErrCorrupt, err)
	}
	return nil
}

// explain turns what net, tls and net/http say into this package's errors, and
// adds who and where. ctx is the caller's: its end is not the peer's fault.
func (p *Peer) explain(ctx context.Context, e Error, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.ctx.Err() != nil {
		return ErrClosed
	}
	e.Peer, e.Addr, e.Err = p.name, p.addr, err
	var netErr *net.OpError
	var recErr tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrSecret):
		e.Hint = "compare the secret files of both nodes"
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.Err = fmt.Errorf("%w: %v", ErrTimeout, err)
	case errors.As(err, &recErr), errors.As(err, &netErr) && netErr.Op == "local error":
		// TLS found a record that nobody with the key has sent like this.
		e.Err = fmt.Errorf("%w: %v", ErrCorrupt, err)
	case errors.As(err, &netErr) && netErr.Op == "remote error":
		e.Err = fmt.Errorf("%w (it says: %v)", ErrSecret, netErr.Err)
		e.Hint = "it refused our certificate; compare the secret files of both nodes"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Err = ErrTruncated
	}
	return &e
}

// Hello introduces this node. The peer may refuse.
func (p *Peer) Hello(ctx context.Context, h Hello) (Hello, error) {
	h.Protocol = Protocol
	var out Hello
	err := p.json(ctx, request{method: "POST", path: "/v1/hello", body: h}, maxSmallBody, &out)
	if err == nil && out.Protocol != Protocol {
		err = fmt.Errorf("%w: it speaks protocol %d, this is protocol %d", ErrRefused, out.Protocol, Protocol)
	}
	return out, p.explain(ctx, Error{Op: "hello"}, err)
}

// Nudge asks the peer to publish its time and to look at this node now.
func (p *Peer) Nudge(ctx context.Context) error {
	err := p.json(ctx, request{method: "POST", path: "/v1/nudge", body: struct{}{}}, maxSmallBody, &struct{}{})
	return p.explain(ctx, Error{Op: "nudge"}, err)
}

// maxDigestReply bounds the directory digests of a tree: about 200,000
// directories.
const maxDigestReply = 32 << 20

// TreeDigests returns the digests of the peer's tree and where its change feed
// stood before they were taken.
func (p *Peer) TreeDigests(ctx context.Context) (root [16]byte, dirs map[string][16]byte, epoch, seq uint64, err error) {
	var w wireDigests
	err = p.json(ctx, request{method: "GET", path: "/v1/tree/digests"}, maxDigestReply, &w)
	if err == nil {
		root, dirs, err = w.decode()
	}
	return root, dirs, w.Epoch, w.Seq, p.explain(ctx, Error{Op: "fetch tree digests"}, err)
}

func (w *wireDigests) decode() (root [16]byte, dirs map[string][16]byte, err error) {
	sum := func(text string) (out [16]byte) {
		b, herr := hex.DecodeString(text)
		if herr != nil || len(b) != len(out) {
			err = fmt.Errorf("%w: digest %.40q", ErrCorrupt, text)
		}
		copy(out[:], b)
		return out
	}
	root = sum(w.Root)
	dirs = make(map[string][16]byte, len(w.Dirs))
	for d, text := range w.Dirs {
		if cerr := checkDir(d); cerr != nil {
			return root, nil, cerr
		}
		dirs[d] = sum(text)
	}
	return root, dirs, err
}

func seqQuery(epoch, seq uint64) url.Values {
	return url.Values{"epoch": {strconv.FormatUint(epoch, 10)}, "seq": {strconv.FormatUint(seq, 10)}}
}
