package store

import (
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// NoVersion says that a change carries no decimal version.
const NoVersion = segment.NoVersion

// Partition names one partition of a Kafka topic.
type Partition = segment.Partition

// Bound is the place of a row in the order of time.
type Bound = segment.Bound

// Section names the rows of one kind and type.
type Section = segment.Section

// The kinds of rows, and the types of internal ones that exports ask for.
const (
	Live        = segment.Live
	Deleted     = segment.Deleted
	Internal    = segment.Internal
	DeadLetters = segment.DeadLetters
	Departures  = segment.Departures
)

// Kind tells what a row is for.
type Kind = segment.Kind

// A Row is one version of a resource, one tombstone or one internal fact.
type Row = segment.Row

// A Change is one decoded record: a resource's new state, its deletion, or a
// record that could not be decoded.
//
// Only what the source said is in here. What the store gives (change instant,
// sequence number, injected meta) is given when the commit is sealed.
type Change struct {
	Key    fhir.Key
	Delete bool
	// Body is the resource as one compact line without a newline; nil for a
	// deletion. The store keeps the slice: the caller must not touch it again.
	Body []byte
	Meta fhir.Meta // what Body lacks in meta

	Version     int64        // decimal versionId, else NoVersion
	LastUpdated fhir.Instant // what the source said, None if nothing
	Time        fhir.Instant // a time that the decoder found elsewhere, None if nothing
	Position    uint64       // source position (a log sequence number), 0 if none
	Snapshot    bool         // a snapshot told it: what stands before its Position may have been committed behind it
	Earlier     bool         // it was done at Position or before: a version's row that was written again, or that a snapshot tells
	Timestamp   fhir.Instant // the record's timestamp, None if it has none
	Offset      int64

	Patients   []string      // ids of the Patients in whose compartment it lies, sorted
	References []fhir.Key    // what it refers to of what lies in nobody's compartment, sorted
	Members    []fhir.Member // of a Group
	Dead       *DeadLetter   // set: the record could not be decoded; Key and Body are ignored

	// Revise, if set, makes the change of what is here: of Key, Offset, Position and the times
	// above, and of the newest version's line. What it returns has a Body that refers to the
	// same as before, and what follows from it; version and lastUpdated stay. false: it is to
	// stay as it is. It may be called again. Of what does not live here nothing changes; Dead,
	// if set, then counts, unless version, lastUpdated or Position tell that it is of a life
	// which has ended. So a record whose body is left out, for it has not changed, is a dead
	// letter where that body is not known.
	Revise func(line []byte) (Change, bool)
}

// named tells whether Key counts.
func (ch *Change) named() bool { return ch.Dead == nil || ch.Revise != nil }

// A DeadLetter is a record that could not be decoded, kept whole.
type DeadLetter struct {
	Reason  string
	Key     []byte // nil is Kafka's null
	Value   []byte // nil is Kafka's null; the first 64 KiB if Truncated
	Headers []Header
	// Of a record larger than kafka.max_record only these facts are kept.
	Length    int64 // of the whole value, bytes
	SHA256    string
	Truncated bool
}

// A Header is a header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// A Batch is what one fetch answer said about one partition.
type Batch struct {
	Partition   Partition
	Changes     []Change // in the order of their offsets
	Next        int64    // the offset behind the last record batch read, whatever that held
	LeaderEpoch int32    // of the newest record batch, -1 if unknown

	// Asked is Now as it was before the fetch request was sent, End the last
	// stable offset in its answer: whatever was appended and stable at Asked
	// lies below End.
	Asked fhir.Instant
	End   int64

	// Topic is the pipeline's own state of the topic, stored with the commit
	// and not understood here; nil leaves it as it is.
	Topic []byte

	// Resolved names dead letters whose records are among Changes now: decoded
	// after all, they are listed and counted no more.
	Resolved []Bound

	// Notes are what intake wants to know again once this batch is true, in order.
	Notes []Note
}

// A Note is what intake keeps under a name of its own; a nil value takes it away.
type Note struct {
	Name   string
	Value  []byte
	Offset int64 // of the record that it comes of
}

// Discovery says what the broker has of the configured topics.
type Discovery struct {
	// Complete: every configured topic exists (of a pattern: at least one match).
	Complete   bool
	Partitions []Discovered
}

// Discovered is one partition as the broker showed it.
type Discovered struct {
	Partition Partition
	TopicID   [16]byte // zero if the broker does not tell
	Start     int64    // log start offset
	End       int64    // last stable offset now; reaching it once is joining
}

// PartitionState is what a store remembers of a partition.
type PartitionState struct {
	Next        int64 // the offset at which reading goes on
	LeaderEpoch int32 // of the newest record batch read, -1 if unknown
	TopicID     [16]byte
	Joined      bool         // has once reached the end reported at its discovery
	Seen        fhir.Instant // everything from Next on was written after it; None if unknown
}
