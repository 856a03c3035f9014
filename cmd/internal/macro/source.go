package macro

import "strings"

// source is a text of the macro language without its comments. at remembers where
// each byte came from, so that errors name the place that a person sees.
type source struct {
	name string // of the macro or the file
	orig string
	text string
	at   []int32
}

// newSource removes comments: `#` to the end of the line, `//` and a blank to the
// end of the line, `/* */`, and a backslash at the end of a line with the
// indentation of the next one. A line with nothing but a comment vanishes. In a
// text from a file or the command line (escaped) the two characters `\n` are a
// newline beforehand, so that a comment can end there.
func newSource(name, text string, escaped, trim bool) *source {
	s := &source{name: name, orig: text, at: make([]int32, 0, len(text)+1)}
	buf := make([]byte, 0, len(text))
	put := func(c byte, at int) {
		buf = append(buf, c)
		s.at = append(s.at, int32(at))
	}
	open := false     // no comment ends any more
	lineStart := true // only blanks since the beginning of the line
	kept := 0         // length up to those blanks
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text) && text[i+1] == '\n':
			i += 2
			for i < len(text) && (text[i] == ' ' || text[i] == '\t') {
				i++
			}
			continue
		case c == '\\' && escaped && i+1 < len(text) && text[i+1] == 'n':
			put('\n', i)
			i += 2
			lineStart, kept = true, len(buf)
			continue
		case c == '\\' && i+1 < len(text):
			put(c, i)
			put(text[i+1], i+1)
			i += 2
			lineStart = false
			continue
		case c == '#', strings.HasPrefix(text[i:], "// "), strings.HasPrefix(text[i:], "//\t"):
			i = endOfComment(text, i, escaped)
			if lineStart {
				// Take the blanks before it and the end of the line along.
				buf, s.at = buf[:kept], s.at[:kept]
				i = skipLineEnd(text, i, escaped)
			}
			continue
		case !open && strings.HasPrefix(text[i:], "/*"):
			if end := strings.Index(text[i+2:], "*/"); end >= 0 {
				i += 2 + end + 2
				continue
			}
			open = true // a pattern like /mars/*, here and from here on
		}
		put(c, i)
		i++
		switch c {
		case '\n':
			lineStart, kept = true, len(buf)
		case ' ', '\t':
		default:
			lineStart = false
		}
	}
	// The line end of the last line belongs to the file, not to the text.
	if n := len(buf); trim && n > 0 && buf[n-1] == '\n' {
		buf, s.at = buf[:n-1], s.at[:n-1]
	}
	s.text = string(buf)
	s.at = append(s.at, int32(len(text)))
	return s
}

// endOfComment is where the line ends that begins at i.
func endOfComment(text string, i int, escaped bool) int {
	for ; i < len(text) && text[i] != '\n'; i++ {
		if escaped && strings.HasPrefix(text[i:], `\n`) {
			break
		}
	}
	return i
}

func skipLineEnd(text string, i int, escaped bool) int {
	switch {
	case i < len(text) && text[i] == '\n':
		return i + 1
	case escaped && strings.HasPrefix(text[i:], `\n`):
		return i + 2
	}
	return i
}

// place turns an offset in text into line and column of the original text.
func (s *source) place(off int) (line, col int) {
	off = max(0, min(off, len(s.at)-1))
	o := int(s.at[off])
	before := s.orig[:min(o, len(s.orig))]
	return strings.Count(before, "\n") + 1, len(before) - strings.LastIndexByte(before, '\n')
}
