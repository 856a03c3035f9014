package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mars/cluster"
	"mars/cmd/internal/demo"
	"mars/device"
	"mars/transport"
)

// options are the flags that are not fields of cluster.Config as they stand.
type options struct {
	cfg        cluster.Config
	durability string
	rotate     string
	index      string
	reserves   string
	config     string
	logLevel   string
}

func newCommand() *cobra.Command {
	o := &options{cfg: cluster.DefaultConfig(env("MARS_ROOT", "/mars"), env("MARS_NODE", hostname()))}
	if file, inline := transport.SecretFromEnv(os.Getenv("MARS_SECRET")); file != "" {
		o.cfg.SecretFile = file
	} else {
		o.cfg.Secret = inline
	}
	cmd := &cobra.Command{
		Use:   "marsd",
		Short: "replicate block devices asynchronously over any distance",
		Long: `marsd is the daemon of one node. It reads what shall be from the symlink tree
(--root), makes it so, and writes what is into the same tree. marsadm and ln -s
are its user interface. "marsd demo" shows everything on this machine.`,
		Args:         cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.Flags()) },
	}
	o.flags(cmd.Flags())
	cmd.AddCommand(demo.Command(), nbdClientCommand(o))
	return cmd
}

func (o *options) flags(f *pflag.FlagSet) {
	c := &o.cfg
	f.StringVar(&c.Root, "root", c.Root, "directory of the symlink tree (MARS_ROOT)")
	f.StringVar(&c.Node, "node", c.Node, "name of this node (MARS_NODE)")
	f.StringVar(&c.Bind, "bind", c.Bind, "ADDR[:PORT] for gossip; data uses PORT+1")
	f.StringVar(&c.SecretFile, "secret", c.SecretFile, "file with the cluster secret, mode 0600 (MARS_SECRET: the file, or the secret itself)")
	f.StringVar(&c.NBDDir, "nbd-dir", c.NBDDir, "directory for the unix socket of each device")
	f.StringVar(&c.NBDTCP, "nbd-tcp", c.NBDTCP, "ADDR:PORT on which all devices are served too (off)")
	f.StringVar(&c.NBDTLS.Mode, "nbd-tls", cluster.TLSRequire, "TLS on that port: require, on (for clients that ask for it) or off; clients get their files from marsd nbd-client")
	f.StringVar(&c.NBDTLS.Cert, "nbd-tls-cert", "", "certificate of the port in PEM form (derived from the cluster secret)")
	f.StringVar(&c.NBDTLS.Key, "nbd-tls-key", "", "its key in PEM form")
	f.StringVar(&c.NBDTLS.CA, "nbd-tls-ca", "", "authority in PEM form that vouches for the clients of the port")
	f.StringVar(&o.durability, "durability", device.DurabilityFlush.String(), "when a write is acknowledged: flush, always or none")
	f.StringVar(&o.rotate, "log-rotate-size", strconv.FormatInt(c.LogRotateSize, 10), "bytes after which a primary starts its next logfile; 0 = only on demand; K, M, G are understood")
	f.StringVar(&o.reserves, "space-reserve", c.Reserves.String(), "what shall stay free in the file system of --root for the levels warn, purge, fetch and emergency: 4 amounts, each BYTES (K, M, G, T), PERCENT% or BYTES:PERCENT% (the smaller)")
	f.BoolVar(&c.Emergency, "emergency", c.Emergency, "a primary without space for its log goes on without one; else its clients get errors")
	f.DurationVar(&c.EmergencyHold, "emergency-hold", c.EmergencyHold, "how long that lasts at least")
	f.StringVar(&c.LogFormat, "log-format", c.LogFormat, "native, or kernel: logs that a kernel MARS can replay (larger with TRIM; whole sectors only)")
	f.BoolVar(&c.Gossip, "gossip", c.Gossip, "spread news by gossip; everything works, slower, without")
	f.DurationVar(&c.Heartbeat, "heartbeat", c.Heartbeat, "how often this node says that it is alive")
	f.DurationVar(&c.AliveWindow, "alive-window", c.AliveWindow, "silence after which a peer counts as unreachable")
	f.DurationVar(&c.Publish, "publish-interval", c.Publish, "progress links change at most this often")
	f.DurationVar(&c.RetryMax, "retry-max", c.RetryMax, "longest pause between two tries to reach a peer")
	f.DurationVar(&c.WritebackAge, "writeback-age", c.WritebackAge, "dirty data older than this goes to the disk")
	f.StringVar(&o.index, "index-memory", strconv.FormatInt(c.IndexMemory, 10), "bytes of memory per resource for the index of data that is logged and not yet on the disk (64 per extent); writers are slowed down from a quarter on and wait beyond; K, M, G are understood")
	f.StringVar(&o.config, "config", "", "file with lines FLAG = VALUE; flags on the command line win; read again on SIGHUP")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

// run serves until SIGTERM or SIGINT; SIGHUP reads the config file again.
func (o *options) run(ctx context.Context, flags *pflag.FlagSet) error {
	if err := readConfig(o.config, flags); err != nil {
		return err
	}
	if err := o.apply(); err != nil {
		return err
	}
	if flags.Changed("secret") {
		o.cfg.Secret = "" // the file was named last
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	o.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	node, err := cluster.NewNode(o.cfg)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go o.reload(ctx, node, flags)
	go func() {
		select {
		case <-node.Ready():
			notify("READY=1")
		case <-ctx.Done():
		}
		<-ctx.Done()
		notify("STOPPING=1")
	}()
	return node.Run(ctx)
}

func (o *options) apply() (err error) {
	if o.cfg.Durability, err = device.ParseDurability(o.durability); err != nil {
		return fmt.Errorf("--durability: %w", err)
	}
	if o.cfg.LogRotateSize, err = parseSize(o.rotate); err != nil {
		return fmt.Errorf("--log-rotate-size: %w", err)
	}
	if o.cfg.IndexMemory, err = parseSize(o.index); err != nil {
		return fmt.Errorf("--index-memory: %w", err)
	}
	if o.cfg.Reserves, err = cluster.ParseReserves(o.reserves); err != nil {
		return fmt.Errorf("--space-reserve: %w", err)
	}
	return nil
}

func (o *options) reload(ctx context.Context, node *cluster.Node, flags *pflag.FlagSet) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		err := readConfig(o.config, flags)
		if err == nil {
			err = o.apply()
		}
		if err != nil {
			o.cfg.Log.Error("settings not reloaded", "err", err)
			continue
		}
		node.Reload(o.cfg)
	}
}

// readConfig sets every flag that the file names and the command line does not.
// Nothing is set when a line is wrong.
func readConfig(path string, flags *pflag.FlagSet) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	type setting struct{ name, value string }
	var list []setting
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if !ok || flags.Lookup(name) == nil || name == "config" {
			return fmt.Errorf("%s:%d: %q is not FLAG = VALUE of a flag of marsd", path, n, line)
		}
		list = append(list, setting{name, strings.TrimSpace(value)})
	}
	if err := sc.Err(); err != nil {
		return err
	}
	for _, s := range list {
		if fl := flags.Lookup(s.name); !fl.Changed {
			if err := fl.Value.Set(s.value); err != nil {
				return fmt.Errorf("%s: %s = %s: %w", path, s.name, s.value, err)
			}
		}
	}
	return nil
}

// parseSize understands bytes and the binary suffixes K, M, G, T.
func parseSize(s string) (int64, error) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]); i >= 0 {
			shift, s = 10*(i+1), s[:n-1]
		}
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || v > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size in bytes (K, M, G, T are understood)", s)
	}
	return v << shift, nil
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	return h
}

// notifyTimeout bounds the datagram to the service manager.
const notifyTimeout = time.Second
