package symlinktree

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Deleted is the value of a tombstone: a link that says "this path was deleted
// at my stamp". Readers treat it as absent.
const Deleted = ".deleted"

// Limits on what is accepted from anybody, on disk or from a peer.
const (
	MaxPath  = 512  // bytes of a path relative to the root
	MaxValue = 4096 // bytes of a link text
	MaxDepth = 4    // components of a path
	MaxName  = 63   // bytes of a host or resource name
)

// Causes of a refused path, name or value. They come wrapped with the offender.
var (
	ErrPath  = errors.New("bad path")
	ErrValue = errors.New("bad value")
	ErrName  = errors.New("bad name")
)

// reserved words may not name a host or a resource: marsadm gives them a meaning.
var reserved = map[string]bool{
	"none": true, "all": true, "any": true, "full": true, "empty": true,
	"undefined": true, "remote": true, "local": true, "localhost": true,
}

// ValidName reports why s cannot be the name of a host or a resource
// (reference symlink-tree 0.7), or nil.
func ValidName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty", ErrName)
	case len(s) > MaxName:
		return fmt.Errorf("%w %q: %d bytes, at most %d are allowed", ErrName, s[:16]+"...", len(s), MaxName)
	case reserved[s]:
		return fmt.Errorf("%w %q: reserved word", ErrName, s)
	case s[0] == '-':
		return fmt.Errorf("%w %q: starts with a dash", ErrName, s)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return fmt.Errorf("%w %q: only letters, digits, '_' and '-' are allowed", ErrName, s)
		}
	}
	return nil
}

// ValidValue reports why v cannot be the text of a link, or nil.
func ValidValue(v string) error {
	switch {
	case v == "":
		return fmt.Errorf("%w: empty (a symlink cannot be)", ErrValue)
	case len(v) > MaxValue:
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrValue, len(v), MaxValue)
	case strings.ContainsAny(v, "\x00\n"):
		return fmt.Errorf("%w %.80q: contains NUL or newline", ErrValue, v)
	case !utf8.ValidString(v):
		return fmt.Errorf("%w %.80q: not UTF-8", ErrValue, v)
	}
	return nil
}

// ValidPath reports why path cannot be the path of a link in the tree, or nil:
// relative, clean, no dot names, at most MaxDepth components, and every
// directory on the way of a known class. So a path can never lead out of the
// root, nor into a directory that another program keeps there.
func ValidPath(path string) error {
	if err := checkPathText(path); err != nil {
		return err
	}
	dir, name := splitPath(path)
	if dirClass(dir) == classUnknown {
		return fmt.Errorf("%w %.80q: %q is not a directory of the tree", ErrPath, path, dir)
	}
	if childClass(dir, name) != classUnknown {
		return fmt.Errorf("%w %.80q: names a directory, not a link", ErrPath, path)
	}
	return nil
}

// checkPathText checks everything about path that needs no knowledge of classes.
func checkPathText(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("%w: empty", ErrPath)
	case len(path) > MaxPath:
		return fmt.Errorf("%w %.40q...: %d bytes, at most %d are allowed", ErrPath, path, len(path), MaxPath)
	case path[0] == '/':
		return fmt.Errorf("%w %.80q: absolute", ErrPath, path)
	case !utf8.ValidString(path):
		return fmt.Errorf("%w %.80q: not UTF-8", ErrPath, path)
	}
	depth := 0
	for rest, more := path, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if depth++; depth > MaxDepth {
			return fmt.Errorf("%w %.80q: more than %d components", ErrPath, path, MaxDepth)
		}
		if err := checkComponent(name); err != nil {
			return fmt.Errorf("%w %.80q: %w", ErrPath, path, err)
		}
	}
	return nil
}

var (
	errEmptyComponent = errors.New("empty component")
	errDotName        = errors.New("component starts with a dot")
	errControl        = errors.New("control character")
	errLongComponent  = errors.New("component longer than 200 bytes")
)

// maxComponent leaves room for the temporary prefix within NAME_MAX (255).
const maxComponent = 200

func checkComponent(name string) error {
	switch {
	case name == "":
		return errEmptyComponent
	case name[0] == '.':
		return errDotName
	case len(name) > maxComponent:
		return errLongComponent
	}
	for i := 0; i < len(name); i++ {
		if name[i] < 0x20 || name[i] == 0x7f {
			return errControl
		}
	}
	return nil
}

// splitPath cuts path into directory ("" = root) and name.
func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// class of a directory decides whether it is scanned and replicated.
type class int

const (
	classUnknown  class = iota // not ours: never entered, never made
	classRoot                  // the root itself
	classResource              // resource-R
	classShared                // replicated leaf: ips, defaults*, actual-*, todo-*, userspace
	classLocal                 // unreplicated leaf: local-*, cache-*, probe-*, backups-*
)

// dirClass classifies a directory path relative to the root.
func dirClass(dir string) class {
	if dir == "" {
		return classRoot
	}
	parent, name := splitPath(dir)
	if parent != "" && dirClass(parent) != classResource {
		return classUnknown
	}
	return childClass(parent, name)
}

// childClass classifies the directory name inside parent, which is known.
func childClass(parent, name string) class {
	switch {
	case name == "defaults", name == "userspace",
		namedAfter(name, "defaults-"), namedAfter(name, "actual-"), namedAfter(name, "todo-"):
		if leafParent(parent) {
			return classShared
		}
	case namedAfter(name, "local-"):
		if leafParent(parent) {
			return classLocal
		}
	case parent != "":
		return classUnknown
	case name == "ips":
		return classShared
	case namedAfter(name, "resource-"):
		return classResource
	case namedAfter(name, "cache-"), namedAfter(name, "probe-"), len(name) > 8 && strings.HasPrefix(name, "backups-"):
		return classLocal
	}
	return classUnknown
}

// leafParent reports whether leaf directories may live in parent: the root and
// the resource directories.
func leafParent(parent string) bool { return parent == "" || namedAfter(parent, "resource-") }

// namedAfter reports whether name is prefix plus the name of a host or resource.
func namedAfter(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && ValidName(rest) == nil
}

// Replicated reports whether path belongs to the part of the tree that peers
// exchange. False for local-*, cache-*, probe-*, backups-* directories, dot
// names, lost+found, ignore*, and read-stamp (which every observer keeps for
// itself, reference symlink-tree 9.19).
func Replicated(path string) bool {
	dir, name := splitPath(path)
	switch dirClass(dir) {
	case classUnknown, classLocal:
		return false
	}
	if name == "" || name[0] == '.' || name == "lost+found" || name == "read-stamp" || strings.HasPrefix(name, "ignore") {
		return false
	}
	return childClass(dir, name) == classUnknown
}

// isLogName reports whether path is the place of a logfile: these are regular
// files, and only their tombstones are links.
func isLogName(path string) bool {
	dir, name := splitPath(path)
	return dirClass(dir) == classResource && strings.HasPrefix(name, "log-")
}

// isBeacon reports whether path is the liveness beacon of a host. It is written
// last in a merge, so that whoever sees it sees everything that came before it.
func isBeacon(path string) bool {
	dir, name := splitPath(path)
	return (name == "time" || name == "alive") && !strings.Contains(dir, "/") && strings.HasPrefix(dir, "actual-")
}
