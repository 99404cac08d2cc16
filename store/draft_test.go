package store

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestDraft: what was made line by line is read as every output file is, also by
// the next process; what was not kept leaves nothing behind.
func TestDraft(t *testing.T) {
	fs := vfs.NewMem()
	open := func() (*DB, *Snapshot) {
		db := mustOpen(t, "store", Options{FS: fs})
		snap, err := db.Snapshot("job")
		if errors.Is(err, ErrNotFound) {
			newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
			snap, err = db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
		}
		if err != nil {
			t.Fatal(err)
		}
		return db, snap
	}
	draft := func(s *Snapshot, name string) *Draft {
		d, err := s.Draft(name)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	db, snap := open()
	var want bytes.Buffer
	d := draft(snap, "f1")
	for i := 0; want.Len() < 2*segment.BlockSize+5000; i++ {
		line := fmt.Appendf(nil, `{"n":%d,"text":"%s"}`+"\n", i, strings.Repeat("x", 900))
		want.Write(line)
		if err := d.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := snap.Made("f1"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("before it is kept: %v", err)
	}
	none := draft(snap, "f2")
	if err := errors.Join(d.Keep(), none.Keep()); err != nil {
		t.Fatal(err)
	}
	other := draft(snap, "f3")
	if err := errors.Join(other.Add([]byte("{}\n")), other.Discard()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List(db.privateDir("job"))
	if err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
	check := func(name, want string) {
		t.Helper()
		f, err := snap.Made(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var plain, packed bytes.Buffer
		if err := errors.Join(f.WriteIdentity(&plain, 0, f.Size()), f.WriteGzip(&packed, 0, f.GzipSize())); err != nil {
			t.Fatal(err)
		}
		zr, err := gzip.NewReader(&packed)
		if err != nil {
			t.Fatal(err)
		}
		unpacked, err := io.ReadAll(zr)
		if plain.String() != want || string(unpacked) != want || err != nil {
			t.Errorf("%s: %d bytes, %d unpacked, want %d: %v", name, plain.Len(), len(unpacked), len(want), err)
		}
	}
	check("f1", want.String())
	check("f2", "")
	if err := errors.Join(snap.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	db, snap = open()
	check("f1", want.String())

	damage(t, fs, fs.PathJoin(db.privateDir("job"), "f2.made"))
	if _, err := snap.Made("f2"); !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "job/") {
		t.Errorf("of a damaged file: %v", err)
	}
	d = draft(snap, "f4")
	snap.of.revoked.Store(true)
	if err := d.Keep(); !errors.Is(err, ErrRevoked) {
		t.Errorf("after an erasure: %v", err)
	}
	if _, err := snap.Made("f1"); !errors.Is(err, ErrRevoked) {
		t.Errorf("after an erasure: %v", err)
	}
	if err := errors.Join(snap.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
}
