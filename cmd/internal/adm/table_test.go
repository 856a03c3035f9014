package adm

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// original is the command table of the original (reference marsadm.md section 5),
// every name of it, and what has become of it: empty means built, anything else is
// why it is not, which must be in docs/decisions.md, too, and the command says so.
var original = map[string]string{
	"create-cluster": "", "join-cluster": "", "leave-cluster": "", "merge-cluster": "", "merge-cluster-check": "", "merge-cluster-list": "",
	"split-cluster": "not needed", "create-uuid": "",
	"wait-cluster": "", "wait-connect": "", "update-cluster": "",
	"create-resource": "", "join-resource": "", "leave-resource": "", "delete-resource": "", "activate-guest": "", "deactivate-guest": "",
	"attach": "", "detach": "", "up": "", "down": "",
	"pause-fetch": "", "pause-fetch-local": "", "pause-fetch-global": "", "resume-fetch": "", "resume-fetch-local": "", "resume-fetch-global": "",
	"pause-replay": "", "pause-replay-local": "", "pause-replay-global": "", "resume-replay": "", "resume-replay-local": "", "resume-replay-global": "",
	"pause-sync": "", "pause-sync-local": "", "pause-sync-global": "", "resume-sync": "", "resume-sync-local": "", "resume-sync-global": "",
	"connect": "", "connect-local": "", "connect-global": "", "disconnect": "", "disconnect-local": "", "disconnect-global": "",
	"primary": "", "secondary": "", "invalidate": "", "fake-sync": "", "set-replay": "", "resize": "",
	"wait-resource": "", "wait-umount": "", "cron": "",
	"log-rotate": "", "log-delete": "", "log-delete-one": "", "log-delete-all": "", "log-delete-all-replayed": "",
	"log-purge-all": "", "err-purge-all": "", "link-purge-all": "",
	"set-emergency-limit": "", "get-emergency-limit": "", "emergency-limit": "",
	"set-global-sync-limit-value": "", "get-global-sync-limit-value": "", "set-sync-limit-value": "", "get-sync-limit-value": "",
	"set-global-enabled-log-compressions": "", "set-global-enabled-net-compressions": "", "set-global-disabled-log-digests": "",
	"set-global-disabled-net-digests": "", "set-disabled-digests": "", "set-connect-pref-list": "", "get-connect-pref-list": "",
	"set-systemd-unit": "", "get-systemd-unit": "", "set-systemd-want": "", "get-systemd-want": "", "systemd-trigger": "", "systemd-trigger-extern": "",
	"set-link": "", "get-link": "", "delete-file": "", "cat": "",
	"show": "", "show-errors": "", "show-state": "", "mars-state": "", "show-info": "", "mars-info": "", "role": "", "state": "",
	"lowlevel-ls-host-ips": "", "lowlevel-set-host-ip": "", "lowlevel-delete-host": "",
	"syncer": "", "check-resize": "", "get-gi": "", "show-gi": "", "outdate": "", "adjust": "", "hidden-commands": "",
	"create-md": "", "dump-md": "", "dump": "", "new-current-uuid": "",
	"verify": "no online verify", "invalidate-remote": "own replica", "cstate": "DRBD", "dstate": "DRBD", "status": "DRBD",
	"help": "", "h": "", "version": "", "v": "", "view": "",
}

// own are the commands that the original does not have.
var own = []string{"set-traffic-limit", "set-resource-traffic-limit", "get-traffic-limit", "set-sync-mode", "get-sync-mode", "set-replay-delay", "get-replay-delay", "log-dump", "log-verify", "view-NAME", "get-disabled-digests",
	"get-global-enabled-log-compressions", "get-global-enabled-net-compressions", "get-global-disabled-log-digests", "get-global-disabled-net-digests",
	"why", "check", "tree", "dump-macros", "dump-all-macros", "prettyprint-NAME", "completion"}

// TestCommandTable compares the table of the original with ours, both ways.
func TestCommandTable(t *testing.T) {
	decisions, err := os.ReadFile("../../../docs/decisions.md")
	must(t, err)
	r := newRig(t, "hosta")
	r.use("pair")
	for name, why := range original {
		command := name
		if alias := map[string]string{"h": "help", "v": "version"}[name]; alias != "" {
			command = alias
		}
		v := findVerb(command)
		if v == nil {
			t.Errorf("%s does not exist", name)
			continue
		}
		if why == "" {
			continue
		}
		if !strings.Contains(string(decisions), "`"+name+"`") {
			t.Errorf("docs/decisions.md does not say why there is no %s", name)
		}
		before := r.state()
		res := r.run(name, "r0")
		if res.code != ExitFailed || !strings.Contains(res.err, why) || !strings.Contains(res.err, "HINT") || changes(before, r.state()) != "" {
			t.Errorf("%s: exit %d, says %q; want a refusal with %q and a hint", name, res.code, res.err, why)
		}
	}
	seen := map[string]bool{}
	for _, g := range groups() {
		for _, v := range g.verbs {
			if _, known := original[v.name]; !known && !slices.Contains(own, v.name) {
				t.Errorf("%s is neither the original's nor noted as ours", v.name)
			}
			if seen[v.name] {
				t.Errorf("%s exists twice", v.name)
			}
			seen[v.name] = true
			if v.help == "" && !v.hidden {
				t.Errorf("%s has no help", v.name)
			}
			if (v.run == nil) == (v.each == nil) {
				t.Errorf("%s has no implementation, or two", v.name)
			}
		}
	}
	if len(original) < 110 {
		t.Errorf("only %d names: the table is not complete", len(original))
	}
}

// The commands that the original ignores succeed here as well, and do nothing.
func TestIgnoredCommands(t *testing.T) {
	r := newRig(t, "hosta")
	r.use("pair")
	before := r.state()
	for _, c := range retired {
		if res := r.run(c.name, "r0"); c.done && (res.code != ExitDone || !strings.Contains(res.out, c.name)) {
			t.Errorf("%s: exit %d, %q", c.name, res.code, res.out)
		}
	}
	if got := changes(before, r.state()); got != "" {
		t.Errorf("changed:\n%s", got)
	}
}
