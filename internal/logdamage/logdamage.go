// Package logdamage makes damaged logs out of healthy ones, for tests of everybody
// who reads logs: one case for each kind of damage, each record that it can hit and
// each place of the log in a series (docs/LOG-FORMAT.md). It reads the format with
// code of its own, so that it shares no mistake with package logfile.
package logdamage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// Class is what a reader must take the damage for: the word of marsadm's diskstate.
type Class string

// The classes.
const (
	Incomplete    Class = "IncompleteLog"          // a record that was begun and not ended
	Uninitialised Class = "UnInitializedLogRecord" // garbage where the end of a record must be
	Defective     Class = "DefectiveLog"           // everything else
	Missing       Class = "missing"                // bytes or a file that should be there
)

// Log is one logfile. Absent: there is no such file.
type Log struct {
	Data   []byte
	Absent bool
}

// Case is a series of logs of which one is damaged.
type Case struct {
	Name  string
	Logs  []Log
	Whole []int64 // lengths before the damage
	// The first record that must not be applied begins at Offset of Logs[File].
	File   int
	Offset int64
	Class  Class
	// Repeated is the byte that a verdict must name, -1 if none.
	Repeated int
	// Behind: the damage comes behind everything that the healthy log had.
	Behind bool
}

// Layout of a record.
const (
	headLen, endLen = 48, 36
	offVersion      = 8
	offValid        = 9
	offTotal        = 10
	offPos          = 28
	offStored       = 36
	offRaw          = 38
	offSeal         = 40
	endMagic        = 0
	endValid        = 12
	endFlags        = 14
	endSeq          = 16
	endDigest       = 20
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Borders returns the offsets of all records of a healthy log, and its length.
func Borders(log []byte) []int64 {
	at := []int64{0}
	for off := 0; off < len(log); {
		off += int(le.Uint16(log[off+offTotal:]))
		at = append(at, int64(off))
	}
	return at
}

// reseal makes the checksum of a changed record right again, so that other checks
// have to find the change.
func reseal(rec []byte) {
	crc := crc32.Update(0, castagnoli, rec[:offSeal])
	crc = crc32.Update(crc, castagnoli, make([]byte, 4))
	le.PutUint32(rec[offSeal:], crc32.Update(crc, castagnoli, rec[offSeal+4:]))
}

// hit is what a variant works on: its own copy of the log and the record that it is to damage.
type hit struct {
	log     []byte
	from    int // of the record
	to      int
	first   bool
	last    bool
	rng     *rand.Rand
	foreign []byte // a log of another resource or cluster
	size    int64  // of the device
}

func (h *hit) rec() []byte { return h.log[h.from:h.to] }
func (h *hit) end() []byte { return h.log[h.to-endLen : h.to] }

// sealed changes the record with f and seals it again.
func (h *hit) sealed(f func(rec, end []byte)) []byte {
	f(h.rec(), h.end())
	reseal(h.rec())
	return h.log
}

type variant struct {
	name     string
	class    Class
	repeated int
	make     func(h *hit) []byte // nil: this record cannot be damaged like that
	shift    bool                // the first bad record is the one behind
}

// bare is a variant without a repeated byte.
func bare(name string, class Class, f func(h *hit) []byte) variant {
	return variant{name: name, class: class, repeated: -1, make: f}
}

// put is a variant that changes bytes of the record and leaves its checksum alone.
func put(name string, class Class, f func(rec, end []byte)) variant {
	return bare(name, class, func(h *hit) []byte { f(h.rec(), h.end()); return h.log })
}

// again is one that seals the record anew.
func again(name string, class Class, f func(rec, end []byte)) variant {
	return bare(name, class, func(h *hit) []byte { return h.sealed(f) })
}

func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}

