// Package macro turns the symlink tree into the values and lines that `marsadm
// view` prints. A Context names what is looked at (tree, node, resource, clock);
// every view is a Macro that is looked up by name and evaluated in a Context.
//
// Macros are of two kinds, in one table: primitives read links and compute one
// value (reference marsadm.md 8.2); complex ones compose primitives to words and
// lines (8.3). Both are Go functions with string arguments and a string result,
// which is exactly the calling convention of the macro language, so that texts in
// that language can call them, replace them and be called in their place.
//
// # Guarantees
//
//   - Evaluation reads only what the Context offers. It writes nothing and never
//     blocks.
//   - The same tree, clock and files give the same text.
//   - A malformed or missing link yields an empty value or 0, never a panic.
//
// # Non-guarantees
//
//   - The tree is one node's knowledge. What other hosts are said to do is as old as
//     their latest news (the alive-age views tell how old).
package macro
