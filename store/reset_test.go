package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// ahead lets a store's clock run ahead.
func (db *DB) ahead(d time.Duration) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.clock.base += fhir.Instant(d.Milliseconds())
}

func deletionOf(id string) Change {
	return Change{Key: fhir.Key{Type: patientType, ID: id}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
}

// futureStore is a store whose clock was right at first, and then three years
// ahead: rows of both times, settled and fresh, updates, deletions. before is
// what an export with the right clock promised.
func futureStore(t *testing.T, fs vfs.FS) (o Options, before fhir.Instant) {
	t.Helper()
	o = Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
	db := mustOpen(t, "store", o)
	defer db.Close()
	f := newFeed(t, db)
	settle := func(d time.Duration) {
		t.Helper()
		db.ahead(d)
		f.apply()
		if err := db.heartbeat(); err != nil {
			t.Fatal(err)
		}
		rewriteAll(t, db)
	}
	db.ahead(-time.Hour) // so that some rows settle before the clock goes wrong
	f.apply()
	f.commit(patientChange("a", fhir.None, "1"), patientChange("b", fhir.None, "1"), observationOf("o", "a", "1"))
	settle(59 * time.Minute)
	f.commit(patientChange("c", fhir.None, "1"))
	s := pinNow(t, db, "before")
	before = s.Watermark()
	if err := errors.Join(s.Close(), db.Unpin(t.Context(), "before")); err != nil {
		t.Fatal(err)
	}
	db.ahead(3 * 365 * 24 * time.Hour)
	f.apply()
	if err := db.heartbeat(); err != nil {
		t.Fatal(err)
	}
	f.commit(patientChange("a", fhir.None, "2"), deletionOf("b"), patientChange("d", fhir.None, "1"))
	f.commit(patientChange("a", fhir.None, "3"), observationOf("o2", "d", "1"))
	settle(24 * time.Hour)
	f.commit(patientChange("a", fhir.None, "4"), deletionOf("c"), patientChange("b", fhir.None, "again"), deletionOf("never"))
	settle(2 * time.Minute)
	for i := range 8 { // joined, and then only some of them settle
		f.commit(patientChange("e", fhir.None, fmt.Sprint(i)), patientChange(fmt.Sprintf("f%d", i), fhir.None, "1"))
		db.ahead(10 * time.Second)
		f.apply()
	}
	settle(30 * time.Second)
	f.commit(patientChange("e", fhir.None, "1"), patientChange("d", fhir.None, "2"))
	if s := db.view.fresh; len(db.view.settled) < 4 || len(s) == 0 || s[0].first > db.view.closed.Instant || s[0].last <= db.view.closed.Instant {
		t.Fatalf("%d settled segments, %d fresh ones of which the first has not settled in part", len(db.view.settled), len(s))
	}
	return o, before
}

// seenSince is what an export of patients gives: bodies without instants, and
// the number of deletions.
func seenSince(t *testing.T, db *DB, since fhir.Instant) string {
	t.Helper()
	snap := db.snapshotNow()
	defer snap.Close()
	snap.of = &pinned{id: "seen", readers: 1}
	ext, err := snap.Extents(patients, since, always)
	if err != nil {
		t.Fatal(err)
	}
	file, err := snap.File(t.Context(), fmt.Sprintf("f%d", since), patients, since, always, ext)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var w lineWriter
	if err := file.WriteIdentity(&w, 0, file.Size()); err != nil {
		t.Fatal(err)
	}
	lines, err := w.byID()
	if err != nil {
		t.Fatal(err)
	}
	deleted, err := snap.Extents(segment.Section{Kind: segment.Deleted, Type: patientType}, since, always)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range deleted {
		n += e.Rows
	}
	if err := snap.db.fs.RemoveAll("store/jobs/seen"); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s and %d deletions", ourInstant.ReplaceAllString(strings.Join(slices.Sorted(maps.Values(lines)), "\n"), "T"), n)
}

var ourInstant = regexp.MustCompile(`20\d\d-\d\d-\d\dT[0-9:.]+Z`)

// TestResetPromise: the clock was three years ahead for a while. Afterwards
// exports give what they gave, all of it before now, a client that synced with
// the right clock misses nothing, and a lost index does not bring the future
// back.
func TestResetPromise(t *testing.T) {
	fs := vfs.NewMem()
	o, before := futureStore(t, fs)
	db := mustOpen(t, "store", o)
	all, since := seenSince(t, db, fhir.None), seenSince(t, db, before)
	epoch := db.Status().Epoch
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	now := fhir.FromTime(time.Now())
	if err := ResetPromise(t.Context(), "store", o, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"after the reset", "after a reindex"} {
		if state == "after a reindex" {
			if err := errors.Join(fs.RemoveAll("store/index"), Reindex(t.Context(), "store", o, io.Discard)); err != nil {
				t.Fatal(err)
			}
		}
		db = mustOpen(t, "store", o)
		if _, err := db.Check(true); err != nil {
			t.Errorf("%s: %v", state, err)
		}
		later := fhir.FromTime(time.Now())
		if got := db.Promised(); got < now || got > later {
			t.Errorf("%s %v is promised, the clock went from %v to %v", state, got, now, later)
		}
		if got := db.Status().Epoch; got <= epoch {
			t.Errorf("%s the epoch is %d as before", state, got)
		}
		if got := seenSince(t, db, fhir.None); got != all {
			t.Errorf("%s an export gives\n%s\nwant\n%s", state, got, all)
		}
		if got := seenSince(t, db, before); got != since {
			t.Errorf("%s an export since the right clock gives\n%s\nwant\n%s", state, got, since)
		}
		text := bodies(t, db)
		for _, at := range ourInstant.FindAllString(text, -1) {
			if i, _, err := fhir.ParseInstant(at); err != nil || i > later {
				t.Errorf("%s a line says %s (%v)", state, at, err)
			}
		}
		f := newFeed(t, db)
		f.commit(patientChange("after", fhir.None, "x"))
		tt := fhir.None
		for tt < f.lastInstant() {
			time.Sleep(2 * time.Millisecond)
			f.apply()
			tt = db.Status().Watermark
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		all, since = seenSince(t, db, fhir.None), seenSince(t, db, before)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * time.Millisecond)
	if err := ResetPromise(t.Context(), "store", o, io.Discard); !errors.Is(err, ErrNotAhead) {
		t.Errorf("once more: %v", err)
	}
}

// TestResetPromiseCutShort lets each write of the repair fail, as a full disk
// does: started again it gives the same, and so does a reindex, with the promise
// of before.
func TestResetPromiseCutShort(t *testing.T) {
	var want string
	for _, again := range []string{"reset", "reindex"} {
		for n, done := int64(0), false; !done; n += 1 + n/6 {
			mem := vfs.NewMem()
			o, _ := futureStore(t, mem)
			db := mustOpen(t, "store", o)
			if want = seenSince(t, db, fhir.None); db.Close() != nil {
				t.Fatal("close")
			}
			var left atomic.Int64
			left.Store(n)
			o.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && !strings.Contains(op.Path, "index") && left.Add(-1) < 0 {
					return errors.New("no room")
				}
				return nil
			}))
			done = ResetPromise(t.Context(), "store", o, io.Discard) == nil
			o.FS = mem
			var err error
			if again == "reset" {
				if err = ResetPromise(context.Background(), "store", o, io.Discard); errors.Is(err, ErrNotAhead) {
					err = nil
				}
			} else {
				err = Reindex(context.Background(), "store", o, io.Discard)
			}
			if err != nil {
				t.Fatalf("%s after %d writes: %v", again, n, err)
			}
			db = mustOpen(t, "store", o)
			if _, err := db.Check(true); err != nil {
				t.Errorf("%s after %d writes: %v", again, n, err)
			}
			if now := fhir.FromTime(time.Now()); db.meta.Newest <= now && db.Promised() > now {
				t.Errorf("%s after %d writes: the newest row is of %v, but %v is promised", again, n, db.meta.Newest, db.Promised())
			}
			if got := seenSince(t, db, fhir.None); got != want {
				t.Errorf("%s after %d writes: an export gives\n%s\nwant\n%s", again, n, got, want)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestResetOfInheritedClock: the source said its lastUpdated once, and no more;
// so that of the line was ours.
func TestResetOfInheritedClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
		db := mustOpen(t, "store", o)
		f := newFeed(t, db)
		f.advance(time.Second)
		bare := func(id, text string) Change {
			t.Helper()
			ch := patientChange(id, fhir.None, text)
			var scan fhir.Scanner
			r, err := scan.Scan(bytes.Clone(ch.Body))
			if err != nil {
				t.Fatal(err)
			}
			ch.Meta = r.Meta
			return ch
		}
		f.commit(patientChange("a", db.Now(), "1"))
		f.advance(time.Second)
		db.ahead(3 * 365 * 24 * time.Hour)
		f.advance(0)
		f.commit(bare("a", "2"), bare("b", "1"))
		f.advance(time.Second)
		if err := errors.Join(db.Close(), ResetPromise(t.Context(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		defer db.Close()
		if got := bodies(t, db); strings.Contains(got, `"lastUpdated":"2002-`) {
			t.Errorf("now is %v, and a line says %s", time.Now(), got)
		}
	})
}
