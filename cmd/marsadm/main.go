// Command marsadm tells a MARS cluster what to do, and shows what it does. It talks
// to the symlink tree only; see `marsadm help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"mars/cmd/internal/adm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := adm.Run(ctx, os.Args[1:], os.Stdout, os.Stderr, adm.Env{Terminal: isTerminal(os.Stderr), OutTerminal: isTerminal(os.Stdout)})
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
