package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestCommitOnFullDisk lets the disk be full at each write of a commit's
// segment: exports go on up to what is committed, intake waits once the
// gathering is full, and when there is room everything is committed without a
// restart, in order and once.
func TestCommitOnFullDisk(t *testing.T) {
	for writes := range int64(5) {
		synctest.Test(t, func(t *testing.T) {
			var left atomic.Int64 // writes that still find room
			var full atomic.Bool  // from then on none does, though a failed commit removes its files
			const plenty = 1 << 40
			left.Store(plenty)
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && strings.Contains(op.Path, "segments/") &&
					(full.Load() || left.Add(-1) < 0) {
					full.Store(true)
					return syscall.ENOSPC
				}
				return nil
			}))
			db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond, CommitSize: 4 << 10})
			defer db.Close()
			f := newFeed(t, db)
			f.commit(patientChange("before", fhir.None, "x"))
			ctx, stop := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- db.Run(ctx) }()
			time.Sleep(time.Second)
			f.apply()
			left.Store(writes)
			fed := make(chan struct{})
			go func() {
				defer close(fed)
				for i := range 20 {
					f.apply(patientChange("p", fhir.None, fmt.Sprint(i)), patientChange(fmt.Sprintf("p%d", i), fhir.None, "x"))
				}
			}()
			time.Sleep(time.Minute)
			select {
			case <-fed:
				t.Errorf("with room for %d writes: intake did not wait", writes)
			default:
			}
			s := pinNow(t, db, "full")
			if got, err := content(s); err != nil || len(got) != 1 {
				t.Errorf("with room for %d writes an export gives %d resources, %v", writes, len(got), err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if st := db.Status(); st.Failed != "" {
				t.Errorf("with room for %d writes: %s", writes, st.Failed)
			}
			left.Store(plenty)
			full.Store(false)
			time.Sleep(time.Minute)
			<-fed
			time.Sleep(time.Second)
			f.apply()
			after := pinNow(t, db, "after")
			got, err := content(after)
			if err != nil || len(got) != 22 || !strings.Contains(got["Patient/p"], `"19"`) {
				t.Errorf("with room for %d writes, in the end: %d resources, %s, %v", writes, len(got), got["Patient/p"], err)
			}
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Check(true); err != nil {
				t.Errorf("with room for %d writes: %v", writes, err)
			}
			stop()
			if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// TestHoldsWithoutRoom: what a commit that found no room took in holds the
// watermark as before, so that it still gets its own time.
func TestHoldsWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "segments/") {
				return syscall.ENOSPC
			}
			return nil
		}))
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.advance(time.Second)
		time.Sleep(time.Second)
		at := db.Now()
		full.Store(true)
		f.commit(patientChange("p", at, "x"))
		f.advance(time.Minute)
		s := pinNow(t, db, "full")
		if w := s.Watermark(); w >= at {
			t.Errorf("an export reaches to %v, and a change of %v is not committed", w, at)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		full.Store(false)
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
		if st, err := db.newest(fhir.Key{Type: patientType, ID: "p"}); err != nil || st.Instant != at {
			t.Errorf("the change got %v instead of its own time %v (%v)", st.Instant, at, err)
		}
	})
}

