//go:build mutant_tombstone

package sim

func init() { tagged = "a merge forgets tombstones" }
