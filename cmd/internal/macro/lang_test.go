package macro

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// evaluate evaluates a text as --macro does.
func evaluate(t testing.TB, c *Context, text string, args ...string) (string, error) {
	t.Helper()
	p, err := ParseFile("test", text)
	if err != nil {
		return "", err
	}
	return c.Run(context.Background(), p, args...)
}

// TestLanguage: one line, one expression of reference marsadm.md 8.1.
func TestLanguage(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		// texts, escapes, comments
		{"plain", "plain"}, {"", ""}, {"100%", "100%"}, {"50% of it", "50% of it"}, {"5%,%{res}", "5%,r"}, {"%x", "%x"}, {"%[a]{b}", "%[a]{b}"},
		{"{a} }{", "{a} }{"}, {`a\tb\\c\%\{`, "a\tb\\c%{"}, {`\e[1m`, "\x1b[1m"}, {`a\nb`, "a\nb"}, {`\q`, "q"}, {`end\`, `end\`},
		{"a # comment\nb", "a \nb"}, {"# whole line\nb", "b"}, {"  # indented\nb", "b"}, {`# one\nb`, "b"}, {"a // c\nb", "a \nb"}, {"http://x/y", "http://x/y"},
		{"a/* c\nd */b", "ab"}, {"/mars/*", "/mars/*"}, {"a\\\n\t  b", "ab"}, {`\# no comment`, "# no comment"}, {"last\n", "last"},
		// variables
		{"%{none}", ""}, {"%let{v}{x}%{v}%{v}", "xx"}, {"%let{v}{a}%append{v}{b}%{v}", "ab"}, {"%{1}-%{2}-%{3}", "one-two-"}, {"%{0}", "test"},
		{"%let{v}{5}%{++}{v}%{v}", "66"}, {"%let{v}{5}%{v}{++}%{v}", "56"}, {"%let{v}{5}%{--}{v}%{v}{--}%{v}", "443"},
		{"%let{l}{a,b,c}%{l}{,}{1}%{l}{,}{}%{l}{,}{*}%{l}{,}{-3}%{l}{,}{9}", "bcca"}, {"%let{l}{a1b22c}%{l}{[0-9]+}{1}", "b"},
		{"%let{l}{a,b}%set{l}{,}{1}{x}%set{l}{,}{}{y}%set{l}{,}{*}{z}%{l}", "a,x,y,z"}, {"%set{n}{,}{2}{x}%{n}", ",,x"},
		{"%{res} %{host} %{mars} %{resdir} %{real_host} %{ip} %{window} %{threshold}", "r a /mars /mars/resource-r a 10.0.0.1 60 10485760"},
		// numbers
		{"%+{1}{2}{3}", "6"}, {"%-{10}{3}{2}", "5"}, {"%*{3}{4}", "12"}, {"%/{1}{3}", "0.333333333333333"}, {"%/{6}{3}", "2"}, {"%%{7}{3}", "1"}, {"%%{-7}{3}", "2"},
		{"%<<{1}{4}%>>{256}{4}", "1616"}, {"%+{1,5}{2,7}", "3"}, {"%+{12abc}{1}", "13"}, {"%+{x}{1}", "1"}, {"%+{1e3}{.5}", "1000.5"}, {"%-{5}", "5"},
		{"%&{12}{10}", "8"}, {"%|{12}{10}", "14"}, {"%^{12}{10}", "6"}, {"%~{0}", "-1"}, {"%min{3}{1}{2}", "1"}, {"%max{3}{1}{2}", "3"},
		{"%+{9007199254740993}{0}", "9007199254740993"}, {"%+{9223372036854775807}{1}", "9.22337203685478e+18"}, {"%*{-1}{-9223372036854775808}", "9.22337203685478e+18"},
		// comparisons
		{"%<{1}{2}%>{1}{2}", "1"}, {"%<={2}{2}%>={3}{2}", "11"}, {"%=={1.0}{1}%!={1}{1}", "1"}, {"%lt{a}{b}%gt{a}{b}%le{a}{a}%ge{a}{b}%eq{a}{a}%ne{a}{a}", "111"},
		{`%=~{hello}{^h.*o$}`, "1"}, {`%match{a\nb}{^b$}`, "1"}, {`%match{B}{b}{i}`, "1"}, {`%match{B}{b}`, ""},
		// logic
		{"%&&{1}{2}", "2"}, {"%and{1}{0}", "0"}, {"%and{1}{}{%die{x}}", "0"}, {"%||{0}{}", "0"}, {"%or{0}{x}{%die{x}}", "1"}, {"%!{0}%not{1}%!{}", "11"},
		// texts
		{"%length{abc}%toupper{abc}%tolower{ABC}", "3ABCabc"}, {"%subst{a-b-c}{-}{+}", "a+b-c"}, {"%subst{a-b-c}{-}{+}{g}", "a+b+c"},
		{`%subst{k=v}{(\\w)=(\\w)}{$2=\\1}`, "v=k"}, {"%subst{abc}{b}{[$&]}", "a[b]c"},
		{"%sprintf{%05d|%-4s|%.2f|%x|%%|%3s}{42}{ab}{3.14159}{255}{z}", "00042|ab  |3.14|ff|%|  z"}, {`%sprintf{a\tb%s}{}`, "a\tb"},
		{"%human-number{}{}{}{1536}", "1.500 KiB"}, {"%human-number{}{}{}{10}{20}", "10/20 B"}, {"%human-number{M}{:}{_}{1048576}{2097152}", "1.000:2.000_MiB"},
		{"%human-number{k}{}{}{1500}", "1.500 KB"}, {"%human-numbers{}{}{}{0}", "0 B"}, {"%human-seconds{3661}%human-seconds{}%human-seconds{-1}", "01:01:01--:--:----:--:--"},
		{"%progress{10}{5}{5}{10}", "[====>.....]"}, {"%progress{4}{0}{0}{0}", "[>]"}, {"%errno-text{-5,0xff}", "[EIO:Input/output_error],HEXCODE=0xff"}, {"%errno-text{0}", "0"},
		// flow
		{"%if{1}{a}{b}%if{0}{a}{b}%if{}{a}", "ab"}, {"%unless{1}{a}{b}", "b"}, {"%elsif{0}{a}{1}{b}{c}", "b"}, {"%elsif{0}{a}{0}{b}{c}", "c"}, {"%elsunless{1}{a}{0}{b}{c}", "b"},
		{"%let{i}{0}%while{%<{%{i}}{3}}{%{i}{++}}", "012"}, {"%let{i}{0}%until{%>={%{i}}{2}}{%{i}{++}}", "01"}, {"%for{%let{i}{0}}{%<{%{i}}{3}}{%{++}{i}}{%{i},}", "0,1,2,"},
		{"%foreach{x}{a b c}{ }{<%{x}>}", "<a><b><c>"}, {"%foreach{x}{a,b,,}{,}{<%{x}>}", "<a><b>"}, {"%foreach{x}{}{,}{y}", ""},
		{"%foreach{x}{1 2 3}{ }{%if{%=={%{x}}{2}}{%next{}}%{x}}", "13"}, {"%foreach{x}{1 2 3}{ }{%if{%=={%{x}}{2}}{%last{}}%{x}}.", "1."},
		{"a%return{}b", "a"}, {"a%if{1}{b%stop-eval{}c}d", "ab"}, {"a%next{}b", "a"}, {"%foreach{x}{1 2}{ }{%{x}%abort{}}z", "1"},
		// evaluation
		{"%protect{%{res}%x{}}", "%{res}%x{}"}, {"%eval{0}{%{res}}", "%{res}"}, {"%eval{1}{%{res}}", "r"}, {`%let{v}{%protect{%{res}}}%{v}|%eval{1}{%{v}}|%eval{2}{%{v}}`, "%{res}|%{res}|r"},
		{"%let{v}{%protect{%{res}}}%eval-down{%{v}}", "r"}, {"%let{v}{1}%tmp{%let{v}{2}%{v}}%{v}", "21"}, {"%tmp{%{1}}", "one"},
		{"%call{flags}", "DCaS-R"}, {"%call{flags}{b}", "dca---"}, {"%callstack{}", "test"}, {"%call{device-stats}", "Opened, 0 IOPS"},
		// the tree
		{"%readlink{/mars/uuid}%readlink{uuid}%readlink{/mars/none}", "a_1.000000000a_1.000000000"}, {"%get-glob{/mars/ips/ip-*}{}{,}", "/mars/ips/ip-a,/mars/ips/ip-b"},
		{"%foreach-glob{/mars/resource-r/data-*}{p}{<%subst{%{p}}{.*-}{}>}", "<a><b>"}, {"%get-glob{/mars/resource-r/{data,device}-a}{}{ }", "/mars/resource-r/data-a /mars/resource-r/device-a"},
		{"%get-glob{/mars/resource-r/log-*}{}{ }", "/mars/resource-r/log-000000001-a"}, {"%get-glob{/mars/res*}{}{ }", "/mars/resource-r /mars/resource-r10 /mars/resource-r2"},
		// primitives
		{"%is-primary{}%is_primary{}%isprimary{}%is-primary{b}", "111"}, {"%let{host}{b}%is-primary{}%role{}", "Secondary"}, {"%let{res}{r2}%get-primary{}%{resdir}", "/mars/resource-r2"},
		{"%primitive-is-primary{}", "1"}, {"%does{fetch}{b}%todo{fetch}{b}", "0"}, {"%is-primary{}{surplus}", "1"},
		{"%let{window}{1}%is-alive{a}%let{window}{100}%is-alive{a}", "01"},
		// the Nagios plugin of the original
		{`Responsive="%is-alive{%{host}}"\nSpaceRest="%rest-space{}"`, "Responsive=\"1\"\nSpaceRest=\"29\""},
	} {
		got, err := evaluate(t, langContext(t), c.text, "one", "two")
		if err != nil || got != c.want {
			t.Errorf("%s\n got %q, %v\nwant %q", c.text, got, err, c.want)
		}
	}
}

