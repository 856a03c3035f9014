// Package macro turns the symlink tree into the values and lines that `marsadm
// view` prints. A Context names what is looked at (tree, node, resource, clock);
// every view is a Macro that is looked up by name and evaluated in a Context.
//
// Macros are of two kinds, in one table. Primitives are Go functions that read links
// and compute one value or word (reference marsadm.md 8.2). Complex ones are texts of
// the macro language (8.1, docs/VIEWS.md) that put primitives together to lines and
// blocks (8.3); they are the files in views/. A Library adds files of the
// administrator, which are found before both, also where other macros use them.
//
// A text goes through three stages: source.go takes comments out and remembers where
// every byte came from, parse.go makes a tree of verbatim pieces and calls, machine.go
// evaluates it. Arguments are evaluated by the macro that gets them. The macros of the
// language itself are in builtin.go, operators.go, text.go and glob.go.
//
// Report is the same knowledge as a structure, for JSON, `marsadm check` and `marsadm
// why`.
//
// # Guarantees
//
//   - Evaluation reads only what the Context offers. It writes nothing and never
//     blocks, except by %setlink, %sleep and %wait-..., which go through hooks of the
//     Context.
//   - The same tree, clock and files give the same text.
//   - A malformed or missing link yields an empty value or 0, never a panic.
//   - Every text comes to an end: steps, bytes and depth are limited, and the context
//     is looked at. An error names the macro, line and column, what is wrong and what
//     was expected.
//   - Numbers are true or said to be unknown: rates of a host that is not heard are 0,
//     ages grow with the clock, and a disk counts as consistent only while P4 of the
//     design holds for it.
//
// # Non-guarantees
//
//   - The tree is one node's knowledge. What other hosts are said to do is as old as
//     their latest news (the alive-age views tell how old).
//   - Regular expressions are Go's: those of Perl without look-around and
//     back-references.
package macro
