package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/cmd/internal/systemd"
	"mars/symlinktree"
)

func systemdVerbs() []verb {
	return []verb{
		{name: "set-systemd-unit", args: "RES START [STOP]", help: "units that follow the primary; DEFAULT takes those that the templates name", res: oneRes, min: 1, max: 2, each: setSystemdUnit},
		{name: "get-systemd-unit", args: "RES", help: "print them", res: oneRes, readOnly: true, anyResource: true, each: getSystemdUnit},
		{name: "set-systemd-want", args: "RES HOST|(none)", help: "where the services shall run", res: oneRes, min: 1, max: 1, each: setSystemdWant},
		{name: "get-systemd-want", args: "RES", help: "print it", res: oneRes, readOnly: true, anyResource: true,
			each: func(_ context.Context, j *job) error { return j.printLink(j.r.SystemdWantPath()) }},
		{name: "systemd-trigger", args: "[RES]", help: "generate units anew and let systemd look at the state", res: optRes, anyResource: true, each: systemdTrigger},
		{name: "systemd-trigger-extern", args: "RES", help: "start or stop the services here, as the state demands (called by units)", hidden: true, res: optRes, anyResource: true, each: systemdExtern},
	}
}

// engine is the template engine as the environment sets it up.
func (j *job) engine() *systemd.Engine {
	get := func(name, def string) string {
		if v := j.env.Getenv(name); v != "" {
			return v
		}
		return def
	}
	var dirs []string
	for _, d := range searchPath(j.env) {
		dirs = append(dirs, filepath.Join(d, get("SYSTEMD_SUBDIR", "systemd-templates")))
	}
	cfg := systemd.Config{
		TemplateDirs: dirs,
		UnitDir:      get("SYSTEMD_TARGET_DIR", ""),
		ScriptDir:    filepath.Join(etcDir(j.env), get("SYSTEMD_SCRIPTS_SUBDIR", "systemd-generated-scripts")),
		Systemctl:    get("SYSTEMCTL", ""),
		Escape:       get("SYSTEMD_ESCAPE", ""),
		Incape:       get("SYSTEMD_INCAPE", ""),
		Dependencies: strings.Fields(j.env.Getenv("SYSTEMD_DEPENDENCIES")),
		Eval:         j.evalTemplate,
		Retry:        25 * j.env.Poll, // 7.5 seconds in all
	}
	return systemd.New(cfg)
}

// systemdOn: services follow resources on this machine.
func (j *job) systemdOn() bool {
	return j.opt.systemd != 0 && j.env.Getenv("SYSTEMD_RECURSIVE_CALL") == "" && j.engine().Available()
}

// templateVars are the variables that templates may use.
func (j *job) templateVars() systemd.Vars {
	c := j.context(string(j.r))
	value := func(m string) string { v, _ := c.Eval(m); return v }
	start, _ := j.tree.Get(j.r.SystemdStartPath())
	stop, _ := j.tree.Get(j.r.SystemdStopPath())
	disk, _ := j.tree.Get(j.r.DataPath(j.host))
	return systemd.Vars{
		"res": string(j.r), "resdir": filepath.Join(j.tree.Root(), j.r.Dir()), "mars": j.tree.Root(), "host": j.host, "node": j.node,
		"cmd": j.command, "dev": value("get-device"), "disk": disk, "start_unit": start, "stop_unit": stop,
		"socket": filepath.Join("/run/mars", string(j.r)+".sock"), "marsadm": marsadmPath(),
	}
}

// marsadmPath is this program, for units that call it.
func marsadmPath() string {
	if p, err := os.Executable(); err == nil {
		return p
	}
	return "marsadm"
}

// units are the names that the resource's links hold.
func units(t macro.Tree, r symlinktree.Resource) (start, stop string) {
	start, _ = t.Get(r.SystemdStartPath())
	if stop, _ = t.Get(r.SystemdStopPath()); stop == "" {
		stop = start
	}
	return start, stop
}

// moves reports whether the services of a resource move with its primary: it has
// units and a place where they are wanted.
func moves(t macro.Tree, r symlinktree.Resource) bool {
	start, _ := units(t, r)
	return start != "" && has(t, r.SystemdWantPath())
}

