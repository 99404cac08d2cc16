// Package compaction decides which segments to merge, over sizes alone, and
// moves their bytes. It knows nothing of the index: which rows stay is told by
// a filter, and what it made is told to the caller.
package compaction

const (
	// fanIn is the least number of neighbours that a merge joins: with eight, a
	// day of half-second commits stays below a hundred segments, and a byte is
	// moved a few times only (TestADayOfCommits measures both).
	fanIn = 8
	// maxFan bounds the files that a merge holds open.
	maxFan = 64
	// maxBody ends the merging of fresh segments: the rest is the business of
	// windows. Bytes; about 250,000 rows, whose directory a merge holds in memory.
	maxBody = 96 << 20
)

// Plan chooses neighbours [from, to) among segments of the given body sizes, in
// the order of their sequence numbers: the smallest run of at least fanIn none
// of which is larger than all others together, so that no large one is written
// again for the sake of a few small ones. Nothing to do: from == to.
func Plan(sizes []int64) (from, to int) {
	best := int64(0)
	for i := range sizes {
		total, largest := int64(0), int64(0)
		for j := i; j < min(len(sizes), i+maxFan); j++ {
			total += sizes[j]
			largest = max(largest, sizes[j])
			if total > maxBody || best > 0 && total >= best {
				break
			}
			if j+1-i >= fanIn && largest <= total-largest {
				from, to, best = i, j+1, total
				break
			}
		}
	}
	return from, to
}