func noise(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func variants(size int64) []variant {
	list := []variant{
		put("start tag wrong", Defective, func(r, _ []byte) { r[3] ^= 0x10 }),
		put("start tag zero", Defective, func(r, _ []byte) { clear(r[:8]) }),
		put("unknown format version", Defective, func(r, _ []byte) { r[offVersion] = 9 }),
		put("marked invalid", Defective, func(r, _ []byte) { r[offValid] = 0 }),
		put("total length 0", Incomplete, func(r, _ []byte) { le.PutUint16(r[offTotal:], 0) }),
		put("total length negative", Defective, func(r, _ []byte) { le.PutUint16(r[offTotal:], 0xfff0) }),
		put("total length too small", Incomplete, func(r, _ []byte) { le.PutUint16(r[offTotal:], 40) }),
		put("total length larger than the file", "", func(r, _ []byte) { le.PutUint16(r[offTotal:], 0x7ffc) }),
		put("payload length impossible", Defective, func(r, _ []byte) { le.PutUint16(r[offStored:], 0x7fff) }),
		again("position beyond the device", Defective, func(r, _ []byte) { le.PutUint64(r[offPos:], uint64(size)+512) }),
		again("position negative", Defective, func(r, _ []byte) { le.PutUint64(r[offPos:], 1<<63) }),
		put("end tag zero", Incomplete, func(_, e []byte) { clear(e[:8]) }),
		put("end tag garbage", Uninitialised, func(_, e []byte) { e[2] ^= 0x81 }),
		put("completion mark wrong", Defective, func(_, e []byte) { e[endValid] = 0 }),
		put("payload bit flip", Defective, func(r, _ []byte) { r[headLen+(len(r)-headLen-endLen)/2] ^= 1 }),
		put("record checksum flip", Defective, func(r, _ []byte) { r[offSeal] ^= 0x40 }),
		again("payload checksum flip", Defective, func(_, e []byte) { e[endDigest] ^= 0x40 }),
		put("unknown digest flags", Defective, func(_, e []byte) { le.PutUint16(e[endFlags:], 0x00e0) }),
		again("compressed length impossible", Defective, func(r, _ []byte) { le.PutUint16(r[offRaw:], 7) }),
		again("compressed payload garbage", Defective, func(r, e []byte) {
			le.PutUint16(r[offRaw:], 32256)
			le.PutUint16(e[endFlags:], le.Uint16(e[endFlags:])|0x0400)
		}),
		again("sequence jump forward", Defective, func(_, e []byte) { le.PutUint32(e[endSeq:], le.Uint32(e[endSeq:])+3) }),
		again("sequence repeat", Defective, func(_, e []byte) { le.PutUint32(e[endSeq:], le.Uint32(e[endSeq:])-1) }),
		again("sequence backward", Defective, func(_, e []byte) { le.PutUint32(e[endSeq:], 1) }),
		bare("cut inside the header", Incomplete, func(h *hit) []byte { return h.log[:h.from+headLen/2] }),
		bare("cut inside the payload", Incomplete, func(h *hit) []byte { return h.log[:h.from+headLen+(h.to-h.from-headLen-endLen)/2] }),
		bare("cut inside the trailer", Incomplete, func(h *hit) []byte { return h.log[:h.to-endLen/2] }),
		bare("cut at the border", Missing, func(h *hit) []byte { return h.log[:h.from] }),
		bare("zeros from here on", Defective, func(h *hit) []byte { clear(h.log[h.from:]); return h.log }),
		bare("random bytes from here on", Defective, func(h *hit) []byte { noise(h.rng, h.log[h.from:]); return h.log }),
		bare("hole of 4 KiB", "", func(h *hit) []byte {
			clear(h.log[h.from:min(h.from+4096, len(h.log))])
			return h.log
		}),
		bare("two records swapped", Defective, func(h *hit) []byte {
			if h.last {
				return nil
			}
			n := h.to + int(le.Uint16(h.log[h.to+offTotal:]))
			out := append([]byte(nil), h.log[:h.from]...)
			out = append(append(append(out, h.log[h.to:n]...), h.log[h.from:h.to]...), h.log[n:]...)
			return out
		}),
		{name: "record duplicated", class: Defective, repeated: -1, shift: true, make: func(h *hit) []byte {
			out := append([]byte(nil), h.log[:h.to]...)
			return append(append(out, h.rec()...), h.log[h.to:]...)
		}},
		bare("record of another resource", Defective, func(h *hit) []byte {
			n := int(le.Uint16(h.foreign[offTotal:]))
			n2 := int(le.Uint16(h.foreign[n+offTotal:]))
			rec := h.foreign[n : n+n2] // its second record; the first one in this log has number 1
			if le.Uint32(h.end()[endSeq:]) == 2 {
				rec = h.foreign[:n]
			}
			out := append([]byte(nil), h.log[:h.from]...)
			return append(append(out, rec...), h.log[h.to:]...)
		}),
		bare("file of another cluster", Defective, func(h *hit) []byte {
			out := append([]byte(nil), h.log[:h.from]...)
			return append(out, h.foreign[headLen/2:]...)
		}),
	}
	for _, b := range []byte{0xff, 0x5a} {
		v := put(fmt.Sprintf("end tag full of %#02x", b), Defective, func(_, e []byte) { fill(e[endMagic:8], b) })
		v.repeated = int(b)
		list = append(list, v)
	}
	return list
}

// fits says that a variant is damage at this record: number 1 is right at the first.
func fits(name string, first bool) bool { return !first || name != "sequence backward" }

// Cases makes the whole matrix. logs are one or more healthy logs in order, all
// sealed, of a device of size bytes; foreign is a healthy log of something else.
func Cases(seed uint64, logs [][]byte, foreign []byte, size int64) []Case {
	places := []struct {
		name    string
		n, file int
	}{{"only file", 1, 0}, {"last of three", 3, 2}, {"middle of three", 3, 1}}
	var out []Case
	for _, p := range places {
		if len(logs) < p.n {
			continue
		}
		series := logs[:p.n]
		rng := rand.New(rand.NewPCG(seed, uint64(p.n*10+p.file)))
		out = append(out, whole(p.name, series, p.file, rng)...)
		at := Borders(series[p.file])
		n := len(at) - 1
		for j, i := range []int{0, n / 2, n - 1} {
			which := [...]string{"first", "middle", "last"}[j]
			for _, v := range variants(size) {
				if !fits(v.name, i == 0) {
					continue
				}
				h := &hit{log: append([]byte(nil), series[p.file]...), from: int(at[i]), to: int(at[i+1]), first: i == 0, last: i == n-1,
					rng: rng, foreign: foreign, size: size}
				data := v.make(h)
				if data == nil {
					continue
				}
				c := newCase(fmt.Sprintf("%s, %s record, %s", v.name, which, p.name), series, p.file, Log{Data: data})
				c.Offset, c.Class, c.Repeated = at[i], v.class, v.repeated
				if v.shift {
					c.Offset, c.Behind = at[i+1], h.last
				}
				out = append(out, c)
			}
		}
	}
	return out
}

// whole are the variants that are not about one record.
func whole(place string, series [][]byte, file int, rng *rand.Rand) []Case {
	n := int64(len(series[file]))
	add := func(name string, log Log, at int64, class Class, behind bool) Case {
		c := newCase(name+", "+place, series, file, log)
		c.Offset, c.Class, c.Behind = at, class, behind
		return c
	}
	behind := func(tail []byte) Log { return Log{Data: append(append([]byte(nil), series[file]...), tail...)} }
	garbage := make([]byte, 5000)
	noise(rng, garbage)
	return []Case{
		add("empty file", Log{Data: []byte{}}, 0, Missing, false),
		add("missing file", Log{Absent: true}, 0, Missing, false),
		add("zeros behind the end", behind(make([]byte, 4096)), n, "", true),
		add("random bytes behind the end", behind(garbage), n, Defective, true),
	}
}

func newCase(name string, series [][]byte, file int, bad Log) Case {
	c := Case{Name: name, File: file, Repeated: -1}
	for i, data := range series {
		l := Log{Data: data}
		if i == file {
			l = bad
		}
		c.Logs = append(c.Logs, l)
		c.Whole = append(c.Whole, int64(len(data)))
	}
	return c
}
