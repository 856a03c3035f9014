package adm

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"mars/symlinktree"
)

func linkVerbs() []verb {
	return []verb{
		{name: "set-emergency-limit", args: "RES PERCENT", help: "how much space must be left, or the resource gives up logging", res: oneRes, min: 1, max: 1, each: setEmergencyLimit},
		{name: "get-emergency-limit", args: "RES", help: "print it (nothing if unset)", res: oneRes, readOnly: true, each: getEmergencyLimit},
		{name: "emergency-limit", args: "RES PERCENT", hidden: true, res: oneRes, min: 1, max: 1, each: setEmergencyLimit},
		{name: "set-sync-mode", args: "RES {async|sync|near} [MEMBERS [MILLISECONDS]]", help: "what a FLUSH of the primary waits for beyond its own log", res: oneRes, min: 1, max: 3, each: setSyncMode},
		{name: "get-sync-mode", args: "RES", help: "print it", res: oneRes, readOnly: true, each: getSyncMode},
		{name: "set-replay-delay", args: "RES SECONDS", help: "let this replica stay so far behind, as a way back; 0 = catch up", res: oneRes, min: 1, max: 1, each: setReplayDelay},
		{name: "get-replay-delay", args: "RES", help: "print it", res: oneRes, readOnly: true, each: getReplayDelay},
		{name: "set-global-sync-limit-value", args: "N", help: "how many syncs may run at once here, 0 = any number", min: 1, max: 1, run: setSyncLimit},
		{name: "get-global-sync-limit-value", help: "print it", readOnly: true, run: getSyncLimit},
		{name: "set-link", args: "VALUE PATH", help: "set a link below a userspace directory", min: 2, max: -1, run: setLink},
		{name: "get-link", args: "PATH", help: "print the value of a link", min: 1, max: 1, readOnly: true, run: getLink},
		{name: "delete-file", args: "PATH", help: "delete a link below a userspace directory", min: 1, max: 1, run: deleteFile},
	}
}

func setEmergencyLimit(_ context.Context, j *job) error {
	n, err := strconv.Atoi(j.args[0])
	if err != nil || n < 0 || n > 100 {
		return usage("%q is not a percentage from 0 to 100", j.args[0])
	}
	return j.apply([]op{set(j.r.TodoPath(j.host, symlinktree.SwitchEmergencyLimit), strconv.Itoa(n))})
}

func getEmergencyLimit(_ context.Context, j *job) error {
	return j.printLink(j.r.TodoPath(j.host, symlinktree.SwitchEmergencyLimit))
}

func setSyncLimit(_ context.Context, s *session, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 {
		return usage("%q is not a number, 0 or more", args[0])
	}
	return s.apply([]op{set(symlinktree.HostDefaultsPath(s.host, "sync-limit"), strconv.Itoa(n))})
}

func getSyncLimit(_ context.Context, s *session, _ []string) error {
	v, ok := s.tree.Get(symlinktree.HostDefaultsPath(s.host, "sync-limit"))
	if !ok {
		return refuse("marsadm set-global-sync-limit-value N", "it is not set on %s", s.host)
	}
	s.print("%s\n", v)
	return nil
}

// relative turns the path of a link, absolute or relative to the root, into one
// relative to the root.
func (s *session) relative(path string) (string, error) {
	rel := path
	if filepath.IsAbs(path) {
		var err error
		if rel, err = filepath.Rel(s.tree.Root(), filepath.Clean(path)); err != nil || strings.HasPrefix(rel, "..") {
			return "", usage("path %q is not below the root %s", path, s.tree.Root())
		}
	}
	if err := symlinktree.ValidPath(rel); err != nil {
		return "", usage("path %q: %v", path, err)
	}
	return rel, nil
}

// checkUserspace keeps administrators from breaking the tree by accident.
func checkUserspace(rel string, force bool) error {
	if !strings.HasPrefix(rel, "userspace/") && !strings.Contains(rel, "/userspace/") && !force {
		return refuse("choose a path below a userspace directory, or --force if you know what marsd makes of it", "%s is not below a userspace directory", rel)
	}
	return nil
}

func setLink(_ context.Context, s *session, args []string) error {
	if len(args)%2 != 0 {
		return usage("set-link wants pairs of VALUE PATH")
	}
	var batch []op
	for i := 0; i < len(args); i += 2 {
		if err := symlinktree.ValidValue(args[i]); err != nil {
			return usage("%v", err)
		}
		rel, err := s.relative(args[i+1])
		if err != nil {
			return err
		}
		if err := checkUserspace(rel, s.forced()); err != nil {
			return err
		}
		batch = append(batch, set(rel, args[i]))
	}
	return s.apply(batch)
}

func getLink(_ context.Context, s *session, args []string) error {
	rel, err := s.relative(args[0])
	if err != nil {
		return err
	}
	v, ok := s.tree.Get(rel)
	if !ok {
		return refuse("", "no link %s/%s", s.tree.Root(), rel)
	}
	s.print("%s\n", v)
	return nil
}

func deleteFile(_ context.Context, s *session, args []string) error {
	rel, err := s.relative(args[0])
	if err != nil {
		return err
	}
	if err := checkUserspace(rel, s.forced()); err != nil {
		return err
	}
	if _, ok := s.tree.Get(rel); !ok {
		return refuse("", "no link %s", fmt.Sprintf("%s/%s", s.tree.Root(), rel))
	}
	return s.apply([]op{del(rel)})
}
