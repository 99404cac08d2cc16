package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

// pointed proves that in a snapshot all that Provenance is about leads to it, and
// returns how much that is.
func pointed(t testing.TB, s *Snapshot) (n int) {
	t.Helper()
	places := map[fhir.Key]uint32{}
	var provenance []segment.Row
	for _, sec := range s.Sections(segment.Live) {
		err := s.Rows(t.Context(), sec, fhir.None, s.Watermark(), func(row *segment.Row) error {
			places[row.Key] = row.Place().Patients
			if row.Key.Type == groupType {
				places[row.Key] = segment.GroupHash(row.Key.ID)
			}
			if row.Key.Type == provenanceType {
				p := *row
				p.References = slices.Clone(row.References)
				provenance = append(provenance, p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range provenance {
		p := &provenance[i]
		for _, key := range p.References {
			place := places[key]
			if place == 0 {
				continue // no export of Patients holds it
			}
			list, ok, err := s.ProvenanceOf(t.Context(), map[uint32]bool{place: true})
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return n // of snapshots from before an erasure or a restart
			}
			n++
			if !slices.Contains(list, p.Key) {
				t.Errorf("at %v: %v does not lead to %v", s.Watermark(), key, p.Key)
			}
		}
	}
	return n
}

// provenanceOf is a Provenance about some resources.
func provenanceOf(id string, about ...fhir.Key) Change {
	ch := patientChange(id, fhir.None, "")
	ch.Key, ch.Patients = fhir.Key{Type: provenanceType, ID: id}, nil
	ch.Body = fmt.Appendf(nil, `{"resourceType":"Provenance","id":"%s"}`, id)
	for _, key := range about {
		ch.References = append(ch.References, key)
		if key.Type == patientType {
			ch.Patients = append(ch.Patients, key.ID)
		}
	}
	slices.SortFunc(ch.References, fhir.Key.Compare)
	slices.Sort(ch.Patients)
	return ch
}

// TestProvenanceOf: at each watermark what Provenance is about leads to it, in
// whatever order they come, move, go and come again; after merges that forget,
// restarts, and with the index made anew.
func TestProvenanceOf(t *testing.T) {
	led, seeds := 0, storetest.Rounds(uint64(4))
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { led += testProvenanceOf(t, rand.New(rand.NewPCG(seed, 0))) })
	}
	if led < 500*int(seeds) {
		t.Errorf("only %d times something led to a Provenance", led)
	}
}

func testProvenanceOf(t *testing.T, r *rand.Rand) (led int) {
	fs := vfs.NewMem()
	o := Options{FS: fs, SettleAfter: time.Minute, Allowance: 500 * time.Millisecond, LastState: time.Hour, Deleted: 3 * time.Hour, smallFile: 1}
	db := mustOpen(t, "store", o)
	defer func() { db.Close() }()
	f := newFeed(t, db)
	f.advance(time.Second)
	about := func(i int) fhir.Key {
		if i == 0 {
			return fhir.Key{Type: groupType, ID: "g"}
		}
		return fhir.Key{Type: observationType, ID: fmt.Sprintf("o%d", i)}
	}
	change := func() (ch Change) {
		switch i := r.IntN(12); {
		case i < 3:
			var list []fhir.Key
			for range 1 + r.IntN(3) {
				list = append(list, about(r.IntN(9)))
			}
			ch = provenanceOf(fmt.Sprintf("p%d", r.IntN(6)), list...)
			ch.References = slices.Compact(ch.References)
		case i == 3:
			ch = groupChange("g", fmt.Sprintf("Patient/%d", r.IntN(3)))
		default:
			ch = observationOf(about(1+r.IntN(8)).ID, fmt.Sprint(r.IntN(4)), fmt.Sprint(r.Uint64()))
			switch r.IntN(5) {
			case 0:
				ch.Patients = nil
			case 1:
				ch.Patients = []string{"0", "1"}
			}
		}
		if r.IntN(6) == 0 {
			ch = Change{Key: ch.Key, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
		}
		return ch
	}
	for range 80 {
		before, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		var list []Change
		for range 1 + r.IntN(4) {
			ch := change() // in whatever order of time: between two of a commit a watermark may lie
			ch.Timestamp = fhir.FromTime(time.Now()) - fhir.Instant(r.IntN(450))
			list = append(list, ch)
		}
		f.commit(list...)
		now, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		led += pointed(t, before) + pointed(t, now)
		if err := errors.Join(before.Close(), now.Close()); err != nil {
			t.Fatal(err)
		}
		f.advance([]time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second}[r.IntN(3)])
		switch r.IntN(8) {
		case 0:
			f.advance(time.Hour)
			rewriteAll(t, db)
		case 1:
			f.advance(4 * time.Hour) // deletions are forgotten
			rewriteAll(t, db)
		case 2:
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if r.IntN(2) == 0 {
				if err := errors.Join(fs.RemoveAll("store/index"), Reindex(context.Background(), "store", o, io.Discard)); err != nil {
					t.Fatal(err)
				}
			}
			db = mustOpen(t, "store", o)
			f = newFeed(t, db)
			f.advance(time.Second)
		}
		if _, err := db.Check(false); err != nil {
			t.Fatal(err)
		}
	}
	return led
}

// TestProvenanceBeside: a Provenance is committed after what it is about has moved, or
// has left all compartments, and is shown beside where that was before.
func TestProvenanceBeside(t *testing.T) {
	for name, to := range map[string][]string{"moved": {"ben"}, "nobody's": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: 500 * time.Millisecond})
				defer db.Close()
				f := newFeed(t, db)
				f.advance(time.Second)
				f.commit(observationOf("o", "anna", "first"))
				f.advance(time.Second)
				now := fhir.FromTime(time.Now())
				moved := observationOf("o", "anna", "second")
				moved.Patients, moved.Timestamp = to, now
				p := provenanceOf("p", fhir.Key{Type: observationType, ID: "o"})
				p.Timestamp = now - 200
				f.commit(moved)
				f.commit(p)
				f.advance(400 * time.Millisecond)
				s, err := db.Present()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if w := s.Watermark(); w < p.Timestamp || w >= now || pointed(t, s) != 1 {
					t.Errorf("at %v, between %v and %v, nothing leads to the Provenance", w, p.Timestamp, now)
				}
			})
		})
	}
}

