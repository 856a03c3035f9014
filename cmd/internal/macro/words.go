package macro

import (
	"fmt"
	"strings"
)

// wordMacros: words and lines for people. The layouts that put them together are
// texts, in views/.
func wordMacros() []Macro {
	line := func(name, help, what string, rest func(c *Context, h string) int64, kind string) []Macro {
		at := func(per, hrs string) func(c *Context, h string) string {
			return func(c *Context, h string) string {
				return c.restLine(h, what, rest(c, h), c.rate(h, kind), per, hrs)
			}
		}
		return []Macro{perHost(name, help, at("s", "")), perHost(name+"-1and1", help+", compact layout", at("sec", " hrs"))}
	}
	out := []Macro{
		perHost("device-stats", "state of the device", (*Context).deviceStats),
		perHost("diskstate", "state of the disk in one word", (*Context).Diskstate),
		perHost("diskstate-1and1", "Uptodate, Outdated, Inconsistent or Detached", (*Context).diskstateShort),
		perHost("replstate", "state of the replication in one word", (*Context).Replstate),
		perHost("flags", "six letters: device consistent attached synced fetched replayed", (*Context).Flags),
		perHost("flags-1and1", "the switches sync, fetch, replay as letters", (*Context).flagsShort),
		perHost("outdated-flags", "[F], [R], [FR]: what is behind, with H in front of a hole in the log (emergency mode); or nothing", (*Context).outdated),
		perHost("role", "what the host is", (*Context).Role),
		perHost("role-1and1", "Primary or Secondary", func(c *Context, h string) string {
			if c.on(c.actual(h, "is-primary")) {
				return "Primary"
			}
			return "Secondary"
		}),
		perHost("todo-role", "what the host should be", (*Context).todoRole),
		{Name: "primarynode", Help: "the designated primary", Eval: func(c *Context, _ Args) string { return c.designated() }},
		{Name: "commstate", Help: "since when the designated primary is silent", Eval: func(c *Context, _ Args) string { return c.commstate() }},
		{Name: "member-counts", Help: "[members/hosts of the cluster]", Eval: func(c *Context, _ Args) string { return c.counts() }},
		{Name: "split-brain-warning", Help: "warns on the error output if there is one", Eval: func(c *Context, _ Args) string {
			if s := DetectSplit(c.Tree, c.Res); s.Found && c.Warn != nil {
				for _, line := range c.SplitLines(s) {
					c.Warn(line)
				}
			}
			return ""
		}},
		perHost("resource-hints", "space that is not used", (*Context).hints),
		perHost("resource-errors", "messages of a resource", (*Context).messageBlock),
		perHost("sync-line", "what is left to sync", (*Context).syncLine),
	}
	out = append(out, line("fetch-line", "what is left to fetch", "fetch", func(c *Context, h string) int64 { return c.amounts(h).fetchRest() }, "file")...)
	return append(out, line("replay-line", "what is left to replay", "replay", func(c *Context, h string) int64 { return c.amounts(h).replayRest() }, "replay")...)
}

// outdated names what is behind.
func (c *Context) outdated(host string) string {
	a := c.amounts(host)
	s := strings.Repeat("F", b2i(a.fetchRest() > 0)) + strings.Repeat("R", b2i(a.replayRest() > 0)) + strings.Repeat("H", b2i(c.behindHole(host) != ""))
	if s == "" {
		return ""
	}
	return "[" + s + "]"
}

func (c *Context) syncLine(host string) string {
	pos, size := c.syncAmounts(host)
	rate := c.rate(host, "sync")
	return fmt.Sprintf("       > sync: %s rate: %s/sec  remaining: %s hrs\n",
		HumanNumber(float64(pos), float64(size)), HumanNumber(float64(rate)), HumanSeconds(remain(size-pos, rate)))
}

// restLine tells what is left to fetch or to replay, and since when it is stuck.
func (c *Context) restLine(host, what string, rest, rate int64, per, hrs string) string {
	out := fmt.Sprintf("       > %s: %s", what, HumanNumber(float64(rest)))
	if rest > 0 {
		age := c.age(c.stampOf(host, what))
		if age >= c.Window {
			out += " age: " + HumanSeconds(age.Seconds())
		}
		if lag, known := c.lag(host, what); what == "fetch" && known && lag >= c.Window.Seconds() {
			out += " lag: " + HumanSeconds(lag)
		}
		if what == "fetch" && age > c.Stuck && c.Warn != nil {
			c.Warn(fmt.Sprintf("replay of %s appears to be stuck for ~%s", c.Res, HumanSeconds(age.Seconds())))
		}
	}
	return out + fmt.Sprintf(" rate: %s/%s remaining: %s%s\n", HumanNumber(float64(rate)), per, HumanSeconds(remain(rest, rate)), hrs)
}

func (c *Context) diskstateShort(host string) string {
	a := c.amounts(host)
	switch {
	case !c.on(c.todo(host, "attach")):
		return "Detached"
	case !c.consistent(host, false):
		return "Inconsistent"
	case (a.workRest() > 0 || c.behindHole(host) != "") && !c.on(c.actual(host, "is-primary")):
		return "Outdated" + c.outdated(host)
	}
	return "Uptodate"
}

func (c *Context) flagsShort(host string) string {
	letter := func(name, l string) string {
		if c.on(c.todo(host, name)) {
			return l
		}
		return "-"
	}
	return "-" + letter("sync", "S") + letter("connect", "F") + letter("allow-replay", "R") + "-"
}
