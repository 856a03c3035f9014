package systemd

import (
	"fmt"
	"strings"
)

// maxExpanded bounds what a template may become.
const maxExpanded = 4 << 20

// maxDepth bounds nested placeholders.
const maxDepth = 20

// expander replaces the placeholders of names and texts.
type expander struct {
	vars           Vars
	escape, incape string
	eval           func(text string, vars Vars) (string, error)
	depth          int
}

// expand replaces all placeholders. An escape character that begins none is text:
// names of instances (getty@tty1.service) have them.
func (x *expander) expand(text string) (string, error) {
	if x.depth++; x.depth > maxDepth {
		return "", fmt.Errorf("placeholders are nested more than %d deep", maxDepth)
	}
	defer func() { x.depth-- }()
	var b strings.Builder
	for {
		i := strings.Index(text, x.escape)
		if i < 0 {
			b.WriteString(text)
			break
		}
		b.WriteString(text[:i])
		text = text[i:]
		word, arg, length, err := x.call(text)
		if err != nil {
			return "", err
		}
		if length == 0 {
			b.WriteString(x.escape)
			text = text[len(x.escape):]
			continue
		}
		value, err := x.value(word, arg)
		if err != nil {
			return "", err
		}
		b.WriteString(value)
		if b.Len() > maxExpanded {
			return "", fmt.Errorf("the result is longer than %d bytes", maxExpanded)
		}
		text = text[length:]
	}
	return b.String(), nil
}

// call parses a placeholder at the start of text. length is 0 if there is none.
func (x *expander) call(text string) (word, arg string, length int, err error) {
	rest := text[len(x.escape):]
	for _, w := range []string{"", "escvar", "esc", "verbatim", "eval"} {
		if !strings.HasPrefix(rest, w+"{") {
			continue
		}
		depth := 0
		for i := len(w); i < len(rest); i++ {
			switch rest[i] {
			case '{':
				depth++
			case '}':
				depth--
			}
			if depth == 0 {
				return w, rest[len(w)+1 : i], len(x.escape) + i + 1, nil
			}
		}
		return "", "", 0, fmt.Errorf("%s%s{ without its }", x.escape, w)
	}
	return "", "", 0, nil
}

func (x *expander) value(word, arg string) (string, error) {
	switch word {
	case "verbatim":
		return arg, nil
	case "eval":
		if x.eval == nil {
			return "", fmt.Errorf("%seval{%.60s}: there is no macro language here", x.escape, arg)
		}
		return x.eval(arg, x.vars)
	case "esc":
		text, err := x.expand(arg)
		return EscapePath(text), err
	}
	name, err := x.expand(arg)
	if err != nil {
		return "", err
	}
	v, ok := x.vars[name]
	if !ok {
		return "", fmt.Errorf("unknown variable %q", name)
	}
	if word == "escvar" {
		v = EscapePath(v)
	}
	return v, nil
}
