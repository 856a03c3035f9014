package transport

import (
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Every duration of the configuration is in the table of docs/WIRE-PROTOCOL.md, with the value that it has.
func TestDocumentedBounds(t *testing.T) {
	doc, err := os.ReadFile("../docs/WIRE-PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "## 7. Deadlines and bounds")
	if !ok {
		t.Fatal("docs/WIRE-PROTOCOL.md has no section 7")
	}
	told := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)`[^|]*\\| ([^ |]+) \\|").FindAllStringSubmatch(section, -1) {
		told[m[1]] = m[2]
	}
	v := reflect.ValueOf(DefaultConfig())
	for i := range v.NumField() {
		d, ok := v.Field(i).Interface().(time.Duration)
		if !ok {
			continue
		}
		name := v.Type().Field(i).Name
		if told[name] != d.String() {
			t.Errorf("%s is %v, the document says %q", name, d, told[name])
		}
		delete(told, name)
	}
	for name := range told {
		t.Errorf("the document has a bound %s that the code does not know", name)
	}
	c := DefaultConfig()
	for text, n := range map[string]int{"64 tree and sync requests": c.MaxRequests, "16384 connections": c.MaxConns, "4096 of one peer": c.MaxPeerConns,
		"1024 that are not authenticated": c.MaxHandshakes, "16 connections to a peer": maxDials} {
		if !strings.Contains(section, text) || !strings.HasPrefix(text, strconv.Itoa(n)+" ") {
			t.Errorf("the document does not say %q, or the code has %d", text, n)
		}
	}
	if silentHeartbeats != 3 || MaxFrame != 1<<20 || MaxRange != 4<<20 || MaxDigests != 16384 {
		t.Error("bounds that section 7 names have changed")
	}
}
