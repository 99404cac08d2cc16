package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestMergeOnFullDisk lets the disk be full at each write of a merge in turn:
// the merge is given up and leaves nothing, intake goes on, and when there is
// room again the merge succeeds.
func TestMergeOnFullDisk(t *testing.T) {
	var left atomic.Int64 // writes that still find room
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && strings.Contains(op.Path, "segments/") && left.Add(-1) < 0 {
			return syscall.ENOSPC
		}
		return nil
	}))
	const plenty = 1 << 40
	left.Store(plenty)
	db := mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	f := newFeed(t, db)
	n := 0
	fill := func() {
		for range 10 {
			n++
			f.commit(patientChange(fmt.Sprintf("p%d", n), fhir.None, "x"))
		}
	}
	failed := 0
	for writes := int64(0); ; writes++ {
		fill()
		left.Store(writes)
		merged, err := db.Merge(context.Background())
		left.Store(plenty)
		if err == nil {
			if !merged {
				t.Fatal("there was nothing to merge")
			}
			break
		}
		failed++
		if !errors.Is(err, syscall.ENOSPC) || merged {
			t.Fatalf("with room for %d writes: merged %v, %v", writes, merged, err)
		}
		f.commit(patientChange("after", fhir.None, fmt.Sprint(writes)))
		if _, err := db.Check(true); err != nil {
			t.Fatalf("with room for %d writes: %v", writes, err)
		}
		names, err := fs.List("store/segments")
		if err != nil {
			t.Fatal(err)
		}
		if want := 2 * db.Status().Segments; len(names) != want {
			t.Fatalf("with room for %d writes: %d files, want %d", writes, len(names), want)
		}
	}
	if failed < 3 {
		t.Errorf("only %d merges failed", failed)
	}
}

// TestCloseWhileUsed closes a store while others use it: they are told, or were
// served, and nothing panics.
func TestCloseWhileUsed(t *testing.T) {
	for range 30 {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
		f := newFeed(t, db)
		for i := range 10 {
			f.commit(patientChange(fmt.Sprintf("p%d", i), fhir.None, ""))
		}
		var using sync.WaitGroup
		begun := make(chan struct{}, 3)
		use := func(do func(i int) error) {
			using.Go(func() {
				for i := 0; ; i++ {
					if err := do(i); err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotFound) {
							t.Error(err)
						}
						return
					}
					if i == 2 {
						begun <- struct{}{}
					}
				}
			})
		}
		use(func(i int) error {
			id := fmt.Sprint(i)
			s, err := db.Pin(context.Background(), id, time.Time{}, func(*Snapshot) ([]byte, error) { return nil, nil })
			if err != nil {
				return err
			}
			return errors.Join(db.Unpin(context.Background(), id), s.Close())
		})
		use(func(int) error { _, err := db.Check(true); return err })
		use(func(int) error {
			if err := db.Flush(); err != nil {
				return err
			}
			_, err := db.Merge(context.Background())
			return err
		})
		for range 3 {
			<-begun
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		using.Wait()
	}
}

// TestUseAfterClose: whatever comes when the store is closed is told so.
func TestUseAfterClose(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
	f := newFeed(t, db)
	for i := range 10 {
		f.commit(patientChange(fmt.Sprintf("p%d", i), fhir.None, ""))
	}
	held := pinNow(t, db, "held")
	if merged, err := db.Merge(context.Background()); err != nil || !merged {
		t.Fatalf("merged %v, %v", merged, err)
	}
	_, err := db.Pin(context.Background(), "late", time.Time{}, func(*Snapshot) ([]byte, error) { return nil, db.Close() })
	if !errors.Is(err, ErrClosed) {
		t.Errorf("a snapshot while the store closes: %v", err)
	}
	if err := db.Unpin(context.Background(), "held"); !errors.Is(err, ErrClosed) {
		t.Errorf("unpin: %v", err)
	}
	if err := held.Close(); err != nil { // the last that held segments merged away
		t.Errorf("close a snapshot: %v", err)
	}
	if _, err := db.Check(true); !errors.Is(err, ErrClosed) {
		t.Errorf("check: %v", err)
	}
	if _, err := db.Merge(context.Background()); !errors.Is(err, ErrClosed) && err != nil {
		t.Errorf("merge: %v", err)
	}
	if err := errors.Join(db.Flush(), db.Close()); !errors.Is(err, ErrClosed) {
		t.Errorf("flush: %v", err)
	}
}

