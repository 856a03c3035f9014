package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server serves a Handler to the peers that hold the cluster secret.
type Server struct {
	id    *Identity
	h     Handler
	cfg   Config
	cfgOK error
	log   *slog.Logger
	quiet *quietLog
	tls   *tls.Config
	http  *http.Server

	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // handshakes and requests

	lanes    lanes
	requests chan struct{} // a token for each tree or sync request being served

	mu       sync.Mutex
	closed   bool
	gates    map[*gate]struct{}
	conns    map[*guardConn]string // "" until authenticated
	pending  []*guardConn          // handshakes, oldest first
	admitted int
	perPeer  map[string]int
	streams  map[string]*stream
}

// stream is a running subscription; a newer one of the same key ends it.
type stream struct{ cancel context.CancelCauseFunc }

// NewServer returns a server that is not listening yet. cfg is checked by Serve.
func NewServer(id *Identity, h Handler, cfg Config) *Server {
	s := &Server{
		id: id, h: h, cfgOK: cfg.Validate(), cfg: cfg.withDefaults(),
		gates:   map[*gate]struct{}{},
		conns:   map[*guardConn]string{},
		perPeer: map[string]int{},
		streams: map[string]*stream{},
	}
	s.log = s.cfg.Log
	s.quiet = newQuietLog(s.log, s.cfg.LogInterval)
	s.lanes.traffic.Limits = s.cfg.Limits
	s.lanes.packing.off.Store(s.cfg.NoCompression)
	s.requests = make(chan struct{}, s.cfg.MaxRequests)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.tls = id.ServerTLS()
	s.tls.GetConfigForClient = s.sniff
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler:           s.routes(),
		Protocols:         &protocols,
		ReadHeaderTimeout: s.cfg.HandshakeTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(debugWriter{s.log}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, guardOf(c))
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				s.forget(guardOf(c))
			}
		},
	}
	return s
}

type connKey struct{}

func guardOf(c net.Conn) *guardConn {
	if tc, ok := c.(*tls.Conn); ok {
		if g, ok := tc.NetConn().(*guardConn); ok {
			return g
		}
	}
	return nil
}

// debugWriter takes net/http's complaints about connections that ended.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}

// Serve accepts on l (plain TCP or anything like it; TLS is added here) until
// Close, and then returns ErrClosed. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	if s.cfgOK != nil {
		l.Close()
		return s.cfgOK
	}
	g := newGate(s, l)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	s.gates[g] = struct{}{}
	s.work.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.work.Done()
		s.http.Serve(g)
	}()
	err := g.run()
	g.Close()
	s.mu.Lock()
	delete(s.gates, g)
	s.mu.Unlock()
	return err
}

// Close ends all connections and returns when no handler is running any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.cancel(ErrClosing)
	for g := range s.gates {
		g.Close()
	}
	// The raw connections first: closing TLS politely would wait for each peer that
	// does not read.
	for c := range s.conns {
		c.Conn.Close()
	}
	s.mu.Unlock()
	err := s.http.Close()
	s.work.Wait()
	return err
}

// call is one request in a handler.
type call struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	ctx   context.Context
	peer  string
	class Class
	conn  *guardConn
	lane  *lane
	// limits are the rates that the reply is under: of the class to this peer, and of the resource.
	limits []*bucket
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, class Class, bounded bool, f func(*call) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, class, bounded, f) })
	}
	handle("GET /v1/{$}", ClassTree, true, (*call).index)
	handle("POST /v1/hello", ClassTree, true, (*call).hello)
	handle("POST /v1/nudge", ClassTree, true, (*call).nudge)
	handle("GET /v1/tree/since", ClassTree, true, (*call).treeSince)
	handle("GET /v1/tree/stream", ClassTree, false, (*call).treeStream)
	handle("GET /v1/tree/digests", ClassTree, true, (*call).treeDigests)
	handle("POST /v1/tree/dirs", ClassTree, true, (*call).treeDirs)
	handle("GET /v1/log/{resource}/{log}", ClassLog, false, (*call).log)
	handle("POST /v1/received/{resource}/{log}", ClassTree, true, (*call).received)
	handle("GET /v1/range/{resource}", ClassSync, true, (*call).readRange)
	handle("GET /v1/digests/{resource}", ClassSync, true, (*call).digests)
	return mux
}

