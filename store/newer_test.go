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
		{"at its place, for it was told again by another way", 200, 1001, other, stale},
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

// TestDeletionsInAnotherLog: a database that was moved begins its log anew. What is deleted
// long after it was written is deleted, however small its place; what a connector repeats of
// an earlier life is not.
func TestDeletionsInAnotherLog(t *testing.T) {
	from := Partition{Topic: "Patient"}
	cur := &index.State{
		Kind:  segment.Live,
		Clock: segment.Clock{Version: NoVersion, LastUpdated: 1_000_000, Position: 200, Timestamp: 1_000_100, Origin: from, Offset: 5},
		Life:  segment.NoLife,
	}
	for _, c := range []struct {
		what string
		time fhir.Instant
		want verdict
	}{
		{"repeated", 999_000, stale},
		{"by a clock that is ahead", 1_050_000, stale},
		{"of another log", 1_100_000, applies},
		{"without a time", fhir.None, stale},
	} {
		ch := Change{Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: c.time, Position: 7, Timestamp: 1_200_000, Offset: 9}
		if got := judge(cur, &ch, 0, from); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.what, got, c.want)
		}
	}
}

// TestSnapshotInAnotherLog: what a snapshot tells of a table of versions, long after, in a log that
// began anew (a database that was moved), stands there: what follows is newer.
func TestSnapshotInAnotherLog(t *testing.T) {
	from := Partition{Topic: "Patient_History"}
	cur := &index.State{
		Kind:  segment.Live,
		Clock: segment.Clock{Version: NoVersion, LastUpdated: 1_000_000, Position: 200, Timestamp: 1_000_100, Origin: from, Offset: 5},
		Life:  segment.NoLife,
	}
	for _, written := range []fhir.Instant{1_000_100 + anotherLog, 1_000_101 + anotherLog} {
		snapshot := Change{Version: NoVersion, LastUpdated: written - 10, Time: written, Position: 10, Snapshot: true, Earlier: true, Timestamp: written, Offset: 6}
		if got := judge(cur, &snapshot, 1, from); got != applies {
			t.Errorf("a snapshot of %v: verdict %d, want %d", written, got, applies)
		}
		next := *cur
		next.Clock, next.Life = succeed(cur, &snapshot, from)
		ch := Change{Version: NoVersion, LastUpdated: written + 1000, Time: written + 1000, Position: 20, Timestamp: written + 1001, Offset: 7}
		if got := judge(&next, &ch, 1, from); got != applies {
			t.Errorf("what follows a snapshot of %v: verdict %d, want %d", written, got, applies)
		}
		loaded := Change{Version: NoVersion, LastUpdated: written - 10, Timestamp: written, Offset: 6}
		next.Clock, next.Life = succeed(cur, &loaded, from)
		again := Change{Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: 1_000_000, Position: 100, Timestamp: written + 1, Offset: 7}
		if got := judge(&next, &again, 1, from); got != stale {
			t.Errorf("a deletion of the log that is told again behind what came by another way at %v: verdict %d, want %d", written, got, stale)
		}
	}
}

// TestSnapshotOfVersions: a snapshot tells the rows of a version table again, at its own place or without one. One of the instant of
// the newest, which came after it in the log, is not newer, be it of a life or of its end.
func TestSnapshotOfVersions(t *testing.T) {
	log := Partition{Topic: "Patient_History"}
	cur := &index.State{Kind: segment.Live, Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: log, Offset: 5}}
	for _, deletes := range []bool{true, false} {
		for _, from := range []Partition{log, {Topic: "Patient_History", ID: 1}} {
			for updated, want := range map[fhir.Instant]verdict{899: stale, 900: stale, 901: applies} {
				for _, place := range []uint64{0, 200, 300} {
					ch := Change{Delete: deletes, Version: NoVersion, LastUpdated: updated, Position: place, Snapshot: place > 0, Earlier: place > 0, Timestamp: 2000, Offset: 9}
					if got := judge(cur, &ch, 1, from); got != want {
						t.Errorf("of %d, a deletion %t, at %d, from %v: verdict %d, want %d", updated, deletes, place, from, got, want)
					}
				}
			}
		}
	}
	ch := Change{Version: NoVersion, LastUpdated: 900, Timestamp: 2000, Offset: 9}
	if got := judge(&index.State{Kind: segment.Live, Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Timestamp: 1000, Origin: log, Offset: 5}}, &ch, 1, log); got != applies {
		t.Errorf("where no log has told anything: verdict %d, want %d", got, applies)
	}
}

