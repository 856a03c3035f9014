package adm

import (
	"fmt"
	"testing"
	"time"

	"mars/logfile"
	"mars/symlinktree"
)

// TestPlanForgotten: cron deletes the logs of a resource that was deleted, and only
// of such a one.
func TestPlanForgotten(t *testing.T) {
	begin := time.Unix(1000, 0)
	logs := []logfile.Info{
		{Name: logfile.Name{Seq: 2, Host: "b"}, Size: 4096, ModTime: begin},
		{Name: logfile.Name{Seq: 3, Host: "b"}, ModTime: begin},
		{Name: logfile.Name{Seq: 4, Host: "b"}, ModTime: begin.Add(-time.Hour)},
	}
	for _, k := range []struct {
		name string
		tree memTree
		want string
	}{
		{"lives", memTree{"resource-r/size": "4096", "resource-r/data-b": "/d"}, "[]"},
		{"just being made", memTree{}, "[]"},
		{"all have left, nobody has deleted it", memTree{"resource-r/size": "4096", "resource-r/data-b": symlinktree.Deleted}, "[]"},
		{"deleted, but somebody still has a disk in it", memTree{"resource-r/size": symlinktree.Deleted, "resource-r/data-b": "/d"}, "[]"},
		{"deleted", memTree{"resource-r/size": symlinktree.Deleted, "resource-r/data-b": symlinktree.Deleted},
			"[resource-r/log-000000002-b resource-r/log-000000004-b]"},
	} {
		got := []string{}
		for _, o := range planForgotten(k.tree, "r", logs, begin.Add(-time.Minute)) {
			if o.kind != opDelete {
				t.Errorf("%s: %+v is no deletion", k.name, o)
			}
			got = append(got, o.path)
		}
		if fmt.Sprint(got) != k.want {
			t.Errorf("%s: %v, want %s", k.name, got, k.want)
		}
	}
}
