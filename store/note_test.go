package store

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestRemember: what intake wants to know again is there after a crash, and in an index
// that is made anew.
func TestRemember(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := Options{FS: fs, Allowance: time.Millisecond, still: true}
	db := mustOpen(t, "store", o)
	newFeed(t, db).commit(patientChange("anna", fhir.None, "")) // a store without rows cannot be indexed anew
	want := func(name, what string) {
		t.Helper()
		if got, err := db.Remembered(name); err != nil || string(got) != what {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	want("a", "")
	for _, what := range []string{"1", "2"} {
		if err := db.Remember("a", []byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	want("a", "2")
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	lost := db
	db = mustOpen(t, "store", o)
	want("a", "2")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Remember("a", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a store that is closed remembers: %v", err)
	}
	if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, "store", o)
	want("a", "2")
	db.Close()
	lost.Close()
}
