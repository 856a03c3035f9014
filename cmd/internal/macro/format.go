package macro

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

var units = []struct {
	name  string
	bytes float64
	from  float64 // chosen when the largest number reaches this
}{
	{"TiB", 1 << 40, 9.99 * (1 << 40)},
	{"GiB", 1 << 30, 9.99 * (1 << 30)},
	{"MiB", 1 << 20, 1 << 20},
	{"KiB", 1 << 10, 1 << 10},
	{"B", 1, 0},
}

// unitOf picks the unit in which n reads well.
func unitOf(n float64) (name string, bytes float64) {
	for _, u := range units {
		if n >= u.from {
			return u.name, u.bytes
		}
	}
	return "B", 1
}

// HumanNumber prints amounts in one common unit: "24.000/64.000 MiB".
func HumanNumber(nums ...float64) string {
	most := 0.0
	for _, n := range nums {
		most = max(most, n)
	}
	name, bytes := unitOf(most)
	parts := make([]string, len(nums))
	for i, n := range nums {
		if name == "B" {
			parts[i] = strconv.FormatInt(int64(n), 10)
		} else {
			parts[i] = strconv.FormatFloat(n/bytes, 'f', 3, 64)
		}
	}
	return strings.Join(parts, "/") + " " + name
}

// shortPair is "(24/64)MiB": whole units, cut off.
func shortPair(a, b int64) string {
	name, bytes := unitOf(float64(max(a, b)))
	return fmt.Sprintf("(%d/%d)%s", int64(float64(a)/bytes), int64(float64(b)/bytes), name)
}

// shortRate is "10.00 MiB".
func shortRate(n float64) string {
	name, bytes := unitOf(n)
	return fmt.Sprintf("%.2f %s", n/bytes, name)
}

// HumanSeconds prints hh:mm:ss with unbounded hours; negative means unknown.
func HumanSeconds(s float64) string {
	if s < 0 {
		return "--:--:--"
	}
	n := int64(s)
	return fmt.Sprintf("%02d:%02d:%02d", n/3600, n/60%60, n%60)
}

// Progress is the bar "[===>:::...]": done up to lo, on its way up to mid, of hi.
func Progress(width int, lo, mid, hi int64) string {
	part := func(n int64, less float64) int {
		if hi <= 0 || n <= 0 {
			return 0
		}
		return max(0, int(float64(width)*float64(n)/float64(hi)-less))
	}
	return "[" + strings.Repeat("=", part(lo, 1)) + ">" + strings.Repeat(":", part(mid-lo, 1)) +
		strings.Repeat(".", part(hi-mid, 0)) + "]"
}

// percent is the original's: slightly more than the truth, so that what is almost
// done reads as done.
func percent(pos, size int64, full float64) float64 {
	if size <= 0 {
		return full
	}
	return min(full, (full+0.5)*float64(pos)/float64(size))
}

// marsErrors names the codes beyond errno (reference log-engine 1.7).
var marsErrors = map[int64]string{
	10003: "INVAL:Record_is_not_valid",
	10004: "ZERO:Record_length_is_zero",
	10005: "NEGATIVE:Record_length_is_negative",
	10006: "BADLEN:Record_is_longer_than_the_file",
	10007: "ADVANCE:Record_length_is_too_small",
	10009: "INCOMPL:Record_was_not_completed",
	10010: "SEQ_FW:Sequence_number_jumps_forward",
	10011: "SEQ_BW:Sequence_number_jumps_backward",
	10012: "SIZE:Record_length_mismatch",
	10013: "SCAN_MAGIC:Start_magic_not_found",
	10020: "END_MAGIC:End_magic_not_found",
	10021: "END_REPEATED:End_magic_is_one_repeated_byte",
	10100: "CRC_FLAGS:No_usable_checksum",
	10101: "CRC_MISMATCH:CRC_mismatch_found",
	10150: "UNCOMPRESS:Decompression_failed",
	10151: "UNCOMPRESS_TOO_LONG:Uncompressed_data_is_too_long",
	10152: "UNCOMPRESS_LEN:Bad_uncompressed_length",
}

// ErrnoText names error numbers: "[EIO:Input/output_error]"; several are
// separated by commas, hexadecimal ones are data.
func ErrnoText(codes string) string {
	var b strings.Builder
	for _, word := range strings.Split(codes, ",") {
		word = strings.TrimSpace(word)
		if strings.HasPrefix(word, "0x") {
			b.WriteString(",HEXCODE=" + word)
			continue
		}
		n := Number(word)
		if n < 0 {
			n = -n
		}
		switch text, known := marsErrors[n]; {
		case n == 0:
			b.WriteString("0")
		case known:
			b.WriteString("[MARS_ERR_" + text + "]")
		case n < 10000 && unix.ErrnoName(syscall.Errno(n)) != "":
			b.WriteString("[" + unix.ErrnoName(syscall.Errno(n)) + ":" + errnoWords(n) + "]")
		default:
			fmt.Fprintf(&b, "[E%d:Unknown_error]", n)
		}
	}
	return b.String()
}

func errnoWords(n int64) string {
	text := syscall.Errno(n).Error()
	r, size := utf8.DecodeRuneInString(text)
	return strings.ReplaceAll(string(unicode.ToUpper(r))+text[size:], " ", "_")
}

// flagNames are the algorithm bits of the tree (reference symlink-tree 1.1).
var flagNames = []struct {
	bit  int64
	name string
}{
	{0x00010000, "CHKSUM_MD5_OLD"},
	{0x00020000, "CHKSUM_MD5"},
	{0x00040000, "CHKSUM_CRC32C"},
	{0x00080000, "CHKSUM_CRC32"},
	{0x00100000, "CHKSUM_SHA1"},
	{0x01000000, "COMPRESS_LZO"},
	{0x02000000, "COMPRESS_LZ4"},
	{0x04000000, "COMPRESS_ZLIB"},
}

const (
	digestMask      = 0x001f0000
	compressionMask = 0x07000000
)

// flagText joins the names of the bits in mask with '|'.
func flagText(mask int64) string {
	var names []string
	for _, f := range flagNames {
		if mask&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, "|")
}

// prettyStamps replaces stamps (nine or more digits, a dot, nine digits) by local
// dates, and "error = -5" by the name of the error.
func prettyStamps(s string, loc *time.Location) string {
	words := strings.Split(s, " ")
	for i, w := range words {
		sec, frac, ok := strings.Cut(w, ".")
		if ok && len(sec) >= 9 && len(frac) == 9 && digits(sec) == len(sec) && digits(frac) == 9 {
			words[i] = time.Unix(Number(sec), 0).In(loc).Format("2006-01-02 15:04:05")
		}
		if n := len(w); n > 1 && w[0] == '-' && digits(w[1:]) == n-1 && i >= 2 && words[i-1] == "=" {
			words[i] = "-" + strings.ReplaceAll(ErrnoText(w), "_", " ")
		}
	}
	return strings.Join(words, " ")
}
