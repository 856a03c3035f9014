package oracle

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
)

// line appends an event to the file; the first error sticks and is returned by
// every later call, as a journal with holes proves nothing.
func (j *Journal) line(format string, args ...any) {
	if j.cfg.File == nil || j.fileErr != nil {
		return
	}
	if _, err := io.WriteString(j.cfg.File, fmt.Sprintf(format, args...)); err != nil {
		j.fileErr = fmt.Errorf("journal file: %w", err)
	}
}

// dump writes the whole journal as lines.
func (j *Journal) dump() {
	c := j.cfg
	j.line("journal run=%d branch=%d size=%d initial=%d trimzeroes=%t\n", c.Run, c.Branch, c.Size, c.Initial, c.TrimZeroes)
	for i := range j.reqs {
		r := &j.reqs[i]
		j.line("submit %d %s branch=%d off=%d len=%d conn=%d\n", r.Number, r.Kind, r.Branch, r.Off, r.Len, r.Conn)
		if r.Complete != 0 {
			j.line("done %d at=%d wall=%d\n", r.Number, r.Complete, r.When.UnixNano())
		}
		if r.Err != "" {
			j.line("fail %d at=%d %q\n", r.Number, 0, r.Err)
		}
		if r.Void {
			j.line("void %d\n", r.Number)
		}
		if r.Kept != 0 {
			j.line("cut %d kept=%d\n", r.Number, r.Kept)
		}
	}
}

// LoadJournal reads a journal file, for a judge in another process. A last line
// without its newline is ignored: the writer was killed there. The journal
// continues after the largest tick in the file; base is JournalConfig.Base.
func LoadJournal(r io.Reader, base io.ReaderAt) (*Journal, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var j *Journal
	for n := 1; ; n++ {
		text, err := br.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("journal file line %d: %w", n, err)
		}
		text = strings.TrimSuffix(text, "\n")
		if j == nil {
			if j, err = parseHeader(text); err == nil {
				j.cfg.Base = base
			}
		} else {
			err = j.parseLine(text)
		}
		if err != nil {
			return nil, fmt.Errorf("journal file line %d %q: %w", n, text, err)
		}
	}
	if j == nil {
		return nil, fmt.Errorf("journal file: no header line")
	}
	return j, nil
}

func parseHeader(text string) (*Journal, error) {
	var c JournalConfig
	if _, err := fmt.Sscanf(text, "journal run=%d branch=%d size=%d initial=%d trimzeroes=%t",
		&c.Run, &c.Branch, &c.Size, &c.Initial, &c.TrimZeroes); err != nil {
		return nil, err
	}
	return NewJournal(c)
}

func (j *Journal) parseLine(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "submit":
		return j.parseSubmit(rest)
	case "resolve":
		var at uint64
		_, err := fmt.Sscanf(rest, "at=%d", &at)
		j.observe(at)
		return err
	}
	var number uint64
	if _, err := fmt.Sscanf(rest, "%d", &number); err != nil {
		return err
	}
	r := find(j.reqs, number)
	if r == nil {
		return fmt.Errorf("request %d was not submitted", number)
	}
	_, rest, _ = strings.Cut(rest, " ")
	var at uint64
	var err error
	switch word {
	case "done":
		var wall int64
		_, err = fmt.Sscanf(rest, "at=%d wall=%d", &at, &wall)
		if err == nil && at <= number {
			err = fmt.Errorf("completed at %d before it was submitted", at)
		}
		r.Complete, r.When = at, time.Unix(0, wall)
	case "fail":
		_, err = fmt.Sscanf(rest, "at=%d %q", &at, &r.Err)
	case "void":
		r.Void = true
	case "cut":
		_, err = fmt.Sscanf(rest, "kept=%d", &r.Kept)
		if err == nil && (r.Kept <= 0 || r.Kept >= r.Len || r.Kept%SectorSize != 0) {
			err = fmt.Errorf("impossible rest of a request of %d bytes", r.Len)
		}
	default:
		err = fmt.Errorf("unknown event")
	}
	j.observe(at)
	return err
}

func (j *Journal) parseSubmit(rest string) error {
	var r Request
	var kind string
	if _, err := fmt.Sscanf(rest, "%d %s branch=%d off=%d len=%d conn=%d", &r.Number, &kind, &r.Branch, &r.Off, &r.Len, &r.Conn); err != nil {
		return err
	}
	for k, name := range kindNames {
		if k > 0 && name == kind {
			r.Kind = Kind(k)
		}
	}
	size := j.cfg.Size
	switch {
	case r.Kind == 0:
		return fmt.Errorf("unknown kind")
	case len(j.reqs) > 0 && j.reqs[len(j.reqs)-1].Number >= r.Number:
		return fmt.Errorf("numbers do not ascend")
	case r.Kind != KindFlush && (r.Off < 0 || r.Len <= 0 || r.Len > size || r.Off > size-r.Len || r.Off%SectorSize != 0 || r.Len%SectorSize != 0):
		return fmt.Errorf("outside of the device")
	}
	j.reqs = append(j.reqs, r)
	j.observe(r.Number)
	return nil
}

func (j *Journal) observe(tick uint64) {
	if tick > j.clock.Load() {
		j.clock.Store(tick)
	}
}
