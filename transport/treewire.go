package transport

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Limits of the tree exchange.
const (
	MaxPath  = 1024
	MaxValue = 4096 // symlink text, as in the original
	maxDepth = 16
	// maxLine bounds one line of a tree reply, and so the memory a peer can make
	// us use. A sender cuts at targetLine; one entry is far below the difference.
	maxLine    = 1 << 20
	targetLine = 256 << 10
	// maxDirs bounds one TreeDirs request.
	maxDirs = 16384
)

// treeLine is one line of a tree reply (JSON, one object a line).
type treeLine struct {
	// Type is "entries", "resync", "heartbeat", "end" or "error".
	Type    string      `json:"type"`
	Epoch   uint64      `json:"epoch,omitempty,string"`
	Seq     uint64      `json:"seq,omitempty,string"`
	Entries []wireEntry `json:"entries,omitempty"`
	wireError
}

const (
	lineEntries   = "entries"
	lineResync    = "resync"
	lineHeartbeat = "heartbeat"
	lineEnd       = "end"
	lineError     = "error"
)

// wireEntry is a TreeEntry in JSON. JSON cannot carry text that is not UTF-8,
// symlinks can: then the base64 fields are used.
type wireEntry struct {
	Path    string `json:"path,omitempty"`
	Path64  []byte `json:"path64,omitempty"`
	Value   string `json:"value,omitempty"`
	Value64 []byte `json:"value64,omitempty"`
	Stamp   int64  `json:"stamp,string"`
}

func toWire(e TreeEntry) wireEntry {
	w := wireEntry{Stamp: e.Stamp}
	if utf8.ValidString(e.Path) {
		w.Path = e.Path
	} else {
		w.Path64 = []byte(e.Path)
	}
	if utf8.ValidString(e.Value) {
		w.Value = e.Value
	} else {
		w.Value64 = []byte(e.Value)
	}
	return w
}

func (w wireEntry) entry() (TreeEntry, error) {
	e := TreeEntry{Path: w.Path, Value: w.Value, Stamp: w.Stamp}
	if len(w.Path64) > 0 {
		e.Path = string(w.Path64)
	}
	if len(w.Value64) > 0 {
		e.Value = string(w.Value64)
	}
	return e, checkEntry(e)
}

// checkEntry refuses what can never be a link of a tree. What a link means is
// for others to judge.
func checkEntry(e TreeEntry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	switch {
	case e.Value == "" || len(e.Value) > MaxValue:
		return fmt.Errorf("%w: link %q has a value of %d bytes, want 1 to %d", ErrRefused, e.Path, len(e.Value), MaxValue)
	case strings.IndexByte(e.Value, 0) >= 0:
		return fmt.Errorf("%w: link %q has a value with a NUL byte", ErrRefused, e.Path)
	case e.Stamp < 0:
		return fmt.Errorf("%w: link %q has the negative stamp %d", ErrRefused, e.Path, e.Stamp)
	}
	return nil
}

func checkPath(path string) error {
	if path == "" || len(path) > MaxPath {
		return fmt.Errorf("%w: link path of %d bytes, want 1 to %d", ErrRefused, len(path), MaxPath)
	}
	depth := 0
	for part := range strings.SplitSeq(path, "/") {
		if depth++; depth > maxDepth {
			return fmt.Errorf("%w: link path %q is deeper than %d", ErrRefused, path, maxDepth)
		}
		if part == "" || part == "." || part == ".." || len(part) > 255 {
			return fmt.Errorf("%w: link path %q has the part %q", ErrRefused, path, part)
		}
	}
	for i := range len(path) {
		if c := path[i]; c < ' ' || c == 0x7f {
			return fmt.Errorf("%w: link path %q has a control character", ErrRefused, path)
		}
	}
	return nil
}

// checkDir is checkPath for a directory; "" is the root.
func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	return checkPath(dir)
}

// treeLines cuts entries into lines of bounded size. All but the last say where
// the receiver stood before, so that one who gets only some of them asks again
// for all; merging twice does no harm.
func treeLines(entries []TreeEntry, oldEpoch, oldSeq, epoch, seq uint64) []treeLine {
	var out []treeLine
	for {
		n, size := 0, 0
		for n < len(entries) && size < targetLine {
			// The worst case of JSON escaping, so that no line exceeds maxLine.
			size += 96 + 6*min(len(entries[n].Path), MaxPath) + 6*min(len(entries[n].Value), MaxValue)
			n++
		}
		line := treeLine{Type: lineEntries, Epoch: oldEpoch, Seq: oldSeq, Entries: make([]wireEntry, n)}
		for i, e := range entries[:n] {
			line.Entries[i] = toWire(e)
		}
		entries = entries[n:]
		if len(entries) == 0 {
			line.Epoch, line.Seq = epoch, seq
			return append(out, line)
		}
		out = append(out, line)
	}
}

// lineReader reads tree lines. refused is called for each entry that can never
// be a link; the other entries of the line are unharmed by it.
type lineReader struct {
	br      *bufio.Reader
	refused func(error)
}

func newLineReader(r io.Reader, refused func(error)) *lineReader {
	return &lineReader{br: bufio.NewReaderSize(r, 16<<10), refused: refused}
}

// next returns io.EOF only between lines.
func (lr *lineReader) next() (treeLine, []TreeEntry, error) {
	raw, err := lr.line()
	if err != nil {
		return treeLine{}, nil, err
	}
	var line treeLine
	if err := json.Unmarshal(raw, &line); err != nil {
		return treeLine{}, nil, fmt.Errorf("%w: tree line: %v", ErrCorrupt, err)
	}
	switch line.Type {
	case lineEntries, lineResync, lineHeartbeat, lineEnd, lineError:
	default:
		return treeLine{}, nil, fmt.Errorf("%w: tree line of unknown type %q", ErrCorrupt, line.Type)
	}
	entries := make([]TreeEntry, 0, len(line.Entries))
	for _, w := range line.Entries {
		e, err := w.entry()
		if err != nil {
			lr.refused(err)
			continue
		}
		entries = append(entries, e)
	}
	return line, entries, nil
}

func (lr *lineReader) line() ([]byte, error) {
	var long []byte
	for {
		part, err := lr.br.ReadSlice('\n')
		switch {
		case err == nil && long == nil:
			return part, nil
		case err == nil:
			return append(long, part...), nil
		case errors.Is(err, bufio.ErrBufferFull):
			long = append(long, part...)
			if len(long) > maxLine {
				return nil, fmt.Errorf("%w: tree line longer than %d bytes", ErrCorrupt, maxLine)
			}
		case err == io.EOF && len(long)+len(part) == 0:
			return nil, io.EOF
		default:
			return nil, truncated(err, "in a tree line")
		}
	}
}

// encodeLine appends one line to buf.
func encodeLine(buf *bytes.Buffer, line treeLine) error {
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	return enc.Encode(line)
}
