package macro

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
)

// builtin is a macro of the language itself: it gets its arguments unevaluated.
type builtin struct {
	args string // for messages
	min  int    // arguments that it needs
	run  func(m *machine, n *node, o *out) error
}

// builtins are found by their name as it is written (operators), or by its
// canonical form.
var builtins map[string]builtin

func init() {
	builtins = make(map[string]builtin)
	for _, set := range []map[string]builtin{variableBuiltins, numberBuiltins, compareBuiltins, textBuiltins, flowBuiltins, callBuiltins, worldBuiltins} {
		for name, b := range set {
			key := name
			if c := canonical(name); c != "" {
				key = c
			}
			if _, twice := builtins[key]; twice {
				panic("macro defined twice: " + name)
			}
			builtins[key] = b
		}
	}
}

// eager makes a builtin of a function of evaluated arguments.
func eager(args string, min int, f func(m *machine, a Args) (string, error)) builtin {
	return builtin{args, min, func(m *machine, n *node, o *out) error {
		list, err := m.values(n.args)
		if err != nil {
			return err
		}
		s, err := f(m, list)
		if err != nil {
			return err
		}
		return o.add(s)
	}}
}

var variableBuiltins = map[string]builtin{
	"": {"{name}", 1, func(m *machine, n *node, o *out) error {
		list, err := m.values(n.args)
		if err != nil {
			return err
		}
		switch {
		case len(list) == 1:
			return o.add(m.variable(list[0]))
		case len(list) == 2 && (list[0] == "++" || list[0] == "--"):
			_, after := m.count(list[1], list[0])
			return o.add(after)
		case len(list) == 2 && (list[1] == "++" || list[1] == "--"):
			before, _ := m.count(list[0], list[1])
			return o.add(before)
		}
		fields, err := m.split(m.variable(list[0]), list[1])
		if err != nil {
			return err
		}
		if i := element(Args(list).At(2, "*"), len(fields)); i >= 0 && i < len(fields) {
			return o.add(fields[i])
		}
		return nil
	}},
	"let": eager("{name}{value}", 2, func(m *machine, a Args) (string, error) { return "", m.assign(a[0], a[1]) }),
	"append": eager("{name}{value}", 2, func(m *machine, a Args) (string, error) {
		return "", m.assign(a[0], m.variable(a[0])+a[1])
	}),
	"set": eager("{name}{delim}{index}{value}", 4, func(m *machine, a Args) (string, error) {
		var fields []string
		if v := m.variable(a[0]); v != "" {
			var err error
			if fields, err = m.split(v, a[1]); err != nil {
				return "", err
			}
		}
		i := len(fields)
		if a[2] != "" && a[2] != "*" {
			i = element(a[2], len(fields))
		}
		if i < 0 || i > len(fields)+10000 {
			return "", &wanted{fmt.Sprintf("index %q of a list of %d", a[2], len(fields)), "a number of an element, or * to append"}
		}
		for len(fields) <= i {
			fields = append(fields, "")
		}
		fields[i] = a[3]
		return "", m.assign(a[0], strings.Join(fields, a[1]))
	}),
}

// assign sets a variable of the current scope.
func (m *machine) assign(name, value string) error {
	if err := m.pay(len(name) + len(value)); err != nil {
		return err
	}
	if len(value) > maxString {
		return fmt.Errorf("the value of %.40q grows beyond %d bytes", name, maxString)
	}
	m.vars.vars[name] = value
	return nil
}

// count is ++ and --.
func (m *machine) count(name, how string) (before, after string) {
	n := toNumber(m.variable(name))
	before, after = number(n), number(n+1)
	if how == "--" {
		after = number(n - 1)
	}
	m.vars.vars[name] = after
	return before, after
}

// element turns an index word into a number: empty or * is the last one, negative
// ones count from the end.
func element(word string, n int) int {
	if word == "" || word == "*" {
		return n - 1
	}
	i := int(max(-1e9, min(1e9, toNumber(word))))
	if i < 0 {
		i += n
	}
	return i
}

// split is Perl's: by a pattern, empty fields at the end are dropped.
func (m *machine) split(text, pattern string) ([]string, error) {
	re, _, err := m.regexp(pattern, "m")
	if err != nil {
		return nil, err
	}
	if err := m.payMatch(re, text); err != nil {
		return nil, err
	}
	if text == "" {
		return nil, nil
	}
	list := re.Split(text, -1)
	for len(list) > 0 && list[len(list)-1] == "" {
		list = list[:len(list)-1]
	}
	if err := m.pay(16 * len(list)); err != nil {
		return nil, err
	}
	return list, nil
}

