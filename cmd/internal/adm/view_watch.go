package adm

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// leastWatch is the shortest time between two looks.
const leastWatch = 50 * time.Millisecond

// watch shows the view again and again until it is interrupted: on a terminal in
// place, else one after the other with the time before each.
func (v *viewer) watch(ctx context.Context, every time.Duration) error {
	s := v.s
	every = max(every, leastWatch)
	out := s.out
	for first := true; ; first = false {
		v.frame(ctx, out, every, first)
		if pause(ctx, every) != nil {
			return nil
		}
		if _, err := s.tree.Rescan(); err != nil {
			s.detail("look at the tree: %v", err)
		}
	}
}

// frame shows one picture. Warnings and errors are part of it.
func (v *viewer) frame(ctx context.Context, out *lineWriter, every time.Duration, first bool) {
	s := v.s
	screen := s.env.OutTerminal && !s.opt.json
	var b strings.Builder
	saved := s.err
	s.out = newLineWriter(&b)
	if screen {
		s.err = s.out
	}
	if err := v.once(ctx); err != nil {
		report(s.err, err)
	}
	s.out, s.err = out, saved
	text := b.String()
	switch stamp := s.env.Now().Format("2006-01-02 15:04:05"); {
	case screen:
		start := "\x1b[H"
		if first {
			start = "\x1b[2J" + start
		}
		head := fmt.Sprintf("every %s on %s: marsadm %s   %s\n\n", every, s.node, s.command, stamp)
		// Every line clears what stood behind it, the end clears what stood below.
		text = start + strings.ReplaceAll(head+text, "\n", "\x1b[K\n") + "\x1b[J"
	case !s.opt.json:
		text = "---- " + stamp + "\n" + text
	}
	out.write(text)
}
