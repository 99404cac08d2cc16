package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

func observationOf(id, patient, text string) Change {
	ch := patientChange(patient, fhir.None, text)
	ch.Key = fhir.Key{Type: observationType, ID: id}
	ch.Body = fmt.Appendf(nil, `{"resourceType":"Observation","id":"%s","subject":{"reference":"Patient/%s"},"text":"%s"}`, id, patient, text)
	return ch
}

// canaryFeed fills a store with a patient's rows in every place where rows can
// be: settled and fresh segments, earlier versions, rows that moved to another
// patient, dead letters, files of a job. What must go says CANARY.
func canaryFeed(t *testing.T, fs vfs.FS) (*DB, *feed, Options, []Change) {
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
	letter := func(value string) Change {
		return Change{Dead: &DeadLetter{Reason: "no JSON", Value: []byte(value)}, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
	}
	f.advance(time.Second)
	commit(patientChange("anna", fhir.None, "CANARY 1"), patientChange("ben", fhir.None, "stays"),
		observationOf("o1", "anna", "CANARY 2"), observationOf("o2", "ben", "stays"), observationOf("moved", "anna", "CANARY 3"),
		letter(`{"resourceType":"Observation","subject":{"reference":"Patient/anna"},"x":CANARY}`), letter(`{"id": "annabel", stays`))
	f.advance(time.Hour)
	commit(patientChange("anna", fhir.None, "CANARY 4"), observationOf("moved", "ben", "stays"), observationOf("o3", "anna", "CANARY 5"))
	f.advance(time.Minute)
	rewriteAll(t, db)
	if len(db.view.settled) < 2 {
		t.Fatalf("%d settled segments", len(db.view.settled))
	}
	commit(observationOf("o4", "anna", "CANARY 6"))
	f.advance(time.Second)
	return db, f, o, log
}

// found tells where in a store's files a text stands, decompressed.
func found(t *testing.T, fs vfs.FS, dir, text string) (where []string) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		path := fs.PathJoin(dir, n)
		st, err := fs.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // the index clears up after itself meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			where = append(where, found(t, fs, path, text)...)
			continue
		}
		file, err := fs.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(file)
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		if id, ok := segment.ParseName(n); ok && n == id.BodyName() {
			raw = gunzip(t, raw)
		}
		if bytes.Contains(raw, []byte(text)) {
			where = append(where, path)
		}
	}
	return where
}

// TestErase: a patient's compartment is found nowhere any more, clients are
// told, and nothing brings it back: not the topic read again from its beginning,
// not an index made anew from segments among which an old one reappeared.
func TestErase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, f, o, log := canaryFeed(t, fs)
		defer func() { db.Close() }()
		f.advance(time.Second)
		job := pinNow(t, db, "job")
		if _, err := content(job); err != nil { // which cuts a block for the job
			t.Fatal(err)
		}
		since := job.Watermark()
		if err := job.Close(); err != nil {
			t.Fatal(err)
		}
		old := copyFiles(t, fs, "store/segments")
		if where := found(t, fs, "store", "CANARY"); len(where) == 0 {
			t.Fatal("the canary is nowhere to begin with")
		}
		done, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true})
		if err != nil {
			t.Fatal(err)
		}
		if done.Resources != 4 || done.DeadLetters != 1 || !slices.Equal(done.Jobs, []string{"job"}) {
			t.Errorf("erased: %+v", done)
		}
		wantLetters := 1 // annabel is somebody else
		gone := func(when string) {
			t.Helper()
			if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
				t.Errorf("%s: the canary is in %v", when, where)
			}
			if _, err := db.Check(true); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			// One of them was the erased patient's once: sent again, it moves there
			// and back.
			others := map[string]bool{}
			for line := range strings.Lines(bodies(t, db)) {
				if strings.Contains(line, "stays") {
					others[line] = true
				}
			}
			if len(others) != 3 {
				t.Errorf("%s: of others this is left: %v", when, others)
			}
			letters := 0
			err := db.DeadLetters("", func(l DeadLetterRow) error { // their bytes are in base64
				if letters++; bytes.Contains(l.Value, []byte("CANARY")) {
					t.Errorf("%s: the canary is in a dead letter", when)
				}
				return nil
			})
			if err != nil || letters != wantLetters {
				t.Errorf("%s: %d dead letters are left, want %d (%v)", when, letters, wantLetters, err)
			}
		}
		gone("at once")
		if _, err := db.Snapshot("job"); !errors.Is(err, ErrRevoked) {
			t.Errorf("the job that held it: %v", err)
		}
		f.advance(time.Second)
		next := pinNow(t, db, "next")
		deleted := map[string]bool{}
		for _, sec := range next.Sections(segment.Deleted) {
			for key := range deletions(t, next, sec, since) {
				deleted[key] = true
			}
		}
		for _, key := range []string{"Patient/anna", "Observation/o1", "Observation/o3", "Observation/o4"} {
			if !deleted[key] {
				t.Errorf("clients are not told that %s is gone", key)
			}
		}
		if len(deleted) != 4 {
			t.Errorf("deleted: %v", deleted)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		// Another store's beginning: the topic is read again.
		f.commit(log...)
		wantLetters++
		f.commit(observationOf("o5", "anna", "CANARY new"))
		gone("after a replay")
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		if _, err := db.Snapshot("job"); !errors.Is(err, ErrRevoked) {
			t.Errorf("after a restart the job that held it: %v", err)
		}
		f.db = db
		newFeed(t, db)
		f.commit(log...)
		wantLetters++
		gone("after a restart and a replay")
		// Files come back from somewhere, and the index is made anew.
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		for name, data := range old {
			if _, err := fs.Stat("store/segments/" + name); err != nil {
				writeFile(t, fs, "store/segments/"+name, data)
			}
		}
		if err := fs.RemoveAll("store/index"); err != nil {
			t.Fatal(err)
		}
		if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		again, err := db.EnforceErasures(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, where := range again.Elsewhere { // reindex puts aside what it does not use, and says so
			if err := fs.RemoveAll(strings.TrimPrefix(where, "folder ")); err != nil {
				t.Fatal(err)
			}
		}
		if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
			t.Errorf("after reindex: the canary is in %v", where)
		}
		if _, err := db.Check(true); err != nil {
			t.Error(err)
		}
	})
}

