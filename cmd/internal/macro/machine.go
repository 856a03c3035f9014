package macro

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Limits of one evaluation, so that no text runs for ever or fills the memory.
const (
	maxSteps  = 500_000  // calls and pieces of text
	maxBytes  = 64 << 20 // of all strings made on the way
	maxString = 4 << 20  // of one string
	maxDepth  = 200      // of macros that call each other
)

// machine evaluates one text.
type machine struct {
	ctx     context.Context
	c       *Context
	vars    *scope
	src     *source  // of the text being evaluated
	stack   []string // names of the macros that are being evaluated
	steps   int      // left
	bytes   int      // left
	loops   int      // loops around this text, inside the current macro
	nesting int
	timeout time.Duration // of %wait
	regexps map[string]*regexp.Regexp
}

// flow is how %next, %last, %return and %abort leave a text. What has been printed
// so far stays.
type flow int

const (
	flowNext   flow = iota + 1 // on with the next round of the loop
	flowLast                   // out of the loop
	flowReturn                 // out of the macro
	flowAbort                  // out of everything
)

func (f flow) Error() string { return "a loop or macro is left" }

// out is the text under construction. Every piece is paid for.
type out struct {
	m *machine
	b strings.Builder
}

func (o *out) add(s string) error {
	if err := o.m.pay(len(s)); err != nil {
		return err
	}
	if o.b.Len()+len(s) > maxString {
		return fmt.Errorf("a text grows beyond %d bytes", maxString)
	}
	o.b.WriteString(s)
	return nil
}

func (m *machine) pay(n int) error {
	if m.bytes -= n; m.bytes < 0 {
		return fmt.Errorf("more than %d bytes of text were made on the way: the macro does not come to an end", maxBytes)
	}
	return nil
}

func (m *machine) step() error {
	m.steps--
	switch {
	case m.steps < 0:
		return fmt.Errorf("more than %d steps: the macro does not come to an end", maxSteps)
	case m.steps%256 == 0 && m.ctx.Err() != nil:
		return context.Cause(m.ctx)
	}
	return nil
}

func newMachine(ctx context.Context, c *Context) *machine {
	return &machine{ctx: ctx, c: c, vars: &scope{vars: map[string]string{}}, steps: maxSteps, bytes: maxBytes,
		timeout: c.Timeout, regexps: map[string]*regexp.Regexp{}}
}

// Run evaluates a parsed text with arguments, which it sees as %{1}, %{2} and so on.
func (c *Context) Run(ctx context.Context, p *Program, args ...string) (string, error) {
	return c.run(ctx, p, false, args)
}

// RunWith evaluates a parsed text that sees and changes the given variables.
func (c *Context) RunWith(ctx context.Context, p *Program, vars map[string]string) (string, error) {
	m := newMachine(ctx, c)
	if vars != nil {
		m.vars.vars = vars
	}
	o := &out{m: m}
	err := m.call(p, nil, m.vars, o)
	var f flow
	if err != nil && !errors.As(err, &f) {
		return "", err
	}
	return o.b.String(), nil
}

// run is Run; with perHost the first argument is the host to look at.
func (c *Context) run(ctx context.Context, p *Program, perHost bool, args []string) (string, error) {
	m := newMachine(ctx, c)
	if perHost && len(args) > 0 && args[0] != "" {
		m.vars.vars["host"] = args[0]
	}
	o := &out{m: m}
	err := m.call(p, args, nil, o)
	var f flow
	if err != nil && !errors.As(err, &f) {
		return "", err
	}
	return o.b.String(), nil
}

// call evaluates the text of a macro; with a scope of its own unless one is given.
func (m *machine) call(p *Program, args []string, shared *scope, o *out) error {
	if len(m.stack) >= maxDepth {
		return fmt.Errorf("macros call each other more than %d deep: %s", maxDepth, strings.Join(m.stack[maxDepth-4:], ", "))
	}
	saved := *m
	vars := shared
	if vars == nil {
		vars = &scope{vars: map[string]string{}, up: m.vars}
	}
	old := vars.args
	vars.args = append([]string{p.src.name}, args...)
	m.vars, m.src, m.loops, m.stack = vars, p.src, 0, append(m.stack, p.src.name)
	err := m.eval(p.nodes, o)
	vars.args = old
	m.vars, m.src, m.loops, m.stack = saved.vars, saved.src, saved.loops, saved.stack
	var f flow
	if errors.As(err, &f) && f != flowAbort {
		return nil
	}
	return err
}

