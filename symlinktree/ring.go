package symlinktree

import "sort"

// ringLimit bounds the number of paths whose latest change is remembered.
const ringLimit = 64 << 10

// ring remembers in which order paths changed, each path once. It does not
// hold the values: whoever asks gets the newest.
type ring struct {
	limit  int
	seq    uint64            // of the latest change
	floor  uint64            // changes up to here may have been dropped
	order  []ringItem        // ascending; stale where latest says otherwise
	latest map[string]uint64 // path -> its newest seq
}

type ringItem struct {
	seq  uint64
	path string
}

// newRing starts at 1, so that a peer that asks for everything after 0 is sent
// to a digest exchange: what was read at Open never went through the ring.
func newRing(limit int) *ring {
	return &ring{limit: limit, seq: 1, floor: 1, latest: make(map[string]uint64)}
}

func (r *ring) add(path string) {
	r.seq++
	r.order = append(r.order, ringItem{r.seq, path})
	r.latest[path] = r.seq
	for len(r.latest) > r.limit {
		first := r.order[0]
		r.order = r.order[1:]
		if r.latest[first.path] == first.seq {
			delete(r.latest, first.path)
			r.floor = first.seq
		}
	}
	if len(r.order) > 2*len(r.latest)+1024 {
		r.compact()
	}
}

func (r *ring) compact() {
	live := make([]ringItem, 0, len(r.latest)+512)
	for _, it := range r.order {
		if r.latest[it.path] == it.seq {
			live = append(live, it)
		}
	}
	r.order = live
}

// forget drops a path that has left the disk for good.
func (r *ring) forget(path string) { delete(r.latest, path) }

// since returns the paths changed after seq in the order of their newest
// change; ok is false if the ring cannot tell.
func (r *ring) since(seq uint64) (paths []string, ok bool) {
	if seq < r.floor || seq > r.seq {
		return nil, false
	}
	i := sort.Search(len(r.order), func(i int) bool { return r.order[i].seq > seq })
	for _, it := range r.order[i:] {
		if r.latest[it.path] == it.seq {
			paths = append(paths, it.path)
		}
	}
	return paths, true
}