// isTrue: neither empty nor 0.
func isTrue(s string) bool { return s != "" && s != "0" }

// choose is if, elsif and their negations: pairs of condition and text, and a last
// text that stands for everything else.
func choose(negate bool) func(m *machine, n *node, o *out) error {
	return func(m *machine, n *node, o *out) error {
		i := 0
		for ; i+1 < len(n.args); i += 2 {
			cond, err := m.arg(n, i)
			if err != nil {
				return err
			}
			if isTrue(cond) != negate {
				return m.body(n, i+1, o)
			}
		}
		return m.body(n, i, o)
	}
}

var flowBuiltins = map[string]builtin{
	"if":        {"{condition}{text}{else}", 1, choose(false)},
	"unless":    {"{condition}{text}{else}", 1, choose(true)},
	"elsif":     {"{condition}{text}...{else}", 1, choose(false)},
	"elseif":    {"{condition}{text}...{else}", 1, choose(false)},
	"elsunless": {"{condition}{text}...{else}", 1, choose(true)},
	"while":     {"{condition}{body}", 1, repeat(true)},
	"until":     {"{condition}{body}", 1, repeat(false)},
	"for": {"{start}{condition}{step}{body}", 4, func(m *machine, n *node, o *out) error {
		if _, err := m.arg(n, 0); err != nil {
			return err
		}
		return m.loop(func() (bool, error) {
			cond, err := m.arg(n, 1)
			return isTrue(cond), err
		}, func() error { return m.body(n, 3, o) }, func() error {
			_, err := m.arg(n, 2)
			return err
		})
	}},
	"foreach": {"{name}{list}{delim}{body}", 4, func(m *machine, n *node, o *out) error {
		a, err := m.values(n.args[:3])
		if err != nil {
			return err
		}
		delim := Args(a).At(2, `\s+`)
		list, err := m.split(a[1], delim)
		if err != nil {
			return err
		}
		return m.each(a[0], list, n, 3, o)
	}},
	"foreach-glob": {"{pattern}{name}{body}", 3, func(m *machine, n *node, o *out) error {
		a, err := m.values(n.args[:2])
		if err != nil {
			return err
		}
		list, err := m.glob(a[0])
		if err != nil {
			return err
		}
		return m.each(a[1], list, n, 2, o)
	}},
	"next": leave(flowNext), "last": leave(flowLast), "return": leave(flowReturn),
	"abort": leave(flowAbort), "stop-eval": leave(flowAbort),
}

// leave ends texts. Outside of a loop, %next and %last end the macro.
func leave(f flow) builtin {
	return builtin{"{}", 0, func(m *machine, _ *node, _ *out) error {
		if m.loops == 0 && f < flowReturn {
			return flowReturn
		}
		return f
	}}
}

func repeat(while bool) func(m *machine, n *node, o *out) error {
	return func(m *machine, n *node, o *out) error {
		return m.loop(func() (bool, error) {
			cond, err := m.arg(n, 0)
			return isTrue(cond) == while, err
		}, func() error { return m.body(n, 1, o) }, func() error { return nil })
	}
}

