package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Config says where things are.
type Config struct {
	TemplateDirs []string
	UnitDir      string   // /run/systemd/system
	ScriptDir    string   // where .script files go
	Systemctl    string   // the program; empty: systemctl on PATH
	Escape       string   // of placeholders, @
	Incape       string   // of patterns in names, ^
	Dependencies []string // directives with names of units; empty: the usual ones
	// Eval is the macro language; it may change vars.
	Eval func(text string, vars Vars) (string, error)
	// Retry is the pause before a refused start or stop is tried again; it doubles.
	Retry time.Duration
	Tries int
}

// DefaultConfig is what a machine with systemd has, except for the templates.
func DefaultConfig() Config {
	return Config{
		UnitDir: "/run/systemd/system", ScriptDir: "/etc/marsadm/systemd-generated-scripts", Systemctl: "systemctl",
		Escape: "@", Incape: "^", Dependencies: dependencies, Retry: time.Second, Tries: 5,
	}
}

// Engine generates units and drives them.
type Engine struct{ cfg Config }

// New makes an Engine; what cfg leaves empty is as in DefaultConfig.
func New(cfg Config) *Engine {
	def := DefaultConfig()
	for _, f := range []struct{ to, from *string }{
		{&cfg.UnitDir, &def.UnitDir}, {&cfg.ScriptDir, &def.ScriptDir}, {&cfg.Systemctl, &def.Systemctl},
		{&cfg.Escape, &def.Escape}, {&cfg.Incape, &def.Incape},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if len(cfg.Dependencies) == 0 {
		cfg.Dependencies = def.Dependencies
	}
	if cfg.Retry <= 0 {
		cfg.Retry = def.Retry
	}
	if cfg.Tries <= 0 {
		cfg.Tries = def.Tries
	}
	return &Engine{cfg: cfg}
}

// Available reports whether systemd runs here.
func (e *Engine) Available() bool {
	st, err := os.Stat(e.cfg.UnitDir)
	return err == nil && st.IsDir()
}

// lockPoll is how often a lock that somebody holds is looked at.
const lockPoll = 20 * time.Millisecond

// Lock makes the caller the only process that generates and drives the units of a
// resource, until it calls unlock or ends. dir is the resource's directory.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	t := time.NewTicker(lockPoll)
	defer t.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another marsadm drives these services and has not finished (lock on %s): %w", dir, context.Cause(ctx)), f.Close())
		}
	}
}

// ErrNoTemplate is wrapped by the error of Resolve.
var ErrNoTemplate = errors.New("no template has that marker")

// Resolve turns what an administrator has given as the name of a unit into one: a
// word in capitals stands for the first template with a line "# WORD_START" (phase
// START) or "# WORD_STOP"; placeholders are expanded.
func (e *Engine) Resolve(word, phase string, vars Vars) (string, error) {
	name := word
	if word != "" && word == strings.ToUpper(word) && !strings.Contains(word, ".") {
		templates, err := LoadTemplates(e.cfg.TemplateDirs)
		if err != nil {
			return "", err
		}
		marker := word + "_" + phase
		i := slices.IndexFunc(templates, func(t Template) bool { return t.marked(marker) })
		if i < 0 {
			return "", fmt.Errorf("%w %q in %s", ErrNoTemplate, marker, strings.Join(e.cfg.TemplateDirs, " "))
		}
		name = templates[i].Name
	}
	name, err := e.expander(vars).expand(name)
	if err != nil {
		return "", err
	}
	if strings.Contains(name, e.cfg.Incape+"{") {
		return "", fmt.Errorf("template %s stands for many units: name one of them", name)
	}
	return name, validUnit(name)
}

// Start starts a unit and returns when it has started.
func (e *Engine) Start(ctx context.Context, unit string) error { return e.drive(ctx, "start", unit) }

// Stop stops a unit and returns when it has stopped.
func (e *Engine) Stop(ctx context.Context, unit string) error { return e.drive(ctx, "stop", unit) }

// drive tries a few times: with --job-mode=fail systemd refuses while a contrary
// job is under way.
func (e *Engine) drive(ctx context.Context, verb, unit string) error {
	if err := validUnit(unit); err != nil {
		return err
	}
	wait := e.cfg.Retry
	for try := 1; ; try++ {
		var err error
		if filepath.Ext(unit) == scriptSuffix {
			path, _ := e.place(unit)
			err = run(ctx, path, verb)
		} else {
			err = e.systemctl(ctx, verb, "--job-mode=fail", unit)
		}
		if err == nil || try >= e.cfg.Tries || ctx.Err() != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errors.Join(err, context.Cause(ctx))
		}
		wait *= 2
	}
}

func (e *Engine) systemctl(ctx context.Context, args ...string) error {
	return run(ctx, e.cfg.Systemctl, args...)
}

// ExitError is a program that has failed.
type ExitError struct {
	Command string
	Code    int // -1: it could not be run, or was killed
	Output  string
	Err     error
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Command, e.Err)
	if e.Output != "" {
		text += ": " + e.Output
	}
	return text
}

func (e *ExitError) Unwrap() error { return e.Err }

// maxOutput is how much of the words of a failed program is kept.
const maxOutput = 2000

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// A unit that marsadm starts may call marsadm: it must not start units itself.
	cmd.Env = append(os.Environ(), "SYSTEMD_RECURSIVE_CALL=1")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	return &ExitError{Command: strings.Join(append([]string{name}, args...), " "), Code: exitCode(err), Output: text[:min(len(text), maxOutput)], Err: err}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