// unitNames turns the words of set-systemd-unit into names of units; none of both
// takes them away. A stop unit belongs to a start unit.
func (j *job) unitNames() (start, stop string, err error) {
	words := [2]string{j.args[0], j.args[len(j.args)-1]}
	if words[0] == "" && words[1] != "" {
		return "", "", refuse(fmt.Sprintf("marsadm set-systemd-unit %s START %s, or marsadm set-systemd-unit %s \"\" to take both away", j.r, words[1], j.r),
			"a stop unit (%s) without a start unit would never be used", words[1])
	}
	e, vars := j.engine(), j.templateVars()
	var names [2]string
	for i, phase := range []string{"START", "STOP"} {
		if words[i] == "" {
			continue
		}
		name, err := e.Resolve(words[i], phase, vars)
		if err == nil {
			err = symlinktree.ValidValue(name)
		}
		if err != nil {
			return "", "", refuse(`name a unit, or DEFAULT for the one that a template has; "" takes them away`, "%s unit %q: %v", strings.ToLower(phase), words[i], err)
		}
		names[i] = name
	}
	return names[0], names[1], nil
}

func setSystemdUnit(ctx context.Context, j *job) error {
	start, stop, err := j.unitNames()
	if err != nil {
		return err
	}
	if start == "" {
		var batch []op
		for _, p := range []string{j.r.SystemdStartPath(), j.r.SystemdStopPath(), j.r.SystemdWantPath()} {
			if has(j.tree, p) {
				batch = append(batch, del(p))
			}
		}
		if err := j.apply(batch); err != nil {
			return err
		}
		j.removeUnits(ctx)
		return nil
	}
	want, _ := j.tree.Get(j.r.PrimaryPath())
	if want == "" {
		want = symlinktree.NoHost
	}
	batch := []op{set(j.r.SystemdStartPath(), start)}
	if stop != "" {
		batch = append(batch, set(j.r.SystemdStopPath(), stop))
	} else if has(j.tree, j.r.SystemdStopPath()) {
		batch = append(batch, del(j.r.SystemdStopPath()))
	}
	if err := j.apply(append(batch, set(j.r.SystemdWantPath(), want))); err != nil || j.host != j.node || !j.systemdOn() || j.opt.dryRun {
		return err
	}
	unlock, err := j.lockServices(ctx)
	if err != nil {
		return err
	}
	replaced, err := j.generate(ctx)
	unlock()
	if err != nil {
		return err
	}
	if !replaced {
		// marsd may have done it before there was a unit that hears it.
		return j.touchTrigger()
	}
	return j.services(ctx) // what ran under the old names, goes on under the new ones
}

func getSystemdUnit(_ context.Context, j *job) error {
	if start, stop := units(j.tree, j.r); start != "" {
		j.print("%s %s\n", start, stop)
	}
	return nil
}

// checkWant is pure.
func checkWant(t macro.Tree, r symlinktree.Resource, want string, force bool) error {
	if start, _ := units(t, r); start == "" {
		return refuse(fmt.Sprintf("marsadm set-systemd-unit %s START [STOP]", r), "it has no units")
	}
	if want == symlinktree.NoHost {
		return nil
	}
	if !has(t, symlinktree.IPPath(want)) {
		return refuse("hosts of this cluster: "+words(macro.Hosts(t)), "no host %s in the cluster", want)
	}
	if p, _ := t.Get(r.PrimaryPath()); p != want && !force {
		return refuse(fmt.Sprintf("marsadm primary %s on %s moves the services with the role", r, want), "designated primary is %s, not %s", orMissing(p), want)
	}
	return nil
}

func setSystemdWant(ctx context.Context, j *job) error {
	want := j.args[0]
	if want == "none" {
		want = symlinktree.NoHost
	}
	if err := checkWant(j.tree, j.r, want, j.forced()); err != nil {
		return err
	}
	if err := j.apply([]op{set(j.r.SystemdWantPath(), want)}); err != nil {
		return err
	}
	if err := j.services(ctx); err != nil {
		return err
	}
	if j.opt.noWait {
		return nil
	}
	if want == symlinktree.NoHost {
		var links []linkIs
		for _, m := range macro.Members(j.tree, string(j.r)) {
			links = append(links, linkIs{path: j.r.ActualPath(m, "open-count"), want: "0"})
		}
		return j.awaitLinks(ctx, "the services have closed the device", links...)
	}
	return j.awaitLinks(ctx, "the services have opened the device", linkIs{path: j.r.ActualPath(want, "open-count"), want: "1"})
}