// TestPlacesOfOneInstant: of what says no number the log tells the later of one instant, whether
// what a snapshot tells of it, at its own place or without one, is read before that or behind it.
func TestPlacesOfOneInstant(t *testing.T) {
	here, there := Partition{Topic: "Patient_History", ID: 1}, Partition{Topic: "Patient_History"}
	told := Change{Version: NoVersion, LastUpdated: 900, Time: 905, Timestamp: 1000, Position: 200}
	again := Change{Version: NoVersion, LastUpdated: 900, Time: 1900, Timestamp: 2000, Snapshot: true, Earlier: true}
	for what, deletes := range map[string][2]bool{"a version": {}, "a deletion": {1: true}, "a new life": {0: true}} {
		for _, place := range []uint64{0, 300} {
			again.Delete, again.Position, told.Delete = deletes[0], place, deletes[1]
			for order, c := range map[string]struct {
				first, second Change
				want          verdict
			}{"behind it": {again, told, applies}, "first": {told, again, stale}} {
				cur := &index.State{Kind: segment.Live, Hash: 1}
				if cur.Clock, cur.Life = succeed(nil, &c.first, here); c.first.Delete {
					cur.Kind = segment.Internal
				}
				if got := judge(cur, &c.second, 2, there); got != c.want {
					t.Errorf("%s of the instant of a snapshot's row at %d, read %s: verdict %d, want %d", what, place, order, got, c.want)
				}
			}
		}
	}
	again.Delete, again.Version, again.Position, told.Delete, told.Version = true, 3, 0, false, 2
	cur := &index.State{Kind: segment.Internal}
	if cur.Clock, cur.Life = succeed(nil, &again, here); judge(cur, &told, 2, there) != stale {
		t.Error("a version lives behind the deletion that has the number after it")
	}
}

// TestPurgeOfTheUnseen: what the purge of a row does not say an earlier deletion has said, of
// what was never had, too. A version from before it, which a snapshot tells, is read last.
func TestPurgeOfTheUnseen(t *testing.T) {
	topic, table := Partition{Topic: "Patient_History"}, Partition{Topic: "Patient"}
	deleted := Change{Delete: true, Version: NoVersion, LastUpdated: 900, Time: 900, Position: 200, Timestamp: 1000}
	purged := Change{Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: 950, Position: 300, Timestamp: 1100}
	cur := &index.State{Kind: segment.Internal}
	cur.Clock, cur.Life = succeed(nil, &deleted, topic)
	if got := judge(cur, &purged, 0, table); got != gone {
		t.Fatalf("verdict %d of the purge, want %d", got, gone)
	}
	cur.Clock, cur.Life, _ = retell(cur, &purged, table)
	for _, c := range []struct {
		what string
		ch   Change
		want verdict
	}{
		{"before the deletion, and a snapshot tells it without a place", Change{LastUpdated: 850, Snapshot: true, Earlier: true}, stale},
		{"before the deletion, and a snapshot tells it", Change{LastUpdated: 850, Position: 400, Snapshot: true, Earlier: true}, stale},
		{"before the purge", Change{LastUpdated: 940, Position: 250}, stale},
		{"behind both", Change{LastUpdated: 960, Position: 310}, applies},
	} {
		c.ch.Version, c.ch.Timestamp = NoVersion, 1200
		if got := judge(cur, &c.ch, 1, Partition{Topic: "Patient_History", ID: 1}); got != c.want {
			t.Errorf("what was written %s: verdict %d, want %d", c.what, got, c.want)
		}
	}
}

