package macro

import (
	"mars/logfile"
	"mars/symlinktree"
)

// amounts is the log arithmetic of one host (reference marsadm.md 8.2): how many
// bytes of log there are, are here, and are on its disk. All positions count from
// the start of the oldest log that is still known without a gap.
type amounts struct {
	ok                                bool // there is a replay position to count from
	replayNr, baseNr, fetchNr, workNr int
	replayPos, fetchPos, workSize     int64
}

func (a amounts) fetchRest() int64  { return max(0, a.workSize-a.fetchPos) }
func (a amounts) replayRest() int64 { return max(0, a.fetchPos-a.replayPos) }
func (a amounts) workRest() int64   { return max(0, a.workSize-a.replayPos) }

// Unfetched is how many bytes of log are known to exist that host does not have,
// and how many seconds they took the primary; negative if that is not known.
func (c *Context) Unfetched(host string) (bytes int64, seconds float64) {
	seconds, _ = c.lag(host, "fetch")
	return c.amounts(host).fetchRest(), seconds
}

// logSizes is what is known about the logs of a resource: by number and origin,
// the bytes that the looked-at host has, and the bytes that anybody vouches for.
type logSizes struct {
	here, known map[int]map[string]int64
}

func (m logSizes) put(to map[int]map[string]int64, n int, origin string, size int64) {
	if to[n] == nil {
		to[n] = make(map[string]int64)
	}
	to[n][origin] = max(to[n][origin], size)
}

// most is the size of log number n: of the given origin if it has one, else of
// the largest one.
func most(from map[int]map[string]int64, n int, origin string) (size int64, ok bool) {
	byOrigin := from[n]
	if v, exact := byOrigin[origin]; exact {
		return v, true
	}
	for _, v := range byOrigin {
		size = max(size, v)
	}
	return size, len(byOrigin) > 0
}

// logSizes gathers them. On this machine the files count; what another host has
// is what its own version links say.
func (c *Context) logSizes(host string) logSizes {
	m := logSizes{make(map[int]map[string]int64), make(map[int]map[string]int64)}
	var files []logfile.Info
	if c.Logs != nil {
		files = c.Logs(c.Res)
	}
	for _, f := range files {
		m.put(m.known, f.Name.Seq, f.Name.Host, f.Size)
		if host == c.Node {
			m.put(m.here, f.Name.Seq, f.Name.Host, f.Size)
		}
	}
	for _, e := range c.Tree.List(c.r().Dir()) {
		n, by, ok := symlinktree.NumberedOf(base(e.Path), "version")
		if !ok || n == 0 {
			continue
		}
		v, err := symlinktree.ParseVersion(e.Value)
		if err != nil || v.Seq != n {
			continue
		}
		m.put(m.known, n, v.Origin, v.Pos)
		if host != c.Node && by == host {
			m.put(m.here, n, v.Origin, v.Pos)
		}
	}
	return m
}

func (c *Context) amounts(host string) amounts {
	rep, err := symlinktree.ParseReplay(c.val(c.r().ReplayPath(host)))
	if err != nil {
		return amounts{}
	}
	m := c.logSizes(host)
	a := amounts{ok: true, replayNr: rep.Seq, baseNr: rep.Seq, fetchNr: rep.Seq, workNr: rep.Seq}
	older := int64(0)
	for n := rep.Seq - 1; n > 0; n-- {
		size, ok := most(m.known, n, "")
		if !ok {
			break
		}
		older += size
		a.baseNr = n
	}
	a.replayPos = older + rep.Min

	a.fetchPos = a.replayPos
	if size, ok := m.here[rep.Seq][rep.Origin]; ok && size >= rep.Min {
		a.fetchPos = older + size
		for n := rep.Seq + 1; ; n++ {
			size, ok := most(m.here, n, rep.Origin)
			if !ok {
				break
			}
			a.fetchPos += size
			a.fetchNr = n
		}
	}

	a.workSize = a.replayPos
	if size, ok := m.known[rep.Seq][rep.Origin]; ok {
		a.workSize = older + max(size, rep.Min)
	}
	for n := rep.Seq + 1; ; n++ {
		size, ok := most(m.known, n, rep.Origin)
		if !ok {
			break
		}
		a.workSize += size
		a.workNr = n
	}
	a.workSize = max(a.workSize, a.fetchPos)
	return a
}

