package store

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

// TestRolls: what exports found that ended at one instant is told together: who was
// found by all, who by some, and whether one looked at that instant.
func TestRolls(t *testing.T) {
	var r roll
	r.add(10, 10, []string{"a", "b"})
	r.add(20, 20, []string{"a", "c"})
	r.add(10, 30, []string{"b", "c"}) // an export that ended where the first did, made later
	r.add(40, 45, []string{"a"})
	for upto, want := range map[fhir.Instant]Roll{
		10: {Exact: true, Found: map[string]bool{"a": false, "b": true, "c": false}},
		20: {Exact: true, Found: map[string]bool{"a": true, "c": true}},
		40: {Found: map[string]bool{"a": true}},
		15: {},
		30: {},
	} {
		if diff := cmp.Diff(want, r.of(upto)); diff != "" {
			t.Errorf("%d: %s", upto, diff)
		}
	}
	r.add(50, 50, nil)
	if got := r.of(50); got.Found == nil || len(got.Found) > 0 {
		t.Errorf("nobody was found, that is known: %v", got)
	}
}

// TestRollsForget: what ended before an instant goes, all of one instant together,
// and nobody is kept whom no export found that is left.
func TestRollsForget(t *testing.T) {
	var r roll
	r.add(10, 10, []string{"a", "b"})
	r.add(20, 20, []string{"b"})
	r.add(10, 30, []string{"c"})
	r.add(30, 30, []string{"b", "d"})
	r.forget(11)
	if got := r.of(10); got.Found != nil {
		t.Errorf("forgotten, and told: %v", got)
	}
	if got := r.of(20); !got.Found["b"] || len(got.Found) != 1 {
		t.Errorf("who was found at 20: %v", got)
	}
	if _, kept := r.Found["a"]; kept {
		t.Error("a is kept, whom no export that is known has found")
	}
	r.forget(31)
	if len(r.Calls)+len(r.Found) > 0 {
		t.Errorf("something is left: %+v", r)
	}
}

// TestRollsFit: what does not fit is forgotten, the oldest first, whatever that
// leaves.
func TestRollsFit(t *testing.T) {
	var r roll
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint("patient-", i))
	}
	for at := range fhir.Instant(100) {
		r.add(at, at, many[at/2:])
	}
	if b := r.encode(4000); len(b) > 4000 {
		t.Errorf("%d bytes", len(b))
	}
	if got := r.of(99); !got.Exact || len(got.Found) != 51 {
		t.Errorf("the newest is gone: %v", got)
	}
	if got := r.of(0); got.Found != nil {
		t.Errorf("the oldest is there: %v", got)
	}
	if b := r.encode(100); len(b) > 100 || len(r.Calls) > 0 {
		t.Errorf("one that fits nowhere: %d bytes, %d calls", len(b), len(r.Calls))
	}
}

// TestRollsOutlive: who was found is known after a restart, for as long as deletions
// are told and no longer, also of a Group of which no export is made any more.
func TestRollsOutlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, Allowance: time.Millisecond, Deleted: 10 * 24 * time.Hour}
		db := mustOpen(t, "store", o)
		f := newFeed(t, db)
		f.advance(time.Second)
		s := pinNow(t, db, "job")
		at := s.Watermark()
		if err := errors.Join(s.CallRoll("g", at, []string{"a"}), s.CallRoll("g", at, []string{"a", "b"}, []string{"a"}), s.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}

		f = newFeed(t, mustOpen(t, "store", o))
		defer f.db.Close()
		told := func() Roll {
			t.Helper()
			s, err := f.db.Present()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r, err := s.Roll("g", at)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		f.advance(9 * 24 * time.Hour)
		if err := f.db.forgetRolls(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Roll{Exact: true, Found: map[string]bool{"a": true, "b": false}}, told()); diff != "" {
			t.Error(diff)
		}
		f.advance(2 * 24 * time.Hour)
		if err := f.db.heartbeat(); err != nil { // promises
			t.Fatal(err)
		}
		if err := f.db.forgetRolls(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := told(); got.Found != nil {
			t.Errorf("after eleven days: %v", got)
		}
	})
}
