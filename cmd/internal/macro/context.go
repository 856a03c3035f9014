package macro

import (
	"context"
	"sort"
	"strings"
	"time"

	"mars/logfile"
	"mars/symlinktree"
)

// Tree is what a view needs of a symlink tree; symlinktree.Snapshot is one.
type Tree interface {
	Get(path string) (value string, ok bool)
	Entry(path string) (symlinktree.Entry, bool)
	List(dir string) []symlinktree.Entry
	Dirs(dir string) []string // names, without dir
}

// Mount is one line of the kernel's mount table.
type Mount struct{ Device, Point, FSType, Flags string }

// Context is everything a macro may depend on.
type Context struct {
	Tree Tree
	Node string // the machine this runs on
	Host string // the host that is looked at: Node unless --host
	Res  string // the resource that is looked at, or empty

	Now  symlinktree.Stamp // Lamport time
	Real time.Time         // the machine's clock

	Window    time.Duration // news older than this is no news
	Stuck     time.Duration // replication without progress for this long is stuck
	Timeout   time.Duration // error messages younger than this may vanish by themselves
	Threshold int64         // bytes that are worth a hint

	// Logs lists the logfiles of a resource on this machine.
	Logs func(res string) []logfile.Info
	// DiskPresent reports whether a path on this machine is a usable backing disk.
	DiskPresent func(path string) bool
	// Mounts lists the mounted filesystems of this machine.
	Mounts func() []Mount
	// StatusText is the text of the status files of a resource that match a pattern
	// (debug builds of the original write such).
	StatusText func(res, pattern string) string
	// Warn reports something that belongs on the error output.
	Warn func(line string)

	// What follows matters to texts of the macro language only.

	Lib  *Library          // where macros come from; nil: compiled-in ones only
	Root string            // directory of the tree, /mars if empty
	Vars map[string]string // further variables
	// Sleep pauses, and may put a fresh Tree and clock into the Context. nil: no pause.
	Sleep func(ctx context.Context, d time.Duration) error
	// SetLink writes a link for %setlink; nil: that is an error.
	SetLink func(path, value string) error
	// Wait blocks until a condition of `marsadm wait-resource` holds.
	Wait func(ctx context.Context, res, cond string, limit time.Duration) error
}

// val is V(x) of the reference: the value of a link, empty if missing or deleted.
func (c *Context) val(path string) string {
	v, _ := c.Tree.Get(path)
	return v
}

func (c *Context) num(path string) int64 { return Number(c.val(path)) }

// on is the truth of a switch or state link.
func (c *Context) on(path string) bool { return Number(c.val(path)) != 0 }

// stamp is the Lamport time at which a live link was written, 0 if there is none.
func (c *Context) stamp(path string) symlinktree.Stamp {
	if _, ok := c.Tree.Get(path); !ok {
		return 0
	}
	e, _ := c.Tree.Entry(path)
	return e.Stamp
}

func (c *Context) r() symlinktree.Resource               { return symlinktree.Resource(c.Res) }
func (c *Context) actual(host, name string) string       { return c.r().ActualPath(host, name) }
func (c *Context) todo(host, name string) string         { return c.r().TodoPath(host, name) }
func (c *Context) global(host, name string) string       { return symlinktree.ActualPath(host, name) }
func (c *Context) age(s symlinktree.Stamp) time.Duration { return time.Duration(c.Now - s) }

// designated is the host that the primary link names, or empty. Where nobody can read
// the link marsd keeps to its last value, which shows in who is primary.
func (c *Context) designated() string {
	path := c.r().PrimaryPath()
	p := c.val(path)
	if p == symlinktree.NoHost {
		return ""
	}
	if p != "" && symlinktree.CheckValue(path, p) != nil {
		return c.onlyPrimary()
	}
	return p
}

// onlyPrimary is the member that is actual primary, if it is the only one.
func (c *Context) onlyPrimary() (host string) {
	for _, h := range Members(c.Tree, c.Res) {
		if c.on(c.actual(h, "is-primary")) {
			if host != "" {
				return ""
			}
			host = h
		}
	}
	return host
}

// Number parses the leading decimal integer of a link value as the original does;
// anything else is 0.
func Number(s string) int64 { return symlinktree.LeadingInt(s) }

// Resources lists all resource names that the tree knows, in natural order.
func Resources(t Tree) []string {
	var out []string
	for _, d := range t.Dirs("") {
		if name, ok := symlinktree.HostOf(base(d), "resource"); ok {
			out = append(out, name)
		}
	}
	sort.Slice(out, func(i, j int) bool { return NaturalLess(out[i], out[j]) })
	return out
}

// ResourcesOf lists the resources of which host is a member or a guest: what
// `all` means there.
func ResourcesOf(t Tree, host string) []string {
	var out []string
	for _, r := range Resources(t) {
		if _, ok := t.Get(symlinktree.Resource(r).DevicePath(host)); ok || IsMember(t, r, host) {
			out = append(out, r)
		}
	}
	return out
}

// IsMember reports storage membership: a live data or replay link (reference
// symlink-tree 1.7).
func IsMember(t Tree, res, host string) bool {
	_, data := t.Get(symlinktree.Resource(res).DataPath(host))
	_, replay := t.Get(symlinktree.Resource(res).ReplayPath(host))
	return data || replay
}

// hostsWith lists H of all live links PREFIX-H directly in dir.
func hostsWith(t Tree, dir string, prefixes ...string) []string {
	seen := make(map[string]bool)
	for _, e := range t.List(dir) {
		for _, p := range prefixes {
			if h, ok := symlinktree.HostOf(base(e.Path), p); ok {
				seen[h] = true
			}
		}
	}
	out := make([]string, 0, len(seen))
	for h := range seen {
		out = append(out, h)
	}
	sort.Strings(out)
	return out
}

// Members lists the hosts that store a resource.
func Members(t Tree, res string) []string {
	return hostsWith(t, symlinktree.Resource(res).Dir(), "data", "replay")
}

// Peers lists all hosts that have to do with a resource: members and guests.
func Peers(t Tree, res string) []string {
	return hostsWith(t, symlinktree.Resource(res).Dir(), "data", "replay", "device")
}

// Hosts lists the hosts of the cluster.
func Hosts(t Tree) []string { return hostsWith(t, "ips", "ip") }

// guests have a device link but no disk.
func guests(t Tree, res string) []string {
	var out []string
	for _, h := range hostsWith(t, symlinktree.Resource(res).Dir(), "device") {
		if !IsMember(t, res, h) {
			out = append(out, h)
		}
	}
	return out
}

// NaturalLess orders lv-2 before lv-10.
func NaturalLess(a, b string) bool {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) < len(y)
			}
			if x != y {
				return x < y
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