// TestResolvedTwice resolves a dead letter in one commit twice, again in the
// next, and again after a merge has dropped it: it dies once.
func TestResolvedTwice(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	f.commit(Change{Dead: &DeadLetter{Reason: "no JSON", Value: []byte("x")}, Version: NoVersion})
	var dead []Bound
	list := func() (letters []Bound) {
		t.Helper()
		err := db.DeadLetters("", func(d DeadLetterRow) error { letters = append(letters, d.Bound); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return letters
	}
	if dead = list(); len(dead) != 1 {
		t.Fatalf("%d dead letters, want 1", len(dead))
	}
	resolve := func(id string) {
		t.Helper()
		ch := patientChange(id, fhir.None, "")
		b := Batch{
			Partition: part0, Changes: []Change{ch}, Next: f.next + 1, End: f.next + 1, LeaderEpoch: -1, Asked: db.Now(),
			Resolved: []Bound{dead[0], dead[0]},
		}
		f.next++
		if err := errors.Join(db.Apply(context.Background(), b), db.Flush()); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(got) != 0 {
			t.Fatalf("dead letters %v are still listed", got)
		}
		if _, err := db.Check(true); err != nil {
			t.Fatal(err)
		}
	}
	resolve("a")
	resolve("b")
	for range 5 { // with which there are eight segments, enough for a merge
		f.commit(patientChange("c", fhir.None, fmt.Sprint(f.next)))
	}
	for i := 0; db.Promised() < f.lastInstant(); i++ { // so that the merge may drop it
		time.Sleep(time.Millisecond)
		f.apply()
		if err := pinNow(t, db, fmt.Sprint(i)).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if merged, err := db.Merge(context.Background()); err != nil || !merged {
		t.Fatalf("merged %v, %v", merged, err)
	}
	for _, g := range db.view.all() {
		if x := g.r.Section(segment.Section{Kind: segment.Internal, Type: segment.DeadLetters}); x.From != x.To {
			t.Fatal("the merge kept the dead letter")
		}
	}
	resolve("d")
}

// lastInstant is the newest change instant.
func (f *feed) lastInstant() fhir.Instant {
	f.db.commitMu.Lock()
	defer f.db.commitMu.Unlock()
	return f.db.meta.Newest
}

// TestReindexGivesNoNumberTwice: the body of the newest segment is lost. Its
// sequence numbers, which clients have seen as versionId, are not given again,
// and what was set aside once is not overwritten by what is set aside later.
func TestReindexGivesNoNumberTwice(t *testing.T) {
	dir := t.TempDir()
	for round := 1; round <= 2; round++ {
		db := mustOpen(t, dir, Options{})
		f := newFeed(t, db)
		f.commit(patientChange(fmt.Sprintf("kept-%d", round), fhir.None, ""))
		f.commit(patientChange("lost", fhir.None, fmt.Sprint(round)))
		last, newest := db.meta.NextSeq, db.view.fresh[len(db.view.fresh)-1].r
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "segments", newest.ID().BodyName()), newest.BodySize()-1); err != nil {
			t.Fatal(err)
		}
		if err := Reindex(context.Background(), dir, Options{}, io.Discard); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, dir, Options{})
		if db.meta.NextSeq < last {
			t.Errorf("round %d: the next sequence number is %d, but numbers up to %d were given", round, db.meta.NextSeq, last-1)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		aside, err := filepath.Glob(filepath.Join(dir, "set-aside-*", "*"))
		if err != nil || len(aside) != 2*round {
			t.Errorf("round %d: %d files were set aside, want %d (%v)", round, len(aside), 2*round, err)
		}
	}
}

// TestFewFilesOpen reads an output file of many segments: it holds only a few
// of them open.
func TestFewFilesOpen(t *testing.T) {
	db := mustOpen(t, t.TempDir(), Options{Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	for i := range 3 * maxOpen {
		f.commit(patientChange(fmt.Sprintf("p%d", i), fhir.None, ""))
	}
	for db.watermarkNow() < f.lastInstant() {
		time.Sleep(time.Millisecond)
		f.apply()
	}
	s := pinNow(t, db, "job")
	defer s.Close()
	ext, err := s.Extents(patients, fhir.None, s.Watermark())
	if err != nil || len(ext) != 3*maxOpen {
		t.Fatalf("%d extents, %v", len(ext), err)
	}
	file, err := s.File(context.Background(), "f", patients, fhir.None, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, write := range []func(io.Writer) error{
		func(w io.Writer) error { return file.WriteGzip(w, 0, file.GzipSize()) },
		func(w io.Writer) error { return file.WriteIdentity(w, 0, file.Size()) },
	} {
		var got lineWriter
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		if len(file.open) > maxOpen {
			t.Errorf("%d files are open, want %d at most", len(file.open), maxOpen)
		}
	}
}

func (db *DB) watermarkNow() fhir.Instant {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.watermark()
}
