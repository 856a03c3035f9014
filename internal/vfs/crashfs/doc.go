// Package crashfs is an in-memory vfs.FS that models a disk behind a volatile
// cache, with power cuts, process kills and injected faults (DESIGN section 8,
// reference/acceptance.md 8.6).
//
// # The model
//
// Every mutating call is one numbered operation. It takes effect at once for
// everybody who reads the live file system, and it leaves units behind that are
// not yet durable:
//
//   - a write: one data unit (its 512-byte sectors), and one size unit if it
//     grows the file;
//   - a truncate: one size unit (what it cuts off goes with it);
//   - create, mkdir, rename, remove: one entry unit; a rename is atomic;
//   - a symlink: one entry unit and one unit for its mtime, as symlink(2) and
//     utimensat(2) are two calls.
//
// Datasync makes the data and size units of that file durable which were there
// when it was called; never its directory entry. SyncDir makes the entry units
// of that directory durable, and the mtimes of the symlinks in it; never a
// sub-directory's or a file's own content. An entry of a cross-directory rename
// becomes durable with either directory.
//
// At a power cut a Policy decides which of the other units reached the disk:
// any subset, in any order, data units torn at sector borders. Two things are
// atomic and cumulative as on a real disk: a sector (a version that contains a
// later write contains all earlier writes to that sector) and the size of an
// inode (if a later size survives, so do the earlier truncates). What is lost
// reads as the last durable bytes, or as zeros where there were none. The mtime
// of a symlink whose unit is lost is the time of its creation.
//
// With SetMetadata(Journaled) the metadata behaves as on ext4 and XFS: size,
// entry and mtime units survive as a prefix in issue order, each Datasync or
// SyncDir commits all that were issued before, and a grown size survives only
// together with the data under it. The default, Unordered, is what POSIX
// promises, and harsher.
//
// A Datasync that fails by injection marks its units clean without having
// written all of them, as Linux does: they stay readable, a random part of them
// is durable, and no later Datasync covers the rest.
//
// # Guarantees
//
//   - After a crash nothing is lost that a Datasync and SyncDir covered, under
//     any policy; with KillState nothing is lost at all.
//   - Crash, KillState and the live file system never influence each other
//     afterwards; each may be used by its own goroutines.
//   - Same calls in the same order, same seeds: same states, byte for byte.
//   - Crash costs O(files + unsynced units), not O(bytes).
//
// # Non-guarantees
//
//   - The kernel's own writeback in the background is not modelled as an event:
//     it is the freedom of the policy. Only beyond pendingLimit units per file
//     or for all directories are the oldest made durable early, to bound memory.
//   - Space is counted in 4 KiB pages of file content; entries cost nothing.
//   - Permissions are stored, not enforced; there are no hard links, no sparse
//     allocation calls and no kernel descriptors (vfs.Fd is not implemented).
package crashfs
