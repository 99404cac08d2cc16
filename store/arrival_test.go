package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// TestOrderOfArrival: what is told of one log by two topics, each in the log's order, ends as
// the log does, in whatever order the topics are read, and however much of it is told again.
func TestOrderOfArrival(t *testing.T) {
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 11))
		all, ends := logOf(r)
		for mask := range 1 << len(all) {
			var topics [2][]arrival
			for i, a := range all {
				p := mask >> i & 1
				a.from = Partition{Topic: "log", ID: int32(p)}
				topics[p] = append(topics[p], a)
			}
			for p, list := range topics { // a connector that was killed
				if len(list) > 0 {
					topics[p] = append(list, list[r.IntN(len(list)):]...)
				}
			}
			if got := arrive(r, topics[:]); got != ends {
				t.Fatalf("seed %d, mask %b: %s, but the log ends with %s", seed, mask, got, ends)
			}
		}
	}
}

// arrival is a change, and what makes its body.
type arrival struct {
	ch   Change
	hash uint64
	from Partition
}

// logOf makes changes of one resource as a database's log has them, and says how that ends.
// Their clock may stand still, and fall if there are no versions.
func logOf(r *rand.Rand) (list []arrival, ends string) {
	versions, instants, explicit := r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	at, updated, lives := fhir.Instant(1_000_000), fhir.Instant(1_000_000), false
	for i := range uint64(2 + r.IntN(4)) {
		at += fhir.Instant(r.IntN(100_000))
		switch r.IntN(4) {
		case 0, 1:
			updated = at
		case 2:
			updated = at - fhir.Instant(r.IntN(200_000))
		}
		ch := Change{
			Delete: lives && r.IntN(2) == 0, Version: NoVersion, LastUpdated: fhir.None, Time: at, Position: 100 + 10*i,
			Timestamp: at - at%20_000,
		}
		if versions && (explicit || !ch.Delete) {
			ch.Version = int64(i) + 1
		}
		if instants && (explicit || !ch.Delete) {
			ch.LastUpdated = updated
		}
		lives = !ch.Delete
		list = append(list, arrival{ch: ch, hash: i + 1})
		if ends = "nothing"; lives {
			ends = fmt.Sprint(i + 1)
		}
	}
	return list, ends
}

// arrive takes the topics in, in some order, and returns what lives then.
func arrive(r *rand.Rand, topics [][]arrival) string {
	return arriveBy(r, topics, func(string) {})
}

// arriveBy tells what lives after each change, too.
func arriveBy(r *rand.Rand, topics [][]arrival, each func(lives string)) string {
	lives := func(cur *index.State) string {
		if cur == nil || cur.Kind != segment.Live {
			return "nothing"
		}
		return fmt.Sprint(cur.Hash)
	}
	var cur *index.State
	offsets, left := make([]int64, len(topics)), 0
	for _, list := range topics {
		left += len(list)
	}
	for left > 0 {
		p := r.IntN(len(topics))
		if len(topics[p]) == 0 {
			continue
		}
		a := topics[p][0]
		topics[p] = topics[p][1:]
		left--
		a.ch.Offset = offsets[p]
		offsets[p]++
		switch judge(cur, &a.ch, a.hash, a.from) {
		case stale, same:
		case gone:
			cur.Clock, cur.Life, _ = retell(cur, &a.ch, a.from)
		case applies:
			next := index.State{Kind: segment.Live, Hash: a.hash}
			if next.Clock, next.Life = succeed(cur, &a.ch, a.from); a.ch.Delete {
				next.Kind, next.Hash = segment.Deleted, 0
				if cur == nil || cur.Kind == segment.Internal {
					next.Kind = segment.Internal
				}
			}
			cur = &next
		}
		each(lives(cur))
	}
	return lives(cur)
}

// TestArrivalOfVersions: what is told of a table of versions without numbers, each row in a
// partition of its own, ends with the newest version, in whatever order the partitions are read:
// also if rows are written again, a snapshot tells them all, the log is lost for a while before
// it, and of what was told of a row compaction has left only the last.
func TestArrivalOfVersions(t *testing.T) {
	for seed := range uint64(60_000) {
		r := rand.New(rand.NewPCG(seed, 13))
		topics, ends := versionsOf(r)
		if got := arrive(r, topics); got != ends {
			t.Fatalf("seed %d: %s, but the table ends with %s", seed, got, ends)
		}
	}
}