// TestLateRowsOfTheUnseen: a deletion that is read first, from another partition or topic, is
// not undone by what it deleted, if it says itself that this is older.
func TestLateRowsOfTheUnseen(t *testing.T) {
	for _, c := range []struct {
		what    string
		said    Change // of the deletion
		version int64
		updated fhir.Instant
		want    verdict
	}{
		{"of an earlier instant", Change{Version: NoVersion, LastUpdated: 900}, NoVersion, 899, stale},
		{"of the same", Change{Version: NoVersion, LastUpdated: 900}, NoVersion, 900, stale},
		{"of a later one", Change{Version: NoVersion, LastUpdated: 900}, NoVersion, 901, applies},
		{"of an earlier version", Change{Version: 4, LastUpdated: fhir.None}, 3, 900, stale},
		{"of a life whose versions begin anew", Change{Version: 4, LastUpdated: 900}, 1, 901, applies},
		{"that says nothing", Change{Version: 4, LastUpdated: 900}, NoVersion, fhir.None, applies},
		{"of a deletion that says nothing", Change{Version: NoVersion, LastUpdated: fhir.None}, 1, 900, applies},
	} {
		c.said.Delete, c.said.Position = true, 500
		cur := &index.State{Kind: segment.Internal}
		cur.Clock, cur.Life = succeed(nil, &c.said, Partition{Topic: "Patient"})
		ch := Change{Version: c.version, LastUpdated: c.updated, Timestamp: 1001}
		if got := judge(cur, &ch, 1, Partition{Topic: "Patient_History", ID: 1}); got != c.want {
			t.Errorf("a row %s: verdict %d, want %d", c.what, got, c.want)
		}
	}
	cur := &index.State{Kind: segment.Internal, Clock: segment.Clock{Version: NoVersion, LastUpdated: fhir.None, Position: 500}, Life: segment.NoLife}
	for place, want := range map[uint64]verdict{499: stale, 501: applies} {
		ch := Change{Version: NoVersion, LastUpdated: fhir.None, Position: place, Timestamp: 1001}
		if got := judge(cur, &ch, 1, Partition{Topic: "Patient"}); got != want {
			t.Errorf("at the place %d, of a deletion at 500: verdict %d, want %d", place, got, want)
		}
	}
}

// TestFloorsInTheLog: what was created within the millisecond of what was deleted lives, if
// the log says that it came after; an old version that is read again does not.
func TestFloorsInTheLog(t *testing.T) {
	from := Partition{Topic: "Patient"}
	cur := &index.State{
		Kind:  segment.Deleted,
		Clock: segment.Clock{Version: 4, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: from, Offset: 5},
		Life:  segment.Life{FloorVersion: 4, FloorUpdated: 900},
	}
	for _, c := range []struct {
		what     string
		version  int64
		updated  fhir.Instant
		position uint64
		want     verdict
	}{
		{"created behind it", NoVersion, 900, 300, applies},
		{"told again", NoVersion, 900, 100, stale},
		{"told without a place", NoVersion, 900, 0, stale},
		{"an old time behind it, by a clock that fell", NoVersion, 899, 300, applies},
		{"an old time before it", NoVersion, 899, 100, stale},
		{"an old version behind it", 3, fhir.None, 300, stale},
		{"created behind it, by a life of which versions begin anew", 3, 900, 300, applies},
		{"an old version told again", 3, 900, 100, stale},
		{"a time that is later, before it", NoVersion, 901, 100, stale},
		{"a time that is later, nowhere", NoVersion, 901, 0, applies},
		{"a later version before it", 5, 899, 100, applies},
	} {
		ch := Change{Version: c.version, LastUpdated: c.updated, Position: c.position, Timestamp: 1001, Offset: 9}
		if got := judge(cur, &ch, 1, from); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.what, got, c.want)
		}
	}
	for _, place := range []uint64{199, 200} { // which may be that of something else in another log
		for at, want := range map[fhir.Instant]verdict{1000 + anotherLog: stale, 1001 + anotherLog: applies} {
			ch := Change{Version: NoVersion, LastUpdated: 900, Time: at, Position: place, Timestamp: at, Offset: 9}
			if got := judge(cur, &ch, 1, from); got != want {
				t.Errorf("done at %d, at the place %d: verdict %d, want %d", at, place, got, want)
			}
		}
	}
}

