package adm

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestNormalise(t *testing.T) {
	for _, c := range []struct {
		in, want string // words separated by '|'
		ips      map[string]string
	}{
		{in: "", want: ""},
		{in: "view", want: "view|--"},
		{in: "up|r0", want: "up|--|r0"},
		{in: "--force|up|r0", want: "--force|up|--|r0"},
		{in: "up|r0|--force", want: "--force|up|--|r0"},
		{in: "up|--timeout=3|r0|-f", want: "--timeout=3|--force|up|--|r0"},
		{in: "up|--timeout|3|r0", want: "--timeout=3|up|--|r0"},
		{in: "up|--timeout = 3|r0", want: "--timeout=3|up|--|r0"},
		{in: "--root|/x|--node|hosta|view", want: "--root=/x|--node=hosta|view|--"},
		{in: "-d|-v|-f|-f|up|r0", want: "--dry-run|--verbose|--force|--force|up|--|r0"},
		{in: "--verbose=2|up|r0", want: "--verbose=2|up|--|r0"},
		{in: "--parallel|primary|all", want: "--parallel|primary|--|all"},
		{in: "--parallel=3|primary|all", want: "--parallel=3|primary|--|all"},
		{in: "--dry_run|--stuck_seconds=5|up|r0", want: "--dry-run|--stuck-seconds=5|up|--|r0"},
		{in: "--keep-backups=5|cron", want: "--keep-backup-hours=5|cron|--"},
		{in: "--ssh_port=22|--no-ssh|up|r0", want: "up|--|r0"},
		{in: "--ssh-port|22|up|r0", want: "up|--|r0"},
		{in: "join-cluster|hosta|--ip-hosta=10.0.0.1|--ip=10.0.0.2", want: "--ip=10.0.0.2|join-cluster|--|hosta", ips: map[string]string{"hosta": "10.0.0.1"}},
		{in: "--ip-a-b = 10.0.0.1|view", want: "view|--", ips: map[string]string{"a-b": "10.0.0.1"}},
		{in: "force-primary|r0", want: "--force|primary|--|r0"},
		{in: "primary|force-r0", want: "primary|--|force-r0"},
		{in: "h", want: "help|--"},
		{in: "v", want: "version|--"},
		{in: "--help", want: "help|--"},
		{in: "-h|up", want: "help|--|up"},
		{in: "help|up", want: "help|--|up"},
		{in: "help|up|--help", want: "help|--|up"},
		{in: "up|--help", want: "help|--|up"},
		{in: "--version", want: "version|--"},
		{in: "up|--version", want: "version|--"},
		{in: "view-errno-text|r0|-5", want: "view-errno-text|--|r0|-5"},
		{in: "set-link|--|-x|--y", want: "set-link|--|-x|--y"},
		{in: "set-link|-|userspace/a", want: "set-link|--|-|userspace/a"},
		{in: "log-dump|/x|--json", want: "--json|log-dump|--|/x"},
	} {
		var argv []string
		if c.in != "" {
			argv = strings.Split(c.in, "|")
		}
		n, err := normalise(argv)
		if got := strings.Join(n.args, "|"); err != nil || got != c.want {
			t.Errorf("normalise(%s) = %s, %v, want %s", c.in, got, err, c.want)
		}
		if !maps.Equal(n.peerIPs, c.ips) {
			t.Errorf("normalise(%s): addresses %v, want %v", c.in, n.peerIPs, c.ips)
		}
	}
	for in, why := range map[string]string{
		"--nonsense|up|r0":        "unknown option --nonsense",
		"up|r0|-x":                "unknown option -x",
		"up|-fd|r0":               "unknown option -fd",
		"--forc|up|r0":            "unknown option --forc",
		"up|--timeout":            "needs a value",
		"--force=yes|up|r0":       "takes no value",
		"--ip-hosta|view":         "needs a value",
		"--ip-hosta=|view":        "needs a value",
		"--ip-=1|view":            "unknown option --ip-",
		"--dry-run=0|delete|r0":   "takes no value",
		"---force|up|r0":          "unknown option",
		"--|--":                   "unknown command",
		"--|-x|up":                "unknown command",
		"force--x":                "unknown command",
		"-5":                      "unknown command",
		"--timeout=3|up|--":       "",
		"--Force|up|r0":           "unknown option --Force",
		"=|--=|view":              "unknown option --",
		"--unknown|--help":        "unknown option --unknown",
		"up|r0|--ignore-sync=all": "takes no value",
	} {
		_, err := normalise(strings.Split(in, "|"))
		if why == "" {
			if err != nil {
				t.Errorf("normalise(%s): %v", in, err)
			}
			continue
		}
		var u *usageError
		if err == nil || !errors.As(err, &u) || !strings.Contains(err.Error(), why) {
			t.Errorf("normalise(%s): error %v, want one with %q", in, err, why)
		}
	}
}