func langContext(t testing.TB) *Context {
	c := testContext(parseTree(t, pairTree+"\nactual-a/time -> 9998.000000000"), "a", "log-000000001-a=100")
	c.Root = "/mars"
	return c
}

// TestLanguageErrors: what is wrong is named with macro, position and what was
// expected.
func TestLanguageErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"a\n %if{x", "macro test, line 2, column 5: argument 1 of %if is not closed; expected a closing brace }"},
		{"%nosuch{}", `macro test, line 1, column 1: %nosuch: unknown macro "nosuch"`},
		{"%flag{}", `(did you mean flags?)`},
		{"# comment\n\n  %/{1}{0}", "macro test, line 3, column 3: %/: division by zero"},
		{"%let{x}", "%let: 1 arguments are too few; expected %let{name}{value}"},
		{"%die{all is lost}", "%die: all is lost"},
		{"%match{a}{(}", "regular expression"},
		{"%match{a}{a}{x}", "expected i, m, s or g"},
		{"%subst{a}{(?=x)}{}", "regular expression"},
		{"%<<{1}{64}", "expected 0 to 63"},
		{"%sprintf{%2000d}{1}", "at most 1000"},
		{"%sprintf{%{v}}{x}", "unknown conversion %{"}, // the format is not evaluated
		{"%sprintf{%q}{1}", "unknown conversion %q"},
		{"%human-number{Z}{}{}{1}", "expected k m g t"},
		{"%progress{1001}", "expected 0 to 1000"},
		{"%readlink{/etc/passwd}", "expected a path below /mars"},
		{"%readlink{/mars/../etc/passwd}", "expected a path below /mars"},
		{"%get-glob{/etc/*}", "expected a path below /mars"},
		{"%get-glob{/mars/[}", "syntax error in pattern"},
		{"%setlink{v}{/mars/userspace/x}", "cannot be set from here"},
		{"%wait-is-primary{}", "waiting is not possible here"},
		{"%set{l}{,}{-5}{x}", "expected a number of an element"},
		{"%eval{1}{\\%if{}", "not closed"},
		{strings.Repeat("%if{1}{", 101) + strings.Repeat("}", 101), "nested deeper than 100"},
		{"%while{1}{}", "steps: the macro does not come to an end"},
		{"%for{}{1}{}{%for{}{1}{}{}}", "steps: the macro does not come to an end"},
		{"%let{v}{xxxxxxxx}%while{1}{%let{v}{%{v}%{v}}}", "grows beyond"},
		{"%while{1}{%let{v}{" + strings.Repeat("x", 10000) + "}}", "bytes of text were made"},
		{"%let{v}{%protect{%eval{1}{%{v}}}}%eval{1}{%{v}}%{v}%let{w}{%protect{%while{1}{x}}}%eval{2}{%{w}}", "test (evaluated again)"},
		{"%include{1and1}%call{default}{%call{nosuch}}", `unknown macro "nosuch"`},
	} {
		got, err := evaluate(t, langContext(t), c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: got %q, error %v, want %q", c.text, got, err, c.want)
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("%.60s: %T has no position", c.text, err)
		}
	}
	if _, err := evaluate(t, langContext(t), "%nosuch{}"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v is not ErrUnknown", err)
	}
}

