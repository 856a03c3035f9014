// Package adm is marsadm: the verbs with which an administrator says what a
// cluster shall do. It reads and writes the symlink tree, nothing else; marsd
// carries the intent out and reports back through the same tree.
//
// Every verb is built of three parts, kept apart: preconditions and plans are pure
// functions over a tree (files *plan*.go and the check functions), which yield
// batches of link operations; a session applies the batches, or prints them with
// --dry-run; waits poll the tree for what marsd publishes. The link operations and
// their order are the original's (reference marsadm.md section 6), so that a person
// with `ln -s` can do the same.
//
// # Guarantees
//
//   - A command that is refused has changed nothing. Words that are unknown or too
//     many are refused before anything is looked at.
//   - Exit codes: 0 done, 1 refused or failed, 2 usage, 3 timed out. A timeout is
//     never reported as success.
//   - Every wait ends: at --timeout, when marsd on this node stops, or on a signal.
//   - A handover that does not come to its end gives the role back to the host that
//     had it.
//   - --dry-run writes nothing, neither links nor directories, and does not wait.
//
// # Non-guarantees
//
//   - Two administrators who give contrary orders at the same time on two nodes are
//     ordered by Lamport time, not by intent.
//   - What is known of other hosts is as old as their last news; commands for which
//     that matters ask for fresh news first.
package adm
