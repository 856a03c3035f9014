package logfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func dump(t *testing.T, log []byte, json bool) string {
	t.Helper()
	var out bytes.Buffer
	must(t, Dump(&out, bytes.NewReader(log), int64(len(log)), testName, json))
	return out.String()
}

func TestDump(t *testing.T) {
	rng := newRand(50)
	z := sealed(3, 8192, text(rng, 1024))
	z.compress = 0x200
	discard := sealed(4, 1<<20, RangePayload(1<<30))
	discard.code = int16(CodeDiscard)
	bare := plain(5, 0, noise(rng, 10))
	bare.digest = 0
	good := encodeAll(t, sealed(1, 4096, noise(rng, 512)), plain(2, 512, noise(rng, 100)), z, discard, bare)
	zt := len(z.encode(t))
	want := "# log-000000007-host-a, " + itoa(len(good)) + ` bytes
# offset seq stamp pos len code digest compression verdict
0 1 1700000001.000000001 4096 512 write crc32c none sealed
596 2 1700000002.000000002 512 100 write crc32c none ok
780 3 1700000003.000000003 8192 1024 write crc32c lz4 sealed
` + itoa(780+zt) + ` 4 1700000004.000000004 1048576 1073741824 discard crc32c none sealed
` + itoa(880+zt) + ` 5 1700000005.000000005 0 10 write none none unchecked
`
	if got := dump(t, good, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// As JSON, with damage: the payload of the second record, then a gap in the
	// numbers, then a torn end.
	bad := bytes.Clone(good)
	bad[700]++
	bad = append(bad, plain(9, 0, noise(rng, 600)).encode(t)...)
	bad = bad[:len(bad)-1]
	var verdicts []string
	for line := range strings.Lines(dump(t, bad, true)) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		s := itoa(int(v["offset"].(float64))) + " " + v["verdict"].(string)
		if reason, ok := v["reason"]; ok {
			s += " skipped " + itoa(int(v["skipped"].(float64)))
			if reason == "" || v["errno"] == nil || v["mars_code"] == nil {
				t.Errorf("defect without reason: %s", line)
			}
		} else if v["seq"] == nil || v["stamp"] == nil || v["pos"] == nil || v["len"] == nil || v["code"] == nil || v["digest"] == nil || v["compression"] == nil {
			t.Errorf("fields are missing: %s", line)
		}
		verdicts = append(verdicts, s)
	}
	wantV := []string{"0 sealed", "596 corrupt skipped 184", "780 sealed", itoa(780+zt) + " sealed", itoa(880+zt) + " unchecked", itoa(974+zt) + " torn skipped 683"}
	if strings.Join(verdicts, "|") != strings.Join(wantV, "|") {
		t.Errorf("got  %q\nwant %q", verdicts, wantV)
	}
	gap := encodeAll(t, plain(1, 0, noise(rng, 10)), plain(3, 0, noise(rng, 10)))
	if got := dump(t, gap, false); !strings.Contains(got, "\n94 - - - - - - - corrupt: sequence number 3, expected 2") || !strings.Contains(got, "\n94 3 ") {
		t.Errorf("a gap is listed as\n%s", got)
	}
	if got := dump(t, nil, true); got != "" {
		t.Errorf("an empty log is %q", got)
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// TestDumpResync finds the next record however the damage lies to the chunks.
func TestDumpResync(t *testing.T) {
	rng := newRand(51)
	rec := sealed(1, 0, noise(rng, 100)).encode(t)
	for _, n := range []int{1, 7, 8, 100, smallChunk - 9, smallChunk - 8, smallChunk - 1, smallChunk, smallChunk + 1, 3 * smallChunk} {
		log := append(bytes.Repeat([]byte{0xEE}, n), rec...)
		got := dump(t, log, true)
		if c := strings.Count(got, `"verdict":"sealed"`); c != 1 || strings.Count(got, "\n") != 2 {
			t.Errorf("%d bytes of garbage:\n%s", n, got)
		}
	}
}

func TestDumpErrors(t *testing.T) {
	log := sealed(1, 0, noise(newRand(52), 100)).encode(t)
	if err := Dump(failingWriter{}, bytes.NewReader(log), int64(len(log)), testName, false); !errors.Is(err, errDisk) {
		t.Errorf("write error: %v", err)
	}
	if err := Dump(&bytes.Buffer{}, &failingReader{fail: true}, 1000, testName, true); !errors.Is(err, errDisk) {
		t.Errorf("read error: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errDisk }

func TestVerify(t *testing.T) {
	rng := newRand(53)
	log := encodeAll(t, sealed(1, 0, noise(rng, 100)), sealed(2, 0, noise(rng, 100)))
	verify := func(log []byte, mode Mode) VerifyResult {
		t.Helper()
		res, err := Verify(bytes.NewReader(log), int64(len(log)), testName, mode)
		must(t, err)
		return res
	}
	if res := verify(log, Strict); res != (VerifyResult{2, int64(len(log)), nil}) {
		t.Errorf("sound log: %+v", res)
	}
	var torn *TornError
	if res := verify(log[:200], Strict); res.Records != 1 || res.End != 184 || !errors.As(res.Err, &torn) {
		t.Errorf("torn log: %+v", res)
	}
	log[60]++
	var corrupt *CorruptError
	if res := verify(log, Strict); res.Records != 0 || res.End != 0 || !errors.As(res.Err, &corrupt) {
		t.Errorf("damaged log: %+v", res)
	}
	kernel, err := os.ReadFile(filepath.Join("testdata", "kernel", "first.log"))
	must(t, err)
	if res := verify(kernel, Compat); res.Err != nil || res.Records != 12 {
		t.Errorf("kernel log: %+v", res)
	}
}
