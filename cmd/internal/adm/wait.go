package adm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mars/cmd/internal/macro"
	"mars/symlinktree"
)

// goneAge bounds the age of the own heartbeat: during a wait marsd may be slow, more so than macro.FreshAge; older
// than this means that it is gone and the wait is pointless.
const goneAge = 15 * time.Second

// heartbeatAge is how old the latest sign of life of marsd on this node is.
func heartbeatAge(t macro.Tree, node string, now symlinktree.Stamp) (time.Duration, bool) {
	v, ok := t.Get(symlinktree.ActualPath(node, "time"))
	if !ok {
		return 0, false
	}
	s, err := symlinktree.ParseStamp(v)
	return time.Duration(now - s), err == nil
}

// daemonRuns reports whether marsd on this node is alive.
func daemonRuns(t macro.Tree, node string, now symlinktree.Stamp) bool {
	age, ok := heartbeatAge(t, node, now)
	alive, said := t.Get(symlinktree.ActualPath(node, "alive"))
	return ok && age <= macro.FreshAge && (!said || alive != "0")
}

func (s *session) daemonRuns() bool {
	return daemonRuns(s.tree.Snapshot(), s.node, s.tree.Clock().Now())
}

// notRunning says that the daemon is needed.
func (s *session) notRunning() error {
	seen := "it was never seen"
	if age, ok := heartbeatAge(s.tree.Snapshot(), s.node, s.tree.Clock().Now()); ok {
		seen = fmt.Sprintf("last sign of life %s ago", age.Round(time.Second))
	}
	return refuse(fmt.Sprintf("start it: marsd --root %s --node %s", s.tree.Root(), s.node), "marsd is not running on %s (%s)", s.node, seen)
}

// needDaemon refuses to go on without marsd on this node. In a dry run nothing is
// waited for, so it is not needed.
func (s *session) needDaemon() error {
	if s.opt.dryRun {
		return nil
	}
	// It may have been started a moment ago, in the line above of some script.
	for end := time.Now().Add(min(startGrace, s.opt.timeout)); ; time.Sleep(20 * time.Millisecond) {
		if s.daemonRuns() {
			return nil
		}
		if time.Now().After(end) {
			return s.notRunning()
		}
		if _, err := s.tree.Rescan(symlinktree.ActualDir(s.node)); err != nil {
			return err
		}
	}
}

// startGrace is how long marsd may take from its start to its first sign of life.
const startGrace = time.Second

