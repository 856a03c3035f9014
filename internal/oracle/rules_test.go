package oracle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// script builds a journal and an image from one line per event, so that each
// rule has a case that violates it and, one change away, one that does not.
//
//	w K OFF LEN   submit a write with the local name K (also f: FUA, z: zero, t: trim, F K: flush)
//	a K           its answer;  e K: an error
//	=K SECTOR...  the image shows the sector of K; =0 zeros, =i initial, =g garbage, =r other run, =branch other branch
type script struct {
	t     *testing.T
	j     *Journal
	names map[string]uint64
	img   []byte
}

func newScript(t *testing.T, cfg JournalConfig) *script {
	t.Helper()
	cfg.Run, cfg.Branch, cfg.Size = 9, 1, 8*SectorSize
	j, err := NewJournal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, j: j, names: map[string]uint64{}, img: make([]byte, cfg.Size)}
	if err := StampInitial(sliceDisk(s.img), cfg.Run, cfg.Initial); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *script) do(lines string) {
	s.t.Helper()
	for line := range strings.SplitSeq(lines, ";") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if show, ok := strings.CutPrefix(f[0], "="); ok {
			for _, sector := range f[1:] {
				var n int64
				fmt.Sscan(sector, &n)
				s.show(show, n)
			}
			continue
		}
		var off, length int64
		if len(f) == 4 {
			fmt.Sscan(f[2], &off)
			fmt.Sscan(f[3], &length)
		}
		var err error
		switch f[0] {
		case "a":
			err = s.j.Complete(s.names[f[1]], nil)
		case "e":
			err = s.j.Complete(s.names[f[1]], os.ErrClosed)
		default:
			kind := map[string]Kind{"w": KindWrite, "f": KindFUA, "z": KindZero, "t": KindTrim, "F": KindFlush}[f[0]]
			s.names[f[1]], err = s.j.Submit(kind, off*SectorSize, length*SectorSize, 0)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *script) show(what string, sector int64) {
	p := s.img[sector*SectorSize : (sector+1)*SectorSize]
	st := Stamp{Run: 9, Branch: 1, Write: 1, Length: 1}
	switch what {
	case "0":
		clear(p)
		return
	case "g":
		copy(p, "garbage")
		return
	case "i":
		st = initialStamp(9, sector, s.j.cfg.Initial)
	case "r":
		st.Run = 8
	case "branch":
		st.Branch, st.Write = 2, 99
	case "future":
		st.Write = 1 << 40
	default:
		r := find(s.j.reqs, s.names[what])
		st = Stamp{Run: 9, Branch: r.Branch, Write: r.Number, Index: uint32(sector - r.Off/SectorSize), Length: uint32(r.Len / SectorSize)}
	}
	st.Put(p)
}

func TestRules(t *testing.T) {
	promise := JournalConfig{TrimZeroes: true}
	tests := []struct {
		name string
		cfg  JournalConfig
		opt  Options
		do   string
		want Rule   // "" = legal
		text string // part of the explanation
	}{
		{"untouched", JournalConfig{Initial: 4}, Options{}, "", "", ""},
		{"one write", promise, Options{}, "w a 0 2; a a; =a 0 1", "", ""},
		{"missing at the end", promise, Options{}, "w a 0 2; a a", "", ""},
		{"garbage", promise, Options{}, "=g 3", RuleGarbage, "sector 3 (byte 1536) holds neither"},
		{"garbage allowed by a trim", JournalConfig{}, Options{}, "t a 3 1; =g 3", "", ""},
		{"garbage beside a trim", JournalConfig{}, Options{}, "t a 3 1; =g 4", RuleGarbage, ""},
		{"garbage under a trim that promises zeros", promise, Options{}, "t a 3 1; =g 3", RuleGarbage, ""},
		{"garbage where a write after the trim must be", JournalConfig{}, Options{}, "t a 3 1; a a; w b 3 1; a b; w c 0 1; =c 0; =g 3", RuleHole, "instead of write"},
		{"foreign run", promise, Options{}, "=r 3", RuleForeign, "belongs to run 8"},
		{"other branch", promise, Options{}, "=branch 3", RuleBranch, "write 99 of branch 2"},
		{"unknown write", promise, Options{}, "=future 3", RuleUnknown, "nobody had submitted"},
		{"write from after the copy", promise, Options{AsOf: 1}, "F a; w b 3 1; =b 3", RuleUnknown, ""},
		{"initial stamp elsewhere", JournalConfig{Initial: 8}, Options{}, "=r 0; =i 0; w a 0 1; =a 0; =i 1", "", ""},
		{"hole", promise, Options{}, "w a 0 1; a a; w b 1 1; =b 1", RuleHole, "sector 0 (byte 0) shows the content before the test instead of write 1 (sectors 0 to 0, submitted at 1, acknowledged at 2), which had been acknowledged before write 3"},
		{"no hole if in flight together", promise, Options{}, "w a 0 1; w b 1 1; a a; a b; =b 1", "", ""},
		{"no hole if never acknowledged", promise, Options{}, "w a 0 1; e a; w b 1 1; =b 1", "", ""},
		{"hole by implication", promise, Options{}, "w a 0 1; a a; w b 1 1; a b; w c 1 1; =c 1", RuleHole, ""},
		{"old value", promise, Options{}, "w a 0 1; a a; w b 0 1; a b; w c 1 1; =a 0; =c 1", RuleHole, "shows write 1"},
		{"wiped", JournalConfig{Initial: 4}, Options{}, "=0 2", RuleWiped, "all zeros"},
		{"zeroed", JournalConfig{Initial: 4}, Options{}, "z a 2 1; =0 2", "", ""},
		{"zeroing lost", JournalConfig{Initial: 4}, Options{}, "z a 2 1; a a; w b 0 1; =b 0", RuleHole, "instead of zero"},
		{"zeros of the later zeroing", promise, Options{}, "z a 2 1; a a; w b 2 1; a b; z c 2 1; a c; w d 0 1; =d 0", "", ""},
		{"torn", promise, Options{}, "w a 0 3; =a 0 2", RuleTorn, "sector 1"},
		{"torn, allowed in a raw image", promise, Options{Torn: true}, "w a 0 3; =a 0 2", "", ""},
		{"torn but acknowledged", promise, Options{Torn: true}, "w a 0 3; a a; =a 0 2", RuleTorn, ""},
		{"torn, not at the end of the history", promise, Options{Torn: true}, "w a 0 3; a a; w b 4 1; =a 0 1; =b 4", RuleTorn, ""},
		{"cut", promise, Options{RecordSectors: 2}, "w a 0 4; a a; =a 0 1", "", ""},
		{"cut without permission", promise, Options{}, "w a 0 4; a a; =a 0 1", RuleTorn, ""},
		{"cut although one record holds it", promise, Options{RecordSectors: 4}, "w a 0 4; =a 0 1", RuleTorn, ""},
		{"cut at the wrong end", promise, Options{RecordSectors: 2}, "w a 0 4; =a 2 3", RuleTorn, "sector 0"},
		{"two cut requests", promise, Options{RecordSectors: 1}, "w a 0 3; w b 4 3; =a 0 1; =b 4", RuleTorn, "a history ends only once"},
		{"one cut request", promise, Options{RecordSectors: 1}, "w a 0 3; w b 4 3; =a 0 1; =b 4 5 6", "", ""},
		{"cut in the middle of the history", promise, Options{RecordSectors: 1}, "w a 0 3; a a; w b 4 3; =a 0 1; =b 4 5 6", RuleTorn, ""},
		{"zeroing cut", JournalConfig{Initial: 8}, Options{RecordSectors: 1}, "z a 0 3; =0 0", RuleTorn, ""},
		{"zeroing cut, allowed", JournalConfig{Initial: 8}, Options{RecordSectors: 1, SplitRanges: true}, "z a 0 3; =0 0", "", ""},
		{"unanswered zeroing below a later one", JournalConfig{Initial: 8}, Options{}, "z a 0 2; e a; z b 0 1; a b; =0 0", "", ""},
		{"unanswered zeroing, torn", JournalConfig{Initial: 8}, Options{}, "z a 0 2; e a; z b 1 1; a b; =0 0", RuleTorn, ""},

		{"lost, order only", promise, Options{}, "f a 0 1; a a", "", ""},
		{"lost FUA", promise, Options{Durable: Flushed}, "f a 0 1; a a", RuleUndurable, "acknowledged with FUA"},
		{"lost FUA without an answer", promise, Options{Durable: Flushed}, "f a 0 1", "", ""},
		{"lost FUA, answered after the cut", promise, Options{Durable: Flushed, AsOf: 1}, "f a 0 1; a a", "", ""},
		{"lost plain write", promise, Options{Durable: Flushed}, "w a 0 1; a a", "", ""},
		{"lost plain write, always", promise, Options{Durable: Always}, "w a 0 1; a a", RuleUndurable, "acknowledged before the cut"},
		{"lost flushed write", promise, Options{Durable: Flushed}, "w a 0 1; a a; F f; a f", RuleUndurable, "durable by FUA or by a later flush"},
		{"lost flushed zeroing", JournalConfig{Initial: 8}, Options{Durable: Flushed}, "z a 0 1; a a; F f; a f", RuleUndurable, ""},
		{"flush without an answer", promise, Options{Durable: Flushed}, "w a 0 1; a a; F f", "", ""},
		{"failed flush", promise, Options{Durable: Flushed}, "w a 0 1; a a; F f; e f", "", ""},
		{"flush that began before the answer", promise, Options{Durable: Flushed}, "w a 0 1; F f; a a; a f", "", ""},
		{"flushed write hidden by a later one", promise, Options{Durable: Flushed}, "w a 0 1; a a; F f; a f; w b 0 1; =b 0", "", ""},
		{"durability implies order", promise, Options{Durable: Flushed}, "w a 0 1; a a; f b 1 1; a b; =b 1", RuleHole, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, tt.cfg)
			s.do(tt.do)
			v, err := s.j.CheckImage(bytes.NewReader(s.img), tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if !v.OK() {
					t.Fatal(v.Err())
				}
				return
			}
			i := slices.IndexFunc(v.Violations, func(x Violation) bool { return x.Rule == tt.want })
			if i < 0 {
				t.Fatalf("%v, want %s", v.Err(), tt.want)
			}
			if !strings.Contains(v.Violations[i].Text, tt.text) {
				t.Fatalf("explanation %q, want %q in it", v.Violations[i].Text, tt.text)
			}
			if v.Err() == nil || !strings.Contains(v.Err().Error(), string(tt.want)) {
				t.Fatalf("Err: %v", v.Err())
			}
		})
	}
}