// eval evaluates a text.
func (m *machine) eval(nodes []node, o *out) error {
	for i := range nodes {
		n := &nodes[i]
		err := m.step()
		switch {
		case err != nil:
		case n.args == nil:
			err = o.add(n.text)
		default:
			err = m.apply(n, o)
		}
		if err != nil {
			return m.locate(n, err)
		}
	}
	return nil
}

// locate adds to an error where it happened; the innermost place counts.
func (m *machine) locate(n *node, err error) error {
	var e *Error
	var f flow
	if errors.As(err, &e) || errors.As(err, &f) {
		return err
	}
	src := m.src
	if src == nil {
		src = newSource("?", "", false, false)
	}
	line, col := src.place(n.pos)
	out := &Error{Macro: src.name, Line: line, Col: col, Err: err}
	var w *wanted
	switch {
	case errors.As(err, &w):
		out.Reason, out.Expected = fmt.Sprintf("%%%s: %s", n.name, w.reason), w.expected
	default:
		out.Reason = fmt.Sprintf("%%%s: %v", n.name, err)
	}
	return out
}

// wanted is an error that knows what would have been right.
type wanted struct{ reason, expected string }

func (w *wanted) Error() string { return w.reason + "; expected " + w.expected }

// apply evaluates one call.
func (m *machine) apply(n *node, o *out) error {
	if b, ok := builtins[n.name]; ok {
		return m.builtin(b, n, o)
	}
	if b, ok := builtins[canonical(n.name)]; ok && canonical(n.name) != "" {
		return m.builtin(b, n, o)
	}
	if cond, ok := strings.CutPrefix(n.name, "wait-"); ok {
		return m.wait(cond, o)
	}
	args, err := m.values(n.args)
	if err != nil {
		return err
	}
	return m.invoke(n.name, args, nil, o)
}

func (m *machine) builtin(b builtin, n *node, o *out) error {
	if len(n.args) < b.min {
		return &wanted{fmt.Sprintf("%d arguments are too few", len(n.args)), "%" + n.name + b.args}
	}
	if m.nesting++; m.nesting > 10*maxDepth {
		return fmt.Errorf("more than %d evaluations inside each other", 10*maxDepth)
	}
	defer func() { m.nesting-- }()
	return b.run(m, n, o)
}

// invoke evaluates a macro that is called by name: an administrator's file, a
// compiled-in text, or a primitive.
func (m *machine) invoke(name string, args []string, shared *scope, o *out) error {
	d, err := m.c.Lib.find(name)
	if err != nil {
		return err
	}
	if d.text != nil {
		if d.perHost && len(args) > 0 && args[0] != "" {
			if shared == nil {
				shared = &scope{vars: map[string]string{}, up: m.vars}
			}
			shared.vars["host"] = args[0]
		}
		return m.call(d.text, args, shared, o)
	}
	return o.add(d.eval(m.context(), args))
}

// context is what primitives are computed in: variables of the text may have
// replaced the resource, the host and some limits.
func (m *machine) context() *Context {
	sub := *m.c
	if v, ok := m.vars.get("res"); ok {
		sub.Res = v
	}
	if v, ok := m.vars.get("host"); ok {
		sub.Host = v
	}
	if v, ok := m.vars.get("window"); ok {
		sub.Window = span(v)
	}
	if v, ok := m.vars.get("threshold"); ok {
		sub.Threshold = Number(v)
	}
	return &sub
}

// span is a number of seconds.
func span(s string) time.Duration {
	f := min(max(0, toNumber(s)), 1e9)
	return time.Duration(f * float64(time.Second))
}

