package source

import (
	"fmt"

	"tidemark/store"
)

// A Reason says why a partition's log no longer continues what was read of it.
type Reason string

// The reasons for a gap.
const (
	Expired   Reason = "expired"   // the log starts behind the next offset
	Truncated Reason = "truncated" // the log ends before the next offset
	Forked    Reason = "forked"    // the log was cut below what was read and has gone on otherwise
	Recreated Reason = "recreated" // another topic has taken the name
	Away      Reason = "away"      // deletions may have been compacted away unseen
)

// A Gap says that records between what was read of a partition and what its
// log offers now may be lost. The partition is no longer read; whoever runs
// the server decides how it goes on.
type Gap struct {
	Partition  store.Partition
	Reason     Reason
	Next       int64 // the offset at which reading would have gone on
	Start, End int64 // the log as the broker shows it, -1 if unknown
	Detail     string
}

func (g *Gap) Error() string {
	return fmt.Sprintf("gap in %s/%d at offset %d: %s. What may be missing must come in another way; then tidemark topic accept %s/%d has it read on",
		g.Partition.Topic, g.Partition.ID, g.Next, g.Detail, g.Partition.Topic, g.Partition.ID)
}

// A Corrupt error says that a record batch cannot be trusted or understood.
// Nothing at or behind its offset has been read.
type Corrupt struct {
	Partition store.Partition
	Offset    int64 // of the batch's first record
	Detail    string
}

func (e *Corrupt) Error() string {
	return fmt.Sprintf("record batch of %s/%d at offset %d: %s",
		e.Partition.Topic, e.Partition.ID, e.Offset, e.Detail)
}
