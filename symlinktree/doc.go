// Package symlinktree keeps the replicated state of a MARS node: a key-value
// store that is made of symlinks. The path of a link is the key, its text the
// value, its own mtime the Lamport stamp of the value. Administrators read it
// with "ls -l" and may write it with "ln -sfn"; marsd and any number of marsadm
// processes share one tree without locks. docs/TREE-SCHEMA.md lists the keys.
//
// A Tree is the disk plus a memory of it. Reads come from the memory, as an
// immutable Snapshot that costs nothing. Writes go to the disk first. Merge takes
// entries of a peer, Since and the digests find out what a peer lacks; carrying
// them is somebody else's job: this package knows no network.
//
// # Guarantees
//
//   - A reader of the disk sees the old value or the new one with its own stamp,
//     never something in between and never a missing link (temporary link,
//     utimensat, rename).
//   - Stamps given out by one Clock are strictly increasing, and newer than every
//     stamp that it has seen: on the disk, at Open and in every rescan, and in
//     every Merge. So an edit made in knowledge of another one wins everywhere.
//   - A new value carries a stamp newer than the one that is on the disk at that
//     moment, whoever wrote that. Where the file system can exchange two names
//     (RENAME_EXCHANGE), an edit that falls between looking and renaming is
//     noticed and not lost.
//   - Merge is commutative, associative and idempotent: the last writer wins on
//     (stamp, value). Trees that have seen the same entries are equal, whatever
//     the order, loss and repetition on the way. Tombstones are entries like any
//     other, also where there was nothing to delete: what was deleted stays
//     deleted as long as the tombstone is kept.
//   - Stamps more than 30 days ahead of the real clock are refused from peers and
//     replaced on the disk; they never move the Clock.
//   - Links are never followed. No path from a peer leads out of the known
//     directories, into an unreplicated one, or over a file that holds data:
//     only a tombstone removes a regular file, and only a logfile.
//   - A directory that vanishes deletes nothing: its links stay in memory and come
//     back to the disk with the directory.
//   - Under Watch, edits by hand are taken within milliseconds, and within
//     Options.RescanInterval even if the kernel loses every event.
//
// # Non-guarantees
//
//   - A link that was set is atomic but not durable before SyncDir or
//     SetAllDurable has returned. After a power failure it may have its old value.
//   - There is no order between two links that are seen by another process or
//     node, except that Merge writes the liveness beacons last.
//   - Tombstones are not collected here: Unlink them when every peer has them.
//   - A "rm -rf" of a directory that takes longer than Options.VanishDelay is seen
//     as the deletion of the links that it got hold of first.
//   - The file system must keep nanoseconds (ext4, xfs, btrfs, tmpfs do). One that
//     does not is refused at the first write.
//   - On a file system without RENAME_EXCHANGE two processes that write the same
//     link within the same microseconds may both succeed; the last rename stays.
package symlinktree
