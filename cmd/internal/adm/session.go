package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"mars/cmd/internal/macro"
	"mars/logfile"
	"mars/symlinktree"
)

// session is one run of one command.
type session struct {
	env      Env
	opt      *options
	command  string
	node     string // the machine this runs on
	host     string // on whose behalf: node unless --host
	out, err *lineWriter
	tree     *symlinktree.Tree
}

// lineWriter serialises output of several workers.
type lineWriter struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string // of each line
}

func newLineWriter(w io.Writer) *lineWriter { return &lineWriter{mu: new(sync.Mutex), w: w} }

// prefixed is the same output with something before each line.
func (l *lineWriter) prefixed(prefix string) *lineWriter { return &lineWriter{l.mu, l.w, prefix} }

func (l *lineWriter) write(s string) {
	if l.prefix != "" {
		s = l.prefix + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n"+l.prefix) + "\n"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// An administrator whose terminal is gone cannot be told so.
	_, _ = io.WriteString(l.w, s)
}

func (s *session) print(format string, args ...any) { s.out.write(fmt.Sprintf(format, args...)) }

// done reports success; a dry run has none.
func (s *session) done(format string, args ...any) {
	if !s.opt.dryRun {
		s.print(format, args...)
	}
}

func (s *session) warn(format string, args ...any) {
	s.err.write("WARNING: " + fmt.Sprintf(format, args...) + "\n")
}

// detail says something that only matters to those who asked for it.
func (s *session) detail(format string, args ...any) {
	if s.opt.verbose > 0 {
		s.err.write(fmt.Sprintf(format, args...) + "\n")
	}
}

func (s *session) forced() bool { return s.opt.force > 0 }

// rootDir is the root of the tree, and whether it is the default one.
func rootDir(env Env, opt *options) (dir string, isDefault bool) {
	switch dir := env.Getenv("MARS_ROOT"); {
	case opt.root != "":
		return opt.root, false
	case dir != "":
		return dir, false
	}
	return defaultRoot, true
}

// open reads the tree for a verb.
func (s *session) open(v *verb) error {
	root, isDefault := rootDir(s.env, s.opt)
	var err error
	if s.node, err = nodeName(s.env, s.opt.node); err != nil {
		return err
	}
	if err := symlinktree.ValidName(s.node); err != nil {
		return refuse("give the node another name with --node or MARS_NODE", "this node cannot take part: %v", err)
	}
	if err := checkRoot(s.env, root, isDefault, v.mounted); err != nil {
		return err
	}
	if isDefault && !v.readOnly && !s.opt.dryRun && !isRoot() {
		return refuse("", "only root may change %s", root)
	}
	s.tree, err = symlinktree.Open(root, symlinktree.Options{
		FS: s.env.FS, Node: s.node, Clock: symlinktree.NewClock(s.env.Now), Passive: true, ReadOnly: v.readOnly || s.opt.dryRun,
	})
	if err != nil {
		return err
	}
	return s.checkIdentity(v)
}

// checkIdentity settles on whose behalf the command runs, and that there is a
// cluster for commands that need one.
func (s *session) checkIdentity(v *verb) error {
	s.host = s.node
	if s.opt.host != "" {
		if err := symlinktree.ValidName(s.opt.host); err != nil {
			return usage("--host=%s: %v", s.opt.host, err)
		}
		if _, ok := s.tree.Get(symlinktree.IPPath(s.opt.host)); !ok && !s.forced() {
			return refuse("hosts of this cluster: "+words(symlinktree.Hosts(s.tree)), "--host=%s: no such host in the cluster", s.opt.host)
		}
		if s.host = s.opt.host; s.host != s.node && !v.readOnly {
			s.err.write(fmt.Sprintf("ATTENTION: acting on behalf of host '%s'\n", s.host))
		}
	}
	if v.noCluster || v.readOnly {
		return nil
	}
	switch uuid, ok := s.tree.Get(symlinktree.UUIDPath); {
	case !ok:
		return refuse("marsadm create-cluster makes a new one, marsadm join-cluster PEER joins one", "%s belongs to no cluster yet", s.node)
	case uuid == symlinktree.AnyUUID && !v.joining:
		return refuse("start marsd and let it reach the peer; marsadm wait-cluster tells when it has", "%s has not finished joining its cluster", s.node)
	}
	return nil
}

func words(list []string) string {
	if len(list) == 0 {
		return "(none)"
	}
	return strings.Join(list, " ")
}

// job is the work on one resource.
type job struct {
	*session
	r    symlinktree.Resource
	args []string
}

func (j *job) snap() *symlinktree.Snapshot { return j.tree.Snapshot() }

// context is what views of a resource are computed in.
func (s *session) context(res string) *macro.Context {
	real := s.env.Now()
	return &macro.Context{
		Tree: s.tree.Snapshot(), Node: s.node, Host: s.host, Res: res,
		Now: s.tree.Clock().Now(), Real: real,
		Window: s.opt.window, Stuck: s.opt.stuck, Timeout: s.opt.timeout, Threshold: s.opt.threshold,
		Logs:        s.logsOnce(),
		DiskPresent: s.env.DiskPresent,
		Mounts:      s.env.Mounts,
		Warn:        func(line string) { s.warn("%s", line) },
	}
}

// logsOnce lists logfiles at the first question and remembers the answer, so that
// all numbers of one view are of one moment.
func (s *session) logsOnce() func(res string) []logfile.Info {
	known := make(map[string][]logfile.Info)
	return func(res string) []logfile.Info {
		list, ok := known[res]
		if !ok {
			list = s.logs(symlinktree.Resource(res))
			known[res] = list
		}
		return list
	}
}

// logs lists the logfiles of a resource that are here; none if that fails, which
// is what a resource without a directory looks like.
func (s *session) logs(r symlinktree.Resource) []logfile.Info {
	list, err := logfile.List(s.env.FS, s.tree.Root()+"/"+r.Dir())
	if err != nil {
		s.detail("list logfiles of %s: %v", r, err)
		return nil
	}
	return list
}

// resources expands the RES word of a command: a name, a comma list, or all.
func (s *session) resources(v *verb, word string) ([]string, error) {
	if word == "all" {
		list := macro.ResourcesOf(s.tree, s.host)
		if len(list) == 0 {
			s.warn("resource qualifier 'all' does not match any resource or guest names")
		}
		return list, nil
	}
	var out []string
	for _, name := range strings.Split(word, ",") {
		if err := symlinktree.ValidName(name); err != nil {
			return nil, usage("resource %q: %v", name, err)
		}
		for _, have := range out {
			if have == name {
				return nil, usage("resource %q is named twice", name)
			}
		}
		out = append(out, name)
	}
	if v.single && len(out) > 1 {
		return nil, usage("%s works on one resource at a time", v.name)
	}
	if !v.newResource {
		for _, name := range out {
			if !s.exists(name) {
				return nil, named(refuse("resources known here: "+words(s.known())+"; marsadm wait-cluster fetches the latest news",
					"no such resource"), s.command, name, s.host)
			}
		}
	}
	sortNatural(out)
	return out, nil
}

// known lists the resources of the cluster of which more than the name is left.
func (s *session) known() []string {
	var out []string
	for _, r := range macro.Resources(s.tree) {
		if s.exists(r) {
			out = append(out, r)
		}
	}
	return out
}

func (s *session) exists(res string) bool {
	r := symlinktree.Resource(res)
	for _, e := range s.tree.List(r.Dir()) {
		if e.Path != r.MaxNrPath() {
			return true
		}
	}
	return false
}

func sortNatural(list []string) {
	for i := range list {
		for k := i; k > 0 && macro.NaturalLess(list[k], list[k-1]); k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
}

// each runs the verb on every resource: one after the other, or several at once
// with --parallel. A resource that fails does not keep the others from being done.
func (s *session) each(ctx context.Context, v *verb, list, args []string) error {
	if !v.readOnly && len(list) > 1 {
		if err := s.runHooks(ctx, "all-pre", strings.Join(list, ","), args); err != nil {
			return named(err, s.command, "", s.host)
		}
	}
	errs := s.eachOne(ctx, v, list, args)
	var all failures
	for _, err := range errs {
		if err != nil {
			all = append(all, err)
		}
	}
	if !v.readOnly && len(list) > 1 && len(all) == 0 {
		return named(s.runHooks(ctx, "all-post", strings.Join(list, ","), args), s.command, "", s.host)
	}
	switch {
	case len(all) == 0:
		return nil
	case len(list) == 1:
		return all[0]
	}
	return all
}

// eachOne returns the outcome of each resource.
func (s *session) eachOne(ctx context.Context, v *verb, list, args []string) []error {
	errs := make([]error, len(list))
	workers := s.opt.parallel
	if workers < 0 || workers > len(list) {
		workers = len(list)
	}
	run := func(i int) {
		sub := *s
		switch {
		case workers > 1:
			prefix := "CHILD " + list[i] + ": "
			sub.out, sub.err = s.out.prefixed(prefix), s.err.prefixed(prefix)
		case len(list) > 1:
			s.print("%s", s.context(list[i]).ResourceHeading())
		}
		errs[i] = sub.one(ctx, v, list[i], args)
	}
	if workers <= 1 {
		for i := range list {
			if ctx.Err() != nil {
				errs[i] = named(context.Cause(ctx), s.command, list[i], s.host)
				continue
			}
			run(i)
		}
	} else {
		var wg sync.WaitGroup
		next := make(chan int)
		for range workers {
			wg.Go(func() {
				for i := range next {
					run(i)
				}
			})
		}
		for i := range list {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	return errs
}

// one runs the verb on one resource, after the checks that all verbs share.
func (s *session) one(ctx context.Context, v *verb, res string, args []string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	j := &job{session: s, r: symlinktree.Resource(res), args: args}
	err := checkMember(s.tree.Snapshot(), j.r, s.host, v, s.forced())
	if err == nil {
		c := s.context(res)
		if split := macro.DetectSplit(c.Tree, res); split.Found && !v.newResource {
			for _, line := range c.SplitLines(split) {
				s.warn("%s", line)
			}
		}
		err = j.hooked(ctx, v)
	}
	return named(err, s.command, res, s.host)
}

// hooked runs the verb between the hooks of the administrator.
func (j *job) hooked(ctx context.Context, v *verb) error {
	if v.readOnly {
		return v.each(ctx, j)
	}
	if err := j.runHooks(ctx, "pre", string(j.r), j.args); err != nil {
		return err
	}
	if err := v.each(ctx, j); err != nil {
		return err
	}
	return j.runHooks(ctx, "post", string(j.r), j.args)
}

// checkMember refuses commands on a resource that the host does not store, or
// whose disk has become too small.
func checkMember(t macro.Tree, r symlinktree.Resource, host string, v *verb, force bool) error {
	if v.anyResource || v.newResource || force && (v.name == "leave-resource" || leftOf(t, r, host)) {
		return nil
	}
	_, data := t.Get(r.DataPath(host))
	_, device := t.Get(r.DevicePath(host))
	if !data && !device {
		return refuse("members: "+words(macro.Members(t, string(r)))+fmt.Sprintf("; marsadm join-resource %s DISK makes this host one", r),
			"%s is not a member of it", host)
	}
	act, _ := t.Get(r.ActSizePath(host))
	size, _ := t.Get(r.SizePath())
	if have, want := macro.Number(act), macro.Number(size); act != "" && have < want {
		disk, _ := t.Get(r.DataPath(host))
		return refuse("enlarge the disk", "its disk %s has %d bytes, fewer than the resource's %d", disk, have, want)
	}
	return nil
}

// leftOf reports whether there is anything of host in a resource: only then can
// force be meant for it.
func leftOf(t macro.Tree, r symlinktree.Resource, host string) bool {
	return slices.Contains(macro.Peers(t, string(r)), host) || len(t.List(r.TodoDir(host))) > 0 || len(t.List(r.ActualDir(host))) > 0
}

// errDeadline is the cause of a context that --timeout has ended.
var errDeadline = errors.New("timeout")

// deadline is the budget of one command on one resource. Waits check it
// themselves; the context ends a moment later, for whatever blocks otherwise.
func (s *session) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.opt.watch > 0 {
		return context.WithCancel(ctx) // goes on until it is interrupted
	}
	return s.within(ctx, s.opt.timeout)
}

// within shortens the budget of ctx to d.
func (s *session) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	b := budget{time.Now().Add(d), d}
	if old, ok := ctx.Value(deadlineKey{}).(budget); ok && old.end.Before(b.end) {
		b = old
	}
	ctx = context.WithValue(ctx, deadlineKey{}, b)
	return context.WithDeadlineCause(ctx, b.end.Add(time.Second), errDeadline)
}

// budget is the time that a command may take.
type budget struct {
	end    time.Time
	length time.Duration
}

type deadlineKey struct{}
