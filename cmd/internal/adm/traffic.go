package adm

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"mars/symlinktree"
)

func trafficVerbs() []verb {
	return []verb{
		{name: "set-traffic-limit", args: "{log|sync|tree} KIB/S [PEER]", help: "limit what this host sends to each peer, or to one; 0 = no limit", min: 2, max: 3, run: setTrafficLimit},
		{name: "set-resource-traffic-limit", args: "RES {log|sync} KIB/S", help: "limit what this host sends of a resource, to all peers together", res: oneRes, min: 2, max: 2, each: setResourceTrafficLimit},
		{name: "get-traffic-limit", help: "print the limits of this host, those of resources, too", readOnly: true, run: getTrafficLimit},
	}
}

// trafficValue checks class and rate.
func trafficValue(class, rate string, classes ...string) (string, error) {
	if !slices.Contains(classes, class) {
		return "", usage("%q is not one of %s", class, strings.Join(classes, ", "))
	}
	if n, err := strconv.ParseInt(rate, 10, 32); err != nil || n < 0 {
		return "", usage("%q is not a number of KiB per second, 0 or more", rate)
	}
	return symlinktree.TrafficLimit + class, nil
}

func setTrafficLimit(_ context.Context, s *session, args []string) error {
	key, err := trafficValue(args[0], args[1], "log", "sync", "tree")
	if err != nil {
		return err
	}
	if len(args) > 2 {
		peer := args[2]
		if _, known := s.tree.Get(symlinktree.IPPath(peer)); !known || peer == s.host {
			return refuse("marsadm lowlevel-ls-host-ips", "%s is no peer of %s", peer, s.host)
		}
		key += "-" + peer
	}
	return s.apply([]op{set(symlinktree.HostDefaultsPath(s.host, key), args[1])})
}

func setResourceTrafficLimit(_ context.Context, j *job) error {
	key, err := trafficValue(j.args[0], j.args[1], "log", "sync")
	if err != nil {
		return err
	}
	return j.apply([]op{set(j.r.HostDefaultsPath(j.host, key), j.args[1])})
}

func getTrafficLimit(_ context.Context, s *session, _ []string) error {
	dirs := []string{filepath.Dir(symlinktree.HostDefaultsPath(s.host, symlinktree.TrafficLimit))}
	for _, r := range symlinktree.Resources(s.tree) {
		dirs = append(dirs, filepath.Dir(r.HostDefaultsPath(s.host, symlinktree.TrafficLimit)))
	}
	for _, dir := range dirs {
		for _, e := range s.tree.List(dir) {
			if strings.HasPrefix(filepath.Base(e.Path), symlinktree.TrafficLimit) {
				s.print("%s %s\n", e.Path, e.Value)
			}
		}
	}
	return nil
}
