package store

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

var freeze = flag.Bool("freeze", false, "TestFrozen writes the frozen store of the present format anew, as it must be once, when the format's version is raised")

// frozenOptions are those of a frozen store. Time begins in 2000 with each test.
func frozenOptions() Options {
	return Options{SettleAfter: time.Minute, Allowance: time.Millisecond, LastState: 10 * time.Hour, Deleted: 1000 * time.Hour, smallFile: 1}
}

// TestFrozen opens the store of each format that there was, as the release wrote
// it that brought the format: what it held is told as then, and it goes on.
func TestFrozen(t *testing.T) {
	present := fmt.Sprintf("../testdata/frozen/segments-%d-index-%d.zip", segment.Version, index.Format)
	if *freeze {
		synctest.Test(t, func(t *testing.T) { freezeStore(t, present) })
	}
	files, err := filepath.Glob("../testdata/frozen/*.zip")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(files, filepath.FromSlash(present)) {
		t.Errorf("there is no %s: run go test ./store -run TestFrozen -freeze, and keep those that there are", present)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".zip"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { thawStore(t, file) })
		})
	}
}

// freezeStore writes a store with all that the format knows, and what it held.
func freezeStore(t *testing.T, file string) {
	dir, o := t.TempDir(), frozenOptions()
	db := mustOpen(t, dir, o)
	f := newFeed(t, db)
	pin := func(id string) {
		s := pinNow(t, db, id)
		if _, err := told(s, fhir.None); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f.advance(time.Second)
	f.commit(frozenHistory()...)
	f.advance(time.Minute)
	f.commit(deletionOf("gone"), patientChange("anna", fhir.None, "second"), observationOf("moves", "ben", "second"))
	f.advance(time.Second)
	pin("ended")
	if _, err := db.Erase(context.Background(), Erasure{Key: fhir.Key{Type: patientType, ID: "erased"}}); err != nil {
		t.Fatal(err)
	}
	pin("first")
	f.advance(time.Hour)
	rewriteAll(t, db)
	f.commit(deletionOf("late"), groupChange("g", "Patient/ben"), patientChange("new", fhir.None, "only"))
	f.advance(11 * time.Hour)
	rewriteAll(t, db) // the last state of what is gone goes, and that of what went late is one
	f.commit(deletionOf("ben"), observationOf("o1", "anna", "second"))
	f.advance(2 * time.Hour)
	rewriteAll(t, db)
	f.commit(patientChange("anna", fhir.None, "third"))
	f.advance(time.Second)
	pin("second")
	f.commit(patientChange("new", fhir.None, "changed"))
	f.advance(time.Second)
	text := describe(t, db)
	kinds := map[segment.Kind]int{}
	for _, g := range db.view.all() {
		for _, info := range g.r.Sections() {
			kinds[info.Kind]++
		}
	}
	if len(kinds) != 4 {
		t.Errorf("not all kinds of rows are in the frozen store: %v", kinds)
	}
	if len(db.view.fresh) == 0 || len(db.view.settled) < 2 {
		t.Errorf("%d fresh segments, %d settled", len(db.view.fresh), len(db.view.settled))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(archive(dir, file), os.WriteFile(strings.TrimSuffix(file, ".zip")+".txt", []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// frozenHistory is how the source began.
func frozenHistory() []Change {
	stated := patientChange("stated", fhir.FromTime(time.Now()), "its own version and time")
	stated.Version = 7
	letter := Change{
		Dead:    &DeadLetter{Reason: "no JSON", Key: []byte("k"), Value: []byte("{"), Headers: []Header{{Key: "h", Value: []byte("v")}}},
		Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
	}
	list := []Change{
		patientChange("anna", fhir.None, "first"), patientChange("ben", fhir.None, "first"), patientChange("gone", fhir.None, "first"),
		patientChange("late", fhir.None, "first"), patientChange("erased", fhir.None, "CANARY"), stated,
		referring(observationOf("o1", "anna", "first"), "Practitioner/dr"), observationOf("moves", "anna", "first"),
		groupChange("g", "Patient/anna", "Patient/ben"), letter,
	}
	for i := range 12 {
		list = append(list, observationOf(fmt.Sprintf("many-%02d", i), []string{"anna", "ben", "stated"}[i%3], "one of many"))
	}
	list[10] = referring(list[10], "Binary/scan")
	return list
}

// referring makes a change refer to what lies in nobody's compartment.
func referring(ch Change, ref string) Change {
	key, err := fhir.ParseKey(ref)
	if err != nil {
		panic(err)
	}
	ch.References = append(ch.References, key)
	ch.Body = fmt.Appendf(ch.Body[:len(ch.Body)-1], `,"performer":[{"reference":"%s"}]}`, ref)
	return ch
}

func groupChange(id string, refs ...string) Change {
	ch := patientChange(id, fhir.None, "")
	ch.Key, ch.Patients = fhir.Key{Type: groupType, ID: id}, nil // a Group lies in its members' compartments
	var list []string
	for _, ref := range refs {
		ch.Members = append(ch.Members, fhir.Member{Ref: ref, Start: fhir.None, End: fhir.None})
		ch.Patients = append(ch.Patients, strings.TrimPrefix(ref, "Patient/"))
		list = append(list, fmt.Sprintf(`{"entity":{"reference":"%s"}}`, ref))
	}
	ch.Body = fmt.Appendf(nil, `{"resourceType":"Group","id":"%s","member":[%s]}`, id, strings.Join(list, ","))
	return ch
}

// thawStore opens a frozen store and lets it live on.
func thawStore(t *testing.T, file string) {
	dir, o := t.TempDir(), frozenOptions()
	if err := unarchive(dir, file); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(strings.TrimSuffix(file, ".zip") + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	db := mustOpen(t, dir, o)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	same := func(what, want string) {
		t.Helper()
		if d := cmp.Diff(want, describe(t, db)); d != "" {
			t.Errorf("%s (-then +now):\n%s", what, d)
		}
		if _, err := db.Check(true); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	same("as it was frozen", string(was))
	f := newFeed(t, db)
	f.commit(frozenHistory()...) // the source begins anew
	f.advance(time.Second)
	if text := bodies(t, db); strings.Contains(text, "CANARY") {
		t.Error("what was erased came back")
	}
	f.commit(patientChange("anna", fhir.None, "fourth"), deletionOf("stated"), groupChange("g", "Patient/anna"))
	f.advance(48 * time.Hour)
	rewriteAll(t, db)
	later := describe(t, db)
	for _, line := range []string{`"text":"fourth"`, `"url":"Patient/stated"`, `"joined":["Patient/anna"]}`, `"left":["Patient/ben"]`} {
		if !strings.Contains(later, line) {
			t.Errorf("it does not go on: nothing says %s in\n%s", line, later)
		}
	}
	if _, err := db.Check(true); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"ended", "first", "second"} {
		if err := db.Unpin(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
	later = describe(t, db)
	if err := errors.Join(db.Close(), os.RemoveAll(filepath.Join(dir, "index")), Reindex(context.Background(), dir, o, io.Discard)); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, dir, o)
	newFeed(t, db)
	same("after reindex", later)
}

// describe is all that a store tells: what its exports hold, whole and since the
// first, and what it tells nobody.
func describe(t *testing.T, db *DB) string {
	t.Helper()
	var out strings.Builder
	since := fhir.None
	add := func(name string, s *Snapshot) {
		for _, from := range []fhir.Instant{fhir.None, since} {
			text, err := told(s, from)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "# %s, since %v\n%s", name, from, text)
			if since == fhir.None {
				break
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"ended", "first", "second"} {
		s, err := db.Snapshot(id)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrRevoked) {
			fmt.Fprintf(&out, "# %s: %v\n", id, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		add(id, s)
		since = s.Watermark()
	}
	add("now", pinNow(t, db, "now"))
	if err := db.Unpin(context.Background(), "now"); err != nil {
		t.Fatal(err)
	}
	err := db.DeadLetters("", func(d DeadLetterRow) error {
		fmt.Fprintf(&out, "dead letter at %d: %s, key %q, value %q, headers %q\n", d.Offset, d.Reason, d.Key, d.Value, d.Headers)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// told is what a snapshot holds of each kind, as lines in an order of their own.
func told(s *Snapshot, since fhir.Instant) (string, error) {
	var lines []string
	for _, kind := range []segment.Kind{segment.Live, segment.Deleted, segment.Internal, segment.Last} {
		for _, sec := range s.Sections(kind) {
			ext, err := s.Extents(sec, since, s.Watermark())
			if err != nil {
				return "", err
			}
			f, err := s.File(context.Background(), fmt.Sprintf("%s-%s-%d", kind, sec.Type, since), sec, since, s.Watermark(), ext)
			if err != nil {
				return "", err
			}
			var w lineWriter
			if err := errors.Join(f.WriteIdentity(&w, 0, f.Size()), f.Close()); err != nil {
				return "", err
			}
			for line := range strings.Lines(string(w.b)) {
				lines = append(lines, fmt.Sprintf("%s %s", sec, line))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// archive packs the files of a folder.
func archive(dir, file string) error {
	var packed bytes.Buffer
	z := zip.NewWriter(&packed)
	if err := errors.Join(z.AddFS(os.DirFS(dir)), z.Close(), os.MkdirAll(filepath.Dir(file), 0o755)); err != nil {
		return err
	}
	return os.WriteFile(file, packed.Bytes(), 0o644)
}

// unarchive puts the files of an archive into a folder.
func unarchive(dir, file string) error {
	z, err := zip.OpenReader(file)
	if err != nil {
		return err
	}
	return errors.Join(os.CopyFS(dir, z), z.Close())
}
