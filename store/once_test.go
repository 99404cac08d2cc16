package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// TestOnce: what was said counts once, after a crash at whatever moment too, and an
// index that is made anew knows it; but nothing is kept for ever.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		o := Options{FS: fs, Allowance: time.Millisecond, still: true}
		db := mustOpen(t, "store", o)
		f := newFeed(t, db)
		f.commit(patientChange("anna", fhir.None, "")) // a store without rows cannot be indexed anew
		var abandoned []*DB                            // their disk is gone
		defer func() {
			for _, db := range abandoned {
				db.Close()
			}
		}()
		said := func(what string, want bool) {
			t.Helper()
			if first, err := db.Once([]byte(what), time.Now().Add(6*time.Minute)); err != nil || first != want {
				t.Errorf("%s: %v, %v", what, first, err)
			}
		}
		said("a", true)
		said("a", false)
		for i := range 100 { // killed at once
			what := fmt.Sprintf("crash-%d", i)
			said(what, true)
			fs = fs.CrashClone(vfs.CrashCloneCfg{})
			abandoned = append(abandoned, db)
			o.FS = fs
			db = mustOpen(t, "store", o)
			said(what, false)
		}
		said("a", false)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		defer func() { db.Close() }()
		said("a", false)
		said("b", true)
		time.Sleep(7 * time.Minute)
		said("c", true)
		kept := 0
		if err := index.Scan(db.kv, index.Onces(), func(_, _ []byte) error { kept++; return nil }); err != nil || kept != 1 || len(db.onces.until) != 1 {
			t.Errorf("%d are kept, %d in memory, %v", kept, len(db.onces.until), err)
		}
	})
}

// TestOnceAtATime: of many who say the same at once one is the first.
func TestOnceAtATime(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
	defer db.Close()
	var firsts atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if first, err := db.Once([]byte("a"), time.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			} else if first {
				firsts.Add(1)
			}
		})
	}
	all.Wait()
	if firsts.Load() != 1 {
		t.Errorf("%d were the first", firsts.Load())
	}
	db.readOnly.Store(true)
	if first, err := db.Once([]byte("b"), time.Now().Add(time.Minute)); first || !errors.Is(err, ErrReadOnly) {
		t.Errorf("on a disk that takes no writes: %v, %v", first, err)
	}
	db.readOnly.Store(false)
}
