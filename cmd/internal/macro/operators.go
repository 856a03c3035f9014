package macro

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// toNumber reads the number at the beginning of a text, as Perl does; there being
// none means 0. Only the part before the first comma counts.
func toNumber(s string) float64 {
	s, _, _ = strings.Cut(strings.TrimLeft(s, " \t\n"), ",")
	i := 0
	if i < len(s) && (s[i] == '+' || s[i] == '-') {
		i++
	}
	i += digits(s[i:])
	if i < len(s) && s[i] == '.' {
		i++
		i += digits(s[i:])
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		j := i + 1
		if j < len(s) && (s[j] == '+' || s[j] == '-') {
			j++
		}
		if n := digits(s[j:]); n > 0 {
			i = j + n
		}
	}
	f, err := strconv.ParseFloat(s[:i], 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0
	}
	return f
}

// toInt is the whole part; what does not fit is cut off at the limits.
func toInt(s string) int64 {
	part, _, _ := strings.Cut(strings.TrimSpace(s), ",")
	if n, err := strconv.ParseInt(part, 10, 64); err == nil {
		return n
	}
	if rest, ok := strings.CutPrefix(part, "0x"); ok {
		if n, err := strconv.ParseUint(rest, 16, 64); err == nil {
			return int64(n)
		}
	}
	f := toNumber(s)
	switch {
	case f >= math.MaxInt64:
		return math.MaxInt64
	case f <= math.MinInt64:
		return math.MinInt64
	case f != f:
		return 0
	}
	return int64(f)
}

// number prints as Perl does: whole numbers without a fraction, 15 digits else.
func number(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "Inf"
	case math.IsInf(f, -1):
		return "-Inf"
	case f != f:
		return "NaN"
	case f == math.Trunc(f) && math.Abs(f) < 1e15:
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', 15, 64)
}

// whole parses an operand that is an integer, so that sums of bytes stay exact.
func whole(s string) (int64, bool) {
	part, _, _ := strings.Cut(s, ",")
	n, err := strconv.ParseInt(strings.TrimSpace(part), 10, 64)
	return n, err == nil
}

// fold makes an operator of any number of operands.
func fold(exact func(a, b int64) (int64, bool), f func(a, b float64) (float64, error)) builtin {
	return eager("{number}{number}...", 1, func(_ *machine, a Args) (string, error) {
		acc := a[0]
		for _, s := range a[1:] {
			if x, ok := whole(acc); ok && exact != nil {
				if y, ok := whole(s); ok {
					if z, ok := exact(x, y); ok {
						acc = itoa(z)
						continue
					}
				}
			}
			z, err := f(toNumber(acc), toNumber(s))
			if err != nil {
				return "", err
			}
			acc = number(z)
		}
		if len(a) == 1 {
			return number(toNumber(acc)), nil
		}
		return acc, nil
	})
}

// bits makes an operator of integers.
func bits(f func(a, b int64) (int64, error)) builtin {
	return eager("{number}{number}...", 2, func(_ *machine, a Args) (string, error) {
		acc := toInt(a[0])
		for _, s := range a[1:] {
			var err error
			if acc, err = f(acc, toInt(s)); err != nil {
				return "", err
			}
		}
		return itoa(acc), nil
	})
}

func shift(f func(a int64, n uint) int64) func(a, b int64) (int64, error) {
	return func(a, b int64) (int64, error) {
		if b < 0 || b > 63 {
			return 0, &wanted{fmt.Sprintf("cannot shift by %d", b), "0 to 63"}
		}
		return f(a, uint(b)), nil
	}
}

var errZero = errors.New("division by zero")

