package symlinktree

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Features is the value of actual-H/features and usable: what H's daemon can do.
type Features struct {
	Version  int    // of the feature set: 4
	Strategy int    // of the protocol: 5; from 5 on marsadm uses neither ssh nor rsync
	Mask     uint32 // digests and compressions, bits as in the log format
}

func (f Features) String() string { return fmt.Sprintf("%d,%d,0x%08x", f.Version, f.Strategy, f.Mask) }

// ParseFeatures is the inverse of String; old values have only the first fields.
func ParseFeatures(s string) (Features, error) {
	fields := strings.Split(s, ",")
	var f Features
	err := fmt.Errorf("%w: features %.80q: want VERSION,STRATEGY,0xMASK", ErrValue, s)
	if len(fields) > 3 {
		return f, err
	}
	for i, part := range fields {
		n, e := ParseInt(part)
		if i == 2 {
			f.Mask, e = ParseMask(part)
		} else if i == 1 {
			f.Strategy = int(n)
		} else {
			f.Version = int(n)
		}
		if e != nil || n > 1<<16 {
			return Features{}, err
		}
	}
	return f, nil
}

// ParseMask parses 0x%08x as in defaults/*.
func ParseMask(s string) (uint32, error) {
	hex, ok := strings.CutPrefix(s, "0x")
	n, err := strconv.ParseUint(hex, 16, 32)
	if !ok || err != nil {
		return 0, fmt.Errorf("%w: mask %.40q: want 0x and up to 8 hex digits", ErrValue, s)
	}
	return uint32(n), nil
}

// FormatMask is the inverse of ParseMask.
func FormatMask(m uint32) string { return fmt.Sprintf("0x%08x", m) }

// ReplayCode is the value of actual-H/replay-code: CODE[,MARSCODE[,0xBYTE]].
type ReplayCode struct {
	Code     int // 0 running, 1 finished, 2 incomplete, < 0 -errno
	MarsCode int // 100xx, 0 if absent
	Byte     int // the repeated byte of a damaged region, -1 if absent
}

func (c ReplayCode) String() string {
	switch {
	case c.Byte >= 0:
		return fmt.Sprintf("%d,%d,0x%02x", c.Code, c.MarsCode, c.Byte)
	case c.MarsCode != 0:
		return fmt.Sprintf("%d,%d", c.Code, c.MarsCode)
	}
	return strconv.Itoa(c.Code)
}

// ParseReplayCode is the inverse of String.
func ParseReplayCode(s string) (ReplayCode, error) {
	bad := fmt.Errorf("%w: replay code %.80q: want CODE[,MARSCODE[,0xBYTE]]", ErrValue, s)
	f := strings.Split(s, ",")
	c := ReplayCode{Byte: -1}
	var err error
	if c.Code, err = strconv.Atoi(f[0]); err != nil || len(f) > 3 {
		return ReplayCode{}, bad
	}
	if len(f) > 1 {
		if c.MarsCode, err = strconv.Atoi(f[1]); err != nil {
			return ReplayCode{}, bad
		}
	}
	if len(f) > 2 {
		b, err := ParseMask(f[2])
		if err != nil || b > 0xff {
			return ReplayCode{}, bad
		}
		c.Byte = int(b)
	}
	return c, nil
}

// MessageOK is the value of a msg-* link whose condition does not hold.
const MessageOK = "OK"

// Message is the value of a msg-* link: MessageOK, or the stamps of when the
// condition was first seen, and a text.
type Message struct {
	Real    Stamp // wall clock
	Lamport Stamp
	Text    string // "" means OK
}

func (m Message) String() string {
	if m.Text == "" {
		return MessageOK
	}
	return m.Real.String() + " " + m.Lamport.String() + " " + m.Text
}

// ParseMessage is the inverse of String.
func ParseMessage(s string) (Message, error) {
	if s == MessageOK {
		return Message{}, nil
	}
	f := strings.SplitN(s, " ", 3)
	if len(f) < 3 || f[2] == "" {
		return Message{}, fmt.Errorf("%w: message %.80q: want OK or two stamps and a text", ErrValue, s)
	}
	m := Message{Text: f[2]}
	var err error
	if m.Real, err = ParseStamp(f[0]); err == nil {
		m.Lamport, err = ParseStamp(f[1])
	}
	if err != nil {
		return Message{}, fmt.Errorf("message: %w", err)
	}
	return m, nil
}

// VerifyStatus is the value of verifystatus-H: chunks found equal and different.
type VerifyStatus struct{ Same, Different int64 }

func (v VerifyStatus) String() string { return fmt.Sprintf("%d,%d", v.Same, v.Different) }

// ParseVerifyStatus is the inverse of String.
func ParseVerifyStatus(s string) (v VerifyStatus, err error) {
	a, b, _ := strings.Cut(s, ",")
	if v.Same, err = ParseInt(a); err == nil {
		v.Different, err = ParseInt(b)
	}
	if err != nil {
		return VerifyStatus{}, fmt.Errorf("verify status %.80q: %w", s, err)
	}
	return v, nil
}

