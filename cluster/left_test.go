package cluster

import (
	"slices"
	"strings"
	"testing"

	"mars/symlinktree"
)

// TestLeftovers: a node takes back its own status when it was taken out, and nothing
// else, and not before.
func TestLeftovers(t *testing.T) {
	const gone = symlinktree.Deleted
	status := map[string]string{"actual-b/is-attached": "1", "actual-b/open-count": "2", "actual-b/if-on": gone}
	for _, k := range []struct {
		name   string
		change map[string]string // of base; empty: no such link
		want   string
	}{
		{"member", nil, ""},
		{"membership not to be seen", map[string]string{"data-b": ""}, ""},
		{"taken out", map[string]string{"data-b": gone}, "actual-b/is-attached actual-b/open-count replay-b"},
		{"taken out, position deleted", map[string]string{"data-b": gone, "replay-b": gone}, "actual-b/is-attached actual-b/open-count"},
		{"guest", map[string]string{"data-b": gone, "device-b": "r0"}, ""},
		{"nobody is left", map[string]string{"data-a": gone, "data-b": gone, "data-c": gone},
			"actual-b/is-attached actual-b/open-count replay-b version-000000001-b"},
	} {
		links := map[string]string{}
		for _, m := range []map[string]string{base, status, k.change} {
			for path, v := range m {
				links[path] = v
			}
		}
		var got []string
		for _, path := range leftovers(snapshot(t, links), "r0", "b") {
			got = append(got, strings.TrimPrefix(path, "resource-r0/"))
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != k.want {
			t.Errorf("%s: %q, want %q", k.name, s, k.want)
		}
	}
}