// TestAmong: of a choice by what Provenance is about the same rows are meant whether
// it is looked for or looked through, and only its blocks are opened.
func TestAmong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		const patients = 3000
		var list []Change
		for i := range patients {
			id := fmt.Sprint(i)
			p := provenanceOf("p"+id, fhir.Key{Type: observationType, ID: "o" + id})
			if i%2 == 0 {
				p = provenanceOf("p"+id, fhir.Key{Type: observationType, ID: "o" + id}, fhir.Key{Type: patientType, ID: id})
			}
			p.Body = fmt.Appendf(p.Body[:len(p.Body)-1], `,"text":{"div":"%0500d"}}`, i)
			list = append(list, observationOf("o"+id, id, ""), p)
		}
		f.commit(list...)
		f.advance(time.Hour)
		rewriteAll(t, db)
		f.commit(observationOf("o7", "9", "moved"), provenanceOf("fresh", fhir.Key{Type: observationType, ID: "o9"}))
		f.advance(time.Second)
		s, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		asked := map[fhir.Key]bool{}
		refer := func(key fhir.Key) (fhir.Instant, bool) {
			asked[key] = true
			return fhir.None, key.ID == "o9" || key.ID == "o7"
		}
		among, ok, err := s.ProvenanceOf(t.Context(), map[uint32]bool{segment.PatientsHash([]string{"9"}): true})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		slices.SortFunc(among, fhir.Key.Compare)
		want := []fhir.Key{{Type: provenanceType, ID: "fresh"}, {Type: provenanceType, ID: "p7"}, {Type: provenanceType, ID: "p9"}}
		if !slices.Equal(among, want) {
			t.Errorf("to be looked at: %v, want %v", among, want)
		}
		chosen := func(c Choice) (keys []fhir.Key, opened int) {
			clear(asked)
			err := s.Choosing(c).Rows(t.Context(), segment.Section{Kind: segment.Live, Type: provenanceType}, fhir.None, s.Watermark(), func(row *segment.Row) error {
				keys = append(keys, row.Key)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(keys, func(a, b fhir.Key) int { return cmp.Compare(a.ID, b.ID) })
			return keys, len(asked)
		}
		through, all := chosen(Choice{Refer: refer})
		for name, c := range map[string]Choice{
			"among":        {Refer: refer, Among: among},
			"with Patient": {Patients: map[string]fhir.Instant{"9": fhir.None}, Refer: refer, Among: among},
		} {
			keys, opened := chosen(c)
			if !slices.Equal(keys, through) || !slices.Equal(keys, want) {
				t.Errorf("%s: %v, looked through: %v, want %v", name, keys, through, want)
			}
			if opened*2 > all {
				t.Errorf("%s: %d references were asked about, of %d", name, opened, all)
			}
		}
		if keys, opened := chosen(Choice{Refer: refer, Among: []fhir.Key{}}); len(keys) > 0 || opened > 0 {
			t.Errorf("among none: %v, %d asked about", keys, opened)
		}
	})
}

