package logoracle

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Log is one log file.
type Log struct {
	Name string // log-NNNNNNNNN-HOST
	File io.ReaderAt
	// Length is where the log ends: the record border up to which it counts when a
	// later one is wanted too. The file may be longer.
	Length int64
}

// Position is a record border, as in a replay link.
type Position struct {
	Log    string
	Offset int64
}

func (p Position) String() string { return fmt.Sprintf("%s,%d", p.Log, p.Offset) }

// Result counts what Reduce applied.
type Result struct {
	Records, Writes, Ranges, Skipped int
	Bytes                            int64 // of writes
}

// serial returns the number in a log name.
func serial(name string) (int, error) {
	parts := strings.SplitN(name, "-", 3)
	if len(parts) == 3 && parts[0] == "log" && len(parts[1]) == 9 && parts[2] != "" {
		if n, err := strconv.Atoi(parts[1]); err == nil && n > 0 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%q is not the name of a log", name)
}

// Reduce applies to img the logs in the order of their serial numbers, up to the
// position: all earlier ones to their Length, that of the position to its
// offset, later ones not at all. Serial numbers must have no gap and no double.
func Reduce(img *Image, logs []Log, to Position, opt Options) (Result, error) {
	var res Result
	last, err := serial(to.Log)
	if err != nil {
		return res, err
	}
	type numbered struct {
		Log
		n int
	}
	var list []numbered
	for _, l := range logs {
		n, err := serial(l.Name)
		if err != nil {
			return res, err
		}
		if n <= last {
			list = append(list, numbered{l, n})
		}
	}
	slices.SortFunc(list, func(a, b numbered) int { return cmp.Compare(a.n, b.n) })
	if len(list) == 0 || list[len(list)-1].Name != to.Log {
		return res, fmt.Errorf("the log of position %v is missing", to)
	}
	if opt.Size == 0 {
		opt.Size = img.size
	}
	for i, l := range list {
		if i > 0 && l.n != list[i-1].n+1 {
			return res, fmt.Errorf("%s follows %s: a log is missing or there are two", l.Name, list[i-1].Name)
		}
		end := l.Length
		if l.Name == to.Log {
			end = to.Offset
		}
		if err := Parse(l.File, l.Name, end, opt, func(r *Record) error { return res.apply(img, r) }); err != nil {
			return res, err
		}
	}
	return res, nil
}

func (res *Result) apply(img *Image, r *Record) error {
	res.Records++
	switch r.Code {
	case CodeWrite:
		res.Writes++
		res.Bytes += int64(len(r.Data))
		_, err := img.WriteAt(r.Data, r.Pos)
		return err
	case CodeDiscard, CodeZeroes:
		res.Ranges++
		return img.Zero(r.Pos, r.Range)
	}
	res.Skipped++
	return nil
}

// Diff is a run of 512-byte sectors in which two images differ.
type Diff struct {
	Off, Len int64
	First    int64 // the first byte that differs
}

func (d Diff) String() string {
	return fmt.Sprintf("bytes %d to %d (first difference at %d)", d.Off, d.Off+d.Len-1, d.First)
}

// Compare returns the first `limit` runs (0: all) in which a and b differ in
// their first size bytes.
func Compare(a, b io.ReaderAt, size int64, limit int) ([]Diff, error) {
	const step = 1 << 20
	const sector = 512
	pa, pb := make([]byte, step), make([]byte, step)
	var list []Diff
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		for _, x := range []struct {
			r io.ReaderAt
			p []byte
		}{{a, pa[:n]}, {b, pb[:n]}} {
			if got, err := x.r.ReadAt(x.p, off); got < len(x.p) {
				return list, fmt.Errorf("compare at %d: %w", off+int64(got), cmpErr(err))
			}
		}
		if bytes.Equal(pa[:n], pb[:n]) {
			continue
		}
		for s := int64(0); s < n; s += sector {
			e := min(s+sector, n)
			if bytes.Equal(pa[s:e], pb[s:e]) {
				continue
			}
			if k := len(list) - 1; k >= 0 && list[k].Off+list[k].Len == off+s {
				list[k].Len += e - s
				continue
			}
			if limit > 0 && len(list) == limit {
				return list, nil
			}
			first := s
			for pa[first] == pb[first] {
				first++
			}
			list = append(list, Diff{Off: off + s, Len: e - s, First: off + first})
		}
	}
	return list, nil
}

func cmpErr(err error) error {
	if err == nil || err == io.EOF {
		return errors.New("too short")
	}
	return err
}

// Borders returns all record borders of a log up to `to`, the first being 0: the
// positions that Reduce accepts.
func Borders(file io.ReaderAt, name string, to int64, opt Options) ([]int64, error) {
	list := []int64{0}
	err := Parse(file, name, to, opt, func(r *Record) error { list = append(list, r.End); return nil })
	return list, err
}

// Dump writes one line for each record up to `to`.
func Dump(w io.Writer, file io.ReaderAt, name string, to int64, opt Options) error {
	return Parse(file, name, to, opt, func(r *Record) error {
		length := int64(len(r.Data))
		if r.Range > 0 {
			length = r.Range
		}
		_, err := fmt.Fprintf(w, "%d..%d seq=%d stamp=%d.%09d pos=%d len=%d code=%#x digest=%s compressed=%t sealed=%t\n",
			r.Offset, r.End, r.Seq, r.Stamp.Unix(), r.Stamp.Nanosecond(), r.Pos, length, uint16(r.Code), cmp.Or(r.Digest, "none"), r.Compressed, r.Sealed)
		return err
	})
}