// TestEraseOne takes out one resource and leaves its neighbours.
func TestEraseOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, f, _, _ := canaryFeed(t, fs)
		defer db.Close()
		before := strings.Count(bodies(t, db), "CANARY")
		done, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: observationType, ID: "o3"}})
		if err != nil || done.Resources != 1 || done.Rows != 1 {
			t.Fatalf("erased %+v, %v", done, err)
		}
		if got := bodies(t, db); strings.Contains(got, "CANARY 5") || strings.Count(got, "CANARY") != before-1 {
			t.Errorf("of %d canaries %d are left", before, strings.Count(got, "CANARY"))
		}
		f.commit(observationOf("o3", "ben", "CANARY 5"), observationOf("o6", "anna", "living"))
		if got := bodies(t, db); strings.Contains(got, "CANARY 5") || !strings.Contains(got, "living") {
			t.Errorf("what came later: %s", got)
		}
		if _, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: observationType, ID: "o3"}, Compartment: true}); err == nil {
			t.Error("the compartment of an Observation was erased")
		}
	})
}

// TestEraseStopsDownloads: a download under way ends at the next block.
func TestEraseStopsDownloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, _, _, _ := canaryFeed(t, vfs.NewMem())
		defer db.Close()
		s := pinNow(t, db, "job")
		defer s.Close()
		ext, err := s.Extents(patients, fhir.None, s.Watermark())
		if err != nil {
			t.Fatal(err)
		}
		file, err := s.File(t.Context(), "f", patients, fhir.None, s.Watermark(), ext)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}}); err != nil {
			t.Fatal(err)
		}
		if err := file.WriteGzip(io.Discard, 0, file.GzipSize()); !errors.Is(err, ErrRevoked) {
			t.Errorf("gzip: %v", err)
		}
		if err := file.WriteIdentity(io.Discard, 0, file.Size()); !errors.Is(err, ErrRevoked) {
			t.Errorf("identity: %v", err)
		}
	})
}

// TestEraseCutShort lets an erasure fail at every write in turn: asked for
// again it ends, and what it should erase is refused from the first moment on.
func TestEraseCutShort(t *testing.T) {
	eraseCutShort(t, canaryFeed)
}

