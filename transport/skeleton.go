package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"
)

var errTODO = errors.New("transport: not built yet")

type Secret []byte

func NewSecret() Secret                        { return make(Secret, 32) }
func LoadSecret(path string) (Secret, error)   { return nil, errTODO }
func ParseSecret(text string) (Secret, error)  { return nil, errTODO }
func WriteSecret(path string, s Secret) error  { return errTODO }
func CheckOutside(root string, p string) error { return errTODO }

type Identity struct{}

func NewIdentity(secret Secret, node, keyFile string) (*Identity, error) { return nil, errTODO }
func (id *Identity) Node() string                                        { return "" }
func (id *Identity) GossipKey() []byte                                   { return nil }
func (id *Identity) ServerTLS() *tls.Config                              { return nil }
func (id *Identity) ClientTLS(peer string) *tls.Config                   { return nil }

type Class int

const (
	ClassTree Class = iota
	ClassLog
	ClassSync
)

type Limits struct{ Tree, Log, Sync int64 }

type Config struct {
	Log               *slog.Logger
	HeartbeatInterval time.Duration
	DialTimeout       time.Duration
	HandshakeTimeout  time.Duration
	RequestTimeout    time.Duration
	WriteTimeout      time.Duration
	Limits            Limits
	Dial              func(ctx context.Context, network, addr string) (net.Conn, error)
}

func DefaultConfig() Config      { return Config{} }
func (c Config) Validate() error { return nil }

type Server struct{}

func NewServer(id *Identity, h Handler, cfg Config) *Server { return &Server{} }
func (s *Server) Serve(l net.Listener) error                { return errTODO }
func (s *Server) Close() error                              { return nil }

type Peer struct{}

func NewPeer(id *Identity, name, addr string, cfg Config) *Peer   { return &Peer{} }
func (p *Peer) Name() string                                      { return "" }
func (p *Peer) Addr() string                                      { return "" }
func (p *Peer) Close() error                                      { return nil }
func (p *Peer) Hello(ctx context.Context, h Hello) (Hello, error) { return h, errTODO }
func (p *Peer) Nudge(ctx context.Context) error                   { return errTODO }
func (p *Peer) TreeSince(ctx context.Context, epoch, seq uint64) (entries []TreeEntry, newEpoch, newSeq uint64, ok bool, err error) {
	return nil, 0, 0, false, errTODO
}
func (p *Peer) TreeStream(ctx context.Context, epoch, seq uint64, f func(entries []TreeEntry, epoch, seq uint64, resync bool) error) error {
	return errTODO
}
func (p *Peer) TreeDigests(ctx context.Context) (root [16]byte, dirs map[string][16]byte, epoch, seq uint64, err error) {
	return root, nil, 0, 0, errTODO
}
func (p *Peer) TreeDirs(ctx context.Context, dirs []string) ([]TreeEntry, error) { return nil, errTODO }
func (p *Peer) Log(ctx context.Context, resource, log string, off int64, deliver func(off int64, data []byte, durable int64, sealed bool) error) error {
	return errTODO
}
func (p *Peer) ReadRange(ctx context.Context, resource string, off int64, b []byte) (Position, error) {
	return Position{}, errTODO
}
func (p *Peer) Digests(ctx context.Context, resource string, off, length, chunk int64) ([][32]byte, Position, error) {
	return nil, Position{}, errTODO
}

type Preset int

const (
	PresetLAN Preset = iota
	PresetWAN
	PresetLocal
)

type GossipConfig struct {
	Identity       *Identity
	Node           string
	BindAddr       string
	BindPort       int
	AdvertiseAddr  string
	AdvertisePort  int
	Label          string
	Preset         Preset
	Peers          func() []string
	Hint           func() Hint
	OnHint         func(node string, h Hint)
	OnMember       func(node string, alive bool)
	RejoinInterval time.Duration
	Log            *slog.Logger
}

type Gossip struct{}

func NewGossip(cfg GossipConfig) (*Gossip, error)   { return nil, errTODO }
func (g *Gossip) Leave(timeout time.Duration) error { return nil }
func (g *Gossip) Close() error                      { return nil }
func (g *Gossip) Alive() map[string]bool            { return nil }
func (g *Gossip) Broadcast()                        {}
