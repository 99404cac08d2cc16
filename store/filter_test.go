package store

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestFilter: of whole blocks and of those with dead rows only what matches is
// left; a block of which all matches stays one that is sent as it lies; what is
// damaged is counted and left out; a snapshot that was revoked is not read.
func TestFilter(t *testing.T) { synctest.Test(t, testFilter) }

func testFilter(t *testing.T) {
	fs := vfs.NewMem()
	db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	for i := range 4 {
		f.commit(patientChange(fmt.Sprintf("a%d", i), fhir.None, "odd"), patientChange(fmt.Sprintf("b%d", i), fhir.None, "even"))
	}
	f.commit(patientChange("a0", fhir.None, "odd again"), patientChange("b1", fhir.None, "odd")) // of two blocks a row is dead now
	f.advance(time.Second)
	snap, err := db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	sec := Section{Kind: Live, Type: patientType}
	ext, err := snap.Extents(sec, fhir.None, math.MaxInt64)
	if err != nil || len(ext) != 5 {
		t.Fatal(len(ext), err)
	}
	read := func(ext []Extent) string {
		file, err := snap.File(t.Context(), "f1", sec, fhir.None, math.MaxInt64, ext)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := errors.Join(file.WriteIdentity(&b, 0, file.Size()), file.Close()); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	steps := 0
	only := func(word string) ([]Extent, int, error) {
		return snap.Filter(t.Context(), fhir.None, math.MaxInt64, ext, func(line []byte) bool { return bytes.Contains(line, []byte(word)) }, func() { steps++ })
	}
	kept, lost, err := only("odd")
	if err != nil || lost != 0 || steps != len(ext) {
		t.Fatal(lost, steps, err)
	}
	rows, size := 0, int64(0)
	for _, x := range kept {
		rows, size = rows+x.Rows, size+x.Bytes
	}
	got := read(kept)
	if strings.Count(got, "\n") != 5 || strings.Contains(got, "even") || rows != 5 || size != int64(len(got)) {
		t.Errorf("%d rows of %d bytes:\n%s", rows, size, got)
	}
	if !kept[len(kept)-1].Whole {
		t.Error("a block of which all matches is cut")
	}
	if kept, _, err := only("nothing"); err != nil || len(kept) != 0 {
		t.Errorf("%v, %v", kept, err)
	}

	path := snap.seg(segment.ID(ext[2].Segment)).r.BodyPath()
	body, err := disk.Read(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	body[segment.HeaderSize+5] ^= 0x10
	writeFile(t, fs, path, body)
	if kept, lost, err := only("odd"); err != nil || lost != 2 || len(kept) != 3 {
		t.Errorf("%d extents and %d lost, %v", len(kept), lost, err)
	}
	snap.of.revoked.Store(true)
	if _, _, err := only("odd"); !errors.Is(err, ErrRevoked) {
		t.Errorf("after an erasure: %v", err)
	}
}
