package store

import (
	"cmp"
	"slices"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// What a change does to the resource it names (design: "Which change is newer").
type verdict uint8

const (
	applies verdict = iota // it becomes the newest row
	stale                  // something newer is stored, or it belongs to an old life
	same                   // the newest version with the same body, seen again
	gone                   // the deletion of something deleted
)

// maxTombstones bounds the record timestamps of versionless deletions that a
// resource remembers. One more deletion than that, replayed with its old
// timestamp after a re-creation, would count as new.
const maxTombstones = 32

// anotherLog is by how much (milliseconds) the time of a change must lie after the row's
// record before it counts against the place in the source's log: then the log is another one,
// which began anew (a database that was moved), and its places are small again. The clocks of
// a database and of what tells its changes differ by less.
const anotherLog = 60_000

// InLog orders what was done at a position of a source's log against what stands at another
// and was written down then, if both have a position (0: none). What was done long after that is
// of a log that has begun anew. fhir.None: a time that is not known.
func InLog(position uint64, done fhir.Instant, than uint64, written fhir.Instant) (order int, placed bool) {
	switch {
	case position == 0 || than == 0:
		return 0, false
	case position <= than && done != fhir.None && written != fhir.None && done > written+anotherLog:
		return 1, true
	}
	return cmp.Compare(position, than), true
}

// judge tells what ch, read from partition from, does to a resource whose
// newest row is cur, nil if there never was one.
func judge(cur *index.State, ch *Change, hash uint64, from Partition) verdict {
	switch {
	case cur == nil:
		return applies
	case ch.Delete:
		return judgeDeletion(cur, ch, from)
	case cur.Kind != segment.Live:
		if belowFloor(&cur.Life, &cur.Clock, ch) || beforeDeletion(cur, ch) {
			return stale
		}
		return applies // any other live change beats a deletion, also of what we never had
	case cur.Life.Reborn && belowFloor(&cur.Life, &cur.Clock, ch):
		return stale
	case hash == cur.Hash && sayNothingNew(&cur.Clock, ch):
		return same
	case compare(ch, from, &cur.Clock) <= 0:
		return stale
	}
	return applies
}

func judgeDeletion(cur *index.State, ch *Change, from Partition) verdict {
	k := &cur.Clock
	at, placed := order(ch, k)
	if at == 0 && ch.Version == NoVersion && ch.Timestamp != fhir.None && slices.Contains(cur.Life.Tombstones, ch.Timestamp) {
		return stale
	}
	if cur.Kind != segment.Live {
		return gone
	}
	if cur.Life.Reborn && belowFloor(&cur.Life, &cur.Clock, ch) {
		return stale
	}
	if ch.Version != NoVersion {
		if compare(ch, from, k) <= 0 {
			return stale
		}
		return applies
	}
	// Without a version it ranks just after the newest row, unless the source's log, its own
	// time or, from another partition, the record's time says that it is older.
	switch {
	case at < 0, placed && at == 0 && !cur.Life.Empty():
		return stale // at the same place it is the deletion after which the row came by another way
	case ch.Earlier && ch.LastUpdated != fhir.None && ch.LastUpdated == k.LastUpdated:
		return stale // the row came after it in one millisecond: that it was written again says nothing of that
	case at > 0:
		return applies
	case from != k.Origin && compareInstants(ch.Timestamp, k.Timestamp) < 0:
		return stale
	}
	if from == k.Origin && ch.Offset <= k.Offset {
		return stale
	}
	return applies
}

// belowFloor reports whether ch belongs to a life that a deletion ended: all
// that it says of version and time lies at or below what was deleted, and it
// says something. What says the same instant is of a new life if it stands behind the newest
// row in its source's log, whatever its version: much can happen within a millisecond, and
// behind a life that was purged versions begin anew. Without a version it does, whatever the
// instant.
func belowFloor(l *segment.Life, newest *segment.Clock, ch *Change) bool {
	said, numbered, tied := false, false, true
	if ch.Version != NoVersion && l.FloorVersion != NoVersion {
		if ch.Version > l.FloorVersion {
			return false
		}
		said, numbered, tied = true, true, ch.Version == l.FloorVersion
	}
	if ch.LastUpdated != fhir.None && l.FloorUpdated != fhir.None {
		if ch.LastUpdated > l.FloorUpdated {
			return false
		}
		if said = true; numbered {
			tied = ch.LastUpdated == l.FloorUpdated
		}
	}
	at, _ := place(ch, newest)
	return said && (!tied || at <= 0 || ch.Earlier)
}

// beforeDeletion reports whether ch stands before the deletion that is the newest row, or is
// just what that deleted, in the source's log: of two topics one may be read late. A version
// that the deletion said itself comes first.
func beforeDeletion(cur *index.State, ch *Change) bool {
	k := &cur.Clock
	if own := k.Version != NoVersion && !k.Inherited; own && ch.Version > cur.Life.FloorVersion {
		return false
	}
	at, placed := place(ch, k)
	return placed && at <= 0
}

// place orders a change and the newest row by where they stand in their source's log, if both
// say that. Where one of them may stand anywhere before its place, and the other stands there,
// their times decide: of a version's row that was written again, and of what a snapshot tells and a
// transaction that was under way then, and wrote before it. They always do of a version's row that
// a snapshot tells: it may also stand behind the place at which the snapshot began. Of one instant,
// and by no number the later one, the log tells the later.
func place(ch *Change, k *segment.Clock) (order int, placed bool) {
	done, written := ch.Time, k.Timestamp
	if done == fhir.None {
		done = ch.LastUpdated
	}
	if written == fhir.None {
		written = k.LastUpdated
	}
	order, placed = InLog(ch.Position, done, k.Position, written)
	said := ch.LastUpdated
	nowhere, row := ch.Position == 0 || ch.Earlier && ch.Snapshot, k.Position == 0 || k.Told // no place of their own
	switch {
	case nowhere != row && said != fhir.None && said == k.LastUpdated && (ch.Version == NoVersion || k.Version == NoVersion):
		if nowhere {
			return -1, true
		}
		return 1, true
	case !placed:
		return order, placed
	case ch.Earlier && (ch.Snapshot || order >= 0): // ch may stand before the row
	case k.Told, k.UpTo && order == 0, k.UpTo && order < 0 && !ch.Snapshot: // the row may stand before ch
		if said == fhir.None {
			said = ch.Time
		}
	default:
		return order, placed
	}
	if updated := compareInstants(said, k.LastUpdated); updated != 0 {
		return updated, placed
	}
	return order, placed
}

// order is that of the source: of its log, and by lastUpdated where that tells nothing. Many take
// that from a clock before they wait for a row's lock, or from when their transaction began: it falls along the log.
func order(ch *Change, k *segment.Clock) (o int, placed bool) {
	o, placed = place(ch, k)
	if o == 0 {
		if updated := compareInstants(ch.LastUpdated, k.LastUpdated); updated != 0 {
			return updated, placed
		}
	}
	return o, placed
}

// sayNothingNew reports whether ch claims no version or time other than the
// row's own.
func sayNothingNew(k *segment.Clock, ch *Change) bool {
	return (ch.Version == NoVersion || ch.Version == k.Version) &&
		(ch.LastUpdated == fhir.None || ch.LastUpdated == k.LastUpdated)
}

// compare orders a change against the newest row: version, source position,
// lastUpdated, then the offset in the same partition; across partitions the record
// timestamp where lastUpdated is missing, then the partition. What the change
// lacks compares equal.
func compare(ch *Change, from Partition, k *segment.Clock) int {
	if o := compareVersions(ch, k); o != 0 {
		return o
	}
	if o, _ := order(ch, k); o != 0 {
		return o
	}
	if from == k.Origin {
		return cmp.Compare(ch.Offset, k.Offset)
	}
	if ch.LastUpdated == fhir.None || k.LastUpdated == fhir.None {
		if o := compareInstants(ch.Timestamp, k.Timestamp); o != 0 {
			return o
		}
	}
	return from.Compare(k.Origin)
}

// compareVersions orders them by version alone.
func compareVersions(ch *Change, k *segment.Clock) int {
	switch {
	case ch.Version == NoVersion || k.Version == NoVersion:
		return 0
	case ch.Version == k.Version && k.Inherited && compareInstants(ch.LastUpdated, k.LastUpdated) <= 0:
		return -1 // a versionless change has already followed this version
	}
	return cmp.Compare(ch.Version, k.Version)
}

// compareInstants compares two instants; one that is missing compares equal.
func compareInstants(a, b fhir.Instant) int {
	if a == fhir.None || b == fhir.None {
		return 0
	}
	return cmp.Compare(a, b)
}

// succeed returns the clock and the life of the row that ch becomes after cur.
func succeed(cur *index.State, ch *Change, from Partition) (segment.Clock, segment.Life) {
	k := segment.Clock{
		Version: ch.Version, LastUpdated: ch.LastUpdated, Position: ch.Position, Timestamp: ch.Timestamp, Origin: from, Offset: ch.Offset,
		UpTo: (ch.Snapshot || ch.Earlier) && ch.Position != 0, Told: ch.Snapshot && ch.Earlier && ch.Position != 0,
	}
	if cur == nil {
		k.Told = k.Told && k.Version == NoVersion
		return k, lifeAfter(segment.NoLife, nil, ch)
	}
	old := &cur.Clock
	if k.Version == NoVersion && old.Version != NoVersion {
		k.Version, k.Inherited = old.Version, true
	}
	if k.LastUpdated == fhir.None {
		k.LastUpdated = old.LastUpdated
	}
	if k.Position == 0 {
		k.Position, k.UpTo, k.Told = old.Position, old.UpTo, old.Told
	}
	if k.Timestamp == fhir.None {
		k.Timestamp = old.Timestamp
	}
	k.Told = k.Told && k.Version == NoVersion // a number says more
	return k, lifeAfter(cur.Life, cur, ch)
}

// retell returns the clock and the life of a deletion after which another one, ch, is told, and
// whether they differ from what was known. Of two the one counts that stands further in the
// source's log, or, where that tells nothing, the later one; the same again, or an earlier one,
// tells nothing.
func retell(cur *index.State, ch *Change, from Partition) (k segment.Clock, l segment.Life, news bool) {
	k = cur.Clock
	known := &cur.Life
	at, placed := place(ch, &k)
	if placed && at <= 0 && ch.Version <= known.FloorVersion {
		return k, *known, false
	}
	if (!placed || ch.Earlier) && ch.Version == NoVersion && ch.LastUpdated != fhir.None && ch.LastUpdated <= known.FloorUpdated {
		return k, *known, false // a snapshot tells a version again that ended a life, or that was told as if it had
	}
	next, l := succeed(cur, ch, from)
	said := compareVersions(ch, &k)
	if said == 0 {
		said = compareInstants(ch.LastUpdated, k.LastUpdated)
	}
	first := k.Position == 0 && ch.Position != 0
	if at > 0 || at == 0 && (said > 0 || said == 0 && first) {
		k = next
	}
	return k, l, k != cur.Clock || l.FloorVersion != known.FloorVersion || l.FloorUpdated != known.FloorUpdated ||
		!slices.Equal(l.Tombstones, known.Tombstones)
}

// lifeAfter is what the deletions up to and with ch leave behind.
func lifeAfter(l segment.Life, cur *index.State, ch *Change) segment.Life {
	if !ch.Delete {
		if cur != nil && cur.Kind != segment.Live && ch.Version != NoVersion && ch.Version < l.FloorVersion {
			l.Reborn = true
		}
		return l
	}
	if cur != nil {
		l.FloorVersion, l.FloorUpdated = max(l.FloorVersion, cur.Clock.Version), max(l.FloorUpdated, cur.Clock.LastUpdated)
	}
	l.FloorVersion, l.FloorUpdated = max(l.FloorVersion, ch.Version), max(l.FloorUpdated, ch.LastUpdated)
	if ch.Version == NoVersion && ch.Timestamp != fhir.None {
		i, known := slices.BinarySearch(l.Tombstones, ch.Timestamp)
		if !known {
			l.Tombstones = slices.Insert(slices.Clone(l.Tombstones), i, ch.Timestamp)
			l.Tombstones = l.Tombstones[max(0, len(l.Tombstones)-maxTombstones):]
		}
	}
	return l
}
