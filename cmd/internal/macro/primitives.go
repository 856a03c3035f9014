package macro

import (
	"strconv"
	"strings"

	"mars/symlinktree"
)

// flag prints a truth value as 1 or 0.
func flag(b bool) string { return strconv.Itoa(b2i(b)) }

// truth prints a truth value as 1 or nothing.
func truth(b bool) string {
	if b {
		return "1"
	}
	return ""
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// ftoa prints a number without a fraction when it has none.
func ftoa(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// prim is a macro that is a function.
func prim(name, args, help string, f Func) Macro {
	return Macro{Name: name, Args: args, Help: help, Eval: f}
}

// perHost is a macro about one member, the looked-at host by default.
func perHost(name, help string, f func(c *Context, host string) string) Macro {
	return Macro{Name: name, Args: "{host}", Help: help, Eval: func(c *Context, a Args) string { return f(c, a.At(0, c.Host)) }}
}

// lines prints a list one a line.
func lines(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "\n") + "\n"
}

// list makes the pair NAME (one a line) and count-NAME.
func list(name, args, help string, f func(c *Context, a Args) []string) []Macro {
	return []Macro{
		prim(name, args, help+", one a line", func(c *Context, a Args) string { return lines(f(c, a)) }),
		prim("count-"+name, args, "number of "+help, func(c *Context, a Args) string { return strconv.Itoa(len(f(c, a))) }),
	}
}

// stateMacros: what members are and should be.
func stateMacros() []Macro {
	var out []Macro
	for _, s := range []struct{ name, is, todo string }{
		{"attach", "is-attached", symlinktree.SwitchAttach},
		{"sync", "is-syncing", symlinktree.SwitchSync},
		{"fetch", "is-copying", symlinktree.SwitchConnect},
		{"replay", "is-replaying", symlinktree.SwitchAllowReplay},
	} {
		out = append(out,
			perHost("is-"+s.name, "state link "+s.is, func(c *Context, h string) string { return c.val(c.actual(h, s.is)) }),
			perHost("todo-"+s.name, "switch "+s.todo, func(c *Context, h string) string { return c.val(c.todo(h, s.todo)) }),
			prim("nr-"+s.name, "", "number of members with "+s.is, func(c *Context, _ Args) string { return strconv.Itoa(c.count(s.is)) }),
		)
	}
	isPrimary := func(c *Context, h string) bool { return c.on(c.actual(h, "is-primary")) }
	return append(out,
		perHost("is-primary", "the device is there", func(c *Context, h string) string { return c.val(c.actual(h, "is-primary")) }),
		perHost("is-secondary", "the contrary of is-primary", func(c *Context, h string) string { return flag(!isPrimary(c, h)) }),
		perHost("todo-primary", "host is the designated primary", func(c *Context, h string) string { return truth(c.designated() == h) }),
		perHost("todo-secondary", "host is not the designated primary", func(c *Context, h string) string { return truth(c.designated() != h) }),
		prim("nr-primary", "", "number of actual primaries", func(c *Context, _ Args) string { return strconv.Itoa(c.count("is-primary")) }),
		prim("nr-secondary", "", "number of members that are not primary", func(c *Context, _ Args) string {
			return strconv.Itoa(len(Members(c.Tree, c.Res)) - c.count("is-primary"))
		}),
		perHost("is-emergency", "the resource is in emergency mode", func(c *Context, h string) string { return c.val(c.actual(h, "has-emergency")) }),
		prim("get-primary", "", "the designated primary", func(c *Context, _ Args) string { return c.designated() }),
		prim("is-split-brain", "", "the histories of two members have parted", func(c *Context, _ Args) string {
			return flag(DetectSplit(c.Tree, c.Res).Found)
		}),
		perHost("is-behind-hole", "the disk ends in front of what a primary has written without a log (emergency mode)", func(c *Context, h string) string {
			return flag(c.behindHole(h) != "")
		}),
		perHost("is-orphan", "the log to replay is missing", func(c *Context, h string) string { return flag(c.orphan(h)) }),
		perHost("is-consistent", "the disk is a version of the data", func(c *Context, h string) string { return flag(c.consistent(h, true)) }),
		perHost("is-almost-consistent", "likewise, but a primary may have unwritten data", func(c *Context, h string) string {
			return flag(c.consistent(h, false))
		}),
		prim("is-alive", "{host}", "news of host (default: the designated primary) are fresh", func(c *Context, a Args) string {
			def := c.Host
			if p := c.designated(); c.Res != "" && p != "" {
				def = p
			}
			return flag(c.alive(a.At(0, def)))
		}),
		prim("is-module-loaded", "", "marsd runs on this node", func(c *Context, _ Args) string { return truth(c.moduleLoaded()) }),
		prim("is-member", "{res}{host}", "host stores the resource", func(c *Context, a Args) string {
			return flag(IsMember(c.Tree, a.At(0, c.Res), a.At(1, c.Host)))
		}),
		prim("is-guest", "{res}{host}", "host watches the resource without a disk", func(c *Context, a Args) string {
			return flag(contains(guests(c.Tree, a.At(0, c.Res)), a.At(1, c.Host)))
		}),
		perHost("get-disk", "the backing disk", func(c *Context, h string) string { return c.val(c.r().DataPath(h)) }),
		perHost("get-device", "the device name", func(c *Context, h string) string { return c.device(h) }),
		perHost("disk-present", "the backing disk is there", func(c *Context, h string) string { return c.diskPresent(h) }),
		perHost("disk-error", "last error of the disk", func(c *Context, h string) string { return c.val(c.actual(h, "disk-error")) }),
		perHost("device-present", "the device is there", func(c *Context, h string) string {
			if c.killed(h) {
				return "0"
			}
			return c.val(c.actual(h, "if-on"))
		}),
		perHost("device-opened", "clients of the device", func(c *Context, h string) string { return itoa(c.num(c.actual(h, "open-count"))) }),
		perHost("device-nrflying", "requests in flight", func(c *Context, h string) string { return itoa(c.num(c.actual(h, "if-flying"))) }),
		perHost("device-error", "error state of the device", func(c *Context, h string) string { return itoa(c.num(c.actual(h, "if-state"))) }),
		perHost("device-completion-stamp", "when the last request was completed", func(c *Context, h string) string {
			if v := c.val(c.actual(h, "if-completion-stamp")); v != "" {
				return v
			}
			return "0"
		}),
		perHost("device-completion-age", "seconds since then", func(c *Context, h string) string {
			done, _ := symlinktree.ParseStamp(c.val(c.actual(h, "if-completion-stamp")))
			return itoa(c.Real.Unix() - done.Time().Unix())
		}),
		perHost("log-damage", "where the own log of host is damaged, and the bytes behind it", func(c *Context, h string) string {
			return c.val(c.actual(h, symlinktree.LogDamage))
		}),
		perHost("replay-code", "how replay ended", func(c *Context, h string) string { return c.val(c.actual(h, "replay-code")) }),
	)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// logMacros: positions, sizes and rests of sync, fetch, replay and both together.
func logMacros() []Macro {
	type span struct{ pos, size int64 }
	spans := map[string]func(c *Context, h string) span{
		"sync":   func(c *Context, h string) span { p, s := c.syncAmounts(h); return span{p, s} },
		"fetch":  func(c *Context, h string) span { a := c.amounts(h); return span{a.fetchPos, a.workSize} },
		"replay": func(c *Context, h string) span { a := c.amounts(h); return span{a.replayPos, a.fetchPos} },
		"work":   func(c *Context, h string) span { a := c.amounts(h); return span{a.replayPos, a.workSize} },
	}
	var out []Macro
	for name, f := range spans {
		// What was written without a log is in no sum of logs.
		holed := func(c *Context, h string) bool { return (name == "fetch" || name == "work") && c.behindHole(h) != "" }
		rest := func(c *Context, h string) int64 { s := f(c, h); return max(0, s.size-s.pos) }
		out = append(out,
			perHost(name+"-pos", "bytes done", func(c *Context, h string) string { return itoa(f(c, h).pos) }),
			perHost(name+"-size", "bytes in all", func(c *Context, h string) string { return itoa(f(c, h).size) }),
			perHost(name+"-rest", "bytes left", func(c *Context, h string) string { return itoa(rest(c, h)) }),
			perHost(name+"-reached", "nothing is left", func(c *Context, h string) string { return truth(rest(c, h) == 0 && !holed(c, h)) }),
			prim(name+"-threshold-reached", "{size}{host}", "at most size bytes are left", func(c *Context, a Args) string {
				return truth(rest(c, a.At(1, c.Host)) <= Number(a.At(0, itoa(c.Threshold))))
			}),
			prim(name+"-almost-reached", "{permille}{host}", "the given part is done", func(c *Context, a Args) string {
				s := f(c, a.At(1, c.Host))
				limit := max(1, Number(a.At(0, "990")))
				return truth(s.pos/limit >= s.size/1000)
			}),
			perHost(name+"-percent", "part done", func(c *Context, h string) string { s := f(c, h); return ftoa(percent(s.pos, s.size, 100)) }),
			perHost(name+"-permille", "part done", func(c *Context, h string) string { s := f(c, h); return ftoa(percent(s.pos, s.size, 1000)) }),
			prim(name+"-vector", "{delim}{host}", "pos and size", func(c *Context, a Args) string {
				s := f(c, a.At(1, c.Host))
				return itoa(s.pos) + a.At(0, ":") + itoa(s.size)
			}),
		)
	}
	nr := func(name, help string, f func(a amounts) int) Macro {
		return perHost(name, help, func(c *Context, h string) string { return strconv.Itoa(f(c.amounts(h))) })
	}
	return append(out,
		prim("summary-vector", "{delim}{host}", "replayed, fetched and known bytes", func(c *Context, a Args) string {
			m, d := c.amounts(a.At(1, c.Host)), a.At(0, ":")
			return itoa(m.replayPos) + d + itoa(m.fetchPos) + d + itoa(m.workSize)
		}),
		nr("replay-lognr", "log being replayed", func(a amounts) int { return a.replayNr }),
		nr("replay-basenr", "oldest log without a gap", func(a amounts) int { return a.baseNr }),
		nr("fetch-lognr", "newest log that is here", func(a amounts) int { return a.fetchNr }),
		nr("work-lognr", "newest log that is known", func(a amounts) int { return a.workNr }),
		nr("replay-logcount", "logs to replay", func(a amounts) int { return a.fetchNr - a.replayNr }),
		nr("fetch-logcount", "logs to fetch", func(a amounts) int { return a.workNr - a.fetchNr }),
		nr("work-logcount", "logs to fetch and replay", func(a amounts) int { return a.workNr - a.replayNr }),
		perHost("writeback-rest", "bytes not yet on the disk", func(c *Context, h string) string { return itoa(c.amounts(h).workRest()) }),
		prim("deletable-size", "", "bytes of log that every member has on its disk", func(c *Context, _ Args) string { return itoa(c.logBytes(true)) }),
		prim("occupied-size", "", "bytes of log on this machine", func(c *Context, _ Args) string { return itoa(c.logBytes(false)) }),
		perHost("disk-size", "size of the backing disk", func(c *Context, h string) string { return c.val(c.r().ActSizePath(h)) }),
		prim("resource-size", "", "size of the resource", func(c *Context, _ Args) string { return c.val(c.r().SizePath()) }),
		prim("device-size", "", "size of the device while it is there", func(c *Context, _ Args) string {
			if !c.devicePresent(c.Host) {
				return "0"
			}
			return itoa(c.num(c.r().SizePath()))
		}),
		prim("resource-possible-size", "", "size that every disk could hold", func(c *Context, _ Args) string { return itoa(PossibleSize(c.Tree, c.Res)) }),
	)
}

// logBytes sums the logs on this machine, or only those that no member needs.
func (c *Context) logBytes(deletable bool) int64 {
	if c.Logs == nil {
		return 0
	}
	limit := DeleteLimit(c.Tree, c.Res)
	var n int64
	for _, f := range c.Logs(c.Res) {
		if !deletable || f.Name.Seq < limit {
			n += f.Size
		}
	}
	return n
}

// DeleteLimit is the number of the oldest log that a member still needs; logs
// below it may go. 0 while a member has no position yet (it is joining).
func DeleteLimit(t Tree, res string) int {
	r := symlinktree.Resource(res)
	limit := 0
	for _, h := range Members(t, res) {
		v, _ := t.Get(r.ReplayPath(h))
		rep, err := symlinktree.ParseReplay(v)
		if err != nil {
			return 0
		}
		if limit == 0 || rep.Seq < limit {
			limit = rep.Seq
		}
	}
	return limit
}

// rateMacros: speeds, and what they mean for the rests.
func rateMacros() []Macro {
	kinds := []struct {
		name, link string
		rest       func(c *Context, h string) int64
	}{
		{"device", "if", nil},
		{"sync", "sync", (*Context).syncRest},
		{"fetch", "file", func(c *Context, h string) int64 { return c.amounts(h).fetchRest() }},
		{"replay", "replay", func(c *Context, h string) int64 { return c.amounts(h).replayRest() }},
	}
	var out []Macro
	for _, k := range kinds {
		rate := func(c *Context, h string) string { return itoa(c.rate(h, k.link)) }
		out = append(out,
			perHost(k.name+"-ops-rate", "operations a second", func(c *Context, h string) string {
				return itoa(c.opsRate(h, k.link))
			}),
			perHost(k.name+"-amount-rate", "bytes a second", rate),
			perHost(k.name+"-rate", "bytes a second", rate))
		if k.rest != nil {
			out = append(out, perHost(k.name+"-remain", "seconds left, -1 unknown", func(c *Context, h string) string {
				return ftoa(remain(k.rest(c, h), c.rate(h, k.link)))
			}))
		}
	}
	out = append(out,
		perHost("work-rate", "the faster of fetch and replay", func(c *Context, h string) string {
			return itoa(max(c.rate(h, "file"), c.rate(h, "replay")))
		}),
		perHost("work-remain", "seconds left to fetch and replay, -1 unknown", func(c *Context, h string) string {
			a := c.amounts(h)
			f, r := remain(a.fetchRest(), c.rate(h, "file")), remain(a.replayRest(), c.rate(h, "replay"))
			if f < 0 || r < 0 {
				return "-1"
			}
			return ftoa(f + r)
		}))
	for _, what := range []string{"alive", "fetch", "replay", "work"} {
		out = append(out,
			perHost(what+"-timestamp", "when progress was last made", func(c *Context, h string) string {
				if s := c.stampOf(h, what); s != 0 {
					return s.String()
				}
				return ""
			}),
			perHost(what+"-age", "seconds since then, -1 unknown", func(c *Context, h string) string {
				s := c.stampOf(h, what)
				if s == 0 {
					return "-1"
				}
				return itoa(max(0, c.Now.Time().Unix()-s.Time().Unix()))
			}),
			perHost(what+"-lag", "seconds behind the designated primary, -1 unknown", func(c *Context, h string) string {
				lag, known := c.lag(h, what)
				if !known {
					return "-1"
				}
				return itoa(int64(lag))
			}))
	}
	return out
}

// infoMacros: names, lists, messages and node values.
func infoMacros() []Macro {
	global := func(name, key, help string) Macro {
		return perHost(name, help, func(c *Context, h string) string { return c.val(c.global(h, key)) })
	}
	out := []Macro{
		global("rest-space", "rest-space", "GiB free in the tree's filesystem"),
		global("total-space", "total-space", "GiB of the tree's filesystem"),
		global("tree", "tree", "version of the tree layout"),
		global("tree-version", "tree", "version of the tree layout"),
		prim("uuid", "", "identity of the cluster", func(c *Context, _ Args) string { return c.val(symlinktree.UUIDPath) }),
		prim("time", "", "Lamport seconds", func(c *Context, _ Args) string { return c.Now.String() }),
		prim("real-time", "", "seconds of this machine's clock", func(c *Context, _ Args) string { return symlinktree.Stamp(c.Real.UnixNano()).String() }),
		prim("get-emergency-limit", "{host}", "percentage of the space that must be left, or the resource gives up logging", func(c *Context, a Args) string {
			return c.val(c.todo(a.At(0, c.Host), symlinktree.SwitchEmergencyLimit))
		}),
		prim("global-sync-limit-value", "", "syncs that may run at once on the host, 0 = any number", func(c *Context, _ Args) string {
			return c.val(symlinktree.HostDefaultsPath(c.Host, "sync-limit"))
		}),
		prim("features-version", "{host}", "value of the features link", func(c *Context, a Args) string {
			return c.val(c.global(a.At(0, c.Host), "features"))
		}),
		prim("errno-text", "{numbers}", "names of error numbers", func(_ *Context, a Args) string { return ErrnoText(a.At(0, "0")) }),
	}
	for _, f := range []struct {
		name, key string
		mask      int64
	}{{"digests", "digest", digestMask}, {"compressions", "compression", compressionMask}} {
		out = append(out, perHost("usable-"+f.name, "algorithms that every peer knows", func(c *Context, h string) string {
			_, _, m := features(c.val(c.global(h, "usable")))
			return flagText(m & f.mask)
		}), perHost("implemented-"+f.name, "algorithms that host knows", func(c *Context, h string) string {
			_, _, m := features(c.val(c.global(h, "features")))
			return flagText(m & f.mask)
		}))
		for _, where := range []string{"log", "net"} {
			key := "used-" + where + "-" + f.key
			out = append(out, perHost(key, "algorithm in use", func(c *Context, h string) string {
				return flagText(c.num(c.global(h, key)) & f.mask)
			}))
		}
	}
	res := func(c *Context, a Args) string { return a.At(0, c.Res) }
	out = append(out, list("cluster-peers", "", "hosts of the cluster", func(c *Context, _ Args) []string { return Hosts(c.Tree) })...)
	out = append(out, list("cluster-members", "", "hosts of the cluster", func(c *Context, _ Args) []string { return Hosts(c.Tree) })...)
	out = append(out, list("configured-peers", "", "hosts of the cluster", func(c *Context, _ Args) []string { return Hosts(c.Tree) })...)
	out = append(out, list("resource-peers", "{res}", "members of the resource", func(c *Context, a Args) []string { return Members(c.Tree, res(c, a)) })...)
	out = append(out, list("resource-members", "{res}", "members of the resource", func(c *Context, a Args) []string { return Members(c.Tree, res(c, a)) })...)
	out = append(out, list("guest-peers", "{res}", "guests of the resource", func(c *Context, a Args) []string { return guests(c.Tree, res(c, a)) })...)
	out = append(out, list("all-resources", "", "resources of the cluster", func(c *Context, _ Args) []string { return Resources(c.Tree) })...)
	out = append(out, list("my-resources", "{host}", "resources of host", func(c *Context, a Args) []string { return ResourcesOf(c.Tree, a.At(0, c.Host)) })...)
	out = append(out, list("my-members", "{host}", "resources that host stores", func(c *Context, a Args) []string {
		return filter(Resources(c.Tree), func(r string) bool { return IsMember(c.Tree, r, a.At(0, c.Host)) })
	})...)
	out = append(out, list("my-guests", "{host}", "resources that host watches", func(c *Context, a Args) []string {
		return filter(Resources(c.Tree), func(r string) bool { return contains(guests(c.Tree, r), a.At(0, c.Host)) })
	})...)
	return append(out, messageMacros()...)
}

func filter(in []string, keep func(string) bool) []string {
	var out []string
	for _, s := range in {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// messageMacros: {all,the}-{pretty-}{global-}{err-,wrn-,inf-}{msg,count}.
func messageMacros() []Macro {
	var out []Macro
	for _, which := range []string{"all", "the"} {
		for _, pretty := range []string{"", "pretty-"} {
			for _, scope := range []string{"", "global-"} {
				for _, kind := range []string{"", "err-", "wrn-", "inf-"} {
					get := func(c *Context, a Args) []string { return c.selectMessages(a.At(0, c.Host), which, scope, kind) }
					stem := which + "-" + pretty + scope + kind
					out = append(out, prim(stem+"msg", "{host}", "messages of host", func(c *Context, a Args) string {
						list := get(c, a)
						for i := range list {
							if pretty != "" {
								list[i] = prettyStamps(list[i], c.Real.Location())
							}
						}
						return lines(list)
					}))
					out = append(out, prim(stem+"count", "{host}", "number of messages of host", func(c *Context, a Args) string {
						return strconv.Itoa(len(get(c, a)))
					}))
				}
			}
		}
	}
	return out
}

func (c *Context) selectMessages(host, which, scope, kind string) []string {
	dir := c.r().ActualDir(host)
	if scope != "" {
		dir = symlinktree.ActualDir(host)
	}
	return c.messages(dir, kind, func(key, value string, stamp symlinktree.Stamp) bool {
		if which == "all" {
			return true
		}
		young := strings.HasPrefix(key, "err-") && c.age(stamp) < c.Timeout
		return says(key, value, stamp) && !young
	})
}