// TestUnderWayAtASnapshot: a transaction that was under way when a snapshot was taken wrote
// before the snapshot's place, and what it wrote came after what the snapshot has.
func TestUnderWayAtASnapshot(t *testing.T) {
	from := Partition{Topic: "Observation"}
	for _, kind := range []segment.Kind{segment.Live, segment.Deleted} {
		cur := &index.State{
			Kind:  kind,
			Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, UpTo: true, Timestamp: 1000, Origin: from, Offset: 5},
			Life:  segment.NoLife,
		}
		for _, c := range []struct {
			what string
			ch   Change
			want verdict
		}{
			{"a body", Change{LastUpdated: 950, Position: 100}, applies},
			{"a body told again", Change{LastUpdated: 850, Position: 100}, stale},
			{"a body of which only the commit's time is known", Change{LastUpdated: fhir.None, Time: 950, Position: 100}, applies},
			{"a body of which no time is known", Change{LastUpdated: fhir.None, Time: fhir.None, Position: 100}, stale},
			{"a deletion", Change{Delete: true, LastUpdated: fhir.None, Time: 950, Position: 100}, applies},
			{"a deletion told again", Change{Delete: true, LastUpdated: fhir.None, Time: 850, Position: 100}, stale},
			{"what another snapshot has, of before", Change{LastUpdated: 950, Position: 100, Snapshot: true}, stale},
			{"what another snapshot has", Change{LastUpdated: 950, Position: 300, Snapshot: true}, applies},
		} {
			c.ch.Version, c.ch.Timestamp, c.ch.Offset = NoVersion, 1001, 9
			if kind == segment.Deleted && c.ch.Delete {
				continue
			}
			if kind == segment.Deleted {
				cur.Life.FloorUpdated = 900
			}
			if got := judge(cur, &c.ch, 1, from); got != c.want {
				t.Errorf("%s, of what is of kind %v: verdict %d, want %d", c.what, kind, got, c.want)
			}
		}
	}
	first := Change{Version: NoVersion, LastUpdated: 900, Position: 200, Snapshot: true}
	k, _ := succeed(nil, &first, from)
	cur := &index.State{Kind: segment.Live, Clock: k, Life: segment.NoLife}
	nowhere := Change{Version: NoVersion, LastUpdated: 950}
	if k, _ := succeed(cur, &nowhere, from); !k.UpTo {
		t.Error("what has the place of the row before does not know that it is that of a snapshot")
	}
	streamed := Change{Version: NoVersion, LastUpdated: 950, Position: 100}
	if k, _ := succeed(cur, &streamed, from); k.UpTo {
		t.Error("what the log has stands at a snapshot's place")
	}
}

// TestClockThatFalls: what the source's log says came last is what the source has, whatever
// lastUpdated says: a transaction took its time before it waited for another.
func TestClockThatFalls(t *testing.T) {
	from := Partition{Topic: "Observation"}
	live := &index.State{
		Kind:  segment.Live,
		Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: from, Offset: 5}, Life: segment.NoLife,
	}
	unseen := &index.State{Kind: segment.Internal, Clock: live.Clock, Life: segment.NoLife}
	for _, c := range []struct {
		what string
		cur  *index.State
		ch   Change
		want verdict
	}{
		{"a body behind it", live, Change{LastUpdated: 800, Position: 300}, applies},
		{"a body before it", live, Change{LastUpdated: 1000, Position: 100}, stale},
		{"a body nowhere", live, Change{LastUpdated: 800}, stale},
		{"a deletion behind it", live, Change{Delete: true, LastUpdated: 800, Position: 300}, applies},
		{"a deletion before it", live, Change{Delete: true, LastUpdated: 1000, Position: 100}, stale},
		{"a body behind the deletion of what was never had", unseen, Change{LastUpdated: 800, Position: 300}, applies},
	} {
		c.ch.Version, c.ch.Timestamp, c.ch.Offset = NoVersion, 1001, 9
		if got := judge(c.cur, &c.ch, 1, from); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.what, got, c.want)
		}
	}
}

