// Package cluster makes a node of the cluster out of the other packages: it keeps
// the symlink tree in step with the peers and drives each resource of this node
// toward what the tree says. See DESIGN.md beside this file.
//
// # Guarantees
//
// P6: what the tree says about this node became true before it was written: the
// replay position after the disk was flushed, a log length after the log was
// synced, is-primary 0 and is-attached 0 after the device was closed.
//
// P7: a node writes only its own status links and its own logfiles, and nothing
// for a resource that it is no member of any more.
//
// P8: a logfile at or after this node's replay position is not deleted by what a
// peer decided without knowing that position.
//
// P9: a fork in the version chain stops replay and fetch in front of it and is
// reported by every node that sees it; it is never resolved automatically.
//
// P10: nothing in the write path of a primary waits for a peer.
//
// P11: gossip and liveness choose when to look and whom to copy from. They never
// decide a role.
//
// P12: transitions that fail are repeated with growing pauses and reported; every
// network wait has a deadline.
//
// P13: a link that nobody can read changes nothing. It is reported in msg-err-broken-link
// and in the log, and the last value that could be read stays in force; status
// links that only this node writes are set again.
//
// # Non-guarantees
//
// One primary at a time is what marsadm asks for and waits for; two nodes that
// are both told to be primary while they cannot hear each other both obey.
// Membership has no quorum.
package cluster