var numberBuiltins = map[string]builtin{
	"+": fold(func(a, b int64) (int64, bool) { c := a + b; return c, (c > a) == (b > 0) },
		func(a, b float64) (float64, error) { return a + b, nil }),
	"-": fold(func(a, b int64) (int64, bool) { c := a - b; return c, (c < a) == (b > 0) },
		func(a, b float64) (float64, error) { return a - b, nil }),
	"*": fold(func(a, b int64) (int64, bool) {
		c := a * b
		return c, a == 0 || c/a == b && (a != -1 || b != math.MinInt64)
	}, func(a, b float64) (float64, error) { return a * b, nil }),
	"/": fold(nil, func(a, b float64) (float64, error) {
		if b == 0 {
			return 0, errZero
		}
		return a / b, nil
	}),
	"%": bits(func(a, b int64) (int64, error) {
		if b == 0 {
			return 0, errZero
		}
		if b == -1 {
			return 0, nil
		}
		// As in Perl, the result has the sign of the divisor.
		if r := a % b; r != 0 && (r < 0) != (b < 0) {
			return r + b, nil
		} else {
			return r, nil
		}
	}),
	"<<": bits(shift(func(a int64, n uint) int64 { return a << n })),
	">>": bits(shift(func(a int64, n uint) int64 { return int64(uint64(a) >> n) })),
	"&":  bits(func(a, b int64) (int64, error) { return a & b, nil }),
	"|":  bits(func(a, b int64) (int64, error) { return a | b, nil }),
	"^":  bits(func(a, b int64) (int64, error) { return a ^ b, nil }),
	"~":  eager("{number}", 1, func(_ *machine, a Args) (string, error) { return itoa(^toInt(a[0])), nil }),
	"min": fold(func(a, b int64) (int64, bool) { return min(a, b), true },
		func(a, b float64) (float64, error) { return min(a, b), nil }),
	"max": fold(func(a, b int64) (int64, bool) { return max(a, b), true },
		func(a, b float64) (float64, error) { return max(a, b), nil }),
}

func compareNumbers(f func(a, b float64) bool) builtin {
	return eager("{number}{number}", 2, func(_ *machine, a Args) (string, error) {
		return truth(f(toNumber(a[0]), toNumber(a[1]))), nil
	})
}

func compareTexts(f func(a, b string) bool) builtin {
	return eager("{text}{text}", 2, func(_ *machine, a Args) (string, error) { return truth(f(a[0], a[1])), nil })
}

// logic evaluates arguments until one decides. and gives the last value, or 0; or
// gives the first true one, as 1, or 0.
func logic(or bool) builtin {
	return builtin{"{condition}{condition}...", 1, func(m *machine, n *node, o *out) error {
		last := ""
		for i := range n.args {
			v, err := m.arg(n, i)
			if err != nil {
				return err
			}
			if isTrue(v) == or {
				return o.add(flag(or))
			}
			last = v
		}
		if or {
			last = "0"
		}
		return o.add(last)
	}}
}

var notBuiltin = eager("{condition}", 1, func(_ *machine, a Args) (string, error) { return truth(!isTrue(a[0])), nil })

var matchBuiltin = eager("{text}{pattern}{options}", 2, func(m *machine, a Args) (string, error) {
	re, _, err := m.regexp(a[1], a.At(2, "m"))
	if err != nil {
		return "", err
	}
	if err := m.payMatch(re, a[0]); err != nil {
		return "", err
	}
	return truth(re.MatchString(a[0])), nil
})

var compareBuiltins = map[string]builtin{
	"<":  compareNumbers(func(a, b float64) bool { return a < b }),
	">":  compareNumbers(func(a, b float64) bool { return a > b }),
	"<=": compareNumbers(func(a, b float64) bool { return a <= b }),
	">=": compareNumbers(func(a, b float64) bool { return a >= b }),
	"==": compareNumbers(func(a, b float64) bool { return a == b }),
	"!=": compareNumbers(func(a, b float64) bool { return a != b }),
	"lt": compareTexts(func(a, b string) bool { return a < b }),
	"gt": compareTexts(func(a, b string) bool { return a > b }),
	"le": compareTexts(func(a, b string) bool { return a <= b }),
	"ge": compareTexts(func(a, b string) bool { return a >= b }),
	"eq": compareTexts(func(a, b string) bool { return a == b }),
	"ne": compareTexts(func(a, b string) bool { return a != b }),
	"=~": matchBuiltin, "match": matchBuiltin,
	"&&": logic(false), "and": logic(false),
	"||": logic(true), "or": logic(true),
	"!": notBuiltin, "not": notBuiltin,
}
