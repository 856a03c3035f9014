package macro

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

var textBuiltins = map[string]builtin{
	"length":  eager("{text}", 1, func(_ *machine, a Args) (string, error) { return strconv.Itoa(len(a[0])), nil }),
	"toupper": eager("{text}", 1, func(_ *machine, a Args) (string, error) { return strings.ToUpper(a[0]), nil }),
	"tolower": eager("{text}", 1, func(_ *machine, a Args) (string, error) { return strings.ToLower(a[0]), nil }),
	"subst":   eager("{text}{pattern}{replacement}{options}", 3, (*machine).subst),
	"sprintf": {"{format}{value}...", 1, func(m *machine, n *node, o *out) error {
		list, err := m.values(n.args[1:])
		if err != nil {
			return err
		}
		s, err := sprintf(n.args[0].raw, list)
		if err != nil {
			return err
		}
		return o.add(s)
	}},
	"human-number":  eager("{unit}{delim}{separator}{number}...", 4, humanNumbers),
	"human-numbers": eager("{unit}{delim}{separator}{number}...", 4, humanNumbers),
	"human-pair": eager("{number}{number}", 2, func(_ *machine, a Args) (string, error) {
		return shortPair(toInt(a[0]), toInt(a[1])), nil
	}),
	"human-rate": eager("{number}", 1, func(_ *machine, a Args) (string, error) { return shortRate(toNumber(a[0])), nil }),
	"human-seconds": eager("{seconds}", 1, func(_ *machine, a Args) (string, error) {
		if strings.TrimSpace(a[0]) == "" {
			return HumanSeconds(-1), nil
		}
		return HumanSeconds(min(toNumber(a[0]), 1e15)), nil
	}),
	"progress": eager("{length}{min}{mid}{max}", 0, func(m *machine, a Args) (string, error) {
		width := toInt(a.At(0, "20"))
		if width < 0 || width > 1000 {
			return "", &wanted{fmt.Sprintf("length %d", width), "0 to 1000"}
		}
		if len(a) >= 4 {
			return Progress(int(width), toInt(a[1]), toInt(a[2]), toInt(a[3])), nil
		}
		c := m.context()
		am := c.amounts(c.Host)
		return Progress(int(width), am.replayPos, am.fetchPos, am.workSize), nil
	}),
}

// subst replaces what a pattern finds: the first occurrence, or with option g
// all. The replacement may have $1 or \1, and $& for the whole.
func (m *machine) subst(a Args) (string, error) {
	re, global, err := m.regexp(a[1], a.At(3, "m"))
	if err != nil {
		return "", err
	}
	text := a[0]
	if err := m.payMatch(re, text); err != nil {
		return "", err
	}
	limit := 1
	if global {
		limit = -1
	}
	o, last := &out{m: m}, 0
	for _, at := range re.FindAllStringSubmatchIndex(text, limit) {
		if err := o.add(text[last:at[0]] + expand(a[2], text, at)); err != nil {
			return "", err
		}
		last = at[1]
	}
	if err := o.add(text[last:]); err != nil {
		return "", err
	}
	return o.b.String(), nil
}

func expand(template, text string, at []int) string {
	var b strings.Builder
	for i := 0; i < len(template); i++ {
		c := template[i]
		if i+1 < len(template) && (c == '$' || c == '\\') {
			group := -1
			switch d := template[i+1]; {
			case d >= '0' && d <= '9':
				group = int(d - '0')
			case c == '$' && d == '&':
				group = 0
			}
			if group >= 0 {
				if i++; 2*group+1 < len(at) && at[2*group] >= 0 {
					b.WriteString(text[at[2*group]:at[2*group+1]])
				}
				continue
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// sprintf formats as Perl does: the format is taken as it is written, apart from
// backslash escapes. The verbs are d i u s f e g x X o b c and %.
func sprintf(raw string, args []string) (string, error) {
	format := unescapeAll(raw)
	var b strings.Builder
	next := func() string {
		if len(args) == 0 {
			return ""
		}
		s := args[0]
		args = args[1:]
		return s
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		j := i + 1
		for j < len(format) && strings.IndexByte("-+ 0#", format[j]) >= 0 {
			j++
		}
		flags := format[i+1 : j]
		num := j
		for j < len(format) && (format[j] >= '0' && format[j] <= '9' || format[j] == '.') {
			j++
		}
		width := format[num:j]
		if j >= len(format) {
			b.WriteString(format[i:])
			break
		}
		if strings.Count(width, ".") > 1 || tooWide(width) {
			return "", &wanted{fmt.Sprintf("width %s in the format", width), "at most 1000"}
		}
		verb := format[j]
		i = j
		spec := "%" + flags + width
		switch verb {
		case '%':
			b.WriteByte('%')
		case 'd', 'i', 'u':
			fmt.Fprintf(&b, spec+"d", toInt(next()))
		case 'x', 'X', 'o', 'b':
			fmt.Fprintf(&b, spec+string(verb), uint64(toInt(next())))
		case 'f', 'e', 'g', 'E', 'G':
			f := toNumber(next())
			if math.Abs(f) > 1e300 {
				f = math.Inf(int(math.Copysign(1, f)))
			}
			fmt.Fprintf(&b, spec+string(verb), f)
		case 's':
			fmt.Fprintf(&b, strings.ReplaceAll(strings.ReplaceAll(spec, "+", ""), "#", "")+"s", next())
		case 'c':
			b.WriteRune(rune(max(0, min(0x10ffff, toInt(next())))))
		default:
			return "", &wanted{fmt.Sprintf("unknown conversion %%%c in the format", verb), "one of d u s f e g x o b c"}
		}
	}
	return b.String(), nil
}

func tooWide(width string) bool {
	for _, w := range strings.Split(width, ".") {
		if n, err := strconv.Atoi(w); w != "" && (err != nil || n > 1000) {
			return true
		}
	}
	return false
}

func unescapeAll(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
			b.WriteString(unescape(s[i]))
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// fixedUnits are the units that a text may ask for: small letters count in
// thousands.
var fixedUnits = map[string]struct {
	name  string
	bytes float64
}{
	"k": {"KB", 1e3}, "m": {"MB", 1e6}, "g": {"GB", 1e9}, "t": {"TB", 1e12},
	"K": {"KiB", 1 << 10}, "M": {"MiB", 1 << 20}, "G": {"GiB", 1 << 30}, "T": {"TiB", 1 << 40},
	"b": {"B", 1}, "B": {"B", 1},
}

// humanNumbers prints amounts in one common unit.
func humanNumbers(_ *machine, a Args) (string, error) {
	nums := make([]float64, 0, len(a)-3)
	most := 0.0
	for _, s := range a[3:] {
		f := toNumber(s)
		nums = append(nums, f)
		most = max(most, f)
	}
	name, bytes := unitOf(most)
	if a[0] != "" {
		u, ok := fixedUnits[a[0]]
		if !ok {
			return "", &wanted{fmt.Sprintf("unit %.20q", a[0]), "k m g t (thousands), K M G T (1024s), or nothing"}
		}
		name, bytes = u.name, u.bytes
	}
	parts := make([]string, len(nums))
	for i, n := range nums {
		if name == "B" {
			parts[i] = number(math.Trunc(n))
		} else {
			parts[i] = strconv.FormatFloat(n/bytes, 'f', 3, 64)
		}
	}
	return strings.Join(parts, a.At(1, "/")) + a.At(2, " ") + name, nil
}
