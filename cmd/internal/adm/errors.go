package adm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Exit codes.
const (
	ExitDone    = 0
	ExitFailed  = 1
	ExitUsage   = 2
	ExitTimeout = 3
)

// usageError is a command line that says nothing sensible.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usage(format string, args ...any) error { return &usageError{msg: fmt.Sprintf(format, args...)} }

// Refusal says why a command is not carried out, and what to do about it.
type Refusal struct {
	Command, Resource, Host string
	Reason                  string
	Hint                    string // what to do next
}

func (e *Refusal) Error() string {
	if about := e.about(); about != "" {
		return about + ": " + e.Reason
	}
	return e.Reason
}

// about is "COMMAND RESOURCE on HOST", as far as known.
func (e *Refusal) about() string {
	var words []string
	for _, w := range []string{e.Command, e.Resource} {
		if w != "" {
			words = append(words, w)
		}
	}
	if e.Host != "" {
		words = append(words, "on", e.Host)
	}
	return strings.Join(words, " ")
}

// refuse makes a Refusal; the command, resource and host are filled in by the
// caller that knows them.
func refuse(hint, format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Hint: hint}
}

// timeoutError is a wait that did not see what it waited for.
type timeoutError struct {
	where, what, last string
	after             time.Duration
}

func (e *timeoutError) Error() string {
	s := fmt.Sprintf("%s: not reached within %s: %s", e.where, e.after.Round(time.Millisecond), e.what)
	if e.last != "" {
		s += " (" + e.last + ")"
	}
	return s
}

// named fills in whom a refusal is about.
func named(err error, command, res, host string) error {
	var r *Refusal
	if errors.As(err, &r) {
		if r.Command == "" {
			r.Command = command
		}
		if r.Resource == "" {
			r.Resource = res
		}
		if r.Host == "" {
			r.Host = host
		}
		return err
	}
	var u *usageError
	var t *timeoutError
	var v verdict
	var f failures // named one by one
	if err == nil || errors.As(err, &f) || errors.As(err, &v) || errors.As(err, &u) || errors.As(err, &t) || errors.Is(err, context.Canceled) {
		return err
	}
	about := (&Refusal{Command: command, Resource: res, Host: host}).about()
	return fmt.Errorf("%s: %w", about, err)
}

func hintOf(err error) string {
	var r *Refusal
	var u *usageError
	var j *joinError
	switch {
	case errors.As(err, &j):
		return j.hint
	case errors.As(err, &r):
		return r.Hint
	case errors.As(err, &u):
		return u.hint
	}
	return ""
}

// failures are the errors of several resources.
type failures []error

func (f failures) Error() string {
	lines := make([]string, len(f))
	for i, err := range f {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// exitCode is the worst of what happened: a failure counts more than a timeout.
func exitCode(err error) int {
	var list failures
	if errors.As(err, &list) {
		code := ExitTimeout
		for _, e := range list {
			if exitCode(e) != ExitTimeout {
				code = ExitFailed
			}
		}
		return code
	}
	var u *usageError
	var t *timeoutError
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &u):
		return ExitUsage
	case errors.As(err, &t):
		return ExitTimeout
	}
	return ExitFailed
}
