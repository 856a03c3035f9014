package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// generated is the beginning of the line that marks a file as ours.
const generated = "### GENERATED "

// dependencies are the directives whose values are names of units.
var dependencies = []string{
	"After", "Before", "BindsTo", "BoundBy", "Conflicts", "OnFailure", "OnSuccess", "PartOf", "PropagatesStopTo",
	"Requires", "Requisite", "Sockets", "Service", "StopPropagatedFrom", "Unit", "Upholds", "Wants", "Also", "RequiredBy", "WantedBy",
}

// Report says what Generate has done.
type Report struct {
	Written []string // new or changed
	Same    []string
}

// maxUnits bounds what one resource may need.
const maxUnits = 1000

// Generate writes the named units, and all that they refer to, as far as there are
// templates for them; then systemd learns of it. Units without a template are left to
// whoever has installed them.
func (e *Engine) Generate(ctx context.Context, units []string, vars Vars) (Report, error) {
	var rep Report
	templates, err := LoadTemplates(e.cfg.TemplateDirs)
	if err != nil {
		return rep, err
	}
	seen := make(map[string]bool)
	var start, enable []string
	// What has been written and not announced, because that failed, is announced again.
	pending := filepath.Join(e.cfg.UnitDir, ".marsadm-pending-"+vars["res"])
	_, statErr := os.Lstat(pending)
	again := statErr == nil
	for queue := slices.Clone(units); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if name == "" || seen[name] {
			continue
		}
		if seen[name] = true; len(seen) > maxUnits {
			return rep, fmt.Errorf("the templates need more than %d units", maxUnits)
		}
		t, text, refs, err := e.instance(templates, name, vars)
		if err != nil {
			return rep, err
		}
		if t == nil {
			continue
		}
		queue = append(queue, refs...)
		changed, err := e.write(*t, name, text, refs, vars)
		if err != nil {
			return rep, err
		}
		if changed && !again && len(rep.Written) == 0 {
			if err := errors.Join(os.MkdirAll(e.cfg.UnitDir, 0o755), os.WriteFile(pending, nil, 0o600)); err != nil {
				return rep, err
			}
		}
		if !changed && !again {
			rep.Same = append(rep.Same, name)
			continue
		}
		rep.Written = append(rep.Written, name)
		if t.marked("ALWAYS_START") {
			start = append(start, name)
		}
		if !t.marked("ALWAYS_DISABLED") && filepath.Ext(name) != scriptSuffix && strings.Contains(text, "\n[Install]") {
			enable = append(enable, name)
		}
	}
	if err := e.announce(ctx, rep.Written, enable, start); err != nil {
		return rep, err
	}
	if err := os.Remove(pending); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return rep, err
	}
	return rep, nil
}

