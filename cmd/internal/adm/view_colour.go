package adm

import (
	"regexp"
	"strings"
)

// Colours of the terminal.
const (
	plain  = "\x1b[0m"
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
)

// colour tells whether output shall be coloured: on a terminal, unless NO_COLOR is
// set (https://no-color.org) or the terminal cannot.
func (s *session) colour() bool {
	return s.env.OutTerminal && s.env.Getenv("NO_COLOR") == "" && s.env.Getenv("TERM") != "dumb"
}

// stateColours are the colours of the words in status lines: green is as it should
// be, yellow is under way or switched off, red needs somebody.
var stateColours = map[string]string{
	"UpToDate": green, "Uptodate": green, "Replicating": green, "Replaying": green, "Primary": green, "Secondary": green,
	"OutDated": yellow, "Outdated": yellow, "WriteBack": yellow, "Recovery": yellow, "Syncing": yellow, "NotYetPrimary": yellow,
	"RemainsPrimary": yellow, "PausedSync": yellow, "PausedFetch": yellow, "PausedReplay": yellow, "Detaching": yellow,
	"Detached": yellow, "NotStarted": yellow, "NoPrimaryDesignated": yellow, "NotJoined": yellow, "NoAttach": yellow,
	"InConsistent": red, "Inconsistent": red, "Orphan": red, "NotPresent": red, "EmergencyMode": red, "BehindHole": red, "NoSuchPrimary": red, "ForcedPrimary": red,
	"UnResponsive": red, "ModuleNotLoaded": red, "PrimaryUnreachable": red, "DefectiveLog": red, "IncompleteLog": red,
	"UnInitializedLogRecord": red, "MissingLog": red, "DISK_ERROR": red,
}

var (
	// statusLine is "  RES [n/m] STATES...": the first letters of a state word decide.
	statusLine = regexp.MustCompile(`^  \S+ \[[0-9]+/[0-9]+\] `)
	stateWord  = regexp.MustCompile(`[A-Za-z_]+`)
	barLine    = regexp.MustCompile(`^     (syncing|replaying): (\[[=>:.]*\])`)
)

// colourise colours the lines of a status view; other texts stay as they are.
func colourise(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, l := range lines {
		body := strings.TrimSuffix(l, "\n")
		end := l[len(body):]
		switch {
		case strings.HasPrefix(body, "--------- "):
			lines[i] = bold + body + plain + end
		case strings.HasPrefix(body, "ERRORS "):
			lines[i] = red + body + plain + end
		case strings.HasPrefix(body, "WARNINGS "), strings.HasPrefix(body, "++++"), strings.HasPrefix(body, "     Hint:"):
			lines[i] = yellow + body + plain + end
		case statusLine.MatchString(body):
			head := statusLine.FindString(body)
			lines[i] = head + colourWords(body[len(head):]) + end
		case barLine.MatchString(body):
			m := barLine.FindStringSubmatchIndex(body)
			lines[i] = body[:m[4]] + cyan + body[m[4]:m[5]] + plain + body[m[5]:] + end
		}
	}
	return strings.Join(lines, "")
}

// colourWords colours known words; a word with something in brackets behind it as a
// whole. What looks like a path or belongs to a name is left alone.
func colourWords(s string) string {
	words := strings.Split(s, " ")
	for i, w := range words {
		head := stateWord.FindString(w)
		if c := stateColours[head]; c != "" && strings.HasPrefix(w, head) && (len(w) == len(head) || strings.ContainsRune("[=", rune(w[len(head)]))) {
			words[i] = c + w + plain
		}
	}
	return strings.Join(words, " ")
}