// generate writes the units of the resource, and those that watch it, and removes
// those that it had before. It reports whether there were any.
func (j *job) generate(ctx context.Context) (replaced bool, err error) {
	start, stop := units(j.tree, j.r)
	e := j.engine()
	names := []string{start, stop}
	// The unit that reacts to a changed intent, if there is a template for it.
	if name, err := e.Resolve("WATCH", "START", j.templateVars()); err == nil {
		names = append(names, name)
	} else if !errors.Is(err, systemd.ErrNoTemplate) {
		return false, err
	}
	rep, err := e.Generate(ctx, names, j.templateVars())
	for _, n := range rep.Written {
		j.detail("generated unit %s", n)
	}
	if err != nil {
		return false, err
	}
	removed, err := e.Remove(ctx, j.tree.Root(), string(j.r), slices.Concat(rep.Written, rep.Same)...)
	if len(removed) > 0 {
		j.detail("removed units: %s", words(removed))
	}
	return len(removed) > 0, err
}

// wanted decides what the services on host have to do: it is pure. Where they are
// wanted and the device is missing they are left alone (an empty verb): it is on its
// way, or marsd restarts and its clients wait; when it is there, marsd says so.
func wanted(t macro.Tree, r symlinktree.Resource, host string) (verb, unit string) {
	start, stop := units(t, r)
	want, _ := t.Get(r.SystemdWantPath())
	primary, _ := t.Get(r.PrimaryPath())
	if want != host || primary != host {
		return "stop", stop
	}
	if device, _ := t.Get(r.ActualPath(host, "if-on")); !symlinktree.Switch(device) {
		return "", start
	}
	return "start", start
}

// lockServices lets one process at a time look at the state and drive the services:
// one order changes several links, each of which wakes systemd, and the last one to
// act must have seen the last state.
func (j *job) lockServices(ctx context.Context) (unlock func(), err error) {
	return systemd.Lock(ctx, filepath.Join(j.tree.Root(), j.r.Dir()))
}