// TestVersionsBesideTheirTable: of a table of versions and of one of what is now, both of which are
// written again now and then, nothing that was over comes again, in whatever order their topics are
// read, also where snapshots tell both, the log is lost for a while before one, and a connector tells
// the end of all of it again.
func TestVersionsBesideTheirTable(t *testing.T) {
	for seed := range uint64(60_000) {
		r := rand.New(rand.NewPCG(seed, 14))
		topics, ends := besideItsVersions(r)
		var now []string
		if got := arriveBy(r, topics, func(lives string) { now = append(now, lives) }); got != ends {
			t.Fatalf("seed %d: %s, but the table ends with %s", seed, got, ends)
		}
		now = slices.Compact(now)
		for i, is := range now {
			if is != "nothing" && slices.Contains(now[:i], is) {
				t.Fatalf("seed %d: %s comes again: %v", seed, is, now)
			}
		}
	}
}

// besideItsVersions makes what is told of one resource by a table, in the last of the topics, and
// by that of its versions, in the others. The log may be lost for a while: a snapshot follows, as others do now and then.
func besideItsVersions(r *rand.Rand) (topics [][]arrival, ends string) {
	at, place, hash, hidden := fhir.Instant(1_000_000), uint64(100), uint64(0), false
	topics = make([][]arrival, 4)
	var versions []arrival
	tell := func(a arrival, p int, again, snapshot bool) {
		if hidden {
			return
		}
		a.ch.Time, a.ch.Timestamp, a.ch.Position = at, at+fhir.Instant(r.IntN(500)), place
		a.ch.Earlier, a.ch.Snapshot = again && p < 3, snapshot
		a.from = Partition{Topic: "versions", ID: int32(p)}
		if p == 3 {
			a.from = Partition{Topic: "table"}
		}
		topics[p] = append(topics[p], a)
	}
	both := func(a arrival, again bool) {
		for _, p := range [][]int{{3, int(a.from.ID)}, {int(a.from.ID), 3}}[r.IntN(2)] {
			place++
			tell(a, p, again, false)
		}
	}
	snapshot := func() {
		hidden = false
		place++
		for i, v := range versions {
			tell(v, int(v.from.ID), true, true)
			if i == len(versions)-1 {
				tell(v, 3, false, true)
			}
		}
	}
	for range 3 + r.IntN(8) {
		at += fhir.Instant(1 + r.IntN([]int{1000, 50_000}[r.IntN(2)]))
		hash++
		last := len(versions) - 1
		switch k := r.IntN(10); {
		case last < 0 || k < 5:
			ch := Change{Delete: last >= 0 && !versions[last].ch.Delete && r.IntN(3) == 0, Version: NoVersion, LastUpdated: at}
			versions = append(versions, arrival{ch: ch, hash: hash, from: Partition{ID: int32(r.IntN(3))}})
			both(versions[last+1], false)
			continue
		case k == 8:
			hidden = true
			continue
		case k == 9:
			snapshot()
			continue
		}
		i := r.IntN(len(versions))
		if hidden && i == last {
			continue // a snapshot tells another body of what the log has told: which is newer, nothing tells
		}
		if !versions[i].ch.Delete {
			versions[i].hash = hash
		}
		if i == last {
			both(versions[i], true)
		} else {
			place++
			tell(versions[i], int(versions[i].from.ID), true, false)
		}
	}
	if hidden {
		snapshot()
	}
	if r.IntN(2) == 0 { // told again, from some place on
		from := uint64(100 + r.IntN(int(place-100)))
		for p, list := range topics {
			for _, a := range list {
				if a.ch.Position >= from {
					a.ch.Timestamp = at + 1000
					topics[p] = append(topics[p], a)
				}
			}
		}
	}
	if newest := versions[len(versions)-1]; !newest.ch.Delete {
		return topics, fmt.Sprint(newest.hash)
	}
	return topics, "nothing"
}

