package index

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// The key spaces: the first byte of every key.
const (
	spaceMeta      = 'm'
	spacePartition = 'p'
	spaceTopic     = 't'
	spaceSegment   = 's'
	spaceDeaths    = 'd'
	spaceRow       = 'r'
	spaceAllotted  = 'a'
	spacePin       = 'j'
	spacePromise   = 'w'
	spaceJoined    = 'o'
	spaceGroup     = 'g'
	spaceBackup    = 'b'
	spaceReferrer  = 'f'
	spaceRoll      = 'l'
	spaceAbout     = 'v'
	spaceAwaited   = 'x'
	spaceOnce      = 'y'
	spaceNote      = 'n'
)

// MetaKey is the key of Meta.
func MetaKey() []byte { return []byte{spaceMeta} }

// PartitionKey is the key of p's state.
func PartitionKey(p segment.Partition) []byte {
	k := append([]byte{spacePartition}, p.Topic...)
	return binary.BigEndian.AppendUint32(append(k, 0), uint32(p.ID))
}

// ParsePartitionKey is the inverse of PartitionKey. Topic names hold no zero byte.
func ParsePartitionKey(k []byte) (p segment.Partition, err error) {
	n := len(k) - 5
	if n < 1 || k[n] != 0 {
		return p, fmt.Errorf("%w: partition key", ErrCorrupt)
	}
	return segment.Partition{Topic: string(k[1:n]), ID: int32(binary.BigEndian.Uint32(k[n+1:]))}, nil
}

// JoinedKey marks p as joined: it has once been read up to the end that was
// reported at its discovery.
func JoinedKey(p segment.Partition) []byte {
	k := PartitionKey(p)
	k[0] = spaceJoined
	return k
}

// PromiseKey says that nothing will ever become visible at or before i again.
// The greatest stands; so commits and pins can promise without waiting for one
// another.
func PromiseKey(i fhir.Instant) []byte {
	return binary.BigEndian.AppendUint64([]byte{spacePromise}, uint64(i)^1<<63)
}

// ParsePromiseKey is the inverse of PromiseKey.
func ParsePromiseKey(k []byte) (fhir.Instant, error) {
	if len(k) != 9 {
		return fhir.None, fmt.Errorf("%w: promise key", ErrCorrupt)
	}
	return fhir.Instant(binary.BigEndian.Uint64(k[1:]) ^ 1<<63), nil
}

// TopicKey is the key of the pipeline's own state of a topic.
func TopicKey(topic string) []byte { return append([]byte{spaceTopic}, topic...) }

// GroupKey is the key of a Group's present members.
func GroupKey(id string) []byte { return append([]byte{spaceGroup}, id...) }

// RollKey is the key of whom exports of a Group found in it.
func RollKey(group string) []byte { return append([]byte{spaceRoll}, group...) }

// PinKey is the key of the pin with the given id.
func PinKey(id string) []byte { return append([]byte{spacePin}, id...) }

// SegmentKey is the key of a segment's entry in the catalogue.
func SegmentKey(id segment.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceSegment}, uint64(id))
}

// ParseSegmentKey reads the number of a segment or allotment key.
func ParseSegmentKey(k []byte) (segment.ID, error) {
	if len(k) != 9 {
		return 0, fmt.Errorf("%w: segment key", ErrCorrupt)
	}
	return segment.ID(binary.BigEndian.Uint64(k[1:])), nil
}

// AllottedKey marks a segment number as allotted to a merge that has not ended.
func AllottedKey(id segment.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceAllotted}, uint64(id))
}

// DeathsKey is the key of the deaths that one commit brought to one segment.
func DeathsKey(id segment.ID, commit uint64) []byte {
	k := binary.BigEndian.AppendUint64([]byte{spaceDeaths}, uint64(id))
	return binary.BigEndian.AppendUint64(k, commit)
}

// ParseDeathsKey reads the segment of a deaths key.
func ParseDeathsKey(k []byte) (segment.ID, error) {
	if len(k) != 17 {
		return 0, fmt.Errorf("%w: deaths key", ErrCorrupt)
	}
	return segment.ID(binary.BigEndian.Uint64(k[1:])), nil
}

// DeathsOf bounds the deaths of one segment.
func DeathsOf(id segment.ID) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: DeathsKey(id, 0), UpperBound: DeathsKey(id+1, 0)}
}