// library writes macro files to a directory.
func library(t testing.TB, files map[string]string) *Library {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name+".tpl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := NewLibrary(filepath.Join(dir, "none"), dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLibrary: files of the administrator replace what is compiled in, also where
// other macros use it; a directory that comes first wins.
func TestLibrary(t *testing.T) {
	c := langContext(t)
	c.Lib = library(t, map[string]string{
		"mine":    "<%{0}:%{1}>\n",
		"flags":   "FLAGS",
		"wrap":    "%primitive-flags{}",
		"recurse": "%call{recurse}",
		"shared":  "%let{v}{%{1}}",
		"broken":  "%if{",
		"scope":   "%call{shared}{x}%{v}%include{shared}{y}%{v}%{1}",
	})
	var notices []string
	c.Lib.Notice = func(l string) { notices = append(notices, l) }
	for name, want := range map[string]string{
		"mine": "<mine:one>", "flags": "FLAGS", "wrap": "DCaS-R", "scope": "yone",
		"status-line": "  r [2/2] Detaching NotStarted FLAGS Primary a ",
	} {
		arg := "one"
		if name == "status-line" {
			arg = "" // its argument is a host
		}
		if got, err := c.Eval(name, arg); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "using macro file ") || !strings.Contains(notices[0], "flags.tpl") {
		t.Errorf("notices %q", notices)
	}
	for name, want := range map[string]string{"recurse": "more than 200 deep", "broken": "broken.tpl: macro broken, line 1"} {
		if _, err := c.Eval(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	loose := library(t, map[string]string{"loose": "x"})
	if err := os.Chmod(loose.files["loose"], 0o666); err != nil {
		t.Fatal(err)
	}
	c.Lib = loose
	if got, err := c.Eval("loose"); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a file that everybody may write: %q, %v", got, err)
	}
	c.Lib = library(t, map[string]string{"mine": "x"})
	if !c.Lib.Knows("mine") || !c.Lib.Knows("role") || c.Lib.Knows("nosuch") {
		t.Error("Knows")
	}
}

// TestHooks: what leaves the text goes through the context.
func TestHooks(t *testing.T) {
	c := langContext(t)
	var log []string
	c.Warn = func(l string) { log = append(log, "warn "+l) }
	c.Sleep = func(_ context.Context, d time.Duration) error { log = append(log, "sleep "+d.String()); return nil }
	c.SetLink = func(path, value string) error { log = append(log, "set "+path+" "+value); return nil }
	c.Wait = func(_ context.Context, res, cond string, d time.Duration) error {
		log = append(log, "wait "+res+" "+cond+" "+d.String())
		return nil
	}
	got, err := evaluate(t, c, `%warn{hm}%sleep{1.5}%setlink{v}{/mars/userspace/x}%timeout{3}%{timeout}%wait-is-primary-on{}%let{a}{b}%dump-vars{}`)
	if err != nil || got != "31" {
		t.Errorf("%q, %v", got, err)
	}
	want := "warn hm|sleep 1.5s|set userspace/x v|wait r is-primary-on 3s|warn %{a} = \"b\""
	if s := strings.Join(log, "|"); s != want {
		t.Errorf("%s\nwant\n%s", s, want)
	}
}

// TestEnds: a text that loops ends with its context.
func TestEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	cancel(cause)
	p, err := Parse("loop", "%while{1}{}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := langContext(t).Run(ctx, p); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

// FuzzLanguage: no text panics, none runs for ever, and errors have a place.
func FuzzLanguage(f *testing.F) {
	for _, s := range []string{"%while{1}{%append{v}{x}}", "%{a}{b}{c}", "%eval{9}{%{x}}", "%sprintf{%*.9d%s}{1}", "%match{aaaa}{(a*)*b}", "%get-glob{/mars/{a,b}{c,d}*}",
		"%foreach{x}{a b}{}{%next{}}", "%call{default}", "%eval-down{%{1}x}", "%{--}{x}", "# \\n%if{", "%progress{9}{1}{x}{-5}", "%set{a}{,}{9999}{b}", "%human-seconds{1e400}"} {
		f.Add(s, "arg")
	}
	tree := parseTree(f, pairTree)
	f.Fuzz(func(t *testing.T, text, a string) {
		if len(text) > 2000 || len(a) > 200 {
			return
		}
		p, err := ParseFile("fuzz", text)
		if err == nil {
			c := testContext(tree, "a", "log-000000001-a=100")
			m := newMachine(context.Background(), c)
			m.steps, m.bytes = 5000, 1<<20
			start := time.Now()
			err = m.call(p, []string{a, text}, nil, &out{m: m})
			if d := time.Since(start); d > 20*time.Second {
				t.Fatalf("took %s", d)
			}
		}
		var e *Error
		var fl flow
		if err != nil && (!errors.As(err, &e) && !errors.As(err, &fl) || e != nil && (e.Line < 1 || e.Col < 1)) {
			t.Fatalf("%T %v has no place", err, err)
		}
	})
}

// TestRunWith: variables go in and come out.
func TestRunWith(t *testing.T) {
	p, err := Parse("x", "%{in}%let{out}{%{res}}%let{in}{2}")
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"in": "1"}
	got, err := langContext(t).RunWith(context.Background(), p, vars)
	if err != nil || got != "1" || vars["out"] != "r" || vars["in"] != "2" {
		t.Errorf("%q, %v, %v", got, err, vars)
	}
}
