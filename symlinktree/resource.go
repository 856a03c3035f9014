package symlinktree

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Names of the switches in todo-H (reference symlink-tree 1.4).
const (
	SwitchAttach         = "attach"
	SwitchConnect        = "connect"
	SwitchSync           = "sync"
	SwitchAllowReplay    = "allow-replay"
	SwitchEmergencyLimit = "emergency-limit" // 0..100, not a boolean
	// GiveUp is no switch but the place of a damage in the own log, "log-N-H,OFFSET":
	// what is behind it may be lost. It counts for that very place only.
	GiveUp = "give-up"
)

// LogDamage is the link in actual-H that says where H's own log is damaged, and how
// many bytes of log are behind that: "log-N-H,OFFSET,BYTES", or 0.
const LogDamage = "log-damage"

// LogRecovered is the link in actual-H that is 0 while H has not looked for the real
// end of its own logs since it started.
const LogRecovered = "log-recovered"

// NBDSocketLink is the link in actual-H that names the unix socket of the device. The
// socket is there while if-on is 1.
const NBDSocketLink = "nbd-socket"

// Special values.
const (
	NoHost  = "(none)" // value of primary when nobody is designated
	AnyUUID = "(any)"  // value of uuid while joining: matches every cluster
)

// UUIDPath is the link that identifies the cluster.
const UUIDPath = "uuid"

// IPPath is the membership link of host: its value is ADDR or ADDR:PORT.
func IPPath(host string) string { return "ips/ip-" + host }

// ActualDir and ActualPath are host's cluster-wide status.
func ActualDir(host string) string        { return "actual-" + host }
func ActualPath(host, name string) string { return "actual-" + host + "/" + name }

// TrafficLimit begins the names of the links that limit what a host sends, in KiB/s: HostDefaultsPath of
// TrafficLimit+CLASS to each peer, of TrafficLimit+CLASS-PEER to one, and Resource.HostDefaultsPath of a resource.
const TrafficLimit = "traffic-limit-"

// DefaultsPath is a cluster-wide tunable, HostDefaultsPath one of a single host.
func DefaultsPath(key string) string           { return "defaults/" + key }
func HostDefaultsPath(host, key string) string { return "defaults-" + host + "/" + key }

// TodoGlobalPath is a cluster-wide command.
func TodoGlobalPath(name string) string { return "todo-global/" + name }

// UserspacePath is the administrators' own replicated key-value store.
func UserspacePath(name string) string { return "userspace/" + name }

// LocalPath is a link in the unreplicated directory of host: requests to its
// marsd. CachePath and ProbePath are the other unreplicated directories.
func LocalPath(host, name string) string { return "local-" + host + "/" + name }
func CachePath(host, name string) string { return "cache-" + host + "/" + name }
func ProbePath(host, name string) string { return "probe-" + host + "/" + name }

// Resource is the name of a resource; its methods are the paths below it.
type Resource string

// Dir is the directory of the resource.
func (r Resource) Dir() string { return "resource-" + string(r) }

// Path is the link called name directly in the directory of the resource.
func (r Resource) Path(name string) string { return "resource-" + string(r) + "/" + name }

func (r Resource) SizePath() string    { return r.Path("size") }
func (r Resource) PrimaryPath() string { return r.Path("primary") }
func (r Resource) MaxNrPath() string   { return r.Path("maxnr") }

func (r Resource) DataPath(host string) string         { return r.Path("data-" + host) }
func (r Resource) DevicePath(host string) string       { return r.Path("device-" + host) }
func (r Resource) ActSizePath(host string) string      { return r.Path("actsize-" + host) }
func (r Resource) SyncStatusPath(host string) string   { return r.Path("syncstatus-" + host) }
func (r Resource) SyncPosPath(host string) string      { return r.Path("syncpos-" + host) }
func (r Resource) VerifyStatusPath(host string) string { return r.Path("verifystatus-" + host) }
func (r Resource) ReplayPath(host string) string       { return r.Path("replay-" + host) }
func (r Resource) SkipCheckPath(host string) string    { return r.Path("skip-check-" + host) }
func (r Resource) SyncFromPath(host string) string     { return r.Path("syncfrom-" + host) }
func (r Resource) ConnectPath(host string) string      { return r.Path("connect-" + host) }

// VersionPath is host's node of the version chain for logfile number n.
func (r Resource) VersionPath(n int, host string) string {
	return r.Path(fmt.Sprintf("version-%09d-%s", n, host))
}

// LogPath is the logfile number n written by origin: a regular file, or its tombstone.
func (r Resource) LogPath(n int, origin string) string {
	return r.Path(logName(n, origin))
}

