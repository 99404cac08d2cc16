package store

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestRevoke: whose snapshot is ended reads no further, its disk is free, and what
// is left of its rule is there after a restart. Others stay.
func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		db, f, o, _ := canaryFeed(t, disk)
		s, other := pinNow(t, db, "job"), pinNow(t, db, "other")
		defer other.Close()
		ext, err := s.Extents(patients, fhir.None, s.Watermark())
		if err != nil {
			t.Fatal(err)
		}
		file, err := s.File(t.Context(), "f", patients, fhir.None, s.Watermark(), ext)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keep("rows", []byte("CANARY")); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Revoke("job", []byte("left")), db.Revoke("job", []byte("owner"))); err != nil {
			t.Fatal(err)
		}
		if err := file.WriteIdentity(io.Discard, 0, file.Size()); !errors.Is(err, ErrRevoked) {
			t.Errorf("a download under way: %v", err)
		}
		if err := db.Amend("job", []byte("mine"), time.Time{}); !errors.Is(err, ErrRevoked) {
			t.Errorf("its rule is changed: %v", err)
		}
		if err := errors.Join(file.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if list, err := disk.List(db.privateDir("job")); err == nil {
			t.Errorf("left on the disk: %v", list)
		}
		if err := db.Revoke("nobody's", nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("a snapshot that is none: %v", err)
		}
		for _, when := range []string{"at once", "after a restart"} {
			if _, err := db.Snapshot("job"); !errors.Is(err, ErrRevoked) {
				t.Errorf("%s: %v", when, err)
			}
			again, err := db.Snapshot("other")
			if err != nil {
				t.Fatalf("%s: the other: %v", when, err)
			}
			_ = again.Close()
			var rules []string
			for _, p := range db.Pinned() {
				if p.Revoked {
					rules = append(rules, p.ID+" "+string(p.Rule))
				}
			}
			if got := strings.Join(rules, ", "); got != "job owner" {
				t.Errorf("%s: of those that were ended is left: %q", when, got)
			}
			if when == "at once" {
				if err := errors.Join(other.Close(), db.Close()); err != nil {
					t.Fatal(err)
				}
				db = mustOpen(t, "store", o)
			}
		}
		f.db = db
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
