package adm

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"mars/cmd/internal/macro"
	"mars/cmd/internal/systemd"
)

// between separates what a macro prints from the values of its variables afterwards.
const between = "\x01"

// assigned finds the variables that a text may set.
var assigned = regexp.MustCompile(`%(?:let|set|append)\{([A-Za-z0-9_-]+)\}`)

// evalTemplate is @eval of a template: the macro language, in which the variables of
// the template can be read and set.
func (j *job) evalTemplate(text string, vars systemd.Vars) (string, error) {
	names := slices.Sorted(maps.Keys(vars))
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%%let{%s}{%s}", n, quoteMacro(vars[n]))
	}
	b.WriteString(text)
	for _, m := range assigned.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(names, m[1]) {
			names = append(names, m[1])
		}
	}
	for _, n := range names {
		b.WriteString(between + "%{" + n + "}")
	}
	p, err := macro.Parse("@eval", b.String())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.opt.timeout)
	defer cancel()
	out, err := j.context(string(j.r)).Run(ctx, p)
	if err != nil {
		return "", err
	}
	parts := strings.Split(out, between)
	if len(parts) != len(names)+1 {
		return "", fmt.Errorf("@eval{%.60s}: the text is left before its end", text)
	}
	for i, n := range names {
		vars[n] = parts[i+1]
	}
	return parts[0], nil
}

// quoteMacro makes a text stand for itself in the macro language.
func quoteMacro(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\n':
			b.WriteString(`\n`)
			continue
		case c < 0x80 && !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'):
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}
