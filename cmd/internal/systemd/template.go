package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// suffixes are the kinds of units that have templates.
var suffixes = []string{".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope", ".script"}

// scriptSuffix is the kind that systemd does not know.
const scriptSuffix = ".script"

// Vars are the variables of templates.
type Vars map[string]string

// Template is one file that units are made of.
type Template struct {
	Name    string // of the file, with placeholders
	Path    string
	Body    string
	ModTime time.Time
}

// maxTemplate bounds a file that is read as a template.
const maxTemplate = 1 << 20

// LoadTemplates reads the templates of some directories; those that do not exist
// are passed over.
func LoadTemplates(dirs []string) ([]Template, error) {
	var out []Template
	seen := make(map[string]bool)
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if seen[e.Name()] || !slices.Contains(suffixes, filepath.Ext(e.Name())) {
				continue
			}
			t, err := loadTemplate(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			seen[e.Name()] = true
			out = append(out, t)
		}
	}
	return out, nil
}

func loadTemplate(path string) (Template, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Template{}, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxTemplate {
		return Template{}, fmt.Errorf("template %s is not a regular file of at most %d bytes", path, maxTemplate)
	}
	if st.Mode().Perm()&0o022 != 0 {
		// What is in it runs as root.
		return Template{}, fmt.Errorf("template %s may be written by others than its owner; chmod go-w it", path)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return Template{}, err
	}
	return Template{Name: filepath.Base(path), Path: path, Body: string(body), ModTime: st.ModTime()}, nil
}

// marked reports whether a template has a comment line that consists of a marker.
func (t Template) marked(marker string) bool {
	for _, line := range strings.Split(t.Body, "\n") {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok && strings.TrimSpace(rest) == marker {
			return true
		}
	}
	return false
}

// match reports whether unit can be made of the template, and the variables that its
// name gives. x expands what is before the match.
func (t Template) match(unit string, x *expander) (Vars, bool, error) {
	if filepath.Ext(t.Name) != filepath.Ext(unit) {
		return nil, false, nil
	}
	var re strings.Builder
	re.WriteString("^")
	var names []string
	rest := t.Name
	for rest != "" {
		i := strings.Index(rest, x.incape+"{")
		if i < 0 {
			break
		}
		j := strings.IndexByte(rest[i:], '}')
		if j < 0 {
			return nil, false, fmt.Errorf("template %s: %s{ without }", t.Path, x.incape)
		}
		fixed, err := x.expand(rest[:i])
		if err != nil {
			return nil, false, nil // of a variable that is not known here
		}
		names = append(names, rest[i+len(x.incape)+1:i+j])
		re.WriteString(regexp.QuoteMeta(fixed) + "(.+)")
		rest = rest[i+j+1:]
	}
	fixed, err := x.expand(rest)
	if err != nil {
		return nil, false, nil
	}
	re.WriteString(regexp.QuoteMeta(fixed) + "$")
	m := regexp.MustCompile(re.String()).FindStringSubmatch(unit)
	if m == nil {
		return nil, false, nil
	}
	out := Vars{}
	for i, n := range names {
		if old, twice := out[n]; twice && old != m[i+1] {
			return nil, false, nil
		}
		out[n] = m[i+1]
	}
	return out, true, nil
}

// EscapePath is systemd-escape --path.
func EscapePath(path string) string {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(parts) == 0 {
		return "-"
	}
	text := strings.Join(parts, "/")
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '/':
			b.WriteByte('-')
		case c == '.' && i == 0:
			b.WriteString(`\x2e`)
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == ':', c == '_', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}