// TestReserve: the index itself finds the disk full. The reserve makes room for
// it, kick-offs, exports and the deletion of jobs go on, intake waits; when there
// is room the reserve is back first, and then everything is taken in.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		mem := vfs.NewMem()
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !full.Load() || op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpRemove {
				return nil
			}
			if _, err := mem.Stat("store/reserve"); err == nil || strings.HasSuffix(op.Path, "reserve") {
				return syscall.ENOSPC
			}
			return nil
		}))
		var log bytes.Buffer
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond, Reserve: 3 << 20, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer db.Close()
		if st, err := mem.Stat("store/reserve"); err != nil || st.Size() != 3<<20 {
			t.Fatalf("the reserve: %v", err)
		}
		f := newFeed(t, db)
		f.commit(patientChange("before", fhir.None, "x"))
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- db.Run(ctx) }()
		time.Sleep(time.Second)
		f.apply(patientChange("gathered", fhir.None, "x"))
		full.Store(true)
		s := pinNow(t, db, "kick-off")
		if got, err := content(s); err != nil || len(got) != 1 {
			t.Errorf("an export gives %d resources, %v", len(got), err)
		}
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			f.apply(patientChange("after", fhir.None, "x"))
		}()
		time.Sleep(time.Minute)
		select {
		case <-fed:
			t.Error("intake did not wait")
		default:
		}
		if err := errors.Join(s.Close(), db.Unpin(t.Context(), "kick-off")); err != nil {
			t.Errorf("delete the job: %v", err)
		}
		if st := db.Status(); st.Rows != 1 || st.Failed != "" {
			t.Errorf("%d rows, failed: %q", st.Rows, st.Failed)
		}
		full.Store(false)
		time.Sleep(time.Minute)
		<-fed
		time.Sleep(time.Second)
		if st := db.Status(); st.Rows != 3 || st.Failed != "" {
			t.Errorf("with room again %d rows, want 3; failed: %q", st.Rows, st.Failed)
		}
		if st, err := mem.Stat("store/reserve"); err != nil || st.Size() != 3<<20 {
			t.Errorf("with room again the reserve: %v", err)
		}
		for _, want := range []string{"the reserve was given up", "the reserve is back"} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("the log does not say once that %s:\n%s", want, &log)
			}
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// TestReadOnlyDisk: whether a commit or an export is the first that the disk
// refuses, what is there is served, intake waits, new exports are told why, and
// when the disk can be written again everything is taken in without a restart.
func TestReadOnlyDisk(t *testing.T) {
	for _, first := range []string{"commit", "half a commit", "export"} {
		synctest.Test(t, func(t *testing.T) {
			var refuse, halfway atomic.Bool
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".ndjson.gz") && halfway.CompareAndSwap(true, false) {
					refuse.Store(true)
				}
				if refuse.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
					return syscall.EROFS
				}
				return nil
			}))
			db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
			f := newFeed(t, db)
			f.commit(patientChange("before", fhir.None, "x"))
			f.advance(time.Second)
			before := pinNow(t, db, "before")
			ctx, stop := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- db.Run(ctx) }()
			time.Sleep(time.Second)
			if first == "half a commit" {
				halfway.Store(true)
			} else {
				refuse.Store(true)
			}
			held := make(chan error, 1)
			if first == "export" {
				go func() {
					s, err := db.Pin(ctx, "held", time.Time{}, func(*Snapshot) ([]byte, error) { return nil, nil })
					if err == nil {
						err = s.Close()
					}
					held <- err
				}()
				time.Sleep(time.Second)
			}
			applied := make(chan struct{})
			go func() { // waits, if the disk was known to be read-only before
				f.apply(patientChange("p", fhir.None, "new"))
				close(applied)
			}()
			time.Sleep(10 * time.Minute)
			if got, err := content(before); err != nil || len(got) != 1 {
				t.Errorf("%s: an export of before gives %d resources, %v", first, len(got), err)
			}
			if _, err := db.Pin(ctx, "new", time.Time{}, func(*Snapshot) ([]byte, error) { return nil, nil }); !errors.Is(err, ErrReadOnly) {
				t.Errorf("%s: a new export: %v", first, err)
			}
			if err := db.Unpin(ctx, "before"); !errors.Is(err, ErrReadOnly) {
				t.Errorf("%s: deleting one: %v", first, err)
			}
			if st := db.Status(); st.Failed != "" || len(ran) != 0 {
				t.Errorf("%s: the store has failed: %s", first, st.Failed)
			}
			refuse.Store(false)
			time.Sleep(10 * time.Second)
			if first == "export" {
				if err := <-held; err != nil {
					t.Errorf("the export that the disk refused first: %v", err)
				}
			}
			<-applied
			f.apply()
			after := pinNow(t, db, "after")
			if got, err := content(after); err != nil || len(got) != 2 {
				t.Errorf("%s: in the end an export gives %d resources, %v", first, len(got), err)
			}
			if err := errors.Join(before.Close(), after.Close()); err != nil {
				t.Error(err)
			}
			if _, err := db.Check(true); err != nil {
				t.Errorf("%s: %v", first, err)
			}
			stop()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			refuse.Store(true)
			if _, err := Open("store", Options{FS: fs}); !errors.Is(err, ErrReadOnly) {
				t.Errorf("opened on a read-only disk: %v", err)
			}
		})
	}
}

// TestKeepWithoutRoom: what a job keeps beside its snapshot is no use of the
// reserve.
func TestKeepWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond, Reserve: 1 << 20})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("a", fhir.None, "x"))
		f.advance(time.Minute)
		s := pinNow(t, db, "job")
		defer s.Close()
		db.reserve.give(func() {})()
		if _, err := s.Keep("selection", []byte("x")); !errors.Is(err, ErrNoRoom) {
			t.Errorf("kept while the reserve is away: %v", err)
		}
	})
}

// TestDraftWithoutRoom: nor is a file of a job that was begun while the reserve was
// there, and nothing of it stays.
func TestDraftWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond, Reserve: 1 << 20})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("a", fhir.None, "x"))
		f.advance(time.Minute)
		s := pinNow(t, db, "job")
		defer s.Close()
		d, err := s.Draft("f1")
		if err != nil {
			t.Fatal(err)
		}
		line := []byte(strings.Repeat("x", segment.BlockSize) + "\n")
		if err := d.Add(line); err != nil {
			t.Fatal(err)
		}
		db.reserve.give(func() {})()
		if err := d.Add(line); !errors.Is(err, ErrNoRoom) {
			t.Errorf("written while the reserve is away: %v", err)
		}
		if err := d.Keep(); !errors.Is(err, ErrNoRoom) {
			t.Errorf("kept while the reserve is away: %v", err)
		}
		if names, err := db.fs.List(db.privateDir("job")); err != nil || len(names) > 0 {
			t.Errorf("left: %v, %v", names, err)
		}
	})
}