func (r Resource) SystemdStartPath() string   { return r.Path("systemd-start-unit") }
func (r Resource) SystemdStopPath() string    { return r.Path("systemd-stop-unit") }
func (r Resource) SystemdWantPath() string    { return r.Path("systemd-want") }
func (r Resource) SystemdTriggerPath() string { return r.Path("systemd-trigger") }

// UserspacePath is a link in the resource's userspace directory.
func (r Resource) UserspacePath(name string) string { return r.Path("userspace/" + name) }
func (r Resource) LastPrimaryPath() string          { return r.UserspacePath("last-primary") }
func (r Resource) PrevPrimaryPath() string          { return r.UserspacePath("prev-primary") }

// SystemdStatusPath is the exit code of host's last unit start or stop; verb is "start" or "stop".
func (r Resource) SystemdStatusPath(verb, host string) string {
	return r.UserspacePath("systemd-status-" + verb + "-" + host)
}

// TodoDir and TodoPath are the intent for host: Switch* names.
func (r Resource) TodoDir(host string) string        { return r.Path("todo-" + host) }
func (r Resource) TodoPath(host, name string) string { return r.Path("todo-" + host + "/" + name) }

// ActualDir and ActualPath are host's status of this resource.
func (r Resource) ActualDir(host string) string        { return r.Path("actual-" + host) }
func (r Resource) ActualPath(host, name string) string { return r.Path("actual-" + host + "/" + name) }

// LocalPath is unreplicated.
func (r Resource) LocalPath(host, name string) string { return r.Path("local-" + host + "/" + name) }

// DefaultsPath and HostDefaultsPath are tunables of this resource.
func (r Resource) DefaultsPath(key string) string { return r.Path("defaults/" + key) }
func (r Resource) HostDefaultsPath(host, key string) string {
	return r.Path("defaults-" + host + "/" + key)
}

func logName(n int, origin string) string { return fmt.Sprintf("log-%09d-%s", n, origin) }

// HostOf returns H if name is prefix + "-" + H for a valid host name H. The
// prefix is matched as a whole field and the rest is the host as a whole: a
// host "b" never owns a link of a host "a-b" (reference symlink-tree 9.7).
func HostOf(name, prefix string) (host string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok || ValidName(rest) != nil {
		return "", false
	}
	return rest, true
}

// NumberedOf splits prefix-%09d-H (version and log links) into number and host.
func NumberedOf(name, prefix string) (n int, host string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok {
		return 0, "", false
	}
	num, host, ok := strings.Cut(rest, "-")
	if !ok || ValidName(host) != nil {
		return 0, "", false
	}
	n, err := parseSeq(num)
	if err != nil {
		return 0, "", false
	}
	return n, host, true
}

// parseSeq parses the %09d of a logfile number, exactly as it is printed.
func parseSeq(s string) (int, error) {
	if len(s) < 9 {
		return 0, fmt.Errorf("%w: logfile number %q has fewer than 9 digits", ErrValue, s)
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || fmt.Sprintf("%09d", n) != s {
		return 0, fmt.Errorf("%w: logfile number %q", ErrValue, s)
	}
	return int(n), nil
}

// Reader is what the helpers below need: a *Tree or a *Snapshot.
type Reader interface {
	Get(path string) (value string, ok bool)
	List(dir string) []Entry
	Dirs(dir string) []string
}

// Resources lists the resource directories known here, sorted. A deleted
// resource stays listed as long as its directory exists: look at Members.
func Resources(s Reader) []Resource {
	var list []Resource
	for _, d := range s.Dirs("") {
		if name, ok := HostOf(d, "resource"); ok {
			list = append(list, Resource(name))
		}
	}
	return list
}

// Hosts lists the members of the cluster: the live links in ips/, sorted.
func Hosts(s Reader) []string { return hostsIn(s, "ips", "ip") }

// Members lists the hosts with storage for the resource: live data-H, sorted.
func Members(s Reader, r Resource) []string { return hostsIn(s, r.Dir(), "data") }

// Guests lists the hosts that only watch the resource: live device-H without
// data-H, sorted.
func Guests(s Reader, r Resource) []string {
	var list []string
	for _, h := range hostsIn(s, r.Dir(), "device") {
		if _, member := s.Get(r.DataPath(h)); !member {
			list = append(list, h)
		}
	}
	return list
}

func hostsIn(s Reader, dir, prefix string) []string {
	var list []string
	for _, e := range s.List(dir) {
		_, name := splitPath(e.Path)
		if h, ok := HostOf(name, prefix); ok {
			list = append(list, h)
		}
	}
	sort.Strings(list)
	return list
}
