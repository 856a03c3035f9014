package macro

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

// maxFile is the size of the largest macro file that is read.
const maxFile = 1 << 20

// views are the complex macros: texts of the language. The first line of each is a
// comment with its arguments and its help.
//
//go:embed views/*.tpl
var views embed.FS

// Library finds macros by name: those of an administrator in NAME.tpl files first,
// then the compiled-in ones. The zero Library, or nil, has only the latter.
type Library struct {
	files  map[string]string // name -> path
	Notice func(line string) // told once about every file that replaces a compiled-in macro
	mu     sync.Mutex
	parsed map[string]*Program
}

// NewLibrary lists the NAME.tpl files of some directories; the first directory that
// has a name wins. Directories that do not exist are skipped.
func NewLibrary(dirs ...string) (*Library, error) {
	l := &Library{files: map[string]string{}, parsed: map[string]*Program{}}
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("look for macros: %w", err)
		}
		for _, e := range list {
			name, ok := strings.CutSuffix(e.Name(), ".tpl")
			if ok && name != "" && l.files[name] == "" {
				l.files[name] = filepath.Join(dir, e.Name())
			}
		}
	}
	return l, nil
}

// Files are the names of the administrator's macros.
func (l *Library) Files() []string {
	var out []string
	if l != nil {
		for name := range l.files {
			out = append(out, name)
		}
		sort.Strings(out)
	}
	return out
}

// definition is what a name stands for: a text or a function.
type definition struct {
	text    *Program
	perHost bool // the first argument is a host
	eval    Func
	macro   *Macro // the compiled-in one of that name, if any
}

// primitivePrefix before a name means the compiled-in macro, even if a file
// replaces it.
const primitivePrefix = "primitive-"

// find looks a name up. The error of a name that nobody has wraps ErrUnknown.
func (l *Library) find(name string) (definition, error) {
	base, builtinOnly := strings.CutPrefix(name, primitivePrefix)
	m, known := table[canonical(base)]
	if l != nil && !builtinOnly {
		if path, ok := l.files[name]; ok {
			p, err := l.load(name, path, known)
			return definition{text: p, macro: m}, err
		}
	}
	switch {
	case !known:
		e := &UnknownError{Name: name}
		if near := Nearest(base); near != "" {
			e.Near = near
		}
		return definition{}, e
	case m.Text != nil:
		return definition{text: m.Text, perHost: strings.HasPrefix(m.Args, "{host}"), macro: m}, nil
	}
	return definition{eval: m.Eval, macro: m}, nil
}

// load reads a macro file once.
func (l *Library) load(name, path string, replaces bool) (*Program, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.parsed[name]; p != nil {
		return p, nil
	}
	st, err := os.Stat(path)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxFile) {
		err = fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxFile)
	}
	if err == nil && st.Mode().Perm()&0o022 != 0 {
		// Texts can write links, with the rights of whoever looks.
		err = fmt.Errorf("%s may be written by others than its owner; chmod go-w it", path)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("macro %s: %w", name, err)
	}
	p, err := ParseFile(name, string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if replaces && l.Notice != nil {
		l.Notice("using macro file " + path)
	}
	l.parsed[name] = p
	return p, nil
}

// Knows reports whether a name stands for a macro.
func (l *Library) Knows(name string) bool {
	if l != nil && l.files[name] != "" {
		return true
	}
	_, ok := Lookup(strings.TrimPrefix(name, primitivePrefix))
	return ok
}

// UnknownError is the error for a name that no macro has.
type UnknownError struct {
	Name string
	Near string // a macro of a similar name, or empty
}

func (e *UnknownError) Error() string {
	s := fmt.Sprintf("unknown macro %q", e.Name)
	if e.Near != "" {
		s += fmt.Sprintf(" (did you mean %s?)", e.Near)
	}
	return s
}

// Is makes errors.Is(err, ErrUnknown) true.
func (e *UnknownError) Is(target error) bool { return target == ErrUnknown }

// Nearest is the macro whose name is most similar, if any is.
func Nearest(name string) string {
	best, least := "", 4
	if len(name) > 60 {
		return ""
	}
	for _, m := range All() {
		if d := Distance(name, m.Name); d < least && d < len(name) {
			best, least = m.Name, d
		}
	}
	return best
}

// Distance is the edit distance of two short words.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// textMacros are the compiled-in complex macros.
func textMacros() []Macro {
	list, err := views.ReadDir("views")
	if err != nil {
		panic(err)
	}
	out := make([]Macro, 0, len(list))
	for _, f := range list {
		data, err := views.ReadFile("views/" + f.Name())
		if err != nil {
			panic(err)
		}
		name := strings.TrimSuffix(f.Name(), ".tpl")
		p, err := Parse(name, string(data))
		if err != nil {
			panic(err)
		}
		head, _, _ := strings.Cut(string(data), "\n")
		args, help, ok := strings.Cut(strings.TrimPrefix(head, "#"), ":")
		if !ok {
			panic("views/" + f.Name() + " has no help line")
		}
		out = append(out, Macro{Name: name, Args: strings.TrimSpace(args), Help: strings.TrimSpace(help), Text: p})
	}
	return out
}
