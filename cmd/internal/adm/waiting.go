package adm

import (
	"context"
	"fmt"
	"strings"

	"mars/symlinktree"
)

func waitVerbs() []verb {
	return []verb{
		{name: "wait-cluster", args: "[RES]", help: "wait until all reachable peers have exchanged their news with this node", res: optRes,
			anyResource: true, joining: true, run: waitClusterVerb(3)},
		{name: "wait-connect", args: "[RES]", hidden: true, res: optRes, anyResource: true, joining: true, run: waitClusterVerb(3)},
		{name: "update-cluster", args: "[RES]", hidden: true, help: "likewise, fetching everything", res: optRes, anyResource: true, joining: true, run: waitClusterVerb(8)},
		{name: "wait-resource", args: "RES [is-]{attach|fetch|replay|sync|primary|secondary|device}[-on|-off]",
			help: "wait for a state (with is-) or a switch", res: oneRes, min: 1, max: 1, each: waitResource},
		{name: "wait-umount", args: "RES", help: "wait until nobody uses the device any more", res: oneRes, anyResource: true, each: waitUmount},
	}
}

func waitClusterVerb(code int) func(context.Context, *session, []string) error {
	return func(ctx context.Context, s *session, args []string) error {
		res := ""
		if len(args) > 0 && args[0] != "all" {
			res = args[0]
			if err := symlinktree.ValidName(res); err != nil {
				return usage("resource %q: %v", res, err)
			}
			if !s.exists(res) {
				return refuse("leave the resource out", "no resource %s is known here", res)
			}
		}
		if code == 8 {
			for _, p := range peersOf(s.tree, res, s.node) {
				if err := s.pull(p); err != nil {
					return err
				}
			}
		}
		dead, err := s.waitCluster(ctx, res, code)
		for _, p := range dead {
			s.warn("peer %s does not answer", p)
		}
		return err
	}
}

// condition is what wait-resource waits for.
type condition struct {
	text   string
	state  bool   // with is-: what marsd reports, else what is ordered
	what   string // attach fetch replay sync primary secondary device
	wanted bool
}

// parseCondition is pure.
func parseCondition(word string) (condition, error) {
	c := condition{text: word, wanted: true}
	rest := word
	if r, ok := strings.CutPrefix(rest, "is-"); ok {
		c.state, rest = true, r
	}
	for _, s := range []struct {
		suffix string
		on     bool
	}{{"-on", true}, {"-1", true}, {"-off", false}, {"-0", false}} {
		if r, ok := strings.CutSuffix(rest, s.suffix); ok {
			c.wanted, rest = s.on, r
			break
		}
	}
	words := map[string]string{
		"attach": "attach", "attached": "attach", "fetch": "fetch", "fetching": "fetch", "copy": "fetch", "copying": "fetch",
		"replay": "replay", "replaying": "replay", "sync": "sync", "syncing": "sync",
		"primary": "primary", "secondary": "secondary", "device": "device",
	}
	what, ok := words[rest]
	if !ok || (what == "device" && !c.state) {
		return c, &usageError{
			msg:  fmt.Sprintf("unknown condition %q", word),
			hint: "[is-]{attach|fetch|replay|sync|primary|secondary}[-on|-off] or is-device[-on|-off]",
		}
	}
	c.what = what
	return c, nil
}

// met evaluates the condition. The original waits for the contrary with
// is-secondary.
func (c condition) met(t *symlinktree.Snapshot, r symlinktree.Resource, host string) (bool, string) {
	state := map[string]string{"attach": "is-attached", "fetch": "is-copying", "replay": "is-replaying", "sync": "is-syncing",
		"primary": "is-primary", "secondary": "is-primary", "device": "if-on"}
	todo := map[string]string{"attach": symlinktree.SwitchAttach, "fetch": symlinktree.SwitchConnect,
		"replay": symlinktree.SwitchAllowReplay, "sync": symlinktree.SwitchSync}
	designated, _ := t.Get(r.PrimaryPath())
	path := r.PrimaryPath()
	var now bool
	switch {
	case c.state:
		path = r.ActualPath(host, state[c.what])
		v, _ := t.Get(path)
		now = symlinktree.Switch(v) != (c.what == "secondary")
	case c.what == "primary":
		now = designated == host
	case c.what == "secondary":
		now = designated == symlinktree.NoHost
	default:
		path = r.TodoPath(host, todo[c.what])
		v, _ := t.Get(path)
		now = symlinktree.Switch(v)
	}
	v, _ := t.Get(path)
	return now == c.wanted, path + " is " + orMissing(v)
}

func waitResource(ctx context.Context, j *job) error {
	c, err := parseCondition(j.args[0])
	if err != nil {
		return err
	}
	if p, _ := j.tree.Get(j.r.PrimaryPath()); c.what == "device" && c.wanted && p != j.host {
		return refuse(fmt.Sprintf("marsadm primary %s", j.r), "the device cannot appear on %s: designated primary is %s", j.host, orMissing(p))
	}
	if ok, _ := c.met(j.snap(), j.r, j.host); !ok && c.state {
		if err := j.needDaemon(); err != nil {
			return err
		}
	}
	dirs := []string{j.r.Dir(), j.r.ActualDir(j.host), j.r.TodoDir(j.host)}
	return j.await(ctx, j.where(), c.text, dirs, func(t *symlinktree.Snapshot) (bool, string) { return c.met(t, j.r, j.host) })
}

func waitUmount(ctx context.Context, j *job) error {
	return j.awaitLinks(ctx, "nobody uses the device", linkIs{path: j.r.ActualPath(j.host, "open-count"), want: "0"})
}
