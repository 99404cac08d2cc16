package store

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// A rosterRig is one Group and whoever asks who is in it.
type rosterRig struct {
	*feed
	n int
}

func newRosterRig(t *testing.T) *rosterRig {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	t.Cleanup(func() { db.Close() })
	r := &rosterRig{feed: newFeed(t, db)}
	r.advance(time.Second)
	return r
}

// version writes the Group with these members.
func (r *rosterRig) version(members ...fhir.Member) {
	r.n++
	ch := groupChange("g")
	ch.Members = members
	ch.Body = fmt.Appendf(nil, `{"resourceType":"Group","id":"g","n":%d}`, r.n)
	r.commit(ch)
	r.advance(time.Minute)
}

// of is what a Roster taken now says of Patient/a, and its watermark.
func (r *rosterRig) of(since fhir.Instant) (m Member, listed bool, w fhir.Instant) {
	r.t.Helper()
	s := pinNow(r.t, r.db, "job")
	defer s.Close()
	roster, err := s.Roster("g", since)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.db.Unpin(r.t.Context(), "job"); err != nil {
		r.t.Fatal(err)
	}
	m, listed = roster.Members["Patient/a"]
	return m, listed, s.Watermark()
}

// TestRosterTurns: whatever turns a member into none, or the other way round,
// is told once by a chain of Rosters.
func TestRosterTurns(t *testing.T) {
	always := fhir.Member{Ref: "Patient/a", Start: fhir.None, End: fhir.None}
	run := func(name string, test func(t *testing.T, r *rosterRig)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newRosterRig(t)) })
		})
	}
	run("a start that was ahead is open now", func(t *testing.T, r *rosterRig) {
		m := always
		m.Start = fhir.FromTime(time.Now().Add(time.Hour))
		r.version(m)
		_, listed, w := r.of(fhir.None)
		if listed {
			t.Fatal("a member before its time")
		}
		r.version(always)
		if m, listed, _ := r.of(w); !listed || m.Joined <= w || m.Left != fhir.None {
			t.Errorf("not joined after %v: %+v, listed %v", w, m, listed)
		}
		// The same start again is no news.
		m.Start = fhir.FromTime(time.Now().Add(time.Hour))
		r.version()
		r.version(m)
		rows := r.db.meta.NextSeq
		r.version(m)
		if got := r.db.meta.NextSeq - rows; got != 1 {
			t.Errorf("a Group rewritten with the same members took %d rows", got)
		}
	})
	run("a start that moves ahead", func(t *testing.T, r *rosterRig) {
		r.version(always)
		_, _, w := r.of(fhir.None)
		m := always
		m.Start = fhir.FromTime(time.Now().Add(time.Hour))
		r.version(m)
		if a, listed, _ := r.of(w); !listed || a.Left <= w {
			t.Errorf("not left after %v: %+v, listed %v", w, a, listed)
		}
		r.advance(2 * time.Hour)
		_, _, w = r.of(w)
		if a, listed, _ := r.of(fhir.None); !listed || a.Joined != m.Start || a.Left != fhir.None {
			t.Errorf("at %v not joined at %v: %+v, listed %v", w, m.Start, a, listed)
		}
	})
	run("a period that ends at a watermark", func(t *testing.T, r *rosterRig) {
		m := always
		m.End = fhir.FromTime(time.Now().Add(10 * time.Minute))
		r.version(m)
		var w fhir.Instant
		for w < m.End {
			var a Member
			var listed bool
			if a, listed, w = r.of(fhir.None); w <= m.End && (!listed || a.Left != fhir.None) {
				t.Fatalf("no member at %v: %+v, listed %v", w, a, listed)
			}
			r.advance(min(time.Minute, max(m.End.Time().Sub(w.Time()), time.Millisecond)))
		}
		if w != m.End {
			t.Fatalf("no watermark at %v", m.End)
		}
		if a, listed, _ := r.of(w); !listed || a.Left != m.End+1 {
			t.Errorf("not left at %v: %+v, listed %v", m.End+1, a, listed)
		}
	})
	run("changes behind the watermark", func(t *testing.T, r *rosterRig) {
		r.version(always)
		first, _, _ := r.of(fhir.None)
		s := pinNow(t, r.db, "early")
		defer s.Close()
		r.version()
		r.version(always, fhir.Member{Ref: "Patient/b", Start: fhir.None, End: fhir.None})
		rewriteAll(t, r.db)
		roster, err := s.Roster("g", fhir.None)
		if err != nil {
			t.Fatal(err)
		}
		if len(roster.Members) != 1 || roster.Members["Patient/a"] != first {
			t.Errorf("members %+v, want a as at %v: %+v", roster.Members, s.Watermark(), first)
		}
	})
}
