package transport

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Traffic is what a server may send, in bytes per second. A frame has to be allowed by each rate that
// it is under.
type Traffic struct {
	// Limits hold for each peer by itself, Peers instead of them for the peers named there.
	Limits
	Peers map[string]Limits
	// Resources bound what all peers together get of a resource. Their Tree means nothing.
	Resources map[string]Limits
}

func (t *Traffic) of(k bucketKey) int64 {
	if k.resource != "" {
		return t.Resources[k.resource].of(k.class)
	}
	if l, ok := t.Peers[k.peer]; ok {
		return l.of(k.class)
	}
	return t.Limits.of(k.class)
}

// Validate names the first rate that is none.
func (t *Traffic) Validate() error {
	check := func(what string, l Limits) error {
		for class := range numClasses {
			if r := l.of(class); r != 0 && r < minRate {
				return fmt.Errorf("limit of class %v%s is %d bytes/s, want 0 (none) or at least %d", class, what, r, minRate)
			}
		}
		return nil
	}
	err := check("", t.Limits)
	for name, l := range t.Peers {
		if err == nil {
			err = check(" to peer "+name, l)
		}
	}
	for name, l := range t.Resources {
		if err == nil {
			err = check(" of resource "+name, l)
		}
	}
	return err
}

// bucketKey is a class and either a peer or a resource.
type bucketKey struct {
	class          Class
	peer, resource string
}

// lanes hold what a server knows about its traffic.
type lanes struct {
	packing struct {
		off  atomic.Bool
		used atomic.Int64
	}
	sent [numClasses]struct{ raw, wire atomic.Int64 }

	mu      sync.Mutex
	traffic Traffic
	buckets map[bucketKey]*bucket
	peers   map[string]*lane
}

// lane is the way to one peer.
type lane struct {
	packers [numClasses]packer
	// narrow is until when, in Unix nanoseconds, the log counts as held up by the network.
	narrow atomic.Int64
}

// maxLanes bounds the maps. Peers are authenticated and resources known, so they are small; the bound keeps
// them so if somebody invents names.
const maxLanes = 4096

func (l *lanes) lane(peer string) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[peer]
	if p == nil {
		if l.peers == nil || len(l.peers) > maxLanes {
			l.peers = map[string]*lane{}
		}
		p = &lane{}
		for i := range p.packers {
			p.packers[i].off = &l.packing.off
		}
		l.peers[peer] = p
	}
	return p
}

func (l *lanes) bucket(k bucketKey) *bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[k]
	if b == nil {
		if l.buckets == nil || len(l.buckets) > 4*maxLanes {
			l.buckets = map[bucketKey]*bucket{}
		}
		b = newBucket(l.traffic.of(k))
		l.buckets[k] = b
	}
	return b
}

func (l *lanes) set(t Traffic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.traffic = t
	for k, b := range l.buckets {
		b.set(t.of(k))
	}
}

// SetTraffic changes the sending rates, also of what is running.
func (s *Server) SetTraffic(t Traffic) error {
	if err := t.Validate(); err != nil {
		return fmt.Errorf("transport config: %w", err)
	}
	s.lanes.set(t)
	return nil
}

// SetCompression allows or forbids compressed frames. They are allowed at first.
func (s *Server) SetCompression(on bool) { s.lanes.packing.off.Store(!on) }

// Sent is what a server has sent of one class since it was made: bytes of content, bytes of them on the wire (behind
// compression, with the headers of frames, without those of TLS and TCP).
type Sent struct{ Content, Wire int64 }

// Sent returns the counters of a class.
func (s *Server) Sent(c Class) Sent {
	n := &s.lanes.sent[c]
	return Sent{n.raw.Load(), n.wire.Load()}
}

// Compressed is how many compressed frames a server has sent.
func (s *Server) Compressed() int64 { return s.lanes.packing.used.Load() }

// What the log is worth against a sync on the same line: while the log waits for the network, a sync waits
// after each frame for syncYield times as long as that took, so it keeps about a tenth of the line and ends some time.
const (
	syncYield    = 9
	maxSyncYield = time.Second
)

// held notes that sending a piece of the log took so long.
func (l *lane) held(took time.Duration) {
	if took > quickSend {
		l.narrow.Store(time.Now().Add(min(4*took, 2*time.Second)).UnixNano())
	}
}

// yield lets the log go first.
func (l *lane) yield(ctx context.Context, took, every time.Duration, beat func() error) error {
	until := time.Now().Add(min(syncYield*took, maxSyncYield))
	for time.Now().UnixNano() < l.narrow.Load() {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if err := sleep(ctx, min(left, every)); err != nil {
			return err
		}
		if err := beat(); err != nil {
			return err
		}
	}
	return nil
}
