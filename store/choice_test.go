package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

// TestChosen: exports of some patients, of all, and of some resources hold just
// the rows that one by one should be there, in fresh and settled segments,
// among dead and shared rows and such as lie in no compartment.
func TestChosen(t *testing.T) {
	for seed := range storetest.Rounds(uint64(2)) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
			db := mustOpen(t, "store", o)
			defer db.Close()
			f := newFeed(t, db)
			f.advance(time.Second)
			var marks []fhir.Instant
			for round := range 12 {
				f.commit(randomChanges(r, 120)...)
				f.advance(time.Duration(r.IntN(40)) * time.Second)
				if round == 5 || round == 9 {
					f.advance(10 * time.Minute)
					rewriteAll(t, db)
				}
				marks = append(marks, db.Promised())
			}
			if len(db.view.settled) == 0 || len(db.view.fresh) == 0 {
				t.Fatalf("%d settled and %d fresh segments", len(db.view.settled), len(db.view.fresh))
			}
			s := pinNow(t, db, "job")
			defer s.Close()
			f.commit(randomChanges(r, 120)...) // later: nobody's business
			told := visibles(t, db, s)
			for i := range 30 {
				since := append(marks, fhir.None)[r.IntN(len(marks)+1)]
				c := randomChoice(r, since)
				renewed, veil := randomRenewal(r), randomVeil(r, append(marks, fhir.None, Never))
				want, refs := chosen(told, since, c, renewed, veil)
				got, gotRefs := map[string]bool{}, map[fhir.Key]bool{}
				of := renewed.of(s.Choosing(c), s)
				if of.choice == nil || r.IntN(2) == 0 {
					of = of.Veiled(veil)
				} else {
					veiled := s.Veiled(veil)
					of = renewed.of(veiled.Choosing(c), veiled)
				}
				for _, kind := range []segment.Kind{segment.Live, segment.Deleted} {
					readChosen(t, of, segment.Section{Kind: kind, Type: observationType}, since, fmt.Sprint("f", i), got)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("seed %d, since %v, choice %v (-rows +export):\n%s", seed, since, c, d)
				}
				if err := of.References(t.Context(), segment.Section{Kind: segment.Live, Type: observationType}, since, s.Watermark(), func(k fhir.Key) { gotRefs[k] = true }); err != nil {
					t.Fatal(err)
				}
				rows, links, beside, linked := map[string]bool{}, map[string]string{}, map[string]string{}, map[fhir.Key]bool{}
				live := segment.Section{Kind: segment.Live, Type: observationType}
				if err := of.Rows(t.Context(), live, since, s.Watermark(), func(row *Row) error {
					if row.Placed == fhir.None {
						t.Errorf("%v was placed at no time", row.Key)
					}
					rows[fmt.Sprintf("%s/%s", live, row.Key.ID)] = true
					links[row.Key.ID] = fmt.Sprint(row.Patients)
					for _, ref := range row.References {
						linked[ref] = true
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				maps.DeleteFunc(want, func(name string, _ bool) bool { return !strings.HasPrefix(name, fmt.Sprint(live)) })
				if d := cmp.Diff(refs, linked); d != "" {
					t.Errorf("seed %d, choice %v: references beside compartments (-rows +directories):\n%s", seed, c, d)
				}
				ext, err := of.Extents(live, since, s.Watermark())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := of.Compartments(t.Context(), since, s.Watermark(), ext, func(line []byte, patients []string) error {
					_, id, _ := strings.Cut(string(line), `"id":"`)
					id, _, _ = strings.Cut(id, `"`)
					beside[id] = fmt.Sprint(patients)
					return nil
				}, func() {}); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(links, beside); d != "" || len(links) != len(rows) {
					t.Errorf("seed %d, choice %v: compartments, %d of %d (-directories +beside lines):\n%s", seed, c, len(links), len(rows), d)
				}
				if d := cmp.Diff(want, rows); d != "" {
					t.Errorf("seed %d, choice %v: rows one by one (-rows +export):\n%s", seed, c, d)
				}
				if d := cmp.Diff(refs, gotRefs); d != "" {
					t.Errorf("seed %d, choice %v: references (-rows +export):\n%s", seed, c, d)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// chosenOf is how many Observations there are.
const chosenOf = 600

// randomChanges are of Observations of some 40 patients, of several or none.
func randomChanges(r *rand.Rand, n int) []Change {
	var list []Change
	for range n {
		id := fmt.Sprintf("o%d", r.IntN(chosenOf))
		if r.IntN(8) == 0 {
			ch := deletionOf(id)
			ch.Key.Type = observationType
			list = append(list, ch)
			continue
		}
		patients := map[string]bool{}
		for range howMany(r) {
			patients[fmt.Sprintf("p%d", r.IntN(40))] = true
		}
		ch := observationOf(id, "x", fmt.Sprint(r.Uint64(), strings.Repeat("x", 8000))) // so that there are many blocks
		ch.Patients = slices.Sorted(maps.Keys(patients))
		if r.IntN(40) == 0 {
			ch = referring(ch, fmt.Sprintf("Binary/b%d", r.IntN(5)))
		} else if r.IntN(2) == 0 {
			ch = referring(ch, fmt.Sprintf("Practitioner/dr%d", r.IntN(9)))
		}
		list = append(list, ch)
	}
	return list
}

// howMany compartments an Observation lies in: in one mostly.
func howMany(r *rand.Rand) int {
	switch r.IntN(60) {
	case 0:
		return 2
	case 1, 2, 3, 4:
		return 0
	}
	return 1
}

func randomChoice(r *rand.Rand, since fhir.Instant) Choice {
	var keys map[fhir.Key]fhir.Instant
	switch r.IntN(7) {
	case 0:
		return Choice{}
	case 3:
		refs := map[fhir.Key]fhir.Instant{}
		practitioner, _ := fhir.ParseType("Practitioner")
		for range r.IntN(4) {
			refs[fhir.Key{Type: practitioner, ID: fmt.Sprintf("dr%d", r.IntN(9))}] = []fhir.Instant{since, fhir.None}[r.IntN(2)]
		}
		c := Choice{Refer: func(k fhir.Key) (fhir.Instant, bool) { after, ok := refs[k]; return after, ok }}
		if r.IntN(2) == 0 {
			c.Patients = map[string]fhir.Instant{"p1": since, "p2": fhir.None}
		}
		return c
	case 1, 2:
		keys = map[fhir.Key]fhir.Instant{}
		for range r.IntN(20) {
			keys[fhir.Key{Type: observationType, ID: fmt.Sprintf("o%d", r.IntN(chosenOf))}] = []fhir.Instant{since, fhir.None}[r.IntN(2)]
		}
		if r.IntN(2) == 0 {
			return Choice{Keys: keys}
		}
	}
	patients := map[string]fhir.Instant{}
	for range r.IntN(20) {
		patients[fmt.Sprintf("p%d", r.IntN(44))] = []fhir.Instant{since, since, fhir.None}[r.IntN(3)]
	}
	return Choice{Patients: patients, Keys: keys, Outside: r.IntN(2) == 0, Nobodys: r.IntN(4) == 0}
}

// A renewal is of Binaries that have changed, to whose referrers that matters.
type renewal struct {
	every    bool // of all rows, not only of a choice
	binaries map[fhir.Key]bool
}

func randomRenewal(r *rand.Rand) renewal {
	if r.IntN(2) == 0 {
		return renewal{}
	}
	n := renewal{r.IntN(3) == 0, map[fhir.Key]bool{}}
	for range r.IntN(4) {
		n.binaries[fhir.Key{Type: fhir.Binary, ID: fmt.Sprintf("b%d", r.IntN(5))}] = true
	}
	return n
}

func (n renewal) of(chosen, all *Snapshot) *Snapshot {
	switch renewed := func(k fhir.Key) bool { return n.binaries[k] }; {
	case n.every:
		return all.Renewing(renewed)
	case n.binaries != nil:
		return chosen.Renewing(renewed)
	}
	return chosen
}

// A visible is a row that is visible at a snapshot.
type visible struct {
	sec      segment.Section
	key      fhir.Key
	instant  fhir.Instant
	patients []string
	refs     []fhir.Key
}

func visibles(t *testing.T, db *DB, s *Snapshot) (list []visible) {
	t.Helper()
	for _, g := range s.segs {
		body, err := g.r.OpenBody()
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []segment.Kind{segment.Live, segment.Deleted} {
			sec := g.r.Section(segment.Section{Kind: kind, Type: observationType})
			for b := sec.From; b < sec.To; b++ {
				rows, err := g.r.Rows(b)
				if err != nil {
					t.Fatal(err)
				}
				text, err := g.r.Lines(nil, body, b)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range rows {
					line := text[:r.Length]
					text = text[r.Length:]
					death := db.deathOf(g, b, r.Seq)
					if g.window() == nil && r.Bound().Compare(s.pin.Closed) <= 0 || r.Instant > s.Watermark() || death != fhir.None && death <= s.Watermark() {
						continue
					}
					list = append(list, visible{sec.Section, r.Key, r.Instant, r.Patients, referencesIn(t, kind, line)})
				}
			}
		}
		if err := body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// chosen says of all rows that are visible which Observations are picked, and what the
// picked ones that live refer to.
func chosen(told []visible, since fhir.Instant, c Choice, n renewal, veil *Veil) (rows map[string]bool, refs map[fhir.Key]bool) {
	rows, refs = map[string]bool{}, map[fhir.Key]bool{}
	for _, v := range told {
		in, after := picks(c, v, since)
		if n.every {
			in, after = true, since
		}
		if slices.ContainsFunc(v.refs, func(k fhir.Key) bool { return n.binaries[k] }) {
			after = fhir.None
		}
		if in && v.instant > lifted(veil, v, after) {
			rows[fmt.Sprintf("%s/%s", v.sec, v.key.ID)] = true
			for _, k := range v.refs {
				refs[k] = true
			}
		}
	}
	return rows, refs
}

// randomVeil hides what is of some patients, or brings it back.
func randomVeil(r *rand.Rand, instants []fhir.Instant) *Veil {
	if r.IntN(3) == 0 {
		return nil
	}
	v := &Veil{Patients: map[string]Absence{}, Keys: map[fhir.Key]bool{}}
	for range r.IntN(30) {
		v.Patients[fmt.Sprintf("p%d", r.IntN(44))] = Absence{Out: r.IntN(2) == 0, Told: instants[r.IntN(len(instants))]}
	}
	for range r.IntN(3) * 10 {
		v.Keys[fhir.Key{Type: observationType, ID: fmt.Sprintf("o%d", r.IntN(chosenOf))}] = true
	}
	return v
}

// lifted is the instant behind which a row counts under a veil.
func lifted(veil *Veil, v visible, after fhir.Instant) fhir.Instant {
	if veil == nil {
		return after
	}
	lives, least := v.sec.Kind == segment.Live, always
	for _, p := range v.patients {
		a, absent := veil.Patients[p]
		switch {
		case !absent:
			least = min(least, after)
		case !lives:
			least = min(least, max(after, a.Told))
		case !a.Out:
			least = fhir.None
		}
	}
	switch {
	case lives && veil.Keys[v.key]:
		return always
	case len(v.patients) == 0:
		return after
	}
	return least
}

func picks(c Choice, v visible, since fhir.Instant) (in bool, after fhir.Instant) {
	switch {
	case c.Patients == nil && c.Keys == nil && c.Refer == nil:
		return len(v.patients) > 0, since
	default:
		after = always
		for _, ref := range v.refs {
			if c.Refer == nil {
				break
			}
			if a, ok := c.Refer(ref); ok {
				in, after = true, min(after, a)
			}
		}
		for _, p := range v.patients {
			if a, ok := c.Patients[p]; ok {
				in, after = true, min(after, a)
			}
		}
		if c.Nobodys && len(v.patients) == 0 {
			in, after = true, min(after, since)
		}
		if a, ok := c.Keys[v.key]; ok && (!c.Outside || len(v.patients) == 0) {
			in, after = true, min(after, a)
		}
	}
	return in, after
}

func referencesIn(t *testing.T, kind segment.Kind, line []byte) []fhir.Key {
	t.Helper()
	if kind != segment.Live {
		return nil
	}
	var scan fhir.Scanner
	res, err := scan.Scan(bytes.TrimSuffix(line, newline))
	if err != nil {
		t.Fatal(err)
	}
	return res.References
}

// readChosen downloads the rows of a section that s chooses, in both codings.
func readChosen(t *testing.T, s *Snapshot, sec segment.Section, since fhir.Instant, name string, got map[string]bool) {
	t.Helper()
	ext, err := s.Extents(sec, since, s.Watermark())
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File(context.Background(), fmt.Sprintf("%s-%s", name, sec.Kind), sec, since, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var w lineWriter
	if err := f.WriteIdentity(&w, 0, f.Size()); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, e := range ext {
		rows += e.Rows
	}
	lines := strings.Split(strings.TrimSuffix(string(w.b), "\n"), "\n")
	if len(w.b) == 0 {
		lines = nil
	}
	if len(lines) != rows {
		t.Errorf("%v: %d lines, extents count %d", sec, len(lines), rows)
	}
	for _, line := range lines {
		id := ""
		if sec.Kind == segment.Deleted {
			id = strings.TrimPrefix(deletedKey(t, line), "Observation/")
		} else {
			var scan fhir.Scanner
			res, err := scan.Scan([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			id = res.Key.ID
		}
		if got[fmt.Sprintf("%s/%s", sec, id)] {
			t.Errorf("%v: %s stands there twice", sec, id)
		}
		got[fmt.Sprintf("%s/%s", sec, id)] = true
	}
}

// TestRoster: who a Group lists at a watermark, and who has left since. A
// reindex changes nothing of it.
func TestRoster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.advance(time.Second)
		start := time.Now()
		at := func(m int) fhir.Instant { return fhir.FromTime(start.Add(time.Duration(m) * time.Minute)) }
		names := map[fhir.Instant]string{fhir.None: "-"}
		version := func(n int, members ...fhir.Member) {
			f.advance(time.Until(at(n).Time()))
			ch := groupChange("g")
			ch.Members = members
			ch.Body = fmt.Appendf(nil, `{"resourceType":"Group","id":"g","n":%d}`, n)
			f.commit(ch, groupChange("other", fmt.Sprint("Patient/", n))) // where everybody leaves again
			names[f.lastInstant()] = fmt.Sprint(n)
		}
		member := func(id string) fhir.Member {
			return fhir.Member{Ref: "Patient/" + id, Start: fhir.None, End: fhir.None}
		}
		inactive := member("b")
		inactive.Inactive = true
		soon, over := member("c"), member("d")
		soon.Start, over.End = at(25), at(15)
		names[at(25)], names[at(15)] = "25", "15"
		version(10, member("a"), member("b"), soon, over, member("e"), fhir.Member{Start: fhir.None, End: fhir.None})
		version(20, member("a"), inactive, soon, over)                                                                          // e goes, b pauses, d's time is over
		version(30, member("b"), member("a"), soon, member("d"), fhir.Member{Ref: "Group/h", Start: fhir.None, End: fhir.None}) // b and d come back
		version(40, member("b"), member("a"), soon, member("d"), fhir.Member{Ref: "Group/h", Start: fhir.None, End: fhir.None}) // the same
		f.advance(time.Minute)
		told := func(since int) string {
			t.Helper()
			s := pinNow(t, db, "job")
			defer s.Close()
			from := fhir.None
			if since > 0 {
				from = at(since)
			}
			r := rosterOf(t, s, "g", from)
			var list []string
			for _, ref := range slices.Sorted(maps.Keys(r.Members)) {
				for _, m := range r.Members[ref] {
					list = append(list, fmt.Sprintf("%s %s..%s", strings.TrimPrefix(ref, "Patient/"), names[m.Joined], names[m.Left]))
				}
			}
			if err := db.Unpin(t.Context(), "job"); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s: %s", r.Body, strings.Join(list, ", "))
		}
		want := map[int]string{
			0:  `{"resourceType":"Group","id":"g","n":40}: Group/h 30..-, a 10..-, b 30..-, c 25..-, d 30..-`,
			17: `{"resourceType":"Group","id":"g","n":40}: Group/h 30..-, a 10..-, b 10..20, b 30..-, c 25..-, d 30..-, e 10..20`,
			25: `{"resourceType":"Group","id":"g","n":40}: Group/h 30..-, a 10..-, b 30..-, c 25..-, d 30..-`,
		}
		check := func(when string) {
			t.Helper()
			for since, w := range want {
				if d := cmp.Diff(w, told(since)); d != "" {
					t.Errorf("%s, since %d (-want +got):\n%s", when, since, d)
				}
			}
		}
		check("as it came")
		rewriteAll(t, db)
		check("settled")
		if err := errors.Join(db.Close(), fs.RemoveAll("store/index"), Reindex(t.Context(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		f = newFeed(t, db)
		f.advance(time.Minute)
		check("after reindex")
		f.commit(Change{Key: fhir.Key{Type: groupType, ID: "g"}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None})
		f.advance(time.Minute)
		s := pinNow(t, db, "job")
		defer s.Close()
		if r := rosterOf(t, s, "g", fhir.None); r.Body != nil || len(r.Members) > 0 {
			t.Errorf("of a deleted Group: %+v", r)
		}
		if r := rosterOf(t, s, "g", at(41)); r.Body != nil || len(r.Members["Patient/a"]) != 1 || r.Members["Patient/a"][0].Left != f.lastInstant() {
			t.Errorf("of a Group that was deleted since: %+v", r)
		}
	})
}

// TestPlacedAnew: what was deleted and comes back to the same compartment comes
// anew.
func TestPlacedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		placed := func() (at fhir.Instant) {
			s := pinNow(t, db, "job")
			defer s.Close()
			err := s.Rows(t.Context(), segment.Section{Kind: segment.Live, Type: observationType}, fhir.None, s.Watermark(), func(row *Row) error { at = row.Placed; return nil })
			if err := errors.Join(err, db.Unpin(t.Context(), "job")); err != nil {
				t.Fatal(err)
			}
			return at
		}
		f.commit(observationOf("o", "a", "1"))
		f.advance(time.Minute)
		first := placed()
		f.commit(observationOf("o", "a", "2"))
		f.advance(time.Minute)
		if got := placed(); got != first {
			t.Errorf("an update is placed at %v, want %v", got, first)
		}
		gone := deletionOf("o")
		gone.Key.Type = observationType
		f.commit(gone)
		f.advance(time.Minute)
		w := db.Promised()
		f.commit(observationOf("o", "a", "3"))
		f.advance(time.Minute)
		if got := placed(); got <= w {
			t.Errorf("what came back is placed at %v, but was dead at %v", got, w)
		}
	})
}

// TestChosenForgotten: a snapshot shows what it did after the index has forgotten that
// there ever was such a resource.
func TestChosenForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond, LastState: time.Minute, Deleted: time.Hour}
		db := mustOpen(t, "store", o)
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		p := provenanceOf("p", fhir.Key{Type: observationType, ID: "o"})
		f.commit(observationOf("o", "anna", ""), p)
		f.advance(time.Second)
		old, err := db.Pin(t.Context(), "old", time.Now().Add(100*time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		gone := deletionOf("p")
		gone.Key.Type = provenanceType
		f.commit(gone)
		for range 3 { // settled, the last state gone, the deletion gone
			f.advance(2 * time.Hour)
			rewriteAll(t, db)
		}
		if _, err := db.newest(p.Key); !errors.Is(err, ErrUnknown) {
			t.Fatalf("the deletion is not forgotten: %v", err)
		}
		among, ok, err := old.ProvenanceOf(t.Context(), map[uint32]bool{segment.PatientsHash([]string{"anna"}): true})
		if err != nil || !ok || !slices.Equal(among, []fhir.Key{p.Key}) {
			t.Errorf("what may be about Anna's: %v, told %v: %v", among, ok, err)
		}
		all := func(fhir.Key) (fhir.Instant, bool) { return fhir.None, true }
		for name, c := range map[string]Choice{"among": {Refer: all, Among: among}, "keys": {Keys: map[fhir.Key]fhir.Instant{p.Key: fhir.None}}} {
			rows := 0
			sec := segment.Section{Kind: segment.Live, Type: provenanceType}
			err := old.Choosing(c).Rows(t.Context(), sec, fhir.None, old.Watermark(), func(*segment.Row) error { rows++; return nil })
			if err != nil || rows != 1 {
				t.Errorf("%s: %d rows: %v", name, rows, err)
			}
		}
	})
}