// versionsOf makes what is told of the versions of one resource, in three partitions, and says
// which of them is the newest.
func versionsOf(r *rand.Rand) (topics [][]arrival, ends string) {
	at, place, hash, hidden := fhir.Instant(1_000_000), uint64(100), uint64(0), false
	topics = make([][]arrival, 3)
	var versions []arrival
	tell := func(a arrival, how func(ch *Change)) {
		a.ch.Time, a.ch.Timestamp = at, at+fhir.Instant(r.IntN(500))
		how(&a.ch)
		topics[a.from.ID] = append(topics[a.from.ID], a)
	}
	snapshot := func() {
		for _, i := range r.Perm(len(versions)) {
			tell(versions[i], func(ch *Change) { ch.Position, ch.Snapshot, ch.Earlier = place, true, true })
		}
	}
	for range 3 + r.IntN(8) {
		at += fhir.Instant(1 + r.IntN([]int{1000, 100_000}[r.IntN(2)]))
		place += 10
		hash++
		last := len(versions) - 1
		switch k := r.IntN(10); {
		case k < 5 || last < 0:
			ch := Change{Delete: last >= 0 && !versions[last].ch.Delete && r.IntN(3) == 0, Version: NoVersion, LastUpdated: at}
			versions = append(versions, arrival{ch: ch, hash: hash, from: Partition{Topic: "versions", ID: int32(r.IntN(len(topics)))}})
			if !hidden {
				tell(versions[last+1], func(ch *Change) { ch.Position = place })
			}
		case k < 8:
			v := &versions[r.IntN(len(versions))]
			switch {
			case hidden && v == &versions[last]: // a snapshot tells another body of what the log has told: which is newer, nothing tells
				continue
			case !v.ch.Delete:
				v.hash = hash
			}
			if !hidden {
				tell(*v, func(ch *Change) { ch.Position, ch.Earlier = place, true })
			}
		default: // the log is lost, or comes back with a snapshot
			if hidden = !hidden && k == 9; !hidden {
				snapshot()
			}
		}
	}
	if hidden {
		snapshot()
	}
	for p, list := range topics {
		if r.IntN(2) == 0 {
			topics[p] = compacted(list, r.IntN(len(list)+1))
		}
	}
	if newest := versions[len(versions)-1]; !newest.ch.Delete {
		return topics, fmt.Sprint(newest.hash)
	}
	return topics, "nothing"
}

// compacted leaves of each row, which its lastUpdated names, the last record before a point.
func compacted(list []arrival, point int) (left []arrival) {
	for i, a := range list {
		if i >= point || !slices.ContainsFunc(list[i+1:point], func(b arrival) bool { return b.ch.LastUpdated == a.ch.LastUpdated }) {
			left = append(left, a)
		}
	}
	return left
}

// TestPlaceOutlivesReindex: where the last deletion stands in its source's log is known after
// the index was made anew, also if that was the deletion of something deleted. What a lost
// store may have told clients of meanwhile is told to be deleted.
func TestPlaceOutlivesReindex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTables(t)
		s.tell(1, "a", 100, "1")
		s.tell(0, "a", 200, "")
		s.tell(0, "a", 400, "")
		s.reindex()
		s.tell(1, "a", 300, "2") // stands before the last deletion
		want := []string{"live/Patient", "deleted/Patient", "internal/repeated-deletions"}
		s.had("a", want...)
		s.tell(0, "b", 500, "1") // to the end of the topic
		s.tell(0, "a", 600, "")
		s.had("a", append(want, "deleted/Patient")...)
		s.close()
	})
}

// TestDeletionsOfTheUnseenInTheStore: the later of two deletions of what was never had is known
// after the index was made anew, the store finds nothing wrong with that, and what clients are
// told then stands no nearer than it.
func TestDeletionsOfTheUnseenInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTables(t)
		at := s.db.Now() - 10_000
		version := func(p int, id string, updated fhir.Instant, place uint64, body string) {
			ch := patientChange(id, fhir.None, body)
			ch.Version, ch.LastUpdated, ch.Position, ch.Timestamp, ch.Offset = NoVersion, at+updated, place, s.db.Now(), s.offsets[p]
			ch.Snapshot, ch.Earlier = place >= 200, place >= 200
			if body == "" {
				ch.Delete, ch.Body, ch.Patients = true, nil, nil
			}
			appliesAt(s.t, s.db, topicsOfTables[p], s.offsets[p], ch)
			s.offsets[p]++
		}
		want := []string{"internal/unseen-deletions", "internal/repeated-deletions"}
		for id, place := range map[string]uint64{"a": 0, "b": 100, "c": 100} {
			version(0, id, 0, place, "")
			version(0, id, 20, 2*place, "") // where there are places, a snapshot tells it
			s.had(id, want...)
		}
		s.reindex()
		want = append(want, "deleted/Patient") // of which a lost store may have told
		for id, place := range map[string]uint64{"a": 0, "b": 110} {
			version(1, id, 10, place, "2")
			s.had(id, want...)
			version(1, id, 15, place+place/20, "3")
			s.had(id, want...)
			version(1, id, 30, 2*place, "4")
			s.had(id, append(want, "live/Patient")...)
		}
		version(1, "c", 10, 110, "2")
		s.had("c", want...)
		version(1, "c", 20, 150, "3") // of the instant of what the snapshot told: it came after
		s.had("c", append(want, "live/Patient")...)
		s.close()
	})
}

