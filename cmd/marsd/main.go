// Command marsd is the daemon of one node: it keeps the symlink tree in step with
// its peers and drives every resource toward what the tree says.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "marsd:", err)
		os.Exit(1)
	}
}
