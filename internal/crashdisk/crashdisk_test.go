package crashdisk

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"mars/device/nbd"
	"mars/internal/nbdclient"
	"mars/internal/testutil"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func block(b byte, sectors int) []byte { return bytes.Repeat([]byte{b}, sectors*SectorSize) }

// recorder has the disks m and d of eight sectors, filled with '.'.
func recorder(t *testing.T) (r *Recorder, m, d *disk) {
	t.Helper()
	var clock atomic.Uint64
	r = New(func() uint64 { return clock.Add(1) })
	for _, name := range []string{"m", "d"} {
		if err := r.AddDisk(name, bytes.NewReader(block('.', 8))); err != nil {
			t.Fatal(err)
		}
	}
	return r, r.disks[0], r.disks[1]
}

func write(t *testing.T, d *disk, b byte, sector, n int) {
	t.Helper()
	p := block(b, n)
	if err := d.Submit([]nbd.Op{{Kind: nbd.OpWrite, Off: int64(sector * SectorSize), Len: int64(len(p)), Data: p}}); err != nil {
		t.Fatal(err)
	}
	clear(p) // the memory is the server's again
}

// picture shows one letter a sector, '?' for a mixture.
func picture(img []byte) string {
	var s []byte
	for off := 0; off < len(img); off += SectorSize {
		p := img[off : off+SectorSize]
		c := p[0]
		if !bytes.Equal(p, bytes.Repeat(p[:1], SectorSize)) {
			c = '?'
		}
		if c == 0 {
			c = '0'
		}
		s = append(s, c)
	}
	return string(s)
}

func TestCut(t *testing.T) {
	r, m, d := recorder(t)
	write(t, m, 'a', 0, 2) // 0
	write(t, d, 'x', 0, 8) // 1
	if _, err := m.SyncNow(); err != nil {
		t.Fatal(err)
	} // 2
	r.Mark("acknowledged") // 3
	write(t, m, 'b', 1, 2) // 4
	if err := m.Submit([]nbd.Op{{Kind: nbd.OpTrim, Off: 3 * SectorSize, Len: SectorSize}}); err != nil {
		t.Fatal(err)
	} // 5
	write(t, m, 'c', 2, 6) // 6
	h := r.History()
	for _, tt := range []struct {
		index  int
		policy Policy
		m, d   string
	}{
		{0, All, "........", "........"},
		{2, None, "........", "........"},
		{2, All, "aa......", "xxxxxxxx"},
		{3, None, "aa......", "........"},
		{3, Newest, "aa......", "xxxxxxxx"},
		{6, None, "aa......", "........"},
		{6, All, "abb0....", "xxxxxxxx"},
		{6, Newest, "aa.0....", "xxxxxxxx"},
		{7, All, "abcccccc", "xxxxxxxx"},
		{7, Newest, "aacccccc", "xxxxxxxx"},
	} {
		s := h.Cutter().Cut(tt.index, tt.policy, rand.New(rand.NewPCG(1, 1)))
		if got := picture(s.Image("m")); got != tt.m {
			t.Errorf("cut %d %v: m is %s, want %s", tt.index, tt.policy, got, tt.m)
		}
		if got := picture(s.Image("d")); got != tt.d {
			t.Errorf("cut %d %v: d is %s, want %s", tt.index, tt.policy, got, tt.d)
		}
	}
	if got := h.Near(0, 7, 1, func(s string) bool { return s == "acknowledged" }); len(got) != 3 || got[0] != 2 || got[2] != 4 {
		t.Errorf("indexes near the mark: %v", got)
	}
	if h.Tick(3) != h.Entries[3].Tick || h.Tick(7) != h.Entries[6].Tick {
		t.Error("ticks are not those of the entries")
	}
	if picture(m.now.bytes()) != "abcccccc" {
		t.Errorf("the disk itself shows %s", picture(m.now.bytes()))
	}
}

// TestRandomPolicies: every outcome is one that the policy allows, and all of
// these come up.
func TestRandomPolicies(t *testing.T) {
	r, m, _ := recorder(t)
	for i := range 3 {
		write(t, m, byte('a'+i), i*2, 2)
	}
	h := r.History()
	rng := rand.New(rand.NewPCG(3, 4))
	for _, tt := range []struct {
		policy Policy
		want   int // different outcomes
		lost   func(n int) bool
	}{
		{Half, 8, func(n int) bool { return n <= 3 }},
		{AllButOne, 3, func(n int) bool { return n == 1 }},
		{Torn, 4, func(n int) bool { return n == 1 }},
	} {
		seen := map[string]bool{}
		for range 300 {
			s := h.Cutter().Cut(3, tt.policy, rng)
			seen[picture(s.Image("m"))] = true
			if s.Volatile != 3 || !tt.lost(s.Lost) {
				t.Fatalf("%v: %d of %d lost", tt.policy, s.Lost, s.Volatile)
			}
		}
		if len(seen) != tt.want {
			t.Errorf("%v: outcomes %v, want %d of them", tt.policy, seen, tt.want)
		}
	}
}

