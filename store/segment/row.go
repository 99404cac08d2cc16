package segment

import (
	"cmp"
	"fmt"
	"math"
	"slices"

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
	Last                 // a resource as it was when it was deleted, once no watermark can show it
)

func (k Kind) String() string {
	switch k {
	case Live:
		return "live"
	case Deleted:
		return "deleted"
	case Internal:
		return "internal"
	case Last:
		return "last-state"
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

// Resource is the section that rows of s were born in: last states were live.
func (s Section) Resource() Section {
	if s.Kind == Last {
		s.Kind = Live
	}
	return s
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
	UpTo        bool         // the row stands at Position or before: what stands before it may be newer
	Told        bool         // a snapshot told it, of a table of versions without numbers
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
	// References are what a resource refers to of what lies in nobody's
	// compartment, such as its Practitioners: sorted, each once.
	References []fhir.Key
	Life       Life
}

// Compare orders rows as they stand in a fresh segment.
func (r *Row) Compare(s *Row) int {
	return cmp.Or(r.Section.Compare(s.Section), r.Bound().Compare(s.Bound()))
}

// CompareByPatient orders rows as they stand in a settled segment: the rows of a
// patient lie side by side.
func (r *Row) CompareByPatient(s *Row) int {
	return cmp.Or(r.Section.Compare(s.Section), r.Place().CompareByPatient(s.Place()))
}

// Attached tells whether the row refers to a Binary, or an attachment of it leads
// elsewhere.
func (r *Row) Attached() bool {
	return slices.ContainsFunc(r.References, func(k fhir.Key) bool { return k.Type == fhir.Binary })
}

// Bound is the row's place in the order of time.
func (r *Row) Bound() Bound { return Bound{r.Instant, r.Seq} }

// Place is what finds the row in a segment of whatever order.
func (r *Row) Place() Place { return Place{PatientsHash(r.Patients), r.Bound()} }

// A Bound is a place in the order of time: change instants, and where those are
// equal, sequence numbers.
type Bound struct {
	Instant fhir.Instant
	Seq     uint64
}

// NoBound lies before every row.
var NoBound = Bound{Instant: fhir.None}

// Upto is the bound behind every row with a change instant up to c.
func Upto(c fhir.Instant) Bound { return Bound{c, math.MaxUint64} }

// Compare orders bounds.
func (b Bound) Compare(o Bound) int {
	return cmp.Or(cmp.Compare(b.Instant, o.Instant), cmp.Compare(b.Seq, o.Seq))
}

// A Place finds a row of a section: fresh segments are sorted by its bound,
// settled ones by its patients first.
type Place struct {
	Patients uint32 // PatientsHash
	Bound
}

// CompareByPatient orders places as they stand in a settled segment.
func (p Place) CompareByPatient(o Place) int {
	return cmp.Or(cmp.Compare(p.Patients, o.Patients), p.Compare(o.Bound))
}

// PatientsHash tells sets of patients apart; equal sets have equal hashes. Zero
// is kept for the empty set. It is the order of settled segments because an
// index can keep it in four bytes, and so say where a row lies.
func PatientsHash(ids []string) uint32 {
	if len(ids) == 0 {
		return 0
	}
	h := uint32(fnvOffset)
	for _, id := range ids {
		for i := range len(id) {
			h = (h ^ uint32(id[i])) * fnvPrime
		}
		h *= fnvPrime // a zero byte between
	}
	return max(1, h)
}

// GroupHash stands for a Group where else a hash of Patients does: no id of theirs
// reads like that.
func GroupHash(id string) uint32 { return PatientsHash([]string{"Group/" + id}) }

// FNV-1a of 32 bits, without its allocation for each row.
const (
	fnvOffset = 2166136261
	fnvPrime  = 16777619
)
