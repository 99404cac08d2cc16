package store

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
)

// TestScratch: it is read from its beginning, by two at once, and leaves nothing; a
// disk that refuses it says that there is no room, and not whose file it is.
func TestScratch(t *testing.T) {
	fs := vfs.NewMem()
	refuse := false
	faulty := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if refuse && op.Kind == errorfs.OpFileWrite {
			return syscall.ENOSPC
		}
		return nil
	}))
	db := mustOpen(t, "store", Options{FS: faulty})
	defer db.Close()
	newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
	snap, err := db.Pin(t.Context(), "secret", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	f, err := snap.Scratch("s1")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := f.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
	}
	refuse = true
	if _, err := f.Write([]byte("abc")); !errors.Is(err, ErrNoRoom) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a full disk: %v", err)
	}
	refuse = false
	one, err1 := f.Open()
	two, err2 := f.Open()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, r := range []io.ReadCloser{one, two} {
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, []byte("abcabcabc")) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	if names, _ := fs.List(db.privateDir("secret")); len(names) > 0 {
		t.Errorf("stay: %v", names)
	}
	unread, err := snap.Scratch("s2")
	if err != nil {
		t.Fatal(err)
	}
	if err := unread.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("what was removed: %v", err)
	}
}

// TestScratchIsKept: what was kept is found after a crash, also if it was read
// before, as long as it was and no other; what was not kept is swept away, and
// nothing else.
func TestScratchIsKept(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
	snap, err := db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	for _, name := range []string{"at-once", "read", "not"} {
		f, err := snap.Scratch(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(name)); err != nil || f.Size() != int64(len(name)) {
			t.Fatalf("%d bytes, %v", f.Size(), err)
		}
		if name == "read" {
			r, err := f.Open()
			if err = errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if name == "not" {
			defer f.end()
			continue
		}
		if err := errors.Join(f.Keep(), f.Keep()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := snap.Keep("kept", nil); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, "store", Options{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
	defer again.Close()
	found, err := again.Snapshot("job")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for _, name := range []string{"at-once", "read"} {
		f, err := found.FindScratch(name, int64(len(name)))
		if err != nil {
			t.Fatal(err)
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != name || r.Close() != nil {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
		if _, err := found.FindScratch(name, f.Size()-1); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s is longer than it was: %v", name, err)
		}
	}
	if _, err := found.FindScratch("never", 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("what is not there: %v", err)
	}
	if err := found.SweepScratch("read"); err != nil {
		t.Fatal(err)
	}
	if names, err := again.fs.List(again.privateDir("job")); err != nil || len(names) != 2 {
		t.Errorf("stay: %v, %v", names, err)
	}
}
