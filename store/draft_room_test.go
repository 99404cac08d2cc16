package store

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
)

// Whatever fails of a private file in the making, nothing of it stays.
func TestDraftLeavesNothing(t *testing.T) {
	for n := range int64(20) {
		var on, done atomic.Bool
		var ops atomic.Int64
		var what errorfs.Op
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if on.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && op.Kind != errorfs.OpMkdirAll && ops.Add(1) == n+1 {
				what = op
				done.Store(true)
				return syscall.EROFS
			}
			return nil
		}))
		db := mustOpen(t, "store", Options{FS: fs})
		newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
		snap, err := db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		d, err := snap.Draft("f1")
		if err == nil {
			if err = d.Add([]byte("{}\n")); err != nil {
				err = errors.Join(err, d.Discard())
			} else {
				err = d.Keep()
			}
		}
		on.Store(false)
		if done.Load() && !errors.Is(err, ErrNoRoom) {
			t.Errorf("%v: %v", what, err)
		}
		names, _ := fs.List(db.privateDir("job"))
		for _, name := range names {
			if done.Load() && strings.HasSuffix(name, ".tmp") {
				t.Errorf("after %v: %v", what, names)
			}
		}
		_ = snap.Close()
		_ = db.Close()
		if !done.Load() {
			return
		}
	}
}
