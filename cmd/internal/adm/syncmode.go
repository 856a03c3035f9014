package adm

import (
	"context"
	"strconv"
	"strings"

	"mars/symlinktree"
)

// defaultPatience is how long a FLUSH waits in near mode, in milliseconds.
const defaultPatience = "100"

// parseSyncMode reads MODE [MEMBERS [MILLISECONDS]].
func parseSyncMode(args []string) (symlinktree.SyncMode, error) {
	text := strings.Join(args, ",")
	switch {
	case args[0] == "sync" && len(args) == 1:
		text += ",1"
	case args[0] == "near" && len(args) == 1:
		text += ",1," + defaultPatience
	case args[0] == "near" && len(args) == 2:
		text += "," + defaultPatience
	}
	m, err := symlinktree.ParseSyncMode(text)
	if err != nil {
		return m, usage("%v", err)
	}
	return m, nil
}

func setSyncMode(_ context.Context, j *job) error {
	m, err := parseSyncMode(j.args)
	if err != nil {
		return err
	}
	if others := len(symlinktree.Members(j.snap(), j.r)) - 1; m.Members > others {
		what := "every FLUSH will wait the whole time, and then for nobody"
		if m.Patience == 0 {
			what = "no FLUSH will be answered"
		}
		if !j.forced() {
			return refuse("marsadm join-resource on another node first, or --force", "it has %d members beside the primary, %d are asked for: %s", others, m.Members, what)
		}
		j.warn("it has %d members beside the primary, %d are asked for: %s", others, m.Members, what)
	}
	return j.apply([]op{set(j.r.SyncModePath(), m.String())})
}

func getSyncMode(_ context.Context, j *job) error {
	return j.printLinkOr(j.r.SyncModePath(), symlinktree.SyncMode{}.String())
}

// maxReplayDelay keeps the delay within what clocks and logs can hold: ten years.
const maxReplayDelay = 10 * 366 * 24 * 3600

func setReplayDelay(_ context.Context, j *job) error {
	n, err := strconv.Atoi(j.args[0])
	if err != nil || n < 0 || n > maxReplayDelay {
		return usage("%q is not a number of seconds from 0 to %d", j.args[0], maxReplayDelay)
	}
	if p, _ := j.tree.Get(j.r.PrimaryPath()); p == j.host && n > 0 {
		j.warn("%s is the designated primary: the delay counts when it is not any more", j.host)
	}
	return j.apply([]op{set(j.r.TodoPath(j.host, symlinktree.ReplayDelay), strconv.Itoa(n))})
}

func getReplayDelay(_ context.Context, j *job) error {
	return j.printLinkOr(j.r.TodoPath(j.host, symlinktree.ReplayDelay), "0")
}
