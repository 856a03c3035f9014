package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"mars/cmd/internal/adm"
)

// Options of the demo.
type Options struct {
	// Keep leaves the cluster running and tells how to play with it.
	Keep bool
	// Dir is where the nodes live; empty means a new temporary directory. A directory
	// that was named must not exist yet, and is removed at the end unless Keep is set.
	Dir string
	// Size of the replicated device in bytes, a multiple of 1 MiB. 0 means 128 MiB.
	Size int64
	// Exe is the marsd binary to run as daemons; empty means the running one.
	Exe string
	// Terminal says that out is one: progress is redrawn and colours are used,
	// the latter unless NO_COLOR is set.
	Terminal bool
	// NoColor switches colours off.
	NoColor bool
}

// Command is `marsd demo`.
func Command() *cobra.Command {
	var o Options
	var mib int64
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "a cluster of three nodes on this machine, driven and explained step by step",
		Long: `Starts three nodes on 127.0.0.11 to 127.0.0.13 in a temporary directory, replicates
a block device with an ext4 filesystem on it from one to the two others, kills one
node, hands over to another one, and compares what is read there with what was
written. Exit code 0: everything was as it should be.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Terminal = isTerminal(os.Stdout) && os.Getenv("TERM") != "dumb"
			o.NoColor = os.Getenv("NO_COLOR") != ""
			o.Size = mib << 20
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			err := Run(ctx, o, cmd.OutOrStdout())
			if err != nil && ctx.Err() != nil {
				return errors.New("interrupted; everything has been cleaned up")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the cluster running, and tell how to play with it")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory to create for the nodes (a temporary one)")
	cmd.Flags().Int64Var(&mib, "size", defaultSize>>20, "size of the replicated device in MiB")
	cmd.AddCommand(marsadmCommand())
	return cmd
}

// marsadmCommand lets a person play with a kept demo although only marsd has been
// built: it is marsadm, inside marsd.
func marsadmCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "marsadm COMMAND [ARGS]",
		Short:              "marsadm, for playing with a demo that was kept",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if ctx == nil {
				ctx = context.Background()
			}
			ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if code := adm.Run(ctx, args, os.Stdout, os.Stderr, adm.Env{Terminal: isTerminal(os.Stderr)}); code != 0 {
				os.Exit(code)
			}
			return nil
		},
	}
}

func isTerminal(f *os.File) bool {
	_, err := terminalWidth(f)
	return err == nil
}

// checkSize refuses sizes that leave no room beside the filesystem image.
func checkSize(n int64) error {
	if n < 2*imageSize || n > 1<<30 || n%(1<<20) != 0 {
		return fmt.Errorf("size of the device: %d MiB, must be %d..1024", n>>20, 2*imageSize>>20)
	}
	return nil
}
