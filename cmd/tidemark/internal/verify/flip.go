package verify

import (
	"hash/crc32"
	"math/bits"
)

// likely bounds in how many ways a file may be changed for a search to mean
// something: one in ten of damages of any kind would look like one of so many.
const likely = 1 << 32 / 10

// oneByte finds where in n bytes a single changed one explains by what the
// checksum differs from the right one, and how many of its bits were changed. It
// is not ok if none does, or if chance would do as well.
//
// CRC-32 is linear: the difference of two checksums depends only on what was
// changed and on how many bytes follow it. So it is wound back, a byte at a
// time, until it is that of a single byte.
func oneByte(diff uint32, n int64) (at int64, changed int, ok bool) {
	table := crc32.IEEETable
	var inverse [256]byte // by the first byte of a table's entry, which tells them apart
	for i, v := range table {
		inverse[v>>24] = byte(i)
	}
	if diff == 0 || 8*n > likely {
		return 0, 0, false
	}
	whole := 255*n < likely // else only a single bit tells
	var bytes int
	for i := n - 1; i >= 0; i-- {
		one := inverse[diff>>24]
		if table[one] == diff {
			if bits.OnesCount8(one) == 1 {
				return i, 1, true // likelier than any other change of a byte
			}
			at, changed = i, bits.OnesCount8(one)
			bytes++
		}
		diff = (diff^table[one])<<8 | uint32(one)
	}
	return at, changed, whole && bytes == 1
}
