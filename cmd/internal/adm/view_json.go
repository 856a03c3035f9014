package adm

import (
	"context"
	"encoding/json"

	"mars/cmd/internal/macro"
)

// jsonFormat is the version of the JSON output. Keys are only added to it; see
// docs/CLI-JSON.md.
const jsonFormat = 1

// jsonHead begins every JSON document of marsadm.
type jsonHead struct {
	Format  int     `json:"format"`
	Command string  `json:"command"`
	Time    float64 `json:"time_seconds"`         // of this machine, since 1970
	Lamport float64 `json:"lamport_time_seconds"` // of the cluster
}

func (s *session) jsonHead() jsonHead {
	return jsonHead{jsonFormat, s.command, float64(s.env.Now().UnixMilli()) / 1000, float64(s.tree.Clock().Now()/1e6) / 1000}
}

// printJSON prints one document: indented, or in one line while watching.
func (s *session) printJSON(to func(string), doc any) error {
	marshal := func() ([]byte, error) { return json.MarshalIndent(doc, "", "  ") }
	if s.opt.watch > 0 {
		marshal = func() ([]byte, error) { return json.Marshal(doc) }
	}
	data, err := marshal()
	if err != nil {
		return err
	}
	to(string(data) + "\n")
	return nil
}

// viewDocument is `view --json`.
type viewDocument struct {
	jsonHead
	Node      *macro.NodeReport `json:"node"`
	Resources []*macro.Report   `json:"resources"`
}

// renderJSON writes the view to the buffer as JSON.
func (v *viewer) renderJSON(ctx context.Context) error {
	list, err := v.list()
	if err != nil {
		return err
	}
	put := func(text string) { v.buf.WriteString(text) }
	if v.name == "default" && v.program == nil && !v.replaced() {
		doc := viewDocument{jsonHead: v.s.jsonHead(), Node: v.context("").NodeReport(), Resources: []*macro.Report{}}
		for _, r := range list {
			c := v.context(r)
			doc.Resources = append(doc.Resources, c.Report(c.Host))
		}
		return v.s.printJSON(put, doc)
	}
	if v.res == "" {
		list = []string{""}
	}
	kind := macro.KindOf(v.name)
	if v.program != nil || v.replaced() {
		kind = macro.KindText
	}
	values := []map[string]any{}
	for _, r := range list {
		c := v.context(r)
		var text string
		if v.program != nil {
			text, err = c.Run(ctx, v.program, v.args...)
		} else {
			text, err = c.EvalContext(ctx, v.name, v.args...)
		}
		if err != nil {
			return named(err, v.s.command, r, v.s.host)
		}
		values = append(values, map[string]any{"resource": r, kind.Key(): kind.Value(text)})
	}
	return v.s.printJSON(put, struct {
		jsonHead
		View   string           `json:"view"`
		Host   string           `json:"host"`
		Args   []string         `json:"args"`
		Values []map[string]any `json:"values"`
	}{v.s.jsonHead(), v.name, v.s.host, append([]string{}, v.args...), values})
}

// replaced: a file of the administrator stands for this view.
func (v *viewer) replaced() bool {
	for _, name := range v.lib.Files() {
		if name == v.name {
			return true
		}
	}
	return false
}
