package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mars/symlinktree"
	"mars/transport"
)

// A marsd that waits for its cluster says what is wrong with the secret, and what to do,
// in log and tree; and takes it back.
func TestSecretTrouble(t *testing.T) {
	dir := t.TempDir()
	file, inside := filepath.Join(dir, "secret"), filepath.Join(dir, "mars", "secret")
	for _, c := range []struct {
		name, file, inline string
		prepare            func() error
		want               []string
	}{
		{name: "missing", file: file, want: []string{file, "create-cluster", "copy it"}},
		{name: "too short", file: file, prepare: func() error { return os.WriteFile(file, []byte("abc"), 0o600) }, want: []string{file, "64 hexadecimal digits", "copy it again"}},
		{name: "open to all", file: file, prepare: func() error {
			_ = os.Remove(file)
			return os.WriteFile(file, []byte(transport.NewSecret().Hex()), 0o644)
		}, want: []string{file, "0600"}},
		{name: "in the tree", file: inside, want: []string{inside, "outside"}},
		{name: "in the environment", inline: "abc", want: []string{"MARS_SECRET"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNodes(t, "a")["a"]
			n.cfg.SecretFile, n.cfg.Secret = c.file, c.inline
			if c.file == inside {
				n.cfg.SecretFile = filepath.Join(n.cfg.Root, "secret")
				c.want[0] = n.cfg.SecretFile
			}
			if c.prepare != nil {
				if err := c.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			tree, err := symlinktree.Open(n.cfg.Root, symlinktree.Options{FS: n.cfg.FS, Node: "a"})
			if err != nil {
				t.Fatal(err)
			}
			node, err := NewNode(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			node.tree = tree
			path := symlinktree.ActualPath("a", "msg-"+msgSecret)
			problem := node.watchSecret("")
			said, _ := tree.Get(path)
			for _, w := range c.want {
				if !strings.Contains(problem, w) || !strings.Contains(said, w) {
					t.Errorf("says %q and %q, want %q in them", problem, said, w)
				}
			}
			again := n.logs.String()
			if node.watchSecret(problem) != problem || n.logs.String() != again {
				t.Error("says it again")
			}
			node.cfg.Secret = transport.NewSecret().Hex()
			if got := node.watchSecret(problem); got != "" {
				t.Errorf("a good secret: %q", got)
			}
			if v, _ := tree.Get(path); v != symlinktree.MessageOK {
				t.Errorf("not taken back: %q", v)
			}
		})
	}
}
