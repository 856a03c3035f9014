//go:build mutant_tombstone

package symlinktree

// A mutant for the cluster simulation, never part of a build without its tag: a merge forgets tombstones.
// A simulation that does not fail with it proves nothing.
func init() { mergeRule = func(a, b Entry) bool { return !a.IsDeleted() && newer(a, b) } }
