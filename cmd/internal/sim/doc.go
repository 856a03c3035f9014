// Package sim holds the deterministic simulation of whole clusters: tests only, no code.
// N nodes live in one process and a synctest bubble, on fake time: the real cluster, transport (TLS and
// all), logfile, device and symlinktree code and the real marsadm, on crashfs disks and a faultnet
// network, with clocks that are wrong. See DESIGN.md beside this file. It is below cmd
// because marsadm is.
//
//	go test ./cmd/internal/sim -run TestSim -sim.seeds=2000
//	go test ./cmd/internal/sim -run TestSim/seed -sim.seed=N     // replays one, with the logs of its nodes
//	go test ./cmd/internal/sim -run TestShrink -sim.seed=N       // finds a shorter schedule with the same finding
//
// # Guarantees
//
//   - A seed decides the cluster, everything that is done to it and when: the schedule is a
//     function of the seed, drawn before the run.
//   - At every event, and on the way, while nobody can go on: P1 to P7 and P10, at most one device for each
//     history, no link that goes back or vanishes; at the end liveness: all replicas
//     equal, all trees equal, no split brain, within a bound of fake time.
//   - Every promise that a finding names has a negative control among the mutants.
//
// # Non-guarantees
//
//   - P8 and P9 are judged at the end only, by what they are for: everybody gets what it needs, and nobody is
//     left with a split brain or sees one that is none.
//   - The order in which goroutines run that are ready at the same fake instant is the runtime's, and so
//     are map iterations, selects with several ready cases, random pauses of retries and keys of TLS. A replay
//     repeats the schedule exactly and what follows from it nearly always; TestDeterministic
//     says how often.
//   - NBD is not in it: the application talks to the Engine's Backend.
package sim
