package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sort"
	"sync"
	"time"

	"mars/internal/nbdproto"
)

var (
	// ErrServerClosed is returned by Serve and Add after Close.
	ErrServerClosed = errors.New("nbd server is closed")
	// ErrUnknownExport means that no export of that name is (still) served.
	ErrUnknownExport = errors.New("no such export")
)

// Server serves exports on any number of listeners. All methods may be called
// concurrently.
type Server struct {
	cfg    Config
	cfgErr error
	log    *slog.Logger

	mu        sync.Mutex
	closed    bool
	quit      chan struct{} // closed by Close
	exports   map[string]*export
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{} // accepted and not yet closed
	nextConn  uint64
	wg        sync.WaitGroup // accept loops and connections

	receiveBuffers sync.Pool // of *[]byte
}

// NewServer returns a server without exports. Settings that cannot work
// (Config.Validate) are reported by Add and Serve.
func NewServer(cfg Config) *Server {
	err := cfg.Validate()
	cfg = cfg.withDefaults()
	return &Server{
		cfg:       cfg,
		cfgErr:    err,
		log:       cfg.Log,
		quit:      make(chan struct{}),
		exports:   make(map[string]*export),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
	}
}

// Add makes e available to clients. The name must not be in use; a removed one is in use until
// Remove has returned without an error.
func (s *Server) Add(e Export) error {
	if s.cfgErr != nil {
		return s.cfgErr
	}
	if e.Backend == nil {
		return fmt.Errorf("add export %q: no backend", e.Name)
	}
	if len(e.Name) > nbdproto.MaxName || len(e.Description) > nbdproto.MaxName {
		return fmt.Errorf("add export: name of %d and description of %d bytes, the limit of each is %d", len(e.Name), len(e.Description), nbdproto.MaxName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("add export %q: %w", e.Name, ErrServerClosed)
	}
	if old := s.exports[e.Name]; old != nil {
		if old.removing {
			return fmt.Errorf("add export %q: its predecessor is still being removed, %d connections left", e.Name, len(old.conns))
		}
		return fmt.Errorf("add export %q: the name is in use", e.Name)
	}
	s.exports[e.Name] = newExport(e, s.cfg)
	return nil
}

// Remove disconnects the clients of an export and waits until their requests in flight
// are done and their connections are closed: afterwards the backend is not called
// any more. New clients are refused from the start. If ctx ends first its cause
// is returned and the export stays refused; Remove may be called again to go on waiting.
// It is not an error to remove what is not there.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	e := s.exports[name]
	if e == nil {
		s.mu.Unlock()
		return nil
	}
	e.removing = true
	conns := e.connList()
	s.mu.Unlock()
	for _, c := range conns {
		c.stop()
	}
	for {
		s.mu.Lock()
		left := len(e.conns)
		if left == 0 {
			if s.exports[name] == e {
				delete(s.exports, name)
			}
			s.mu.Unlock()
			return nil
		}
		changed := e.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("remove export %q: %d connections with requests in flight: %w", name, left, context.Cause(ctx))
		}
	}
}

// OpenCount is the number of clients connected to an export; 0 if there is no such export.
func (s *Server) OpenCount(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.exports[name]; e != nil {
		return len(e.conns)
	}
	return 0
}

// InFlight is the number of requests of an export that were received and
// whose replies are not yet composed; 0 if there is no such export.
func (s *Server) InFlight(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.exports[name]; e != nil {
		return int(e.inflight.Load())
	}
	return 0
}

// Serve accepts clients on l until Close, and closes l. All exports are offered; the empty name
// stands for the export of that name or else, if there is exactly one export,
// for that one. It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	return s.serve(l, &door{})
}

// ServeTLS is Serve with the option STARTTLS. If require is set, a client gets nothing before
// it has taken that option. Whom it may be taken by is up to cfg (ClientAuth).
func (s *Server) ServeTLS(l net.Listener, cfg *tls.Config, require bool) error {
	return s.serve(l, &door{tls: cfg, require: require})
}

// door is what a listener offers its clients.
type door struct {
	only    *string     // the only export, nil for all
	tls     *tls.Config // of STARTTLS, nil if it is not offered
	require bool        // STARTTLS comes first
}

// ServeExport is Serve for a listener that offers one export only, under its
// name and as the default. The export may come and go meanwhile.
func (s *Server) ServeExport(l net.Listener, name string) error {
	return s.serve(l, &door{only: &name})
}

func (s *Server) serve(l net.Listener, d *door) error {
	defer l.Close()
	if s.cfgErr != nil {
		return s.cfgErr
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.start(nc, d)
			continue
		}
		if s.isClosed() {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("nbd: cannot accept clients, trying again", keyListener, l.Addr().String(), keyErr, err, keyRetry, pause,
			keyHint, "raise the limit of open files if it says too many")
		select {
		case <-time.After(pause):
		case <-s.quit:
			return nil
		}
	}
}

// start takes over a new connection.
func (s *Server) start(nc net.Conn, d *door) {
	s.mu.Lock()
	if s.closed || len(s.conns) >= s.cfg.MaxConns {
		full := !s.closed
		s.mu.Unlock()
		if full {
			s.log.Warn("nbd: client refused, too many connections", keyPeer, peerName(nc), keyOpen, s.cfg.MaxConns, keyHint, "raise MaxConns")
		}
		nc.Close()
		return
	}
	s.nextConn++
	c := newConn(s, nc, d, s.nextConn)
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close stops listening, disconnects everybody, and waits until requests in flight are
// done: no backend is called afterwards. It may be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.quit)
	}
	for l := range s.listeners {
		l.Close()
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.stop()
	}
	s.wg.Wait()
	return nil
}

// attach connects c to the export that it asked for. Once it has, the export
// counts as open.
func (s *Server) attach(c *conn, name string) (*export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.lookup(c.door.only, name)
	if err != nil {
		return nil, err
	}
	e.conns[c] = struct{}{}
	return e, nil
}

// detach is the end of attach.
func (s *Server) detach(c *conn, e *export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(e.conns, c)
	close(e.changed)
	e.changed = make(chan struct{})
}

// find is attach without staying.
func (s *Server) find(only *string, name string) (*export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookup(only, name)
}

// lookup needs s.mu.
func (s *Server) lookup(only *string, name string) (*export, error) {
	if s.closed {
		return nil, ErrServerClosed
	}
	if only != nil {
		if name != "" && name != *only {
			return nil, fmt.Errorf("export %q: %w here, this address serves %q", name, ErrUnknownExport, *only)
		}
		name = *only
	}
	e := s.exports[name]
	if e == nil && name == "" && len(s.exports) == 1 {
		for _, e = range s.exports {
		}
	}
	if e == nil || e.removing {
		return nil, fmt.Errorf("export %q: %w on this node", name, ErrUnknownExport)
	}
	return e, nil
}

// list is what OPT_LIST shows, by name.
func (s *Server) list(only *string) []Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Export
	for name, e := range s.exports {
		if !e.removing && (only == nil || *only == name) {
			list = append(list, e.Export)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// receiveBuffer returns memory for a connection's receiver.
func (s *Server) receiveBuffer() []byte {
	if b, ok := s.receiveBuffers.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, s.cfg.ReceiveBuffer)
}

func (s *Server) releaseReceiveBuffer(b []byte) { s.receiveBuffers.Put(&b) }
