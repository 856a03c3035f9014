// Package logoracle reads transaction logs for the judges of the tests
// (reference/acceptance.md 8.3b, TR8). It was written from the format tables in
// reference/log-engine.md part 1 alone, without a look at package logfile, and
// must stay so: a mistake that both make the same way would be invisible.
//
//	img := logoracle.NewImage(base, size)
//	res, err := logoracle.Reduce(img, logs, logoracle.Position{Log: "log-000000003-hosta", Offset: 81920})
//	diffs, err := logoracle.Compare(img, disk, size, 10)
//
// # Guarantees
//
//   - Every record up to the position is checked in full (both magics, lengths,
//     sequence, digest, our record CRC where the marker says that there is one)
//     before anything of it is applied; the first that is not sound is an *Error
//     that names log, offset and reason. Nothing at or after it is applied.
//   - The position must be a record border, otherwise Reduce fails.
//   - Bytes behind the position are never looked at.
//
// # Non-guarantees
//
//   - LZO payloads cannot be decompressed and are errors.
//   - Memory holds what the log touched, in pages of 64 KiB.
package logoracle
