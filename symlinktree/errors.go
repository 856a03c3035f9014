package symlinktree

import (
	"errors"
	"fmt"
	"strings"
)

// Causes. They come wrapped with the path and what to do about it.
var (
	// ErrReadOnly: the tree was opened with Options.ReadOnly.
	ErrReadOnly = errors.New("tree is open read-only")
	// ErrStale: a newer value than the one offered to SetAt is there already.
	ErrStale = errors.New("a newer value is there")
	// ErrFuture: a stamp lies further ahead of the real clock than MaxFuture.
	ErrFuture = errors.New("stamp too far in the future")
	// ErrRegularFile: a link would have replaced a file that may hold data.
	ErrRegularFile = errors.New("is a regular file")
	// ErrIsDirectory: a link would have to replace a directory or a special file.
	ErrIsDirectory = errors.New("is a directory or special file")
	// ErrNotDirectory: a component of the path is neither a directory nor absent.
	ErrNotDirectory = errors.New("is not a directory")
	// ErrUnreplicated: a peer offered a path that peers do not exchange.
	ErrUnreplicated = errors.New("is not replicated")
	// ErrVanished: a directory with live links is gone from the disk. Its links
	// are kept in memory and come back with the directory.
	ErrVanished = errors.New("directory has vanished")
	// ErrRootGone: another file system, or none, is mounted where the root was.
	ErrRootGone = errors.New("root of the tree is gone")
	// ErrContended: others kept changing the path while we tried to.
	ErrContended = errors.New("path keeps changing")
)

// Refusal is one entry that Merge did not take.
type Refusal struct {
	Path string
	Err  error
}

// maxRefusals bounds the size of a MergeError.
const maxRefusals = 16

// MergeError tells which entries of a peer were refused. Everything else in the
// list was applied.
type MergeError struct {
	From    string
	Refused []Refusal // the first maxRefusals
	Total   int
}

func (e *MergeError) add(path string, err error) {
	if e.Total++; len(e.Refused) < maxRefusals {
		e.Refused = append(e.Refused, Refusal{Path: path, Err: err})
	}
}

func (e *MergeError) orNil() error {
	if e.Total == 0 {
		return nil
	}
	return e
}

func (e *MergeError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "merge from %s: %d entries refused", e.From, e.Total)
	for _, r := range e.Refused {
		fmt.Fprintf(&b, "; %.200q: %v", r.Path, r.Err)
	}
	if more := e.Total - len(e.Refused); more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// Unwrap lets errors.Is find the causes.
func (e *MergeError) Unwrap() []error {
	list := make([]error, len(e.Refused))
	for i, r := range e.Refused {
		list[i] = r.Err
	}
	return list
}
