package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"mars/device"
	"mars/internal/vfs"
	"mars/symlinktree"
	"mars/transport"
)

// DefaultPort is the gossip port; data is on the next one (DESIGN section 6).
const DefaultPort = transport.DefaultPort

// Config of a Node. The zero value of a field that Default fills is invalid.
type Config struct {
	Root       string // the /mars directory
	Node       string // this node's name
	Bind       string // ADDR:PORT of gossip (UDP and TCP); data is on PORT+1
	SecretFile string // the cluster secret, mode 0600, outside Root
	Secret     string // the secret itself (from MARS_SECRET); wins over SecretFile
	NBDDir     string // directory of the unix sockets, one per exported resource
	NBDTCP     string // ADDR:PORT of an additional NBD listener for all exports, "" = off
	NBDTLS     NBDTLS // of that listener

	Durability device.Durability
	// LogFormat is LogNative, or LogKernel for logs that a kernel MARS can replay.
	LogFormat     string
	Reserves      Reserves // of the file system of Root; below them the ladder of emergency mode begins
	Emergency     bool     // a primary without space for its log goes on without; else its clients get errors
	LogRotateSize int64    // bytes at which a primary starts its next log, 0 = only on demand

	Gossip bool // membership and hints by gossip; everything works, slower, without

	// Intervals. Each can be set down to milliseconds.
	Heartbeat     time.Duration // age at which actual-NODE/time is renewed
	AliveWindow   time.Duration // a peer without news for longer counts as silent
	Publish       time.Duration // progress links change at most this often
	Scan          time.Duration // a resource is looked at this often without a cue
	AntiEntropy   time.Duration // digests are compared this often although nothing seems missing
	RetryMin      time.Duration // reconnect: first pause; doubles, with jitter ...
	RetryMax      time.Duration // ... up to this
	FirstContact  time.Duration // a node that starts waits at most so long for members before it becomes primary
	SyncInterval  time.Duration // background sync of the log: what peers may fetch lags by it
	SpaceInterval time.Duration // free space is looked at this often
	// EmergencyHold is how long emergency mode lasts at least: the file system may claim to have space that
	// a quota does not give.
	EmergencyHold time.Duration
	WritebackAge  time.Duration // dirty data older than this is written to the disk
	IndexMemory   int64         // bytes for the index of dirty data, per resource; writers wait beyond it
	// DiskPatience is how long a role change waits for a disk that is slow or broken.
	// Its log has everything; the change must not hang on it.
	DiskPatience time.Duration

	FS  vfs.FS
	Now func() time.Time // wall clock; tests make it jump
	Log *slog.Logger

	// Seams of the cluster simulation (cmd/internal/sim): zero values mean the real ones.
	Network    transport.Network                                           // sockets of data and gossip
	Transport  transport.Config                                            // deadlines and limits of connections; zero fields mean their defaults
	Identity   *transport.Identity                                         // instead of one made from the secret
	OpenExport func(resource string, eng *device.Engine) (Exported, error) // instead of an NBD export
	TreePoll   time.Duration                                               // looks at a tree whose file layer gives no events
}

// Formats of the own logs. Every reader of this project reads both.
const (
	LogNative = "native" // records up to 31.5 KiB; TRIM and WRITE_ZEROES are one record each, which the original skips
	LogKernel = "kernel" // nothing but writes of whole sectors in records of at most 4 KiB; zeros are compressed payloads
)

// Modes of NBDTLS.
const (
	TLSRequire = "require" // nobody is served without; the zero value means this, too
	TLSOn      = "on"      // whoever asks for it gets it
	TLSOff     = "off"
)

// NBDTLS says how the NBD port is protected. Without files its certificates are derived from the cluster
// secret (transport.NBDAuthority).
type NBDTLS struct {
	Mode          string // TLSRequire, TLSOn or TLSOff
	Cert, Key, CA string // PEM files: the server's certificate and key, and the authority of its clients
}

func (t NBDTLS) validate() error {
	switch t.Mode {
	case "", TLSRequire, TLSOn, TLSOff:
	default:
		return fmt.Errorf("TLS of the NBD port is %q, want %s, %s or %s", t.Mode, TLSRequire, TLSOn, TLSOff)
	}
	given := 0
	for _, f := range []string{t.Cert, t.Key, t.CA} {
		if f != "" {
			given++
		}
	}
	if given != 0 && given != 3 {
		return errors.New("TLS of the NBD port with own certificates needs all of certificate, key and authority of the clients")
	}
	if given != 0 && t.Mode == TLSOff {
		return errors.New("TLS of the NBD port is off, but certificates are given")
	}
	return nil
}