// await polls the tree until cond holds. cond also tells what is missing. dirs are
// the directories that cond looks at; beside them the own heartbeat is followed,
// because without marsd nothing will change.
func (s *session) await(ctx context.Context, where, what string, dirs []string, cond func(t *symlinktree.Snapshot) (bool, string)) error {
	if s.opt.dryRun {
		s.print("DRY_RUN: would wait until %s\n", what)
		return nil
	}
	limit, ok := ctx.Value(deadlineKey{}).(budget)
	if !ok {
		limit = budget{time.Now().Add(s.opt.timeout), s.opt.timeout}
	}
	dirs = append(dirs, symlinktree.ActualDir(s.node))
	show := s.newProgress(what)
	defer show.done()
	for {
		if _, err := s.tree.Rescan(dirs...); err != nil {
			s.detail("look at the tree: %v", err)
		}
		snap := s.tree.Snapshot()
		done, missing := cond(snap)
		if done {
			return nil
		}
		show.update(missing)
		if age, known := heartbeatAge(snap, s.node, s.tree.Clock().Now()); known && age > goneAge {
			return s.notRunning()
		}
		now := time.Now()
		if !now.Before(limit.end) {
			return &timeoutError{where: where, what: what, last: missing, after: limit.length}
		}
		if err := pause(ctx, min(s.env.Poll, limit.end.Sub(now))); err != nil {
			if errors.Is(err, errDeadline) {
				return &timeoutError{where: where, what: what, last: missing, after: limit.length}
			}
			return fmt.Errorf("%s: interrupted while waiting until %s: %w", where, what, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// progress shows on a terminal what is waited for, when it takes longer.
type progress struct {
	s     *session
	what  string
	begin time.Time
	shown string
}

func (s *session) newProgress(what string) *progress {
	return &progress{s: s, what: what, begin: time.Now()}
}

func (p *progress) update(missing string) {
	if !p.s.env.Terminal || time.Since(p.begin) < time.Second {
		return
	}
	line := fmt.Sprintf("%s waiting until %s: %s", macro.HumanSeconds(time.Since(p.begin).Seconds()), p.what, missing)
	if line != p.shown {
		p.s.err.write("\r\033[K" + line)
		p.shown = line
	}
}

func (p *progress) done() {
	if p.shown != "" {
		p.s.err.write("\r\033[K")
	}
}

// linkIs is the condition that a link has a value; "0" also matches a missing one
// unless literal.
type linkIs struct {
	path, want string
	literal    bool
}

func (l linkIs) met(t macro.Tree) bool {
	v, _ := t.Get(l.path)
	if l.literal {
		return v == l.want
	}
	return (macro.Number(v) != 0) == (macro.Number(l.want) != 0)
}

// awaitLinks waits for several links; all of them are in dirs of one resource.
func (j *job) awaitLinks(ctx context.Context, what string, links ...linkIs) error {
	var dirs []string
	for _, l := range links {
		dirs = append(dirs, l.path[:strings.LastIndexByte(l.path, '/')])
	}
	return j.await(ctx, j.where(), what, dirs, func(t *symlinktree.Snapshot) (bool, string) {
		var missing []string
		for _, l := range links {
			if !l.met(t) {
				v, ok := t.Get(l.path)
				if !ok {
					v = "not there"
				}
				missing = append(missing, l.path+" is "+v)
			}
		}
		return len(missing) == 0, strings.Join(missing, ", ")
	})
}

func (j *job) where() string { return fmt.Sprintf("%s %s on %s", j.command, j.r, j.host) }

// peersOf lists the hosts whose news matter: all that have to do with a resource,
// or all hosts of the cluster; without this node.
func peersOf(t macro.Tree, res, node string) []string {
	list := macro.Hosts(t)
	if res != "" {
		list = macro.Peers(t, res)
	}
	var out []string
	for _, h := range list {
		if h != node {
			out = append(out, h)
		}
	}
	return out
}

// peerState is what a wait for fresh news has found out about a peer.
type peerState int

const (
	peerUnknown peerState = iota // no news yet, but it was there lately
	peerAlive                    // it has published a time after the wait began
	peerDead                     // it has been silent for half a window and more
)

// judgePeer decides by the peer's time link: before is its value when the wait
// began at Lamport time start, after its value now. A peer that has said goodbye
// (alive is 0) is not waited for.
func judgePeer(before, after, alive string, start, now symlinktree.Stamp, window time.Duration) peerState {
	then, _ := symlinktree.ParseStamp(before)
	latest, _ := symlinktree.ParseStamp(after)
	switch {
	case latest > then && latest > start:
		return peerAlive
	case alive == "0", time.Duration(now-latest) > window/2:
		return peerDead
	}
	return peerUnknown
}

// waitCluster asks for fresh news and waits until every peer has answered or is
// known to be dead. It returns the dead ones. With code 8 the peers' whole trees
// are asked for.
func (s *session) waitCluster(ctx context.Context, res string, code int) (dead []string, err error) {
	if err := s.needDaemon(); err != nil {
		return nil, err
	}
	start := s.tree.Clock().Now()
	peers := peersOf(s.tree.Snapshot(), res, s.node)
	before := make(map[string]string)
	var dirs []string
	for _, p := range peers {
		before[p], _ = s.tree.Get(symlinktree.ActualPath(p, "time"))
		dirs = append(dirs, symlinktree.ActualDir(p))
	}
	if err := s.trigger(code); err != nil {
		return nil, err
	}
	again := time.Now().Add(time.Second)
	where := strings.TrimSpace(s.command+" "+res) + " on " + s.node
	err = s.await(ctx, where, "all peers have answered", dirs, func(t *symlinktree.Snapshot) (bool, string) {
		var unknown []string
		dead = dead[:0]
		for _, p := range peers {
			after, _ := t.Get(symlinktree.ActualPath(p, "time"))
			alive, _ := t.Get(symlinktree.ActualPath(p, "alive"))
			switch judgePeer(before[p], after, alive, start, s.tree.Clock().Now(), s.opt.window) {
			case peerDead:
				dead = append(dead, p)
			case peerUnknown:
				unknown = append(unknown, p)
			}
		}
		if len(unknown) > 0 && time.Now().After(again) {
			again = time.Now().Add(time.Second)
			// A trigger that fails now is tried again in a second.
			_ = s.trigger(code)
		}
		return len(unknown) == 0, "no news from " + strings.Join(unknown, " ")
	})
	if err == nil && res != "" && !s.opt.dryRun {
		// What came with the news is in the resource's directories.
		_, err = s.tree.Rescan()
	}
	return dead, err
}
