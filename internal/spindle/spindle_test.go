package spindle

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// bubble runs f on a disk in virtual time.
func bubble(t *testing.T, f func(t *testing.T, d *Disk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d, err := NewDisk(HDD7200())
		must(t, err)
		defer d.Close()
		f(t, d)
	})
}

// randomIOPS is what depth clients get from random 4 KiB writes in [0, span).
func randomIOPS(t *testing.T, depth int, span int64) (iops float64) {
	bubble(t, func(t *testing.T, d *Disk) {
		const per = 200
		start := time.Now()
		done := make(chan struct{})
		for i := range depth {
			go func() {
				r := rand.New(rand.NewPCG(uint64(i), 7))
				for range per {
					d.Do(r.Int64N(span/4096)*4096, 4096)
				}
				done <- struct{}{}
			}()
		}
		for range depth {
			<-done
		}
		iops = float64(per*depth) / time.Since(start).Seconds()
	})
	return iops
}

// The figures of data sheets and reviews of real 7200 rpm disks.
func TestLikeARealDisk(t *testing.T) {
	for _, c := range []struct {
		name     string
		depth    int
		span     int64
		min, max float64
	}{
		{"whole disk, one at a time", 1, 1 << 40, 70, 95},
		{"whole disk, 32 queued", 32, 1 << 40, 170, 330},
		{"64 GiB, one at a time", 1, 64 << 30, 110, 150},
		{"one track, one at a time", 1, 1280 << 10, 220, 250}, // half a turn each
	} {
		if got := randomIOPS(t, c.depth, c.span); got < c.min || got > c.max {
			t.Errorf("%s: %.0f IOPS, want %.0f to %.0f", c.name, got, c.min, c.max)
		} else {
			t.Logf("%s: %.0f IOPS", c.name, got)
		}
	}
}

func TestSequential(t *testing.T) {
	rate := func(queued bool) (mbs float64) {
		bubble(t, func(t *testing.T, d *Disk) {
			const total, step = 256 << 20, 64 << 10
			start := time.Now()
			done := make(chan struct{}, total/step)
			awaited := 0
			for off := int64(0); off < total; off += step {
				if !queued {
					d.Do(off, step)
					continue
				}
				d.Submit(Waited, off, step, func() { done <- struct{}{} })
				awaited++
			}
			for range awaited {
				<-done
			}
			mbs = total / 1e6 / time.Since(start).Seconds()
		})
		return mbs
	}
	if got := rate(true); got < 130 || got > 160 {
		t.Errorf("queued: %.0f MB/s, want the media rate", got)
	}
	// Without a write cache each write that was not queued in time misses its turn.
	if got := rate(false); got > 12 {
		t.Errorf("one at a time: %.1f MB/s, want about one write a turn", got)
	}
}

func TestSeekCurve(t *testing.T) {
	g := HDD7200()
	if g.SeekTime(5, 6) != 0 || g.SeekTime(0, g.Track) != g.SeekMin || g.SeekTime(g.Track, 0) != g.SeekMin {
		t.Error("seeks to the same and the next track")
	}
	if got := g.SeekTime(0, g.Capacity-1); got < g.SeekMax-time.Millisecond || got > g.SeekMax {
		t.Errorf("full stroke: %v", got)
	}
	quarter, full := g.SeekTime(0, g.Capacity/4)-g.SeekMin, g.SeekTime(0, g.Capacity-1)-g.SeekMin
	if ratio := float64(full) / float64(quarter); ratio < 1.95 || ratio > 2.05 {
		t.Errorf("four times the distance takes %.2f times the time, want 2 (square root)", ratio)
	}
}

// No request waits for ever, however attractive its competitors are.
func TestNoStarvation(t *testing.T) {
	bubble(t, func(t *testing.T, d *Disk) {
		var stop atomic.Bool
		r := rand.New(rand.NewPCG(1, 1))
		var again func()
		again = func() {
			if !stop.Load() {
				d.Submit(Waited, r.Int64N(1<<30), 4096, again)
			}
		}
		for range 16 {
			again()
		}
		start := time.Now()
		d.Do(1<<39, 4096)
		if took := time.Since(start); took > HDD7200().MaxAge+100*time.Millisecond {
			t.Errorf("the far request took %v", took)
		}
		stop.Store(true)
	})
}

func TestSyncReachesThePlatter(t *testing.T) {
	bubble(t, func(t *testing.T, d *Disk) {
		f := NewFS(d, 1<<39)
		h, err := f.OpenFile("/log", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		must(t, err)
		_, err = h.WritevAt([][]byte{make([]byte, 4096), make([]byte, 8192)}, 0)
		must(t, err)
		if d.Stats().Requests != 0 {
			t.Error("a write went to the disk before it was synced")
		}
		must(t, h.Datasync())
		if s := d.Stats(); s.Requests != 3 || s.Bytes != 3*4096+2*4096 {
			t.Errorf("sync of a grown file: %+v, want the data and two journal blocks", s)
		}
		must(t, h.Datasync())
		if s := d.Stats(); s.Requests != 3 {
			t.Errorf("sync of a clean file: %+v", s)
		}
		_, err = h.WriteAt(make([]byte, 4096), 4096)
		must(t, err)
		must(t, h.Datasync())
		if s := d.Stats(); s.Requests != 4 {
			t.Errorf("an overwrite costs %d requests, want 1", s.Requests-3)
		}
	})
}

func TestDeviceWritesGoAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, d *Disk) {
		f := NewFS(d, 1<<39)
		f.AddFile("/disk", 0, 1<<30)
		h, err := f.OpenFile("/disk", os.O_RDWR, 0)
		must(t, err)
		for i := range int64(1000) {
			_, err := h.WriteAt(make([]byte, 4096), i*1000003/4096*4096)
			must(t, err)
		}
		if n := d.Stats().Requests; n < 1000-65 {
			t.Errorf("%d requests done: the queue took more than its depth", n)
		}
		must(t, h.Datasync())
		if n := d.Stats().Requests; n != 1000 {
			t.Errorf("%d requests after the flush, want 1000", n)
		}
		if h.Truncate(0) == nil {
			t.Error("a device was truncated")
		}
	})
}

func TestNames(t *testing.T) {
	f := NewNull()
	must(t, f.Mkdir("/a", 0o700))
	if err := f.Mkdir("/a", 0o700); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, err := f.OpenFile("/b/c", os.O_CREATE, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	h, err := f.OpenFile("/a/x", os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	_, err = h.WriteAt(make([]byte, 10), 1<<40)
	must(t, err)
	p := []byte{1, 2, 3, 4}
	if n, err := h.ReadAt(p, 1<<40+8); n != 2 || err != io.EOF || p[0] != 0 {
		t.Error(n, err, p)
	}
	must(t, f.Symlink("x", "/a/l", time.Unix(5, 0)))
	if to, err := f.Readlink("/a/l"); err != nil || to != "x" {
		t.Error(to, err)
	}
	if _, err := f.Readlink("/a/x"); err == nil {
		t.Error("a file has a link text")
	}
	must(t, f.Rename("/a/x", "/a/y"))
	list, err := f.ReadDir("/a")
	must(t, err)
	if len(list) != 2 || list[0].Name() != "l" || list[1].Name() != "y" {
		t.Error(list)
	}
	must(t, f.Remove("/a/y"))
	if err := f.Remove("/a/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	must(t, h.Datasync())
}
