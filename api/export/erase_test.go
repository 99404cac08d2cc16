package export_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Wherever an erasure meets a job that writes its files, nothing of them stays.
func TestEraseWhileMaking(t *testing.T) {
	for n := range int64(60) {
		var db *store.DB
		var on atomic.Bool
		var ops atomic.Int64
		erased := make(chan error, 1)
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if on.Load() && strings.Contains(op.Path, "jobs") && op.Kind != errorfs.OpRemove && op.Kind != errorfs.OpRemoveAll && ops.Add(1) == n+1 {
				go func() {
					_, err := db.Erase(t.Context(), store.Erasure{Key: key(t, "Patient/1")})
					erased <- err
				}()
				select {
				case err := <-erased:
					erased <- err
				case <-time.After(300 * time.Millisecond): // it waits for what is under way
				}
			}
			return nil
		}))
		db = makingStore(t, fs)
		on.Store(true)
		j := export.New(export.Of(db), export.Options{Limits: export.Limits{Bytes: 1 << 20, Resources: 1}})
		id := start(t, j, export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}})
		stop := runs(t, j)
		var err error
		for range 1000 {
			if _, err = j.Manifest(id); err == nil || errors.Is(err, store.ErrRevoked) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if ops.Load() <= n {
			stop()
			t.Logf("%d operations", n)
			return
		}
		if err := <-erased; err != nil {
			t.Errorf("at %d: %v", n, err)
		}
		_, err = j.Manifest(id)
		time.Sleep(20 * time.Millisecond)
		stop()
		on.Store(false)
		if !errors.Is(err, store.ErrRevoked) {
			t.Errorf("at %d: %v", n, err)
		}
		if left := leftOnDisk(t, fs, id); len(left) > 0 {
			text := ""
			for _, name := range left {
				if f, err := fs.Open(fs.PathJoin("store", "jobs", id, name)); err == nil {
					b, _ := io.ReadAll(f)
					text += fmt.Sprintf(" %s: %q", name, b)
					_ = f.Close()
				}
			}
			t.Errorf("at %d: left%s", n, text)
		}
	}
}
