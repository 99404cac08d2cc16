package store

import (
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestTwin: of two versions of one instant the earlier one does not come back when its row is
// written again, for bodies say which version they are; the newest one's row may be written again
// with another body.
func TestTwin(t *testing.T) {
	for _, apart := range []bool{true, false} {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		f := newFeed(t, db)
		at := uint64(0)
		version := func(id, text string, updated fhir.Instant, again bool) Change {
			at += 100
			ch := patientChange("anna", updated, text)
			if id != "" {
				ch.Body = []byte(`{"resourceType":"Patient","id":"anna","meta":{"source":"urn:s","versionId":"` + id + `"},"text":"` + text + `"}`)
			}
			ch.Position, ch.Earlier = at, again
			return ch
		}
		tell := f.commit
		if !apart {
			tell = f.apply
		}
		for _, c := range []struct {
			what string
			ch   Change
			want string
		}{
			{"the first", version("a", "one", 1000, false), "one"},
			{"a second of the same instant", version("b", "two", 1000, false), "two"},
			{"the first's row, written again", version("a", "one", 1000, true), "two"},
			{"the first's row, written again with another body", version("a", "uno", 1000, true), "two"},
			{"the second's row, written again with another body", version("b", "due", 1000, true), "due"},
			{"a later one, written again", version("c", "tre", 1001, true), "tre"},
			{"one that does not say which it is", version("", "quattro", 1001, true), "quattro"},
		} {
			tell(c.ch)
			if err := db.Flush(); apart && err != nil {
				t.Fatal(err)
			}
			if !apart && c.want != "quattro" {
				continue // all are in one commit
			}
			s := db.snapshotNow()
			n, _ := count(t, s, fhir.None, always)
			s.Close()
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
			if all := strings.Split(strings.TrimSpace(bodies(t, db)), "\n"); n != 1 || !strings.Contains(all[len(all)-1], c.want) {
				t.Errorf("apart: %t; after %s: %d rows, the last of %q, want %s", apart, c.what, n, all, c.want)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
