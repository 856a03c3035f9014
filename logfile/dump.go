package logfile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// VerifyResult is the outcome of Verify.
type VerifyResult struct {
	Records int   // good records before End
	End     int64 // border behind the last of them
	Err     error // nil, *TornError or *CorruptError: why reading ended at End
}

// Verify reads a whole logfile. The error is for the file that cannot be read; a
// file that can be read, but is not sound, is the Err of the result.
func Verify(f io.ReaderAt, size int64, name Name, mode Mode) (VerifyResult, error) {
	r := NewReader(f, size, name, ReaderOptions{Mode: mode, End: -1})
	defer r.Close()
	var res VerifyResult
	for {
		_, err := r.Next(context.Background())
		res.End = r.Offset()
		switch {
		case err == nil:
			res.Records++
			continue
		case err == io.EOF:
			return res, nil
		case isDefect(err):
			res.Err = err
			return res, nil
		}
		return res, err
	}
}

func isDefect(err error) bool {
	var torn *TornError
	var corrupt *CorruptError
	return errors.As(err, &torn) || errors.As(err, &corrupt)
}

// Verdicts of a dumped record.
const (
	verdictSealed    = "sealed"    // record CRC and payload digest are right
	verdictOK        = "ok"        // payload digest is right, as the original writes it
	verdictUnchecked = "unchecked" // there is no checksum
	verdictTorn      = "torn"
	verdictCorrupt   = "corrupt"
)

// DumpRecord is one line of Dump with json. Its fields are an interface: more may
// be added.
type DumpRecord struct {
	Offset      int64  `json:"offset"` // bytes from the start of the file
	Seq         uint32 `json:"seq"`
	Stamp       string `json:"stamp"` // seconds.nanoseconds since 1970, Lamport time
	Pos         int64  `json:"pos"`   // bytes from the start of the device
	Len         int64  `json:"len"`   // device bytes: payload, or range of discard and zeroes
	Stored      int    `json:"stored"`
	Total       int    `json:"total"` // bytes of the record in the file
	Code        string `json:"code"`
	Digest      string `json:"digest"`
	Compression string `json:"compression"`
	Verdict     string `json:"verdict"` // sealed, ok, unchecked
}

// DumpDefect is the line of Dump with json for a place that cannot be read.
type DumpDefect struct {
	Offset   int64  `json:"offset"`
	Verdict  string `json:"verdict"` // torn, corrupt
	Skipped  int64  `json:"skipped"` // bytes up to the next line, or to the end
	Reason   string `json:"reason"`
	Errno    int    `json:"errno"`     // replay-code of the original
	MarsCode int    `json:"mars_code"` // error number of the original
}

// Dump lists the records of a logfile, one a line. A damaged place gets a line of
// its own; behind it the list goes on with the next thing that looks like a
// record. The error is for reading and writing; use Verify for a judgement.
func Dump(w io.Writer, f io.ReaderAt, size int64, name Name, json bool) error {
	out := bufio.NewWriterSize(w, 64<<10)
	d := dumper{out: out, f: f, size: size, name: name, json: json}
	if err := d.run(); err != nil {
		return err
	}
	return out.Flush()
}

type dumper struct {
	out  *bufio.Writer
	f    io.ReaderAt
	size int64
	name Name
	json bool
}

func (d *dumper) run() error {
	if !d.json {
		fmt.Fprintf(d.out, "# %s, %d bytes\n", d.name, d.size)
		fmt.Fprintln(d.out, "# offset seq stamp pos len code digest compression verdict")
	}
	for start := int64(0); start < d.size; {
		next, err := d.sound(start)
		if err != nil {
			return err
		}
		start = next
	}
	return nil
}

// sound lists records from start on up to the end or the next defect, whose line
// it writes too. It returns where to go on.
func (d *dumper) sound(start int64) (next int64, err error) {
	r := NewReader(d.f, d.size, d.name, ReaderOptions{Mode: Lenient, Start: start, End: -1})
	defer r.Close()
	for {
		rec, err := r.Next(context.Background())
		if err == nil {
			if err := d.record(rec); err != nil {
				return 0, err
			}
			continue
		}
		if err == io.EOF {
			return d.size, nil
		}
		var torn *TornError
		var corrupt *CorruptError
		switch {
		case errors.As(err, &torn):
			return d.size, d.defect(verdictTorn, &torn.Defect, d.size)
		case errors.As(err, &corrupt):
			next := corrupt.Offset
			// Behind a gap in the numbers the record itself is good: a fresh Reader takes
			// it for its first one.
			if corrupt.MarsCode != marsSeqForward {
				if next, err = d.resync(next + 1); err != nil {
					return 0, err
				}
			}
			return next, d.defect(verdictCorrupt, &corrupt.Defect, next)
		}
		return 0, err
	}
}

func (d *dumper) record(rec *Record) error {
	verdict := verdictOK
	switch {
	case rec.Sealed:
		verdict = verdictSealed
	case rec.Digest == 0:
		verdict = verdictUnchecked
	}
	length := int64(len(rec.Data))
	if n, err := rec.length(); err == nil && n > 0 {
		length = n
	}
	stamp := fmt.Sprintf("%d.%09d", rec.Stamp.Unix(), rec.Stamp.Nanosecond())
	if d.json {
		return d.encode(DumpRecord{
			Offset: rec.Offset, Seq: rec.Seq, Stamp: stamp, Pos: rec.Pos, Len: length, Stored: rec.Stored, Total: rec.Total,
			Code: rec.Code.String(), Digest: rec.Digest.String(), Compression: rec.Compression.String(), Verdict: verdict,
		})
	}
	_, err := fmt.Fprintf(d.out, "%d %d %s %d %d %v %v %v %s\n", rec.Offset, rec.Seq, stamp, rec.Pos, length,
		rec.Code, rec.Digest, rec.Compression, verdict)
	return err
}

func (d *dumper) defect(verdict string, def *Defect, next int64) error {
	if d.json {
		return d.encode(DumpDefect{
			Offset: def.Offset, Verdict: verdict, Skipped: next - def.Offset, Reason: def.Reason, Errno: def.Errno, MarsCode: def.MarsCode,
		})
	}
	_, err := fmt.Fprintf(d.out, "%d - - - - - - - %s: %s; errno %d, code %d; %d bytes skipped\n", def.Offset, verdict, def.Reason,
		def.Errno, def.MarsCode, next-def.Offset)
	return err
}

func (d *dumper) encode(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = d.out.Write(append(line, '\n'))
	return err
}

// resync finds the next start magic at or behind from; d.size if there is none.
func (d *dumper) resync(from int64) (int64, error) {
	var magic [8]byte
	binary.LittleEndian.PutUint64(magic[:], startMagic)
	buf := make([]byte, smallChunk)
	for from < d.size {
		n, err := d.f.ReadAt(buf[:min(int64(len(buf)), d.size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read %s: %w", Position{d.name, from}, err)
		}
		if i := bytes.Index(buf[:n], magic[:]); i >= 0 {
			return from + int64(i), nil
		}
		if n < len(magic) {
			break
		}
		from += int64(n - len(magic) + 1)
	}
	return d.size, nil
}
