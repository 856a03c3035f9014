package cluster

import (
	"fmt"
	"path"
	"sort"
	"strings"

	"mars/logfile"
	"mars/symlinktree"
)

// versions is the hash chain of one resource as the tree shows it: what every
// member says about every log (reference symlink-tree 4.8, 4.12).
type versions struct {
	bySeq map[int]map[string]symlinktree.Version // sequence -> host -> link
}

func readVersions(s *symlinktree.Snapshot, r symlinktree.Resource) versions {
	v := versions{bySeq: make(map[int]map[string]symlinktree.Version)}
	for _, e := range s.List(r.Dir()) {
		seq, host, ok := symlinktree.NumberedOf(path.Base(e.Path), "version")
		if !ok {
			continue
		}
		val, err := symlinktree.ParseVersion(e.Value)
		if err != nil {
			continue // P13: ignored here; the tree reports it
		}
		if v.bySeq[seq] == nil {
			v.bySeq[seq] = make(map[string]symlinktree.Version)
		}
		v.bySeq[seq][host] = val
	}
	return v
}

func nameOf(v symlinktree.Version) logfile.Name { return logfile.Name{Seq: v.Seq, Host: v.Origin} }

// holds reports up to which position host says to have the log.
func (v versions) holds(host string, log logfile.Name) (int64, bool) {
	l, ok := v.bySeq[log.Seq][host]
	if !ok || nameOf(l) != log {
		return 0, false
	}
	return l.Pos, true
}

// agree says whether host's history of log can be that of its writer, as far as both have said
// what the log builds on: the digest there covers everything before.
func (v versions) agree(host string, log logfile.Name) bool {
	mine, theirs := v.bySeq[log.Seq][host], v.bySeq[log.Seq][log.Host]
	return nameOf(mine) != log || nameOf(theirs) != log || mine.Prev == "" || theirs.Prev == "" || mine.Prev == theirs.Prev
}

// published is the largest length of the log that anybody vouches for.
func (v versions) published(log logfile.Name) int64 {
	var n int64
	for host := range v.bySeq[log.Seq] {
		if pos, ok := v.holds(host, log); ok {
			n = max(n, pos)
		}
	}
	return n
}

// lastOf is the newest log that origin wrote, with the length that somebody vouches
// for; zero if there is none.
func (v versions) lastOf(origin string) (last logfile.Position) {
	for _, hosts := range v.bySeq {
		for _, l := range hosts {
			if l.Origin == origin && l.Seq >= last.Log.Seq {
				name := nameOf(l)
				last = logfile.Position{Log: name, Offset: v.published(name)}
			}
		}
	}
	return last
}

// own lists the logs that origin wrote, in order, up to the newest one, each with the
// length at which it was left; of the newest, what anybody vouches for.
func (v versions) own(origin string) (list []logfile.Position) {
	last := v.lastOf(origin)
	for log := last.Log; log.Host == origin; {
		list = append([]logfile.Position{last}, list...)
		l, ok := v.bySeq[log.Seq][origin]
		prev, known := l.Predecessor()
		if !ok || !known || nameOf(l) != log || prev.Seq >= log.Seq {
			break
		}
		log = nameOf(prev)
		last = logfile.Position{Log: log, Offset: prev.Pos}
	}
	return list
}

// successors lists the logs that somebody has started after log, with the end of
// log that they build on.
func (v versions) successors(log logfile.Name) map[logfile.Name]symlinktree.Version {
	out := make(map[logfile.Name]symlinktree.Version)
	for seq, hosts := range v.bySeq { // numbers may be left out, see lead
		for _, l := range hosts {
			if prev, ok := l.Predecessor(); ok && seq > log.Seq && nameOf(prev) == log {
				out[nameOf(l)] = prev
			}
		}
	}
	return out
}

// follows tells whether log continues the one called from, directly or by way of others.
func (v versions) follows(from, log logfile.Name) bool {
	seen := map[logfile.Name]bool{from: true}
	for list := []logfile.Name{from}; len(list) > 0; list = list[1:] {
		for next := range v.successors(list[0]) {
			if next == log {
				return true
			}
			if !seen[next] && next.Seq < log.Seq {
				seen[next] = true
				list = append(list, next)
			}
		}
	}
	return false
}

// leftAt is the length of log on which its successor next builds, as the others than node say;
// -1 if none does.
func (v versions) leftAt(log, next logfile.Name, node string) int64 {
	at := int64(-1)
	for host, l := range v.bySeq[next.Seq] {
		if host == node || nameOf(l) != next {
			continue
		}
		if prev, ok := l.Predecessor(); ok && nameOf(prev) == log && (at < 0 || prev.Pos < at) {
			at = prev.Pos
		}
	}
	return at
}

// final is the length at which log was left for its successor, -1 while it may
// grow. Where two branches left it, the earlier one: nothing may be copied past a
// fork (scenario V14).
func (v versions) final(log logfile.Name) int64 {
	end := int64(-1)
	for _, prev := range v.successors(log) {
		if end < 0 || prev.Pos < end {
			end = prev.Pos
		}
	}
	return end
}

type nextState int

const (
	nextNone   nextState = iota // nobody has started another log
	nextFound                   // exactly one, and it builds on what we have
	nextBehind                  // it builds on a later end than we have
	nextWait                    // our own version link does not say yet what we have
	nextSplit                   // more than one, or one that left this log before our end
)

// next finds the log after log for a node that has taken in all up to end.
func (v versions) next(log logfile.Name, node string, end int64) (logfile.Name, nextState) {
	succ := v.successors(log)
	if len(succ) > 0 && v.final(log) > end {
		return logfile.Name{}, nextBehind
	}
	if len(succ) > 1 {
		return logfile.Name{}, nextSplit
	}
	own := v.bySeq[log.Seq][node]
	var found logfile.Name
	for name, prev := range succ {
		if prev.Pos < end {
			return name, nextSplit // it was left before our end
		}
		if nameOf(own) != log || own.Pos != end {
			return name, nextWait
		}
		if own.Head() != prev.Head() {
			return name, nextSplit // same length, other history
		}
		found = name
	}
	if found.IsZero() {
		// A log of a later number that builds on something else is another branch.
		for seq, hosts := range v.bySeq {
			for _, l := range hosts {
				prev, ok := l.Predecessor()
				if seq == log.Seq+1 && l.Prev != "" && nameOf(l) != log || ok && seq > log.Seq && prev.Seq < log.Seq {
					return nameOf(l), nextSplit
				}
			}
		}
		return found, nextNone
	}
	return found, nextFound
}

// describe says who continued log and where, for the split brain message.
func (v versions) describe(log logfile.Name) string {
	var parts []string
	for name, prev := range v.successors(log) {
		parts = append(parts, fmt.Sprintf("%s continues from %d", name, prev.Pos))
	}
	if len(parts) == 0 {
		for host, l := range v.bySeq[log.Seq+1] {
			parts = append(parts, fmt.Sprintf("%s says %s builds on %q", host, nameOf(l), l.Prev))
		}
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}
