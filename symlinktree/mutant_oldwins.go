//go:build mutant_oldwins

package symlinktree

// A mutant for the cluster simulation, never part of a build without its tag: in the merge of two trees the older stamp wins.
// A simulation that does not fail with it proves nothing.
func init() { mergeRule = func(a, b Entry) bool { return newer(b, a) } }
