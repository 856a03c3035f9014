package oracle

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"mars/internal/testutil"
)

// simLog is a device that keeps a log: each request takes its place in the total
// order at some moment between submission and answer.
type simLog struct {
	mu    sync.Mutex
	rng   *rand.Rand
	split int // sectors of a record, 0: all
	recs  []simRec
	fail  int // requests until the connection breaks, 0: never
	dead  bool
}

type simRec struct {
	off  int64
	data []byte // nil: zeros
	len  int64
}

var errLost = errors.New("connection lost")

// gap lets other requests overtake.
func (d *simLog) gap() {
	d.mu.Lock()
	n := d.rng.IntN(4)
	d.mu.Unlock()
	for range n {
		runtime.Gosched()
	}
}

func (d *simLog) put(off int64, data []byte, length int64) error {
	d.gap()
	d.mu.Lock()
	dead := d.dead
	if d.fail > 0 {
		if d.fail--; d.fail == 0 {
			d.dead = true
		}
	}
	// A request on a dead connection may or may not have reached the log.
	if !dead || d.rng.IntN(2) == 0 {
		d.append(off, data, length)
	}
	dead = dead || d.dead
	d.mu.Unlock()
	d.gap()
	if dead {
		return errLost
	}
	return nil
}

func (d *simLog) append(off int64, data []byte, length int64) {
	if data == nil {
		d.recs = append(d.recs, simRec{off: off, len: length})
		return
	}
	step := length
	if d.split > 0 {
		step = int64(d.split) * SectorSize
	}
	for at := int64(0); at < length; at += step {
		n := min(step, length-at)
		d.recs = append(d.recs, simRec{off: off + at, data: bytes.Clone(data[at : at+n]), len: n})
	}
}

func (d *simLog) Write(_ context.Context, p []byte, off int64, _ ...uint16) error {
	return d.put(off, p, int64(len(p)))
}
func (d *simLog) Flush(context.Context) error { d.gap(); return nil }
func (d *simLog) Trim(_ context.Context, off, n int64, _ ...uint16) error {
	return d.put(off, nil, n)
}
func (d *simLog) WriteZeroes(_ context.Context, off, n int64, _ ...uint16) error {
	return d.put(off, nil, n)
}

// replay applies records in order.
func replay(img []byte, recs []simRec) []byte {
	for _, r := range recs {
		if r.data == nil {
			clear(img[r.off : r.off+r.len])
		} else {
			copy(img[r.off:], r.data)
		}
	}
	return img
}

// small is a profile for a device of a few dozen sectors.
func small(p Profile) Profile {
	p.MinLen, p.MaxLen, p.Align = SectorSize, 4*SectorSize, SectorSize
	return p
}

func newSim(t testing.TB, cfg JournalConfig, p Profile, seed uint64) (*Journal, *Load, *simLog) {
	t.Helper()
	j, err := NewJournal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return j, NewLoad(j, p, seed), &simLog{rng: rand.New(rand.NewPCG(seed, 4))}
}

// Every prefix of a log that respects the order of completion is accepted: no
// false alarm, whatever was in flight, with lost connections and cut requests.
func TestTruePrefixesAreAccepted(t *testing.T) {
	seed := testutil.Seed(t)
	images := 0
	for round := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, round))
		profile := small([]Profile{P1, P8, PT, PS}[round%4])
		profile.InFlight = []int{profile.InFlight, 32}[r.IntN(2)]
		cfg := JournalConfig{Run: seed, Branch: 1, Size: 128 * SectorSize, Initial: 50, TrimZeroes: true}
		j, load, dev := newSim(t, cfg, profile, seed+round)
		opt := Options{}
		if r.IntN(2) == 0 {
			dev.split = 2
			opt.RecordSectors = 2
		}
		base := make([]byte, cfg.Size)
		if err := StampInitial(sliceDisk(base), cfg.Run, cfg.Initial); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			dev.fail = 10 + r.IntN(60)
			err := load.Run(context.Background(), 80, dev)
			if dev.dead != (err != nil) || (err != nil && !errors.Is(err, errLost)) {
				t.Fatalf("round %d: %v", round, err)
			}
			dev.dead = false
			load.Fence() // put returns after the record is placed or lost
		}
		c := NewChecker(j)
		img := bytes.Clone(base)
		low := 0
		var since *Verdict
		for p := range dev.recs {
			replay(img, dev.recs[p:p+1])
			o := opt
			o.Since = since
			v, err := c.Check(bytes.NewReader(img), o)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Err(); err != nil {
				t.Fatalf("round %d (%s, %d in flight), log prefix %d of %d: %v", round, profile.Name, profile.InFlight, p+1, len(dev.recs), err)
			}
			if v.Low < low {
				t.Fatalf("round %d: low went back from %d to %d", round, low, v.Low)
			}
			low, since = v.Low, v
			images++
		}
		v, err := c.Check(bytes.NewReader(img), Options{Durable: Always, RecordSectors: opt.RecordSectors})
		if err != nil || !v.OK() || v.Lag != 0 {
			t.Fatalf("round %d: the whole log: %v, lag %d", round, v.Err(), v.Lag)
		}
	}
	t.Logf("%d true prefixes, no false alarm", images)
}