// syncAmounts are the bytes of the disk that are synced, and that have to be.
func (c *Context) syncAmounts(host string) (pos, size int64) {
	return c.num(c.r().SyncStatusPath(host)), c.num(c.r().SizePath())
}

func (c *Context) syncRest(host string) int64 {
	pos, size := c.syncAmounts(host)
	return max(0, size-pos)
}

// consistent reports whether the disk of host is, or at any moment could be stopped
// at, a prefix of the log: the sync is over, and replay has passed the dirty zone
// that the primary's disk had when the last chunk was read. With strict, a primary
// counts only when everything is written back. So does a disk that is detached, or on
// which nothing is replayed at the moment: there the dirty zone stays as it is.
func (c *Context) consistent(host string, strict bool) bool {
	rep, err := symlinktree.ParseReplay(c.val(c.r().ReplayPath(host)))
	if err != nil || c.syncRest(host) > 0 {
		return false
	}
	if rep.Len > 0 {
		primary := c.on(c.actual(host, "is-primary"))
		switch {
		case !c.on(c.actual(host, "is-attached")), strict && primary:
			return false
		case !primary && (!c.on(c.actual(host, "is-replaying")) || !c.alive(host)):
			return false // nobody is about to leave the dirty zone
		}
	}
	text, ok := c.Tree.Get(c.r().SyncPosPath(host))
	if !ok {
		return true
	}
	pos, err := symlinktree.ParseReplay(text)
	if err != nil {
		return false
	}
	pos.Min, pos.Len = pos.End(), 0
	return symlinktree.CompareReplay(rep, pos) >= 0
}

// orphan: the log that the replay link names is not here, or is too short.
func (c *Context) orphan(host string) bool {
	if host != c.Node || c.Logs == nil || c.on(c.actual(host, "is-primary")) {
		return false
	}
	rep, err := symlinktree.ParseReplay(c.val(c.r().ReplayPath(host)))
	if err != nil {
		return true
	}
	for _, f := range c.Logs(c.Res) {
		if f.Name.Seq == rep.Seq && f.Name.Host == rep.Origin {
			return f.Size < rep.Min
		}
	}
	return true
}

// rate is in bytes a second; kind is if, sync, file or replay. A host that is not
// heard does not tell any more how fast it is.
func (c *Context) rate(host, kind string) int64 { return c.speed(host, "amount-"+kind+"_rate") * 1024 }

// opsRate is in operations a second.
func (c *Context) opsRate(host, kind string) int64 { return c.speed(host, "ops-"+kind+"_rate") }

func (c *Context) speed(host, link string) int64 {
	if !c.alive(host) {
		return 0
	}
	return max(0, c.num(c.actual(host, link)))
}

// remain is rest/rate in seconds: 0 when done, -1 when unknown.
func remain(rest, rate int64) float64 {
	switch {
	case rest <= 0:
		return 0
	case rate <= 0:
		return -1
	}
	return float64(rest) / float64(rate)
}

// stampOf is when a host last made progress: in replaying, or (fetch, work) in
// knowing more of the log.
func (c *Context) stampOf(host, what string) symlinktree.Stamp {
	switch what {
	case "replay":
		return c.stamp(c.r().ReplayPath(host))
	case "alive":
		s, _ := symlinktree.ParseStamp(c.val(c.global(host, "time")))
		return s
	}
	var newest symlinktree.Stamp
	for _, e := range c.Tree.List(c.r().Dir()) {
		if _, h, ok := symlinktree.NumberedOf(base(e.Path), "version"); ok && h == host {
			newest = max(newest, e.Stamp)
		}
	}
	return newest
}