// ParseAddr turns the value of an ips/ip-H link, ADDR or ADDR:PORT, into
// host:port for dialling. An IPv6 address with a port stands in brackets.
func ParseAddr(value string, defaultPort int) (string, error) {
	port := strconv.Itoa(defaultPort)
	host := value
	if h, p, err := net.SplitHostPort(value); err == nil {
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("%w: address %.80q: bad port", ErrValue, value)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", fmt.Errorf("%w: address %.80q: want an IP address, or one with :PORT", ErrValue, value)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// CheckValue says why value cannot be what the link at path is meant to hold.
// Unknown names may hold anything. Merge does not ask: a value that one node
// cannot read must still be the same on all of them.
func CheckValue(path, value string) error {
	if err := ValidPath(path); err != nil {
		return err
	}
	if err := ValidValue(value); err != nil || value == Deleted {
		return err
	}
	check := checkerOf(path)
	if check == nil {
		return nil
	}
	if err := check(value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

type checker func(value string) error

func checkerOf(path string) checker {
	dir, name := splitPath(path)
	parent, leaf := splitPath(dir)
	switch {
	case dir == "":
		if name == UUIDPath {
			return func(v string) error {
				if v != AnyUUID && !strings.Contains(v, "_") {
					return fmt.Errorf("%w: uuid %.80q: want HOST_STAMP", ErrValue, v)
				}
				return nil
			}
		}
	case dir == "ips":
		return func(v string) error { _, err := ParseAddr(v, 1); return err }
	case dirClass(dir) == classResource:
		return resourceChecker(name)
	case namedAfter(leaf, "actual-"):
		if parent == "" {
			return hostStatus[name]
		}
		return resourceStatusChecker(name)
	case namedAfter(leaf, "todo-") && parent != "":
		return todoChecker(name)
	case leaf == "defaults" && parent == "":
		return func(v string) error { _, err := ParseMask(v); return err }
	case namedAfter(leaf, "defaults-") && parent == "" && (name == "sync-limit" || strings.HasPrefix(name, TrafficLimit)):
		return checkLeadingInt
	case namedAfter(leaf, "defaults-") && strings.HasPrefix(name, TrafficLimit):
		return checkLeadingInt
	case leaf == "userspace" && (name == "last-primary" || name == "prev-primary"):
		return checkHost
	}
	return nil
}

func resourceChecker(name string) checker {
	switch name {
	case "size", "maxnr":
		return checkInt
	case "primary", "systemd-want":
		return checkHost
	case SyncModeLink:
		return checkSyncMode
	}
	if n, _, ok := NumberedOf(name, "version"); ok {
		return func(v string) error {
			parsed, err := ParseVersion(v)
			if err == nil && parsed.Seq != n {
				err = fmt.Errorf("%w: version %.160q is of another logfile number", ErrValue, v)
			}
			return err
		}
	}
	for prefix, check := range perHost {
		if _, ok := HostOf(name, prefix); ok {
			return check
		}
	}
	return nil
}

// perHost has the links named PREFIX-HOST of a resource.
var perHost = map[string]checker{
	"actsize":      checkInt,
	"syncstatus":   checkInt,
	"syncpos":      checkReplay,
	"replay":       checkReplay,
	"verifystatus": func(v string) error { _, err := ParseVerifyStatus(v); return err },
	"skip-check":   checkLeadingInt,
	"syncfrom":     checkHost,
	"device": func(v string) error {
		if strings.Contains(v, "/") {
			return fmt.Errorf("%w: device %.80q: want a bare name", ErrValue, v)
		}
		return nil
	},
}

// hostStatus has the links of actual-H.
var hostStatus = map[string]checker{
	"time":                 checkStamp,
	"read-stamp":           checkStamp,
	"alive":                checkBool,
	"features":             checkFeatures,
	"usable":               checkFeatures,
	"emergency":            checkInt,
	"rest-space":           checkInt,
	"total-space":          checkInt,
	"used-log-digest":      checkInt,
	"used-net-digest":      checkInt,
	"used-log-compression": checkInt,
	"used-net-compression": checkInt,
	"tree":                 checkLeadingInt,
	"marsadm-version":      checkLeadingInt,
}

func resourceStatusChecker(name string) checker {
	switch {
	case name == "replay-code":
		return func(v string) error { _, err := ParseReplayCode(v); return err }
	case name == "if-completion-stamp":
		return checkStamp
	case name == SyncModeLink:
		return checkSyncMode
	case name == SyncDegradedLink:
		return checkStamp
	case strings.HasPrefix(name, "is-"), name == "has-emergency", name == "if-on":
		return checkBool
	case name == "disk-error", name == "if-state":
		return checkLeadingInt
	case name == "open-count", name == SyncWaitingLink, name == "if-flying", strings.HasPrefix(name, "ops-"), strings.HasPrefix(name, "amount-"):
		return checkInt
	case strings.HasPrefix(name, "msg-"):
		return func(v string) error { _, err := ParseMessage(v); return err }
	}
	return nil
}

func todoChecker(name string) checker {
	switch name {
	case SwitchAttach, SwitchConnect, SwitchSync, SwitchAllowReplay, ReplayDelay:
		return checkLeadingInt
	case SwitchEmergencyLimit:
		return func(v string) error {
			n, err := ParseInt(v)
			if err == nil && n > 100 {
				err = fmt.Errorf("%w: %d is not a percentage", ErrValue, n)
			}
			return err
		}
	}
	return nil
}

func checkInt(v string) error      { _, err := ParseInt(v); return err }
func checkSyncMode(v string) error { _, err := ParseSyncMode(v); return err }
func checkReplay(v string) error   { _, err := ParseReplay(v); return err }
func checkStamp(v string) error    { _, err := ParseStamp(v); return err }
func checkFeatures(v string) error { _, err := ParseFeatures(v); return err }

func checkBool(v string) error {
	if v != "0" && v != "1" {
		return fmt.Errorf("%w: %.40q is neither 0 nor 1", ErrValue, v)
	}
	return nil
}

func checkLeadingInt(v string) error {
	digits := strings.TrimPrefix(v, "-")
	if digits == "" || digits[0] < '0' || digits[0] > '9' {
		return fmt.Errorf("%w: %.40q does not start with a number", ErrValue, v)
	}
	return nil
}

func checkHost(v string) error {
	if v == NoHost {
		return nil
	}
	return ValidName(v)
}
