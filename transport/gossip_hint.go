package transport

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// A hint on the wire has 54 bytes, little endian:
//
//	 0  u8   version 1
//	 1  u8   reserved, 0
//	 2  u32  CRC-32C of the rest
//	 6  [8]  first 8 bytes of the SHA-256 of the node's name
//	14  u64  stamp: a newer hint of the same node has a greater one
//	22  u64  epoch
//	30  u64  seq
//	38  [16] root digest
//
// The name travels as a hash so that hints have one small size; receivers know
// the names of all members.
const (
	hintVersion = 1
	hintSize    = 54
	// maxHints bounds what one node's state may bring.
	maxHints = 4096
)

type nodeHash [8]byte

func hashNode(name string) nodeHash {
	sum := sha256.Sum256([]byte(name))
	return nodeHash(sum[:8])
}

type wireHint struct {
	node  nodeHash
	stamp uint64
	Hint
}

func (w wireHint) append(b []byte) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = append(b, hintVersion, 0, 0, 0, 0, 0)
	b = append(b, w.node[:]...)
	b = le.AppendUint64(b, w.stamp)
	b = le.AppendUint64(b, w.Epoch)
	b = le.AppendUint64(b, w.Seq)
	b = append(b, w.Digest[:]...)
	le.PutUint32(b[start+2:], crc32.Checksum(b[start+6:], castagnoli))
	return b
}

func decodeHint(b []byte) (w wireHint, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) != hintSize:
		return w, fmt.Errorf("%w: hint of %d bytes, want %d", ErrCorrupt, len(b), hintSize)
	case b[0] != hintVersion || b[1] != 0:
		return w, fmt.Errorf("%w: hint of version %d, want %d", ErrCorrupt, b[0], hintVersion)
	case le.Uint32(b[2:]) != crc32.Checksum(b[6:], castagnoli):
		return w, fmt.Errorf("%w: hint checksum", ErrCorrupt)
	}
	w.node = nodeHash(b[6:14])
	w.stamp = le.Uint64(b[14:])
	w.Epoch, w.Seq = le.Uint64(b[22:]), le.Uint64(b[30:])
	w.Digest = [16]byte(b[38:54])
	return w, nil
}

// decodeHints reads the concatenation of hints that a node sends as its state.
func decodeHints(b []byte) ([]wireHint, error) {
	if len(b)%hintSize != 0 || len(b) > maxHints*hintSize {
		return nil, fmt.Errorf("%w: state of %d bytes", ErrCorrupt, len(b))
	}
	var out []wireHint
	for ; len(b) > 0; b = b[hintSize:] {
		w, err := decodeHint(b[:hintSize])
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// hintTable has the newest hint of each node and the queue that spreads them.
// It implements memberlist.Delegate: nothing in it blocks.
type hintTable struct {
	me    nodeHash
	own   func() Hint
	news  func(name string, h Hint) // must not block
	queue *memberlist.TransmitLimitedQueue
	quiet *quietLog

	mu    sync.Mutex
	now   func() time.Time
	names map[nodeHash]string // live members, without this node
	known map[nodeHash]wireHint
	stamp uint64
}

// broadcastHint supersedes the older hint of its node in the queue.
type broadcastHint struct {
	node nodeHash
	msg  []byte
}

func (b *broadcastHint) Invalidates(memberlist.Broadcast) bool { return false } // by name
func (b *broadcastHint) Name() string                          { return string(b.node[:]) }
func (b *broadcastHint) Message() []byte                       { return b.msg }
func (b *broadcastHint) Finished()                             {}

// publish makes a new own hint and queues it.
func (t *hintTable) publish() {
	if t.own == nil {
		return
	}
	h := t.own()
	t.mu.Lock()
	// The clock only makes it likely that a restarted node is ahead of its past;
	// accept makes it certain.
	t.stamp = max(t.stamp+1, uint64(t.now().UnixNano()))
	w := wireHint{t.me, t.stamp, h}
	t.known[t.me] = w
	t.mu.Unlock()
	t.queue.QueueBroadcast(&broadcastHint{t.me, w.append(nil)})
}

// accept takes a hint from anybody and passes it on the first time it sees it.
func (t *hintTable) accept(w wireHint) {
	t.mu.Lock()
	if w.node == t.me {
		// Our past, kept by others. Be ahead of it from now on.
		again := w.stamp > t.stamp
		t.stamp = max(t.stamp, w.stamp)
		t.mu.Unlock()
		if again {
			t.publish()
		}
		return
	}
	name, member := t.names[w.node]
	if old, ok := t.known[w.node]; !member || ok && old.stamp >= w.stamp {
		t.mu.Unlock()
		return
	}
	t.known[w.node] = w
	t.mu.Unlock()
	t.queue.QueueBroadcast(&broadcastHint{w.node, w.append(nil)})
	t.news(name, w.Hint)
}

// member adds or removes a node. Only members have hints, so a table is as small
// as the cluster.
func (t *hintTable) member(name string, alive bool) {
	h := hashNode(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if alive {
		t.names[h] = name
		return
	}
	delete(t.names, h)
	delete(t.known, h)
}

// NodeMeta is the protocol version, so that a later one can tell.
func (t *hintTable) NodeMeta(limit int) []byte { return []byte{Protocol} }

func (t *hintTable) NotifyMsg(b []byte) {
	w, err := decodeHint(b)
	if err != nil {
		t.quiet.warn("hint", "gossip message refused", "err", err)
		return
	}
	t.accept(w)
}

func (t *hintTable) GetBroadcasts(overhead, limit int) [][]byte {
	return t.queue.GetBroadcasts(overhead, limit)
}

func (t *hintTable) LocalState(bool) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b []byte
	if own, ok := t.known[t.me]; ok {
		b = own.append(b)
	}
	for h, w := range t.known {
		if h != t.me && len(b) < (maxHints-1)*hintSize {
			b = w.append(b)
		}
	}
	return b
}

func (t *hintTable) MergeRemoteState(b []byte, _ bool) {
	list, err := decodeHints(b)
	if err != nil {
		t.quiet.warn("hint", "gossip state refused", "err", err)
		return
	}
	for _, w := range list {
		t.accept(w)
	}
}
