// Package demo is `marsd demo`: a cluster of three nodes on loopback addresses, in
// a temporary directory, driven and explained step by step.
//
// # Guarantees
//
//   - It needs nothing but the marsd binary: the daemons are the same binary,
//     marsadm runs inside the process, the filesystem image is part of it.
//   - Every command that is shown has been executed as shown; every value that is
//     shown was read from the node's tree after that.
//   - Run returns nil only if everything that was written has been read back on
//     another node and all disks are equal.
//   - Nothing is left behind, whichever way it ends, unless Options.Keep is set. The
//     daemons do not even survive a kill -9 of the demo.
//
// # Non-guarantees
//
//   - It is not a benchmark: the nodes share one machine and one disk.
package demo
