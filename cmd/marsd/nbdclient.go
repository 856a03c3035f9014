package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// nbdClientCommand makes the files with which a foreign NBD client gets in at --nbd-tcp.
func nbdClientCommand(o *options) *cobra.Command {
	name := "nbd-client"
	cmd := &cobra.Command{
		Use:   "nbd-client DIR",
		Short: "write the TLS files of an NBD client (qemu, libnbd) into DIR",
		Long: `nbd-client writes ca-cert.pem, client-cert.pem and client-key.pem into DIR, made from the
cluster secret. Whoever has them can read and write every device of the cluster at the ports of
--nbd-tcp, but is no member. They are valid until the secret changes.

  nbdinfo "nbds://HOST/RESOURCE?tls-certificates=DIR"`,
		Args:         cobra.ExactArgs(1),
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("secret") {
				o.cfg.Secret = ""
			}
			if err := o.cfg.WriteNBDClient(args[0], name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: files of %s written\n", args[0], name)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", name, "common name in the certificate")
	f.StringVar(&o.cfg.Root, "root", o.cfg.Root, "directory of the symlink tree (MARS_ROOT)")
	f.StringVar(&o.cfg.SecretFile, "secret", o.cfg.SecretFile, "file with the cluster secret, mode 0600 (MARS_SECRET)")
	return cmd
}
