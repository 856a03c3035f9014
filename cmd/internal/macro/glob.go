package macro

import (
	"fmt"
	"path"
	"sort"
	"strings"
)

// root is the directory of the tree as texts see it.
func (c *Context) root() string {
	if c.Root == "" {
		return "/mars"
	}
	return c.Root
}

// relative makes a path relative to the root. Texts of the original's users name
// /mars whatever the root is.
func (c *Context) relative(p string) (string, bool) {
	if !path.IsAbs(p) {
		p = path.Join("/", p)
		return strings.TrimPrefix(p, "/"), p != "/"
	}
	p = path.Clean(p)
	for _, root := range []string{c.root(), "/mars"} {
		if rest, ok := strings.CutPrefix(p, strings.TrimSuffix(root, "/")+"/"); ok {
			return rest, true
		}
	}
	return "", false
}

// maxPatterns bounds what braces in a pattern multiply to.
const maxPatterns = 1000

// glob lists the absolute paths below the root that match a shell pattern. Deleted
// links do not exist.
func (m *machine) glob(pattern string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	patterns, err := braces(pattern, 0)
	if err != nil {
		return nil, err
	}
	for _, p := range patterns {
		rel, ok := m.c.relative(p)
		if !ok {
			return nil, &wanted{fmt.Sprintf("pattern %.80q", p), "a path below " + m.c.root()}
		}
		list, err := m.c.match("", strings.Split(rel, "/"))
		if err != nil {
			return nil, fmt.Errorf("pattern %.80q: %w", p, err)
		}
		for _, f := range list {
			if !seen[f] {
				seen[f] = true
				out = append(out, m.c.root()+"/"+f)
			}
		}
	}
	sort.Strings(out)
	return out, m.pay(64 * len(out))
}

// match walks the tree along a pattern.
func (c *Context) match(dir string, pattern []string) ([]string, error) {
	var out []string
	last := len(pattern) == 1
	try := func(full string) error {
		ok, err := path.Match(pattern[0], base(full))
		if err != nil || !ok {
			return err
		}
		if last {
			out = append(out, full)
			return nil
		}
		more, err := c.match(full, pattern[1:])
		out = append(out, more...)
		return err
	}
	for _, d := range c.Tree.Dirs(dir) {
		if err := try(path.Join(dir, d)); err != nil {
			return nil, err
		}
	}
	if !last {
		return out, nil
	}
	for _, e := range c.Tree.List(dir) {
		if err := try(e.Path); err != nil {
			return nil, err
		}
	}
	if res, ok := strings.CutPrefix(dir, "resource-"); ok && c.Logs != nil && !strings.Contains(dir, "/") {
		for _, l := range c.Logs(res) {
			if err := try(dir + "/" + l.Name.String()); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// braces expands {a,b} as shells do.
func braces(p string, depth int) ([]string, error) {
	open := strings.IndexByte(p, '{')
	if open < 0 || depth > 20 {
		return []string{p}, nil
	}
	level, start := 0, open+1
	var parts []string
	for i := open; i < len(p); i++ {
		switch {
		case p[i] == '{':
			level++
		case p[i] == ',' && level == 1:
			parts = append(parts, p[start:i])
			start = i + 1
		case p[i] == '}':
			if level--; level > 0 {
				continue
			}
			parts = append(parts, p[start:i])
			var out []string
			for _, part := range parts {
				list, err := braces(p[:open]+part+p[i+1:], depth+1)
				if err != nil {
					return nil, err
				}
				if out = append(out, list...); len(out) > maxPatterns {
					return nil, fmt.Errorf("braces stand for more than %d patterns", maxPatterns)
				}
			}
			return out, nil
		}
	}
	return []string{p}, nil
}
