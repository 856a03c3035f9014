// Package e2e runs the real binaries with real clients: nothing in it is mocked,
// and most of the clients were not written by this project.
//
// The harness (harness_test.go, node_test.go) builds marsd and marsadm with the race detector
// once per run. A cluster is a set of processes on loopback addresses of its own,
// or, where links are cut or throttled, in network namespaces (netns_test.go).
//
// Power cuts (power_test.go and its neighbours) are virtual: /mars and the disk of a node
// are disks of package crashdisk, and the node starts again on what they might
// have held at any moment of a run.
//
// # Guarantees
//
//   - A panic, a data race or an unexpected end of any daemon fails the test that
//     started it, and its log is printed.
//   - Processes are ended by pid, loop devices, mounts and namespaces that a test
//     made are removed by it; at the end TestMain looks for leftovers and fails if
//     there are any.
//   - Waiting is for a predicate with a deadline.
//
// # Environment
//
//   - MARS_SOAK=DURATION: long forms; a scenario with rounds repeats them for about
//     that time.
//   - MARS_SEED=N repeats the random choices of a failed run.
//   - MARS_SKIPS=FILE collects the tests that were skipped, and why.
//   - MARS_E2E_KEEP=1 keeps the directories of failed tests.
package e2e
