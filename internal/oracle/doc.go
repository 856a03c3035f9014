// Package oracle judges disk images: does this image equal some prefix of the
// history of writes that the application saw (reference/acceptance.md part 8)?
// It knows nothing about logs, trees or positions: it takes the word of the
// application only, which is the Journal that a Load keeps while it writes
// self-describing sectors through a Client.
//
//	j, err := oracle.NewJournal(oracle.JournalConfig{Run: seed, Branch: 1, Size: size})
//	load := oracle.NewLoad(j, oracle.P8, seed)
//	err = load.Run(ctx, conn1, conn2)         // until ctx ends or a connection breaks
//	v, err := j.CheckImage(disk, oracle.Options{Durable: oracle.Flushed, AsOf: tick})
//	if err := v.Err(); err != nil { ... }     // says which sector, which writes, why
//
// Package logoracle below is the second opinion, which trusts the log instead.
//
// # Guarantees
//
//   - Check is exact for its definition: it accepts an image if and only if there
//     is a set of submitted requests, closed under "completed before submitted",
//     that contains what Options demands (Durable, Since) and leaves exactly this
//     image. With Options.RecordSectors one request may be cut short, with Torn
//     those without a completion may be torn. Exceptions only accept too much:
//     the rule that at most one request is cut does not look at sectors which
//     several zeroings explain; more than eight requests without an answer, or
//     one that may be cut, below later zeroings are not examined in all
//     combinations; and a CRC-32C may collide.
//   - A true prefix of any log that respects the order of completion is accepted.
//   - Submit and completion are ordered by one counter, never by the clock.
//   - A Load never has overlapping requests in flight, even across lost
//     connections, until it is told by Fence that nothing old can still arrive.
//
// # Non-guarantees
//
//   - Requests that were in flight together may be reordered without a finding if
//     every order of them is allowed: use P1 or logoracle for that.
//   - Overlapping requests in flight (reference 8.7) are not judged here.
//   - Times (Verdict.Age) are for people; no verdict depends on them.
package oracle