// TestLostStoreTold: what was told before a restore and is deleted may be with clients, though
// it never lived here since: they are told of its deletion, once.
func TestLostStoreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTables(t)
		s.tell(0, "b", 0, "1")
		s.tell(0, "b", 0, "")
		told := s.db.Now() // to clients, by the store that is lost
		time.Sleep(time.Minute)
		s.reindex()
		time.Sleep(time.Minute)
		s.tell(0, "c", 150, "1") // to the end of the topic
		s.tell(0, "a", 200, "")
		s.had("a", "internal/unseen-deletions")
		for range 2 {
			s.tellAt(told, 1, "a", 100, "1")
			s.had("a", "internal/unseen-deletions", "deleted/Patient")
		}
		s.tellAt(told, 0, "b", 0, "")
		s.had("b", "live/Patient", "deleted/Patient", "deleted/Patient")
		s.close()
	})
}

// TestDeletedBehindARestore: of what a lost store told and what was deleted after the restore a
// compacted topic may have the deletion alone, until it has been read to its end once.
func TestDeletedBehindARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTables(t)
		s.tell(0, "b", 100, "1")
		s.reindex()
		time.Sleep(time.Minute)
		s.tell(0, "a", 200, "")
		s.had("a", "deleted/Patient")
		s.tell(0, "c", 300, "")
		s.had("c", "internal/unseen-deletions")
		s.tell(1, "d", 400, "")
		s.had("d", "deleted/Patient")
		s.close()
	})
}

// TestPurgeBehindARestore: a purge says no version. What was made again before it, of a greater one
// than was deleted first, stays away also where a life that a lost store told comes between.
func TestPurgeBehindARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTables(t)
		s.tell(0, "b", 50, "1")
		told := s.db.Now()
		time.Sleep(time.Minute)
		s.reindex()
		time.Sleep(time.Minute)
		s.tell(0, "c", 60, "1")
		s.tell(1, "c", 70, "1")
		version := func(n int64, updated fhir.Instant, place uint64, body string) {
			ch := patientChange("a", updated, body)
			ch.Version, ch.Position, ch.Time, ch.Timestamp = n, place, updated, updated
			if body == "" {
				ch.Delete, ch.Body, ch.Patients = true, nil, nil
			}
			appliesAt(s.t, s.db, topicsOfTables[1], s.offsets[1], ch)
			s.offsets[1]++
		}
		version(3, s.db.Now(), 200, "")
		s.tell(0, "a", 300, "")
		want := []string{"internal/unseen-deletions", "internal/repeated-deletions"}
		s.had("a", want...)
		version(2, told, 150, "2")
		want = append(want, "deleted/Patient")
		s.had("a", want...)
		version(4, s.db.Now(), 250, "4")
		s.had("a", want...)
		s.close()
	})
}

// tables is a store that reads two topics of one log.
type tables struct {
	t       *testing.T
	fs      vfs.FS
	o       Options
	db      *DB
	offsets [2]int64
}

var topicsOfTables = []Partition{{Topic: "Patient"}, {Topic: "Patient_History"}}

func newTables(t *testing.T) *tables {
	s := &tables{t: t, fs: vfs.NewMem()}
	s.o = Options{FS: s.fs, Allowance: time.Millisecond, Cache: 1 << 20}
	s.open()
	return s
}

func (s *tables) open() {
	s.db = mustOpen(s.t, "store", s.o)
	var list []Discovered
	for i, p := range topicsOfTables {
		list = append(list, Discovered{Partition: p, End: s.offsets[i]})
	}
	discovers(s.t, s.db, list...)
}

func (s *tables) close() {
	if err := s.db.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *tables) reindex() {
	s.t.Helper()
	s.close()
	if err := errors.Join(s.fs.RemoveAll("store/index"), Reindex(context.Background(), "store", s.o, io.Discard)); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

// tell brings what a patient's row says now, "" that it is gone.
func (s *tables) tell(p int, id string, place uint64, body string) {
	s.t.Helper()
	time.Sleep(time.Second)
	s.tellAt(s.db.Now()-fhir.Instant(1000-place), p, id, place, body)
}

func (s *tables) tellAt(at fhir.Instant, p int, id string, place uint64, body string) {
	s.t.Helper()
	ch := patientChange(id, fhir.None, body)
	ch.Position, ch.Time, ch.Timestamp, ch.Offset = place, at, at+1, s.offsets[p]
	if body == "" {
		ch.Delete, ch.Body, ch.Patients = true, nil, nil
	}
	appliesAt(s.t, s.db, topicsOfTables[p], s.offsets[p], ch)
	s.offsets[p]++
}

// had asks which rows a patient has, and for the store's own check.
func (s *tables) had(id string, want ...string) {
	s.t.Helper()
	list, err := s.db.History(fhir.Key{Type: patientType, ID: id})
	if err != nil {
		s.t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		got = append(got, r.Section.String())
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("%s has %q, want %q", id, got, want)
	}
	checks(s.t, s.db)
}
