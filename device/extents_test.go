package device

import (
	"math/rand/v2"
	"testing"

	"mars/internal/testutil"
)

// flat is the model of an extentMap: for each byte the place it comes from.
type flat []int64

func (f flat) insert(x extent) {
	for i := range x.len {
		f[x.off+i] = x.pos + i + 1
	}
}

// check compares a map with its model and looks at the invariants of the structure.
func (m *extentMap) check(t *testing.T, want flat) {
	t.Helper()
	got := make(flat, len(want))
	count, bytes, last := 0, int64(0), int64(0)
	if len(m.leaf) != len(m.first) {
		t.Fatalf("%d leaves, %d keys", len(m.leaf), len(m.first))
	}
	for li, l := range m.leaf {
		if l.n == 0 {
			t.Fatalf("leaf %d is empty", li)
		}
		if m.first[li] != l.e[0].off {
			t.Fatalf("leaf %d starts at %d, its key is %d", li, l.e[0].off, m.first[li])
		}
		for _, x := range l.e[:l.n] {
			if x.off < last || x.len <= 0 {
				t.Fatalf("extent %+v after end %d", x, last)
			}
			last = x.end()
			count++
			if x.data() {
				bytes += x.len
			}
			got.insert(x)
		}
	}
	if count != m.count || bytes != m.bytes {
		t.Fatalf("counted %d extents, %d bytes; the map says %d, %d", count, bytes, m.count, m.bytes)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d comes from %d, want %d", i, got[i], want[i])
		}
	}
	for off := range int64(len(want)) {
		x := m.at(m.seek(off))
		for i := off; ; i++ { // the first extent that ends after off
			if i == int64(len(want)) {
				if x != nil {
					t.Fatalf("seek %d found %+v, nothing is there", off, *x)
				}
				break
			}
			if want[i] != 0 {
				if x == nil || x.end() <= off || x.off > i {
					t.Fatalf("seek %d found %+v, byte %d is mapped", off, x, i)
				}
				break
			}
		}
	}
}

func TestExtentMap(t *testing.T) {
	seed := testutil.Seed(t)
	for round := range 16 {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		size := int64(300 + r.IntN(3000))
		longest := 1 + r.Int64N(1+size/int64(1+r.IntN(40)))
		var m extentMap
		want := make(flat, size)
		pos := int64(0)
		for i := range 1200 {
			off := r.Int64N(size)
			switch round % 4 {
			case 1: // ascending
				off = int64(i) * 2 % size
			case 2: // descending
				off = size - 1 - int64(i)*2%size
			}
			x := extent{off: off, len: min(1+r.Int64N(longest), size-off), pos: pos}
			pos += x.len + 84
			m.insert(x)
			want.insert(x)
			if i%250 == 0 || i == 1199 {
				m.check(t, want)
			}
		}
		m.reset()
		m.check(t, make(flat, size))
	}
}

// The memory of an extent must stay near 64 bytes whatever the order of writes.
func TestExtentMapMemory(t *testing.T) {
	const n = 40000
	orders := map[string]func(i int) int64{
		"ascending":  func(i int) int64 { return int64(i) },
		"descending": func(i int) int64 { return int64(n - i) },
		"random":     func(i int) int64 { return int64(uint32(i)*2654435761) % (1 << 30) },
		"inside out": func(i int) int64 { return n + int64(i)*int64(1-i%2*2) },
	}
	for name, at := range orders {
		var m extentMap
		for i := range n {
			m.insert(extent{off: at(i) * 8192, len: 4096})
		}
		if per := len(m.leaf) * (4096 + 16) / m.count; per > 72 {
			t.Errorf("%s: %d bytes an extent (%d leaves for %d)", name, per, len(m.leaf), m.count)
		}
	}
}

func FuzzExtentMap(f *testing.F) {
	f.Add([]byte{0, 10, 5, 2, 3, 200, 9, 1})
	f.Add([]byte{10, 20, 15, 5, 0, 255})
	f.Fuzz(func(t *testing.T, p []byte) {
		var m extentMap
		want := make(flat, 512)
		for i := 0; i+1 < len(p); i += 2 {
			x := extent{off: int64(p[i]) * 2, len: 1 + int64(p[i+1])%int64(512-int(p[i])*2), pos: int64(i) * 1000}
			m.insert(x)
			want.insert(x)
		}
		m.check(t, want)
	})
}

// Kinds keep their meaning when they are cut.
func TestExtentCut(t *testing.T) {
	for _, c := range []struct{ in, want extent }{
		{extent{off: 0, len: 100, pos: 1000}, extent{off: 40, len: 60, pos: 1040}},
		{extent{off: 0, len: 100, pos: 1000, kind: kindPacked, skip: 5}, extent{off: 40, len: 60, pos: 1000, kind: kindPacked, skip: 45}},
		{extent{off: 0, len: 100, pos: 1000, kind: kindDiscard}, extent{off: 40, len: 60, pos: 1000, kind: kindDiscard}},
	} {
		x := c.in
		if x.cutFront(40); x != c.want {
			t.Errorf("cut %+v: got %+v, want %+v", c.in, x, c.want)
		}
	}
}
