package demo

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ui prints. On a terminal it uses colours and redraws progress in place; in a
// pipe it prints plain lines.
type ui struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	colour   bool
	drawn    int // lines of the progress that stands there now
	said     map[string]int

	started time.Time
	step    int
	title   string
	stepAt  time.Time
	times   []stepTime
}

type stepTime struct {
	title string
	took  time.Duration
}

// Colours, as the terminal understands them.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func newUI(w io.Writer, terminal, colour bool) *ui {
	now := time.Now()
	return &ui{w: w, terminal: terminal, colour: colour, said: make(map[string]int), started: now, stepAt: now}
}

func (u *ui) paint(code, s string) string {
	if !u.colour || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (u *ui) line(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fmt.Fprintf(u.w, format+"\n", args...)
}

// begin starts a step.
func (u *ui) begin(title string) {
	u.end()
	u.step++
	u.title, u.stepAt = title, time.Now()
	u.line("")
	u.line("%s %s", u.paint(bold+";"+cyan, fmt.Sprintf("%2d", u.step)), u.paint(bold, title))
}

// end notes how long the step took.
func (u *ui) end() {
	if u.title == "" {
		return
	}
	took := time.Since(u.stepAt)
	u.times = append(u.times, stepTime{u.title, took})
	u.line("   %s", u.paint(dim, "("+seconds(took)+")"))
	u.title = ""
}

// say explains.
func (u *ui) say(format string, args ...any) {
	u.line("   %s", fmt.Sprintf(format, args...))
}

// command shows what a person would type, on which node.
func (u *ui) command(node, text string) {
	u.line("   %s %s", u.paint(green, node+"#"), u.paint(bold, text))
}

// output shows what a command printed, indented and at most max lines.
func (u *ui) output(text []byte, max int) {
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return
	}
	for i, l := range lines {
		if i == max {
			u.line("   %s", u.paint(dim, fmt.Sprintf("  ... %d more lines", len(lines)-max)))
			return
		}
		u.line("   %s", u.paint(dim, "  "+l))
	}
}

// links shows symlinks as `ls -l` does, aligned.
func (u *ui) links(list []link) {
	width := 0
	for _, l := range list {
		width = max(width, utf8.RuneCountInString(l.path))
	}
	for _, l := range list {
		u.line("     %s %s %s", u.paint(cyan, pad(l.path, width)), u.paint(dim, "->"), l.value)
	}
}

// check shows that something has been verified.
func (u *ui) check(format string, args ...any) {
	u.line("   %s %s", u.paint(green, "ok"), fmt.Sprintf(format, args...))
}

func (u *ui) fail(err error) {
	u.line("   %s %v", u.paint(bold+";"+red, "FAILED"), err)
}

type link struct{ path, value string }

// bar is one line of progress.
type bar struct {
	name       string
	done, size int64
	note       string
}

const barWidth = 36

// progress draws bars over those drawn before; plain output gets a line for each
// quarter that a bar has reached.
func (u *ui) progress(bars []bar) {
	u.mu.Lock()
	defer u.mu.Unlock()
	width := 0
	for _, b := range bars {
		width = max(width, len(b.name))
	}
	var out bytes.Buffer
	if u.terminal && u.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", u.drawn)
	}
	for _, b := range bars {
		share := 1.0
		if b.size > 0 {
			share = min(1, float64(b.done)/float64(b.size))
		}
		if !u.terminal {
			quarter := int(share * 4)
			if before, ok := u.said[b.name]; ok && before >= quarter {
				continue
			}
			u.said[b.name] = quarter
		}
		full := int(share * barWidth)
		filled := strings.Repeat("#", full)
		if u.terminal {
			out.WriteString("\r\x1b[K")
		}
		fmt.Fprintf(&out, "     %s [%s%s] %3d %%  %s\n", pad(b.name, width), u.paint(green, filled),
			u.paint(dim, strings.Repeat(".", barWidth-full)), int(share*100), b.note)
	}
	if u.terminal {
		u.drawn = len(bars)
	}
	u.w.Write(out.Bytes())
}

// progressDone leaves the bars where they are; the next ones are new.
func (u *ui) progressDone() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.drawn = 0
	u.said = make(map[string]int)
}

// verdict is the last word.
func (u *ui) verdict(ok bool, text string) {
	u.line("")
	width := 0
	for _, s := range u.times {
		width = max(width, utf8.RuneCountInString(s.title))
	}
	for i, s := range u.times {
		u.line("   %d  %s %8s", i+1, u.paint(dim, pad(s.title, width)), seconds(s.took))
	}
	mark := u.paint(bold+";"+green, "PASSED")
	if !ok {
		mark = u.paint(bold+";"+red, "FAILED")
	}
	u.line("")
	u.line("%s  %s  %s", mark, text, u.paint(dim, "("+seconds(time.Since(u.started))+")"))
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// shellWord quotes a word for a shell if it needs it.
func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// terminalWidth fails unless f is a terminal.
func terminalWidth(f *os.File) (int, error) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, err
	}
	return int(ws.Col), nil
}
