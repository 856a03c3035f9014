package macro

import (
	"fmt"
	"strings"
)

// maxNesting is how deep braces may be nested in a text.
const maxNesting = 100

// node is a piece of a text: verbatim, or a call when args is not nil.
type node struct {
	text string
	pos  int // offset in the source
	name string
	args []arg
}

// arg is an argument of a call: its text as it is written, and parsed. Every macro
// decides itself whether, and how often, an argument is evaluated.
type arg struct {
	raw   string
	pos   int
	nodes []node
}

// Program is a parsed text of the macro language.
type Program struct {
	src   *source
	nodes []node
}

// Name is the name of the macro that the text belongs to.
func (p *Program) Name() string { return p.src.name }

// Text is the text as it was written.
func (p *Program) Text() string { return p.src.orig }

// Error is what is wrong with a text or its evaluation.
type Error struct {
	Macro     string // the macro or file whose text it is
	Line, Col int    // in that text, from 1
	Reason    string
	Expected  string // what would have been right, if that can be said
	Err       error  // the cause, or nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("macro %s, line %d, column %d: %s", e.Macro, e.Line, e.Col, e.Reason)
	if e.Expected != "" {
		s += "; expected " + e.Expected
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

func (s *source) errorAt(pos int, expected, format string, args ...any) *Error {
	line, col := s.place(pos)
	return &Error{Macro: s.name, Line: line, Col: col, Reason: fmt.Sprintf(format, args...), Expected: expected}
}

// Parse reads a text that was compiled in. ParseFile reads one of an
// administrator, in which the two characters `\n` count as a line end even in a
// comment.
func Parse(name, text string) (*Program, error) { return parse(newSource(name, text, false, true)) }

// ParseFile: see Parse.
func ParseFile(name, text string) (*Program, error) { return parse(newSource(name, text, true, true)) }

func parse(src *source) (*Program, error) {
	p := parser{src: src}
	nodes, err := p.run(0, len(src.text), 0)
	if err != nil {
		return nil, err
	}
	return &Program{src: src, nodes: nodes}, nil
}

type parser struct{ src *source }

// run parses the text between two offsets.
func (p *parser) run(from, to, depth int) ([]node, error) {
	if depth > maxNesting {
		return nil, p.src.errorAt(from, "", "braces are nested deeper than %d", maxNesting)
	}
	var out []node
	var text strings.Builder
	start := from
	flush := func(next int) {
		if text.Len() > 0 {
			out = append(out, node{text: text.String(), pos: start})
			text.Reset()
		}
		start = next
	}
	for i := from; i < to; {
		c := p.src.text[i]
		switch c {
		case '\\':
			if i+1 < to {
				text.WriteString(unescape(p.src.text[i+1]))
			} else {
				text.WriteByte('\\')
			}
			i += 2
			continue
		case '%':
			if n := p.nameLen(i+1, to); n >= 0 {
				flush(i)
				call, next, err := p.call(i, n, to, depth)
				if err != nil {
					return nil, err
				}
				out = append(out, call)
				i, start = next, next
				continue
			}
		}
		text.WriteByte(c)
		i++
	}
	flush(to)
	return out, nil
}

// nameLen is the length of the macro name at i if a call begins there, else -1.
func (p *parser) nameLen(i, to int) int {
	for j := i; j < to; j++ {
		switch c := p.src.text[j]; c {
		case '{':
			return j - i
		case '%':
			// The operator %% is the only name with that character.
			if j != i || j+1 >= to || p.src.text[j+1] != '{' {
				return -1
			}
		case ' ', '\t', '\n', '\r', '}', '[', ']', '\\':
			return -1
		}
	}
	return -1
}

// call parses %NAME{ARG}...; i is at the percent sign.
func (p *parser) call(i, nameLen, to, depth int) (node, int, error) {
	n := node{pos: i, name: p.src.text[i+1 : i+1+nameLen], args: []arg{}}
	at := i + 1 + nameLen
	for at < to && p.src.text[at] == '{' {
		end := p.closing(at, to)
		if end < 0 {
			return n, 0, p.src.errorAt(at, "a closing brace }", "argument %d of %%%s is not closed", len(n.args)+1, n.name)
		}
		nodes, err := p.run(at+1, end, depth+1)
		if err != nil {
			return n, 0, err
		}
		n.args = append(n.args, arg{raw: p.src.text[at+1 : end], pos: at + 1, nodes: nodes})
		at = end + 1
	}
	return n, at, nil
}

// closing finds the brace that closes the one at i, or -1.
func (p *parser) closing(i, to int) int {
	depth := 0
	for j := i; j < to; j++ {
		switch p.src.text[j] {
		case '\\':
			j++
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return j
			}
		}
	}
	return -1
}

// unescape is what backslash and c stand for.
func unescape(c byte) string {
	switch c {
	case 'n':
		return "\n"
	case 't':
		return "\t"
	case 'r':
		return "\r"
	case 'f':
		return "\f"
	case 'b':
		return "\b"
	case 'a':
		return "\a"
	case 'e':
		return "\x1b"
	}
	return string([]byte{c})
}
