// Package device is a replicated block device on one node: the backing Disk, the
// Engine (transaction log, extent index, writeback), the full sync target, and the
// NBD Export. It knows logfile and no cluster; what it has to publish goes to a
// Journal.
//
// One Engine per resource runs the same machinery on both sides. A primary appends
// the writes of its clients to its own log; a secondary takes the records of a
// fetched log as they become durable. Both enter an index of extents that says where
// in the logs the newest data is; reads look there first and then on the disk.
// Writeback carries the index to the disk in device order. DESIGN.md in this
// directory describes the states and the order of steps.
//
// # Guarantees
//
//   - Order (P1): the log is one total order of all writes, compatible with the order of
//     their acknowledgements. Reads see every acknowledged write.
//   - Durability (P2): a write is acknowledged after write(2) to the log. FLUSH and
//     FUA are answered after an fdatasync that covers everything acknowledged before,
//     on any connection and in any earlier log. Nothing is acknowledged behind a
//     record that failed.
//   - Recovery (P3): after a crash Recover brings the device to a prefix of the log that has
//     everything P2 promised, without writing to the disk. Recovery of a recovery changes
//     nothing.
//   - Prefix (P4): after SetReplay(false), StopLogging or a clean Close the disk is
//     exactly the log up to the published position. At any other moment, also after a
//     crash, everything outside the published dirty zone is, and replaying the zone
//     makes it so.
//   - Order of publication (P5, P6): no data reaches the disk before its log is durable and
//     the zone is announced; the position moves after the disk was flushed;
//     ReadStable and the log hand out durable data only.
//   - A failed write or flush of the disk never moves the position. All that was
//     written since the last good flush is written again, until it works.
//   - A torn or damaged record is never applied. Replay stops in front of it, says
//     so, and goes on when the bytes have become sound. Recovery of an own log that is
//     damaged, or ends, before something that is known to be durable changes nothing, says
//     where, why and how much is behind it (DamageError), and gives it up only by force.
//   - TRIM and WRITE_ZEROES read as zeros afterwards, here and on every secondary.
//   - Memory is bounded by EngineConfig.IndexLimit, about 64 bytes an extent; writers
//     wait beyond it and are not failed.
//   - A node writes only logs that carry its name (P7), and no log twice.
//
// # Non-guarantees
//
//   - The disk image of a running engine is not a prefix: it may have any mixture of
//     the records in the dirty zone.
//   - A request larger than a record (about 28 KiB) that was not flushed may survive a crash
//     in part, cut at a 4 KiB block; so may a batch.
//   - Full sync makes the disk a mixture until replay has passed the position that Sync
//     returns. The caller keeps the node inconsistent until then.
//   - The media are trusted: data read back from log or disk is not verified again
//     after it was ingested.
//   - Nothing here decides roles, fetches logs or deletes them.
package device