// sliceDisk is a disk in a slice.
type sliceDisk []byte

func (s sliceDisk) WriteAt(p []byte, off int64) (int, error) { return copy(s[off:], p), nil }

// mutate damages a log prefix the way a buggy replica would.
func mutate(r *rand.Rand, recs []simRec) (string, []simRec) {
	recs = append([]simRec(nil), recs...)
	k := r.IntN(len(recs))
	switch r.IntN(4) {
	case 0:
		return "dropped record", append(recs[:k:k], recs[k+1:]...)
	case 1:
		o := r.IntN(len(recs))
		recs[k], recs[o] = recs[o], recs[k]
		return "swapped records", recs
	case 2:
		n := min(1+r.IntN(5), len(recs)-k)
		return "hole", append(recs[:k:k], recs[k+n:]...)
	}
	x := recs[k]
	if x.len > SectorSize {
		x.len -= SectorSize
		if x.data != nil {
			x.data = x.data[:x.len]
		}
		recs[k] = x
	}
	return "torn record", recs
}

// With one request in flight there is one legal order: each mutation that changes
// the image into one that no prefix has is caught, and each that does not is
// accepted. With many in flight most are.
func TestMutatedLogsAreCaught(t *testing.T) {
	seed := testutil.Seed(t)
	for _, depth := range []int{1, 8} {
		caught, accepted := map[string]int{}, map[string]int{}
		for round := range uint64(40) {
			r := rand.New(rand.NewPCG(seed, round))
			profile := small(PT)
			profile.InFlight = depth
			cfg := JournalConfig{Run: seed, Branch: 1, Size: 64 * SectorSize, TrimZeroes: true}
			j, load, dev := newSim(t, cfg, profile, seed+round)
			if err := load.Run(context.Background(), 60, dev); err != nil {
				t.Fatal(err)
			}
			legal := map[string]bool{string(make([]byte, cfg.Size)): true}
			img := make([]byte, cfg.Size)
			for p := range dev.recs {
				legal[string(replay(img, dev.recs[p:p+1]))] = true
			}
			c := NewChecker(j)
			for range 40 {
				what, recs := mutate(r, dev.recs[:1+r.IntN(len(dev.recs))])
				img := replay(make([]byte, cfg.Size), recs)
				v, err := c.Check(bytes.NewReader(img), Options{})
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case legal[string(img)]:
					if !v.OK() {
						t.Fatalf("depth %d, %s: the image equals a true prefix: %v", depth, what, v.Err())
					}
				case v.OK():
					accepted[what]++
				default:
					caught[what]++
				}
			}
		}
		t.Logf("depth %d: caught %v, accepted %v", depth, caught, accepted)
		for _, what := range []string{"dropped record", "swapped records", "hole", "torn record"} {
			switch {
			case caught[what] == 0:
				t.Errorf("depth %d: no %s was caught", depth, what)
			case depth == 1 && accepted[what] > 0:
				t.Errorf("depth 1: %d of kind %q were accepted", accepted[what], what)
			case accepted[what] > caught[what]:
				t.Errorf("depth %d: more of kind %q were accepted than caught", depth, what)
			}
		}
	}
}