// value evaluates one argument.
func (m *machine) value(a *arg) (string, error) {
	o := &out{m: m}
	if err := m.eval(a.nodes, o); err != nil {
		return "", err
	}
	return o.b.String(), nil
}

func (m *machine) values(args []arg) ([]string, error) {
	list := make([]string, len(args))
	for i := range args {
		var err error
		if list[i], err = m.value(&args[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// arg evaluates argument i of a call; a missing one is empty.
func (m *machine) arg(n *node, i int) (string, error) {
	if i >= len(n.args) {
		return "", nil
	}
	return m.value(&n.args[i])
}

// body evaluates argument i into the output.
func (m *machine) body(n *node, i int, o *out) error {
	if i >= len(n.args) {
		return nil
	}
	return m.eval(n.args[i].nodes, o)
}

// again parses and evaluates a text that was computed.
func (m *machine) again(text string) (string, error) {
	if err := m.pay(len(text)); err != nil {
		return "", err
	}
	src := newSource(m.src.name+" (evaluated again)", text, false, false)
	p, err := parse(src)
	if err != nil {
		return "", err
	}
	saved := m.src
	m.src = src
	defer func() { m.src = saved }()
	o := &out{m: m}
	if err := m.eval(p.nodes, o); err != nil {
		return "", err
	}
	return o.b.String(), nil
}

// regexp compiles a Perl pattern as far as patterns without look-around and
// back-references go.
func (m *machine) regexp(pattern, opts string) (re *regexp.Regexp, global bool, err error) {
	flags := ""
	for _, f := range opts {
		switch f {
		case 'g':
			global = true
		case 'i', 'm', 's':
			if !strings.ContainsRune(flags, f) {
				flags += string(f)
			}
		default:
			return nil, false, &wanted{fmt.Sprintf("regular expression option %q", f), "i, m, s or g"}
		}
	}
	if flags != "" {
		pattern = "(?" + flags + ")" + pattern
	}
	if re = m.regexps[pattern]; re != nil {
		return re, global, nil
	}
	if err := m.pay(100 * len(pattern)); err != nil {
		return nil, false, err
	}
	if re, err = regexp.Compile(pattern); err != nil {
		return nil, false, fmt.Errorf("regular expression %.80q: %w", pattern, err)
	}
	m.regexps[pattern] = re
	return re, global, nil
}

// match pays for the time that a regular expression takes.
func (m *machine) payMatch(re *regexp.Regexp, text string) error {
	return m.pay(len(text) * (1 + len(re.String())/8))
}

// scope holds variables. A macro that is called sees those of its callers, and
// changes only its own.
type scope struct {
	vars map[string]string
	args []string // %{0}, %{1}...: of the macro that the scope belongs to; nil inside %tmp
	up   *scope
}

func (s *scope) get(name string) (string, bool) {
	for ; s != nil; s = s.up {
		if v, ok := s.vars[name]; ok {
			return v, true
		}
		if s.args != nil && isDigits(name) {
			i := int(Number(name))
			if len(name) <= 6 && i < len(s.args) {
				return s.args[i], true
			}
			return "", false
		}
	}
	return "", false
}

func isDigits(s string) bool { return s != "" && digits(s) == len(s) }

// variable is the value of %{name}: set by the text, or known from the context.
func (m *machine) variable(name string) string {
	if v, ok := m.vars.get(name); ok {
		return v
	}
	c := m.c
	switch name {
	case "res":
		return c.Res
	case "resdir":
		if res := m.variable("res"); res != "" {
			return c.root() + "/resource-" + res
		}
		return ""
	case "mars":
		return c.root()
	case "host":
		return c.Host
	case "real_host", "real-host":
		return c.Node
	case "ip":
		return c.val("ips/ip-" + m.variable("host"))
	case "timeout":
		return seconds(m.timeout)
	case "window":
		return seconds(c.Window)
	case "threshold":
		return itoa(c.Threshold)
	case "stuck-seconds":
		return seconds(c.Stuck)
	case "callstack":
		return strings.Join(m.stack, " ")
	}
	return c.Vars[name]
}

func seconds(d time.Duration) string { return ftoa(d.Seconds()) }
