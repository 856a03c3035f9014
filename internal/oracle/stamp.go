package oracle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// SectorSize is the unit of every stamp and of every verdict.
const SectorSize = 512

// The layout of a stamped sector, little endian:
//
//	0   8  magic
//	8   8  run id
//	16  8  write number; 0 in sectors that were stamped before the test
//	24  4  branch id
//	28  4  index of the sector in its request (write number 0: device sector)
//	32  4  length of the request in sectors
//	36  472  filler, PRNG(write number, index)
//	508 4  CRC-32C of bytes 0..507
const (
	stampMagic = 0x314d545352414d53 // "SMARSTM1"
	fillerOff  = 36
	crcOff     = SectorSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stamp is what a sector says about itself.
type Stamp struct {
	Run    uint64
	Branch uint32
	Write  uint64
	Index  uint32
	Length uint32
}

var (
	// errNoStamp: the sector is not ours at all.
	errNoStamp = errors.New("no stamp")
	// errBadStamp: the sector begins like a stamp but its CRC is wrong.
	errBadStamp = errors.New("stamp with a wrong CRC")
)

// Put encodes s into the first 512 bytes of p.
func (s Stamp) Put(p []byte) {
	p = p[:SectorSize]
	le := binary.LittleEndian
	le.PutUint64(p[0:], stampMagic)
	le.PutUint64(p[8:], s.Run)
	le.PutUint64(p[16:], s.Write)
	le.PutUint32(p[24:], s.Branch)
	le.PutUint32(p[28:], s.Index)
	le.PutUint32(p[32:], s.Length)
	x := s.Write*0x9e3779b97f4a7c15 ^ uint64(s.Index)<<32 ^ 0x2545f4914f6cdd1d
	for off := fillerOff; off < crcOff; off += 8 {
		// splitmix64: every sector differs from every other in every word.
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		le.PutUint64(p[off:], z^z>>31)
	}
	le.PutUint32(p[crcOff:], crc32.Checksum(p[:crcOff], castagnoli))
}

// ParseStamp decodes the sector p.
func ParseStamp(p []byte) (Stamp, error) {
	le := binary.LittleEndian
	if len(p) != SectorSize || le.Uint64(p) != stampMagic {
		return Stamp{}, errNoStamp
	}
	if le.Uint32(p[crcOff:]) != crc32.Checksum(p[:crcOff], castagnoli) {
		return Stamp{}, errBadStamp
	}
	return Stamp{
		Run: le.Uint64(p[8:]), Write: le.Uint64(p[16:]), Branch: le.Uint32(p[24:]),
		Index: le.Uint32(p[28:]), Length: le.Uint32(p[32:]),
	}, nil
}

// FillRequest stamps all sectors of a request.
func FillRequest(p []byte, run uint64, branch uint32, write uint64) {
	n := uint32(len(p) / SectorSize)
	for i := range n {
		Stamp{Run: run, Branch: branch, Write: write, Index: i, Length: n}.Put(p[int(i)*SectorSize:])
	}
}

// StampInitial stamps the first sectors of a device before the test, so that
// "never written" differs from "lost".
func StampInitial(w io.WriterAt, run uint64, sectors int64) error {
	const batch = 2048
	buf := make([]byte, batch*SectorSize)
	for at := int64(0); at < sectors; at += batch {
		n := min(batch, sectors-at)
		for i := range n {
			initialStamp(run, at+i, sectors).Put(buf[i*SectorSize:])
		}
		if _, err := w.WriteAt(buf[:n*SectorSize], at*SectorSize); err != nil {
			return fmt.Errorf("stamp initial sectors at %d: %w", at, err)
		}
	}
	return nil
}

func initialStamp(run uint64, sector, sectors int64) Stamp {
	return Stamp{Run: run, Index: uint32(sector), Length: uint32(sectors)}
}
