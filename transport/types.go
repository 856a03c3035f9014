package transport

import "context"

// Hello is what two nodes tell each other first. Each side decides on its own
// whether it goes on; a refusal is an error of Handler.Hello and its text
// reaches the other side.
type Hello struct {
	Node string `json:"node"`
	// UUID of the cluster, "(any)" while a node joins and does not know it yet.
	UUID string `json:"uuid"`
	// Addr is the value of the sender's ips/ip-NODE link: ADDR or ADDR:PORT.
	Addr string `json:"addr"`
	// Epoch and Seq say where the sender's change feed stands.
	Epoch uint64 `json:"epoch,string"`
	Seq   uint64 `json:"seq,string"`
	// Version is the software version, for people. Protocol is the wire protocol,
	// filled in by this package.
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
}

// TreeEntry is one link of the tree. Stamp is Lamport time in nanoseconds; a
// deleted link has the value ".deleted".
type TreeEntry struct {
	Path  string
	Value string
	Stamp int64
}

// Position is a place in the log: the name of a logfile and a byte offset in it.
type Position struct {
	Log    string `json:"log"`
	Offset int64  `json:"offset,string"`
}

// Handler is what a Server serves. It is implemented by the cluster package.
//
// All methods may be called concurrently, and again for the same thing after a
// lost connection, so all of them are idempotent. peer is the name from the
// verified certificate. They may block until ctx ends; ctx ends when the peer's
// connection breaks or the server closes. Error texts reach the peer;
// errors.Is(err, fs.ErrNotExist) survives the wire.
type Handler interface {
	Hello(ctx context.Context, peer string, h Hello) (Hello, error)

	// TreeSince returns the replicated entries that changed after (epoch, seq).
	// ok is false when that is unknown (other epoch, ring overrun): the peer then
	// compares digests.
	TreeSince(ctx context.Context, peer string, epoch, seq uint64) (entries []TreeEntry, newEpoch, newSeq uint64, ok bool, err error)
	// TreeWait returns nil as soon as there is something newer than (epoch, seq).
	TreeWait(ctx context.Context, peer string, epoch, seq uint64) error
	TreeDigests(ctx context.Context, peer string) (root [16]byte, dirs map[string][16]byte, epoch, seq uint64, err error)
	TreeDirs(ctx context.Context, peer string, dirs []string) ([]TreeEntry, error)

	// Nudge asks for: publish your time and look at me now.
	Nudge(ctx context.Context, peer string) error

	OpenLog(ctx context.Context, peer, resource, log string) (LogSource, error)
	// Received: peer has the first length bytes of a log of this node. Reports come in any order.
	Received(ctx context.Context, peer, resource, log string, length int64) error

	// ReadRange fills p from the resource's device at off. The position is the
	// log end observed after the read.
	ReadRange(ctx context.Context, peer, resource string, off int64, p []byte) (Position, error)
	// Digests returns one SHA-256 for each chunk of the range; an all-zero chunk
	// has the all-zero sum.
	Digests(ctx context.Context, peer, resource string, off, length, chunk int64) ([][32]byte, Position, error)
}

// LogSource is one logfile as its server knows it.
type LogSource interface {
	// ReadAt follows io.ReaderAt. It is only called for bytes below the durable
	// length that Wait reported.
	ReadAt(p []byte, off int64) (int, error)
	// Wait returns when the durable length is greater than beyond, or the file is
	// sealed (complete: nothing will ever be appended), or ctx ends (its error).
	// Wait(ctx, -1) reports the present state without blocking.
	Wait(ctx context.Context, beyond int64) (durable int64, sealed bool, err error)
	Close() error
}

// Hint is what gossip tells about a node's tree: where its change feed stands
// and what its tree looks like. It is advice, never a fact to act upon.
type Hint struct {
	Epoch, Seq uint64
	Digest     [16]byte
}
