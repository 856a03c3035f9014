// Command manpages writes what is generated of the documentation: docs/man,
// packaging/completion, and the copy of the differences in docs/decisions.md. It is
// run by `make man` in the root of the project.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := write("."); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}
