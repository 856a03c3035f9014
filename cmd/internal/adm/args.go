package adm

import (
	"fmt"
	"slices"
	"strings"

	"mars/cmd/internal/macro"
)

// arity says whether an option has a value.
type arity int

const (
	noValue arity = iota
	oneValue
	optionalValue // only as --option=VALUE
)

// option is one global option.
type option struct {
	name  string
	arity arity
	value string // as shown in the help
	help  string
	// ignored: accepted because the original's scripts use it; it means nothing here.
	ignored bool
}

var globalOptions = []option{
	{name: "root", arity: oneValue, value: "DIR", help: "root of the symlink tree (MARS_ROOT, /mars)"},
	{name: "node", arity: oneValue, value: "NAME", help: "name of this node (MARS_NODE, the host name)"},
	{name: "secret", arity: oneValue, value: "FILE", help: "file with the cluster secret (MARS_SECRET, /etc/mars/secret)"},
	{name: "host", arity: oneValue, value: "NAME", help: "act on behalf of that host"},
	{name: "ip", arity: oneValue, value: "ADDR[:PORT]", help: "address of this node (--ip-PEER=ADDR: of a peer)"},
	{name: "timeout", arity: oneValue, value: "SECONDS", help: "how long a command may wait (600)"},
	{name: "window", arity: oneValue, value: "SECONDS", help: "news older than this count as none (60)"},
	{name: "threshold", arity: oneValue, value: "SIZE", help: "amounts below this are not worth a hint (10M)"},
	{name: "stuck-seconds", arity: oneValue, value: "SECONDS", help: "without progress for this long is stuck (3600)"},
	{name: "keep-backup-hours", arity: oneValue, value: "HOURS", help: "age of leftovers that cron removes (168)"},
	{name: "thresh-logfiles", arity: oneValue, value: "N", help: "from this many logs on only big ones are rotated (10)"},
	{name: "thresh-logsize", arity: oneValue, value: "GB", help: "what is a big log (5)"},
	{name: "force", arity: noValue, help: "skip the checks that may be skipped (-f)"},
	{name: "dry-run", arity: noValue, help: "print what would be written, change nothing (-d)"},
	{name: "verbose", arity: optionalValue, value: "N", help: "say more (-v)"},
	{name: "no-wait", arity: noValue, help: "do not wait for marsd to carry the request out"},
	{name: "ignore-sync", arity: noValue, help: "primary: other members need not have finished their sync"},
	{name: "parallel", arity: optionalValue, value: "N", help: "work on several resources at once"},
	{name: "singlestep", arity: noValue, help: "show each batch of links and wait for Enter before it is written"},
	{name: "backup-dir", arity: oneValue, value: "DIR", help: "merge-cluster: write all links of before into a file there"},
	{name: "autoclean", arity: oneValue, value: "DAYS", help: "cron: delete links of hosts that are unknown for so long (0 = never)"},
	{name: "systemd-enable", arity: oneValue, value: "0|1", help: "whether services follow the primary, where they are set up (1)"},
	{name: "json", arity: noValue, help: "JSON for programs (docs/CLI-JSON.md)"},
	{name: "macro", arity: oneValue, value: "TEXT", help: "view: evaluate this text of the macro language"},
	{name: "check-lag", arity: oneValue, value: "WARN:CRIT", help: "check: seconds that a secondary may be behind (300:3600)"},
	{name: "check-rest", arity: oneValue, value: "WARN:CRIT", help: "check: bytes of log that may wait for replay (1G:10G)"},
	{name: "check-silent", arity: oneValue, value: "WARN:CRIT", help: "check: seconds without news of a host (60:300)"},
	{name: "check-used", arity: oneValue, value: "WARN:CRIT", help: "check: fill level of the tree's filesystem in percent (70:85)"},
	{name: "check-free", arity: oneValue, value: "WARN:CRIT", help: "check: bytes left there (8G:4G, at most 10%:5% of it)"},
	{name: "watch", arity: optionalValue, value: "SECONDS", help: "view: show it again and again (2)"},
	{name: "help", arity: noValue, help: "help for a command (-h)"},
	{name: "version", arity: noValue, help: "version of this program"},

	{name: "no-ssh", arity: noValue, ignored: true},
	{name: "ssh-port", arity: oneValue, ignored: true},
	{name: "ssh-opts", arity: oneValue, ignored: true},
	{name: "logger", arity: oneValue, ignored: true},
	{name: "ignore-deleted-peers", arity: oneValue, ignored: true},
	{name: "max-deletions", arity: oneValue, ignored: true},
	{name: "delete-method", arity: oneValue, ignored: true},
}

var shortOptions = map[string]string{"f": "force", "d": "dry-run", "v": "verbose", "h": "help"}