// announce makes systemd read what has been written.
func (e *Engine) announce(ctx context.Context, written, enable, start []string) error {
	if !slices.ContainsFunc(written, isUnit) {
		return nil
	}
	if err := e.systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	for _, n := range enable {
		if err := e.systemctl(ctx, "enable", n); err != nil {
			return err
		}
	}
	for _, n := range start {
		if err := e.Start(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// instance finds the template of a unit and expands it. A nil template means that
// there is none.
func (e *Engine) instance(templates []Template, unit string, vars Vars) (*Template, string, []string, error) {
	if err := validUnit(unit); err != nil {
		return nil, "", nil, err
	}
	for i := range templates {
		t := &templates[i]
		x := e.expander(vars)
		found, ok, err := t.match(unit, x)
		if err != nil {
			return nil, "", nil, err
		}
		if !ok {
			continue
		}
		maps.Copy(x.vars, found)
		text, err := x.expand(t.Body)
		if err != nil {
			return nil, "", nil, fmt.Errorf("template %s for unit %s: %w", t.Path, unit, err)
		}
		return t, text, e.references(text), nil
	}
	return nil, "", nil, nil
}

func (e *Engine) expander(vars Vars) *expander {
	return &expander{vars: maps.Clone(vars), escape: e.cfg.Escape, incape: e.cfg.Incape, eval: e.cfg.Eval}
}

// references lists the units that a text names.
func (e *Engine) references(text string) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if comment, is := strings.CutPrefix(key, "#"); is {
			if key = strings.TrimSpace(comment); key != "ALSO" {
				continue
			}
		} else if key = strings.TrimSpace(key); !slices.Contains(e.cfg.Dependencies, key) {
			continue
		}
		for _, name := range strings.Fields(value) {
			if validUnit(name) == nil && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// isUnit: systemd knows it.
func isUnit(name string) bool { return filepath.Ext(name) != scriptSuffix }

// validUnit keeps names from leaving their directory.
func validUnit(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, "/\n\x00 \t") || name[0] == '.' || name[0] == '-' && filepath.Ext(name) == "" {
		return fmt.Errorf("%q is not the name of a unit", name)
	}
	if !slices.Contains(suffixes, filepath.Ext(name)) {
		return fmt.Errorf("%q is not the name of a unit: it ends in none of %s", name, strings.Join(suffixes, " "))
	}
	return nil
}

// place is where a unit's file is.
func (e *Engine) place(unit string) (path string, mode fs.FileMode) {
	if filepath.Ext(unit) == scriptSuffix {
		return filepath.Join(e.cfg.ScriptDir, unit), 0o544
	}
	return filepath.Join(e.cfg.UnitDir, unit), 0o444
}

// write puts a generated file in place, unless it is there already.
func (e *Engine) write(t Template, unit, text string, refs []string, vars Vars) (changed bool, err error) {
	path, mode := e.place(unit)
	var head strings.Builder
	fmt.Fprintf(&head, "%sFROM %s\n%sNAME %s\n%sTO %s\n%sROOT %s\n%sRESOURCE %s\n### TEMPLATE MTIME %s\n", generated, t.Path, generated, unit, generated, path,
		generated, vars["mars"], generated, vars["res"], t.ModTime.UTC().Format("2006-01-02T15:04:05.000000000Z"))
	for _, r := range refs {
		fmt.Fprintf(&head, "###   REF: %s\n", r)
	}
	if t.marked("KEEP_RUNNING") {
		head.WriteString("### KEEP_RUNNING\n")
	}
	shebang := ""
	if strings.HasPrefix(text, "#!") {
		line, rest, _ := strings.Cut(text, "\n")
		shebang, text = line+"\n", rest
	}
	text = shebang + head.String() + text
	switch old, err := os.ReadFile(path); {
	case err == nil && string(old) == text:
		return false, nil
	case err == nil && !isGenerated(string(old)):
		return false, fmt.Errorf("%s exists and has not been generated: remove it, or name the unit of template %s differently", path, t.Path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp := filepath.Join(filepath.Dir(path), ".tmp."+unit)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.WriteFile(tmp, []byte(text), mode); err != nil {
		return false, err
	}
	if err := os.Chtimes(tmp, t.ModTime, t.ModTime); err != nil {
		return false, err
	}
	return true, os.Rename(tmp, path)
}

func isGenerated(text string) bool {
	return strings.HasPrefix(text, generated) || strings.HasPrefix(text, "#!") && strings.Contains(text, "\n"+generated)
}

// existing is a generated file.
type existing struct{ name, path, text string }

func (x existing) header(key string) string {
	_, rest, _ := strings.Cut(x.text, "\n"+generated+key+" ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// existing lists the files that have been generated for the tree at root.
func (e *Engine) existing(root string) []existing {
	var out []existing
	for _, dir := range []string{e.cfg.UnitDir, e.cfg.ScriptDir} {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue // no directory, no units
		}
		for _, entry := range list {
			if !entry.Type().IsRegular() || validUnit(entry.Name()) != nil {
				continue
			}
			x := existing{name: entry.Name(), path: filepath.Join(dir, entry.Name())}
			text, err := os.ReadFile(x.path)
			if x.text = string(text); err == nil && isGenerated(x.text) && x.header("ROOT") == root {
				out = append(out, x)
			}
		}
	}
	return out
}

// Resources lists the resources of the tree at root that have generated units.
func (e *Engine) Resources(root string) []string {
	var out []string
	for _, x := range e.existing(root) {
		out = append(out, x.header("RESOURCE"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Remove takes the generated units of a resource of the tree at root away, except
// those to keep: they are stopped, unless they are to be kept running, and deleted.
func (e *Engine) Remove(ctx context.Context, root, res string, keep ...string) (removed []string, err error) {
	var errs []error
	for _, x := range e.existing(root) {
		if x.header("RESOURCE") != res || slices.Contains(keep, x.name) {
			continue
		}
		if filepath.Ext(x.name) != scriptSuffix && !strings.Contains(x.text, "\n### KEEP_RUNNING\n") {
			if err := e.Stop(ctx, x.name); err != nil {
				errs = append(errs, err)
				continue
			}
			// What was never enabled cannot be disabled; that is no failure.
			_ = e.systemctl(ctx, "disable", x.name)
		}
		if err := os.Remove(x.path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, x.name)
	}
	if slices.ContainsFunc(removed, isUnit) {
		errs = append(errs, e.systemctl(ctx, "daemon-reload"))
	}
	return removed, errors.Join(errs...)
}
