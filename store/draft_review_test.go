package store

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// The number of blocks that a damaged output file claims is not believed: it
// would have us ask for up to 64 GiB of memory, which ends the process.
func TestReviewMadeBelievesItsTrailer(t *testing.T) {
	fs := vfs.NewMem()
	db := mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
	snap, err := db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	d, err := snap.Draft("f1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Add([]byte("{}\n")), d.Keep()); err != nil {
		t.Fatal(err)
	}
	path := fs.PathJoin(db.privateDir("job"), "f1.made")
	text, err := readFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-9] ^= 0x04 // the highest byte of the number of blocks: 64 Mi of them
	writeFile(t, fs, path, text)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = snap.Made("f1")
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Errorf("%d MiB were allocated for a file of %d bytes", got>>20, len(text))
	}
}
