// Package compaction decides which segments to merge, over sizes alone, and
// moves their bytes. It knows nothing of the index: which rows stay is told by
// a filter, and what it made is told to the caller.
package compaction

import "math/bits"

const (
	// fanIn neighbours of a tier become one segment of the next. Eight keeps a
	// day of half-second commits below fifty segments while each byte is moved
	// five times at most; moved blocks are copied, not recompressed.
	fanIn = 8
	// tierZero is the greatest body of the lowest tier, bytes.
	tierZero = 64 << 10
	// maxBody ends the merging of fresh segments: the rest is the business of
	// windows. Bytes; about 250,000 rows, whose directory a merge holds in memory.
	maxBody = 96 << 20
)

// tier is 0 up to tierZero bytes and rises by one with each factor of fanIn.
func tier(size int64) int {
	return (bits.Len64(uint64(max(size-1, 0)/tierZero)) + 2) / 3
}

// Plan chooses neighbours [from, to) among segments of the given body sizes, in
// the order of their sequence numbers: the first run of fanIn that are of one
// tier or lower, lowest tier first, and not too large together. Nothing to do:
// from == to.
func Plan(sizes []int64) (from, to int) {
	for t := 0; tierZero<<(3*t) <= maxBody; t++ {
		run, total := 0, int64(0)
		for i, size := range sizes {
			if tier(size) > t || total+size > maxBody {
				run, total = 0, 0
				if tier(size) > t {
					continue
				}
			}
			run, total = run+1, total+size
			if run == fanIn {
				return i + 1 - run, i + 1
			}
		}
	}
	return 0, 0
}
