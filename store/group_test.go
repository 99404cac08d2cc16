package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/storetest"
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

// of is the last stay of Patient/a that a Roster taken now tells, and its
// watermark.
func (r *rosterRig) of(since fhir.Instant) (t Stay, listed bool, w fhir.Instant) {
	r.t.Helper()
	list, w := r.stays(since)
	if len(list) == 0 {
		return t, false, w
	}
	return list[len(list)-1], true, w
}

func (r *rosterRig) stays(since fhir.Instant) ([]Stay, fhir.Instant) {
	r.t.Helper()
	s := pinNow(r.t, r.db, "job")
	defer s.Close()
	roster := rosterOf(r.t, s, "g", since)
	if err := r.db.Unpin(r.t.Context(), "job"); err != nil {
		r.t.Fatal(err)
	}
	return roster.Members["Patient/a"], s.Watermark()
}

func rosterOf(t testing.TB, s *Snapshot, id string, since fhir.Instant) Roster {
	t.Helper()
	all, err := s.Rosters(since)
	if err != nil {
		t.Fatal(err)
	}
	r, err := all.Of(id)
	if err != nil {
		t.Fatal(err)
	}
	return r
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
			var a Stay
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
		roster := rosterOf(t, s, "g", fhir.None)
		if len(roster.Members) != 1 || roster.Members["Patient/a"][0] != first {
			t.Errorf("members %+v, want a as at %v: %+v", roster.Members, s.Watermark(), first)
		}
	})
}

// TestRosterOracle: at any instant somebody is a member if the version of that
// time lists him, not inactive, in a period that holds it. Rosters say just
// that, of every instant of their window.
func TestRosterOracle(t *testing.T) {
	type version struct {
		at      fhir.Instant
		members []fhir.Member
	}
	is := func(history []version, at fhir.Instant) bool {
		in := false
		for _, v := range history {
			if v.at > at {
				break
			}
			in = slices.ContainsFunc(v.members, func(m fhir.Member) bool {
				return !m.Inactive && (m.Start == fhir.None || m.Start <= at) && (m.End == fhir.None || at <= m.End)
			})
		}
		return in
	}
	for seed := range storetest.Rounds(uint64(150)) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			r := newRosterRig(t)
			var history []version
			var marks, bounds []fhir.Instant
			near := func() fhir.Instant {
				at := fhir.FromTime(time.Now()) + fhir.Instant(rnd.IntN(7200_000)-2400_000)
				bounds = append(bounds, at)
				return at
			}
			for range 25 {
				var members []fhir.Member
				for range rnd.IntN(3) {
					m := fhir.Member{Ref: "Patient/a", Start: fhir.None, End: fhir.None, Inactive: rnd.IntN(6) == 0}
					if rnd.IntN(2) == 0 {
						m.Start = near()
					}
					if rnd.IntN(2) == 0 {
						m.End = near()
					}
					members = append(members, m)
				}
				if rnd.IntN(4) == 0 && len(history) > 0 {
					members = history[len(history)-1].members
				}
				r.version(members...)
				history = append(history, version{r.lastInstant(), members})
				r.advance(time.Duration(rnd.IntN(3000)) * time.Second)
				if rnd.IntN(3) == 0 {
					marks = append(marks, r.db.Promised())
				}
				if rnd.IntN(5) == 0 {
					rewriteAll(t, r.db)
				}
			}
			for _, since := range marks {
				stays, w := r.stays(since)
				points := []fhir.Instant{since + 1, w}
				for _, v := range history {
					points = append(points, v.at-1, v.at)
				}
				for _, b := range bounds {
					points = append(points, b-1, b, b+1)
				}
				for _, at := range points {
					if at <= since || at > w {
						continue
					}
					got := slices.ContainsFunc(stays, func(s Stay) bool { return s.Joined <= at && (s.Left == fhir.None || at < s.Left) })
					if got != is(history, at) {
						t.Fatalf("seed %d, window (%v, %v]: member at %v: %t, want %t; stays %v, history %v", seed, since, w, at, got, !got, stays, history)
					}
				}
				if n := len(stays); n > 0 && stays[n-1].Left == fhir.None && stays[n-1].Joined <= since && !is(history, since) {
					t.Fatalf("seed %d, window (%v, %v]: was no member at its beginning, but is not told as a joiner: %v, history %v", seed, since, w, stays, history)
				}
			}
		})
	}
}