// TestFewPatientsReadLittle: planning looks at the same blocks several times, and reads
// them once.
func TestFewPatientsReadLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".dir") {
				reads.Add(1)
			}
			return nil
		}))
		db := mustOpen(t, "store", Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, MergeOff: true, smallFile: 1})
		defer db.Close()
		f := newFeed(t, db)
		for day := range 3 {
			var list []Change
			for i := range 50 {
				list = append(list, observationOf(fmt.Sprintf("o%d-%d", day, i), fmt.Sprint(i), ""))
			}
			f.commit(list...)
			f.advance(time.Hour)
		}
		s, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sec := segment.Section{Kind: segment.Live, Type: observationType}
		read := func(chosen *Snapshot) (rows int) {
			err := chosen.Rows(t.Context(), sec, fhir.None, s.Watermark(), func(*segment.Row) error { rows++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			return rows
		}
		reads.Store(0)
		seven := s.Choosing(Choice{Patients: map[string]fhir.Instant{"7": fhir.None}})
		if rows := read(seven); rows != 3 || reads.Load() != int64(s.Blocks(sec)) {
			t.Errorf("%d rows in %d reads of %d blocks", rows, reads.Load(), s.Blocks(sec))
		}
		reads.Store(0)
		if _, err := seven.Extents(sec, fhir.None, s.Watermark()); err != nil || reads.Load() > 0 {
			t.Errorf("%d chunks are read again: %v", reads.Load(), err)
		}
	})
}

// TestProvenanceUntold: a store from before tells nothing, and too many are not looked
// for one by one.
func TestProvenanceUntold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		f := newFeed(t, db)
		o := fhir.Key{Type: observationType, ID: "o"}
		f.commit(observationOf("o", "anna", ""), provenanceOf("p", o))
		f.advance(time.Second)
		tells := func(compartments map[uint32]bool) bool {
			t.Helper()
			s, err := db.Present()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, ok, err := s.ProvenanceOf(t.Context(), compartments)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		anna := map[uint32]bool{segment.PatientsHash([]string{"anna"}): true}
		many := map[uint32]bool{}
		for i := range uint32(maxLocated + 1) {
			many[i+1] = true
		}
		if !tells(anna) || tells(many) {
			t.Error("of one Patient it is not told, or of too many")
		}
		if err := errors.Join(db.kv.Delete(index.AboutsKey(), pebble.Sync), db.Close()); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer func() { db.Close() }()
		if tells(anna) {
			t.Error("an index that may lack some tells all")
		}
	})
}

// TestProvenanceForgotten: what an erasure makes the index forget, with all else that is
// gone by then, an older snapshot may show: it is not told there that this was all.
func TestProvenanceForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.commit(observationOf("o", "anna", ""), provenanceOf("p", fhir.Key{Type: observationType, ID: "o"}), patientChange("ben", fhir.None, ""))
		f.advance(time.Second)
		old := pinNow(t, db, "old")
		gone := deletionOf("p")
		gone.Key.Type = provenanceType
		f.commit(gone)
		f.advance(time.Second)
		tells := func(s *Snapshot) bool {
			t.Helper()
			_, ok, err := s.ProvenanceOf(t.Context(), map[uint32]bool{segment.PatientsHash([]string{"anna"}): true})
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if !tells(old) {
			t.Error("before the erasure it is not told")
		}
		if _, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "ben"}}); err != nil {
			t.Fatal(err)
		}
		if tells(old) {
			t.Error("an older snapshot tells all though the index has forgotten some")
		}
		if err := errors.Join(old.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		f = newFeed(t, db)
		f.advance(time.Second)
		now, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		defer now.Close()
		if !tells(now) {
			t.Error("a new snapshot tells nothing")
		}
	})
}

