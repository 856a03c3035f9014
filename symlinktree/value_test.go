package symlinktree

import (
	"errors"
	"strings"
	"testing"
)

// The vectors of reference symlink-tree 4.8, checked there with md5sum.
func TestVersionVectors(t *testing.T) {
	zeros := ZeroDigest
	v1 := NewVersion(1, "hostA", 4096, "").String()
	v2 := NewVersion(2, "hostA", 8192, v1).String()
	for _, tc := range []struct {
		name string
		got  Version
		want string
	}{
		{"first, empty", NewVersion(1, "hostA", 0, ""), "6f2d44f952a35ec2801bd0a41c4d0f48,log-000000001-hostA,0:"},
		{"first, written", NewVersion(1, "hostA", 4096, ""), "b94d62b8fb4cabcd99b10d2047b67bee,log-000000001-hostA,4096:"},
		{"first ignores a predecessor", NewVersion(1, "hostA", 4096, zeros+",log-000000000-hostA,0:"), v1},
		{"second", NewVersion(2, "hostA", 8192, v1), "b5ce8bcaff42a94dfc61997288c19f83,log-000000002-hostA,8192:b94d62b8fb4cabcd99b10d2047b67bee,log-000000001-hostA,4096"},
		{"third, other origin", NewVersion(3, "hostB", 0, v2), "714ef5cfe1bb0a00342b5183178d06e6,log-000000003-hostB,0:b5ce8bcaff42a94dfc61997288c19f83,log-000000002-hostA,8192"},
		{"created again", NewVersion(100001, "hostA", 0, zeros+",log-000100000-hostA,0:"), "0811357c82fe91b8f00e56a07136201a,log-000100001-hostA,0:00000000000000000000000000000000,log-000100000-hostA,0"},
		{"tombstone as predecessor", NewVersion(5, "h", 7, Deleted), NewVersion(5, "h", 7, "").String()},
	} {
		if got := tc.got.String(); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
		back, err := ParseVersion(tc.got.String())
		if err != nil || back != tc.got {
			t.Errorf("%s: parsed back as %+v, %v", tc.name, back, err)
		}
	}
	if NewVersion(2, "hostA", 8192, v1) == NewVersion(2, "hostA", 8192, "") {
		t.Error("different histories have equal versions")
	}
	v, _ := ParseVersion(v2)
	p, ok := v.Predecessor()
	if !ok || p.Seq != 1 || p.Pos != 4096 || p.Head()+":" != v1 {
		t.Errorf("predecessor %+v %v", p, ok)
	}
	if _, ok := p.Predecessor(); ok {
		t.Error("the first version has a predecessor")
	}
}

func TestParseVersionBad(t *testing.T) {
	d := strings.Repeat("a", 32)
	for _, s := range []string{
		"", ":", d, d + ",log-000000001-h,0", // no colon
		d[1:] + ",log-000000001-h,0:", strings.ToUpper(d) + ",log-000000001-h,0:",
		d + ",log-1-h,0:", d + ",log-0000000001-h,0:", d + ",log-000000001-,0:", d + ",log-000000001,0:",
		d + ",log-000000001--h,0:", d + ",log-000000001-h.x,0:", d + ",log-00000000x-h,0:", d + ",log-+00000001-h,0:",
		d + ",log-000000001-h,-1:", d + ",log-000000001-h,01:", d + ",log-000000001-h,:", d + ",log-000000001-h, 1:",
		d + ",log-000000001-h,9223372036854775808:", d + ",log-2147483648-h,0:",
		d + ",log-000000002-h,0:x", d + ",log-000000002-h,0:" + d + ",log-000000001-h,0:", d + ",log-000000001-h,0,1:",
		Deleted,
	} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("ParseVersion(%q) = %+v", s, v)
		} else if !errors.Is(err, ErrValue) && !errors.Is(err, ErrName) {
			t.Errorf("ParseVersion(%q): untyped error %v", s, err)
		}
	}
}