// DefaultConfig returns the settings of a node with name and root.
func DefaultConfig(root, node string) Config {
	return Config{
		Root: root, Node: node,
		Bind:          net.JoinHostPort("0.0.0.0", strconv.Itoa(DefaultPort)),
		SecretFile:    "/etc/mars/secret",
		NBDDir:        "/run/mars",
		LogFormat:     LogNative,
		LogRotateSize: 32 << 30, // the original's logrot_auto_gb
		Gossip:        true,
		Reserves:      DefaultReserves(),
		Emergency:     true,
		SpaceInterval: 100 * time.Millisecond,
		EmergencyHold: 10 * time.Second,
		Heartbeat:     time.Second,
		AliveWindow:   30 * time.Second, // the original's alive_window
		Publish:       100 * time.Millisecond,
		Scan:          time.Second,
		AntiEntropy:   time.Minute,
		RetryMin:      200 * time.Millisecond,
		RetryMax:      5 * time.Second,
		FirstContact:  5 * time.Second,
		SyncInterval:  20 * time.Millisecond,
		WritebackAge:  2 * time.Second,
		IndexMemory:   128 << 20,
		DiskPatience:  20 * time.Second,
		FS:            vfs.OS,
		Now:           time.Now,
		Log:           slog.Default(),
	}
}

// Validate names everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := symlinktree.ValidName(c.Node); err != nil {
		bad("node name: %w", err)
	}
	if c.Root == "" || c.Root[0] != '/' {
		bad("root %q is not an absolute path", c.Root)
	} else if st, err := c.statRoot(); err != nil {
		bad("root: %w", err)
	} else if !st.IsDir() {
		bad("root %s is not a directory", c.Root)
	}
	if _, _, err := splitBind(c.Bind); err != nil {
		bad("bind: %w", err)
	}
	if c.Secret == "" && c.SecretFile == "" && c.Identity == nil {
		bad("no cluster secret: name its file")
	}
	for name, d := range map[string]time.Duration{"heartbeat": c.Heartbeat, "alive window": c.AliveWindow, "publish": c.Publish,
		"scan": c.Scan, "anti-entropy": c.AntiEntropy, "retry minimum": c.RetryMin, "retry maximum": c.RetryMax, "space": c.SpaceInterval} {
		if d <= 0 {
			bad("interval %s must be positive", name)
		}
	}
	if err := c.Reserves.validate(); err != nil {
		bad("%w", err)
	}
	if err := c.NBDTLS.validate(); err != nil {
		bad("%w", err)
	}
	if c.LogFormat != LogNative && c.LogFormat != LogKernel {
		bad("log format %q, want %s or %s", c.LogFormat, LogNative, LogKernel)
	}
	if c.LogRotateSize < 0 {
		bad("log rotate size %d is negative", c.LogRotateSize)
	}
	return errors.Join(errs...)
}

func (c *Config) statRoot() (fs.FileInfo, error) {
	if c.FS != vfs.OS && c.FS != nil {
		return c.FS.Lstat(c.Root)
	}
	return os.Stat(c.Root)
}

// secret reads the cluster secret.
func (c *Config) secret() (secret transport.Secret, err error) {
	if c.Secret != "" {
		secret, err = transport.ParseSecret(c.Secret)
	} else {
		if err := transport.CheckOutside(c.Root, c.SecretFile); err != nil {
			return nil, err
		}
		secret, err = transport.LoadSecret(c.SecretFile)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster secret: %w; %s", err, c.secretAdvice(err))
	}
	return secret, nil
}

// secretAdvice is what to do about a secret that cannot be used.
func (c *Config) secretAdvice(err error) string {
	switch {
	case c.Secret != "":
		return "MARS_SECRET has to be the file of the secret, or its 64 digits"
	case errors.Is(err, fs.ErrNotExist):
		return "marsadm create-cluster makes it; to join a cluster copy it from a node of that (mode 0600), or name another file with --secret"
	case errors.Is(err, fs.ErrPermission):
		return "run as its owner, or name another file with --secret"
	}
	return fmt.Sprintf("copy it again from a node of the cluster: %s, mode 0600, outside of %s", c.SecretFile, c.Root)
}

// WriteNBDClient writes into dir what a foreign NBD client needs to get in at the NBD ports of this
// cluster, under the names that it looks for. See docs/OPERATIONS.md.
func (c *Config) WriteNBDClient(dir, name string) error {
	secret, err := c.secret()
	if err != nil {
		return err
	}
	a, err := transport.NewNBDAuthority(secret)
	if err != nil {
		return err
	}
	return a.WriteClient(dir, name)
}

// splitBind parses ADDR[:PORT] of the gossip port.
func splitBind(bind string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(bind)
	if err != nil {
		host, p = bind, strconv.Itoa(DefaultPort)
		if net.ParseIP(host) == nil {
			return "", 0, fmt.Errorf("%q is not ADDR or ADDR:PORT", bind)
		}
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 1 || port > 65534 {
		return "", 0, fmt.Errorf("%q: port must be 1..65534 (data uses the next one)", bind)
	}
	return host, port, nil
}

// peerAddr turns the value of an ips/ip-HOST link (ADDR or ADDR:PORT) into the
// addresses of gossip and data.
func peerAddr(value string) (gossip, data string, err error) {
	host, port, err := splitBind(value)
	if err != nil {
		return "", "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), net.JoinHostPort(host, strconv.Itoa(port+1)), nil
}

// Reload takes over the settings that can change while the node runs. The others
// need a restart, which costs clients a pause.
func (n *Node) Reload(c Config) {
	n.rotateSize.Store(c.LogRotateSize)
	n.log.Info("settings reloaded", "log-rotate-size", c.LogRotateSize)
	n.kickAll()
}
