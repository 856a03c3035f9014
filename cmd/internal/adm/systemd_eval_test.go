package adm

import (
	"io"
	"testing"

	"github.com/spf13/pflag"

	"mars/cmd/internal/systemd"
	"mars/symlinktree"
)

// @eval of a template is the macro language with the template's variables, which it
// can change and add to.
func TestEvalTemplate(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	j := &job{session: &session{env: r.env.withDefaults(), opt: bind(pflag.NewFlagSet("", pflag.ContinueOnError)), node: "hosta", host: "hosta", tree: r.tree(), out: newLineWriter(io.Discard), err: newLineWriter(io.Discard)}, r: symlinktree.Resource("r0")}
	odd := "/a b%{res}#\\x{/*c*/}\n-$"
	for _, c := range []struct{ text, want, set string }{
		{"plain", "plain", ""},
		{"%get-primary{}", "hosta", ""},
		{"%{res}-%{odd}", "r0-" + odd, ""},
		{"%if{%is-primary{}}{yes}{no}", "yes", ""},
		{"%let{new}{%{host}/x}", "", "hosta/x"},
		{"%let{new}{1}%append{new}{2}%{new}", "12", "12"},
	} {
		vars := systemd.Vars{"res": "r0", "host": "hosta", "odd": odd}
		got, err := j.evalTemplate(c.text, vars)
		if err != nil || got != c.want || vars["new"] != c.set || vars["odd"] != odd {
			t.Errorf("%s: %q, %v, new is %q, odd is %q; want %q and %q", c.text, got, err, vars["new"], vars["odd"], c.want, c.set)
		}
	}
	for _, text := range []string{"%nonsense{}", "%{", "%if{"} {
		if got, err := j.evalTemplate(text, systemd.Vars{"res": "r0"}); err == nil && got != text {
			t.Errorf("%s became %q", text, got)
		}
	}
}
