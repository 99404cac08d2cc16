package store

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// attachedFeed fills a store with Binaries that go with anna's compartment, and say
// CANARY, and with some that stay.
func attachedFeed(t *testing.T, fs vfs.FS) (*DB, *feed, Options, []Change) {
	t.Helper()
	o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
	db := mustOpen(t, "store", o)
	f := newFeed(t, db)
	var log []Change
	commit := func(list ...Change) {
		for _, ch := range list {
			ch.Body = bytes.Clone(ch.Body)
			log = append(log, ch)
		}
		f.commit(list...)
	}
	f.advance(time.Second)
	commit(patientChange("anna", fhir.None, "CANARY"), patientChange("ben", fhir.None, "stays"),
		binaryChange("hers", "CANARY1"), binaryChange("old", "CANARY2"), binaryChange("guarded", "CANARY3", "anna"), binaryChange("moved", "CANARY4"),
		binaryChange("both", "stays-both"), binaryChange("his", "stays-his"), binaryChange("bens", "stays-bens", "ben"), binaryChange("nobodys", "stays-nobodys"),
		documentOf("d1", "anna", "CANARY", "hers", "both", "old", "bens", "late"), documentOf("d2", "ben", "stays", "his", "both"),
		documentOf("d3", "anna", "CANARY", "moved", "kept"), binaryChange("kept", "stays-kept"))
	f.advance(time.Hour)
	commit(documentOf("d1", "anna", "CANARY", "hers", "both", "bens", "late"), binaryChange("hers", "CANARY5"), documentOf("d3", "ben", "stays", "kept"))
	f.advance(time.Minute)
	rewriteAll(t, db)
	commit(documentOf("d4", "anna", "CANARY", "hers"))
	f.advance(time.Second)
	return db, f, o, log
}

// TestEraseAttached: with a Patient's compartment go the Binaries to which only that
// refers, or did, and those that it guards; they come back no more. Those to which
// others refer stay, and are found.
func TestEraseAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, f, o, log := attachedFeed(t, fs)
		defer func() { db.Close() }()
		job := pinNow(t, db, "job")
		since := job.Watermark()
		if _, err := content(job); err != nil {
			t.Fatal(err)
		}
		if err := job.Close(); err != nil {
			t.Fatal(err)
		}
		before := mustBackUp(t, db, "backups", true)
		done := mustErase(t, db, Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true})
		if want := []string{"job"}; !slices.Equal(done.Jobs, want) {
			t.Errorf("jobs that were ended: %v", done.Jobs)
		}
		gone := func(when string) {
			t.Helper()
			if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
				t.Errorf("%s: the canary is in %v", when, where)
			}
			for _, text := range []string{"both", "his", "bens", "nobodys", "kept"} {
				if !strings.Contains(bodies(t, db), "stays-"+text) {
					t.Errorf("%s: %s is gone", when, text)
				}
			}
			if _, err := db.Check(true); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		gone("at once")
		want := []string{"DocumentReference/d2 > both", "DocumentReference/d2 > his", "DocumentReference/d3 > kept", "DocumentReference/d3 > moved"}
		if d := cmp.Diff(want, slices.Sorted(maps.Keys(pairs(t, db)))); d != "" {
			t.Errorf("what the index leads to (-want +got):\n%s", d)
		}
		f.advance(time.Second)
		next := pinNow(t, db, "next")
		deleted := deletions(t, next, segment.Section{Kind: segment.Deleted, Type: fhir.Binary}, since)
		if d := cmp.Diff(map[string]bool{"Binary/hers": true, "Binary/old": true, "Binary/guarded": true, "Binary/moved": true}, deleted); d != "" {
			t.Errorf("clients are told (-want +got):\n%s", d)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		// Read again, also one that only a document has named so far.
		f.commit(append(log, binaryChange("late", "CANARY6"))...)
		gone("after a replay")
		restored := mustRestore(t, before.Path, "restored", "store/"+erasedFile, o)
		defer restored.Close()
		if where := found(t, fs, "restored", "CANARY"); len(where) > 0 {
			t.Errorf("restored from before: the canary is in %v", where)
		}
		if _, err := restored.Check(true); err != nil {
			t.Error(err)
		}
	})
}

// TestEraseAttachedCutShort: nor does an erasure that a crash cut short leave any
// of them behind.
func TestEraseAttachedCutShort(t *testing.T) { eraseCutShort(t, attachedFeed) }

// TestEraseAttachedOne: who erases a document, and not a Patient, may file it anew:
// what is attached to it stays.
func TestEraseAttachedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, _, _, _ := attachedFeed(t, vfs.NewMem())
		defer db.Close()
		if done := mustErase(t, db, Erasure{Key: fhir.Key{Type: documentType, ID: "d1"}}); done.Resources != 1 {
			t.Errorf("%+v", done)
		}
		if !strings.Contains(bodies(t, db), "CANARY2") {
			t.Error("the Binary is gone")
		}
		if _, there := pairs(t, db)["DocumentReference/d1 > old"]; there {
			t.Error("the index still leads to what was erased")
		}
	})
}

// pairs are what the index has of who refers to what, or did.
func pairs(t testing.TB, db *DB) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := index.Scan(db.kv, index.Referrers(), func(k, _ []byte) error {
		binary, by, err := index.ParseReferrerKey(k)
		found[by.String()+" > "+binary] = string(k)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestEraseForgetsWhatWas: what a resource referred to that was deleted long ago, and
// of which nothing is left, is known no more after the next erasure; what came back
// is.
func TestEraseForgetsWhatWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, LastState: time.Minute, Deleted: time.Hour, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		gone, back := deletionOf("gone"), deletionOf("back")
		gone.Key.Type, back.Key.Type = documentType, documentType
		f.commit(documentOf("gone", "anna", "", "b"), documentOf("back", "anna", "", "b"), patientChange("ben", fhir.None, ""))
		f.advance(time.Minute)
		f.commit(gone, back)
		for i := range 90 { // deletions are dropped when there is work, not for their own sake
			f.advance(time.Minute)
			f.commit(patientChange("ben", fhir.None, string(rune('a'+i%26))))
			rewriteAll(t, db)
		}
		if _, err := db.newest(gone.Key); err == nil {
			t.Fatal("the deletion is still known")
		}
		f.commit(documentOf("back", "anna", "", "b"))
		if n := len(pairs(t, db)); n != 2 {
			t.Fatalf("%d keys before, want 2", n)
		}
		mustErase(t, db, Erasure{Key: fhir.Key{Type: patientType, ID: "ben"}})
		if d := cmp.Diff([]string{"DocumentReference/back > b"}, slices.Sorted(maps.Keys(pairs(t, db)))); d != "" {
			t.Errorf("what is known (-want +got):\n%s", d)
		}
		if _, err := db.Check(true); err != nil {
			t.Error(err)
		}
	})
}