// RowKey is the key of a resource's newest row.
func RowKey(dst []byte, k fhir.Key) []byte {
	return segment.PackID(append(dst, spaceRow, byte(k.Type)), k.ID)
}

// ParseRowKey is the inverse of RowKey.
func ParseRowKey(k []byte) (fhir.Key, error) {
	if len(k) < 3 {
		return fhir.Key{}, fmt.Errorf("%w: row key", ErrCorrupt)
	}
	return fhir.Key{Type: fhir.Type(k[1]), ID: segment.UnpackID(k[2:])}, nil
}

// space returns the bounds of a key space for an iterator.
func space(b byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{b}, UpperBound: []byte{b + 1}}
}

// Partitions bounds the states of partitions.
func Partitions() *pebble.IterOptions { return space(spacePartition) }

// Joined bounds the partitions that have joined.
func Joined() *pebble.IterOptions { return space(spaceJoined) }

// Topics bounds the states of topics.
func Topics() *pebble.IterOptions { return space(spaceTopic) }

// Segments bounds the catalogue.
func Segments() *pebble.IterOptions { return space(spaceSegment) }

// Deaths bounds the deaths, by segment.
func Deaths() *pebble.IterOptions { return space(spaceDeaths) }

// Rows bounds the newest rows, by resource.
func Rows() *pebble.IterOptions { return space(spaceRow) }

// Allotted bounds the segments allotted to merges.
func Allotted() *pebble.IterOptions { return space(spaceAllotted) }

// Pins bounds the durable snapshots.
func Pins() *pebble.IterOptions { return space(spacePin) }

// Promises bounds the promises, the greatest last.
func Promises() *pebble.IterOptions { return space(spacePromise) }

// BackupKey says that there is, or was, a backup in a folder.
func BackupKey(path string) []byte { return append([]byte{spaceBackup}, path...) }

// Backups bounds the folders of backups.
func Backups() *pebble.IterOptions { return space(spaceBackup) }

// Groups bounds the members of Groups.
func Groups() *pebble.IterOptions { return space(spaceGroup) }

// ReferrerKey says that a resource refers to the Binary with an id, or did once.
// The resources that refer to one lie side by side, sorted by type.
func ReferrerKey(binary string, by fhir.Key) []byte {
	return segment.PackID(append(referrersOf(binary), byte(by.Type)), by.ID)
}

func referrersOf(binary string) []byte {
	var packed [64]byte
	id := segment.PackID(packed[:0], binary)
	return append([]byte{spaceReferrer, byte(len(id))}, id...)
}

// ParseReferrerKey is the inverse of ReferrerKey.
func ParseReferrerKey(k []byte) (binary string, by fhir.Key, err error) {
	if len(k) < 2 || len(k) < 2+int(k[1])+2 {
		return "", by, fmt.Errorf("%w: referrer key", ErrCorrupt)
	}
	id, rest := k[2:2+k[1]], k[2+k[1]:]
	return segment.UnpackID(id), fhir.Key{Type: fhir.Type(rest[0]), ID: segment.UnpackID(rest[1:])}, nil
}

// Referrers bounds what refers to Binaries, or did.
func Referrers() *pebble.IterOptions { return space(spaceReferrer) }

// ReferrersOf bounds what refers to one Binary, or did. No type is numbered 255.
func ReferrersOf(binary string) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: referrersOf(binary), UpperBound: append(referrersOf(binary), 255)}
}

// OnceKey says that somebody has said something that counts once. The value is until
// when it is remembered, ms (8).
func OnceKey(said []byte) []byte { return append([]byte{spaceOnce}, said...) }

// Onces bounds what was said.
func Onces() *pebble.IterOptions { return space(spaceOnce) }

// NoteKey is what intake wants to know again, by its name for it.
func NoteKey(name string) []byte { return append([]byte{spaceNote}, name...) }

// NoteName is the name in a NoteKey.
func NoteName(k []byte) string { return string(k[1:]) }

// Notes bounds what intake wants to know again.
func Notes() *pebble.IterOptions { return space(spaceNote) }

// NotesFrom bounds what intake wants to know again under names that begin so.
func NotesFrom(prefix string) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: NoteKey(prefix), UpperBound: append(NoteKey(prefix), 255)}
}

// Rolls bounds whom exports of Groups found in them.
func Rolls() *pebble.IterOptions { return space(spaceRoll) }