// FuzzNormalise: whatever the words are, the canonical form is options with known
// names, the command, "--", and the words in their order; and it is a fixed point.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"up|r0|--force", "--ip-a=1|-v|--|x", "force-force-x|-5", "--timeout| |h", "view|--help|--version"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := normalise(strings.Split(s, "|"))
		if err != nil {
			return
		}
		i := 0
		for ; i < len(n.args) && strings.HasPrefix(n.args[i], "--"); i++ {
			name, _, _ := strings.Cut(n.args[i][2:], "=")
			if o := findOption(name); o == nil || o.ignored {
				t.Fatalf("%q: option %q in %q", s, name, n.args)
			}
		}
		if n.command == "" {
			if i != len(n.args) {
				t.Fatalf("%q: no command but words: %q", s, n.args)
			}
			return
		}
		if n.args[i] != n.command || n.args[i+1] != "--" || strings.Join(n.args[i+2:], "|") != strings.Join(n.words, "|") {
			t.Fatalf("%q: %q, command %q, words %q", s, n.args, n.command, n.words)
		}
		if strings.HasPrefix(n.command, "force-") || n.command == "h" || n.command == "v" {
			return // would be read differently the second time
		}
		m, err := normalise(n.args)
		if err != nil || strings.Join(m.args, "|") != strings.Join(n.args, "|") {
			t.Fatalf("%q: not a fixed point: %q becomes %q, %v", s, n.args, m.args, err)
		}
	})
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"4096": 4096, "64M": 64 << 20, "1G": 1 << 30, "2T": 2 << 40, "1P": 1 << 50, "4K": 4096, "4096k": 4096000, "512m": 512e6, "0": 0,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("ParseSize(%s) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "M", "-4096", "+4096", "4097", "1k", "4 K", "4KB", "0x1000", "9999999P", "9223372036854775807", "1e6", "4096.0"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", s, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("64M")
	f.Add("99999999999999999P")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && (n < 0 || n%pageSize != 0) {
			t.Fatalf("ParseSize(%q) = %d", s, n)
		}
	})
}

func TestCheckAddress(t *testing.T) {
	for _, v := range []string{"10.0.0.1", "10.0.0.1:7777", "::1", "[::1]:7777", "fe80::1", "127.0.0.2:1"} {
		if err := checkAddress(v); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	for _, v := range []string{"", "hosta", "10.0.0.300", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", ":7777", "[::1", "10.0.0.1 ", "1.2.3.4:5:6", "10.0.0.1/24"} {
		if err := checkAddress(v); err == nil {
			t.Errorf("%q is taken for an address", v)
		}
	}
}

func TestParseCondition(t *testing.T) {
	for word, want := range map[string]condition{
		"is-device-off":   {"is-device-off", true, "device", false},
		"is-primary":      {"is-primary", true, "primary", true},
		"is-secondary-1":  {"is-secondary-1", true, "secondary", true},
		"fetch-0":         {"fetch-0", false, "fetch", false},
		"is-copying":      {"is-copying", true, "fetch", true},
		"attached-on":     {"attached-on", false, "attach", true},
		"is-replaying-on": {"is-replaying-on", true, "replay", true},
	} {
		if got, err := parseCondition(word); err != nil || got != want {
			t.Errorf("%s: %+v, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "is-", "-on", "is-on", "device", "is-attach-on-on", "primary-maybe"} {
		if got, err := parseCondition(word); err == nil {
			t.Errorf("%q: %+v, want an error", word, got)
		}
	}
}