// TestCheckAbouts: an index that does not lead to a Provenance is found out, whether
// what that is about has a place or is awaited.
func TestCheckAbouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		o, far := fhir.Key{Type: observationType, ID: "o"}, fhir.Key{Type: observationType, ID: "far"}
		group := fhir.Key{Type: groupType, ID: "g"}
		f.commit(observationOf("o", "anna", ""), provenanceOf("p", o, far, group))
		to := index.Pointer{Provenance: "p"}
		for _, key := range [][]byte{
			index.AboutKey(segment.PatientsHash([]string{"anna"}), to),
			index.AboutKey(segment.GroupHash("g"), to), index.AwaitedKey(index.ResourceHash(far), to),
		} {
			if _, err := db.Check(false); err != nil {
				t.Fatal(err)
			}
			if err := db.kv.Delete(key, pebble.Sync); err != nil {
				t.Fatalf("%x: %v", key, err)
			}
			if _, err := db.Check(false); err == nil || !strings.Contains(err.Error(), "R2") {
				t.Errorf("without %x check says %v", key, err)
			}
			if err := db.kv.Set(key, nil, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestErasedProvenance: the index does not name a Provenance that was erased.
func TestErasedProvenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		o, far := fhir.Key{Type: observationType, ID: "o"}, fhir.Key{Type: observationType, ID: "far"}
		f.commit(observationOf("o", "anna", ""), provenanceOf("CANARY", o, far), provenanceOf("stays", o, far))
		f.advance(time.Second)
		if _, err := db.Erase(context.Background(), Erasure{Key: fhir.Key{Type: provenanceType, ID: "CANARY"}}); err != nil {
			t.Fatal(err)
		}
		stays := 0
		for _, in := range index.Pointers() {
			err := index.Scan(db.kv, in, func(k, _ []byte) error {
				if strings.Contains(string(k), "CANARY") {
					t.Errorf("the index has %q", k)
				}
				stays++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if stays != 2 {
			t.Errorf("%d keys lead to what stays, want 2", stays)
		}
	})
}

// TestProvenanceAwaitedByMany: a Provenance about what very many are about costs a commit
// no more than the first.
func TestProvenanceAwaitedByMany(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
	defer db.Close()
	const resource, had = 7, 9
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	for i := range 10_000 {
		w.set(index.AwaitedKey(resource, index.Pointer{Provenance: fmt.Sprint("p", i)}), nil)
	}
	w.set(index.AwaitedKey(resource, index.Pointer{Set: had}), nil)
	if err := errors.Join(w.err, b.Commit(pebble.NoSync)); err != nil {
		t.Fatal(err)
	}
	it, err := db.kv.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	more := db.kv.NewBatch()
	defer more.Close()
	w, to := batchWriter{b: more}, index.Pointer{Provenance: "last"}
	if err := errors.Join(w.awaits(it, resource, to), w.err); err != nil {
		t.Fatal(err)
	}
	if n := steps(it); n > 10 {
		t.Errorf("it took %d steps", n)
	}
	if err := more.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{index.AwaitedKey(resource, to), index.AboutKey(had, to)} {
		if there, err := index.Has(db.kv, key); err != nil || !there {
			t.Errorf("%x is not there: %v", key, err)
		}
	}
}

// steps is how often an iterator was moved.
func steps(it *pebble.Iterator) (n int) {
	s := it.Stats()
	return s.ForwardSeekCount[pebble.InterfaceCall] + s.ForwardStepCount[pebble.InterfaceCall]
}

// TestAmongChanged: what has changed since a snapshot is found where it was, by what has
// died since; whether merges have moved it meanwhile or not.
func TestAmongChanged(t *testing.T) {
	for _, merged := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			db := mustOpen(t, "store", Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1})
			defer db.Close()
			f := newFeed(t, db)
			f.advance(time.Second)
			var list []Change
			for i := range 3000 {
				p := provenanceOf(fmt.Sprint("p", i), fhir.Key{Type: observationType, ID: fmt.Sprint("o", i)}, fhir.Key{Type: patientType, ID: fmt.Sprint(i)})
				p.Body = fmt.Appendf(p.Body[:len(p.Body)-1], `,"text":{"div":"%0500d"}}`, i)
				list = append(list, observationOf(fmt.Sprint("o", i), fmt.Sprint(i), ""), p)
			}
			f.commit(list...)
			f.advance(time.Hour)
			rewriteAll(t, db)
			f.commit(provenanceOf("fresh", fhir.Key{Type: observationType, ID: "o9"}))
			f.advance(time.Second)
			s := pinNow(t, db, "s")
			defer s.Close()
			if merged {
				f.commit(list[0], list[1])
				f.advance(3 * time.Hour)
				rewriteAll(t, db)
			}
			for _, id := range []string{"p9", "fresh", "new"} {
				p := provenanceOf(id, fhir.Key{Type: observationType, ID: "o9"})
				p.Body = append(p.Body[:len(p.Body)-1], `,"text":{"div":"again"}}`...)
				f.commit(p)
			}
			among, ok, err := s.ProvenanceOf(t.Context(), map[uint32]bool{segment.PatientsHash([]string{"9"}): true})
			if err != nil || !ok || len(among) != 3 {
				t.Fatal(among, ok, err)
			}
			asked, rows := map[fhir.Key]bool{}, 0
			refer := func(key fhir.Key) (fhir.Instant, bool) { asked[key] = true; return fhir.None, key.ID == "o9" }
			sec := segment.Section{Kind: segment.Live, Type: provenanceType}
			err = s.Choosing(Choice{Refer: refer, Among: among}).Rows(t.Context(), sec, fhir.None, s.Watermark(), func(*segment.Row) error { rows++; return nil })
			if err != nil || rows != 2 {
				t.Errorf("merged %v: %d rows, want 2: %v", merged, rows, err)
			}
			if !merged && len(asked) > 3000 {
				t.Errorf("%d references were asked about, of 6000", len(asked))
			}
		})
	}
}

