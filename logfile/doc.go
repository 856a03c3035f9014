// Package logfile is the transaction log of a resource: the record codec, a
// Writer with group commit, a Reader that tells the end of a log from a torn one
// and a damaged one, the Chain of logfiles of a resource directory, and tools to
// list and verify. It knows no device and no tree.
//
// The files are those of the original MARS, byte for byte (docs/LOG-FORMAT.md);
// its tools can read ours and we read theirs. On top, every record that we write
// is sealed: a CRC-32C over all of it, in bytes that the original ignores.
//
// # Guarantees
//
// Writer:
//   - Records stand in the file in the order in which OnAppend saw them, and the
//     entries of one Append next to each other. An Append that returned before
//     another began comes first (P1).
//   - When Append returns, its records are in the page cache: they survive the
//     death of the process. When Sync returns nil, everything appended before the
//     call is on the disk (P2).
//   - The first failed or short write, and the first failed fdatasync, are final.
//     Nothing is acknowledged behind them; bytes of a failed fdatasync never count
//     as durable, not even by a later fdatasync that succeeds.
//   - A file with content is never appended to by a new Writer.
//
// Reader:
//   - It returns records in file order, each one verified as its Mode says, or one
//     of io.EOF, *TornError, *CorruptError, the cause of the context, or the error
//     of the disk. These are never mistaken for each other.
//   - io.EOF means: a record border, exactly at the authoritative length.
//   - In Strict mode no change of a single byte of a record passes; in Compat mode
//     neither, behind the first sealed record.
//   - Given the durable length, no confirmed byte is ever called a torn tail, and
//     no unconfirmed one damage.
//   - A record that cannot be applied to the device (MaxPos) is refused (P13).
//
// Chain:
//   - Durable is a length that was really synced; Wait shows nobody more (P5).
//   - AppendRaw makes no holes: a piece that does not continue the file is refused.
//   - ReadAt and Readers keep their file while it is removed.
//
// # Non-guarantees
//
//   - Atomicity of more than one record: a crash may keep the first records of an
//     Append. Entries of up to MaxRecord bytes are never split.
//   - Blocks that were not synced before a power failure may be there, missing or
//     mixed; without the durable length a hole among them counts as damage.
//   - A seal is no signature: it finds accidents, not attackers.
//   - LZO records are refused (as damage, with a reason that says so). Nothing but
//     runs of zeros is ever written compressed.
//   - Whether a deleted log may be made again, or a file is complete (Seal), is
//     the caller's knowledge.
package logfile