// A right stamp at a wrong place.
func TestMisplaced(t *testing.T) {
	s := newScript(t, JournalConfig{Initial: 4})
	s.do("w a 0 2; =a 0 1")
	for _, at := range []int64{2, 6} {
		img := bytes.Clone(s.img)
		copy(img[at*SectorSize:], img[:SectorSize])
		v, err := s.j.CheckImage(bytes.NewReader(img), Options{})
		if err != nil || !v.Has(RuleMisplaced) {
			t.Errorf("write stamp at %d: %v %v", at, err, v.Violations)
		}
		copy(img[at*SectorSize:], s.img[3*SectorSize:4*SectorSize])
		if v, err = s.j.CheckImage(bytes.NewReader(img), Options{}); err != nil || !v.Has(RuleMisplaced) {
			t.Errorf("initial stamp at %d: %v %v", at, err, v.Violations)
		}
	}
}

// The base image decides what "before the test" is.
func TestBaseImage(t *testing.T) {
	base := bytes.Repeat([]byte("ext4"), 8*SectorSize/4)
	s := newScript(t, JournalConfig{Base: bytes.NewReader(base)})
	copy(s.img, base)
	s.do("w a 0 1; a a")
	check := func() *Verdict {
		v, err := s.j.CheckImage(bytes.NewReader(s.img), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := check(); !v.OK() || v.Initial != 8 || v.Lag != 1 || v.Low != 0 {
		t.Fatal(v.Err(), v.Summary())
	}
	s.do("=a 0")
	if v := check(); !v.OK() || v.Stamped != 1 || v.Lag != 0 || v.Low != 1 || v.Must != 1 {
		t.Fatal(v.Err(), v.Summary())
	}
	s.img[7*SectorSize]++
	if v := check(); !v.Has(RuleGarbage) {
		t.Fatal(v.Violations)
	}
	s.do("=0 7")
	if v := check(); !v.Has(RuleWiped) {
		t.Fatal(v.Violations)
	}
}

// No going back: a later image of one disk contains what an earlier one did.
func TestSince(t *testing.T) {
	s := newScript(t, JournalConfig{})
	s.do("w a 0 1; w b 1 1; a a; a b")
	before := bytes.Clone(s.img)
	s.do("=b 1")
	first, err := s.j.CheckImage(bytes.NewReader(s.img), Options{})
	if err != nil || !first.OK() {
		t.Fatal(err, first.Err())
	}
	v, err := s.j.CheckImage(bytes.NewReader(before), Options{Since: first})
	if err != nil || !v.Has(RuleWentBack) {
		t.Fatal("an older image is accepted", err, v.Violations)
	}
	if v, _ = s.j.CheckImage(bytes.NewReader(s.img), Options{Since: first}); !v.OK() {
		t.Fatal(v.Err())
	}
}

// A crash loses unflushed writes: Resolve makes the loss part of the history.
func TestResolve(t *testing.T) {
	s := newScript(t, JournalConfig{})
	s.do("w a 0 1; a a; F f; a f; w b 1 1; a b; w c 2 1; w d 3 1; =a 0; =c 2")
	// b is lost, although acknowledged; c and d never got an answer, c is there.
	v, err := s.j.CheckImage(bytes.NewReader(s.img), Options{Durable: Flushed})
	if err != nil || v.OK() {
		t.Fatal("b was acknowledged before c was submitted", err)
	}
	if err := s.j.Resolve(v); err == nil {
		t.Fatal("Resolve took an image that is no prefix")
	}
	s.do("=0 2")
	v, err = s.j.CheckImage(bytes.NewReader(s.img), Options{Durable: Flushed})
	if err != nil || !v.OK() {
		t.Fatal(err, v.Err())
	}
	if err := s.j.Resolve(v); err != nil {
		t.Fatal(err)
	}
	s.do("w e 4 1; a e; =e 4")
	if v, err = s.j.CheckImage(bytes.NewReader(s.img), Options{Durable: Always}); err != nil || !v.OK() {
		t.Fatal("after the loss was resolved: ", err, v.Err())
	}
	s.do("=b 1")
	if v, err = s.j.CheckImage(bytes.NewReader(s.img), Options{}); err != nil || !v.Has(RuleResurrected) {
		t.Fatal("a lost write came back unnoticed", err, v.Violations)
	}
}

// An unanswered write that was seen after the recovery must stay.
func TestResolveKeepsWhatWasSeen(t *testing.T) {
	s := newScript(t, JournalConfig{})
	s.do("w a 0 4; e a; =a 0 1")
	opt := Options{RecordSectors: 2}
	v, err := s.j.CheckImage(bytes.NewReader(s.img), opt)
	if err != nil || !v.OK() {
		t.Fatal(err, v.Err())
	}
	if err := s.j.Resolve(v); err != nil {
		t.Fatal(err)
	}
	s.do("w b 7 1; a b; =b 7")
	if v, err = s.j.CheckImage(bytes.NewReader(s.img), opt); err != nil || !v.OK() {
		t.Fatal(err, v.Err())
	}
	good := bytes.Clone(s.img)
	s.do("=0 1")
	if v, err = s.j.CheckImage(bytes.NewReader(s.img), opt); err != nil || v.OK() {
		t.Fatal("half of what was seen is gone unnoticed", err)
	}
	copy(s.img, good)
	s.do("=a 2")
	if v, err = s.j.CheckImage(bytes.NewReader(s.img), opt); err != nil || !v.Has(RuleResurrected) {
		t.Fatal("the cut rest came back unnoticed", err)
	}
}

// Two histories after a forced promotion accept none of each other's writes.
func TestFork(t *testing.T) {
	s := newScript(t, JournalConfig{})
	s.do("w a 0 1; a a; w b 1 1; a b; =a 0")
	v, err := s.j.CheckImage(bytes.NewReader(s.img), Options{}) // a secondary without b
	if err != nil || !v.OK() || v.Lag != 1 {
		t.Fatal(err, v.Err())
	}
	s.do("w late 5 1; a late")
	fork, err := s.j.Fork(2, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.j.Fork(1, v, nil); err == nil {
		t.Fatal("a second branch 1")
	}
	number, err := fork.Submit(KindWrite, 2*SectorSize, SectorSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := fork.Complete(number, nil); err != nil {
		t.Fatal(err)
	}
	s.do("w c 3 1; a c")
	img2 := bytes.Clone(s.img)
	FillRequest(img2[2*SectorSize:3*SectorSize], 9, 2, number)
	s.do("=b 1; =late 5; =c 3")
	judge := func(j *Journal, img []byte) *Verdict {
		t.Helper()
		v, err := j.CheckImage(bytes.NewReader(img), Options{Durable: Always})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := judge(s.j, s.img); !v.OK() {
		t.Error("branch 1: ", v.Err())
	}
	if v := judge(fork, img2); !v.OK() {
		t.Error("branch 2: ", v.Err())
	}
	if v := judge(s.j, img2); !v.Has(RuleBranch) {
		t.Error("branch 1 accepts a write of branch 2: ", v.Violations)
	}
	for _, name := range []string{"b", "late", "c"} {
		img := bytes.Clone(img2)
		r := find(s.j.reqs, s.names[name])
		copy(img[r.Off:r.Off+r.Len], s.img[r.Off:])
		if v := judge(fork, img); v.OK() {
			t.Errorf("branch 2 accepts %s, which it does not contain", name)
		}
	}
}

func TestShortImageIsAnError(t *testing.T) {
	s := newScript(t, JournalConfig{})
	_, err := s.j.CheckImage(bytes.NewReader(s.img[:100]), Options{})
	if err == nil || !strings.Contains(err.Error(), "at byte 100") {
		t.Fatal(err)
	}
}

func TestJournalRefusesNonsense(t *testing.T) {
	for _, cfg := range []JournalConfig{{}, {Size: 100}, {Size: 512, Initial: 2}} {
		if _, err := NewJournal(cfg); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
	s := newScript(t, JournalConfig{})
	for _, r := range [][2]int64{{0, 0}, {1, 512}, {0, 100}, {8 * 512, 512}, {-512, 512}, {512, 1 << 62}} {
		if _, err := s.j.Submit(KindWrite, r[0], r[1], 0); err == nil {
			t.Errorf("write [%d+%d] accepted", r[0], r[1])
		}
	}
	s.do("w a 0 1; a a")
	if err := s.j.Complete(s.names["a"], nil); err == nil {
		t.Error("completed twice")
	}
	if err := s.j.Complete(77, errors.New("x")); err == nil {
		t.Error("unknown request completed")
	}
}
