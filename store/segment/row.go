package segment

import (
	"cmp"
	"fmt"

	"tidemark/store/fhir"
)

// Partition names one partition of a Kafka topic.
type Partition struct {
	Topic string
	ID    int32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.ID) }

// Compare orders partitions by topic, then number.
func (p Partition) Compare(q Partition) int {
	return cmp.Or(cmp.Compare(p.Topic, q.Topic), cmp.Compare(p.ID, q.ID))
}

// Kind tells what a row is for. Kinds never share a block.
type Kind uint8

// The kinds, in the order in which they stand in a segment.
const (
	Live     Kind = iota // a resource
	Deleted              // a tombstone to report: a DELETE transaction Bundle
	Internal             // what no export shows as data
)

func (k Kind) String() string {
	switch k {
	case Live:
		return "live"
	case Deleted:
		return "deleted"
	case Internal:
		return "internal"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Types of internal rows stand where other kinds have a resource type.
const (
	DeadLetters fhir.Type = iota + 1 // a record that could not be decoded
	Memberships                      // a change of a Group's membership
	Departures                       // a version took patients out of a resource's compartments
	Unseen                           // the deletion of a resource that we never had
	Repeats                          // the deletion of something deleted, where it tells more than the first
)

var internalNames = map[fhir.Type]string{
	DeadLetters: "dead-letters", Memberships: "memberships", Departures: "departures", Unseen: "unseen-deletions", Repeats: "repeated-deletions",
}

// Section names the rows of one kind and type; they are contiguous in a segment.
type Section struct {
	Kind Kind
	Type fhir.Type
}

func (s Section) String() string {
	if s.Kind == Internal {
		return "internal/" + internalNames[s.Type]
	}
	return s.Kind.String() + "/" + s.Type.String()
}

// Compare orders sections as they stand in a segment.
func (s Section) Compare(t Section) int {
	return cmp.Or(cmp.Compare(s.Kind, t.Kind), cmp.Compare(s.Type, t.Type))
}

// Clock is what the source said about when a row came to be: all that decides
// which of two changes of a resource is newer (design note in FORMAT.md, "Which
// change is newer").
type Clock struct {
	Version     int64        // decimal version, NoVersion if none
	Inherited   bool         // Version is that of the row before: the change itself had none
	LastUpdated fhir.Instant // None if the source never said
	Position    uint64       // source position, 0 if none
	Timestamp   fhir.Instant // of the record, None if none
	Origin      Partition
	Offset      int64
}

// NoVersion stands for a version that is missing or not a decimal number.
const NoVersion int64 = -1

// A Row is one version of a resource, one tombstone or one internal fact, as
// the directory describes it. Its line lies in the body.
type Row struct {
	Section  Section
	Key      fhir.Key // of dead letters: zero
	Seq      uint64   // given once, kept through every merge
	Instant  fhir.Instant
	Length   int32 // of the line with its newline, bytes
	Clock    Clock
	Hash     uint64       // of the body as the source sent it; 0 for deletions
	Placed   fhir.Instant // change instant of the version since which Patients are what they are
	Patients []string     // in whose compartments it lies, sorted
	Life     Life
}

// Compare orders rows as they stand in a segment.
func (r *Row) Compare(s *Row) int {
	return cmp.Or(r.Section.Compare(s.Section), cmp.Compare(r.Instant, s.Instant), cmp.Compare(r.Seq, s.Seq))
}
