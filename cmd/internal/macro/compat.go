package macro

import (
	"strconv"
	"strings"

	"mars/symlinktree"
)

// compatMacros are further names that scripts of the original use.
func compatMacros() []Macro {
	mount := func(name, help string, f func(m Mount) string) Macro {
		return prim("known-device-"+name, "", help, func(c *Context, _ Args) string {
			if m, ok := c.mount(c.Node); ok {
				return f(m)
			}
			return ""
		})
	}
	res := func(c *Context, a Args) string { return a.At(0, c.Res) }
	out := []Macro{
		prim("does", "{name}{host}", "state link is-NAME; fetch and attach are known by these names too", func(c *Context, a Args) string {
			return c.val(c.actual(a.At(1, c.Host), stateLink(a.At(0, ""))))
		}),
		prim("todo", "{name}{host}", "switch NAME", func(c *Context, a Args) string {
			if a.At(0, "") == "primary" {
				return truth(c.designated() == a.At(1, c.Host))
			}
			return c.val(c.todo(a.At(1, c.Host), switchLink(a.At(0, ""))))
		}),
		prim("actual-primary", "", "the host that says it is primary; the designated one if several do", func(c *Context, _ Args) string {
			var found []string
			for _, h := range Members(c.Tree, c.Res) {
				if c.on(c.actual(h, "is-primary")) {
					found = append(found, h)
				}
			}
			if p := c.designated(); len(found) != 1 && contains(found, p) {
				return p
			} else if len(found) > 0 {
				return found[0]
			}
			return ""
		}),
		prim("nr-emergency", "", "number of members in emergency mode", func(c *Context, _ Args) string { return strconv.Itoa(c.count("has-emergency")) }),
		mount("mounted", "1 if the device is mounted here", func(Mount) string { return "1" }),
		mount("mountpoint", "where the device is mounted here", func(m Mount) string { return m.Point }),
		mount("fstype", "type of the filesystem mounted here", func(m Mount) string { return m.FSType }),
		mount("mountflags", "options of that mount", func(m Mount) string { return m.Flags }),
		perHost("get-log-status", "error and warning lines of resource-RES/logstatus-HOST.status", func(c *Context, h string) string {
			var keep []string
			for _, l := range strings.Split(c.statusText("logstatus-"+h+".status"), "\n") {
				if strings.Contains(l, "error") || strings.Contains(l, "warn") {
					keep = append(keep, l)
				}
			}
			return lines(keep)
		}),
		prim("systemd-unit", "", "START STOP units", func(c *Context, _ Args) string {
			start := c.val(c.r().Path("systemd-start-unit"))
			if start == "" {
				return ""
			}
			return start + " " + c.val(c.r().Path("systemd-stop-unit"))
		}),
		perHost("syncpos-size", "log position that replay has to pass after the sync", func(c *Context, h string) string { return itoa(c.syncPosEnd(h).Min) }),
		perHost("syncpos-pos", "log position of replay, if in the same log", func(c *Context, h string) string {
			rep, err := symlinktree.ParseReplay(c.val(c.r().ReplayPath(h)))
			end := c.syncPosEnd(h)
			switch {
			case err != nil || rep.Seq < end.Seq:
				return "0"
			case rep.Seq > end.Seq:
				return itoa(end.Min)
			}
			return itoa(rep.Min)
		}),
	}
	for _, s := range []struct{ name, digit, help string }{{"fat", "4", "fatal errors"}, {"err", "3", "errors"}, {"wrn", "2", "warnings"}} {
		text := func(c *Context, _ Args) string { return c.statusText(s.digit + ".*.status") }
		out = append(out, prim("get-resource-"+s.name, "", "text of status files with "+s.help, text),
			prim("get-resource-"+s.name+"-count", "", "number of lines of status files with "+s.help, func(c *Context, a Args) string {
				return strconv.Itoa(strings.Count(text(c, a), "\n"))
			}))
	}
	for _, f := range []struct {
		name, link, help string
	}{{"potential-features", "features", "algorithms that host knows"}, {"implemented-features", "features", "algorithms that host knows"},
		{"usable-features", "usable", "algorithms that every peer knows"}} {
		out = append(out, perHost(f.name, f.help, func(c *Context, h string) string {
			_, _, m := features(c.val(c.global(h, f.link)))
			return flagText(m)
		}))
	}
	for _, k := range []struct {
		key  string
		mask int64
	}{{"enabled-log-compressions", compressionMask}, {"enabled-net-compressions", compressionMask},
		{"disabled-log-digests", digestMask}, {"disabled-net-digests", digestMask}} {
		out = append(out, prim(k.key, "", "cluster-wide setting of the original", func(c *Context, _ Args) string {
			m, _ := symlinktree.ParseMask(c.val(symlinktree.DefaultsPath(k.key)))
			return flagText(int64(m) & k.mask)
		}))
	}
	out = append(out, list("guest-members", "{res}", "guests of the resource", func(c *Context, a Args) []string { return guests(c.Tree, res(c, a)) })...)
	out = append(out, list("all-members", "", "resources that somebody stores", func(c *Context, _ Args) []string {
		return filter(Resources(c.Tree), func(r string) bool { return len(Members(c.Tree, r)) > 0 })
	})...)
	return append(out, list("all-guests", "", "resources that somebody watches", func(c *Context, _ Args) []string {
		return filter(Resources(c.Tree), func(r string) bool { return len(guests(c.Tree, r)) > 0 })
	})...)
}

// stateLink is the link that tells whether something is being done.
func stateLink(what string) string {
	switch what {
	case "attach", "attached":
		return "is-attached"
	case "fetch", "copy", "connect":
		return "is-copying"
	case "replay", "allow-replay":
		return "is-replaying"
	case "sync":
		return "is-syncing"
	case "emergency":
		return "has-emergency"
	}
	return "is-" + what
}

// switchLink is the switch that tells whether something shall be done.
func switchLink(what string) string {
	switch what {
	case "fetch":
		return symlinktree.SwitchConnect
	case "replay":
		return symlinktree.SwitchAllowReplay
	}
	return what
}

// syncPosEnd is the end of what replay has to pass after a sync; zero if nothing.
func (c *Context) syncPosEnd(host string) symlinktree.Replay {
	p, err := symlinktree.ParseReplay(c.val(c.r().SyncPosPath(host)))
	if err != nil {
		return symlinktree.Replay{}
	}
	p.Min, p.Len = p.End(), 0
	return p
}

func (c *Context) statusText(pattern string) string {
	if c.StatusText == nil || c.Res == "" {
		return ""
	}
	return c.StatusText(c.Res, pattern)
}
