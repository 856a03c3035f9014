// Package crashdisk is a set of disks that remember, for tests of power cuts with
// a real file system on top (reference/acceptance.md 8.6). One server exports
// them all by NBD; every write and every flush of all of them goes, with its data,
// into one totally ordered history, into which the test inserts marks. The cut is
// virtual: the run ends normally, and for any index of the history the disks are
// rebuilt as they might have looked if the power had failed there.
//
//	rec := crashdisk.New(journal.Tick)
//	err := rec.AddDisk("mars", image)           // what mkfs has left
//	err = rec.AddDisk("disk", image)
//	stop, err := rec.Serve(socket, nil)         // nbdfuse, loop device, mount, work, umount
//	cutter := rec.History().Cutter()
//	state := cutter.Cut(index, crashdisk.Half, rng)
//	err = state.WriteFile("mars", path)         // mount it and look
//
// # Guarantees
//
//   - A rebuilt disk has everything that was written before its last flush in the
//     history, and of the later writes what the policy selects, applied in order.
//   - The history is one for all disks: no disk contains an effect of something
//     that another disk has not got as a part of its history yet.
//   - The Tick of an Entry orders it among the events of the clock that was given to
//     New: what was answered to a client before the tick of entry i depends on entries
//     before i only.
//
// # Non-guarantees
//
//   - A flush covers everything that the server has received before it, also writes
//     whose reply was still on its way. A real disk may lose those.
//   - Sectors of 512 bytes are never torn inside.
//   - The history is in memory.
package crashdisk
