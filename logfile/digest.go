package logfile

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crcSlices is the number of payload slices that the CRC digests sum separately.
const crcSlices = 8

// payloadDigest returns the 32 byte digest of a payload. ok is false for what
// the original cannot sum either: MD5 of an odd length, an unknown algorithm.
func payloadDigest(alg Flags, p []byte) (sum [32]byte, ok bool) {
	switch alg {
	case DigestCRC32C:
		return crcDigest(p, func(s []byte) uint32 { return crc32.Checksum(s, castagnoli) }), true
	case DigestCRC32:
		// The CRC of the Linux crypto API: seed 0 and no final xor, where package
		// crc32 inverts both.
		return crcDigest(p, func(s []byte) uint32 { return ^crc32.Update(^uint32(0), crc32.IEEETable, s) }), true
	case DigestMD5:
		if len(p)%2 != 0 {
			return sum, false
		}
		a, b := md5.Sum(p[:len(p)/2]), md5.Sum(p[len(p)/2:])
		copy(sum[:16], a[:])
		copy(sum[16:], b[:])
		return sum, true
	case DigestMD5Old:
		a := md5.Sum(p)
		copy(sum[:], a[:])
		return sum, true
	case DigestSHA1:
		a := sha1.Sum(p)
		copy(sum[:], a[:])
		return sum, true
	}
	return sum, false
}

// crcDigest sums eight slices of len/8 bytes; the last one takes the rest.
func crcDigest(p []byte, crc func([]byte) uint32) (sum [32]byte) {
	n := len(p) / crcSlices
	for i := range crcSlices {
		s := p[i*n:]
		if i < crcSlices-1 {
			s = s[:n]
		}
		binary.LittleEndian.PutUint32(sum[4*i:], crc(s))
	}
	return sum
}

// crc32cParts is the CRC32C digest of the concatenation of parts, which the
// Writer does not want to copy together. total is the sum of their lengths.
func crc32cParts(parts [][]byte, total int) (sum [32]byte) {
	n := total / crcSlices
	part, off := 0, 0
	for i := range crcSlices {
		want := n
		if i == crcSlices-1 {
			want = total - i*n
		}
		crc := uint32(0)
		for want > 0 {
			s := parts[part][off:]
			if len(s) > want {
				s = s[:want]
			}
			crc = crc32.Update(crc, castagnoli, s)
			want -= len(s)
			if off += len(s); off == len(parts[part]) {
				part, off = part+1, 0
			}
		}
		binary.LittleEndian.PutUint32(sum[4*i:], crc)
	}
	return sum
}

// fold makes the 16 bytes that are stored of a 32 byte digest.
func fold(sum [32]byte) (out [16]byte) {
	for i := range out {
		out[i] = sum[i] ^ sum[i+16]
	}
	return out
}

// preferred picks the algorithm that the original checks when several bits are set.
func preferred(f Flags) Flags {
	for _, alg := range [...]Flags{DigestCRC32C, DigestCRC32, DigestMD5, DigestSHA1} {
		if f&alg != 0 {
			return alg
		}
	}
	return DigestMD5Old
}

// seal is the CRC-32C of an encoded record whose seal word counts as zero.
func seal(rec []byte) uint32 {
	crc := crc32.Update(0, castagnoli, rec[:offSeal])
	crc = crc32.Update(crc, castagnoli, zeros[:4])
	return crc32.Update(crc, castagnoli, rec[offSeal+4:])
}
