package store

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// both are the two forms of a file.
func both(t *testing.T, f *File, err error) (forms [2]string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var plain, gzip bytes.Buffer
	if err := errors.Join(f.WriteIdentity(&plain, 0, f.Size()), f.WriteGzip(&gzip, 0, f.GzipSize())); err != nil {
		t.Fatal(err)
	}
	return [2]string{plain.String(), gzip.String()}
}

// TestDetach: a copy has the bytes of the file, in both codings, also where rows
// were taken out of its blocks; then nothing keeps the segments, and a restart
// changes nothing. An erasure of what lies in the copies ends the snapshot, one of
// what lay beside it in the segments does not.
func TestDetach(t *testing.T) {
	for _, c := range []struct {
		erased Erasure
		ends   bool
	}{
		{Erasure{Key: fhir.Key{Type: observationType, ID: "o1"}}, true},
		{Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true}, true},
		{Erasure{Key: fhir.Key{Type: patientType, ID: "carl"}, Compartment: true}, false},
		{Erasure{Key: fhir.Key{Type: observationType, ID: "old"}}, false},
	} {
		t.Run(c.erased.Key.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { detach(t, c.erased, c.ends) })
		})
	}
}

func detach(t *testing.T, erased Erasure, ends bool) {
	fs := vfs.NewMem()
	o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
	db := mustOpen(t, "store", o)
	defer func() { db.Close() }()
	f := newFeed(t, db)
	f.advance(time.Second)
	f.commit(patientChange("carl", fhir.None, "beside"), observationOf("o1", "anna", "1"), observationOf("o2", "ben", "2"), observationOf("old", "ben", "3"))
	f.advance(time.Second)
	f.commit(observationOf("o3", "ben", "4"))
	gone := observationOf("old", "ben", "")
	gone.Delete, gone.Body = true, nil
	f.commit(gone)
	f.advance(time.Second)

	sec := segment.Section{Kind: segment.Live, Type: observationType}
	s := pinOnly(t, db, "page", observationType)
	ext, err := s.Extents(sec, fhir.None, s.Watermark())
	if err != nil || len(ext) != 2 || ext[0].Whole {
		t.Fatal(ext, err)
	}
	if s.Holds() == 0 {
		t.Error("it holds nothing")
	}
	file, err := s.File(t.Context(), "f1", sec, fhir.None, s.Watermark(), ext)
	want := both(t, file, err)
	if err := errors.Join(s.Copy(t.Context(), "f1", sec, fhir.None, s.Watermark(), ext), db.Detach("page", []byte("rule")), s.Close()); err != nil {
		t.Fatal(err)
	}
	f.advance(time.Hour)
	rewriteAll(t, db)
	if n := len(db.segs) - db.view.len(); n != 0 {
		t.Errorf("%d merged segments are still there", n)
	}
	for range 2 {
		s, err := db.Snapshot("page")
		if err != nil {
			t.Fatal(err)
		}
		file, err := s.Made("f1")
		if diff := cmp.Diff(want, both(t, file, err)); diff != "" || string(s.Rule()) != "rule" || s.Holds() != 0 {
			t.Errorf("rule %s, holds %d (-want +got):\n%s", s.Rule(), s.Holds(), diff)
		}
		if err := errors.Join(s.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
	}
	newFeed(t, db)
	done, err := db.Erase(t.Context(), erased)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Snapshot("page")
	if got := errors.Is(err, ErrRevoked); got != ends || slices.Contains(done.Jobs, "page") != ends {
		t.Errorf("ended: %v (%v), want %v", got, err, ends)
	}
	if left, _ := fs.List(fs.PathJoin("store", "jobs", "page")); (len(left) == 0) != ends {
		t.Errorf("left of it: %s", strings.Join(left, " "))
	}
	if _, err := db.Check(true); err != nil {
		t.Error(err)
	}
}

// TestKeepKeys: who makes files of his own of some rows lists these, so that an erasure of
// one of them ends the snapshot that holds nothing else any more, and of another does not.
func TestKeepKeys(t *testing.T) {
	for erased, ends := range map[Erasure]bool{
		{Key: fhir.Key{Type: observationType, ID: "o1"}}:                  true,
		{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true}: true,
		{Key: fhir.Key{Type: observationType, ID: "o2"}}:                  false,
		{Key: fhir.Key{Type: patientType, ID: "ben"}, Compartment: true}:  false,
	} {
		synctest.Test(t, func(t *testing.T) {
			db := mustOpen(t, "store", Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Allowance: time.Millisecond})
			defer db.Close()
			f := newFeed(t, db)
			f.advance(time.Second)
			f.commit(observationOf("o1", "anna", "1"), observationOf("o2", "ben", "2"))
			f.advance(time.Second)
			s := pinOnly(t, db, "page", observationType)
			ext, err := s.Extents(segment.Section{Kind: segment.Live, Type: observationType}, fhir.None, s.Watermark())
			if err != nil {
				t.Fatal(err)
			}
			ext, _, err = s.Filter(t.Context(), fhir.None, s.Watermark(), ext, func(line []byte) bool { return bytes.Contains(line, []byte(`"o1"`)) }, func() {})
			if err := errors.Join(err, s.KeepKeys("f1", fhir.None, s.Watermark(), ext)); err != nil {
				t.Fatal(err)
			}
			d, err := s.Draft("f1")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Add([]byte("changed\n")), d.Keep(), db.Detach("page", []byte("rule")), s.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Erase(t.Context(), erased); err != nil {
				t.Fatal(err)
			}
			s, err = db.Snapshot("page")
			if errors.Is(err, ErrRevoked) != ends {
				t.Errorf("%v: %v, want an end: %v", erased.Key, err, ends)
			}
			if err == nil {
				s.Close()
			}
		})
	}
}

// A list of keys that is damaged may hold anything.
func TestDamagedKeys(t *testing.T) {
	l := &erasedList{key: []byte("k"), list: map[erasedHash]struct{}{}}
	l.list[l.hashOf(erasedResource, "Patient/other")] = struct{}{}
	good := "Patient/anna\tanna\n32d43e2d\n"
	if l.refusesAny([]byte(good)) {
		t.Error("a list without anything erased is refused: is its sum right?")
	}
	for _, bad := range []string{"", "x", strings.Replace(good, "anna", "anne", 1), good[1:], strings.Replace(good, "32d", "33d", 1)} {
		if !l.refusesAny([]byte(bad)) {
			t.Errorf("%q is taken for whole", bad)
		}
	}
}
