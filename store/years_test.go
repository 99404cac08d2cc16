package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

var years = flag.Int("years", 2, "years that TestYears lets a store live")

// decades is a store that lives for years with a hospital that neither grows nor
// shrinks, and a client that comes each night.
type decades struct {
	t      *testing.T
	r      *rand.Rand
	db     *DB
	f      *feed
	oracle storetest.Oracle

	patients []string // that live
	born, n  int
	since    fhir.Instant
	copy     map[string]string // what the client has
	told     int               // deletions
}

const (
	yearsPatients = 300
	yearsDaily    = 12 // changes a day
)

// TestYears: years of simulated time, with the retention that is the default. A
// store whose source does not grow does not grow either: not its rows, not its
// index, not its segments; each night's export is what the oracle says, whatever
// was merged and forgotten, and a client that comes too late is told.
func TestYears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, Allowance: time.Second}
		y := &decades{t: t, r: rand.New(rand.NewPCG(1, 2)), db: mustOpen(t, "store", o), since: fhir.None, copy: map[string]string{}}
		defer func() {
			if err := y.db.Close(); err != nil {
				t.Error(err)
			}
		}()
		y.f = newFeed(t, y.db)
		for range yearsPatients {
			y.bear()
		}
		y.f.advance(time.Second)
		first := y.db.Promised()
		days := *years * 365
		if selfChecking { // after each of some 60 writes a day
			days = 10
		}
		for day := 1; day <= days && !t.Failed(); day++ {
			y.day()
			if day%60 == 0 {
				y.inspect(day)
			}
			if day%365 == 0 { // each year somebody restarts it
				if err := y.db.Close(); err != nil {
					t.Fatal(err)
				}
				y.db = mustOpen(t, "store", o)
				y.f = newFeed(t, y.db)
				y.f.advance(time.Second)
			}
		}
		if f := y.db.meta.Forgotten; days > 500 && f <= first || f > y.db.before(y.db.o.Deleted) {
			t.Errorf("deletions up to %v are forgotten; it began at %v, now is %v", f, first, y.db.Now())
		}
		if err := errors.Join(y.db.Close(), fs.RemoveAll("store/index"), Reindex(context.Background(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		y.db = mustOpen(t, "store", o)
		y.f = newFeed(t, y.db)
		y.f.advance(time.Second)
		y.inspect(days)
	})
}

func (y *decades) bear() {
	y.born++
	id := fmt.Sprintf("p%d", y.born)
	y.patients = append(y.patients, id)
	y.apply(patientChange(id, fhir.None, y.text()))
}

func (y *decades) text() string {
	y.n++
	return fmt.Sprintf("state %d %x", y.n, y.r.Uint64())
}

// apply takes a change in, and tells the oracle.
func (y *decades) apply(ch Change) {
	y.db.mu.Lock()
	line := y.db.watermark()
	y.db.mu.Unlock()
	body := string(ch.Body)
	y.f.commit(ch)
	y.oracle.Apply(ch.Key.String(), body, fhir.None, line, y.db.Now())
}

// day is 24 hours at the hospital: one patient comes and one goes, others are
// changed, most of them the few who are there often. Then the client comes.
func (y *decades) day() {
	for i := range yearsDaily {
		time.Sleep(24 * time.Hour / yearsDaily)
		y.f.apply()
		switch i {
		case 0:
			y.bear()
		case 1:
			k := y.r.IntN(len(y.patients))
			y.apply(deletionOf(y.patients[k]))
			y.patients[k] = y.patients[len(y.patients)-1]
			y.patients = y.patients[:len(y.patients)-1]
		default:
			k := min(y.r.IntN(len(y.patients)), y.r.IntN(len(y.patients)))
			y.apply(patientChange(y.patients[k], fhir.None, y.text()))
		}
	}
	rewriteAll(y.t, y.db)
	y.f.advance(time.Minute)
	s := pinNow(y.t, y.db, "nightly")
	live, deleted := y.export(s, y.since)
	wantLive, wantDeleted := y.oracle.Export(y.since, s.Watermark(), s.Watermark())
	if d := cmp.Diff(wantLive, live) + cmp.Diff(wantDeleted, deleted); d != "" {
		y.t.Errorf("the night of %v (-oracle +export):\n%s", y.db.Now(), d)
	}
	maps.Copy(y.copy, live)
	for key := range deleted {
		delete(y.copy, key)
	}
	y.told += len(deleted)
	y.since = s.Watermark()
	if err := errors.Join(s.Close(), y.db.Unpin(context.Background(), "nightly")); err != nil {
		y.t.Fatal(err)
	}
}

func (y *decades) export(s *Snapshot, since fhir.Instant) (live map[string]string, deleted map[string]bool) {
	deleted = map[string]bool{}
	for _, sec := range s.Sections(segment.Deleted) {
		deleted = deletions(y.t, s, sec, since)
	}
	return windowOf(y.t, s, since, fmt.Sprint("live-", since)), deleted
}

// inspect looks at what the store has become.
func (y *decades) inspect(day int) {
	if _, err := y.db.Check(true); err != nil {
		y.t.Errorf("day %d: %v", day, err)
	}
	s := pinNow(y.t, y.db, "whole")
	live, deleted := y.export(s, fhir.None)
	if d := cmp.Diff(y.copy, live); d != "" {
		y.t.Errorf("day %d (-the client's copy +a full export):\n%s", day, d)
	}
	forgotten := y.db.meta.Forgotten
	_, must := y.oracle.Export(forgotten, s.Watermark(), s.Watermark())
	_, may := y.oracle.Export(fhir.None, s.Watermark(), s.Watermark())
	for key := range must {
		if !deleted[key] {
			y.t.Errorf("day %d: the deletion of %s is told no more, and that deletions up to %v are forgotten does not cover it", day, key, forgotten)
		}
	}
	for key := range deleted {
		if !may[key] {
			y.t.Errorf("day %d: %s was never deleted", day, key)
		}
	}
	if err := errors.Join(s.Close(), y.db.Unpin(context.Background(), "whole")); err != nil {
		y.t.Fatal(err)
	}
	rewriteAll(y.t, y.db)
	st := y.db.Status()
	rows := y.entries()
	// What somebody can ask for: the living, the deletions of Deleted, the last
	// states of LastState, and what came in the day before it settles. A fifth of
	// a segment may be dead; deletions are forgotten when there is work, not for
	// their own sake.
	wanted := int64(len(live) + min(day, 400) + min(day, 30) + yearsDaily)
	y.t.Logf("day %4d: %d live, %d deletions told, forgotten up to %v; %d segments (%d fresh), %d rows where %d are wanted, %d dead; %d entries in the index",
		day, len(live), len(deleted), forgotten, st.Segments, len(y.db.view.fresh), st.Rows, wanted, st.Dead, rows)
	if st.Rows > wanted*3/2 {
		y.t.Errorf("day %d: %d rows are stored, where %d are wanted", day, st.Rows, wanted)
	}
	if st.Segments > 200 {
		y.t.Errorf("day %d: %d segments", day, st.Segments)
	}
	if rows != len(live)+len(deleted) {
		y.t.Errorf("day %d: the index knows %d resources; there are %d, and %d deletions are told", day, rows, len(live), len(deleted))
	}
}

// entries counts the resources that the index knows.
func (y *decades) entries() (n int) {
	it, err := y.db.kv.NewIter(index.Rows())
	if err != nil {
		y.t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		y.t.Fatal(err)
	}
	return n
}