// TestAmongBesideCommits: while commits and merges go on, the same rows are found as if
// all were looked through.
func TestAmongBesideCommits(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), SettleAfter: 5 * time.Millisecond, Allowance: time.Millisecond, smallFile: 1})
	defer db.Close()
	f := newFeed(t, db)
	o := fhir.Key{Type: observationType, ID: "o"}
	version := func(i int) Change {
		p := provenanceOf(fmt.Sprint("p", i%7), o)
		p.Body = fmt.Appendf(p.Body[:len(p.Body)-1], `,"text":{"div":"%d"}}`, i)
		return p
	}
	f.commit(observationOf("o", "anna", ""), version(0))
	done := make(chan struct{})
	defer func() { <-done }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer close(done)
		for i := 1; ctx.Err() == nil; i++ {
			f.commit(version(i), version(i+1))
			if i%20 == 0 {
				rewriteAll(t, db)
			}
		}
	}()
	sec := segment.Section{Kind: segment.Live, Type: provenanceType}
	enough := storetest.Rounds(20_000)
	rows := 0
	for begun := time.Now(); rows < enough && time.Since(begun) < 30*time.Second; {
		s, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		among, ok, err := s.ProvenanceOf(t.Context(), map[uint32]bool{segment.PatientsHash([]string{"anna"}): true})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		refer := func(key fhir.Key) (fhir.Instant, bool) { return fhir.None, key == o }
		var seqs [2][]uint64
		for i, c := range []Choice{{Refer: refer, Among: among}, {Refer: refer}} {
			err := s.Choosing(c).Rows(t.Context(), sec, fhir.None, s.Watermark(), func(row *segment.Row) error {
				seqs[i] = append(seqs[i], row.Seq)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(seqs[0], seqs[1]) {
			t.Fatalf("at %v: %v, looked through: %v", s.Watermark(), seqs[0], seqs[1])
		}
		rows += len(seqs[0])
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if rows < enough {
		t.Errorf("only %d rows were found", rows)
	}
}
