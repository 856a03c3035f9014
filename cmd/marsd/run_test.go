package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "512": 512, "4K": 4096, "64M": 64 << 20, "32G": 32 << 30, "1T": 1 << 40} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "K", "-1", "1k", "4KB", "9999999999T", "1.5G"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "marsd.conf")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := newCommand()
	if err := cmd.Flags().Parse([]string{"--node", "fromflag"}); err != nil {
		t.Fatal(err)
	}
	write("# a comment\nnode = fromfile\nlog-rotate-size = 64M # another\n\nbind=127.0.0.1:7000\n")
	if err := readConfig(path, cmd.Flags()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"node": "fromflag", "log-rotate-size": "64M", "bind": "127.0.0.1:7000"} {
		if got := cmd.Flags().Lookup(name).Value.String(); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{"no-such-flag = 1", "node", "config = x"} {
		write("bind = 1.2.3.4\n" + bad + "\n")
		err := readConfig(path, cmd.Flags())
		if err == nil || !strings.Contains(err.Error(), ":2:") {
			t.Errorf("%q: %v, want an error that names line 2", bad, err)
		}
		if got := cmd.Flags().Lookup("bind").Value.String(); got != "127.0.0.1:7000" {
			t.Errorf("%q changed bind to %s", bad, got)
		}
	}
}
