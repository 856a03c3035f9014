// Package spindle models a mechanical disk: seek, rotation, one head. It measures what the
// write engine is for, the same on every machine: log and data share one spindle, as on a server with one disk.
//
// Time is the clock of package time. In a bubble of testing/synctest that is a virtual
// clock, so ten minutes of a disk pass in seconds and every figure is repeatable.
//
// # Guarantees
//
//   - One request is served at a time; its time is a seek proportional to the square root of the
//     distance, the wait for the sector, and the transfer at media rate. The write cache of the disk is off.
//   - The disk picks, of those that its queue holds, the request that it reaches first (NCQ), unless one
//     has waited for Geometry.MaxAge. Raw and through the Engine the same Disk and queue serve.
//   - A Datasync returns when everything written to the file before is on the platter; of a file that has grown,
//     also a commit of the file system's journal (see FS).
//
// # Non-guarantees
//
//   - Content is not kept: files have a size, and read as zeros.
//   - Zones of different density, remapped sectors and track buffers are not modelled; reads of logged data that is
//     still in the page cache cost nothing.
//   - CPU time is not part of it: the figures are what the disk allows.
package spindle
