package store

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// Any range of either form of a made file is that part of the whole, also through
// lines far larger than a block.
func TestMadeRanges(t *testing.T) {
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
	r := rand.New(rand.NewPCG(1, 1))
	var want []byte
	for _, n := range []int{1, 100, 70_000, 3_000_000, 5, 60_000, 9_000_000, 2} {
		line := make([]byte, n)
		for i := range line {
			line[i] = 'a' + byte(r.IntN(26))
		}
		line = append(line, 10)
		want = append(want, line...)
		if err := d.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Keep(); err != nil {
		t.Fatal(err)
	}
	f, err := snap.Made("f1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var packed bytes.Buffer
	if err := f.WriteGzip(&packed, 0, f.GzipSize()); err != nil || f.Size() != int64(len(want)) || int64(packed.Len()) != f.GzipSize() {
		t.Fatal(err, f.Size(), packed.Len())
	}
	z, err := gzip.NewReader(bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	for range storetest.Rounds(60) {
		var b bytes.Buffer
		off := r.Int64N(f.Size())
		n := 1 + r.Int64N(f.Size()-off)
		if err := f.WriteIdentity(&b, off, n); err != nil || !bytes.Equal(b.Bytes(), want[off:off+n]) {
			t.Fatal(off, n, b.Len(), err)
		}
		b.Reset()
		off = r.Int64N(f.GzipSize())
		n = 1 + r.Int64N(f.GzipSize()-off)
		if err := f.WriteGzip(&b, off, n); err != nil || !bytes.Equal(b.Bytes(), packed.Bytes()[off:off+n]) {
			t.Fatal(off, n, b.Len(), err)
		}
	}
}

// The number of blocks that a damaged output file claims is not believed: it
// would have us ask for up to 64 GiB of memory, which ends the process.
func TestMadeBelievesItsTrailer(t *testing.T) {
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
	text, err := disk.Read(fs, path)
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
