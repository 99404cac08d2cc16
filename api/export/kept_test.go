package export_test

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/export"
)

// TestKeptOfOwner: a client whose jobs are ready at once does not take all places from the
// others until they expire. Where no tokens are asked for, everybody has all.
func TestKeptOfOwner(t *testing.T) {
	j := export.New(export.Of(makingStore(t, vfs.NewMem())), export.Options{MaxJobs: 4})
	begin := func(q export.Request) error {
		_, err := j.Start(t.Context(), q)
		return err
	}
	for range 2 {
		if err := begin(owned("#1", "system/*.rs")); err != nil {
			t.Fatal(err)
		}
	}
	busy, is := errors.AsType[*export.BusyError](begin(owned("#1", "system/*.rs")))
	if !is || busy.Limit != "limits.jobs_kept" || busy.Value != 2 || busy.After <= 0 {
		t.Errorf("more than half of the places: %+v", busy)
	}
	for range 2 {
		if err := begin(everything()); err != nil {
			t.Errorf("somebody else: %v", err)
		}
	}
	all := export.New(export.Of(makingStore(t, vfs.NewMem())), export.Options{MaxJobs: 4})
	for range 4 {
		if _, err := all.Start(t.Context(), everything()); err != nil {
			t.Errorf("nobody's jobs: %v", err)
		}
	}
}
