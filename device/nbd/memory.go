package nbd

import "sync"

// memoryPage is the unit of allocation of Memory, in bytes.
const memoryPage = 64 << 10

// Memory is a Backend in RAM, the twin of a real device for tests and benchmarks. It is sparse: pages that
// were never written, or trimmed or zeroed as a whole, cost nothing. Nothing of it is durable.
type Memory struct {
	size  int64
	mu    sync.RWMutex
	pages map[int64][]byte // by number
}

// NewMemory returns a device of size zero bytes.
func NewMemory(size int64) *Memory {
	return &Memory{size: size, pages: make(map[int64][]byte)}
}

// Size implements Backend.
func (m *Memory) Size() int64 { return m.size }

// ReadAt implements Backend.
func (m *Memory) ReadAt(p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.walk(off, int64(len(p)), func(page int64, in, n int) {
		if b := m.pages[page]; b != nil {
			copy(p[:n], b[in:])
		} else {
			clear(p[:n])
		}
		p = p[n:]
	})
	return nil
}

// TryReadAt implements Backend.
func (m *Memory) TryReadAt(p []byte, off int64) (bool, error) { return true, m.ReadAt(p, off) }

// Submit implements Backend.
func (m *Memory) Submit(ops []Op) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range ops {
		m.apply(&ops[i])
	}
	return nil
}

// Sync implements Backend.
func (m *Memory) Sync(done func(error)) { done(nil) }

// SyncNow has nothing to do.
func (m *Memory) SyncNow() (done bool, err error) { return true, nil }

// Extents implements SparseBackend.
func (m *Memory) Extents(dst []Extent, off, end int64, limit int) ([]Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	have := len(dst)
	for off < end {
		n := min(memoryPage-off%memoryPage, end-off)
		var state State
		if m.pages[off/memoryPage] == nil {
			state = StateHole | StateZero
		}
		if k := len(dst); k > have && dst[k-1].State == state {
			dst[k-1].Len += n
		} else if k-have == limit {
			break
		} else {
			dst = append(dst, Extent{n, state})
		}
		off += n
	}
	return dst, nil
}

// FastZeroes implements SparseBackend.
func (m *Memory) FastZeroes() bool { return true }

// Prefetch has nothing to do.
func (m *Memory) Prefetch(int64, int64) error { return nil }

// Pages is the number of allocated pages of 64 KiB.
func (m *Memory) Pages() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.pages)
}

func (m *Memory) apply(op *Op) {
	if op.Kind != OpWrite && !op.NoHole {
		m.drop(op.Off, op.Len)
		return
	}
	data := op.Data
	m.walk(op.Off, op.Len, func(page int64, in, n int) {
		b := m.pages[page]
		if op.Kind == OpWrite {
			if b == nil {
				b = make([]byte, memoryPage)
				m.pages[page] = b
			}
			copy(b[in:], data[:n])
			data = data[n:]
			return
		}
		if b == nil {
			m.pages[page] = make([]byte, memoryPage)
		} else {
			clear(b[in : in+n])
		}
	})
}

// drop frees the whole pages of a range and zeroes the rest.
func (m *Memory) drop(off, length int64) {
	if length/memoryPage > int64(len(m.pages)) { // a huge range: look at what there is instead
		for page := range m.pages {
			lo, hi := max(off, page*memoryPage), min(off+length, (page+1)*memoryPage)
			if lo < hi {
				m.dropIn(page, int(lo-page*memoryPage), int(hi-lo))
			}
		}
		return
	}
	m.walk(off, length, m.dropIn)
}

func (m *Memory) dropIn(page int64, in, n int) {
	if n == memoryPage {
		delete(m.pages, page)
	} else if b := m.pages[page]; b != nil {
		clear(b[in : in+n])
	}
}

// walk calls f for each piece of a range that lies in one page.
func (m *Memory) walk(off, length int64, f func(page int64, in, n int)) {
	for length > 0 {
		in := off % memoryPage
		n := min(memoryPage-in, length)
		f(off/memoryPage, int(in), int(n))
		off += n
		length -= n
	}
}