func TestReplay(t *testing.T) {
	for _, tc := range []struct {
		s    string
		want Replay
	}{
		{"log-000000001-hostA,0,0", Replay{1, "hostA", 0, 0}},
		{"log-000000012-a-b,4096,77", Replay{12, "a-b", 4096, 77}},
		{"log-1234567890-x,1,2", Replay{1234567890, "x", 1, 2}},
		{"log-000000001-h,9223372036854775807,0", Replay{1, "h", 1<<63 - 1, 0}},
	} {
		got, err := ParseReplay(tc.s)
		if err != nil || got != tc.want || got.String() != tc.s {
			t.Errorf("ParseReplay(%q) = %+v (%s), %v", tc.s, got, got, err)
		}
	}
	for _, s := range []string{
		"", "log-000000001-h", "log-000000001-h,0", "log-000000001-h,0,0,0", "log-000000000-h,0,0", "log-1-h,0,0",
		"log-000000001-h,-1,0", "log-000000001-h,0,-1", "log-000000001-h,00,0", "log-000000001-h,9223372036854775807,1",
		"log-000000001-none,0,0", "log-000000001-h,0,0\n", " log-000000001-h,0,0", "xlog-000000001-h,0,0", Deleted, NoHost,
	} {
		if r, err := ParseReplay(s); err == nil {
			t.Errorf("ParseReplay(%q) = %+v", s, r)
		}
	}
	order := []Replay{{1, "z", 0, 9}, {1, "a", 9, 0}, {2, "a", 0, 0}, {10, "a", 0, 0}}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := CompareReplay(a, b); got != want {
				t.Errorf("CompareReplay(%v, %v) = %d, want %d", a, b, got, want)
			}
		}
	}
	if CompareReplay(Replay{1, "a", 5, 0}, Replay{1, "b", 5, 9}) != 0 {
		t.Error("origin or LEN takes part in the order")
	}
}

func TestSmallValues(t *testing.T) {
	for _, tc := range []struct {
		name string
		bad  bool
		got  func() (string, error)
		want string
	}{
		{"features", false, func() (string, error) { v, err := ParseFeatures("4,5,0x031f0000"); return v.String(), err }, "4,5,0x031f0000"},
		{"old features", false, func() (string, error) { v, err := ParseFeatures("3"); return v.String(), err }, "3,0,0x00000000"},
		{"bad features", true, func() (string, error) { _, err := ParseFeatures("4,5,6,7"); return "", err }, ""},
		{"bad mask", true, func() (string, error) { _, err := ParseFeatures("4,5,31"); return "", err }, ""},
		{"mask", false, func() (string, error) { v, err := ParseMask("0x00100000"); return FormatMask(v), err }, "0x00100000"},
		{"wide mask", true, func() (string, error) { _, err := ParseMask("0x100000000"); return "", err }, ""},
		{"replay code", false, func() (string, error) { v, err := ParseReplayCode("-85,10003,0x0a"); return v.String(), err }, "-85,10003,0x0a"},
		{"replay code of 2", false, func() (string, error) { v, err := ParseReplayCode("-85,10003"); return v.String(), err }, "-85,10003"},
		{"replay code of 1", false, func() (string, error) { v, err := ParseReplayCode("1"); return v.String(), err }, "1"},
		{"replay code of 4", true, func() (string, error) { _, err := ParseReplayCode("1,2,0x00,4"); return "", err }, ""},
		{"replay code byte", true, func() (string, error) { _, err := ParseReplayCode("1,2,0x100"); return "", err }, ""},
		{"message OK", false, func() (string, error) { v, err := ParseMessage("OK"); return v.String(), err }, "OK"},
		{"message", false, func() (string, error) {
			v, err := ParseMessage("1795417112.305895585 1795417112.305895586 log missing, waiting")
			return v.String(), err
		}, "1795417112.305895585 1795417112.305895586 log missing, waiting"},
		{"message without text", true, func() (string, error) { _, err := ParseMessage("1.000000000 1.000000000 "); return "", err }, ""},
		{"message without stamps", true, func() (string, error) { _, err := ParseMessage("all is bad"); return "", err }, ""},
		{"verify", false, func() (string, error) { v, err := ParseVerifyStatus("15789,595"); return v.String(), err }, "15789,595"},
		{"bad verify", true, func() (string, error) { _, err := ParseVerifyStatus("15789"); return "", err }, ""},
		{"address", false, func() (string, error) { return ParseAddr("10.0.0.1", 7777) }, "10.0.0.1:7777"},
		{"address, port", false, func() (string, error) { return ParseAddr("127.0.0.3:9000", 7777) }, "127.0.0.3:9000"},
		{"IPv6", false, func() (string, error) { return ParseAddr("fe80::1", 7777) }, "[fe80::1]:7777"},
		{"IPv6, port", false, func() (string, error) { return ParseAddr("[fe80::1]:1", 7777) }, "[fe80::1]:1"},
		{"host name", true, func() (string, error) { return ParseAddr("example.org", 7777) }, ""},
		{"port 0", true, func() (string, error) { return ParseAddr("10.0.0.1:0", 7777) }, ""},
		{"port 70000", true, func() (string, error) { return ParseAddr("10.0.0.1:70000", 7777) }, ""},
	} {
		got, err := tc.got()
		if tc.bad != (err != nil) || !tc.bad && got != tc.want {
			t.Errorf("%s: %q, %v; want %q, error %v", tc.name, got, err, tc.want, tc.bad)
		}
		if err != nil && !errors.Is(err, ErrValue) {
			t.Errorf("%s: error without cause: %v", tc.name, err)
		}
	}
	for v, want := range map[string]int64{"": 0, "1": 1, "000000002": 2, "100001 -- set by hand": 100001, "x1": 0, "-5": -5, "99999999999999999999": 0, "-": 0} {
		if got := LeadingInt(v); got != want {
			t.Errorf("LeadingInt(%q) = %d, want %d", v, got, want)
		}
	}
	if Switch("") || Switch("0") || !Switch("1") || !Switch("2x") || Switch("on") {
		t.Error("Switch")
	}
}

