package adm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// options are the values of the global options.
type options struct {
	root, node, secret string
	host, ip           string
	peerIPs            map[string]string
	timeout, window    time.Duration
	stuck, keepBackups time.Duration
	threshold          int64
	threshLogfiles     int
	threshLogsize      float64 // GB
	force              int
	dryRun             bool
	verbose            int
	noWait             bool
	ignoreSync         bool
	parallel           int // 0: one after the other; < 0: all at once
	json               bool
	macro              string
	watch              time.Duration // 0: no
	check              checkLimits
	backupDir          string
	autoclean          time.Duration // 0: off
	singlestep         bool
	systemd            int // 0: off, 1: where it is set up
}

// bind declares the options on a flag set and returns where their values go.
func bind(fs *pflag.FlagSet) *options {
	o := &options{
		timeout:        600 * time.Second,
		window:         60 * time.Second,
		stuck:          time.Hour,
		keepBackups:    168 * time.Hour,
		threshold:      10 << 20,
		threshLogfiles: 10,
		threshLogsize:  5,
		check:          defaultLimits(),
		systemd:        1,
	}
	fs.StringVar(&o.root, "root", "", "")
	fs.StringVar(&o.node, "node", "", "")
	fs.StringVar(&o.secret, "secret", "", "")
	fs.StringVar(&o.host, "host", "", "")
	fs.StringVar(&o.ip, "ip", "", "")
	fs.Var(&seconds{&o.timeout, time.Second}, "timeout", "")
	fs.Var(&seconds{&o.window, time.Second}, "window", "")
	fs.Var(&seconds{&o.stuck, time.Second}, "stuck-seconds", "")
	fs.Var(&seconds{&o.keepBackups, time.Hour}, "keep-backup-hours", "")
	fs.Var((*sizeFlag)(&o.threshold), "threshold", "")
	fs.IntVar(&o.threshLogfiles, "thresh-logfiles", o.threshLogfiles, "")
	fs.Float64Var(&o.threshLogsize, "thresh-logsize", o.threshLogsize, "")
	fs.CountVar(&o.force, "force", "")
	fs.BoolVar(&o.dryRun, "dry-run", false, "")
	fs.Var((*level)(&o.verbose), "verbose", "")
	fs.Lookup("verbose").NoOptDefVal = "+1"
	fs.BoolVar(&o.noWait, "no-wait", false, "")
	fs.BoolVar(&o.ignoreSync, "ignore-sync", false, "")
	fs.Var((*parallel)(&o.parallel), "parallel", "")
	fs.Lookup("parallel").NoOptDefVal = "0"
	fs.BoolVar(&o.json, "json", false, "")
	fs.Var(&limitsFlag{to: &o.check.lag}, "check-lag", "")
	fs.Var(&limitsFlag{to: &o.check.rest, bytes: true}, "check-rest", "")
	fs.Var(&limitsFlag{to: &o.check.silent}, "check-silent", "")
	fs.Var(&limitsFlag{to: &o.check.used}, "check-used", "")
	fs.Var(&limitsFlag{to: &o.check.free, bytes: true, falling: true}, "check-free", "")
	fs.StringVar(&o.macro, "macro", "", "")
	fs.Var(&seconds{&o.watch, time.Second}, "watch", "")
	fs.Lookup("watch").NoOptDefVal = "2"
	fs.StringVar(&o.backupDir, "backup-dir", "", "")
	fs.Var(&seconds{&o.autoclean, 24 * time.Hour}, "autoclean", "")
	fs.BoolVar(&o.singlestep, "singlestep", false, "")
	fs.Var((*level)(&o.systemd), "systemd-enable", "")
	for _, g := range globalOptions {
		if f := fs.Lookup(g.name); f != nil {
			f.Usage = g.help
		}
	}
	return o
}

// seconds is a span of time, given as a number in some unit.
type seconds struct {
	to   *time.Duration
	unit time.Duration
}

func (s *seconds) Set(v string) error {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || f < 0 || f*float64(s.unit) > float64(1<<62) || f != f {
		unit := "seconds"
		switch s.unit {
		case time.Hour:
			unit = "hours"
		case 24 * time.Hour:
			unit = "days"
		}
		return fmt.Errorf("%q is not a number of %s, 0 or more", v, unit)
	}
	*s.to = time.Duration(f * float64(s.unit))
	return nil
}
func (s *seconds) String() string {
	if s.to == nil {
		return ""
	}
	return s.to.String()
}
func (s *seconds) Type() string { return "seconds" }

// sizeFlag is an amount of bytes, a multiple of 4096.
type sizeFlag int64

func (s *sizeFlag) Set(v string) error {
	n, err := ParseSize(v)
	*s = sizeFlag(n)
	return err
}
func (s *sizeFlag) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *sizeFlag) Type() string   { return "size" }

// level is how much to say.
type level int

func (l *level) Set(v string) error {
	if v == "+1" {
		*l++
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a level of detail (0, 1, 2)", v)
	}
	*l = level(n)
	return nil
}
func (l *level) String() string { return strconv.Itoa(int(*l)) }
func (l *level) Type() string   { return "level" }

// parallel is a number of workers; 0 on the command line means no limit.
type parallel int

func (p *parallel) Set(v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a number of workers (0 = no limit)", v)
	}
	if *p = parallel(n); n == 0 {
		*p = -1
	}
	return nil
}
func (p *parallel) String() string { return strconv.Itoa(int(*p)) }
func (p *parallel) Type() string   { return "workers" }

// pageSize is what sizes must be a multiple of.
const pageSize = 4096

// ParseSize reads a number of bytes with a suffix: k m g t p count in thousands,
// K M G T P in 1024s. It must be a multiple of 4096.
func ParseSize(s string) (int64, error) {
	factor, num := int64(1), s
	if s != "" {
		if i := strings.IndexByte("kmgtp", s[len(s)-1]); i >= 0 {
			for factor = 1000; i > 0; i-- {
				factor *= 1000
			}
			num = s[:len(s)-1]
		} else if i := strings.IndexByte("KMGTP", s[len(s)-1]); i >= 0 {
			factor, num = 1<<(10*(i+1)), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor || strings.HasPrefix(num, "+") {
		return 0, fmt.Errorf("%q is not a size: digits and one of k m g t p (thousands) or K M G T P (1024s)", s)
	}
	if n *= factor; n%pageSize != 0 {
		return 0, fmt.Errorf("size %s = %d bytes is not a multiple of %d", s, n, pageSize)
	}
	return n, nil
}