func eraseCutShort(t *testing.T, fill func(*testing.T, vfs.FS) (*DB, *feed, Options, []Change)) {
	for n := 1; ; n += eachOf | 1 { // by an odd number: of two kinds of faults each comes
		ended := false
		synctest.Test(t, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			var mu sync.Mutex // the two files of a segment are synced side by side
			left := -1
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || isIndex(op.Path) || left < 0 {
					return nil
				}
				if left--; left < 0 {
					return []error{errorfs.ErrInjected, syscall.ENOSPC}[n%2]
				}
				return nil
			}))
			db, _, o, log := fill(t, fs)
			e := Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true}
			mu.Lock()
			left = n
			mu.Unlock()
			_, err := db.Erase(t.Context(), e)
			ended = err == nil
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
			db = mustOpen(t, "store", o)
			defer db.Close()
			newFeed(t, db)
			if _, err := db.Erase(t.Context(), e); err != nil {
				t.Fatalf("after a fault at write %d: %v", n, err)
			}
			f := &feed{t: t, db: db}
			if st, ok := db.Partition(part0); ok {
				f.next = st.Next
			}
			f.commit(log...)
			if where := found(t, o.FS, "store", "CANARY"); len(where) > 0 {
				t.Errorf("after a fault at write %d: the canary is in %v", n, where)
			}
			if _, err := db.Check(true); err != nil {
				t.Errorf("after a fault at write %d: %v", n, err)
			}
		})
		if ended || t.Failed() {
			t.Logf("%d writes", n-1)
			if n < 10 {
				t.Error("too few writes were tried")
			}
			return
		}
	}
}

func deletions(t *testing.T, s *Snapshot, sec segment.Section, since fhir.Instant) map[string]bool {
	t.Helper()
	ext, err := s.Extents(sec, since, s.Watermark())
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File(context.Background(), "d"+sec.Type.String(), sec, since, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var w lineWriter
	if err := f.WriteIdentity(&w, 0, f.Size()); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for line := range strings.Lines(string(w.b)) {
		keys[deletedKey(t, line)] = true
	}
	return keys
}

func copyFiles(t *testing.T, fs vfs.FS, dir string) map[string][]byte {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, n := range names {
		f, err := fs.Open(fs.PathJoin(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		files[n], err = io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func writeFile(t *testing.T, fs vfs.FS, path string, data []byte) {
	t.Helper()
	f, err := fs.Create(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(bytes.Clone(data))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestEraseAndGroups: earlier versions of Groups that name an erased Patient go.
// What lives stays, for it is about the other members, and is said; once the
// source has changed it, erasing again takes the version that named it.
func TestEraseAndGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("anna", fhir.None, ""), patientChange("ben", fhir.None, ""),
			groupChange("left", "Patient/anna", "Patient/ben"), groupChange("lists", "Patient/anna", "Patient/ben"))
		f.advance(time.Second)
		f.commit(groupChange("left", "Patient/ben"))
		f.advance(time.Second)
		erase := func() string {
			t.Helper()
			done, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true})
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%d bodies name her, those of %v live", strings.Count(bodies(t, db), `"reference":"Patient/anna"`), done.Groups)
		}
		if got, want := erase(), "1 bodies name her, those of [lists] live"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		f.commit(groupChange("lists", "Patient/ben"))
		f.advance(time.Second)
		if got, want := erase(), "0 bodies name her, those of [] live"; got != want {
			t.Errorf("after the source changed it: %s, want %s", got, want)
		}
		if _, err := db.Check(true); err != nil {
			t.Error(err)
		}
	})
}

// TestEraseDuringKickOffs: exports start all the while. None that can still be
// opened afterwards holds what was erased.
func TestEraseDuringKickOffs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, _, _, _ := canaryFeed(t, fs)
		defer db.Close()
		ctx, stop := context.WithCancel(t.Context())
		var started sync.WaitGroup
		for g := range 3 {
			started.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					s, err := db.Pin(ctx, fmt.Sprintf("job-%d-%d", g, i), time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
					if err != nil {
						t.Error(err)
						return
					}
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		_, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true})
		stop()
		started.Wait()
		if err != nil {
			t.Fatal(err)
		}
		ended := 0
		for _, p := range db.Pinned() {
			s, err := db.Snapshot(p.ID)
			if errors.Is(err, ErrRevoked) {
				ended++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := content(s)
			if err := errors.Join(err, s.Close()); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(fmt.Sprint(got), "CANARY") {
				t.Errorf("%s can still be opened and holds the canary", p.ID)
			}
		}
		t.Logf("%d of %d jobs were ended", ended, len(db.Pinned()))
		if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
			t.Errorf("the canary is in %v", where)
		}
	})
}