func TestCheckValue(t *testing.T) {
	r := Resource("r")
	good := map[string]string{
		r.PrimaryPath(): NoHost, r.VersionPath(2, "a-b"): NewVersion(2, "c", 0, "").String(), r.DevicePath("h"): NoHost,
		r.TodoPath("h", SwitchEmergencyLimit): "100", UUIDPath: AnyUUID, DefaultsPath("enabled-log-compressions"): "0x03000000",
		"whatever": "anything / at all", r.ReplayPath("h"): Deleted,
	}
	for path, v := range good {
		if err := CheckValue(path, v); err != nil {
			t.Errorf("CheckValue(%q, %q): %v", path, v, err)
		}
	}
	bad := map[string]string{
		r.PrimaryPath(): "none", r.VersionPath(3, "a"): NewVersion(2, "c", 0, "").String(), r.DevicePath("h"): "/dev/x", r.SizePath(): "64M",
		r.TodoPath("h", SwitchEmergencyLimit): "101", r.TodoPath("h", SwitchAttach): "on", UUIDPath: "x", r.ActualPath("h", "is-primary"): "yes",
		HostDefaultsPath("h", "sync-limit"): "many", ActualPath("h", "time"): "now", IPPath("h"): "host", r.ReplayPath("h"): "log-1-h,0,0", r.SyncFromPath("h"): "a.b", r.Path("../x"): "1",
	}
	for path, v := range bad {
		if err := CheckValue(path, v); err == nil {
			t.Errorf("CheckValue(%q, %q) has no complaint", path, v)
		}
	}
}

func FuzzParseReplay(f *testing.F) {
	for _, s := range []string{"log-000000001-hostA,0,0", "log-000000002-a-b,11139980,4096", "", "log-,,", "log-000000001-h,9223372036854775807,1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReplay(s)
		if err != nil {
			return
		}
		if r.String() != s {
			t.Fatalf("%q parsed to %+v prints as %q", s, r, r)
		}
		if r.Seq < 1 || r.Min < 0 || r.Len < 0 || r.End() < r.Min || ValidName(r.Origin) != nil {
			t.Fatalf("%q parsed to %+v", s, r)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	v := NewVersion(2, "hostA", 8192, NewVersion(1, "hostA", 4096, "").String()).String()
	for _, s := range []string{v, NewVersion(1, "a-b", 0, "").String(), ":", v + ":", v[1:]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVersion(s)
		if err != nil {
			return
		}
		if v.String() != s {
			t.Fatalf("%q parsed to %+v prints as %q", s, v, v)
		}
		if _, ok := v.Predecessor(); ok != (v.Prev != "") {
			t.Fatalf("%q: predecessor of %q: %v", s, v.Prev, ok)
		}
		// The computed successor must be readable in turn.
		next := NewVersion(v.Seq+1, v.Origin, 0, s)
		if v.Seq < 1<<31-2 {
			if back, err := ParseVersion(next.String()); err != nil || back != next {
				t.Fatalf("successor %q: %+v, %v", next, back, err)
			}
		}
	})
}