// TestVersionWrittenAgain: a row of a table of versions that is written again is as old as it
// was, and what is newer may lie in a partition that is read later.
func TestVersionWrittenAgain(t *testing.T) {
	here, there := Partition{Topic: "Patient_History"}, Partition{Topic: "Patient_History", ID: 1}
	clock := segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: here, Offset: 5}
	live := &index.State{Kind: segment.Live, Clock: clock, Life: segment.NoLife}
	gone := &index.State{Kind: segment.Deleted, Clock: clock, Life: segment.Life{FloorVersion: NoVersion, FloorUpdated: 900}}
	unseen := &index.State{Kind: segment.Internal, Clock: clock}
	_, unseen.Life = succeed(nil, &Change{Delete: true, Version: NoVersion, LastUpdated: 900, Timestamp: 1000}, here)
	for _, c := range []struct {
		what    string
		cur     *index.State
		deletes bool
		updated fhir.Instant
		from    Partition
		want    verdict
	}{
		{"an old version", live, false, 800, here, stale},
		{"an old version of another partition", live, false, 800, there, stale},
		{"the newest version", live, false, 900, here, applies},
		{"a later version", live, false, 901, there, applies},
		{"an old deletion", live, true, 800, here, stale},
		{"a deletion of that instant", live, true, 900, here, stale},
		{"a later deletion", live, true, 901, here, applies},
		{"an old version of what is deleted", gone, false, 800, here, stale},
		{"the version that was deleted", gone, false, 900, here, stale},
		{"an old version of what was never had", unseen, false, 800, there, stale},
	} {
		ch := Change{Delete: c.deletes, Version: NoVersion, LastUpdated: c.updated, Position: 300, Timestamp: 500_000, Offset: 9, Earlier: true}
		if got := judge(c.cur, &ch, 1, c.from); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.what, got, c.want)
		}
	}
	next := *live
	again := Change{Version: NoVersion, LastUpdated: 900, Position: 300, Timestamp: 500_000, Offset: 9, Earlier: true}
	next.Clock, next.Life = succeed(live, &again, here)
	for _, c := range []struct {
		what string
		ch   Change
		want verdict
	}{
		{"what it was, told again", Change{LastUpdated: 900, Position: 200, Time: 900, Offset: 10}, stale},
		{"what it was between, told again", Change{LastUpdated: 900, Position: 250, Time: 940, Offset: 10, Earlier: true}, stale},
		{"what it is now", Change{LastUpdated: 900, Position: 350, Time: 990, Offset: 10, Earlier: true}, applies},
		{"a newer version, of before that", Change{LastUpdated: 950, Position: 250, Time: 950, Offset: 10}, applies},
		{"a deletion of before that", Change{Delete: true, LastUpdated: fhir.None, Position: 250, Time: 950, Offset: 10}, applies},
		{"a deletion of an earlier life", Change{Delete: true, LastUpdated: fhir.None, Position: 100, Time: 850, Offset: 10}, stale},
		{"a version of a log that began anew", Change{LastUpdated: 600_000, Position: 7, Time: 600_000, Offset: 10}, applies},
	} {
		c.ch.Version, c.ch.Timestamp = NoVersion, 600_100
		if got := judge(&next, &c.ch, 2, there); got != c.want {
			t.Errorf("behind a version that was written again, %s: verdict %d, want %d", c.what, got, c.want)
		}
	}
	for updated, want := range map[fhir.Instant]bool{800: false, 900: false, 901: true} {
		ch := Change{Delete: true, Version: NoVersion, LastUpdated: updated, Position: 300, Timestamp: 500_000, Earlier: true, Offset: 9}
		if k, _, news := retell(gone, &ch, here); news != want || !want && k.Position != 200 {
			t.Errorf("a deletion's row of %d is written again: news %t, want %t; it stands at %d", updated, news, want, k.Position)
		}
		ch = Change{Delete: true, Version: NoVersion, LastUpdated: updated, Position: 300, Timestamp: 500_000, Snapshot: true, Earlier: true, Offset: 9}
		if _, _, news := retell(gone, &ch, here); news != want {
			t.Errorf("a snapshot tells a deletion of %d again: news %t, want %t", updated, news, want)
		}
	}
}

// TestDeletionsOfTheUnseen: of several deletions of what was never had the last one counts, also
// where only what they say tells which that is: a snapshot tells the rows of a table of versions all
// at its own place, and what was deleted first, made again and deleted again lies in any partition.
func TestDeletionsOfTheUnseen(t *testing.T) {
	here, there := Partition{Topic: "Patient_History"}, Partition{Topic: "Patient_History", ID: 1}
	said := func(version int64, updated fhir.Instant) Change {
		return Change{Delete: true, Version: version, LastUpdated: updated, Position: 400, Timestamp: 2000, Snapshot: true, Earlier: true}
	}
	between := Change{Version: NoVersion, LastUpdated: 910, Position: 400, Timestamp: 2000, Snapshot: true, Earlier: true}
	numbered := Change{Version: 4, LastUpdated: 910, Position: 400, Timestamp: 2000, Snapshot: true, Earlier: true}
	placed := said(NoVersion, 900)
	placed.Position, placed.Snapshot, placed.Earlier = 300, false, false
	nameless := Change{Version: NoVersion, LastUpdated: fhir.None, Position: 290, Timestamp: 1000}
	late := Change{Version: NoVersion, LastUpdated: 910, Position: 310, Time: 910, Timestamp: 1000}
	for _, c := range []struct {
		what          string
		first, second Change
		ch            Change
		want          verdict
	}{
		{"between them", said(NoVersion, 900), said(NoVersion, 920), between, stale},
		{"between them, the later one first", said(NoVersion, 920), said(NoVersion, 900), between, stale},
		{"between their numbers", said(3, 900), said(5, 920), numbered, stale},
		{"behind both", said(NoVersion, 900), said(NoVersion, 905), between, applies},
		{"between one in the log and one of a snapshot", placed, said(NoVersion, 920), late, stale},
		{"before one in the log and one of a snapshot, and says nothing", placed, said(NoVersion, 920), nameless, stale},
		{"between one of a snapshot and an earlier one in the log", said(NoVersion, 920), placed, late, stale},
	} {
		cur := &index.State{Kind: segment.Internal}
		cur.Clock, cur.Life = succeed(nil, &c.first, here)
		if got := judge(cur, &c.second, 0, here); got != gone {
			t.Fatalf("%s: verdict %d of the second deletion, want %d", c.what, got, gone)
		}
		cur.Clock, cur.Life, _ = retell(cur, &c.second, here)
		if got := judge(cur, &c.ch, 1, there); got != c.want {
			t.Errorf("what came %s: verdict %d, want %d", c.what, got, c.want)
		}
	}
	cur, later := &index.State{Kind: segment.Internal}, said(NoVersion, 920)
	cur.Clock, cur.Life = succeed(nil, &Change{Delete: true, Version: NoVersion, LastUpdated: 900, Timestamp: 1000}, here)
	later.Position = 0
	if k, _, news := retell(cur, &later, here); !news || k.LastUpdated != 920 {
		t.Errorf("the later one of two without places: news %t, %v", news, k.LastUpdated)
	}
}

