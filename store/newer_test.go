package store

import (
	"testing"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// TestDeletionsInTheLog: where a deletion says where it stands in its source's log, that
// tells whether it is older than what is here, not the time of its record. Tables of one
// source are topics that are read in any order, and their records are of one millisecond.
func TestDeletionsInTheLog(t *testing.T) {
	here, other := Partition{Topic: "Patient_History"}, Partition{Topic: "Patient"}
	cur := &index.State{
		Kind:  segment.Live,
		Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: here, Offset: 5},
		Life:  segment.Life{FloorVersion: NoVersion, FloorUpdated: 800, Tombstones: []fhir.Instant{1000}},
	}
	for _, c := range []struct {
		what      string
		position  uint64
		timestamp fhir.Instant
		from      Partition
		want      verdict
	}{
		{"before it, of the same millisecond", 100, 1001, other, stale},
		{"before it, in its partition", 100, 1001, here, stale},
		{"behind it, in the millisecond of another deletion", 300, 1000, other, applies},
		{"behind it, with an earlier time", 300, 999, other, applies},
		{"nowhere, in the millisecond of another deletion", 0, 1000, other, stale},
		{"nowhere, with an earlier time", 0, 999, other, stale},
		{"nowhere, with a later time", 0, 1001, other, applies},
	} {
		ch := Change{Delete: true, Version: NoVersion, LastUpdated: fhir.None, Position: c.position, Timestamp: c.timestamp, Offset: 9}
		if got := judge(cur, &ch, 0, c.from); got != c.want {
			t.Errorf("a deletion that stands %s: verdict %d, want %d", c.what, got, c.want)
		}
	}
}