// serve is the frame around every handler: who is it, may it run now, and what
// became of it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, class Class, bounded bool, f func(*call) error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.work.Add(1)
	s.mu.Unlock()
	defer s.work.Done()
	c := &call{s: s, w: w, r: r, ctx: r.Context(), peer: PeerName(r.TLS), class: class}
	// Only the gate hands connections to net/http, so this cannot be missing.
	c.conn = r.Context().Value(connKey{}).(*guardConn)
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			s.log.Error("request handler failed", "peer", c.peer, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			panic(http.ErrAbortHandler)
		} else if p != nil {
			panic(p)
		}
	}()
	if c.conn.class != class {
		c.conn.class = class
		if err := s.cfg.mark(c.conn.Conn, class); err != nil {
			s.quiet.warn("sockopt", "socket settings refused by the kernel", "err", err)
		}
	}
	c.lane = s.lanes.lane(c.peer)
	c.limits = append(c.limits, s.lanes.bucket(bucketKey{class: class, peer: c.peer}))
	if bounded {
		if err := c.take(); err != nil {
			c.fail(err)
			return
		}
		defer func() { <-s.requests }()
	}
	if err := f(c); err != nil {
		c.fail(err)
	}
}

// take waits for a free request slot.
func (c *call) take() error {
	select {
	case c.s.requests <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(c.s.cfg.RequestTimeout / 2)
	defer t.Stop()
	select {
	case c.s.requests <- struct{}{}:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	case <-t.C:
		return fmt.Errorf("%w: %d requests are running", ErrBusy, c.s.cfg.MaxRequests)
	}
}

// fail answers with an error. After a reply has begun that is impossible; then
// the handler has already put the error into its stream.
func (c *call) fail(err error) {
	var sent *sentError
	if errors.As(err, &sent) {
		c.s.log.Debug("stream ended", "peer", c.peer, "path", c.r.URL.Path, "err", err)
		return
	}
	if c.ctx.Err() != nil && c.s.ctx.Err() == nil {
		return // the peer has gone, there is nobody to tell
	}
	c.s.log.Debug("request refused", "peer", c.peer, "path", c.r.URL.Path, "err", err)
	we, status := encodeError(err)
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	json.NewEncoder(c.w).Encode(we)
}

// sentError marks an error that must not be answered: it is on the wire already
// or the wire is gone.
type sentError struct{ err error }

func (e *sentError) Error() string { return e.err.Error() }
func (e *sentError) Unwrap() error { return e.err }

// subscribe makes this the only stream of its kind and ends it after StreamAge.
func (c *call) subscribe(key string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(c.ctx)
	age := time.AfterFunc(c.s.cfg.StreamAge, func() { cancel(errStreamAge) })
	me := &stream{cancel: cancel}
	key = c.peer + " " + key
	c.s.mu.Lock()
	old := c.s.streams[key]
	c.s.streams[key] = me
	c.s.mu.Unlock()
	if old != nil {
		old.cancel(ErrSuperseded)
	}
	return ctx, func() {
		age.Stop()
		cancel(nil)
		c.s.mu.Lock()
		if c.s.streams[key] == me {
			delete(c.s.streams, key)
		}
		c.s.mu.Unlock()
	}
}

var errStreamAge = errors.New("stream has reached its maximal age, subscribe again")

// body reads a small request body.
func (c *call) body(limit int64, into any) error {
	rc := http.NewResponseController(c.w)
	rc.SetReadDeadline(time.Now().Add(c.s.cfg.RequestTimeout))
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	if err != nil {
		return fmt.Errorf("%w: request body: %v", ErrRefused, err)
	}
	rc.SetReadDeadline(time.Time{})
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: request body: %v", ErrRefused, err)
	}
	return nil
}

// number reads a required query parameter.
func (c *call) number(name string) (uint64, error) {
	v, err := strconv.ParseUint(c.r.URL.Query().Get(name), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: query parameter %s: %v", ErrRefused, name, err)
	}
	return v, nil
}

// length reads a required query parameter that is a size or an offset.
func (c *call) length(name string) (int64, error) {
	v, err := c.number(name)
	if err == nil && v > 1<<62 {
		err = fmt.Errorf("%w: query parameter %s is %d", ErrRefused, name, v)
	}
	return int64(v), err
}

func (c *call) resource() (string, error) {
	res := c.r.PathValue("resource")
	if err := checkName("resource", res); err != nil {
		return "", fmt.Errorf("%w: %v", ErrRefused, err)
	}
	c.limits = append(c.limits, c.s.lanes.bucket(bucketKey{class: c.class, resource: res}))
	return res, nil
}

// allow waits until all rates allow n more bytes.
func (c *call) allow(ctx context.Context, n int, beat func() error) error {
	for _, b := range c.limits {
		if err := b.wait(ctx, n, c.s.cfg.HeartbeatInterval, beat); err != nil {
			return err
		}
	}
	return nil
}

// piece is the largest piece to send at once.
func (c *call) piece() int {
	n := MaxFrame
	for _, b := range c.limits {
		n = min(n, b.piece())
	}
	return n
}

// reply sends one JSON object.
func (c *call) reply(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	if err := c.allow(c.ctx, b.Len(), nil); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	if _, err := c.w.Write(b.Bytes()); err != nil {
		return &sentError{err}
	}
	return nil
}
