// Package transport is the one authenticated kind of connection between nodes:
// identities derived from the cluster secret, tree exchange, log subscriptions,
// bulk reads for sync (Server, Peer), and the gossip link (Gossip). It moves
// bytes and decides nothing. The bytes on the wire are in docs/WIRE-PROTOCOL.md,
// the reasons in DESIGN.md beside this file.
//
// # Guarantees
//
//   - Admission: no connection gets as far as a Handler, and no gossip message is
//     read, without the cluster secret. The name of the peer is that of its
//     certificate. A client talks to the node it wanted or to none. Wrong clocks
//     lock nobody out.
//   - Log subscriptions (Peer.Log) deliver the bytes of the file in order, without
//     gap, overlap or change, up to what the serving LogSource called durable and
//     never beyond. They end with nil only after the sealed end of the file. After
//     any other end the error names peer, resource, log and the byte to resume at.
//   - A peer that is silent for three heartbeats, or a network that takes no byte
//     for WriteTimeout, is an error. A slow network is not: what counts is that
//     bytes move. Nothing waits for ever.
//   - Damage is ErrCorrupt, an early end ErrTruncated, silence ErrTimeout, the end
//     of the caller's context its cause; they are never each other. Malformed input
//     changes nothing and is never delivered; of a batch of tree entries only the
//     bad ones are refused.
//   - Classes (tree, log, sync) of a peer have connections and token buckets of
//     their own: a sync cannot delay the log.
//   - Strangers cost a bounded number of descriptors, for HandshakeTimeout at most,
//     and one log line per kind and LogInterval.
//   - Gossip keeps trying to join every configured peer that is not alive, so a
//     partition of any length heals. The newest hint of each live node reaches the
//     others at the latest with a state exchange.
//   - Close of each type returns when no callback runs any more.
//
// # Non-guarantees
//
//   - No call retries and nothing is queued for a peer that is away: the caller
//     decides when to try again.
//   - Gossip may be late or wrong about who is alive. It proves nothing.
//   - Every holder of the secret is trusted as a member: it can call itself by any
//     name. Pinning the keys of nodes is for later.
//   - A peer runs at most one stream of a kind (tree, or one log of one resource) at
//     a server: a newer one ends the older with ErrSuperseded. That is how a
//     half-open connection is forgotten that only the server still believes in.
//   - Entries of the tree are checked for form, not for meaning.
package transport
