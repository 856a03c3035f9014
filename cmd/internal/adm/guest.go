package adm

import (
	"context"
	"fmt"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

func guestVerbs() []verb {
	return []verb{
		{name: "activate-guest", args: "RES", help: "follow a resource closely without storing it", res: oneRes, newResource: true, each: activateGuest},
		{name: "deactivate-guest", args: "RES", help: "stop that", res: oneRes, anyResource: true, each: deactivateGuest},
	}
}

// activateGuest fetches the latest news first: the original works only after an
// update-cluster by hand.
func activateGuest(ctx context.Context, j *job) error {
	if macro.IsMember(j.tree, string(j.r), j.host) {
		return refuse("", "%s is a member of it, which is more than a guest", j.host)
	}
	if !has(j.tree, j.r.SizePath()) && !j.opt.noWait {
		if _, err := j.waitCluster(ctx, "", 8); err != nil {
			return err
		}
	}
	if !has(j.tree, j.r.SizePath()) && !j.opt.dryRun {
		return refuse("resources known here: "+words(j.known())+"; marsadm update-cluster fetches the latest news", "no such resource")
	}
	return j.apply([]op{
		mkdir(j.r.ActualDir(j.host)),
		set(j.r.DevicePath(j.host), string(j.r)),
		set(j.r.ActualPath(j.host, "if-on"), "0"),
	})
}

// checkGuest is pure.
func checkGuest(t macro.Tree, r symlinktree.Resource, host string) error {
	switch {
	case macro.IsMember(t, string(r), host):
		return refuse(fmt.Sprintf("marsadm leave-resource %s", r), "%s is a member of it, not a guest", host)
	case !has(t, r.DevicePath(host)):
		return refuse("", "%s is no guest of it", host)
	}
	return nil
}

func deactivateGuest(_ context.Context, j *job) error {
	if err := checkGuest(j.tree, j.r, j.host); err != nil {
		return err
	}
	batch := []op{del(j.r.DevicePath(j.host))}
	for _, e := range j.tree.List(j.r.ActualDir(j.host)) {
		batch = append(batch, del(e.Path))
	}
	return j.apply(batch)
}
