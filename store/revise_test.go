package store

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestRevise: a change that is made of the newest version is made of the one that is newest
// where it stands, also within a commit; of what does not live nothing is made, or a letter.
func TestRevise(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	seen := ""
	revise := func(id, from, to string, dead *DeadLetter) Change {
		ch := patientChange(id, fhir.None, "")
		ch.Body, ch.Patients, ch.Dead = nil, nil, dead
		ch.Revise = func(line []byte) (Change, bool) {
			seen = string(line)
			now := patientChange(id, fhir.None, "")
			now.Body = bytes.Replace(line, []byte(from), []byte(to), 1)
			return now, from != to
		}
		return ch
	}
	letter := &DeadLetter{Reason: "no body", Value: []byte("a record")}
	letters := func() (n int) {
		if err := db.DeadLetters("", func(DeadLetterRow) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	want := func(text string, live int) {
		t.Helper()
		all := bodies(t, db)
		if !strings.Contains(all, text) {
			t.Errorf("%q is not in\n%s", text, all)
		}
		now := db.snapshotNow()
		defer now.Close()
		if n, _ := count(t, now, fhir.None, always); n != live {
			t.Errorf("%d live rows after %s, want %d", n, text, live)
		}
	}
	f.commit(patientChange("anna", 1000, "one"), revise("anna", "one", "two", letter))
	want(`"text":"two"`, 1)
	f.commit(revise("anna", "two", "three", letter))
	want(`"text":"three"`, 1)
	if seen != `{"resourceType":"Patient","id":"anna","text":"two"}` {
		t.Errorf("what is revised is %q", seen)
	}
	rows := db.Status().Rows
	f.commit(revise("anna", "three", "three", letter), revise("bert", "", "x", nil))
	if now := db.Status().Rows; now != rows || letters() != 0 {
		t.Errorf("%d rows and %d letters of what changes nothing", now-rows, letters())
	}
	f.commit(revise("bert", "", "x", letter))
	gone := patientChange("anna", fhir.None, "")
	gone.Delete, gone.Body = true, nil
	f.commit(gone, revise("anna", "three", "four", letter))
	if n := letters(); n != 2 {
		t.Errorf("%d letters of two records whose bodies are unknown", n)
	}
	want(`"text":"three"`, 0)
}

// TestRevisesNoEndedLife: what a source tells again of a resource that was deleted since is
// no dead letter though its body is left out; what it tells of a new life is.
func TestRevisesNoEndedLife(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	live, gone := patientChange("anna", 1000, "one"), patientChange("anna", 2000, "")
	gone.Delete, gone.Body = true, nil
	live.Version, live.Position, gone.Version, gone.Position = 1, 10, 2, 20
	f.commit(live, gone)
	never := patientChange("nobody", fhir.None, "")
	never.Delete, never.Body, never.Position = true, nil, 20
	f.commit(never)
	for _, c := range []struct {
		what     string
		version  int64
		updated  fhir.Instant
		position uint64
		letters  int
	}{
		{"an earlier place in the log than the deletion of what was never here", NoVersion, fhir.None, 15, 0},
		{"an earlier version", 1, 1000, 30, 0},
		{"an earlier place in the log", NoVersion, fhir.None, 15, 0},
		{"a later version", 3, 3000, 40, 1},
		{"nothing", NoVersion, fhir.None, 0, 2},
	} {
		again := patientChange("anna", c.updated, "")
		if strings.Contains(c.what, "never") {
			again.Key.ID = "nobody"
		}
		again.Body, again.Patients, again.Version, again.Position = nil, nil, c.version, c.position
		again.Dead = &DeadLetter{Reason: "no body", Value: []byte("a record")}
		again.Revise = func([]byte) (Change, bool) { return Change{}, false }
		f.commit(again)
		n := 0
		if err := db.DeadLetters("", func(DeadLetterRow) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		if n != c.letters {
			t.Errorf("%d letters after what says %s, want %d", n, c.what, c.letters)
		}
	}
}

// TestInjectsWhatWasSaid: version and instant that the source says beside a body are those
// that its meta gets; what it does not say is a number of ours and the change instant.
func TestInjectsWhatWasSaid(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	change := func(id string, version int64, updated fhir.Instant) Change {
		ch := patientChange(id, updated, "")
		var s fhir.Scanner
		r, err := s.Scan(ch.Body)
		if err != nil {
			t.Fatal(err)
		}
		ch.Version, ch.Meta = version, r.Meta
		return ch
	}
	f.commit(change("anna", 7, 1_700_000_000_123), change("bert", NoVersion, fhir.None))
	f.commit(change("anna", 8, 1_600_000_000_000)) // late: its instant is another one
	f.commit(change("cleo", 3, 253402300800000))   // the year 10000
	all := bodies(t, db)
	for _, want := range []string{
		`"versionId":"7","lastUpdated":"2023-11-14T22:13:20.123Z"`, `"versionId":"8","lastUpdated":"2020-09-13T12:26:40.000Z"`, `"id":"bert","meta":{"versionId":"2"`,
		`"id":"cleo","meta":{"versionId":"3","lastUpdated":"20`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not in\n%s", want, all)
		}
	}
}