// TestUpToItsPlace: a version that a snapshot tells, or of which only its being written again is
// told (the log was lost, or compacted), stands anywhere before its place. What lies between the
// row before and it, in a partition that is read later, is older.
func TestUpToItsPlace(t *testing.T) {
	here, there := Partition{Topic: "Patient_History"}, Partition{Topic: "Patient_History", ID: 1}
	for _, kind := range []segment.Kind{segment.Live, segment.Deleted} {
		before := &index.State{
			Kind: kind, Life: segment.NoLife,
			Clock: segment.Clock{Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Origin: here, Offset: 5},
		}
		for what, ch := range map[string]Change{"a snapshot tells": {Snapshot: true, Earlier: true}, "was written again": {Earlier: true}} {
			ch.Delete, ch.Version, ch.LastUpdated, ch.Position, ch.Timestamp, ch.Offset = kind == segment.Deleted, NoVersion, 950, 400, 1100, 9
			cur := *before
			if kind == segment.Deleted {
				cur.Clock, cur.Life, _ = retell(before, &ch, here)
			} else {
				cur.Clock, cur.Life = succeed(before, &ch, here)
			}
			for _, c := range []struct {
				what string
				ch   Change
				want verdict
			}{
				{"between the two", Change{LastUpdated: 920, Position: 300}, stale},
				{"behind both", Change{LastUpdated: 960, Position: 300}, applies},
				{"before both", Change{LastUpdated: 890, Position: 100}, stale},
				{"behind its place", Change{LastUpdated: 940, Position: 401}, map[bool]verdict{false: applies, true: stale}[ch.Snapshot]}, // a snapshot may be ahead
				{"later, of what is now, told by a snapshot there", Change{LastUpdated: 960, Position: 400, Snapshot: true}, applies},
				{"earlier, of what is now, told by a snapshot there", Change{LastUpdated: 940, Position: 400, Snapshot: true}, stale},
			} {
				c.ch.Version, c.ch.Timestamp, c.ch.Offset = NoVersion, 1200, 3
				if got := judge(&cur, &c.ch, 1, there); got != c.want {
					t.Errorf("%s of what is of kind %v, and %s: verdict %d, want %d", c.what, kind, what, got, c.want)
				}
			}
			next, deleted := cur, Change{Delete: true, Version: NoVersion, LastUpdated: 920, Position: 300, Timestamp: 1200, Offset: 3}
			if got := judge(&next, &deleted, 0, there); kind == segment.Live && got != stale {
				t.Errorf("a deletion between the two, and %s: verdict %d, want %d", what, got, stale)
			}
		}
	}
	untold := &index.State{Kind: segment.Deleted} // of what only a lost store had
	untold.Clock, untold.Life = succeed(nil, &Change{Delete: true, Version: NoVersion, LastUpdated: 900, Position: 200, Timestamp: 1000, Offset: 5}, here)
	again := Change{Delete: true, Version: NoVersion, LastUpdated: 900, Position: 400, Timestamp: 1200, Earlier: true, Offset: 9}
	if _, _, news := retell(untold, &again, here); news {
		t.Error("a deletion's row that was written again is another deletion")
	}
}
