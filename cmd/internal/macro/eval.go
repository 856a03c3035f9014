package macro

import (
	"context"
	"errors"
	"sort"
	"strings"
)

// Func computes the text of a macro. Missing arguments are empty.
type Func func(c *Context, args Args) string

// Args are the evaluated arguments of a macro.
type Args []string

// At is argument i, or def where it is missing or empty.
func (a Args) At(i int, def string) string {
	if i < len(a) && a[i] != "" {
		return a[i]
	}
	return def
}

// Macro is one named view: a function, or a text of the macro language.
type Macro struct {
	Name string
	Args string // as shown in the help, e.g. "{host}"
	Help string
	Eval Func
	Text *Program
}

// ErrUnknown is wrapped by the error of Eval for a name that no macro has.
var ErrUnknown = errors.New("unknown macro")

// canonical makes '-', '_' and nothing equal, as the macro language does.
func canonical(name string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name))
}

var table = buildTable()

func buildTable() map[string]*Macro {
	out := make(map[string]*Macro)
	for _, list := range [][]Macro{stateMacros(), logMacros(), rateMacros(), infoMacros(), wordMacros(), compatMacros(), textMacros()} {
		for i := range list {
			m := &list[i]
			if out[canonical(m.Name)] != nil {
				panic("macro defined twice: " + m.Name)
			}
			out[canonical(m.Name)] = m
		}
	}
	return out
}

// Lookup finds a macro by its name.
func Lookup(name string) (*Macro, bool) {
	m, ok := table[canonical(name)]
	return m, ok
}

// All lists the macros by name.
func All() []*Macro {
	out := make([]*Macro, 0, len(table))
	for _, m := range table {
		out = append(out, m)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Eval evaluates the macro called name.
func (c *Context) Eval(name string, args ...string) (string, error) {
	return c.EvalContext(context.Background(), name, args...)
}

// EvalContext is Eval, which ends when ctx does.
func (c *Context) EvalContext(ctx context.Context, name string, args ...string) (string, error) {
	d, err := c.Lib.find(name)
	switch {
	case err != nil:
		return "", err
	case d.text == nil:
		return d.eval(c, args), nil
	}
	return c.run(ctx, d.text, d.perHost, args)
}