// loop repeats body and then step while cond holds.
func (m *machine) loop(cond func() (bool, error), body, step func() error) error {
	m.loops++
	defer func() { m.loops-- }()
	for {
		if err := m.step(); err != nil {
			return err
		}
		if on, err := cond(); err != nil || !on {
			return err
		}
		err := body()
		var f flow
		switch {
		case errors.As(err, &f) && f == flowLast:
			return nil
		case errors.As(err, &f) && f == flowNext:
		case err != nil:
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
}

// each runs argument body of a call for every element of a list.
func (m *machine) each(name string, list []string, n *node, body int, o *out) error {
	i := -1
	return m.loop(func() (bool, error) {
		if i++; i >= len(list) {
			return false, nil
		}
		return true, m.assign(name, list[i])
	}, func() error { return m.body(n, body, o) }, func() error { return nil })
}

var callBuiltins = map[string]builtin{
	"protect": {"{text}", 1, func(_ *machine, n *node, o *out) error { return o.add(n.args[0].raw) }},
	"eval": {"{times}{text}", 2, func(m *machine, n *node, o *out) error {
		times, err := m.arg(n, 0)
		if err != nil {
			return err
		}
		text := n.args[1].raw
		for range int(min(1000, max(0, toNumber(times)))) {
			if text, err = m.again(text); err != nil {
				return err
			}
		}
		return o.add(text)
	}},
	"eval-down": {"{text}", 1, func(m *machine, n *node, o *out) error {
		text := n.args[0].raw
		for range 1000 {
			next, err := m.again(text)
			if err != nil {
				return err
			}
			if next == text {
				return o.add(text)
			}
			text = next
		}
		return errors.New("the text is still changing after 1000 evaluations")
	}},
	"tmp": {"{text}", 1, func(m *machine, n *node, o *out) error {
		saved := m.vars
		m.vars = &scope{vars: map[string]string{}, up: saved}
		defer func() { m.vars = saved }()
		return m.body(n, 0, o)
	}},
	"call":    {"{name}{args}...", 1, func(m *machine, n *node, o *out) error { return m.byName(n, nil, o) }},
	"include": {"{name}{args}...", 1, func(m *machine, n *node, o *out) error { return m.byName(n, m.vars, o) }},
	"callstack": eager("{}", 0, func(m *machine, _ Args) (string, error) {
		return strings.Join(m.stack, "\n"), nil
	}),
	"dump-vars": eager("{}", 0, func(m *machine, _ Args) (string, error) {
		seen := map[string]string{}
		for s := m.vars; s != nil; s = s.up {
			for k, v := range s.vars {
				if _, ok := seen[k]; !ok {
					seen[k] = v
				}
			}
		}
		names := make([]string, 0, len(seen))
		for k := range seen {
			names = append(names, k)
		}
		sort.Strings(names)
		for _, k := range names {
			m.warn(fmt.Sprintf("%%{%s} = %q", k, seen[k]))
		}
		return "", nil
	}),
	"warn": eager("{text}", 1, func(m *machine, a Args) (string, error) {
		m.warn(strings.TrimRight(a[0], "\n"))
		return "", nil
	}),
	"die": eager("{text}", 1, func(_ *machine, a Args) (string, error) {
		return "", errors.New(strings.TrimSpace(a[0]))
	}),
}

func (m *machine) warn(line string) {
	if m.c.Warn != nil {
		m.c.Warn(line)
	}
}

func (m *machine) byName(n *node, shared *scope, o *out) error {
	list, err := m.values(n.args)
	if err != nil {
		return err
	}
	return m.invoke(list[0], list[1:], shared, o)
}

// worldBuiltins look at the tree and at the clock.
var worldBuiltins = map[string]builtin{
	"sleep": eager("{seconds}", 1, func(m *machine, a Args) (string, error) {
		if m.c.Sleep == nil {
			return "", nil
		}
		return "", m.c.Sleep(m.ctx, span(a[0]))
	}),
	"timeout": eager("{seconds}", 1, func(m *machine, a Args) (string, error) {
		m.timeout = span(a[0])
		return "", nil
	}),
	"readlink": eager("{path}", 1, func(m *machine, a Args) (string, error) {
		rel, ok := m.c.relative(a[0])
		if !ok {
			return "", &wanted{fmt.Sprintf("path %.80q", a[0]), "a path below " + m.c.root()}
		}
		return m.c.val(rel), nil
	}),
	"setlink": eager("{value}{path}", 2, func(m *machine, a Args) (string, error) {
		rel, ok := m.c.relative(a[1])
		switch {
		case !ok:
			return "", &wanted{fmt.Sprintf("path %.80q", a[1]), "a path below " + m.c.root()}
		case m.c.SetLink == nil:
			return "", errors.New("links cannot be set from here")
		}
		return "", m.c.SetLink(rel, a[0])
	}),
	"get-glob": {"{pattern}{}{delim}", 1, func(m *machine, n *node, o *out) error {
		a, err := m.values(n.args)
		if err != nil {
			return err
		}
		list, err := m.glob(a[0])
		if err != nil {
			return err
		}
		return o.add(strings.Join(list, Args(a).At(2, "\n")))
	}},
}

// wait waits for a condition of `marsadm wait-resource`.
func (m *machine) wait(cond string, o *out) error {
	if m.c.Wait == nil {
		return errors.New("waiting is not possible here")
	}
	res := m.variable("res")
	if res == "" {
		return &wanted{"there is no resource to wait for", "a resource behind the view's name"}
	}
	limit := m.timeout
	if limit <= 0 {
		limit = 600 * time.Second
	}
	if err := m.c.Wait(m.ctx, res, cond, limit); err != nil {
		return err
	}
	return o.add("1")
}
