package symlinktree

import (
	"cmp"
	"crypto/md5" // the original's version chain is defined over MD5
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Replay is the value of replay-H and syncpos-H: log-%09d-ORIGIN,MIN,LEN.
// Everything before Min of that logfile is on H's disk; the Len bytes after it
// may be mixed on the disk.
type Replay struct {
	Seq    int
	Origin string
	Min    int64
	Len    int64
}

// Log is the name of the logfile.
func (r Replay) Log() string { return logName(r.Seq, r.Origin) }

// End is Min+Len, the end of the dirty zone.
func (r Replay) End() int64 { return r.Min + r.Len }

func (r Replay) String() string { return fmt.Sprintf("%s,%d,%d", r.Log(), r.Min, r.Len) }

// ParseReplay is the exact inverse of String.
func ParseReplay(s string) (Replay, error) {
	f := strings.Split(s, ",")
	if len(f) != 3 {
		return Replay{}, fmt.Errorf("%w: replay %.80q: want log-NNNNNNNNN-HOST,MIN,LEN", ErrValue, s)
	}
	var r Replay
	var err error
	if r.Seq, r.Origin, err = parseLogName(f[0]); err == nil && r.Seq == 0 {
		err = fmt.Errorf("%w: logfile numbers start at 1", ErrValue)
	}
	if err == nil {
		r.Min, err = ParseInt(f[1])
	}
	if err == nil {
		r.Len, err = ParseInt(f[2])
	}
	if err == nil && r.Len > math.MaxInt64-r.Min {
		err = fmt.Errorf("%w: MIN+LEN overflows", ErrValue)
	}
	if err != nil {
		return Replay{}, fmt.Errorf("replay %.80q: %w", s, err)
	}
	return r, nil
}

// CompareReplay orders positions by logfile number, then by Min. The origin is
// not compared: equal numbers of different origin are a split brain.
func CompareReplay(a, b Replay) int {
	return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Min, b.Min))
}

func parseLogName(s string) (n int, origin string, err error) {
	n, origin, ok := NumberedOf(s, "log")
	if !ok {
		return 0, "", fmt.Errorf("%w: logfile name %.80q: want log-NNNNNNNNN-HOST", ErrValue, s)
	}
	return n, origin, nil
}

// ParseInt parses a non-negative decimal number as it is printed: no sign, no
// leading zeros, no blanks.
func ParseInt(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%w: %.40q is not a non-negative decimal number", ErrValue, s)
	}
	return int64(n), nil
}

// Switch is the meaning of a todo-* or boolean actual-* value: the leading
// decimal number is not zero; a missing link ("") counts as zero.
func Switch(value string) bool { return LeadingInt(value) != 0 }

// LeadingInt parses the decimal number at the start of value, 0 if there is none.
func LeadingInt(value string) int64 {
	end := 0
	if strings.HasPrefix(value, "-") {
		end = 1
	}
	for end < len(value) && value[end] >= '0' && value[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(value[:end], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// ZeroDigest is the digest of a version link that vouches for nothing.
const ZeroDigest = "00000000000000000000000000000000"

// Version is the value of version-N-H: DIGEST,log-N-ORIGIN,POS:PREV, a node of a
// hash chain over the history of the resource. Two hosts have equal values iff
// they know the same log up to the same position and the same history before it.
type Version struct {
	Digest string // 32 lower-case hex digits
	Seq    int
	Origin string
	Pos    int64
	Prev   string // Head of the version of Seq-1; "" if there is none
}

// NewVersion computes the link value for position pos of logfile seq written by
// origin. prevFull is the whole value of the own version link of seq-1; it counts
// as "" when it is missing or a tombstone and when seq <= 1 (reference 4.8).
func NewVersion(seq int, origin string, pos int64, prevFull string) Version {
	if seq <= 1 || prevFull == Deleted {
		prevFull = ""
	}
	sum := md5.Sum(fmt.Appendf(nil, "%d,%s,%d:%s", seq, origin, pos, prevFull))
	head, _, _ := strings.Cut(prevFull, ":")
	return Version{Digest: hex.EncodeToString(sum[:]), Seq: seq, Origin: origin, Pos: pos, Prev: head}
}

// Log is the name of the logfile.
func (v Version) Log() string { return logName(v.Seq, v.Origin) }

// Head is the part before the colon: what the successor carries as its Prev.
func (v Version) Head() string { return fmt.Sprintf("%s,%s,%d", v.Digest, v.Log(), v.Pos) }

func (v Version) String() string { return v.Head() + ":" + v.Prev }

// Predecessor is the parsed Prev; ok is false when there is none.
func (v Version) Predecessor() (p Version, ok bool) {
	if v.Prev == "" {
		return Version{}, false
	}
	p, err := parseVersionHead(v.Prev)
	return p, err == nil
}

// IsHole: writing went on without a log before the next one (emergency mode, reference 4.20). The first version link of
// a resource looks the same, but has a lower number than any log, and nothing of the same life in front of it.
func (v Version) IsHole() bool {
	return v.Digest == ZeroDigest && v.Pos == 0 && strings.Trim(v.Prev, ":") == ""
}

// ParseVersion is the exact inverse of String. It checks the syntax of both
// halves; the digest can only be checked with the full value of the predecessor.
func ParseVersion(s string) (Version, error) {
	head, prev, ok := strings.Cut(s, ":")
	if !ok {
		return Version{}, fmt.Errorf("%w: version %.160q: no colon", ErrValue, s)
	}
	v, err := parseVersionHead(head)
	if err == nil && prev != "" {
		_, err = parseVersionHead(prev)
	}
	if err != nil {
		return Version{}, fmt.Errorf("version %.160q: %w", s, err)
	}
	v.Prev = prev
	return v, nil
}

func parseVersionHead(s string) (Version, error) {
	f := strings.Split(s, ",")
	if len(f) != 3 {
		return Version{}, fmt.Errorf("%w: want DIGEST,log-NNNNNNNNN-HOST,POS", ErrValue)
	}
	v := Version{Digest: f[0]}
	if len(v.Digest) != 32 || strings.Trim(v.Digest, "0123456789abcdef") != "" {
		return Version{}, fmt.Errorf("%w: digest %.40q is not 32 lower-case hex digits", ErrValue, v.Digest)
	}
	var err error
	if v.Seq, v.Origin, err = parseLogName(f[1]); err != nil {
		return Version{}, err
	}
	if v.Pos, err = ParseInt(f[2]); err != nil {
		return Version{}, err
	}
	return v, nil
}
