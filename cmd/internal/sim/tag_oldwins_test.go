//go:build mutant_oldwins

package sim

func init() { tagged = "in the merge of two trees the older stamp wins" }
