package logfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Prefix starts the name of every logfile.
const Prefix = "log-"

// seqDigits is the zero-padded width of the serial number in a file name.
const seqDigits = 9

// ErrName is wrapped by every error of ParseName.
var ErrName = errors.New("not a logfile name (want log-NNNNNNNNN-HOST)")

// Name identifies a logfile inside its resource: the serial number and the host
// that wrote it. The zero Name means "none".
type Name struct {
	Seq  int
	Host string
}

// ParseName reads log-NNNNNNNNN-HOST. The serial is exactly nine digits and not
// zero; everything behind the second dash is the host, dashes included.
// ParseName(n.String()) == n for every name it returns.
func ParseName(s string) (Name, error) {
	rest, ok := strings.CutPrefix(s, Prefix)
	if !ok {
		return Name{}, fmt.Errorf("%q: %w", s, ErrName)
	}
	if len(rest) < seqDigits+2 || rest[seqDigits] != '-' {
		return Name{}, fmt.Errorf("%q: serial is not %d digits followed by a dash: %w", s, seqDigits, ErrName)
	}
	digits := rest[:seqDigits]
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return Name{}, fmt.Errorf("%q: serial %q is not a number: %w", s, digits, ErrName)
		}
	}
	seq, err := strconv.Atoi(digits)
	if err != nil || seq <= 0 {
		return Name{}, fmt.Errorf("%q: serial numbers start at 1: %w", s, ErrName)
	}
	host := rest[seqDigits+1:]
	if err := checkHost(host); err != nil {
		return Name{}, fmt.Errorf("%q: %w: %w", s, err, ErrName)
	}
	return Name{Seq: seq, Host: host}, nil
}

// checkHost accepts what the original accepts as a host name:
// ^[A-Za-z0-9_][-A-Za-z0-9_]*$ and at most 63 characters.
func checkHost(h string) error {
	if h == "" || len(h) > 63 {
		return fmt.Errorf("host name of %d characters (1 to 63 allowed)", len(h))
	}
	for i := range len(h) {
		c := h[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case c == '-' && i > 0:
		default:
			return fmt.Errorf("host name has a bad character %q", c)
		}
	}
	return nil
}

// valid reports why n cannot be the name of a file.
func (n Name) valid() error {
	if n.Seq <= 0 || n.Seq > 999_999_999 {
		return fmt.Errorf("logfile serial %d is outside 1..999999999: %w", n.Seq, ErrName)
	}
	if err := checkHost(n.Host); err != nil {
		return fmt.Errorf("logfile %d: %w: %w", n.Seq, err, ErrName)
	}
	return nil
}

// String is the file name.
func (n Name) String() string { return fmt.Sprintf("%s%0*d-%s", Prefix, seqDigits, n.Seq, n.Host) }

// IsZero reports whether n is the zero Name.
func (n Name) IsZero() bool { return n == Name{} }

// compareNames orders by serial, then by host.
func compareNames(a, b Name) int {
	if a.Seq != b.Seq {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	}
	return strings.Compare(a.Host, b.Host)
}

// Position is a byte offset inside a logfile; it is always a record border.
type Position struct {
	Log    Name
	Offset int64
}

func (p Position) String() string { return p.Log.String() + "," + strconv.FormatInt(p.Offset, 10) }
