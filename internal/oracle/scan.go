package oracle

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// class is what a sector shows, before anything is concluded from it.
type class uint8

const (
	clsStamp    class = iota // a data write of the journal, at its place
	clsZero                  // zeros
	clsBase                  // the content before the test
	clsZeroBase              // both
	clsOther                 // none of these: finding says what
)

// seen is the result of scanning an image.
type seen struct {
	cls []class
	vis []int32 // clsStamp: index of the request
	// findings of clsOther sectors, per chunk, ascending.
	findings [][]finding
}

// finding is a sector that neither a write nor the base explains.
type finding struct {
	sector int64
	rule   Rule
	stamp  Stamp
}

const chunkSectors = 2048

var zeroSector [SectorSize]byte

// scan classifies all sectors, in parallel.
func (c *Checker) scan(img io.ReaderAt, asOf uint64) (*seen, error) {
	chunks := (c.sectors + chunkSectors - 1) / chunkSectors
	s := &seen{cls: make([]class, c.sectors), vis: make([]int32, c.sectors), findings: make([][]finding, chunks)}
	workers := int(min(chunks, int64(runtime.GOMAXPROCS(0))))
	errs := make([]error, workers)
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			sc := &scanner{c: c, s: s, asOf: asOf, buf: make([]byte, min(c.sectors, chunkSectors)*SectorSize)}
			for {
				k := next.Add(1) - 1
				if k >= chunks || errs[w] != nil {
					return
				}
				errs[w] = sc.chunk(img, k)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// scanner is one worker of scan.
type scanner struct {
	c    *Checker
	s    *seen
	asOf uint64
	buf  []byte
	base []byte // the base of the chunk, once needed
	last int32  // request of the sector before: it is mostly the same
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("at byte %d: %w", off+int64(n), err)
}

func (sc *scanner) chunk(img io.ReaderAt, k int64) error {
	first := k * chunkSectors
	n := min(chunkSectors, sc.c.sectors-first)
	buf := sc.buf[:n*SectorSize]
	if err := readFull(img, buf, first*SectorSize); err != nil {
		return err
	}
	sc.base, sc.last = nil, none
	for i := range n {
		p := buf[i*SectorSize : (i+1)*SectorSize]
		f, err := sc.sector(first+i, p, first, n)
		if err != nil {
			return err
		}
		if f != nil {
			sc.s.cls[first+i] = clsOther
			sc.s.findings[k] = append(sc.s.findings[k], *f)
		}
	}
	return nil
}

// sector classifies one sector, or returns the finding about it.
func (sc *scanner) sector(sector int64, p []byte, first, n int64) (*finding, error) {
	c := sc.c
	if bytes.Equal(p, zeroSector[:]) {
		base, err := sc.isBase(sector, p, first, n)
		sc.s.cls[sector] = clsZero
		if base {
			sc.s.cls[sector] = clsZeroBase
		}
		return nil, err
	}
	st, perr := ParseStamp(p)
	if perr == nil && st.Run == c.cfg.Run && st.Write != 0 {
		i, rule := sc.request(sector, st)
		if rule != "" {
			return &finding{sector: sector, rule: rule, stamp: st}, nil
		}
		sc.s.cls[sector], sc.s.vis[sector] = clsStamp, i
		return nil, nil
	}
	base, err := sc.isBase(sector, p, first, n)
	if err != nil || base {
		sc.s.cls[sector] = clsBase
		return nil, err
	}
	switch {
	case perr != nil:
		return &finding{sector: sector, rule: RuleGarbage}, nil
	case st.Run != c.cfg.Run:
		return &finding{sector: sector, rule: RuleForeign, stamp: st}, nil
	}
	return &finding{sector: sector, rule: RuleMisplaced, stamp: st}, nil
}

// request finds the write that a stamp of this run belongs to.
func (sc *scanner) request(sector int64, st Stamp) (int32, Rule) {
	c := sc.c
	i := sc.last
	if i == none || c.reqs[i].number != st.Write {
		if i = c.byNumber(st.Write); i == none {
			if st.Branch != c.cfg.Branch {
				return none, RuleBranch
			}
			return none, RuleUnknown
		}
	}
	w := &c.reqs[i]
	switch {
	case w.branch != st.Branch:
		return none, RuleBranch
	case st.Write > sc.asOf || !w.data():
		return none, RuleUnknown
	case int64(st.Length) != w.length || w.first+int64(st.Index) != sector || int64(st.Index) >= w.length:
		return none, RuleMisplaced
	case w.void || int64(st.Index) >= w.n:
		return none, RuleResurrected
	}
	sc.last = i
	return i, ""
}

// isBase tells whether p is what the sector held before the test.
func (sc *scanner) isBase(sector int64, p []byte, first, n int64) (bool, error) {
	cfg := &sc.c.cfg
	if sector < cfg.Initial {
		st, err := ParseStamp(p)
		return err == nil && st == initialStamp(cfg.Run, sector, cfg.Initial), nil
	}
	if cfg.Base == nil {
		return bytes.Equal(p, zeroSector[:]), nil
	}
	if sc.base == nil {
		sc.base = make([]byte, n*SectorSize)
		if err := readFull(cfg.Base, sc.base, first*SectorSize); err != nil {
			return false, fmt.Errorf("base: %w", err)
		}
	}
	at := (sector - first) * SectorSize
	return bytes.Equal(p, sc.base[at:at+SectorSize]), nil
}