// TestServe drives it as a client does: two disks, one order.
func TestServe(t *testing.T) {
	r, m, d := recorder(t)
	socket := filepath.Join(t.TempDir(), "s")
	stop, err := r.Serve(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	clients := map[string]*nbdclient.Client{}
	for _, name := range []string{"m", "d"} {
		c, err := nbdclient.Dial(ctx, nbdclient.Options{Network: "unix", Address: socket, Export: name})
		if err != nil {
			t.Fatal(err)
		}
		clients[name] = c
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(clients["d"].Write(ctx, block('1', 1), 0))
	must(clients["m"].Write(ctx, block('2', 1), SectorSize, nbdclient.FUA))
	r.Mark("both")
	must(clients["d"].Flush(ctx))
	if err := clients["d"].Write(ctx, make([]byte, 100), 0); err == nil {
		t.Error("a part of a sector was accepted")
	}
	for _, c := range clients {
		c.Close()
	}
	must(stop())
	var got []byte
	for _, e := range r.History().Entries {
		got = append(got, "?wzfM"[e.Kind], "-md"[e.Disk+1])
	}
	if want := "wdwmfmM-fd"; string(got) != want {
		t.Errorf("history %s, want %s", got, want)
	}
	if picture(m.now.bytes()) != ".2......" || picture(d.now.bytes()) != "1......." {
		t.Errorf("disks %s %s", picture(m.now.bytes()), picture(d.now.bytes()))
	}
}

func TestBadUse(t *testing.T) {
	r, _, _ := recorder(t)
	if err := r.AddDisk("m", bytes.NewReader(block(0, 1))); err == nil {
		t.Error("a name twice")
	}
	if err := r.AddDisk("x", bytes.NewReader(make([]byte, 100))); err == nil {
		t.Error("a disk of 100 bytes")
	}
	if err := r.History().Cutter().Cut(0, All, rand.New(rand.NewPCG(1, 1))).WriteFile("x", filepath.Join(t.TempDir(), "f")); err == nil {
		t.Error("a file of a disk that does not exist")
	}
	if _, err := r.Serve(filepath.Join(t.TempDir(), "no", "such"), nil); err == nil {
		t.Error("a socket in a directory that does not exist")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a cut beyond the end")
			}
		}()
		r.History().Cutter().Cut(1, All, nil)
	}()
}

// TestImage compares images that share blocks with plain memory.
func TestImage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(testutil.Seed(t), 1))
	const size = 3*blockSize + 7*SectorSize
	first, err := readImage(bytes.NewReader(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	images, plain := []*image{first}, [][]byte{make([]byte, size)}
	for range 2000 {
		k := rnd.IntN(len(images))
		off := rnd.Int64N(size)
		n := rnd.Int64N(min(size-off, 2*blockSize)) + 1
		if rnd.IntN(8) == 0 {
			off, n = off/blockSize*blockSize, min(blockSize, size-off/blockSize*blockSize)
		}
		switch rnd.IntN(4) {
		case 0:
			images[k].zero(off, n)
			clear(plain[k][off : off+n])
		case 1:
			if to := rnd.IntN(8); to >= len(images) {
				images, plain = append(images, images[k].clone()), append(plain, slices.Clone(plain[k]))
			} else if to != k {
				images[to], plain[to] = images[k].clone(), slices.Clone(plain[k])
			}
		default:
			p := bytes.Repeat([]byte{byte(rnd.Uint32())}, int(n))
			images[k].write(p, off)
			copy(plain[k][off:], p)
		}
		k = rnd.IntN(len(images))
		p := make([]byte, n)
		if images[k].read(p, off); !bytes.Equal(p, plain[k][off:off+n]) {
			t.Fatalf("image %d: [%d+%d] differs", k, off, n)
		}
	}
	path := filepath.Join(t.TempDir(), "f")
	for k, m := range images {
		if !bytes.Equal(m.bytes(), plain[k]) {
			t.Errorf("image %d differs", k)
		}
		if err := m.writeFile(path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, plain[k]) {
			t.Errorf("the file of image %d differs: %v", k, err)
		}
		again, err := readImage(bytes.NewReader(plain[k]))
		if err != nil || !bytes.Equal(again.bytes(), plain[k]) {
			t.Errorf("image %d, read again, differs: %v", k, err)
		}
	}
}