func findOption(name string) *option {
	if name == "keep-backups" {
		name = "keep-backup-hours"
	}
	for i := range globalOptions {
		if globalOptions[i].name == name {
			return &globalOptions[i]
		}
	}
	return nil
}

// normalised is a command line in the one form that the flag parser sees.
type normalised struct {
	// args: all options as --name or --name=value, then the command, then "--" and
	// the words behind it.
	args    []string
	command string
	words   []string
	peerIPs map[string]string // --ip-PEER=ADDR
}

// normalise turns a command line of the original's kind into the canonical one:
// options may stand anywhere; blanks around '=' inside one word are tolerated;
// --a_b is --a-b; --ip-PEER has a variable name; `force-CMD` is `--force CMD`;
// h, v, help and version work without dashes; a negative number is a word. It is
// a pure function; an unknown option is an error.
func normalise(argv []string) (normalised, error) {
	n := normalised{peerIPs: make(map[string]string)}
	var opts []string
	for i := 0; i < len(argv); i++ {
		word := argv[i]
		if word == "--" {
			n.words = append(n.words, argv[i+1:]...)
			break
		}
		if len(word) < 2 || word[0] != '-' || isNumber(word[1:]) {
			n.words = append(n.words, word)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimSpace(word), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		opt, err := n.lookup(name, value, hasValue)
		if err != nil {
			return normalised{}, err
		}
		if opt == nil {
			continue // --ip-PEER
		}
		if opt.arity == oneValue && !hasValue {
			if i++; i >= len(argv) {
				return normalised{}, usage("option --%s needs a value: --%s=%s", opt.name, opt.name, opt.value)
			}
			value, hasValue = strings.TrimSpace(argv[i]), true
		}
		if opt.arity == noValue && hasValue {
			return normalised{}, usage("option --%s takes no value (got %q)", opt.name, value)
		}
		switch {
		case opt.ignored:
		case hasValue:
			opts = append(opts, "--"+opt.name+"="+value)
		default:
			opts = append(opts, "--"+opt.name)
		}
	}
	if len(n.words) > 0 && strings.TrimSpace(n.words[0]) == "" {
		return normalised{}, &usageError{msg: "the command word is empty", hint: "an unset variable in a script, perhaps; marsadm help lists the commands"}
	}
	n = n.finish(opts)
	if strings.HasPrefix(n.command, "-") {
		return normalised{}, usage("unknown command %q", n.command)
	}
	return n, nil
}

// lookup finds the option called name, dashes included. nil stands for --ip-PEER,
// which has been noted.
func (n *normalised) lookup(name, value string, hasValue bool) (*option, error) {
	if !strings.HasPrefix(name, "--") {
		long, ok := shortOptions[name[1:]]
		if !ok {
			return nil, unknownOption(name)
		}
		return findOption(long), nil
	}
	long := strings.ReplaceAll(name[2:], "_", "-")
	if opt := findOption(long); opt != nil {
		return opt, nil
	}
	if peer, ok := strings.CutPrefix(name, "--ip-"); ok && peer != "" {
		if !hasValue || value == "" {
			return nil, usage("option %s needs a value: %s=ADDR", name, name)
		}
		n.peerIPs[peer] = value
		return nil, nil
	}
	return nil, unknownOption(name)
}

// finish sorts out the command and builds the canonical form.
func (n normalised) finish(opts []string) normalised {
	if len(n.words) > 0 {
		n.command, n.words = n.words[0], n.words[1:]
	}
	if cmd, ok := strings.CutPrefix(n.command, "force-"); ok && cmd != "" {
		n.command = cmd
		opts = append(opts, "--force")
	}
	if alias, ok := map[string]string{"h": "help", "v": "version"}[n.command]; ok {
		n.command = alias
	}
	asked := func(o string) bool { return o == "--help" || o == "--version" }
	if i := slices.IndexFunc(opts, asked); i >= 0 {
		word := strings.TrimPrefix(opts[i], "--")
		switch {
		case word == "version":
			n.words = nil
		case n.command != "" && n.command != word:
			n.words = []string{n.command}
		}
		n.command, opts = word, slices.DeleteFunc(opts, asked)
	}
	n.args = opts
	if n.command != "" {
		n.args = append(n.args, n.command, "--")
		n.args = append(n.args, n.words...)
	}
	return n
}

func unknownOption(name string) error {
	best, least := "", 4
	for _, o := range globalOptions {
		if d := macro.Distance(strings.TrimLeft(name, "-"), o.name); d < least && !o.ignored {
			best, least = o.name, d
		}
	}
	e := &usageError{msg: fmt.Sprintf("unknown option %s", name), hint: "see marsadm help"}
	if best != "" {
		e.hint = "did you mean --" + best + "?"
	}
	return e
}

func isNumber(s string) bool {
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return s != ""
}
