// Package sweep holds the crash-point sweep of the Engine: tests only, no code. It is a
// package of its own because its workloads run in synctest bubbles, and because it
// drives logfile, symlinktree and device together on one crashfs, as marsd does.
// "The crash-point sweep" in device/DESIGN.md says what is cut, what counts as
// distinct, and how one point is replayed.
//
// # Guarantees
//
//   - A workload is a deterministic interleaving of the client, the FLUSHes of another
//     connection, the writeback, rotation, publication and the deletion of logs, at the
//     grain of persisted operations. It is a function of seed, workload, mode and metadata
//     model, so that a point has a name that finds it again.
//   - Every state that is counted was recovered as marsd does it, and judged by what the
//     clients were told (oracle) and by the log (logoracle).
//
// # Non-guarantees
//
//   - Locks are not interleaved, operations are: races are what -race is for.
package sweep
