package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"mars/cmd/internal/adm"
	"mars/cmd/internal/roff"
)

// write brings all generated files below root up to date.
func write(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the generated files by their names.
func generate(root string) (map[string]string, error) {
	files := map[string]string{"docs/man/marsadm.8": adm.Manual(), "docs/man/mars.5": tree()}
	for shell, name := range map[string]string{"bash": "marsadm.bash", "zsh": "_marsadm", "fish": "marsadm.fish"} {
		text, err := adm.CompletionScript(shell)
		if err != nil {
			return nil, err
		}
		files["packaging/completion/"+name] = text
	}
	flags, err := daemonFlags(filepath.Join(root, "cmd/marsd/run.go"))
	if err != nil {
		return nil, err
	}
	files["docs/man/marsd.8"] = daemon(flags)
	decisions, err := os.ReadFile(filepath.Join(root, "docs/decisions.md"))
	if err != nil {
		return nil, err
	}
	files["docs/decisions.md"], err = splice(string(decisions), adm.Differences)
	return files, err
}

// The lines around the copy in docs/decisions.md.
const (
	begin = "<!-- begin: cmd/internal/adm/differences.md"
	end   = "<!-- end -->"
)

// splice puts text between the two lines.
func splice(doc, text string) (string, error) {
	i := strings.Index(doc, begin)
	if i < 0 {
		return "", errors.New("docs/decisions.md has no line " + begin)
	}
	j := strings.IndexByte(doc[i:], '\n')
	k := strings.Index(doc[i:], end)
	if j < 0 || k < j {
		return "", errors.New("docs/decisions.md has no line " + end)
	}
	return doc[:i+j+1] + "\n" + text + "\n" + doc[i+k:], nil
}

type daemonFlag struct{ name, usage string }

// daemonFlags reads the flags of marsd from its source: f.XVar(&to, "name", def,
// "usage").
func daemonFlags(file string) ([]daemonFlag, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return nil, err
	}
	var out []daemonFlag
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !strings.HasSuffix(sel.Sel.Name, "Var") || len(call.Args) < 3 {
			return true
		}
		name, ok1 := text(call.Args[1])
		usage, ok2 := text(call.Args[len(call.Args)-1])
		if ok1 && ok2 {
			out = append(out, daemonFlag{name, usage})
		}
		return true
	})
	if len(out) < 10 {
		return nil, fmt.Errorf("only %d flags found in %s", len(out), file)
	}
	return out, nil
}

func text(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// daemon is the page marsd(8).
func daemon(flags []daemonFlag) string {
	p := roff.New("marsd", 8, "replicate block devices asynchronously")
	p.Section("SYNOPSIS")
	p.Para("`marsd` [options]")
	p.Para("`marsd demo`")
	p.Section("DESCRIPTION")
	p.Para("`marsd` runs on every node of a MARS cluster. On the primary of a resource it serves the device, appends each write to a transaction logfile and later writes it back to the disk; on the secondaries it copies the logfile and replays it in the same order. A secondary always is a consistent, perhaps older, version of the device.")
	p.Para("It is told what to do by links below its root, which marsadm(8) or a person writes, see mars(5), and reports in links as well. Nodes need the same cluster secret. They talk on two ports: gossip (UDP and TCP), and one above it data and tree (TLS 1.3).")
	p.Para("It runs in the foreground, logs to standard error and tells systemd when it is ready.")
	p.Section("OPTIONS")
	for _, f := range flags {
		p.Item("--"+f.name, f.usage)
	}
	p.Section("SIGNALS")
	p.Item("SIGTERM, SIGINT", "Stop: devices are released, disks written back, positions published.")
	p.Item("SIGHUP", "Read the file of --config again.")
	p.Section("ENVIRONMENT")
	p.Para("MARS_ROOT, MARS_NODE and MARS_SECRET are as --root, --node and --secret; MARS_SECRET may hold the secret itself.")
	p.Section("FILES")
	p.Item("/mars", "The root: tree and logfiles, a file system of its own.")
	p.Item("/etc/mars/secret", "The cluster secret, mode 0600, the same on all nodes.")
	p.Item("/run/mars/RES.sock", "The device of a resource, as an NBD export named RES, while this node is its primary.")
	p.Section("SEE ALSO")
	p.Para("marsadm(8), mars(5)")
	return p.String()
}
