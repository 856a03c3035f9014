// Package systemd makes the services of a resource follow its primary: it writes
// units from an administrator's templates and starts and stops them. It knows no
// tree and no cluster: who calls it has decided.
//
// A template is a file *.service, *.mount, *.path, ... or *.script in one of the
// template directories; of two with the same name the one in the first directory
// counts. In its name and its text
//
//	@{var}           the value of a variable (res, host, dev, ...)
//	@escvar{var}     the value, escaped as systemd-escape --path does
//	@esc{text}       the text, likewise
//	@verbatim{text}  the text as it is
//	@eval{text}      the text, evaluated in the macro language
//	^{var}           in names only: any text; it becomes the value of var
//
// Units that a generated one refers to (Requires=, After=, Unit=, ... and comment
// lines "# ALSO=NAME") are generated as well if there is a template for them.
// Comment lines with markers: ALWAYS_DISABLED (is not enabled), ALWAYS_START (is
// started as soon as it has been generated), KEEP_RUNNING (is not stopped when it is
// removed). A .script is run directly, with the argument start or stop.
//
// # Guarantees
//
//   - A file that this package has not generated is never overwritten nor removed.
//   - A generated file that would not change is not written, and systemd is told to
//     reload only if one has been.
//   - Files appear complete, by rename.
//   - Every call of systemctl ends with the context.
//   - Of the processes that hold the Lock of a resource there is one at a time, and a
//     process that dies holds none.
//
// # Non-guarantees
//
//   - Whether a unit does what its author wanted is not checked beyond the exit code
//     of systemctl.
package systemd
