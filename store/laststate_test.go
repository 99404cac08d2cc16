package store

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestReadLastStates: what was deleted is shown as it was, wherever its row has got to
// meanwhile, until it is forgotten or back.
func TestReadLastStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, LastState: time.Hour, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.advance(time.Second)
		remove := func(id string) Change {
			return Change{Key: fhir.Key{Type: patientType, ID: id}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
		}
		states := func(since fhir.Instant) string {
			t.Helper()
			s := pinNow(t, db, "job")
			defer s.Close()
			var list []string
			err := s.LastStates(t.Context(), patientType, since, func(line []byte) error {
				_, text, _ := strings.Cut(string(line), `"text":"`)
				list = append(list, text[:strings.IndexByte(text, '"')])
				return nil
			})
			if err := errors.Join(err, db.Unpin(t.Context(), "job")); err != nil {
				t.Fatal(err)
			}
			slices.Sort(list)
			return strings.Join(list, " ")
		}
		f.commit(patientChange("long-dead", fhir.None, "long-dead"), patientChange("a", fhir.None, "a1"), patientChange("b", fhir.None, "b1"), patientChange("back", fhir.None, "back1"), patientChange("lives", fhir.None, "lives1"))
		f.advance(time.Second)
		f.commit(remove("long-dead"))
		f.advance(time.Second)
		since := db.Promised()
		f.commit(patientChange("a", fhir.None, "a2"), patientChange("lives", fhir.None, "lives2"))
		f.advance(time.Second)
		f.commit(remove("a"), remove("back"))
		f.advance(time.Second)
		f.commit(patientChange("back", fhir.None, "back2"), remove("b"))
		f.advance(time.Second)
		for _, step := range []struct {
			wait time.Duration
			want string
		}{{0, "a2 b1"}, {10 * time.Minute, "a2 b1"}, {20 * time.Minute, "a2 b1"}, {2 * time.Hour, ""}} {
			f.advance(step.wait)
			if step.wait > 0 {
				f.commit(patientChange("lives", fhir.None, step.wait.String()))
				f.advance(time.Second)
				rewriteAll(t, db)
			}
			if got := states(since); got != step.want {
				t.Errorf("after %v: %q, want %q", step.wait, got, step.want)
			}
			if step.wait == 10*time.Minute {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = mustOpen(t, "store", o)
				f = newFeed(t, db)
				f.advance(time.Second)
			}
		}
		if got := states(db.Promised()); got != "" {
			t.Errorf("deleted before the window: %q", got)
		}
	})
}
