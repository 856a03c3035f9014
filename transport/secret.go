package transport

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// SecretSize is the length of a cluster secret in bytes.
const SecretSize = 32

// Secret is the cluster secret: everything that admits a node is derived from
// it. It never prints itself.
type Secret []byte

// String keeps the secret out of logs and error texts.
func (s Secret) String() string { return "[cluster secret]" }

// GoString keeps it out of %#v.
func (s Secret) GoString() string { return s.String() }

// Hex is the text of the secret file and of MARS_SECRET.
func (s Secret) Hex() string { return hex.EncodeToString(s) }

// NewSecret makes a secret from the system's random source.
func NewSecret() Secret {
	s := make(Secret, SecretSize)
	rand.Read(s) // never fails: it ends the program instead
	return s
}

// ParseSecret reads the hexadecimal text of a secret.
func ParseSecret(text string) (Secret, error) {
	text = strings.TrimSpace(text)
	if len(text) != 2*SecretSize {
		return nil, fmt.Errorf("cluster secret has %d characters, want %d hexadecimal digits", len(text), 2*SecretSize)
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		// The error of the hex package quotes the offending character, which is
		// part of a secret.
		return nil, fmt.Errorf("cluster secret is not hexadecimal, want %d digits 0-9a-f", 2*SecretSize)
	}
	return Secret(b), nil
}

// LoadSecret reads a secret file. It refuses a file that others can read.
func LoadSecret(path string) (Secret, error) {
	b, err := readPrivate(path, "cluster secret")
	if err != nil {
		return nil, err
	}
	s, err := ParseSecret(string(b))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// WriteSecret creates a secret file with mode 0600. It never replaces a file:
// the secret of a cluster with members must not be lost by accident.
func WriteSecret(path string, s Secret) error {
	if len(s) != SecretSize {
		return fmt.Errorf("write %s: cluster secret has %d bytes, want %d", path, len(s), SecretSize)
	}
	if err := createPrivate(path, []byte(s.Hex()+"\n")); err != nil {
		return fmt.Errorf("write cluster secret: %w", err)
	}
	return nil
}

// CheckOutside fails if path lies below root. The tree is what members and
// their backups copy around; a secret in it would be one no longer.
func CheckOutside(root, path string) error {
	r, err := realPath(root)
	if err != nil {
		return err
	}
	p, err := realPath(path)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(r, p)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return fmt.Errorf("%s lies inside the tree %s: keep secrets outside of it", path, root)
	}
	return nil
}

// realPath resolves symlinks of the part of the path that exists.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		r, err := filepath.EvalSymlinks(abs)
		if err == nil {
			return filepath.Join(r, rest), nil
		}
		parent := filepath.Dir(abs)
		if !errors.Is(err, fs.ErrNotExist) || parent == abs {
			return "", err
		}
		rest = filepath.Join(filepath.Base(abs), rest)
		abs = parent
	}
}

// readPrivate reads a small file that only its owner may access.
func readPrivate(path, what string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s is not a regular file", what, path)
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s %s has mode %04o: others could read it; run chmod 0600 on it, and replace it if others may have read it already", what, path, m)
	}
	const limit = 4096
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s %s is longer than %d bytes", what, path, limit)
	}
	return b, nil
}

// createPrivate creates path with mode 0600 and content b, durable, whole or
// not at all. An existing file is left as it is: errors.Is(err, fs.ErrExist).
func createPrivate(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-"+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// A hard link, because rename would replace.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
