// Package treeschema reads the tables of docs/TREE-SCHEMA.md, so that the tests can
// hold every tree they make against them: a path that the document does not name is
// a bug of the document or of the program.
//
// # Guarantees
//
//   - Unknown names every link, file and directory below a root that no row of
//     the tables describes.
//
// # Non-guarantees
//
//   - Values are not looked at: symlinktree.CheckValue does that.
package treeschema

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Schema is what the document lists.
type Schema struct {
	rows []row
}

type row struct {
	text string
	re   *regexp.Regexp
}

// words of the patterns.
var words = map[string]string{
	"H": host, "P": host, "R": host, "ORIGIN": host,
	"N":    `\d{9,10}`,
	"UUID": `[^/]+`, "KEY": `[^/]+`, "NAME": `[^/]+`, "X": `[a-z]+`, "TIME": `[^/]+`,
}

const host = `[A-Za-z0-9_][-A-Za-z0-9_]*`

var (
	token     = regexp.MustCompile(`[A-Z]+|\{[^}]*\}`)
	backticks = regexp.MustCompile("`[^`]+`")
)

// Load parses the document. Rows of tables whose first cell holds paths count: with
// the heading "path" they are relative to the root, with "path in `resource-R/`" to
// the directory of a resource.
func Load(file string) (*Schema, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &Schema{}
	prefix, inTable := "", false
	for i, line := range strings.Split(string(text), "\n") {
		cell, isRow := firstCell(line)
		switch {
		case !isRow:
			inTable = false
		case cell == "path":
			prefix, inTable = "", true
		case cell == "path in `resource-R/`":
			prefix, inTable = "resource-R/", true
		case inTable && strings.Trim(cell, "-") != "":
			for _, p := range backticks.FindAllString(cell, -1) {
				r, err := compile(prefix + strings.Trim(p, "`"))
				if err != nil {
					return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
				}
				s.rows = append(s.rows, r)
			}
		}
	}
	if len(s.rows) == 0 {
		return nil, errors.New(file + ": no table of paths")
	}
	return s, nil
}

func firstCell(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, "|")
	cell, _, more := strings.Cut(rest, "|")
	return strings.TrimSpace(cell), ok && more
}

// compile turns actual-H/{is,has}-KEY into an expression.
func compile(pattern string) (row, error) {
	var b strings.Builder
	b.WriteString("^")
	rest := pattern
	for rest != "" {
		at := token.FindStringIndex(rest)
		if at == nil {
			b.WriteString(regexp.QuoteMeta(rest))
			break
		}
		b.WriteString(regexp.QuoteMeta(rest[:at[0]]))
		tok := rest[at[0]:at[1]]
		rest = rest[at[1]:]
		if inner, ok := strings.CutPrefix(tok, "{"); ok {
			var alt []string
			for _, a := range strings.Split(strings.TrimSuffix(inner, "}"), ",") {
				alt = append(alt, regexp.QuoteMeta(a))
			}
			b.WriteString("(" + strings.Join(alt, "|") + ")")
		} else if re, ok := words[tok]; ok {
			b.WriteString("(" + re + ")")
		} else {
			return row{}, fmt.Errorf("%q: nobody knows what %s stands for", pattern, tok)
		}
	}
	re, err := regexp.Compile(b.String() + "$")
	return row{pattern, re}, err
}

// Knows reports whether a row describes the path, relative to the root. Directories
// end with a slash.
func (s *Schema) Knows(path string) bool {
	for _, r := range s.rows {
		if r.re.MatchString(path) {
			return true
		}
	}
	return false
}

// Unknown lists what lies below root and is not described. Temporary names of writes
// under way do not count, nor does what is inside a directory that is not.
func (s *Schema) Unknown(root string) (list []string, err error) {
	err = filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the tree is alive
		}
		if err != nil || full == root {
			return err
		}
		rel, _ := filepath.Rel(root, full)
		if strings.HasPrefix(d.Name(), ".tmp.") {
			return nil
		}
		if d.IsDir() {
			if rel += "/"; !s.Knows(rel) {
				list = append(list, rel)
				return fs.SkipDir
			}
			return nil
		}
		// What has been deleted may be the place of a directory.
		if v, err := os.Readlink(full); err == nil && v == ".deleted" && s.Knows(rel+"/") {
			return nil
		}
		if !s.Knows(rel) {
			list = append(list, rel)
		}
		return nil
	})
	return list, err
}

// Document is the place of docs/TREE-SCHEMA.md in the source.
func Document() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "docs", "TREE-SCHEMA.md")
}

// TB is the part of testing.TB that Check needs.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
}

// Check fails the test for each thing below root that the document does not name.
func Check(t TB, root string) {
	t.Helper()
	s, err := Load(Document())
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	list, err := s.Unknown(root)
	if err != nil {
		t.Errorf("walk %s: %v", root, err)
	}
	for _, p := range list {
		t.Errorf("docs/TREE-SCHEMA.md does not name %s", p)
	}
}
