package logfile

import (
	"errors"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	good := map[string]Name{
		"log-000000001-hosta":                        {1, "hosta"},
		"log-999999999-a":                            {999999999, "a"},
		"log-000100001-db-0007-x":                    {100001, "db-0007-x"},
		"log-000000002-_":                            {2, "_"},
		"log-000000001-" + strings.Repeat("x", 63):   {1, strings.Repeat("x", 63)},
		"log-000000003-000000004-host":               {3, "000000004-host"},
		"log-000000003-host-with-dash-at-the-end-of": {3, "host-with-dash-at-the-end-of"},
	}
	for s, want := range good {
		got, err := ParseName(s)
		if err != nil || got != want {
			t.Errorf("ParseName(%q) = %v, %v", s, got, err)
		}
		if got.String() != s {
			t.Errorf("String of %q is %q", s, got.String())
		}
	}
	bad := []string{
		"", "log-", "log-1-host", "log-0000000001-host", "log-00000001-host", "log-000000000-host", "log-000000001", "log-000000001-",
		"log-000000001--host", "log-+00000001-host", "log--00000001-host", "log-00000000a-host", "log-000000001-a.b", "log-000000001-a/b",
		"log-000000001-a b", "log-000000001-a\n", "log-000000001-ä", "Log-000000001-a", " log-000000001-a", "version-000000001-a",
		"log-000000001-" + strings.Repeat("x", 64), "log-000000001_host", "log-00000000\xb9-host",
	}
	for _, s := range bad {
		if got, err := ParseName(s); !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%q) = %v, %v; want ErrName", s, got, err)
		}
	}
}

func TestNameIsZero(t *testing.T) {
	if !(Name{}).IsZero() || (Name{Seq: 1}).IsZero() || (Name{Host: "a"}).IsZero() {
		t.Error("IsZero is wrong")
	}
	if s := (Position{Name{12, "h-1"}, 4180}).String(); s != "log-000000012-h-1,4180" {
		t.Errorf("position is %q", s)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"log-000000001-hosta", "log-000000001-a-b", "log-000000001-", "log-1-x", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			if !n.IsZero() || !errors.Is(err, ErrName) {
				t.Fatalf("%q: %v, %v", s, n, err)
			}
			return
		}
		if n.String() != s || n.valid() != nil {
			t.Fatalf("%q became %q (%v)", s, n, n.valid())
		}
	})
}