// services starts or stops the services on this machine as the state demands, and
// reports the outcome. Nothing happens where systemd does not run.
func (j *job) services(ctx context.Context) error {
	start, _ := units(j.tree, j.r)
	if start == "" || j.host != j.node || !j.systemdOn() {
		return nil
	}
	if j.opt.dryRun {
		if verb, unit := wanted(j.tree.Snapshot(), j.r, j.host); verb != "" {
			j.print("DRY_RUN: would %s unit '%s'\n", verb, unit)
		}
		return nil
	}
	unlock, err := j.lockServices(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := j.tree.Rescan(j.r.Dir(), j.r.ActualDir(j.host)); err != nil && !errors.Is(err, symlinktree.ErrVanished) {
		return err
	}
	verb, unit := wanted(j.tree.Snapshot(), j.r, j.host)
	if unit == "" {
		return nil // somebody has taken the units away meanwhile
	}
	_, err = j.generate(ctx)
	switch {
	case err != nil:
	case verb == "start":
		err = j.engine().Start(ctx, unit)
	case verb == "stop":
		err = j.engine().Stop(ctx, unit)
	}
	if verb == "" {
		return err
	}
	code := 0
	var exit *systemd.ExitError
	if errors.As(err, &exit) {
		code = exit.Code
	} else if err != nil {
		code = -1
	}
	report := j.apply([]op{set(j.r.SystemdStatusPath(verb, j.host), strconv.Itoa(code))})
	if err != nil {
		err = refuse(fmt.Sprintf("systemctl status %s; journalctl -u %s; then marsadm systemd-trigger %s", unit, unit, j.r), "%v", err)
	}
	return errors.Join(err, report)
}

// systemdTrigger generates the units and touches the file that path units watch.
func systemdTrigger(ctx context.Context, j *job) error {
	if start, _ := units(j.tree, j.r); start == "" {
		j.detail("%s has no units", j.r)
		j.removeUnits(ctx)
		return nil
	}
	if !j.systemdOn() {
		j.warn("systemd does not run here, or is switched off: nothing to do")
		return nil
	}
	if j.opt.dryRun {
		j.print("DRY_RUN: would generate the units of %s and touch '%s'\n", j.r, filepath.Join(j.tree.Root(), j.r.SystemdTriggerPath()))
		return nil
	}
	unlock, err := j.lockServices(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := j.generate(ctx); err != nil {
		return err
	}
	return j.touchTrigger()
}

// touchTrigger wakes the path unit.
func (j *job) touchTrigger() error {
	return os.WriteFile(filepath.Join(j.tree.Root(), j.r.SystemdTriggerPath()), []byte(j.tree.Clock().Now().String()+"\n"), 0o600)
}

// secondThought is how long after a failure the order may be taken back.
const secondThought = 3 * time.Second

// systemdExtern carries out what is wanted here, and what is wanted by then: systemd
// does not watch a path while the service that it started for it still runs, so that
// an order that comes meanwhile would be lost. A failure is such a case in itself: the
// handover that hears of it takes its order back.
func systemdExtern(ctx context.Context, j *job) error {
	for {
		verb, unit := wanted(j.tree.Snapshot(), j.r, j.host)
		err := j.services(ctx)
		if j.opt.dryRun || !j.systemdOn() {
			return err
		}
		changed := false
		for done := time.Now(); ; {
			if _, scan := j.tree.Rescan(j.r.Dir(), j.r.ActualDir(j.host)); scan != nil && !errors.Is(scan, symlinktree.ErrVanished) {
				return errors.Join(err, scan)
			}
			v, u := wanted(j.tree.Snapshot(), j.r, j.host)
			changed = v != verb || u != unit
			if err == nil || changed || time.Since(done) >= secondThought {
				break
			}
			if stop := pause(ctx, j.env.Poll); stop != nil {
				return errors.Join(err, stop)
			}
		}
		if !changed {
			return err
		}
	}
}

// stopServices makes the services of a resource leave the device, wherever it is
// open, before the role or the disk goes. It reports whether there are any.
func (j *job) stopServices(ctx context.Context, want, holder string) (bool, error) {
	if !moves(j.tree, j.r) || j.opt.systemd == 0 {
		return false, nil
	}
	if err := j.apply([]op{set(j.r.SystemdWantPath(), want)}); err != nil {
		return true, err
	}
	if holder == j.host {
		if err := j.services(ctx); err != nil {
			return true, err
		}
	}
	if holder == "" || j.opt.noWait {
		return true, nil
	}
	return true, j.awaitClosed(ctx, holder)
}

// awaitClosed waits until the services on holder have closed the device. That it
// could not stop them is heard, and not waited out.
func (j *job) awaitClosed(ctx context.Context, holder string) error {
	order, _ := j.tree.Entry(j.r.SystemdWantPath())
	open, status := j.r.ActualPath(holder, "open-count"), j.r.SystemdStatusPath("stop", holder)
	what := "the services on " + holder + " have closed the device"
	var failed error
	err := j.await(ctx, j.where(), what, []string{j.r.Dir(), j.r.ActualDir(holder), path.Dir(status)}, func(t *symlinktree.Snapshot) (bool, string) {
		closed := linkIs{path: open, want: "0"}
		if failed = nil; closed.met(t) {
			return true, ""
		}
		if e, ok := t.Entry(status); ok && e.Stamp > order.Stamp && e.Value != "0" && e.Value != symlinktree.Deleted {
			_, unit := units(t, j.r)
			failed = refuse(fmt.Sprintf("on %s: systemctl status %s; journalctl -u %s", holder, unit, unit),
				"the services on %s could not be stopped (exit code %s), and the device is still open there", holder, e.Value)
		}
		v, _ := t.Get(open)
		return failed != nil, open + " is " + orMissing(v)
	})
	return errors.Join(err, failed)
}

// withServices takes the device away from the services of a resource, which are
// wanted at want from then on, and then does what must not find them there. Unless
// both succeed they are wanted where they were, and go on. What has been written by
// act stays, and with it the services' absence: a wait that follows is none of its
// business.
func (j *job) withServices(ctx context.Context, want, holder string, act func(moving bool) error) error {
	before, _ := j.tree.Get(j.r.SystemdWantPath())
	moving, err := j.stopServices(ctx, want, holder)
	if err == nil {
		err = act(moving)
	}
	if err != nil && moving && !j.opt.dryRun && before != want {
		j.wantAgain(ctx, want, before)
	}
	return err
}

// stayStopped says what becomes of stopped services when the wait after the step that
// needed them stopped fails: the step counts, marsd goes on with it, and services that
// came back would be in its way.
func (j *job) stayStopped(err error, before string) error {
	now, _ := j.tree.Get(j.r.SystemdWantPath())
	if err != nil && before != now && before != symlinktree.NoHost {
		j.warn("%s of %s counts nevertheless, and its services stay stopped; to have them back: marsadm set-systemd-want %s %s", j.command, j.r, j.r, before)
	}
	return err
}

// wantAgain makes services that were to leave for another place go on where they
// were, unless somebody else has decided meanwhile. It also works for a command whose
// time is up, or that has been interrupted, and does not ask for consent.
func (j *job) wantAgain(ctx context.Context, want, before string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serviceGrace)
	defer cancel()
	sub, opt := *j.session, *j.opt
	opt.singlestep = false
	sub.opt = &opt
	again := &job{session: &sub, r: j.r, args: j.args}
	if _, err := j.tree.Rescan(j.r.Dir()); err != nil {
		j.detail("look at the tree: %v", err)
	}
	if now, _ := j.tree.Get(j.r.SystemdWantPath()); now != want {
		return
	}
	if err := again.apply([]op{set(j.r.SystemdWantPath(), before)}); err != nil {
		j.warn("the services of %s are not wanted on %s any more: %v; then: marsadm set-systemd-want %s '%s'", j.r, before, err, j.r, before)
		return
	}
	if before == symlinktree.NoHost {
		j.warn("the services of %s are wanted nowhere, as before", j.r)
		return
	}
	j.warn("the services of %s are wanted on %s again", j.r, before)
	if before != j.host {
		return // marsd there tells systemd
	}
	if err := again.services(ctx); err != nil {
		j.warn("the services of %s could not be started again: %v; look at systemctl, then: marsadm systemd-trigger %s", j.r, err, j.r)
	}
}

// serviceGrace is how long a started service may take to open the device before that
// is remarked upon.
const serviceGrace = 30 * time.Second

// startServices follows a handover to this host.
func (j *job) startServices(ctx context.Context) error {
	if !moves(j.tree, j.r) || j.opt.systemd == 0 {
		return nil
	}
	if err := j.services(ctx); err != nil {
		return err
	}
	if !j.systemdOn() || j.opt.dryRun {
		return nil
	}
	ctx, cancel := j.within(ctx, serviceGrace)
	defer cancel()
	err := j.awaitLinks(ctx, "the services have opened the device", linkIs{path: j.r.ActualPath(j.host, "open-count"), want: "1"})
	var late *timeoutError
	if errors.As(err, &late) {
		j.warn("the services of %s have been started, but nobody has opened the device yet", j.r)
		return nil
	}
	return err
}

// removeUnits takes away what has been generated for a resource that has left, or has
// no units any more.
func (j *job) removeUnits(ctx context.Context) {
	if j.host != j.node || !j.systemdOn() || j.opt.dryRun {
		return
	}
	// Somebody who still starts them has to be through with it.
	unlock, err := j.lockServices(ctx)
	if err == nil {
		defer unlock()
	} else if !errors.Is(err, fs.ErrNotExist) { // a resource that has left may have no directory
		j.warn("generated units of %s: %v", j.r, err)
		return
	}
	removed, err := j.engine().Remove(ctx, j.tree.Root(), string(j.r))
	if err != nil {
		j.warn("generated units of %s: %v; marsadm cron tries again", j.r, err)
	}
	if len(removed) > 0 {
		j.detail("removed units: %s", words(removed))
	}
}

// forgetUnits removes what has been generated here for resources whose units somebody
// has taken away elsewhere.
func (s *session) forgetUnits(ctx context.Context) {
	here := &job{session: s}
	if s.host != s.node || !here.systemdOn() {
		return
	}
	for _, res := range here.engine().Resources(s.tree.Root()) {
		j := &job{session: s, r: symlinktree.Resource(res)}
		if start, _ := units(s.tree, j.r); start == "" {
			j.removeUnits(ctx)
		}
	}
}
