package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// pinOnly pins the living resources of a type and nothing else.
func pinOnly(t *testing.T, db *DB, id string, typ fhir.Type) *Snapshot {
	t.Helper()
	s, err := db.Pin(context.Background(), id, time.Now().Add(time.Hour), func(s *Snapshot) ([]byte, error) {
		ext, err := s.Extents(segment.Section{Kind: segment.Live, Type: typ}, fhir.None, s.Watermark())
		return nil, errors.Join(err, s.Only(ext))
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOnly: a snapshot that was narrowed gives what it gave, also after merges and
// a restart; it keeps no other segment on the disk, and an erasure elsewhere
// leaves it alone.
func TestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
		db := mustOpen(t, "store", o)
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("anna", fhir.None, "a"), patientChange("ben", fhir.None, "b"))
		f.advance(time.Second)
		f.commit(observationOf("o1", "carl", "x"))
		f.advance(time.Second)
		if n := len(db.view.fresh); n != 2 {
			t.Fatalf("%d segments, want 2", n)
		}

		narrow := pinOnly(t, db, "narrow", patientType)
		want, err := content(narrow)
		if err != nil || len(want) != 2 {
			t.Fatal(want, err)
		}
		if n := len(narrow.segs); n != 1 || len(narrow.pin.Segments) != 1 {
			t.Errorf("it holds %d segments, want 1", n)
		}
		if err := narrow.Close(); err != nil {
			t.Fatal(err)
		}
		f.commit(patientChange("anna", fhir.None, "a2"))
		f.advance(time.Hour)
		rewriteAll(t, db)
		if n := len(db.segs) - db.view.len(); n != 1 {
			t.Errorf("%d merged segments are still there, want the one that is held", n)
		}
		if _, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: observationType, ID: "o1"}}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s, err := db.Snapshot("narrow")
			if err != nil {
				t.Fatal(err)
			}
			got, err := content(s)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v, content differs (-want +got):\n%s", err, diff)
			}
			s.Close()
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = mustOpen(t, "store", o)
		}

		if db.Pinned()[0].Revoked {
			t.Error("it is told to be revoked")
		}
		if _, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "ben"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Snapshot("narrow"); !errors.Is(err, ErrRevoked) {
			t.Errorf("after an erasure in it: %v", err)
		}
		if !db.Pinned()[0].Revoked {
			t.Error("it is not told to be revoked")
		}
	})
}
